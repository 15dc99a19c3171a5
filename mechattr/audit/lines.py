"""What is written out of a judged statement: one line, with every number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechattr.audit.plan import Plan
from mechattr.audit.tested import Question, Tested
from mechattr.audit.verdicts import Evidence, statement_verdict, strength

DIGITS = 6
"""Decimals of a nat that are written out: more than float32 has."""


def line(t: Tested, evidence: Sequence[Evidence], plan: Plan) -> dict[str, Any]:
    """One statement's."""
    question, whole, statement = t.question, t.whole, t.statement
    return {
        "id": question["id"],
        **{key: statement[key] for key in ("sid", "start", "end", "text", "n_tokens")},
        "logp_full": _round(whole.full),
        "logp_none": _round(whole.none),
        "context_effect": _round(whole.effect),
        "gain": _round(whole.gain),
        "verdict": statement_verdict(whole, evidence, plan),
        "strength": strength(whole.effect, plan),
        "operator": t.effects["operator"],
        "n_forwards": question["n_forwards"],
        "warnings": list(question["warnings"]),
        "tokens": _tokens(t),
        "passages": [_passage(t, j, e) for j, e in enumerate(evidence)],
        **_earlier(question, statement["sid"]),
    }


def add_others(line: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """What other operators say, and a warning where they disagree."""
    if not others:
        return
    line["operators"] = {
        other["operator"]: {
            key: other[key]
            for key in ("logp_full", "logp_none", "context_effect", "gain", "verdict", "passages")
        }
        for other in others
    }
    for other in others:
        if other["verdict"] != line["verdict"]:
            line["warnings"].append(
                f"Operators disagree: {line['operator']} says {line['verdict']!r}, "
                f"{other['operator']} says {other['verdict']!r}."
            )


def _passage(t: Tested, j: int, e: Evidence) -> dict[str, Any]:
    """One passage's entry in a statement's line."""
    effects, passages = t.effects, t.question["passages"]
    entry = {
        "pid": passages[j]["pid"],
        **({"of": passages[j]["of"]} if passages[j]["of"] != passages[j]["pid"] else {}),
        "cited": e.cited,
        "necessity": _round(effects["necessity"][t.s][j]),
        "sufficiency": _round(effects["sufficiency"][t.s][j]),
        "surrogate": _round(effects["surrogate"][t.s][j]),
        "ci95": [_round(end) for end in effects["ci95"][t.s][j]],
        "decisive": _round(e.own),
        "upper": _round(e.upper),
        "p": _round(t.p[j]),
        "q": _round(t.q[j]),
        "used": e.used,
        "verdict": e.verdict,
        "token_necessity": _rounded(t.tokens("full") - t.tokens("without", j)),
        "token_sufficiency": _rounded(t.tokens("alone", j) - t.tokens("none")),
    }
    if e.redundant:
        entry["redundant_with"] = [passages[k]["pid"] for k in e.group if k != j]
        entry["joint_effect"] = _round(e.group_effect)
    if "shapley" in effects:
        entry["shapley"] = _round(effects["shapley"][t.s][j])
        entry["shapley_stderr"] = _round(effects["shapley_stderr"][t.s][j])
    return entry


def _tokens(t: Tested) -> list[dict[str, Any]]:
    """The statement's tokens: where they stand in the answer, and log p of each."""
    each = zip(t.places, t.tokens("full"), t.tokens("none"), strict=True)
    return [
        {
            **{key: t.question["tokens"][i][key] for key in ("text", "start", "end")},
            "logp_full": _round(full),
            "logp_none": _round(none),
        }
        for i, full, none in each
    ]


def _earlier(question: Question, sid: str) -> dict[str, Any]:
    """What earlier statements do, where they were players."""
    found = [entry for entry in question.get("earlier", []) if entry["sid"] == sid]
    if not found:
        return {}
    told = [
        {"sid": r["sid"], **{k: _round(r[k]) for k in ("necessity", "sufficiency")}}
        for r in found[0]["statements"]
    ]
    alone = _round(found[0]["context_effect_without"])
    return {"earlier": {"context_effect_without": alone, "statements": told}}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [_round(value) for value in values]


def _round(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), DIGITS)
