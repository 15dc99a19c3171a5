"""Which words are one token, in the place where a prompt uses them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from mechattr.errors import InputError
from mechattr.transformer.prompts import encode


def listed(text: str) -> tuple[str, ...]:
    """A pool of words, written as running text."""
    return tuple(text.split())


def continuation(tokenizer: Any, before: str, text: str) -> list[int] | None:
    """Ids that ``text`` adds after ``before``; None if it changes the tokens of ``before``.

    Asking in context rather than for ``text`` alone, because some tokenizers (SentencePiece) put a
    blank before whatever begins a text.
    """
    head = encode(tokenizer, before, False).tolist()
    whole = encode(tokenizer, before + text, False).tolist()
    return whole[len(head) :] if whole[: len(head)] == head else None


def one_token(tokenizer: Any, before: str, text: str) -> int | None:
    """The id of ``text`` after ``before`` where that is a single known token; None otherwise."""
    ids = continuation(tokenizer, before, text)
    if ids is None or len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        return None
    return ids[0]


def alone(tokenizer: Any, text: str) -> int | None:
    """The id of ``text`` with nothing before it where that is a single known token."""
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def as_answer(tokenizer: Any, text: str, token: int) -> str | int:
    """How a target is told of the token: as text where that is unmistakable, else by its id."""
    return text if alone(tokenizer, text) == token else token


def single(tokenizer: Any, words: Iterable[str]) -> dict[str, int]:
    """The words that are one token with a blank before them, and its id."""
    ids = {word: one_token(tokenizer, "and", f" {word}") for word in words}
    return {word: token for word, token in ids.items() if token is not None}


def need(found: Collection[str], pool: Sequence[str], what: str, least: int, why: str) -> None:
    """Raise InputError unless at least ``least`` words of the pool were found."""
    if len(found) >= least:
        return
    listed = f" ({', '.join(found)})" if found else ""
    raise InputError(
        f"This tokenizer has {len(found)} of the {len(pool)} {what} as one token with a leading "
        f"blank{listed}; {why} needs at least {least}. "
        f"The task can't be built with equal token lengths for this model."
    )


def positions(row: Tensor, token: int) -> list[int]:
    """Where a token stands in a prompt."""
    return (row == token).nonzero()[:, 0].tolist()
