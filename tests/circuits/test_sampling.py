"""Balanced sampling without repeats."""

from __future__ import annotations

from collections import Counter

import pytest

from circuits.tasks.sampling import balanced, digits, generator
from mechattr.errors import InputError


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_balanced(size):
    drawn = balanced(generator(0), size, [4, 1000, 10**9], "things")
    assert len(drawn) == len(set(drawn)) == size
    counts = Counter(group for group, _ in drawn)
    assert max(counts.values()) - min(counts.get(g, 0) for g in range(3)) <= 1
    assert all(0 <= index < (4, 1000, 10**9)[group] for group, index in drawn)


def test_which_group_has_more_is_random():
    assert {balanced(generator(seed), 1, [9, 9, 9], "things")[0][0] for seed in range(30)} == {
        0,
        1,
        2,
    }


def test_too_many():
    with pytest.raises(InputError, match=r"size is 13.*only 12 distinct things"):
        balanced(generator(0), 13, [4, 9, 9], "things")


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4"])
def test_bad_size(size):
    with pytest.raises(InputError, match="expected a whole number"):
        balanced(generator(0), size, [9], "things")


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_bad_seed(seed):
    with pytest.raises(InputError, match="seed is"):
        generator(seed)


def test_streams_differ():
    assert generator(5).integers(1 << 30) != generator(5, stream=1).integers(1 << 30)


def test_digits_count_through_all_combinations():
    assert [digits(i, [2, 3]) for i in range(6)] == [[a, b] for a in range(2) for b in range(3)]
