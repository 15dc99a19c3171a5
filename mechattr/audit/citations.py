"""Citation marks in an answer: found, understood, and taken out of the text that is scored.

``"Ankara is the capital [2], since 1923 [1][3]."`` -> ``"Ankara is the capital, since 1923."``
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

# What may be in brackets; 【2†source】 is how some services print them.
_BRACKETS = re.compile(r"\[([^\[\]\n\r]+)\]|【([^【】\n\r†]+)(?:†[^【】\n\r]*)?】")
_LINK = re.compile(r"\((?:https?://|www\.|#|/)[^()\s]*\)")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_ITEMS = re.compile(r"\s*(?:[,;、，]|\band\b|&)\s*|(?<=\d)\s+(?=\^?\d)")
_RANGE = re.compile(r"\^?(\d{1,6})\s*[-‐‑–—]\s*\^?(\d{1,6})")
_WORDED = re.compile(
    r"(?:passages?|documents?|docs?|sources?|contexts?|references?|refs?|chunks?|citations?|"
    r"snippets?|excerpts?)[\s.:#_-]*(\d{1,3})",
    re.IGNORECASE,
)
# What stands between marks that are one group: "[1], [2] and [3]".
_JOINT = re.compile(r"[^\S\r\n]*(?:[,;、，]|,?[^\S\r\n]*(?:and|&))?[^\S\r\n]*")
# What is only there for a group's sake: "(see [2])", "<sup>[2]</sup>".
_LEAD = r"(?:see|cf\.?|e\.g\.,?|(?:source|ref|reference|citation)s?\s*[:.]?)"
_AROUND = (
    (re.compile(rf"[(（]\s*{_LEAD}?\s*$", re.I), re.compile(r"\s*[)）]")),
    (re.compile(r"\[\s*$"), re.compile(r"\s*\]")),
    (re.compile(r"<sup>\s*$", re.I), re.compile(r"\s*</sup>", re.I)),
)
# "Sources: [1], [2]" where a line ends with it.
_LABEL = re.compile(
    r"(?:\A|(?<=[.!?\n\r。]))[^\S\r\n]*\b(?:source|reference|citation|ref)s?\s*:\s*$", re.I
)
# Brackets after these are code's: "x[0]", "row_2[1]"; and before these: "items[1] = 3".
_IDENTIFIER = re.compile(r"[A-Za-z]|\w*_\w*|(?=\w*\d)(?=\w*[A-Za-z])\w+", re.ASCII)
_CODE_AFTER = re.compile(r"\s*(?:[-+*/<>!=]?=|\()|\.[a-z]")
_PREPOSITION = re.compile(
    r"\b(?:to|in|by|from|of|per|as|see|also|both|with|on|passages?|documents?|sources?)$", re.I
)
_VERB = re.compile(
    r" (?:and|also|says?|states?|shows?|notes?|mentions?|reports?|claims?|explains?|describes?|"
    r"indicates?|suggests?|confirms?|gives?|is|are|has|does)\b"
)
_STOPS = ".!?…。！？"
_MOST = 100  # numbers that a range may stand for


@dataclass(frozen=True)
class Cut:
    """Characters start to end of an answer that aren't in its scored text. blank: a blank stands
    there instead, as what is around would run together."""

    start: int
    end: int
    blank: bool = False


@dataclass(frozen=True)
class Mark:
    """Marks that stand together, and what they say.

    start, end: their characters in the answer, from the first bracket to the last, with what is cut
        for their sake.
    pids: what they cite, in order, once each. unknown: what they cite that isn't there, as written.
    opens: whether a line begins with them and goes on.
    worded: whether they are a word of the sentence: "according to [1], ...".
    """

    start: int
    end: int
    pids: tuple[str, ...]
    unknown: tuple[str, ...]
    opens: bool
    worded: bool


@dataclass(frozen=True)
class Trimmed:
    """A text with some of its characters cut out, and which is which.

    whole: as given. cuts: in order, without overlap.
    """

    whole: str
    cuts: tuple[Cut, ...]

    @cached_property
    def text(self) -> str:
        """What is left."""
        return "".join(" " if blank else self.whole[i] for i, blank in self._kept)

    @cached_property
    def _kept(self) -> list[tuple[int, bool]]:
        """Of each character of the text, its place in the whole, and whether it's a cut's blank."""
        kept: list[tuple[int, bool]] = []
        at = 0
        for cut in self.cuts:
            kept += [(i, False) for i in range(at, cut.start)]
            if cut.blank:
                kept.append((cut.end - 1, True))
            at = cut.end
        return kept + [(i, False) for i in range(at, len(self.whole))]

    @cached_property
    def _place(self) -> list[int]:
        """Of each place in the whole (its end too), how many characters of the text are before."""
        place = [0] * (len(self.whole) + 1)
        for i, _ in self._kept:
            place[i + 1] += 1
        for i in range(len(self.whole)):
            place[i + 1] += place[i]
        return place

    def inside(self, start: int, end: int) -> tuple[int, int]:
        """Characters of the whole as characters of the text; none are left of a cut."""
        return self._place[start], self._place[end]

    def outside(self, start: int, end: int) -> tuple[int, int]:
        """Characters of the text as characters of the whole: from the first's to the last's, with
        what was cut out between them, without what was cut out around them."""
        if start == end:
            at = self._kept[start][0] if start < len(self._kept) else len(self.whole)
            return at, at
        return self._kept[start][0], self._kept[end - 1][0] + 1


def read(
    answer: str, pids: Sequence[str], *, by_order: bool = False
) -> tuple[tuple[Mark, ...], Trimmed]:
    """The marks of an answer, and the answer without them.

    Understood are [2], [^2], [1, 2], [1-3], [1][3], 【2】, [Passage 2] and pids by name, [doc3]. A
    number that is a pid is that one; otherwise it is the passage of that number in order, from 1,
    unless the pids are themselves a numbering (all numbers below 1000, one of them not above how
    many there are). by_order: numbers are never pids. Brackets with anything else in them stay, and
    so do those of code: `x[0]`.
    """
    names = _Names(pids, by_order)
    marks: list[Mark] = []
    cuts: list[Cut] = []
    singles = (_widened(answer, one) for one in _found(answer, names))
    for group in _groups(answer, singles):
        start, end = group.start, group.end
        cut = _cut(answer, start, end, cuts[-1].end if cuts else 0)
        begins, ends = line_of(answer, start)
        opens = not answer[begins:start].strip() and bool(answer[end:ends].strip())
        worded = _worded(answer, start, end)
        marks.append(Mark(*_stripped(answer, cut), group.known, group.unknown, opens, worded))
        cuts.append(cut)
    return tuple(marks), Trimmed(answer, tuple(cuts))


def line_of(text: str, at: int) -> tuple[int, int]:
    """Where the line that a place is in begins and ends."""
    ends = text.find("\n", at)
    return text.rfind("\n", 0, at) + 1, len(text) if ends < 0 else ends


def _stripped(text: str, cut: Cut) -> tuple[int, int]:
    """A cut without the blanks at its ends."""
    within = text[cut.start : cut.end]
    return cut.end - len(within.lstrip()), cut.start + len(within.rstrip())


def _worded(text: str, start: int, end: int) -> bool:
    """Whether the sentence misses a word without the group."""
    before = text[max(0, start - 30) : start].rstrip(" ")
    begins = not before or before[-1] in ".!?\n\r"
    spaced = text[start - 1 : start] == " "
    misses = _VERB.match(text, end) if begins else spaced and _PREPOSITION.search(before)
    return bool(misses)


# --- what a bracket says --------------------------------------------------------------------------


@dataclass(frozen=True)
class _One:
    """A mark, or marks that are joined."""

    start: int
    end: int
    known: tuple[str, ...]
    unknown: tuple[str, ...]


class _Names:
    """The pids of a record, as they are written in brackets."""

    def __init__(self, pids: Sequence[str], by_order: bool):
        self.pids = tuple(pids)
        numbers = [pid for pid in pids if _number(pid) is not None]
        self.numbers = {} if by_order else {int(pid): pid for pid in reversed(numbers)}
        low, high = (of(map(int, numbers), default=0) for of in (min, max))
        # Numbers as a prompt would show them, not a database's.
        shown = len(numbers) == len(self.pids) and low <= len(self.pids) and high <= 999
        self.by_order = by_order or not shown
        self.loose: dict[str, str | None] = {}
        for pid in pids:
            loose = _loose(pid)
            self.loose[loose] = None if loose in self.loose else pid
        self.shapes = {_shape(pid) for pid in pids if _lettered(pid) and _shape(pid) != pid}

    def named(self, name: str) -> str | None:
        if name in self.pids and _number(name) is None:
            return name
        return self.loose.get(_loose(name)) if _lettered(name) else None

    def numbered(self, number: int | None) -> str | None:
        if number is not None and number in self.numbers:
            return self.numbers[number]
        if number is None or not self.by_order or not 1 <= number <= len(self.pids):
            return None
        return self.pids[number - 1]

    def said(self, content: str) -> list[tuple[str, str | None]] | None:
        """What brackets with this in them cite: (as written, pid or None); None: nothing, they
        aren't a citation."""
        whole = self.named(content.strip())
        if whole is not None:
            return [(content.strip(), whole)]
        if len(content) > 400:
            return None
        items = [item for item in _ITEMS.split(content.strip()) if item]
        said: list[tuple[str, str | None]] = []
        for item in items:
            found = self._item(item)
            if found is None:
                return None
            said += found
        return said or None

    def _item(self, item: str) -> list[tuple[str, str | None]] | None:
        pid = self.named(item)
        if pid is not None:
            return [(item, pid)]
        bare = item.removeprefix("^")
        worded = _WORDED.fullmatch(bare)
        digits = worded[1] if worded else bare
        if digits.isdecimal():
            pid = self.numbered(_number(digits))
            # Four digits that are no passage are a year, or some other number.
            return [(item, pid)] if pid is not None or len(digits) < 4 else None
        if between := _RANGE.fullmatch(item):
            first, last = int(between[1]), int(between[2])
            if not first <= last < first + _MOST or last > 999:
                return None
            return [(str(i), self.numbered(i)) for i in range(first, last + 1)]
        return [(item, None)] if _shape(item) in self.shapes else None


def _number(name: str) -> int | None:
    return int(name) if name.isdecimal() and len(name) < 20 else None


def _lettered(name: str) -> bool:
    return any(letter.isalpha() for letter in name)


def _loose(name: str) -> str:
    return re.sub(r"[\s_.:#-]+", "", name.casefold())


def _shape(name: str) -> str:
    """``"doc12"`` -> ``"doc0"``: names that differ in their numbers only look alike."""
    return re.sub(r"\d+", "0", name.casefold())


def _found(text: str, names: _Names) -> list[_One]:
    code = [span.span() for span in _CODE.finditer(text)] if "`" in text else []
    found: list[_One] = []
    subscript = -1  # where brackets ended that are code's: those that follow are too
    for match in _BRACKETS.finditer(text):
        while code and code[0][1] <= match.start():
            code.pop(0)
        if code and code[0][0] <= match.start():
            continue
        said = names.said(match[1] or match[2])
        if said is None:
            continue
        link = _LINK.match(text, match.end())
        end = link.end() if link else match.end()
        if subscript == match.start() or (not link and _is_code(text, match, said)):
            subscript = match.end()
            continue
        known = tuple(dict.fromkeys(pid for _, pid in said if pid is not None))
        unknown = tuple(dict.fromkeys(written for written, pid in said if pid is None))
        found.append(_One(match.start(), end, known, unknown))
    return found


def _is_code(text: str, match: re.Match[str], said: list[tuple[str, str | None]]) -> bool:
    """Whether brackets directly after a word are an index rather than a citation. ``Paris[1].`` is
    a citation, as many write it; ``x[0]``, ``row_2[1]`` and ``items[1] = 3`` aren't."""
    at = match.start()
    begins = at
    while begins > max(0, at - 60) and _of_word(text[begins - 1]):
        begins -= 1
    word = text[begins:at]
    if not word or word.isdecimal():
        return False
    zero = all(written == "0" and pid is None for written, pid in said)
    return zero or bool(_IDENTIFIER.fullmatch(word) or _CODE_AFTER.match(text, match.end()))


def _of_word(letter: str) -> bool:
    return (letter.isalnum() and not _wide(letter)) or letter == "_"


# --- what is cut with it --------------------------------------------------------------------------


def _groups(text: str, found: Iterable[_One]) -> list[_One]:
    """Marks with nothing between them but what joins them, as one each."""
    groups: list[_One] = []
    for one in found:
        last = groups[-1].end if groups else -1
        if 0 <= last >= one.start - 40 and _JOINT.fullmatch(text, last, one.start):
            known = tuple(dict.fromkeys((*groups[-1].known, *one.known)))
            unknown = tuple(dict.fromkeys((*groups[-1].unknown, *one.unknown)))
            groups[-1] = _One(groups[-1].start, one.end, known, unknown)
        else:
            groups.append(one)
    return [_widened(text, group) for group in groups]


def _widened(text: str, one: _One) -> _One:
    """A mark with the brackets, and the words, that make no sense without it."""
    start, end = one.start, one.end
    widened = True
    while widened:
        widened = False
        for before, after in _AROUND:
            begins = before.search(text[max(0, start - 30) : start])
            ends = after.match(text, end)
            if begins and ends:
                start, end = start - len(begins[0]), ends.end()
                widened = True
    low = max(0, start - 30)
    label = _LABEL.search(text[low:start])
    # The last of its line; and where the text begins, not this part of it.
    last = not text[end : line_of(text, end)[1]].strip(" .\t\r")
    if label and (label.start() or not low) and last:
        start -= len(label[0].lstrip())
    return replace(one, start=start, end=end)


def _cut(text: str, start: int, end: int, last: int) -> Cut:
    """What goes with a group: the blank before it, mostly. last: where the cut before ends."""
    left, right = start, end
    while left > last and _blank(text[left - 1]):
        left -= 1
    while right < len(text) and _blank(text[right]):
        right += 1
    first = left == 0 or text[left - 1] in "\r\n"
    ends = right == len(text) or text[right] in "\r\n"
    if first and ends:
        return _whole_line(text, left, right, last)
    if first:  # "[1]: " of a footnote, "[1] " of a list
        if text[end : end + 1] == ":":
            right = end + 1
            while right < len(text) and _blank(text[right]):
                right += 1
        return Cut(start, right)
    if ends:
        return Cut(left, right)
    before, after = text[left - 1], text[end]
    if after in _STOPS and before in _STOPS:  # "so. [1]." ends once
        return Cut(left, end + 1)
    if after.isspace():
        # After an opening quote or bracket it is the blank behind that goes.
        return Cut(start, right) if left == start and before in '("“‘[{' else Cut(left, end)
    if not after.isalnum():
        return Cut(left, end)
    if left < start:
        return Cut(start, end)
    return Cut(start, end, blank=not (_wide(before) or _wide(after) or before in "(“‘[{-–—/"))


def _whole_line(text: str, left: int, right: int, last: int) -> Cut:
    """A line of nothing else goes with its break."""
    while left > last and text[left - 1].isspace():
        left -= 1
    if not left:
        while right < len(text) and text[right].isspace():
            right += 1
    return Cut(left, right)


def _blank(letter: str) -> bool:
    return letter.isspace() and letter not in "\r\n"


def _wide(letter: str) -> bool:
    """Of a script that is written without blanks."""
    wide = unicodedata.east_asian_width(letter) in "WF"
    return wide and not unicodedata.name(letter, "").startswith("HANGUL")
