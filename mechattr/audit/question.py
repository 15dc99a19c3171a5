"""One question as games: its prompt in pieces, its players, the statements of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.audit import drilling
from mechattr.audit.answering import Stated, stated
from mechattr.audit.generating import generate
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.records import Record
from mechattr.audit.template import Framed, frame
from mechattr.errors import InputError
from mechattr.transformer.pieces import Layout, Piece
from mechattr.transformer.prompts import tokenizer_of
from mechattr.transformer.removal import RemovalGame


@dataclass(frozen=True, eq=False)
class Question:
    """A record, its answer in statements, and its prompt.

    pieces: the prompt, a :class:`Piece` for each player: passages, or their sentences.
    generated: whether the answer is the model's own, made here.
    """

    model: Any
    record: Record
    answer: Stated
    framed: Framed
    pieces: tuple[str | Piece, ...]
    generated: bool
    prepend_bos: bool | None

    @classmethod
    def of(cls, model: Any, record: Record, plan: Plan) -> Question:
        tokenizer = tokenizer_of(model)
        framed = frame(tokenizer, record, plan.template)
        cut = framed.pieces if plan.unit == "passage" else framed.sentences
        pieces = tuple(cut(record.passages))
        answer = record.stated
        if answer is None:
            answer = _generated(model, record, pieces, plan)
        return cls(model, record, answer, framed, pieces, record.stated is None, plan.prepend_bos)

    @property
    def players(self) -> list[Piece]:
        return [piece for piece in self.pieces if isinstance(piece, Piece)]

    @property
    def texts(self) -> list[dict[str, str]]:
        """Each player's name (pid), the passage that it is of, its title and text."""
        passages = {passage.pid: passage for passage in self.record.passages}
        found = []
        for piece in self.players:
            of = str(piece.coords.get("pid", piece.name))
            passage = passages[of]
            text = passage.text if piece.kind == "passage" else str(piece.coords["text"])
            found.append({"pid": piece.name, "of": of, "title": passage.title, "text": text})
        return found

    def game(
        self,
        operator: str,
        texts: Mapping[int, str] | None = None,
        replacements: Mapping[int, str] | None = None,
        up_to: int | None = None,
    ) -> RemovalGame:
        """The game of one operator.

        texts: of some players, by number, another text in their place.
        replacements: of every player, for operator "replace".
        up_to: a statement's number: it alone is scored, and those before it are players too.
        """
        pieces = self._with(texts or {}, replacements or {})
        answer, spans = self.scored()
        if up_to is not None:
            starts = [0, *(start for start, _ in spans[1:])]
            for r in range(up_to):
                start, stop = (_before_blank(answer, starts[i]) for i in (r, r + 1))
                sid = self.answer.statements[r].sid
                pieces.append(Piece(f"statement {sid}", answer[start:stop], None, "statement"))
            begins = _before_blank(answer, starts[up_to])
            start, stop = spans[up_to]
            answer, spans = answer[begins:stop], [(start - begins, stop - begins)]
        return RemovalGame(
            self.model,
            pieces,
            answer,
            statements=spans,
            operator=operator,  # type: ignore[arg-type]
            prepend_bos=self.prepend_bos,
        )

    def _with(self, texts: Mapping[int, str], others: Mapping[int, str]) -> list[str | Piece]:
        pieces: list[str | Piece] = []
        number = 0
        for piece in self.pieces:
            if isinstance(piece, Piece):
                text = texts.get(number, piece.text)
                piece = Piece(piece.name, text, others.get(number), piece.kind, piece.coords)
                number += 1
            pieces.append(piece)
        return pieces

    def scored(self) -> tuple[str, list[tuple[int, int]]]:
        """The scored text as it follows the prompt, and its statements' characters in it."""
        lead = self.framed.lead
        spans = [
            (a + len(lead), b + len(lead)) for a, b in (s.scored for s in self.answer.statements)
        ]
        return lead + self.answer.scored, spans

    def highlights(self, method: str) -> list[dict[str, Any]]:
        """What each statement takes from each player, token by token; see ``drilling.py``."""
        answer, spans = self.scored()
        own = {text["pid"]: text["text"] for text in self.texts}
        found = drilling.highlights(
            self.model,
            self.pieces,
            answer,
            spans,
            method=method,
            texts=own,
            prepend_bos=self.prepend_bos,
        )
        sids = [statement.sid for statement in self.answer.statements]
        return [{"sid": sids[entry.pop("statement")], **entry} for entry in found]

    def off_topic(
        self, chosen: OffTopic, rng: np.random.Generator, places: list[int]
    ) -> list[tuple[str, str]]:
        """For each place (a player's number), an off-topic text as it would stand there, of the
        same number of tokens: its title and the text."""
        record, tokenizer = self.record, tokenizer_of(self.model)
        avoid = " ".join([record.question, *(f"{p.title} {p.text}" for p in record.passages)])
        found = []
        for place, (title, text) in zip(places, chosen.pick(rng, avoid, len(places)), strict=True):
            piece = self.players[place]
            n_tokens = len(tokenizer(piece.text, add_special_tokens=False)["input_ids"])
            found.append(
                (title, chosen.matched(tokenizer, title, text, self._pattern(place), n_tokens))
            )
        return found

    def _pattern(self, place: int) -> Any:
        piece = self.players[place]
        if piece.kind == "passage":
            return self.framed.render[place]
        blank = piece.text[: len(piece.text) - len(piece.text.lstrip())]
        return lambda title, text: blank + text


def _before_blank(text: str, at: int) -> int:
    """Where the blanks before a place begin; 0 for the first."""
    return len(text[:at].rstrip())


def _generated(model: Any, record: Record, pieces: tuple[str | Piece, ...], plan: Plan) -> Stated:
    """The model's own answer to the whole prompt."""
    layout = Layout.of(tokenizer_of(model), pieces, model.cfg.d_vocab, plan.prepend_bos)
    seed = plan.seed if record.seed is None else record.seed
    made = generate(
        model,
        layout.full,
        max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
        seed=seed,
    )
    text = made.text.strip()
    if not text:
        raise InputError(
            "The model's answer is empty: it ends its turn at once. Give an answer, or another "
            "template."
        )
    found = stated(text, record.passages, by_order=record.messages is None)
    if made.ended or len(made.tokens) < plan.max_new_tokens:
        return found
    cut = f"The answer was cut at {plan.max_new_tokens} tokens; raise max_new_tokens."
    return Stated(found.answer, found.scored, found.statements, (*found.warnings, cut))
