"""Seeded, balanced sampling without repeats, from spaces too large to list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechattr.errors import InputError


def generator(seed: int, stream: int = 0) -> np.random.Generator:
    """Independent streams of one seed, so that what one draws doesn't change the other."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; expected a whole number from 0 up.")
    return np.random.default_rng([int(seed), stream])


def balanced(
    rng: np.random.Generator, size: int, spaces: Sequence[int], what: str
) -> list[tuple[int, int]]:
    """``size`` distinct (group, index) with index < spaces[group], in random order.

    The groups' counts differ by at most one; which groups have one more is random.
    Raises InputError when a group has too few distinct members for its share.
    """
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"size is {size!r}; expected a whole number from 1 up.")
    largest = min(spaces) * len(spaces)
    if size > largest:
        raise InputError(
            f"size is {size}, but with this tokenizer there are only {largest} distinct {what} in "
            f"balanced proportion. Ask for {largest} at most."
        )
    share, extra = divmod(int(size), len(spaces))
    counts = np.full(len(spaces), share)
    counts[rng.permutation(len(spaces))[:extra]] += 1
    drawn = [
        (group, int(index))
        for group, (space, count) in enumerate(zip(spaces, counts, strict=True))
        for index in rng.choice(space, size=count, replace=False)
    ]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def digits(index: int, bases: Sequence[int]) -> list[int]:
    """A number's digits in mixed bases, the last fastest: one index chooses from several pools."""
    out = []
    for base in reversed(bases):
        index, digit = divmod(index, base)
        out.append(digit)
    return out[::-1]
