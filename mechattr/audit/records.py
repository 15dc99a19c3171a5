"""One question with its passages and its answer: what an audit takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mechattr.audit.checks import check_writable, short, text_of
from mechattr.errors import InputError

if TYPE_CHECKING:
    from mechattr.audit.answering import Stated


@dataclass(frozen=True)
class Passage:
    """Text that was retrieved.

    pid: its name, unique in its record.
    text: what the model reads. title: printed above it; may be empty.
    Raises InputError for a pid or a text without letters.
    """

    pid: str
    text: str
    title: str = ""

    def __post_init__(self) -> None:
        text_of(self.pid, "A passage's pid")
        text_of(self.text, f"The text of passage {self.pid!r}")
        if not isinstance(self.title, str):
            raise InputError(
                f"The title of passage {self.pid!r} is {short(self.title)}; expected a text."
            )
        check_writable(self.title, f"The title of passage {self.pid!r}")


@dataclass(frozen=True)
class Record:
    """A question, the passages given with it, and its answer.

    id: unique in a run.
    passages: in the order of the prompt; their pids differ.
    stated: the answer in statements; None: it is to be generated.
    gold_pids: the passages that hold the answer, where that is known. One that wasn't retrieved may
        be among them.
    messages: the chat that was sent, each with "role" and "content". template: the user message's
        text with {passages} in it, and {question}. At most one of the two.
    seed: for generating. line: where the record stood in its source, from 1.
    warnings: what was odd about it, though it can be used.
    Raises InputError for what can't be audited.
    """

    id: str
    question: str
    passages: tuple[Passage, ...]
    stated: Stated | None
    gold_pids: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] | None = None
    template: str | None = None
    seed: int | None = None
    line: int | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        text_of(self.id, "The id")
        text_of(self.question, "The question")
        if not self.passages:
            raise InputError("There are no passages: nothing that the answer could rely on.")
        seen: dict[str, int] = {}
        for i, passage in enumerate(self.passages, 1):
            if first := seen.get(passage.pid):
                raise InputError(
                    f"Passages {first} and {i} have the same pid {passage.pid!r}. Give each its "
                    f"own, or leave the pids out: passages are then numbered."
                )
            seen[passage.pid] = i
        if self.messages is not None and self.template is not None:
            raise InputError(
                "There are both messages and a template; give one. The template is the text of "
                "the one user message that is sent where there are no messages."
            )

    @property
    def pids(self) -> tuple[str, ...]:
        return tuple(passage.pid for passage in self.passages)

    def describe(self) -> dict[str, Any]:
        """The record as an object for JSON, every statement and citation written out.

        ``read([record.describe()])`` gives the record again, but for line and warnings.
        """
        made: dict[str, Any] = {
            "id": self.id,
            "question": self.question,
            "passages": [{"pid": p.pid, "title": p.title, "text": p.text} for p in self.passages],
        }
        if self.stated is not None:
            made["answer"] = self.stated.answer
            made["statements"] = [
                {"sid": s.sid, "start": s.start, "end": s.end} for s in self.stated.statements
            ]
            made["citations"] = [
                {"sid": s.sid, "pids": list(s.cited)} for s in self.stated.statements
            ]
        if self.gold_pids:
            made["gold_pids"] = list(self.gold_pids)
        if self.messages is not None:
            made["messages"] = [dict(message) for message in self.messages]
        for key in ("template", "seed"):
            if getattr(self, key) is not None:
                made[key] = getattr(self, key)
        return made

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of what :meth:`describe` says: two records with
        the same digest are the same to an audit, wherever they were read from."""
        written = json.dumps(self.describe(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(written.encode()).hexdigest()[:16]
