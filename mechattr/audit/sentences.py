"""A text in sentences, by rules: no model, no download, the same everywhere.

A sentence ends at a line's end, and within a line at a stop (. ! ? … and those of other scripts)
with the quotes and brackets that close after it, if a blank follows (not needed after a full-width
stop) and what comes then begins like a sentence. A single full stop ends none after an
abbreviation, an initial, or the number of a list's item. The words it knows are English, mostly.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_FULL_WIDTH = "。！？｡．"
_STOP = re.compile(rf"[.!?…‽‼⁇⁈⁉؟।۔{_FULL_WIDTH}]+[\"'”’»›)\]}}」』】〉》）*_~`]*")
_LETTER = re.compile(r"[^\W_]")
_WORD = re.compile(r"[^\W_]+")
# What begins a list's item: "-", "•", "2.", "(b)", "iv)".
_ITEM = re.compile(r"\s*(?:[-*+•‣◦–—]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{2,4})[.)])\s")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


# No sentence ends with these: something always follows.
_NEVER = _words(
    "dr mr mrs ms mx prof gen col lt sgt capt cmdr maj rev hon gov sen rep pres supt messrs mme "
    "mlle mt ft e.g i.e eg ie cf vs viz approx ca resp incl esp p.ex z.b d.h bzw"
)
# No sentence ends with these if a number follows: "No. 5", "Fig. 2", "Art. IV".
_NUMBERED = _words(
    "no nos nr fig figs eq eqs sec secs ch chap vol vols p pp art arts op tab ref refs pt par para "
    "abs bd s lit ser ex app ed"
)
# A sentence may end with these: if what follows is a word that begins many.
_MAYBE = _words(
    "etc st inc ltd co corp llc plc jr sr al bros dept est univ assn ave blvd rd mts govt ph.d jan "
    "feb apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri usw avg tel ext"
)
_STARTERS = _words(
    "the it he she they we this that these those there here in on at by for from with as if when "
    "while after before since because although though however but and or so yet also then thus "
    "therefore hence moreover furthermore additionally finally first second its his her their our "
    "my your a an some many most several each every all both no not one another other what who "
    "where why how which i you to during under between among until according despite unlike "
    "instead meanwhile overall today later such once only even still"
)
# A single letter after these is a name of its own, not somebody's initial: "vitamin C."
_LETTERED = _words(
    "vitamin plan group type class grade hepatitis influenza appendix option figure table part "
    "section team point case variable step phase model series zone schedule exhibit letter"
)
_MONTHS = _words(
    "januar februar märz april mai juni juli august september oktober november dezember"
)


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) characters of each sentence, in order.

    They cover everything that isn't blank, begin and end with something that isn't, and don't
    overlap. Each has a letter or a digit: a line of "---" belongs to the sentence before it, or
    after it where it comes first. Only a text without any is one sentence all the same, and only a
    blank one has none.
    """
    found: list[tuple[int, int]] = []
    lower = _begins_lower(text)
    at = 0
    for line in text.splitlines(keepends=True):
        found += _of_line(text, at, at + len(line), lower)
        at += len(line)
    return _with_letters(text, found)


def _of_line(text: str, start: int, end: int, lower: bool) -> list[tuple[int, int]]:
    item = _ITEM.match(text, start, end)
    at = item.end() if item else start
    ends: list[int] = []
    for stop in _STOP.finditer(text, at, end):
        if _ends(text, stop, (ends[-1] if ends else start, end), lower):
            ends.append(stop.end())
    spans = (_stripped(text, a, b) for a, b in pairwise([start, *ends, end]))
    return [span for span in spans if span is not None]


def _ends(text: str, stop: re.Match[str], span: tuple[int, int], lower: bool) -> bool:
    """Whether a sentence ends with this stop. span: where it begins, and where its line ends."""
    start, end = span
    mark = stop.group()
    last = mark.rstrip("\"'”’»›)]}」』】〉》）*_~`")
    after = text[stop.end() : stop.end() + 1]
    word = _WORD.search(text, stop.end(), min(end, stop.end() + 1000))
    if word is None:
        return False  # nothing but marks up to the line's end: they go with it
    if last[-1] in _FULL_WIDTH:
        quoted = len(last) < len(mark) and unicodedata.name(after, "").startswith("HIRAGANA")
        return not quoted and not (last[-1] == "．" and after.isdecimal())
    if not after.isspace():
        return False
    if word.group()[0].islower() and not lower and not word.group()[1:2].isupper():
        return False  # "Why?" she asked; Yahoo! is; and "iPad" does begin sentences
    return last != "." or not _abbreviated(text, stop.start(), start, word)


def _abbreviated(text: str, dot: int, start: int, after: re.Match[str]) -> bool:
    """Whether the full stop at ``dot``, of a sentence that begins at ``start``, belongs to an
    abbreviation that goes on with ``after``."""
    token = _token_before(text, dot, start)
    low, following = token.lower(), after.group()
    number = following[0].isdecimal()
    before = text[max(start, dot - len(token) - 40) : dot - len(token)].rstrip()
    if low in _NEVER:
        return True
    if low in _NUMBERED and (number or (low != "no" and _roman(following))):
        return True
    if low.isdecimal():  # a list's "2.", a German "3. Mai"
        listed = len(low) <= 3 and (not before or before[-1] in ":;")
        return listed or following.lower() in _MONTHS
    if len(token) == 1 and not token.isupper():
        return low == "v" or (number and low.isalpha())  # "Roe v. Wade", "c. 1500"; not "don't."
    if len(low) == 1 and _lettered(before.lower()):
        return False
    dotted = all(len(part) == 1 and part.isalpha() for part in low.split("."))
    if not dotted and low not in _MAYBE:
        return False
    # "J. A. Smith": this A is an initial, not the word.
    initial = len(following) == 1 and text[after.end() : after.end() + 1] == "."
    return initial or following.lower() not in _STARTERS


def _token_before(text: str, dot: int, start: int) -> str:
    """What stands directly before a full stop: letters, digits and full stops among them."""
    at = dot
    while at > max(start, dot - 24) and (text[at - 1].isalnum() or text[at - 1] == "."):
        at -= 1
    return text[at:dot].lstrip(".")


def _lettered(before: str) -> bool:
    """Whether a single letter after this is no initial: "20 °C.", "vitamin C."."""
    measure = before.endswith(("°", "'", "’")) or before[-1:].isdecimal()
    return measure or re.split(r"\W+", before)[-1] in _LETTERED


def _roman(word: str) -> bool:
    return bool(re.fullmatch(r"[IVXLC]+|[A-Z]", word))


def _begins_lower(text: str) -> bool:
    """Whether the text is written without capitals, as far as its first letter tells."""
    first = next((c for c in text if c.isalpha()), "")
    return first.islower()


def _stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    within = text[start:end]
    left = len(within) - len(within.lstrip())
    right = len(within.rstrip())
    return (start + left, start + right) if left < right else None


def _with_letters(text: str, found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    waiting: int | None = None  # where marks that came first begin
    for start, end in found:
        if _LETTER.search(text, start, end):
            made.append((start if waiting is None else waiting, end))
            waiting = None
        elif made:
            made[-1] = (made[-1][0], end)
        elif waiting is None:
            waiting = start
    if waiting is not None:
        made.append((waiting, found[-1][1]))
    return made
