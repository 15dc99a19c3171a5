"""Measured questions made by hand, as ``measuring.py`` describes them: no model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = Callable[[frozenset[int]], float]


def effects(
    values: Sequence[Value],
    n: int,
    nulls: Sequence[Sequence[float]],
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    operator: str = "remove",
) -> dict[str, Any]:
    """Of one operator: a value function a statement (of one token); nulls [swap][statement]."""
    sets = [frozenset(s) for k in range(n + 1) for s in itertools.combinations(range(n), k)]
    every, none = frozenset(range(n)), frozenset[int]()

    def tokens(of: frozenset[int]) -> list[float]:
        return [v(of) for v in values]

    groups = groups or [[] for _ in values]
    return {
        "operator": operator,
        "full": [v(every) for v in values],
        "none": [v(none) for v in values],
        "necessity": [[v(every) - v(every - {j}) for j in range(n)] for v in values],
        "sufficiency": [[v(frozenset({j})) - v(none) for j in range(n)] for v in values],
        "surrogate": [[0.5] * n for _ in values],
        "ci95": [[[0.25, None]] * n for _ in values],
        "lds": [None for _ in values],
        "groups": [
            [
                {
                    "players": list(g),
                    "effect": v(every) - v(every - set(g)),
                    "tokens_without": tokens(every - set(g)),
                }
                for g in own
            ]
            for own, v in zip(groups, values, strict=True)
        ],
        "tokens_full": tokens(every),
        "tokens_none": tokens(none),
        "tokens_without": [tokens(every - {j}) for j in range(n)],
        "tokens_alone": [tokens(frozenset({j})) for j in range(n)],
        "masks": ["".join("01"[j in s] for j in range(n)) for s in sets],
        "values": [[v(s) for v in values] for s in sets],
        "swaps": [
            {"place": i % n, "title": "", "necessity": list(null), "sufficiency": [0.0] * len(null)}
            for i, null in enumerate(nulls)
        ],
        "pairs": [{"places": [0, 1], "titles": ["", ""], "worth": list(null)} for null in nulls],
    }


def question(
    name: str,
    values: Sequence[Value],
    n: int = 4,
    *,
    cited: Sequence[Sequence[int]] | None = None,
    n_tokens: int = 10,
    nulls: Sequence[Sequence[float]] | None = None,
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    others: Sequence[tuple[str, Sequence[Value]]] = (),
    **more: Any,
) -> dict[str, Any]:
    """A question of passages p1, p2, ... and a statement a value function.

    cited: passages (from 0) that each statement cites. others: further operators.
    """
    pids = [f"p{j + 1}" for j in range(n)]
    cited = cited or [[] for _ in values]
    if nulls is None:
        nulls = [[x] * len(values) for x in np.linspace(-0.3, 0.3, 60)]
    return {
        "id": name,
        "line": 1,
        "digest": name,
        "question": f"Question {name}?",
        "answer": "Said.",
        "scored": "Said.",
        "generated": False,
        "gold_pids": [],
        "passages": [
            {"pid": pid, "of": pid, "title": "", "text": f"Text of {pid}.", "n_tokens": 7}
            for pid in pids
        ],
        "statements": [
            {"sid": f"s{s + 1}", "start": 6 * s, "end": 6 * s + 5, "text": f"Said {s + 1}.",
             "n_tokens": n_tokens, "cited": [pids[j] for j in cited[s]]}
            for s in range(len(values))
        ],
        "tokens": [
            {"text": "Said.", "start": 6 * s, "end": 6 * s + 5, "sid": f"s{s + 1}"}
            for s in range(len(values))
        ],
        "effects": [
            effects(values, n, nulls, groups),
            *(effects(v, n, nulls, groups, operator) for operator, v in others),
        ],
        "n_forwards": 12,
        "tokens_run": 100,
        "seconds": 0.5,
        "warnings": [],
        **more,
    }  # fmt: skip


def source(*places: int, worth: float = 10.0, least: float = -20.0) -> Value:
    """``worth`` nats where one of these passages is there."""
    return lambda s: least + worth * bool(s & set(places))


def nothing(s: frozenset[int]) -> float:
    return -20.0
