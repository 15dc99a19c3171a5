"""How well an audit's lines agree with the truth that a question set was built with.

A passage of a statement is *positive* where it is a source that the answer needs the passages for,
*negative* where it is no source. A source of what the model knows anyway is neither. Standard
errors are of a bootstrap over questions: statements and passages of a question aren't independent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from mechattr.errors import InputError
from mechattr.ranks import average_ranks

RESAMPLES = 500
MEMORY = "parametric memory"
REDUNDANT = "redundant support"
SCORES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "necessity": lambda row: row.get("necessity"),
    "sufficiency": lambda row: row.get("sufficiency"),
    "surrogate": lambda row: row.get("surrogate"),
    "|necessity|": lambda row: _map(abs, row.get("necessity")),
    "|surrogate|": lambda row: _map(abs, row.get("surrogate")),
    "larger of necessity and sufficiency": lambda row: _largest(row, "necessity", "sufficiency"),
}


@dataclass(frozen=True)
class Pair:
    """A passage of a statement. said: the audit's numbers; truth: what it should find.

    question: its number, for the bootstrap. positive: None where neither.
    """

    question: int
    cls: str
    hard: bool
    about: str
    positive: bool | None
    expected: str
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """A statement."""

    question: int
    cls: str
    variant: str
    hard: bool
    expected: str
    found: str
    pairs: tuple[Pair, ...]


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """JSONL. Raises InputError for a line that isn't JSON."""
    found = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {number} isn't JSON: {error}.") from error
    return found


def joined(items: Iterable[Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]) -> list[Judged]:
    """The items' statements with what the audit says of them, by question and by order.

    Questions that the audit has no line of are left out (:func:`missing`). Raises InputError where
    a question has another number of statements or other passages than the set.
    """
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        by_id.setdefault(line["id"], []).append(line)
    found = []
    for question, item in enumerate(items):
        said = sorted(by_id.get(item["id"], []), key=lambda line: line["start"])
        truths = item["truth"]["statements"]
        if said and len(said) != len(truths):
            raise InputError(
                f"Question {item['id']!r} has {len(truths)} statements in the set and {len(said)} "
                f"in the audit. Was the answer split otherwise, or are these the lines of another "
                f"set?"
            )
        for truth, line in zip(truths, said, strict=False):
            found.append(_judged(question, item, truth, line))
    return found


def missing(
    items: Iterable[Mapping[str, Any]], lines: Iterable[Mapping[str, Any]]
) -> tuple[str, ...]:
    there = {line["id"] for line in lines}
    return tuple(item["id"] for item in items if item["id"] not in there)


def _judged(
    question: int, item: Mapping[str, Any], truth: Mapping[str, Any], line: Mapping[str, Any]
) -> Judged:
    whole = item["truth"]
    rows = {row["pid"]: row for row in line["passages"]}
    if set(rows) != set(truth["passages"]):
        raise InputError(
            f"Question {item['id']!r} has passages {sorted(truth['passages'])} in the set and "
            f"{sorted(rows)} in the audit: these are the lines of another set."
        )
    pairs = []
    for pid, expected in truth["passages"].items():
        positive: bool | None = pid in truth["sources"]
        if positive and whole["class"] == MEMORY:
            positive = None
        about = whole["about"][pid]
        pairs.append(
            Pair(question, whole["class"], whole["hard"], about, positive, expected, rows[pid])
        )
    found = "cited and used" if line["verdict"] == "supported" else line["verdict"]
    return Judged(
        question,
        whole["class"],
        whole.get("variant", ""),
        whole["hard"],
        truth["verdict"],
        found,
        tuple(pairs),
    )


# --- the report -----------------------------------------------------------------------------------


def evaluated(
    items: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], seed: int = 0
) -> dict[str, Any]:
    """All numbers, JSON-able. Raises InputError where nothing can be compared."""
    statements = joined(items, lines)
    if not statements:
        raise InputError("No line of the audit is of a question of the set.")
    rng = np.random.default_rng(seed)
    pairs = [pair for statement in statements for pair in statement.pairs]
    return {
        "n_questions": len({statement.question for statement in statements}),
        "n_statements": len(statements),
        "n_passages": len(pairs),
        "missing": list(missing(items, lines)),
        "auroc": _aurocs(pairs, rng),
        "verdicts": _verdicts(statements, rng),
        "passage_verdicts": _passage_verdicts(pairs, rng),
        "false_positives": _false_positives(pairs, rng),
        "redundancy": _redundancy(statements, rng),
    }


def _aurocs(pairs: Sequence[Pair], rng: np.random.Generator) -> dict[str, Any]:
    """Of "this passage is a source", by score and part of the set."""
    parts: dict[str, Callable[[Pair], bool]] = {
        "all": lambda pair: True,
        "without duplicates": lambda pair: pair.cls != REDUNDANT,
        "hard": lambda pair: pair.hard,
        "easy": lambda pair: not pair.hard,
        **{cls: _of_class(cls) for cls in sorted({pair.cls for pair in pairs})},
    }
    found: dict[str, Any] = {}
    for part, inside in parts.items():
        rows = [pair for pair in pairs if inside(pair) and pair.positive is not None]
        for name, score in SCORES.items():
            scored = [(pair, score(pair.said)) for pair in rows]
            known = [(pair, value) for pair, value in scored if value is not None]
            value = _auroc_of(known, rng)
            if value is not None:
                found.setdefault(part, {})[name] = value
    return found


def _of_class(cls: str) -> Callable[[Pair], bool]:
    return lambda pair: pair.cls == cls


def _auroc_of(
    known: Sequence[tuple[Pair, float]], rng: np.random.Generator
) -> dict[str, float | int] | None:
    truth = np.array([bool(pair.positive) for pair, _ in known], dtype=bool)
    if not truth.any() or truth.all():
        return None
    scores = np.array([value for _, value in known], dtype=float)
    questions = np.array([pair.question for pair, _ in known])

    def of(index: Int[np.ndarray, " pair"]) -> float:
        return auroc(scores[index], truth[index])

    return {
        "value": auroc(scores, truth),
        "stderr": _stderr(questions, of, rng),
        "n_sources": int(truth.sum()),
        "n_others": int((~truth).sum()),
    }


def auroc(scores: Float[np.ndarray, " pair"], truth: Bool[np.ndarray, " pair"]) -> float:
    """The chance that a positive scores above a negative, ties half. NaN without one of them."""
    n, m = int(truth.sum()), int((~truth).sum())
    if not n or not m:
        return float("nan")
    ranks = average_ranks(scores[None])[0]
    return float((ranks[truth].sum() - n * (n + 1) / 2) / (n * m))


def _verdicts(statements: Sequence[Judged], rng: np.random.Generator) -> dict[str, Any]:
    right = [(s.question, s.expected == s.found) for s in statements]
    groups = {
        "hard": lambda s: s.hard,
        "easy": lambda s: not s.hard,
    }
    classes = sorted({s.cls for s in statements})
    variants = sorted({(s.cls, s.variant) for s in statements if s.variant})
    return {
        "accuracy": _rate(right, rng),
        **{
            name: _rate([r for s, r in zip(statements, right, strict=True) if inside(s)], rng)
            for name, inside in groups.items()
        },
        "by_class": {
            cls: _rate([r for s, r in zip(statements, right, strict=True) if s.cls == cls], rng)
            for cls in classes
        },
        "by_variant": {
            f"{cls}: {variant}": _rate(
                [
                    r
                    for s, r in zip(statements, right, strict=True)
                    if (s.cls, s.variant) == (cls, variant)
                ],
                rng,
            )
            for cls, variant in variants
        },
        "confusion": _confusion([(s.expected, s.found) for s in statements]),
    }


def _passage_verdicts(pairs: Sequence[Pair], rng: np.random.Generator) -> dict[str, Any]:
    both = [(pair.expected, _found(pair)) for pair in pairs]
    right = [(pair.question, e == f) for pair, (e, f) in zip(pairs, both, strict=True)]
    expected = sorted({e for e, _ in both})
    return {
        "accuracy": _rate(right, rng),
        "by_expected": {
            verdict: _rate([r for r, (e, _) in zip(right, both, strict=True) if e == verdict], rng)
            for verdict in expected
        },
        "confusion": _confusion(both),
    }


def _found(pair: Pair) -> str:
    verdict = str(pair.said["verdict"])
    return "cited and used" if verdict == "supported" else verdict


def _false_positives(pairs: Sequence[Pair], rng: np.random.Generator) -> dict[str, Any]:
    """Of passages that are no source: how often they are called used, and how often p < .05."""
    parts: dict[str, Callable[[Pair], bool]] = {
        "all": lambda pair: True,
        "off topic": lambda pair: pair.about == "off topic",
        "near": lambda pair: pair.about not in ("off topic", "source"),
        "source of another statement": lambda pair: pair.about == "source",
    }
    found: dict[str, Any] = {}
    for part, inside in parts.items():
        rows = [pair for pair in pairs if pair.positive is False and inside(pair)]
        used = [(pair.question, bool(pair.said["used"])) for pair in rows]
        small = [
            (pair.question, pair.said["p"] < 0.05)
            for pair in rows
            if pair.said.get("p") is not None
        ]
        found[part] = {"used": _rate(used, rng), "p < .05": _rate(small, rng)}
    sources = [pair for pair in pairs if pair.positive]
    found["sources"] = {
        "used": _rate([(pair.question, bool(pair.said["used"])) for pair in sources], rng),
        "p < .05": _rate(
            [
                (pair.question, pair.said["p"] < 0.05)
                for pair in sources
                if pair.said.get("p") is not None
            ],
            rng,
        ),
    }
    return found


def _redundancy(statements: Sequence[Judged], rng: np.random.Generator) -> dict[str, Any]:
    """Of statements whose source is there twice. lost: a duplicate is called unused."""
    rows = [s for s in statements if s.cls == REDUNDANT]
    unused = ("cited but unused", "not used")
    lost = [
        (s.question, any(p.positive and p.said["verdict"] in unused for p in s.pairs)) for s in rows
    ]
    others = [(s.question, s.found == REDUNDANT) for s in statements if s.cls != REDUNDANT]
    found: dict[str, Any] = {}
    for how in ("copied", "in other words"):
        found[f"recall, {how}"] = _rate(
            [(s.question, s.found == REDUNDANT) for s in rows if how in s.variant], rng
        )
    return {
        "recall": _rate([(s.question, s.found == REDUNDANT) for s in rows], rng),
        **found,
        "a duplicate called unused": _rate(lost, rng),
        "others called redundant": _rate(others, rng),
    }


# --- statistics -----------------------------------------------------------------------------------


def _rate(rows: Sequence[tuple[int, bool]], rng: np.random.Generator) -> dict[str, Any] | None:
    if not rows:
        return None
    questions = np.array([question for question, _ in rows])
    hits = np.array([hit for _, hit in rows], dtype=float)
    return {
        "value": float(hits.mean()),
        "stderr": _stderr(questions, lambda index: float(hits[index].mean()), rng),
        "count": int(hits.sum()),
        "total": len(hits),
    }


def _stderr(
    questions: Int[np.ndarray, " row"],
    statistic: Callable[[Int[np.ndarray, " row"]], float],
    rng: np.random.Generator,
) -> float:
    """Bootstrap of questions; resamples in which the statistic isn't defined don't count."""
    rows = [np.flatnonzero(questions == question) for question in np.unique(questions)]
    found = [
        statistic(np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]))
        for _ in range(RESAMPLES)
    ]
    return float(np.nanstd(found)) if not np.isnan(found).all() else float("nan")


def _confusion(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    table: dict[str, Counter[str]] = {}
    for expected, found in pairs:
        table.setdefault(expected, Counter())[found] += 1
    return {
        expected: dict(sorted(row.items(), key=lambda cell: (-cell[1], cell[0])))
        for expected, row in sorted(table.items())
    }


def _map(function: Callable[[float], float], value: float | None) -> float | None:
    return None if value is None else function(value)


def _largest(row: Mapping[str, Any], *keys: str) -> float | None:
    values = [row[key] for key in keys if row.get(key) is not None]
    return max(values) if values else None
