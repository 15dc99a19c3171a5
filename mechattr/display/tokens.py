"""Tokens as people can read them: visible spaces, unique labels, highlighted text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

import numpy as np

from mechattr.display import scale

SPACE = "·"
LONGEST = 18
"""Characters of a token on an axis; more are cut with an ellipsis."""

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def readable(token: str, longest: int | None = None) -> str:
    """A token on one line with nothing invisible: ``" John"`` is ``"·John"``, a newline ``"\\n"``.

    longest: cut to that many characters, with an ellipsis.
    """
    if not token:
        return "(empty)"
    body = token.strip(" ")
    start = len(token) - len(token.lstrip(" "))
    end = len(token) - start - len(body)
    text = SPACE * start + "".join(map(_visible, body)) + SPACE * end
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return text


def _visible(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    # Controls, format characters, separators and half a surrogate pair print as nothing or worse.
    if character != " " and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f"\\u{ord(character):04x}"
    return character


def printable(token: str) -> str:
    """A token as it reads, blanks and line breaks too, with nothing that a terminal would obey."""
    return "".join(c if c == "\n" else _visible(c) for c in token)


def player_and_token(name: str, token: str) -> tuple[str, str]:
    """A player's name and its token, both readable: ``("L5H3@5", " to")`` is ``("L5H3@5", "·to")``.

    A token's own name says its token already: ``("5: to", " to")`` is ``("5 ·to", "")``.
    """
    if token and name.endswith(f":{token}"):
        return f"{_words(name[: -len(token) - 1])} {readable(token, LONGEST)}", ""
    return _words(name), readable(token, LONGEST) if token else ""


def _words(name: str) -> str:
    return " ".join(readable(word) for word in name.split(" ") if word)


def position_labels(prompts: Sequence[Sequence[str]], positions: Sequence[object]) -> list[str]:
    """One unique label a position, ``"3 ·John"``; the number alone where prompts differ there."""
    return [_position_label(prompts, p) for p in positions]


def _position_label(prompts: Sequence[Sequence[str]], position: object) -> str:
    token = shared_token(prompts, position)
    return str(position) if token is None else f"{position} {readable(token, LONGEST)}"


def shared_token(prompts: Sequence[Sequence[str]], position: object) -> str | None:
    """The token that every prompt long enough has at this position, or None."""
    if not isinstance(position, (int, np.integer)):
        return None
    at = int(position)
    found = {tokens[at] for tokens in prompts if 0 <= at < len(tokens)}
    return found.pop() if len(found) == 1 else None


def span(token: str, score: float, end: float, title: str) -> str:
    """One highlighted token. Its own spaces and line breaks stay, so that the prompt reads on."""
    shown = escape(token).replace("\n", "↵\n") if token else "∅"
    style = f"background:{scale.colour(score, end)};color:{scale.ink(score, end)}"
    return f'<span style="{style}" title="{escape(title)}">{shown}</span>'


def tokens_html(
    tokens: Sequence[str], scores: Sequence[float], titles: Sequence[str], end: float
) -> str:
    """A prompt as running text with coloured tokens; it wraps, and scrolls when it is long.

    scores: one a token; NaN is grey. titles: what the pointer shows. end: the scale's end.
    """
    spans = "".join(
        span(token, score, end, title)
        for token, score, title in zip(tokens, scores, titles, strict=True)
    )
    return f'<div class="ma-tokens" tabindex="0">{spans}</div>'
