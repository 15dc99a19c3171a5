"""What is run from a checkout: benchmarks, sweeps, reproductions. Not installed."""
