"""Which passages carry a statement only together: the sets that ablation one by one can't see.

Two copies of a source hide each other from leave-one-out: without either, the other still carries
the statement. What a set is worth beyond the sum of its members' necessities is *hidden*; a set is
reported when that is more than a threshold, and no longer so with any member put back (it is
minimal). Two passages that are both needed hide nothing: either's removal shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Hidden: TypeAlias = Callable[[list[frozenset[int]]], Float[np.ndarray, " set"]]
"""``v(N) − v(N∖T) − Σ_{j∈T} max(0, v(N) − v(N∖j))`` of each set T, in nats, of one statement."""


def minimal_groups(
    hidden: Hidden, players: Iterable[int], threshold: float
) -> list[frozenset[int]]:
    """Disjoint minimal sets that hide more than ``threshold``.

    players: those that may be in one, the likeliest first.

    The shortest prefix of the order that hides enough is made minimal by putting its members back
    one at a time; then the search goes on in what is left, until the rest as a whole hides no more
    than the threshold. Other minimal sets may share members with those found.
    Cost: at most n masks a prefix search and n a set; one where nothing is hidden.
    """
    rest = list(players)
    found: list[frozenset[int]] = []
    while rest:
        (together,) = hidden([frozenset(rest)])
        if together <= threshold or len(rest) == 1:
            break
        prefixes = [frozenset(rest[: k + 1]) for k in range(1, len(rest))]
        enough = hidden(prefixes) > threshold
        enough[-1] = True  # the whole rest, seen above
        group = _shrunk(hidden, rest[: int(np.argmax(enough)) + 2], threshold)
        found.append(group)
        rest = [player for player in rest if player not in group]
    return found


def _shrunk(hidden: Hidden, members: list[int], threshold: float) -> frozenset[int]:
    """A minimal part of a set that hides enough.

    What a set hides needn't grow with the set, so that a member may be one to put back only once
    another is: they are gone through until none can be. No single one hides anything.
    """
    group, before = frozenset(members), frozenset[int]()
    while group != before:
        before = group
        for player in reversed(members):
            smaller = group - {player}
            if player in group and len(smaller) > 1 and hidden([smaller])[0] > threshold:
                group = smaller
    return group
