"""One question as games: its prompt in pieces, its players, the statements of its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechattr.audit import drilling
from mechattr.audit.answering import Stated, stated
from mechattr.audit.generating import Generated, generate
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.records import Record
from mechattr.audit.template import Framed, frame
from mechattr.errors import InputError
from mechattr.transformer.pieces import Layout, Piece, tokenised
from mechattr.transformer.prompts import tokenizer_of
from mechattr.transformer.removal import RemovalGame


@dataclass(frozen=True, eq=False)
class Question:
    """A record, its answer in statements, and its prompt.

    pieces: the prompt, a :class:`Piece` for each player: passages, or their sentences.
    generated: whether the answer is the model's own, made here. ``framed.lead`` is then what the
        model itself began with: nothing, where it didn't write the lead.
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
            answer, lead = _generated(model, record, pieces, framed.lead, plan)
            framed = dataclasses.replace(framed, lead=lead)
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
    ) -> RemovalGame:
        """The game of one operator.

        texts: of some players, by number, another text in their place.
        replacements: of every player, for operator "replace".
        """
        answer, spans = self.scored()
        return RemovalGame(
            self.model,
            self._with(texts or {}, replacements or {}),
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
        self, chosen: OffTopic, rng: np.random.Generator, places: list[int], longer: int = 0
    ) -> list[tuple[str, str]]:
        """For each place (a player's number), an off-topic text as it would stand there, of the
        same number of tokens (or so many more): its title and the text."""
        record, tokenizer = self.record, tokenizer_of(self.model)
        avoid = " ".join([record.question, *(f"{p.title} {p.text}" for p in record.passages)])
        found = []
        for place, (title, text) in zip(places, chosen.pick(rng, avoid, len(places)), strict=True):
            piece, pattern = self.players[place], self._pattern(place)
            n_tokens = len(tokenizer(piece.text, add_special_tokens=False)["input_ids"]) + longer
            found.append((title, chosen.matched(tokenizer, title, text, pattern, n_tokens, avoid)))
        return found

    def _pattern(self, place: int) -> Any:
        piece = self.players[place]
        if piece.kind == "passage":
            return self.framed.render[place]
        blank = piece.text[: len(piece.text) - len(piece.text.lstrip())]
        return lambda title, text: blank + text


def _generated(
    model: Any, record: Record, pieces: tuple[str | Piece, ...], lead: str, plan: Plan
) -> tuple[Stated, str]:
    """The model's own answer to the whole prompt, and which lead comes before it: ``lead`` where
    the model wrote that, else none."""
    layout = Layout.of(tokenizer_of(model), pieces, model.cfg.d_vocab, plan.prepend_bos)
    seed = plan.seed if record.seed is None else record.seed
    made = generate(
        model,
        layout.full,
        max_new_tokens=plan.max_new_tokens,
        temperature=plan.temperature,
        seed=seed,
    )
    if not made.text.strip():
        raise InputError(
            "The model's answer is empty: it ends its turn at once. Give an answer, or another "
            "template."
        )
    lead = lead if made.text.startswith(lead) else ""
    text, same = _as_generated(tokenizer_of(model), made)
    found = stated(text.removeprefix(lead), record.passages, by_order=record.messages is None)
    warnings = [*found.warnings]
    if not same:
        warnings.append(
            "The tokenizer makes other tokens of the generated answer than the model wrote: what "
            "is scored is the same text, in tokens that the model didn't choose."
        )
    if not made.ended:
        room = model.cfg.n_ctx - len(layout.full) + 1
        why = "raise max_new_tokens" if plan.max_new_tokens <= room else "the context ends there"
        warnings.append(f"The answer was cut at {len(made.tokens)} tokens; {why}.")
    return dataclasses.replace(found, warnings=tuple(warnings)), lead


def _as_generated(tokenizer: Any, made: Generated) -> tuple[str, bool]:
    """The text without blanks at its end, unless its last token is another without them; and
    whether the tokenizer makes of it the tokens that the model wrote."""
    for text in (made.text.rstrip(), made.text):
        tokens, _ = tokenised(tokenizer, text, inside=True)
        if tokens.tolist() == made.tokens[: len(tokens)].tolist():
            return text, True
    return made.text, False
