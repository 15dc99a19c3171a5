"""An answer in statements: what each says, what of it is scored, what it cites."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

from mechattr.audit import citations as citing
from mechattr.audit.checks import absent, name_of, plain, rows, short, text_of
from mechattr.audit.citations import Cut, Mark, Trimmed
from mechattr.audit.records import Passage
from mechattr.audit.sentences import sentences
from mechattr.errors import InputError

_STATEMENTS = 'a list of {"sid", "start", "end"}, characters of the answer'
_CITATIONS = 'a list of {"sid", "pids"}, or an object of pids by sid'


@dataclass(frozen=True)
class Statement:
    """A part of an answer.

    start, end: characters of the answer as given, marks and all.
    scored: its characters of the scored text; never empty, no blank at either end.
    cited: the pids that it cites, in order, once each.
    """

    sid: str
    start: int
    end: int
    scored: tuple[int, int]
    cited: tuple[str, ...]


@dataclass(frozen=True)
class Stated:
    """An answer in statements.

    answer: as given. scored: with its citation marks cut out (``cuts``).
    statements: in order, without overlap.
    warnings: citations of what isn't there, and marks that may have been meant otherwise.
    """

    answer: str
    scored: str
    statements: tuple[Statement, ...]
    warnings: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @cached_property
    def _trimmed(self) -> Trimmed:
        return Trimmed(self.answer, self.cuts)

    def given(self, at: int) -> int:
        """The place in the answer of a place in the scored text; behind any mark that stands
        between the two. The end of what ends there is :meth:`as_given`'s."""
        return self._trimmed.outside(at, at)[0]

    def as_given(self, start: int, end: int) -> tuple[int, int]:
        """Characters of the scored text as characters of the answer."""
        return self._trimmed.outside(start, end)

    def as_scored(self, start: int, end: int) -> tuple[int, int]:
        """Characters of the answer as characters of the scored text."""
        return self._trimmed.inside(start, end)


@dataclass
class _Part:
    """A statement in the making."""

    sid: str
    start: int
    end: int
    scored: tuple[int, int]
    cited: dict[str, None]


def stated(
    answer: str,
    passages: Sequence[Passage],
    statements: Any = None,
    citations: Any = None,
    *,
    by_order: bool = False,
) -> Stated:
    """Put an answer into statements.

    statements: [{sid, start, end}], characters of the answer; an entry without a sid gets "s1",
        "s2", ... by its place in the list, and one with a "text" is checked against the answer.
        None: by sentence, "s1", "s2", ... in order.
    citations: [{sid, pids}], or pids by sid; marks in the text then cite nothing (they aren't
        scored all the same). None: what the marks in the text say. A mark belongs to the statement
        that it stands in, or else to the one before it; to the one after where a line begins with
        it.
    by_order: a number in a mark is always the passage of that number in order, as the default
        prompt shows them. False: what it is depends on the pids, see ``citations.read``.
    Raises InputError for an answer without text, a statement that is empty, overlaps another or
    lies outside the answer, and a citation by a statement that doesn't exist.
    """
    text_of(answer, "The answer")
    pids = tuple(passage.pid for passage in passages)
    marks, trimmed = citing.read(answer, pids, by_order=by_order)
    if marks and not _says(trimmed.text):
        raise InputError(f"The answer is nothing but citation marks: {short(answer)}.")
    if absent(statements):
        parts = _by_sentence(trimmed)
        within = _owners(trimmed, marks, parts)
        _widen(parts, marks, within)
        owners: list[int | None] = [*within]
        warnings: list[str] = []
    else:
        parts = _as_given(trimmed, statements)
        owners, warnings = _owners_as_given(answer, marks, parts)
    if absent(citations):
        warnings += _cite_by_marks(answer, marks, parts, owners, len(pids))
        if not by_order:
            warnings += _ambiguous(marks, pids)
    else:
        warnings = _cite_as_given(parts, citations, pids)
    made = tuple(Statement(p.sid, p.start, p.end, p.scored, tuple(p.cited)) for p in parts)
    return Stated(answer, trimmed.text, made, tuple(warnings), trimmed.cuts)


def _says(text: str) -> bool:
    """Whether there is a letter or a digit in a text."""
    return any(letter.isalnum() for letter in text)


# --- by sentence ----------------------------------------------------------------------------------


def _by_sentence(trimmed: Trimmed) -> list[_Part]:
    return [
        _Part(f"s{i}", *trimmed.outside(*span), span, {})
        for i, span in enumerate(sentences(trimmed.text), 1)
    ]


def _owners(trimmed: Trimmed, marks: Sequence[Mark], parts: Sequence[_Part]) -> list[int]:
    """Of each mark the statement that it belongs to."""
    starts = [part.scored[0] for part in parts]
    leading = _leading(trimmed.whole, marks)
    owners: list[int] = []
    for mark, leads in zip(marks, leading, strict=True):
        at, _ = trimmed.inside(mark.start, mark.end)
        owner = (bisect_right(starts, at) if mark.opens else bisect_left(starts, at)) - 1
        between = owner < 0 or at >= parts[owner].scored[1]
        if leads and between and owner + 1 < len(parts):
            owner += 1
        owners.append(max(owner, *owners[-1:], 0))
    return owners


def _leading(answer: str, marks: Sequence[Mark]) -> list[bool]:
    """Whether each mark is of a line that puts them before what they are for: "[1] X. [2] Y."."""
    leads: list[bool] = []
    lines = groupby(marks, key=lambda mark: citing.line_of(answer, mark.start))
    for (_, ends), own in lines:
        there = list(own)
        leads += [there[0].opens and _says(answer[there[-1].end : ends])] * len(there)
    return leads


def _widen(parts: list[_Part], marks: Sequence[Mark], owners: Sequence[int]) -> None:
    """Statements as given have their marks."""
    for mark, owner in zip(marks, owners, strict=True):
        parts[owner].start = min(parts[owner].start, mark.start)
        parts[owner].end = max(parts[owner].end, mark.end)


# --- as given -------------------------------------------------------------------------------------


def _as_given(trimmed: Trimmed, statements: Any) -> list[_Part]:
    entries = rows(statements, "statements", _STATEMENTS)
    if not entries:
        raise InputError("statements is empty; leave it out to have the answer split by sentence.")
    parts = [_given(trimmed, i, entry) for i, entry in enumerate(entries, 1)]
    names = [part.sid for part in parts]
    if twice := next((sid for i, sid in enumerate(names) if sid in names[:i]), None):
        raise InputError(f"Two statements have the sid {twice!r}; expected one each.")
    parts.sort(key=lambda part: part.start)
    for one, other in pairwise(parts):
        if other.start < one.end:
            raise InputError(
                f"Statements {one.sid!r} (characters {one.start} to {one.end}) and {other.sid!r} "
                f"({other.start} to {other.end}) overlap; a token is scored in one statement. "
                f"end is exclusive."
            )
    return parts


def _given(trimmed: Trimmed, number: int, entry: Any) -> _Part:
    if not isinstance(entry, Mapping):
        raise InputError(f"Statement {number} is {short(entry)}; expected {_STATEMENTS}.")
    sid = entry.get("sid")
    sid = f"s{number}" if absent(sid) else name_of(sid, f"The sid of statement {number}")
    start, end = (_place(entry, key, sid) for key in ("start", "end"))
    answer = trimmed.whole
    if not 0 <= start <= end <= len(answer):
        raise InputError(
            f"Statement {sid!r}, characters {start} to {end}, lies outside the answer, which has "
            f"{len(answer)} characters. Count characters, not bytes, from 0, end exclusive."
        )
    text = entry.get("text")
    if not absent(text) and text != answer[start:end]:
        raise InputError(
            f"Statement {sid!r} has the text {short(text)}, but characters {start} to {end} of the "
            f"answer are {short(answer[start:end])}. Count characters, not bytes, from 0, end "
            f"exclusive."
        )
    a, b = trimmed.inside(start, end)
    within = trimmed.text[a:b]
    marked = within != answer[start:end]
    if not within.strip() or (marked and not _says(within)):
        raise InputError(
            f"Statement {sid!r}, characters {start} to {end}, is empty"
            + (f" but for citation marks: {short(answer[start:end])}." if marked else ".")
            + " A statement needs text of its own."
        )
    a, b = a + len(within) - len(within.lstrip()), a + len(within.rstrip())
    return _Part(sid, start, end, (a, b), {})


def _place(entry: Mapping[str, Any], key: str, sid: str) -> int:
    value = plain(entry.get(key))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        came = "missing" if absent(value) else short(value)
        raise InputError(
            f"The {key} of statement {sid!r} is {came}; expected a whole number, characters of the "
            f"answer."
        )
    return value


def _owners_as_given(
    answer: str, marks: Sequence[Mark], parts: Sequence[_Part]
) -> tuple[list[int | None], list[str]]:
    """Of each mark the statement that it is in, or that ends right before it; and doubts."""
    owners: list[int | None] = []
    doubts: list[str] = []
    starts = [part.start for part in parts]
    for mark in marks:
        owner = bisect_right(starts, mark.start) - 1
        shown = answer[mark.start : mark.end]
        if owner < 0 or _says(answer[parts[owner].end : mark.start]):
            doubts.append(f"The mark {shown} at character {mark.start} is of no statement.")
            owners.append(None)
            continue
        part = parts[owner]
        within = owner and part.start <= mark.start < part.end and not mark.opens
        if within and not answer[part.start : mark.start].strip():
            doubts.append(
                f"Statement {part.sid!r} begins with {shown}, which counts as its own citation; "
                f"if it is of the statement before, end that one after it."
            )
        owners.append(owner)
    return owners, doubts


# --- citations ------------------------------------------------------------------------------------


def _cite_by_marks(
    answer: str,
    marks: Sequence[Mark],
    parts: list[_Part],
    owners: Sequence[int | None],
    n_passages: int,
) -> list[str]:
    warnings = []
    for mark, owner in zip(marks, owners, strict=True):
        if owner is None:
            continue
        part = parts[owner]
        part.cited.update(dict.fromkeys(mark.pids))
        if mark.unknown:
            hint = " Numbers count from 1." if "0" in mark.unknown else ""
            warnings.append(
                f"Statement {part.sid!r} cites {', '.join(mark.unknown)} "
                f"({short(answer[mark.start : mark.end])}), which isn't among the {n_passages} "
                f"passages.{hint}"
            )
        if mark.worded:
            warnings.append(
                f"In statement {part.sid!r} a mark is a word of the sentence "
                f"({short(answer[max(part.start, mark.start - 16) : mark.end + 12])}); the scored "
                f"text goes without it."
            )
    return warnings


def _ambiguous(marks: Sequence[Mark], pids: Sequence[str]) -> list[str]:
    """A word on pids that are numbers in another order than theirs."""
    numbers = {str(i): pid for i, pid in enumerate(pids, 1)}
    for pid in (pid for mark in marks for pid in mark.pids):
        if numbers.get(pid, pid) != pid:
            return [
                f"The marks' numbers are read as pids: {pid} is passage {pids.index(pid) + 1} of "
                f"{len(pids)}. By order it would be {numbers[pid]!r}."
            ]
    return []


def _cite_as_given(parts: list[_Part], citations: Any, pids: Sequence[str]) -> list[str]:
    by_sid = {part.sid: part for part in parts}
    warnings = []
    for sid, value in _pairs(citations):
        if sid not in by_sid:
            known = ", ".join(list(by_sid)[:8]) + (", ..." if len(by_sid) > 8 else "")
            raise InputError(
                f"citations has the sid {sid!r}, which no statement has (they have {known}). Give "
                f"`statements` with the sids that the citations use."
            )
        for pid in _cited(value, sid):
            if pid in pids:
                by_sid[sid].cited[pid] = None
            else:
                warnings.append(
                    f"Statement {sid!r} cites {pid!r}, which isn't among the {len(pids)} passages."
                )
    return warnings


def _pairs(citations: Any) -> list[tuple[str, Any]]:
    """(sid, pids) of either form."""
    citations = plain(citations)
    if isinstance(citations, Mapping) and set(citations) != {"sid", "pids"}:
        pairs = [(sid, pids) for sid, pids in citations.items() if not absent(pids)]
        return [(name_of(sid, "A sid of citations"), pids) for sid, pids in pairs]
    pairs = []
    for i, entry in enumerate(rows(citations, "citations", _CITATIONS), 1):
        if not isinstance(entry, Mapping) or absent(entry.get("sid")) or "pids" not in entry:
            raise InputError(f"Citation {i} is {short(entry)}; expected {_CITATIONS}.")
        pairs.append((name_of(entry["sid"], f"The sid of citation {i}"), entry["pids"]))
    return pairs


def _cited(value: Any, sid: str) -> list[str]:
    value = plain(value)
    if absent(value):
        return []
    if isinstance(value, (str, int)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise InputError(
            f"The pids that {sid!r} cites are {short(value)}; expected a list of pids."
        )
    return [name_of(pid, f"A pid that {sid!r} cites") for pid in value]
