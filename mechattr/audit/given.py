"""What a passage does while what carries the statement is there: its effect given the support.

A passage's necessity is one difference between two prompts, and any change of a prompt moves a log
probability. Averaged over contexts, what is its own remains. Contexts without the passages that
carry the statement say nothing of that: there, whatever resembles them is worth something.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from mechattr.methods import designs

LEAST_ROWS, ROWS = 8, 16
"""Masks a statement that are spent on such effects, and all that are, unless that is fewer."""


def rows_given(
    n_players: int, supports: Sequence[Collection[int]], rng: np.random.Generator
) -> Bool[np.ndarray, "mask player"]:
    """Masks to ask for, so that what the others do is known while a statement's support is there.

    supports: of each statement in doubt, the players that carry it. The others come and go by an
    orthogonal design.
    """
    found = [np.zeros((0, n_players), bool)]
    each = max(LEAST_ROWS, ROWS // max(1, len(supports)))
    for support in supports:
        free = [j for j in range(n_players) if j not in support]
        if free:
            drawn = designs.draw("orthogonal", rng, len(free), each, 0.5, ends=False).masks
            rows = np.ones((len(drawn), n_players), bool)
            rows[:, free] = drawn
            found.append(rows)
    return np.concatenate(found)


def upper_given(
    masks: Bool[np.ndarray, "mask player"],
    values: Float[np.ndarray, " mask"],
    support: Collection[int],
    groups: Sequence[Collection[int]],
    level: float,
) -> Float[np.ndarray, " player"]:
    """Upper bounds, at ``level`` one-sided, of each player's effect given the support, nats.

    The slopes of a least-squares plane through the values of the masks that hold all of
    ``support`` and a member of each of ``groups``, and t-quantiles of their standard errors
    (residuals alike). With two or three passages there are too few such masks for that (fewer than
    two more than unknowns): where they are all there are, the largest effect in any of them.
    +∞ for the players of support and groups, and where nothing is known of a player.
    """
    upper = np.full(masks.shape[1], np.inf)
    held = masks[:, sorted(support)].all(1)
    for group in groups:
        held &= masks[:, sorted(group)].any(1)
    taken = set(support).union(*groups)
    seen = masks[held].astype(float)
    free = [j for j in range(masks.shape[1]) if j not in taken and 0 < seen[:, j].sum() < len(seen)]
    spare = len(seen) - len(free) - 1
    if not free:
        return upper
    if spare < 2:
        upper[free] = _largest(masks[held], values[held], free)
        return upper
    plane = np.column_stack([np.ones(len(seen)), seen[:, free]])
    inverse = np.linalg.pinv(plane.T @ plane)
    slopes = inverse @ plane.T @ values[held]
    residual = values[held] - plane @ slopes
    errors = np.sqrt(np.diag(inverse) * (residual @ residual) / spare)
    upper[free] = (slopes + stats.t.ppf(level, spare) * errors)[1:]
    return upper


def _largest(
    masks: Bool[np.ndarray, "mask player"], values: Float[np.ndarray, " mask"], free: list[int]
) -> Float[np.ndarray, " free"]:
    """The largest effect of each free player in any context, where all subsets are known."""
    known = {row.tobytes(): value for row, value in zip(masks[:, free], values, strict=True)}
    if len(known) < 2 ** len(free):
        return np.full(len(free), np.inf)
    every = np.array([np.frombuffer(key, bool) for key in known])
    largest = []
    for k in range(len(free)):
        there = every[every[:, k]]
        without = there & (np.arange(len(free)) != k)
        effects = [
            known[a.tobytes()] - known[b.tobytes()] for a, b in zip(there, without, strict=True)
        ]
        largest.append(max(effects))
    return np.array(largest)
