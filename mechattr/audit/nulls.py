"""What a passage does that has nothing to do with the question: an off-topic one in its place.

An effect is held against this null. It isn't zero: any text between the instruction and the
question moves a statement's log probability a little, the more, the longer the statement is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechattr.audit.asking import Known, Rows


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


def pairs(n_players: int, swaps: int, rng: np.random.Generator) -> list[list[int]]:
    """``swaps`` pairs of places that two off-topic passages take together; none of one player."""
    if n_players < 2:
        return []
    return [sorted(rng.permutation(n_players)[:2].tolist()) for _ in range(swaps)]


def masks_of(places: Sequence[int], n_players: int) -> Rows:
    """What is asked of a game with off-topic texts in some places: all players there, and (of a
    single place) that one alone."""
    every = np.ones((1, n_players), bool)
    if len(places) > 1:
        return every
    return np.concatenate([every, np.arange(n_players)[None] == places[0]])


def without(places: Sequence[int], n_players: int) -> Rows:
    """What that is held against, and is the same whatever stands in the places: the others, and (of
    a single place) none."""
    others = np.ones((1, n_players), bool)
    others[0, list(places)] = False
    if len(places) > 1:
        return others
    return np.concatenate([others, np.zeros((1, n_players), bool)])


@dataclass(frozen=True, eq=False)
class Placed:
    """Off-topic texts in some places.

    swapped: the game with them. plain: the question's own game, where the two are the same once
    those players are absent; else ``swapped`` again.
    """

    places: list[int]
    titles: list[str]
    swapped: Known
    plain: Known

    @property
    def asked(self) -> list[tuple[Known, Rows]]:
        """Two masks a single swap and one a pair; as many again where ``plain`` doesn't know."""
        n = self.swapped.game.n_players
        return [
            (self.swapped, masks_of(self.places, n)),
            (self.plain, without(self.places, n)),
        ]

    def found(self) -> Swap | Joint:
        (there, masks), (absent, others) = self.asked
        effects = there(masks) - absent(others)
        if len(self.places) > 1:
            return Joint(tuple(self.places), tuple(self.titles), effects[0])
        return Swap(self.places[0], self.titles[0], effects[0], effects[1])
