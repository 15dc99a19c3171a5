"""Measured questions judged: p and q against the run's null, bounds, verdicts, output lines.

A function of what was measured alone: other thresholds need no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechattr.audit.given import upper_given
from mechattr.audit.lines import add_others, line
from mechattr.audit.plan import Plan
from mechattr.audit.statistics import LEAST, Pool, benjamini_hochberg, p_own
from mechattr.audit.tested import Question, Tested
from mechattr.audit.verdicts import Entails, Evidence, counts

LEAST_FOR_Q = 400
"""Nulls in a band of sizes where q is asked for: with few, no p is small enough for its rank."""


def null_of(questions: Sequence[Question], operator: int, plan: Plan) -> Pool:
    """The necessity of off-topic passages in passages' places, of a run under one operator."""
    found = [
        (swap["necessity"][s], statement["n_tokens"])
        for question in questions
        for s, statement in enumerate(question["statements"])
        for swap in question["effects"][operator]["swaps"]
    ]
    return Pool.of(found, LEAST if plan.control == "p" else LEAST_FOR_Q)


def null_of_sets(questions: Sequence[Question], operator: int, plan: Plan) -> Pool:
    """What two off-topic passages are worth together in the places of two: for redundant sets.

    Larger sets are held against pairs too.
    """
    found = [
        (pair["worth"][s], statement["n_tokens"])
        for question in questions
        for s, statement in enumerate(question["statements"])
        for pair in question["effects"][operator]["pairs"]
    ]
    return Pool.of(found, LEAST)


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
    for i, made in enumerate(first):
        add_others(made, [lines[i] for lines in others])
    return first


def _tested(questions: Sequence[Question], operator: int, plan: Plan) -> list[Tested]:
    null, of_sets = (f(questions, operator, plan) for f in (null_of, null_of_sets))
    places = [
        (q, q["effects"][operator], s) for q in questions for s in range(len(q["statements"]))
    ]
    p = [_p(null, question, effects, s, plan) for question, effects, s in places]
    q = np.split(benjamini_hochberg(np.concatenate(p)), np.cumsum([len(x) for x in p])[:-1])
    tested = []
    for i, (question, effects, s) in enumerate(places):
        joint = np.array([group["effect"] for group in effects["groups"][s]])
        group_p = of_sets.p(joint, question["statements"][s]["n_tokens"])
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
    evidence = _evidence(t, plan)
    if entails is not None:
        evidence = _entailed(evidence, t.question, t.statement["text"], entails)
    return line(t, evidence, plan)


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


def _evidence(t: Tested, plan: Plan) -> list[Evidence]:
    """Of each passage."""
    whole = t.whole
    necessity, own = t.effects["necessity"][t.s], [t.own(j) for j in range(len(t.p))]
    chance = (t.p if plan.control == "p" else t.q) > plan.alpha
    alone = np.array([counts(e, o, whole, plan) for e, o in zip(necessity, own, strict=True)])
    sets = list(zip(t.effects["groups"][t.s], t.group_p <= plan.alpha, strict=True))
    of = {j: (group, more) for group, more in sets for j in group["players"]}
    groups = [group for group, more in sets if more]
    support = np.flatnonzero(alone & ~chance)
    upper = _upper(t, support, [group["players"] for group in groups], plan)
    return [
        Evidence(
            cited=passage["of"] in t.statement["cited"],
            effect=float(necessity[j]),
            own=own[j],
            alone=bool(alone[j]),
            above_chance=not chance[j],
            group=tuple(of[j][0]["players"]) if j in of else (),
            group_effect=float(of[j][0]["effect"]) if j in of else 0.0,
            group_own=t.group_own(of[j][0]) if j in of else 0.0,
            set_above_chance=bool(j in of and of[j][1]),
            upper=float(upper[j]),
            h=plan.threshold(whole.gain),
            of=passage["of"],
        )
        for j, passage in enumerate(t.question["passages"])
    ]


def _upper(t: Tested, support: np.ndarray, groups: list[list[int]], plan: Plan) -> np.ndarray:
    masks = np.array([[here == "1" for here in row] for row in t.effects["masks"]])
    values = np.array(t.effects["values"])[:, t.s]
    return upper_given(masks, values, support.tolist(), groups, 1 - plan.alpha)
