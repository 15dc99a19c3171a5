"""A look inside a used passage: the record's question again, with finer players."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.audit import drilling
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.question import Question
from mechattr.audit.reading import Problem, read
from mechattr.audit.records import Record
from mechattr.errors import InputError, UnknownNameError
from mechattr.methods import attribute
from mechattr.methods.base import Method
from mechattr.transformer.removal import Operator, RemovalGame


@dataclass(frozen=True, eq=False)
class Inside:
    """One passage of a question, for one statement or for all.

    pid: the passage. statement: the statement's number, or None.
    """

    question: Question
    pid: str
    statement: int | None

    def game(self, operator: Operator = "remove", unit: str = "token") -> RemovalGame:
        """The passage's tokens (or "word"s, "sentence"s) as players, the other passages there."""
        answer, spans = self.question.scored()
        if self.statement is not None:
            spans = [spans[self.statement]]
        return drilling.token_game(
            self.question.model,
            self.question.pieces,
            answer,
            spans,
            self.pid,
            operator,
            unit=unit,
            prepend_bos=self.question.prepend_bos,
        )

    def tokens(
        self,
        method: str | Method = "leave_one_out",
        *,
        unit: str = "token",
        operator: Operator = "remove",
        **settings: Any,
    ) -> Attribution:
        """Which tokens carry the statement: any of ``ma.METHODS``.

        operator: gradients need ``"mask"``. settings: of :func:`mechattr.attribute`.
        """
        return attribute(self.game(operator, unit), method, **settings)

    def heads(
        self,
        method: str | Method = "attribution_patching",
        *,
        off_topic: OffTopic | None = None,
        seed: int = 0,
    ) -> Attribution:
        """Which heads bring the passage into the statement: patching between the prompt and one
        with an off-topic passage in its place; or ``"retrieval"``, the retrieval-head score.

        Needs one statement.
        """
        if self.statement is None:
            raise InputError("Heads carry one statement: say which, inside(..., sid=...).")
        question = self.question
        place = [piece.name for piece in question.players].index(self.pid)
        rng = np.random.default_rng(seed)
        ((_, text),) = question.off_topic(off_topic or OffTopic(), rng, [place])
        answer, spans = question.scored()
        return drilling.heads_that_carry(
            question.model,
            question.pieces,
            answer,
            spans[self.statement],
            self.pid,
            text,
            method=method,
            prepend_bos=question.prepend_bos,
        )


def inside(
    model: Any,
    record: Record | Mapping[str, Any],
    pid: str,
    sid: str | None = None,
    *,
    plan: Plan | None = None,
) -> Inside:
    """Look inside a passage of a record that was audited.

    record: a :class:`Record`, or a mapping as ``run`` reads it. pid: the passage.
    sid: the statement, "s1" for the first; None: all of them.
    plan: the run's, for its template; an answer that isn't given is generated as there.

    inside(model, record, "p3", "s1").tokens("shapley", budget=256, unit="word")
    inside(model, record, "p3", "s1").heads()
    """
    if not isinstance(record, Record):
        (found,) = read([record])
        if isinstance(found, Problem):
            raise InputError(f"The record can't be used: {found.reason}")
        record = found
    question = Question.of(model, record, plan or Plan())
    names = [piece.name for piece in question.players]
    if pid not in names:
        raise UnknownNameError("passage", pid, names)
    sids = [statement.sid for statement in question.answer.statements]
    if sid is not None and sid not in sids:
        raise UnknownNameError("statement", sid, sids)
    return Inside(question, pid, None if sid is None else sids.index(sid))
