"""Off-topic passages of matched length: what a passage's place holds under the null.

``data/offtopic.json`` has eighty short texts on glaciers, bread, chess, ...: common knowledge,
written for this library and under its licence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Int

from mechattr.errors import InputError

Text = tuple[str, str]
"""A title, or "", and a text."""

Pattern = Callable[[str, str], str]
"""From a title and a text, a passage as it stands in a prompt."""

OVER = 2
"""Tokens by which a block may be longer than asked for, where no cut does better."""

_FILL = 48
"""Characters after the last whole word that cuts are tried at."""

_MARKS = (".", " –", " – –", ". –")
"""What may be put after the last whole word where no letter that comes next gives the length."""

_WORD = re.compile(r"[^\W\d_]{3,}|\d+")

# What an encyclopaedia and any question have in common, and what says nothing of a topic.
_STOP_WORDS = """
the and for are was were been being has have had having does did doing not nor but with without
from into onto upon over under above below between among through during before after since until
while when where which who whom whose what why how that this these those there here then than
its his her hers him she they them their theirs our ours you your yours one ones two three four
five six seven eight nine ten first second third last next other others another each every both
either neither all any some many much more most few fewer less least several such same own only
also even ever never always often usually sometimes once twice again still yet already just very
too quite rather about almost nearly around along across against off out down far near nearby
away back because therefore thus hence though although however instead within can could may
might must shall should will would let make makes made making take takes took taken give gives
gave given get gets got keep keeps kept come comes came put puts set sets use uses used using
call called known know knows name named mean means way ways thing things kind kinds part parts
place places people person man woman men women year years day days time times long short large
small big little great high low new old good like unlike example question answer passage
passages following according using based per cent around became become becomes begin begins
began form forms work works found find finds say says said tell tells show shows
"""
_STOP = frozenset(_STOP_WORDS.split())


class OffTopic:
    """Texts to put in passages' places.

    texts: the user's own, each a text or a (title, text) pair; None: the eighty that come along.
    Raises InputError for no texts, empty ones, or what isn't a text.
    """

    def __init__(self, texts: Iterable[str | Text] | None = None):
        self.texts: tuple[Text, ...] = _packaged() if texts is None else _checked(texts)
        self._words = [content_words(f"{title} {text}") for title, text in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, rng: np.random.Generator, avoid: str, count: int) -> list[Text]:
        """``count`` texts about something else than ``avoid`` (the question and its passages).

        Overlap is counted in content words: lower-case, a plural s dropped, stop words left out.
        Texts are drawn without replacement from the half of them that overlaps least, or from all
        that share no word, where these are more. If ``count`` is more than that, the others follow,
        least overlap first; only when there are no more do texts come twice.
        """
        if count < 0:
            raise InputError(f"count is {count}; expected how many texts to pick, 0 or more.")
        shared, far = self._shared(avoid)
        shuffled = rng.permutation(len(self))
        ranked = shuffled[np.argsort(shared[shuffled], kind="stable")]
        order = np.concatenate([rng.permutation(ranked[:far]), ranked[far:]])
        return [self.texts[i] for i in np.resize(order, count)]

    def _shared(self, avoid: str) -> tuple[Int[np.ndarray, " text"], int]:
        """How many words each text shares with another; how many are far enough from it."""
        taken = content_words(avoid)
        shared = np.array([len(words & taken) for words in self._words])
        return shared, max((len(self) + 1) // 2, int((shared == 0).sum()))

    def matched(
        self,
        tokenizer: Any,
        title: str,
        text: str,
        pattern: Pattern,
        n_tokens: int,
        avoid: str = "",
    ) -> str:
        """A passage of exactly ``n_tokens`` tokens as it stands in a prompt, where there is one.

        pattern: what makes a passage of a title and a text. Tokens are those of the whole block by
            itself, without special tokens.
        avoid: as of :meth:`pick`. Where the text is too short, those of this collection go on that
            are about something else, least overlap first, equals in their order from this one on;
            all over again, as often as needed.

        The text is cut after a word; if tokens are missing, characters of what comes next, or a
        mark, fill it up. Where no cut gives ``n_tokens`` (a character may be several tokens), the
        nearest count is taken, the shorter of equals, and never one of more than ``n_tokens + 2``.
        A title too long for the length is cut the same way, and dropped at last.
        Raises InputError where the pattern alone is longer than that.
        """
        if n_tokens < 1:
            raise InputError(
                f"n_tokens is {n_tokens}; expected the length of a passage, 1 or more."
            )
        counted = _Counted(tokenizer, pattern, n_tokens)
        for head in _shorter(title):
            counted.title = head
            if counted.of("") <= n_tokens or not head:
                break
        if counted.of("") > n_tokens + OVER:
            raise InputError(
                f"A passage without title and text has {counted.of('')} tokens in this prompt, "
                f"more than the {n_tokens} asked for."
            )
        return counted.cut(_long_enough(text, self._after(title, text, avoid), counted))

    def _after(self, title: str, text: str, avoid: str) -> list[str]:
        shared, far = self._shared(avoid)
        here = self.texts.index((title, text)) if (title, text) in self.texts else -1
        order = np.roll(np.arange(len(self)), -here - 1)
        ranked = order[np.argsort(shared[order], kind="stable")]
        return [self.texts[i][1] for i in ranked[:far]]


class _Counted:
    """A pattern's blocks and how many tokens they have."""

    def __init__(self, tokenizer: Any, pattern: Pattern, wanted: int):
        self.tokenizer = tokenizer
        self.pattern = pattern
        self.wanted = wanted
        self.title = ""

    def of(self, text: str) -> int:
        block = self.pattern(self.title, text)
        return len(self.tokenizer(block, add_special_tokens=False).input_ids)

    def cut(self, text: str) -> str:
        """The block of a beginning of ``text`` with the wanted number of tokens, or the nearest."""
        ends = [0, *(match.end() for match in re.finditer(r"\S+", text))]
        low, high = 0, len(ends) - 1
        while low < high:  # the last word end that isn't too far; more words, more tokens
            middle = (low + high + 1) // 2
            if self.of(text[: ends[middle]]) <= self.wanted:
                low = middle
            else:
                high = middle - 1
        best, error = "", self._error("")
        for beginning in _beginnings(text, ends[low]):
            here = self._error(beginning)
            if here < error:
                best, error = beginning, here
            if not error:
                break
        return self.pattern(self.title, best)

    def _error(self, text: str) -> float:
        """How far off, a little more where too long; out of the question where much too long."""
        over = self.of(text) - self.wanted
        if over > OVER:
            return float("inf")
        return over + 0.5 if over > 0 else -over


def _beginnings(text: str, end: int) -> Iterator[str]:
    """Up to a word's end, up to some letter of what comes next, or filled up with a mark."""
    yield text[:end]
    for stop in range(end + 1, min(end + _FILL, len(text)) + 1):
        # A blank at the end may become one token with what follows the block.
        if not text[stop - 1].isspace():
            yield text[:stop]
    for fill in _MARKS:
        yield text[:end] + fill


def _long_enough(text: str, rest: Sequence[str], counted: _Counted) -> str:
    """The text with others after it, so that there is something to cut."""
    i, found = 0, -1
    while (n_tokens := counted.of(text)) < counted.wanted + OVER:
        if n_tokens <= found:
            raise InputError("The texts to put in a passage's place have no tokens.")
        found = n_tokens
        # Twice as much each time: a long passage is counted a few times only.
        length = 2 * len(text)
        while len(text) <= length:
            text = f"{text} {rest[i % len(rest)]}".lstrip()
            i += 1
    return text


def _shorter(title: str) -> list[str]:
    words = title.split()
    return [title, *(" ".join(words[:n]) for n in range(len(words) - 1, 0, -1)), ""]


def content_words(text: str) -> frozenset[str]:
    """A text's words of three letters and more, and its numbers; lower-case, without stop words."""
    words = _WORD.findall(text.lower())
    return frozenset(_stem(word) for word in words if word not in _STOP)


def _stem(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return word[:-1] if plural else word


@cache
def _packaged() -> tuple[Text, ...]:
    file = resources.files("mechattr.audit") / "data" / "offtopic.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    return tuple((row["title"], row["text"]) for row in rows)


def _checked(texts: Iterable[str | Text]) -> tuple[Text, ...]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(f"Off-topic texts must be a list of texts; got {texts!r:.60}.")
    found = [_one(i, given) for i, given in enumerate(texts)]
    if not found:
        raise InputError("No off-topic texts: the list is empty. Leave it out for those built in.")
    return tuple(found)


def _one(i: int, given: Any) -> Text:
    pair = ("", given) if isinstance(given, str) else given
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InputError(
            f"Off-topic text {i} is {type(given).__name__}; expected a string or (title, text)."
        )
    title, text = pair
    if not isinstance(title, str) or not isinstance(text, str):
        raise InputError(f"Off-topic text {i}: title and text must be strings; got {given!r:.60}.")
    if not text.strip():
        raise InputError(f"Off-topic text {i} is empty.")
    return title.strip(), text.strip()
