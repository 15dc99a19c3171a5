"""An evaluation as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.rag_audit.judging import SCORES


def text(found: Mapping[str, Any]) -> str:
    """Markdown, so that it can be pasted into RESULTS.md; ± is a standard error over questions."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['n_questions']} questions, {found['n_statements']} statements, "
        f"{found['n_passages']} (statement, passage) pairs"
    )
    if found["missing"]:
        yield f"not in the audit: {len(found['missing'])} questions"
    yield "\n## AUROC of “this passage is a source”\n"
    yield from _table(
        ["", "sources / others", *SCORES],
        [
            [part, _counts(row), *(_number(row.get(name)) for name in SCORES)]
            for part, row in found["auroc"].items()
        ],
    )
    verdicts, passages = found["verdicts"], found["passage_verdicts"]
    yield "\n## Verdicts of statements\n"
    rows = {name: verdicts[name] for name in ("accuracy", "hard", "easy")}
    yield from _rates({**rows, **verdicts["by_class"]})
    yield "\nby variant\n"
    yield from _rates(verdicts["by_variant"])
    yield "\nexpected → found\n"
    yield from _confusion(verdicts["confusion"])
    yield "\n## Verdicts of passages\n"
    yield from _rates({"accuracy": passages["accuracy"], **passages["by_expected"]})
    yield "\nexpected → found\n"
    yield from _confusion(passages["confusion"])
    yield "\n## Passages that are no source\n"
    yield from _table(
        ["", "used", "p < .05"],
        [
            [part, _rate(row["used"]), _rate(row["p < .05"])]
            for part, row in found["false_positives"].items()
        ],
    )
    yield "\n## Sources that are there twice\n"
    yield from _rates(found["redundancy"])


def _rates(rows: Mapping[str, Any]) -> Iterator[str]:
    return _table(["", "rate"], [[name, _rate(row)] for name, row in rows.items()])


def _rate(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['value']:.3f} ± {row['stderr']:.3f} ({row['count']}/{row['total']})"


def _number(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.3f} ± {row['stderr']:.3f}"


def _counts(row: Mapping[str, Any]) -> str:
    most = max(row.values(), key=lambda cell: cell["n_sources"])
    return f"{most['n_sources']} / {most['n_others']}"


def _confusion(table: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    found = sorted({verdict for row in table.values() for verdict in row})
    rows = [
        [expected, *(str(row.get(verdict, "")) for verdict in found)]
        for expected, row in table.items()
    ]
    return _table(["", *found], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
