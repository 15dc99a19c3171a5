"""Earlier statements of an answer as players: what a statement takes from what was said before it.

A statement is scored with all that comes before it in place. A fact that the first statement has
taken from a passage, the second can take from the first: so a passage may carry a statement only
through an earlier one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mechattr.audit.asking import Known
from mechattr.audit.question import Question


def earlier_effects(question: Question) -> tuple[list[dict[str, Any]], list[Known]]:
    """Of each statement but the first, what the earlier ones do, in nats, all passages present.

    - context_effect_without: the context effect with no earlier statement in place: what the
      passages do by themselves;
    - statements: of each earlier one, necessity ``v(N) − v(N∖r)`` and sufficiency
      ``v(all passages, r) − v(all passages)``.

    An absent statement is cut out, whatever the audit's operator is for passages.
    Returns them with the games that were asked. Cost: at most 2r + 4 masks for r earlier
    statements; each statement is a game of its own.
    """
    found, spent = [], []
    for s in range(1, len(question.answer.statements)):
        known = Known(question.game("remove", up_to=s))
        spent.append(known)
        found.append(_of(question, known, s))
    return found, spent


def _of(question: Question, known: Known, s: int) -> dict[str, Any]:
    n = known.game.n_players - s  # passages come first
    others = np.eye(s, dtype=bool)
    every, none = np.ones((1, s), bool), np.zeros((1, s), bool)
    sets = (every, True), (none, True), (none, False), (~others, True), (others, True)
    values = known(np.concatenate([_with(n, earlier, here) for earlier, here in sets]))[:, 0]
    full, alone, nothing = values[:3]
    without, only = values[3 : 3 + s], values[3 + s :]
    return {
        "sid": question.answer.statements[s].sid,
        "context_effect_without": float(alone - nothing),
        "statements": [
            {
                "sid": question.answer.statements[r].sid,
                "necessity": float(full - without[r]),
                "sufficiency": float(only[r] - alone),
            }
            for r in range(s)
        ],
    }


def _with(n_passages: int, earlier: np.ndarray, here: bool) -> np.ndarray:
    """Masks of earlier statements, all passages there or none."""
    return np.concatenate([np.full((len(earlier), n_passages), here), earlier], axis=1)
