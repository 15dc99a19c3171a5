"""Benchmarks: this engine against named peers and computed floors, in one run.

python -m experiments.benchmarks patching [--device cuda] [--model NAME]
"""
