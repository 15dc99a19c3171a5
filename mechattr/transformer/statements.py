"""An answer as tokens, and which of them each of its statements has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from mechattr.errors import InputError
from mechattr.transformer.pieces import (
    check_vocabulary,
    spans_by_length,
    token_array,
    tokenised,
)
from mechattr.transformer.prompts import labels_of


@dataclass(frozen=True, eq=False)
class Answer:
    """A teacher-forced answer.

    text: what ``spans`` count in.
    tokens: int64 [token], tokenised by itself, as the continuation of a prompt.
    labels: each token as text.
    spans: each token's characters, (start, end).
    statements: characters, (start, end), of each statement.
    """

    text: str
    tokens: np.ndarray
    labels: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    statements: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        answer: str | Sequence[int],
        statements: Iterable[Sequence[int]] | None,
        d_vocab: int,
    ) -> Answer:
        """Tokenise an answer.

        answer: its text, or its token ids, say as they were generated.
        statements: (start, end) characters of each; None: the whole answer is the one.
        Raises InputError for an answer without tokens, a statement that lies outside it or has no
        token.
        """
        text, tokens, spans = _tokenised(tokenizer, answer)
        if not len(tokens):
            raise InputError(f"The answer {answer!r} has no tokens: there is nothing to score.")
        check_vocabulary([tokens], d_vocab)
        if statements is None:
            chosen: tuple[tuple[int, int], ...] = ((0, len(text)),)
        else:
            chosen = tuple(_statement(i, pair, text) for i, pair in enumerate(statements))
        if not chosen:
            raise InputError("statements is empty; leave it out to score the whole answer.")
        labels = labels_of(tokenizer, torch.as_tensor(tokens))
        made = cls(text, tokens, labels, spans, chosen)
        without = np.flatnonzero(~made.members.any(1))
        if len(without):
            raise InputError(
                f"Statement {without[0]} ({made.statement_texts[without[0]]!r}) has no token of "
                f"its own: its letters belong to tokens that begin before it. Widen it."
            )
        return made

    @property
    def statement_texts(self) -> tuple[str, ...]:
        return tuple(self.text[start:end] for start, end in self.statements)

    @property
    def members(self) -> Bool[np.ndarray, "statement token"]:
        """Whether a token belongs to a statement: whether its first letter that isn't blank does.

        So no token is in two statements that don't overlap, and those that cover the answer sum to
        it. Blanks between two statements belong to neither, unless the token that they are in goes
        on.
        """
        if self.statements == ((0, len(self.text)),):
            return np.ones((1, len(self.tokens)), dtype=bool)
        first = np.array([_first_letter(self.text, *span) for span in self.spans])
        start, end = np.array(self.statements).T
        return (start[:, None] <= first) & (first < end[:, None])


def _tokenised(
    tokenizer: Any, answer: str | Sequence[int]
) -> tuple[str, np.ndarray, tuple[tuple[int, int], ...]]:
    if isinstance(answer, str):
        return answer, *tokenised(tokenizer, answer, inside=True)
    tokens = token_array(answer, "The answer")
    text = str(tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))
    return text, tokens, spans_by_length(tokenizer, tokens)


def _statement(number: int, pair: Any, text: str) -> tuple[int, int]:
    listed = list(pair) if isinstance(pair, Iterable) else []
    if len(listed) != 2 or not all(
        isinstance(i, Integral) and not isinstance(i, bool) for i in listed
    ):
        raise InputError(
            f"Statement {number} is {pair!r}; expected (start, end), characters of the answer."
        )
    start, end = int(listed[0]), int(listed[1])
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"Statement {number}, characters {start} to {end}, isn't a part of the answer, which "
            f"has {len(text)} characters: {text!r}."
        )
    return start, end


def _first_letter(text: str, start: int, end: int) -> int:
    within = text[start:end]
    return start + len(within) - len(within.lstrip()) if within.strip() else start
