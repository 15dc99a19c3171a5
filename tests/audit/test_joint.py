"""Redundant sets on games small enough to look at all of their sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
import pytest

from mechattr.audit.joint import minimal_groups

Value: TypeAlias = Callable[[frozenset[int]], float]
TAU = 0.7


def hidden_of(value: Value, n: int) -> Callable[[list[frozenset[int]]], np.ndarray]:
    """What each set is worth beyond its members' own necessities."""
    every = frozenset(range(n))
    alone = [max(0.0, value(every) - value(every - {j})) for j in range(n)]

    def hidden(sets: list[frozenset[int]]) -> np.ndarray:
        return np.array(
            [value(every) - value(every - s) - sum(alone[j] for j in s) for s in sets], float
        )

    return hidden


def groups(value: Value, n: int, order: Iterable[int] | None = None) -> set[frozenset[int]]:
    found = minimal_groups(hidden_of(value, n), range(n) if order is None else order, TAU)
    assert len(set(found)) == len(found)
    return set(found)


def sets(*members: str) -> set[frozenset[int]]:
    return {frozenset(map(int, one)) for one in members}


def either(*members: int) -> Value:
    """5 nats where one of them is there."""
    return lambda s: 5.0 * bool(s & frozenset(members))


def both(*members: int) -> Value:
    return lambda s: 5.0 * s.issuperset(members)


def total(*values: Value) -> Value:
    return lambda s: sum(value(s) for value in values)


@pytest.mark.parametrize(
    ("value", "n", "expected"),
    [
        pytest.param(lambda s: 0.0, 4, set(), id="nothing"),
        pytest.param(lambda s: 3.0 * len(s), 4, set(), id="each by itself"),
        pytest.param(both(0, 2), 4, set(), id="two that are both needed hide nothing"),
        pytest.param(either(1), 3, set(), id="one source"),
        pytest.param(either(1, 3), 4, sets("13"), id="two copies"),
        pytest.param(either(0, 1, 3), 4, sets("013"), id="three copies"),
        pytest.param(total(either(0, 3), either(1, 2)), 5, sets("03", "12"), id="two pairs"),
        pytest.param(total(either(0, 3), both(1)), 4, sets("03"), id="a pair and a source"),
        pytest.param(lambda s: 0.6 * bool(s & {0, 1}), 3, set(), id="a pair below the threshold"),
    ],
)
def test_gates(value, n, expected):
    assert groups(value, n) == expected
    assert groups(value, n, reversed(range(n))) == expected


def test_a_source_in_two_copies_of_which_one_needs_a_third():
    """0, or 1 and 2 together."""
    found = groups(lambda s: 5.0 * (0 in s or s.issuperset({1, 2})), 3)
    assert found in (sets("01"), sets("02"))


def test_only_given_players_are_in_sets():
    assert groups(either(0, 1, 2), 3, [0, 1]) == set()
    assert groups(total(either(0, 1), either(2, 3)), 4, [3, 2]) == sets("23")
    assert minimal_groups(hidden_of(either(0), 1), [], TAU) == []


def test_two_copies_of_what_is_no_use_without_a_third():
    """The third, which carries it all by itself, isn't among the players: with it there, what the
    copies hide would be counted as its own."""
    value: Value = lambda s: 5.0 * (0 in s and bool(s & {1, 2}))  # noqa: E731
    assert groups(value, 4, [1, 2, 3]) == sets("12")


def random_game(seed: int, monotone: bool) -> tuple[Value, int]:
    """Sums of random gates; where it isn't monotone some passages disturb others."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    gates = []
    for _ in range(6):
        members = frozenset(map(int, rng.permutation(n)[: rng.integers(1, n + 1)]))
        sign = -1 if not monotone and rng.random() < 0.3 else 1
        gates.append((members, sign * rng.exponential(), rng.random() < 0.6))

    def value(s: frozenset[int]) -> float:
        return sum(
            worth * (bool(s & members) if either else s >= members)
            for members, worth, either in gates
        )

    return value, n


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_random_games(seed, monotone):
    """Each set hides enough, none does with a member less; what is left hides no more."""
    value, n = random_game(seed, monotone)
    hidden = hidden_of(value, n)
    order = [int(j) for j in np.random.default_rng(seed).permutation(n)]
    found = minimal_groups(hidden, order, TAU)
    for group in found:
        assert hidden([group])[0] > TAU
        assert all(hidden([group - {j}])[0] <= TAU for j in group)
    assert sum(map(len, found)) == len(frozenset().union(*found)), "they share no member"
    rest = frozenset(order).difference(*found)
    assert not rest or hidden([rest])[0] <= TAU


def test_random_games_have_sets_of_many_sizes():
    """So that the test above has something to look at."""
    games = [random_game(seed, monotone) for seed in range(40) for monotone in (True, False)]
    sizes = [len(group) for value, n in games for group in groups(value, n)]
    assert {2, 3, 4} <= set(sizes), np.bincount(sizes)


def test_a_set_that_hides_nothing_costs_one_look():
    asked = []

    def hidden(some: list[frozenset[int]]) -> np.ndarray:
        asked.extend(some)
        return np.zeros(len(some))

    minimal_groups(hidden, range(6), TAU)
    assert asked == [frozenset(range(6))]
