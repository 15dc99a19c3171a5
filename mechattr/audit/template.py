"""A record's prompt in pieces: what is always there, and what is absent when a passage is.

A passage's piece is its whole block, number and title included (``"\\n\\n[2] Title\\ntext"``), with
the separator in front: so what is left after a removal reads as a prompt with fewer passages, and
the others keep their numbers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mechattr.audit.records import Passage, Record
from mechattr.audit.sentences import sentences
from mechattr.errors import InputError
from mechattr.transformer.pieces import Piece

TEMPLATE = "Answer the question using the passages.{passages}\n\nQuestion: {question}"
"""The user's message, where neither the run nor the record says another."""

_SLOT = re.compile("\ue000([0-9]+)\ue001")
"""What holds a passage's place while the chat template is applied: private characters, so that no
prompt has them."""

UNITS = ("passage", "sentence")


def block(number: int, title: str, text: str) -> str:
    """A passage as it stands in the default prompt."""
    head = f"[{number}] {title}\n" if title else f"[{number}] "
    return f"\n\n{head}{text}"


@dataclass(frozen=True)
class Framed:
    """A prompt in pieces, and what the answer begins with.

    parts: texts that are always there, and the number (from 0) of each passage in its place.
    blocks: of each passage its text as it stands in the prompt, separator included.
    render: what a passage of another title and text would look like in that one's place.
    lead: what comes between the prompt and the answer, counted to the answer: a blank where the
        prompt ends in a word.
    template: "chat" where the tokenizer's chat template made it, or "plain".
    """

    parts: tuple[str | int, ...]
    blocks: tuple[str, ...]
    render: tuple[Callable[[str, str], str], ...]
    lead: str
    template: str

    def pieces(self, passages: Sequence[Passage]) -> list[str | Piece]:
        """One piece a passage, by its pid."""
        return [
            part if isinstance(part, str) else Piece(passages[part].pid, self.blocks[part])
            for part in self.parts
        ]

    def sentences(self, passages: Sequence[Passage]) -> list[str | Piece]:
        """One piece a sentence, ``"pid#2"``. A passage's number and title go with its first."""
        pieces: list[str | Piece] = []
        for part in self.parts:
            if isinstance(part, str):
                pieces.append(part)
                continue
            text, pid = self.blocks[part], passages[part].pid
            own = passages[part].text.strip()
            inner = text.rindex(own)
            spans = sentences(own)
            starts = [start + inner for start, _ in spans]
            bounds = [0, *starts[1:], len(text)]
            for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
                # A sentence's piece begins with the blank that parts it from the one before.
                start, stop = _with_blank(text, start), _with_blank(text, stop)
                coords = {"pid": pid, "sentence": i + 1, "text": own[slice(*spans[i])]}
                pieces.append(Piece(f"{pid}#{i + 1}", text[start:stop], None, "sentence", coords))
        return pieces


def frame(tokenizer: Any, record: Record, template: str | None = None) -> Framed:
    """The prompt of a record: its messages, its template, the run's, or the default.

    template: the user's message with ``{passages}`` and ``{question}`` in it.
    Raises InputError where a place for the passages is missing, or a passage isn't found in given
    messages.
    """
    if record.messages is not None:
        return _from_messages(tokenizer, record)
    text = record.template or template or TEMPLATE
    content = _filled(text, record, "template")
    return _framed(tokenizer, [{"role": "user", "content": content}], record, _blocks(record))


Render = Callable[[str, str], str]


def _blocks(record: Record) -> list[tuple[str, Render]]:
    def renderer(number: int) -> Render:
        return lambda title, text: block(number, title, text)

    return [
        (block(i, passage.title, passage.text), renderer(i))
        for i, passage in enumerate(record.passages, start=1)
    ]


def _filled(text: str, record: Record, what: str) -> str:
    """``{passages}`` and ``{question}`` filled in, every passage by its slot."""
    if text.count("{passages}") != 1:
        raise InputError(
            f"The {what} must have {{passages}} in it, once; it has it {text.count('{passages}')} "
            f"times: {text[:80]!r}. For example: {TEMPLATE!r}."
        )
    slots = "".join(f"\ue000{i}\ue001" for i in range(len(record.passages)))
    before, after = (
        part.replace("{question}", record.question) for part in text.split("{passages}")
    )
    # A separator begins each passage's own piece: blanks before the first would be there twice.
    return before.rstrip() + slots + after


def _from_messages(tokenizer: Any, record: Record) -> Framed:
    assert record.messages is not None
    messages = [dict(message) for message in record.messages]
    holding = [m for m in messages if "{passages}" in m["content"]]
    if holding:
        if len(holding) > 1:
            raise InputError("Two of the messages have {passages} in them; expected one.")
        holding[0]["content"] = _filled(holding[0]["content"], record, "message")
        for message in messages:
            message["content"] = message["content"].replace("{question}", record.question)
        return _framed(tokenizer, messages, record, _blocks(record))
    # The longest first: what a shorter one says may stand in it too.
    order = sorted(range(len(record.passages)), key=lambda i: -len(record.passages[i].text.strip()))
    found = {i: _take_out(messages, i, record.passages) for i in order}
    return _framed(tokenizer, messages, record, [found[i] for i in sorted(found)])


def _take_out(
    messages: list[dict[str, str]], i: int, passages: Sequence[Passage]
) -> tuple[str, Render]:
    """Put a slot in the place of a passage that stands verbatim in the messages; of passages with
    the same text, in the first place that is left."""
    text = passages[i].text.strip()
    places = [(m, m["content"].count(text)) for m in messages if text in m["content"]]
    count = sum(n for _, n in places)
    expected = sum(other.text.strip() == text for other in passages[i:])
    if count != expected:
        often = "once" if expected == 1 else f"{expected} times, for as many passages"
        raise InputError(
            f"Passage {passages[i].pid!r} is found {count} times in the messages; expected its "
            f"text {often}, verbatim, or {{passages}} in one message: {text[:60]!r}."
        )
    message = places[0][0]
    start = message["content"].index(text)
    stop, start = start + len(text), _with_blank(message["content"], start)
    taken = message["content"][start:stop]
    message["content"] = f"{message['content'][:start]}\ue000{i}\ue001{message['content'][stop:]}"
    separator = taken[: len(taken) - len(text)]
    return taken, lambda title, other: separator + other


def _with_blank(text: str, at: int) -> int:
    """The place ``at``, or where the blanks before it begin."""
    return len(text[:at].rstrip()) if at < len(text) else at


def _framed(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    record: Record,
    found: Sequence[tuple[str, Render]],
) -> Framed:
    if getattr(tokenizer, "chat_template", None):
        text = _applied(tokenizer, messages)
        kind, lead = "chat", ""
    else:
        text = "\n\n".join(message["content"] for message in messages) + "\n\nAnswer:"
        kind, lead = "plain", " "
    split_up = _SLOT.split(text)
    parts: list[str | int] = []
    for i, part in enumerate(split_up):
        if i % 2:
            parts.append(int(part))
        elif part:
            parts.append(part)
    placed = sorted(part for part in parts if isinstance(part, int))
    if placed != list(range(len(record.passages))):
        raise InputError(
            "The chat template doesn't repeat every passage once: it changes or drops the message "
            "that they are in."
        )
    blocks, render = zip(*found, strict=True)
    return Framed(tuple(parts), tuple(blocks), tuple(render), lead, kind)


def _applied(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        )
    except Exception as error:  # jinja's own, and whatever a template raises
        raise InputError(
            f"The tokenizer's chat template refuses these messages ({error}). Give `template` "
            f"instead of `messages`, or the roles that it knows."
        ) from error
