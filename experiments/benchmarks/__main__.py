"""python -m experiments.benchmarks NAME: time this library against peers and floors."""

from __future__ import annotations

import argparse

import torch

from experiments.benchmarks import patching


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("patching", help=patching.__doc__, description=patching.__doc__)
    sweep.add_argument("--model", default="smollm2-135m", help="or random-135m, random-1b")
    sweep.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sweep.add_argument("--dtype", default="float32")
    sweep.add_argument("--sample", type=int, default=60, help="peer patches to time")
    sweep.add_argument("--repeats", type=int, default=1, help="sweeps; the median is reported")
    options = parser.parse_args()
    print(f"{patching.machine(options.device)}; torch {torch.__version__}")
    patching.run(options.model, options.device, options.dtype, options.sample, options.repeats)


if __name__ == "__main__":
    main()
