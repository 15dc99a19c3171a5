"""Invented values, each in two forms: as a passage writes it and as an answer may reword it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from experiments.rag_audit.names import Names

TRIES = 1000
_ONES = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
_LISTS: dict[str, tuple[str, ...]] = {
    "goods": (
        "salt", "copper", "wool", "timber", "saffron", "rope", "amber", "cheese", "tar", "linen",
        "pepper", "glass", "tin", "honey", "leather", "slate", "barley", "candles", "ivory", "soap",
        "silk", "coal", "wax", "paper", "cotton", "marble", "ginger", "lead",
    ),
    "things": (
        "clocks", "maps", "kites", "bells", "dolls", "coins", "fans", "locks", "lamps", "masks",
        "buttons", "globes", "fossils", "stamps", "flutes", "swords", "teapots", "puppets",
        "mirrors", "spoons", "baskets", "drums", "scissors", "lanterns",
    ),
    "foods": (
        "beetles", "berries", "snails", "moss", "acorns", "moths", "seaweed", "worms", "crabs",
        "mushrooms", "ants", "lichen", "shrimps", "thistles", "roots", "eggs", "spiders", "nuts",
        "frogs", "seeds", "nectar", "grubs", "clover", "reeds",
    ),
    "ingredients": (
        "plums", "walnuts", "rye", "trout", "leeks", "cherries", "mustard", "figs", "oysters",
        "chestnuts", "lentils", "quince", "fennel", "barley", "almonds", "pears", "garlic",
        "parsnips", "bacon", "cabbage", "raisins", "dill", "pumpkin", "beans",
    ),
    "colours": (
        "crimson", "silver", "green", "violet", "orange", "white", "blue", "gold", "black", "pink",
        "turquoise", "brown", "grey", "purple",
    ),
    "materials": (
        "oak", "bronze", "granite", "brass", "walnut", "cork", "cedar", "porcelain", "basalt",
        "bamboo", "pewter", "limestone", "ebony", "marble",
    ),
}  # fmt: skip
_WARES = (
    "bell", "basket", "candle", "clock", "glass", "harp", "kite", "lamp", "lute", "mask", "organ",
    "rope", "saddle", "umbrella",
)  # fmt: skip
_CRAFTS = ("maker", "mender", "painter", "polisher", "seller")


@dataclass(frozen=True)
class Value:
    """written: as passages write it. reworded: the same in other words, or equal to ``written``.
    words: what must occur nowhere else, all forms of it."""

    written: str
    reworded: str
    words: tuple[str, ...]


@dataclass
class Values:
    """The values of one question: none comes twice."""

    rng: random.Random
    names: Names
    taken: set[str] = field(default_factory=set)

    def draw(self, kind: str) -> Value:
        """A value of a kind: one of the methods, or some of a list.

        Raises LookupError where none is left.
        """
        made = getattr(self, f"_{kind}", None)
        for _ in range(TRIES):
            value = made() if made else self._listed(kind)
            if not self.taken & set(value.words):
                self.taken |= set(value.words)
                return value
        raise LookupError(f"No {kind} is left that the question doesn't have.")

    def _year(self) -> Value:
        """A year, mostly with its month."""
        year = str(self.rng.randrange(1603, 1990))
        if self.rng.random() < 0.2:
            return _plain(year)
        month = self.rng.choice(_MONTHS)
        return Value(f"{month} {year}", f"{month} {year}", (month, year))

    def _place(self) -> Value:
        return _plain(self.names.place())

    def _person(self) -> Value:
        name = self.names.person()
        return Value(name, name, tuple(name.split()))

    def _count(self) -> Value:
        """Two digits; in digits in one form, in words in the other."""
        n = self.rng.randrange(21, 100)
        forms = [str(n), in_words(n)]
        self.rng.shuffle(forms)
        return Value(forms[0], forms[1], tuple(forms))

    def _number(self) -> Value:
        return _plain(str(self.rng.randrange(113, 989)))

    def _date(self) -> Value:
        day, month = self.rng.randrange(2, 29), self.rng.choice(_MONTHS)
        written, reworded = f"{day} {month}", f"{month} {day}"
        return Value(written, reworded, (month,))

    def _trade(self) -> Value:
        ware = self.rng.choice(_WARES)
        trade = f"{ware} {self.rng.choice(_CRAFTS)}"
        article = "an" if ware[0] in "aeiou" else "a"
        return Value(f"{article} {trade}", f"{article} {trade}", (trade,))

    def _listed(self, kind: str) -> Value:
        n = 2 if kind in ("colours", "materials") else 3
        *most, last = words = self.rng.sample(_LISTS[kind], n)
        text = f"{', '.join(most)} and {last}"
        return Value(text, text, tuple(words))


def _plain(text: str) -> Value:
    return Value(text, text, (text,))


def in_words(n: int) -> str:
    """A number from 20 to 99."""
    return _TENS[n // 10 - 2] + (f"-{_ONES[n % 10]}" if n % 10 else "")
