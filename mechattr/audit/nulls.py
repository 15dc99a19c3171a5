"""What a passage does that has nothing to do with the question: an off-topic one in its place.

An effect is held against this null. It isn't zero: any text between the instruction and the
question moves a statement's log probability a little, the more, the longer the statement is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechattr.audit.asking import Known


@dataclass(frozen=True, eq=False)
class Swap:
    """An off-topic passage in the place of player ``place``, in nats, [statement].

    necessity: ``v(N with it there) − v(N∖place)``. sufficiency: ``v(it alone) − v(∅)``.
    """

    place: int
    title: str
    necessity: np.ndarray
    sufficiency: np.ndarray

    def describe(self) -> dict[str, object]:
        return {
            "place": self.place,
            "title": self.title,
            "necessity": self.necessity.tolist(),
            "sufficiency": self.sufficiency.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Joint:
    """Off-topic passages in the places of several players at once, in nats, [statement].

    worth: ``v(N with them there) − v(N∖places)``: what a redundant set is held against.
    """

    places: tuple[int, ...]
    titles: tuple[str, ...]
    worth: np.ndarray

    def describe(self) -> dict[str, object]:
        return {
            "places": list(self.places),
            "titles": list(self.titles),
            "worth": self.worth.tolist(),
        }


def places(n_players: int, swaps: int, null: str, rng: np.random.Generator) -> list[int]:
    """Whose place each swap takes: ``swaps`` players at random, evenly, or of each that many."""
    if null == "per passage":
        return list(range(n_players)) * swaps
    orders = [rng.permutation(n_players) for _ in range(-(-swaps // n_players))]
    return [int(i) for order in orders for i in order][:swaps]


def pairs(n_players: int, swaps: int, null: str, rng: np.random.Generator) -> list[list[int]]:
    """Pairs of places that two off-topic passages take together: half as many as single swaps, so
    that they cost no more; none of one player."""
    if n_players < 2:
        return []
    wanted = swaps if null == "per passage" else max(1, swaps // 2)
    return [sorted(rng.permutation(n_players)[:2].tolist()) for _ in range(wanted)]


def swap(place: int, titles: Sequence[str], swapped: Known, plain: Known | None) -> Swap:
    """Measure one swap.

    swapped: the game with the off-topic text as the player ``place``. plain: the question's own
    game, where the two are the same once that player is absent; None where they aren't.
    Cost: two masks, four without ``plain``.
    """
    n = swapped.game.n_players
    there = np.ones(n, bool)
    alone = np.arange(n) == place
    with_it = swapped(np.stack([there, alone]))
    without = (swapped if plain is None else plain)(np.stack([~alone, ~there]))
    return Swap(place, titles[0], *(with_it - without))


def joint(
    places: Sequence[int], titles: Sequence[str], swapped: Known, plain: Known | None
) -> Joint:
    """Measure one swap of several places; arguments as of :func:`swap`. Cost: two masks."""
    there = np.ones(swapped.game.n_players, bool)
    gone = there.copy()
    gone[list(places)] = False
    without = (swapped if plain is None else plain)(gone[None])[0]
    return Joint(tuple(places), tuple(titles), swapped(there[None])[0] - without)
