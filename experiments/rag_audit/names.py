"""Invented names: pronounceable, plausible, and easy to tell apart within a question."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

_SYSTEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "west": (
        ("Pen", "Car", "Tre", "Lan", "Bod", "Ros", "Gar", "Mor", "Hel", "Kes", "Wen", "Dol"),
        ("ow", "ar", "en", "ith", "ag", "ol", "er"),
        ("rick", "dew", "thane", "mick", "gell", "wyn", "vose", "low", "dray"),
    ),
    "north": (
        ("Skar", "Hol", "Thor", "Brek", "Vind", "Ask", "Ulf", "Grim", "Sten", "Fal", "Hjel", "Rag"),
        ("de", "la", "ne", "ve", "ma"),
        ("stad", "vik", "mark", "sund", "holt", "berg", "nes", "fell", "gard"),
    ),
    "south": (
        ("Cal", "Mar", "Vel", "Sor", "Tan", "Bel", "Mon", "Fer", "Lur", "Pal", "Gav", "Ros"),
        ("vo", "re", "ti", "lu", "sa", "mi", "do"),
        ("na", "sca", "vento", "lano", "resso", "tella", "zzo", "dara", "miglia"),
    ),
    "east": (
        ("Zbor", "Krz", "Pol", "Vod", "Mil", "Dob", "Rad", "Yas", "Tur", "Lub", "Chor", "Bor"),
        ("o", "e", "a", "i"),
        ("nitz", "vets", "slav", "grod", "mirka", "tov", "kovo", "lenka", "zhin"),
    ),
    "isles": (
        ("Ta", "Lo", "Ma", "Ka", "Fe", "Nu", "Ru", "Ho", "Wai", "Pu", "Vai", "Ti"),
        ("lo", "ka", "ne", "ri", "mu", "pa", "ho"),
        ("fane", "reva", "tiki", "moana", "lani", "hua", "nui", "rongo", "peka"),
    ),
    "steppe": (
        ("Bay", "Khal", "Ors", "Tem", "Ald", "Jar", "Sul", "Ush", "Ger", "Ench", "Dush", "Nar"),
        ("ga", "bu", "ta", "ki", "du", "mu"),
        ("lan", "rai", "zhan", "tai", "kesh", "mir", "bek", "sar", "dur"),
    ),
}
_FORENAMES = (
    "Orsa", "Tavrin", "Ilsabet", "Corvin", "Maelis", "Jorund", "Perenna", "Aldous",
    "Wilmet", "Kester", "Zelenka", "Branoc", "Odile", "Yorick", "Sunniva", "Fenwick",
    "Hesper", "Lazlo", "Nerys", "Dunstan", "Quenby", "Ruald", "Tamsin", "Evander",
    "Bettrys", "Gervase", "Ximena", "Ulric", "Vesna", "Piran",
)  # fmt: skip

_REAL = frozenset(("Garrick", "Merrick", "Carlow", "Ragvik", "Holberg", "Stenberg", "Falstad"))
"""What the syllables can make and is known for something."""


@dataclass
class Names:
    """The names of one question: no two begin with the same three letters."""

    rng: random.Random
    taken: set[str] = field(default_factory=set)

    def place(self) -> str:
        return self._fresh(self._made)

    def person(self) -> str:
        forename = self._fresh(lambda: self.rng.choice(_FORENAMES))
        return f"{forename} {self.place()}"

    def _made(self) -> str:
        starts, middles, ends = _SYSTEMS[self.rng.choice(list(_SYSTEMS))]
        middle = self.rng.choice(middles) if self.rng.random() < 0.6 else ""
        return self.rng.choice(starts) + middle + self.rng.choice(ends)

    def _fresh(self, draw: Callable[[], str]) -> str:
        while True:
            name = draw()
            if name[:3].lower() not in self.taken and name not in _REAL:
                self.taken.add(name[:3].lower())
                return name
