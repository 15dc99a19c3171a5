"""Measured questions judged: p and q against the run's null, bounds, verdicts, output lines.

A function of what was measured alone: other thresholds need no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.audit.given import upper_given
from mechattr.audit.plan import Plan
from mechattr.audit.statistics import LEAST, Pool, benjamini_hochberg, p_own
from mechattr.audit.verdicts import (
    Entails,
    Evidence,
    Whole,
    carries,
    statement_verdict,
    strength,
)

Question = Mapping[str, Any]

LEAST_FOR_Q = 400
"""Nulls in a band of sizes where q is asked for: with few, no p is small enough for its rank."""

DIGITS = 6
"""Decimals of a nat that are written out: more than float32 has."""


@dataclass(frozen=True, eq=False)
class Tested:
    """One statement's effects held against the null.

    p, q: [n] of each passage's necessity. group_p: of each redundant set's effect.
    """

    question: Question
    effects: Mapping[str, Any]
    s: int
    p: np.ndarray
    q: np.ndarray
    group_p: np.ndarray

    @property
    def statement(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.question["statements"][self.s]
        return found

    @property
    def whole(self) -> Whole:
        full, none = self.effects["full"][self.s], self.effects["none"][self.s]
        return Whole(full, none, self.statement["n_tokens"])


def null_of(questions: Sequence[Question], operator: int, plan: Plan) -> Pool:
    """The necessity of off-topic passages in passages' places, of a run under one operator."""
    found = [
        (swap["necessity"][s], statement["n_tokens"])
        for question in questions
        for s, statement in enumerate(question["statements"])
        for swap in question["effects"][operator]["swaps"]
    ]
    return Pool.of(found, LEAST if plan.control == "p" else LEAST_FOR_Q)


def judge(
    questions: Sequence[Question], plan: Plan, entails: Entails | None = None
) -> list[dict[str, Any]]:
    """The lines of a run, one a statement, in order; the rules are in ``verdicts.py``.

    The first operator gives the verdicts. Lines of the others stand under "operators", with what
    they disagree about in the warnings.
    """
    if not questions:
        return []
    first, *others = (
        [_line(tested, plan, entails) for tested in _tested(questions, operator, plan)]
        for operator in range(len(plan.operators))
    )
    for i, line in enumerate(first):
        _add_others(line, [lines[i] for lines in others])
    return first


def _tested(questions: Sequence[Question], operator: int, plan: Plan) -> list[Tested]:
    null = null_of(questions, operator, plan)
    places = [
        (q, q["effects"][operator], s) for q in questions for s in range(len(q["statements"]))
    ]
    p = [_p(null, question, effects, s, plan) for question, effects, s in places]
    q = np.split(benjamini_hochberg(np.concatenate(p)), np.cumsum([len(x) for x in p])[:-1])
    tested = []
    for i, (question, effects, s) in enumerate(places):
        joint = np.array([group["effect"] for group in effects["groups"][s]])
        group_p = null.p(joint, question["statements"][s]["n_tokens"])
        tested.append(Tested(question, effects, s, p[i], q[i], group_p))
    return tested


def _p(
    null: Pool, question: Question, effects: Mapping[str, Any], s: int, plan: Plan
) -> np.ndarray:
    observed = np.array(effects["necessity"][s])
    if plan.null == "pooled":
        return null.p(observed, question["statements"][s]["n_tokens"])
    own: list[list[float]] = [[] for _ in observed]
    for swap in effects["swaps"]:
        own[swap["place"]].append(swap["necessity"][s])
    return np.array([p_own(value, nulls) for value, nulls in zip(observed, own, strict=True)])


def _line(t: Tested, plan: Plan, entails: Entails | None) -> dict[str, Any]:
    question, whole, statement = t.question, t.whole, t.statement
    evidence = _evidence(t, plan)
    if entails is not None:
        evidence = _entailed(evidence, question, statement["text"], entails)
    return {
        "id": question["id"],
        **{key: statement[key] for key in ("sid", "start", "end", "text", "n_tokens")},
        "logp_full": _round(whole.full),
        "logp_none": _round(whole.none),
        "context_effect": _round(whole.effect),
        "verdict": statement_verdict(whole, evidence, plan),
        "strength": strength(whole.effect, plan),
        "operator": t.effects["operator"],
        "n_forwards": question["n_forwards"],
        "warnings": list(question["warnings"]),
        "passages": [_passage(t, j, e) for j, e in enumerate(evidence)],
        **_earlier(question, statement["sid"]),
    }


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


def _passage(t: Tested, j: int, e: Evidence) -> dict[str, Any]:
    """One passage's entry in a statement's line."""
    effects, passages = t.effects, t.question["passages"]
    entry = {
        "pid": passages[j]["pid"],
        "cited": e.cited,
        "necessity": _round(effects["necessity"][t.s][j]),
        "sufficiency": _round(effects["sufficiency"][t.s][j]),
        "surrogate": _round(effects["surrogate"][t.s][j]),
        "ci95": [_round(end) for end in effects["ci95"][t.s][j]],
        "upper": _round(e.upper),
        "p": _round(t.p[j]),
        "q": _round(t.q[j]),
        "used": e.used,
        "verdict": e.verdict,
    }
    if e.group:
        entry["redundant_with"] = [passages[k]["pid"] for k in e.group if k != j]
        entry["joint_effect"] = _round(e.group_effect)
    if "shapley" in effects:
        entry["shapley"] = _round(effects["shapley"][t.s][j])
        entry["shapley_stderr"] = _round(effects["shapley_stderr"][t.s][j])
    return entry


def _entailed(
    evidence: list[Evidence], question: Question, statement: str, entails: Entails
) -> list[Evidence]:
    """Ask the plug-in about the cited passages that are used, together."""
    chosen = [j for j, e in enumerate(evidence) if e.cited and e.used]
    if not chosen:
        return evidence
    premise = "\n\n".join(question["passages"][j]["text"] for j in chosen)
    says = bool(entails(premise, statement))
    return [
        dataclasses.replace(e, entailed=says) if j in chosen else e for j, e in enumerate(evidence)
    ]


def _add_others(line: dict[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """What other operators say, and a warning where they disagree."""
    if not others:
        return
    line["operators"] = {
        other["operator"]: {
            key: other[key]
            for key in ("logp_full", "logp_none", "context_effect", "verdict", "passages")
        }
        for other in others
    }
    for other in others:
        if other["verdict"] != line["verdict"]:
            line["warnings"].append(
                f"Operators disagree: {line['operator']} says {line['verdict']!r}, "
                f"{other['operator']} says {other['verdict']!r}."
            )


def _round(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), DIGITS)


def _evidence(t: Tested, plan: Plan) -> list[Evidence]:
    """Of each passage."""
    h = plan.threshold(t.whole.effect)
    necessity = np.array(t.effects["necessity"][t.s])
    necessary = (necessity > h) & ((t.p if plan.control == "p" else t.q) <= plan.alpha)
    groups = [
        group
        for group, p in zip(t.effects["groups"][t.s], t.group_p, strict=True)
        if p <= plan.alpha
    ]
    of = {j: group for group in groups for j in group["players"]}
    upper = _upper(t, np.flatnonzero(necessary), [group["players"] for group in groups], plan)
    return [
        Evidence(
            cited=passage["of"] in t.statement["cited"],
            effect=float(necessity[j]),
            necessary=bool(necessary[j]),
            carries=bool(necessary[j]) and carries(float(necessity[j]), t.whole, plan),
            group=tuple(of[j]["players"]) if j in of else (),
            group_effect=float(of[j]["effect"]) if j in of else 0.0,
            upper=float(upper[j]),
            h=h,
        )
        for j, passage in enumerate(t.question["passages"])
    ]


def _upper(t: Tested, support: np.ndarray, groups: list[list[int]], plan: Plan) -> np.ndarray:
    masks = np.array([[here == "1" for here in row] for row in t.effects["masks"]])
    values = np.array(t.effects["values"])[:, t.s]
    return upper_given(masks, values, support.tolist(), groups, 1 - plan.alpha)
