"""One record measured: all effects of all its games, as one JSON-able object.

What a measured question holds, and what the verdicts and the report are made from:

    id, line, digest        which record it is
    question, answer        as given (or generated: ``generated``); scored: without citation marks
    passages                [{pid, of, title, text, n_tokens}] who plays: the passages, or their
                            sentences ("p1#2" of passage "p1")
    statements              [{sid, start, end, text, n_tokens, cited}]
    tokens                  [{text, start, end, sid}] of the answer
    effects                 [one an operator: see ``asking.Effects``, for swaps and pairs ``nulls``]
    earlier, highlights     where asked for
    n_forwards              different masks evaluated
    tokens_run              (prompt, position) pairs that went through the model
    seconds, warnings
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.audit.asking import Known, ask, basic, designed, effects
from mechattr.audit.earlier import earlier_effects
from mechattr.audit.nulls import Joint, Placed, Swap, pairs, places
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.question import Question
from mechattr.audit.records import Record


@dataclass(frozen=True)
class Measurer:
    """Measures the records of one run.

    swaps: off-topic passages a question; a passage, where the null is per passage.
    """

    model: Any
    plan: Plan
    off_topic: OffTopic
    swaps: int

    def measure(self, record: Record) -> dict[str, Any]:
        """Everything that verdicts and report need of a record.

        Raises InputError for what can't be measured (a prompt longer than the model's context, a
        template without a place for passages): the record's own problem, not the run's.
        """
        began = time.monotonic()
        question = Question.of(self.model, record, self.plan)
        spent: list[Known] = []
        found = [self._effects(question, operator, spent) for operator in self.plan.operators]
        more = self._more(question, spent)
        return {
            **described(question, spent[0]),
            "effects": found,
            **more,
            "n_forwards": sum(known.n_forwards for known in spent),
            "tokens_run": sum(known.game.tokens_run for known in spent),
            "seconds": round(time.monotonic() - began, 3),
        }

    def _more(self, question: Question, spent: list[Known]) -> dict[str, Any]:
        """What is measured only where it was asked for."""
        more: dict[str, Any] = {}
        if self.plan.earlier:
            more["earlier"], games = earlier_effects(question)
            spent += games
        if self.plan.tokens is not None:
            more["highlights"] = question.highlights(self.plan.tokens)
        return more

    def _effects(self, question: Question, operator: str, spent: list[Known]) -> dict[str, Any]:
        rng = self._rng(question.record, operator)
        replacements = None
        if operator == "replace":
            every = list(range(len(question.players)))
            texts = question.off_topic(self.off_topic, rng, every)
            replacements = {i: text for i, (_, text) in enumerate(texts)}
        known = Known(question.game(operator, None, replacements))
        n = known.game.n_players
        design = designed(n, self.plan, rng)
        null = self._null(question, known, replacements, rng)
        spent += [known, *(placed.swapped for placed in null)]
        # All that doesn't depend on values, in one run: the prompts begin alike.
        first = np.concatenate([basic(n), design.masks])
        ask([(known, first), *(part for placed in null for part in placed.asked)])
        measured = effects(known, self.plan, rng, design, _cited(question))
        found = [placed.found() for placed in null]
        return {
            **measured.describe(),
            "swaps": [swap.describe() for swap in found if isinstance(swap, Swap)],
            "pairs": [pair.describe() for pair in found if isinstance(pair, Joint)],
        }

    def _null(
        self,
        question: Question,
        known: Known,
        replacements: Mapping[int, str] | None,
        rng: np.random.Generator,
    ) -> list[Placed]:
        """Off-topic texts in single places, then in pairs of them."""
        operator, n = known.game.operator, known.game.n_players
        singles = places(n, self.swaps, self.plan.null, rng)
        found = []
        for where in [*([one] for one in singles), *pairs(n, self.swaps, rng)]:
            texts = question.off_topic(self.off_topic, rng, where)
            chosen = {place: text for place, (_, text) in zip(where, texts, strict=True)}
            swapped = Known(question.game(operator, chosen, replacements))
            # Removed, a question's own passages and the off-topic ones leave the same prompts.
            plain = known if operator == "remove" else swapped
            found.append(Placed(where, [title for title, _ in texts], swapped, plain))
        return found

    def _rng(self, record: Record, operator: str) -> np.random.Generator:
        """Depends on the record alone: a resumed run, or a part of the file, draws alike."""
        name = zlib.crc32(f"{record.id} {operator}".encode())
        return np.random.default_rng([self.plan.seed, record.seed or 0, name])


def _cited(question: Question) -> list[list[int]]:
    """The players that each statement cites."""
    return [
        [j for j, text in enumerate(question.texts) if text["of"] in statement.cited]
        for statement in question.answer.statements
    ]


def described(question: Question, known: Known) -> dict[str, Any]:
    """The record, its answer and its players, in words."""
    record, stated, game = question.record, question.answer, known.game
    members = game.answer.members
    return {
        "id": record.id,
        "line": record.line,
        "digest": record.digest,
        "question": record.question,
        "answer": stated.answer,
        "scored": stated.scored,
        "generated": question.generated,
        "gold_pids": list(record.gold_pids),
        "passages": [
            {**text, "n_tokens": int(n_tokens)}
            for text, n_tokens in zip(question.texts, game.players.coords["n_tokens"], strict=True)
        ],
        "statements": [
            {
                "sid": s.sid,
                "start": s.start,
                "end": s.end,
                "text": stated.scored[s.scored[0] : s.scored[1]],
                "n_tokens": int(members[i].sum()),
                "cited": list(s.cited),
            }
            for i, s in enumerate(stated.statements)
        ],
        "tokens": _tokens(question, known),
        "warnings": [*record.warnings, *stated.warnings, *_warnings(question, known)],
    }


def _tokens(question: Question, known: Known) -> list[dict[str, Any]]:
    """The answer's tokens with their characters in the answer as given."""
    answer, stated = known.game.answer, question.answer
    lead = len(question.framed.lead)
    found = []
    for label, (start, stop), owner in zip(
        answer.labels, answer.spans, answer.members.T, strict=True
    ):
        where = [stated.statements[i].sid for i in np.flatnonzero(owner)]
        start, stop = stated.as_given(max(start - lead, 0), max(stop - lead, 0))
        sid = where[0] if where else None
        found.append({"text": label, "start": start, "end": stop, "sid": sid})
    return found


def _warnings(question: Question, known: Known) -> list[str]:
    """What a reader should know of how the prompt was tokenised."""
    found = []
    whole = np.ones((1, known.game.n_players))
    if not known.game.as_whole(whole)[0]:
        found.append(
            "The tokenizer would make other tokens of the prompt given as one text: passages and "
            "answer are tokenised one by one here."
        )
    return found
