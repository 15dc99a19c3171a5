"""A look inside a used passage: the record's question again, with finer players."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.audit import drilling
from mechattr.audit.offtopic import OVER, OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.question import Question
from mechattr.audit.reading import Problem, read
from mechattr.audit.records import Record
from mechattr.errors import InputError, UnknownNameError
from mechattr.methods import attribute
from mechattr.methods.base import Method
from mechattr.players import Players
from mechattr.transformer.removal import Operator, RemovalGame


@dataclass(frozen=True, eq=False)
class Inside:
    """One passage of a question, for one statement or for all.

    pid: the passage. statement: the statement's number, or None.
    """

    question: Question
    pid: str
    statement: int | None

    @property
    def sid(self) -> str | None:
        """The statement's name."""
        if self.statement is None:
            return None
        return self.question.answer.statements[self.statement].sid

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
        A player's ``position`` is its place in the passage, so that it is shown as text.
        """
        return self._named(_as_text(attribute(self.game(operator, unit), method, **settings)))

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
        ((_, text),) = question.off_topic(off_topic or OffTopic(), rng, [place], longer=OVER)
        answer, spans = question.scored()
        found = drilling.heads_that_carry(
            question.model,
            question.pieces,
            answer,
            spans[self.statement],
            self.pid,
            text,
            method=method,
            prepend_bos=question.prepend_bos,
        )
        start, end = spans[self.statement]
        return self._named(dataclasses.replace(found, prompt_labels=(answer[start:end],)))

    def _named(self, found: Attribution) -> Attribution:
        """With what was asked in the audit's words: of which statement, for which passage."""
        asked = {"target": f"log_prob({self.sid or 'each statement'})", "passage": self.pid}
        provenance = {**found.provenance, **asked, "question": self.question.record.id}
        return dataclasses.replace(found, provenance=provenance)


def _as_text(found: Attribution) -> Attribution:
    """The players as what is read, one after the other."""
    players = found.players
    coords = {**players.coords, "position": tuple(range(len(players)))}
    texts = tuple(str(text) for text in coords["text"])
    return dataclasses.replace(
        found,
        players=Players(players.names, coords, ("position",)),
        tokens=(texts,) * found.n_prompts,
    )


def find(source: Any, name: str | None = None) -> Record:
    """The record of an id; what else the source holds may be good or bad.

    source: as :func:`mechattr.audit.read` takes it. name: a record without an id of its own goes by
        its line's number; None: the only record.
    Raises InputError where it isn't there or can't be used, with its line and the reason.
    """
    names, unread = [], []
    found: Record | Problem | None = None
    for found in read(source):
        own = found.id or str(found.line)
        if own == name:
            return _usable(found)
        names.append(own)
        unread += [f"line {found.line}"] if found.id is None else []
    if found is None:
        raise InputError("There is no record: the source is empty.")
    if name is not None:
        # A record that can't be read can't be told by its id.
        lost = f" No id could be read in {', '.join(unread[:12])}." if unread else ""
        raise InputError(f"{UnknownNameError('id', name, names)}{lost}")
    if len(names) > 1:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise InputError(f"Which of {len(names):,} questions? Give the id of one: {shown}.")
    return _usable(found)


def _usable(found: Record | Problem) -> Record:
    if isinstance(found, Record):
        return found
    raise InputError(f"The record of line {found.line} can't be used: {found.reason}")


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
