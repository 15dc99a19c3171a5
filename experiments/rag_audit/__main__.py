"""python -m experiments.rag_audit: question sets of known truth, and audits judged by them.

python -m experiments.rag_audit generate --n 240 --seed 0 --out items.jsonl
mechattr audit items.jsonl --model smollm2-135m --out audit.jsonl
python -m experiments.rag_audit evaluate --items items.jsonl --lines audit.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from experiments.rag_audit import generator, judging, showing
from mechattr.errors import MechattrError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "generate":
            _generate(options)
        else:
            _evaluate(options)
    except (MechattrError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.rag_audit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("generate", help="write a question set")
    make.add_argument("--n", type=int, default=240, help="questions")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", default="items.jsonl")
    judge = commands.add_parser("evaluate", help="judge an audit of a question set")
    judge.add_argument("--items", required=True, help="the question set")
    judge.add_argument("--lines", required=True, help="the audit's output")
    judge.add_argument("--json", help="write all numbers here as well")
    judge.add_argument("--seed", type=int, default=0, help="of the standard errors")
    return parser


def _generate(options: argparse.Namespace) -> None:
    count = generator.write(generator.generate(options.n, options.seed), options.out)
    print(f"{count} questions in {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    items, lines = judging.read_lines(options.items), judging.read_lines(options.lines)
    found = judging.evaluated(items, lines, options.seed)
    print(showing.text(found))
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
