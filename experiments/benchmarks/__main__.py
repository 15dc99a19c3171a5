"""python -m experiments.benchmarks NAME: time this library against peers and floors."""

from __future__ import annotations

import argparse

import torch

from experiments.benchmarks import edges, patching, readings, removal


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("patching", help=patching.__doc__, description=patching.__doc__)
    sweep.add_argument("--sample", type=int, default=60, help="peer patches to time")
    sweep.add_argument("--repeats", type=int, default=1, help="sweeps; the median is reported")
    paths = commands.add_parser("edges", help=edges.__doc__, description=edges.__doc__)
    paths.add_argument("--pairs", type=int, default=8, help="IOI pairs")
    paths.add_argument("--repeats", type=int, default=3, help="of each; the median is reported")
    paths.add_argument("--acdc-edges", type=int, default=300, help="0 leaves ACDC out")
    long = commands.add_parser("readings", help=readings.__doc__, description=readings.__doc__)
    long.add_argument("--tokens", type=int, default=2000, help="of the prompt")
    cut = commands.add_parser("removal", help=removal.__doc__, description=removal.__doc__)
    cut.add_argument("--repeats", type=int, default=5, help="of each; the median is reported")
    for command in (sweep, paths, long, cut):
        command.add_argument("--model", default="smollm2-135m", help="or random-135m, random-1b")
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        command.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    print(f"{patching.machine(options.device)}; torch {torch.__version__}")
    common = (options.model, options.device, options.dtype)
    if options.command == "patching":
        patching.run(*common, options.sample, options.repeats)
    elif options.command == "readings":
        readings.run(*common, options.tokens)
    elif options.command == "removal":
        removal.run(*common, options.repeats)
    else:
        edges.run(*common, options.pairs, options.repeats, options.acdc_edges)


if __name__ == "__main__":
    main()
