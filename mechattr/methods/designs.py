"""Designs of masks for a regression: which subsets say most about each player. No game in sight.

A row is a subset; a *unit* is what was drawn together (a subset and its complement), so that units,
not rows, are what standard errors are over and what a fold leaves out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Int

from mechattr.errors import InputError
from mechattr.methods.masks import subsets

MAX_ORDER = 8192
"""The largest Hadamard matrix that is made: 64 MiB."""

EXHAUSTIVE = 16
"""Players of which all subsets are ever listed."""

Rows = Bool[np.ndarray, "row player"]


@dataclass(frozen=True)
class Design:
    """masks: [row, player], rows may repeat. units: [row] which rows were drawn together.

    given: so many of the first rows weren't drawn but were known anyway, as N and ∅ are; a fit uses
        them, and isn't judged by them.
    complete: these are all ``2^n`` subsets, once each; nothing is left to chance.
    """

    masks: Rows
    units: Int[np.ndarray, " row"]
    given: int = 0
    complete: bool = False

    def with_known(self, masks: Rows) -> Design:
        """The design with more masks whose values are known, such as leave-one-outs, in front."""
        units = np.concatenate([np.arange(len(masks)), self.units + len(masks)])
        both = np.concatenate([np.asarray(masks, bool), self.masks])
        return Design(both, units, self.given + len(masks), self.complete and not len(masks))


def draw(
    name: str, rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool
) -> Design:
    """``rows`` masks of the design of that name; with ``ends``, N and ∅ are the first two.

    Where all ``2^n`` subsets fit, a design other than i.i.d. draws is all of them.
    """
    if lists_all(name, n_players, rows):
        found = subsets(n_players).numpy()
        return Design(found, np.arange(len(found)), complete=True)
    ends = ends and rows >= 2
    masks, units = DESIGNS[name](rng, n_players, rows - 2 * ends, keep, ends)
    if ends:
        both = np.broadcast_to(np.array([[True], [False]]), (2, n_players))
        masks = np.concatenate([both, masks])
        units = np.concatenate([np.zeros(2, int), units + 1])
    return Design(masks, units, 2 * ends)


def lists_all(name: str, n_players: int, rows: int) -> bool:
    """Whether so many rows of that design are all subsets."""
    return name != "bernoulli" and n_players <= EXHAUSTIVE and 2**n_players <= rows


Draw = tuple[Rows, Int[np.ndarray, " row"]]


def bernoulli(rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool) -> Draw:
    """Each player present with probability ``keep``, independently: LIME, ContextCite, COAR."""
    return rng.random((rows, n_players)) < keep, np.arange(rows)


def antithetic(
    rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool
) -> Draw:
    """Random subsets, each with its complement: interactions of two cancel in their difference."""
    return _pairs(rng.random((-(-rows // 2), n_players)) < 0.5, rows)


def balanced(rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool) -> Draw:
    """Subsets of half the players, each with its complement."""
    pairs = -(-rows // 2)
    sizes = n_players // 2 + (n_players % 2) * rng.integers(2, size=pairs)
    ranks = rng.random((pairs, n_players)).argsort(1).argsort(1)
    return _pairs(ranks < sizes[:, None], rows)


def orthogonal(
    rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool
) -> Draw:
    """Rows of Hadamard matrices whose columns are shuffled and turned round at random, one after
    another: any two players are together as often as apart (Plackett & Burman, 1946)."""
    order = hadamard_order(max(n_players + 1, min(rows, 64)))
    blocks: list[np.ndarray] = [np.zeros((0, n_players), bool)]
    while sum(map(len, blocks)) < rows:
        blocks.append(_block(rng, order, n_players, turn=True, constant=False))
    return np.concatenate(blocks)[:rows], np.arange(rows)


def hadamard(rng: np.random.Generator, n_players: int, rows: int, keep: float, ends: bool) -> Draw:
    """Hadamard rows, each with its complement: every player's effect is estimated free of the
    others' and of all interactions of two (a fold-over design, Box & Hunter, 1961).

    That needs two rows a player; with fewer, the rows come without complements, as
    :func:`orthogonal`. N and ∅ are the first pair of such a design.
    """
    if rows + 2 * ends < 2 * n_players:
        return orthogonal(rng, n_players, rows, keep, ends)
    order, pairs = hadamard_order(n_players), -(-rows // 2)
    blocks = [np.zeros((0, n_players), bool)]
    if ends:  # the constant row of the first matrix, and its complement, are N and ∅
        blocks.append(_block(rng, order, n_players, turn=False, constant=True)[1:])
    while sum(map(len, blocks)) < pairs:
        blocks.append(_block(rng, order, n_players, turn=True, constant=True))
    return _pairs(np.concatenate(blocks)[:pairs], rows)


DESIGNS: Mapping[str, Callable[[np.random.Generator, int, int, float, bool], Draw]] = (
    MappingProxyType(
        {
            "bernoulli": bernoulli,
            "antithetic": antithetic,
            "balanced": balanced,
            "orthogonal": orthogonal,
            "hadamard": hadamard,
        }
    )
)


def _pairs(half: Rows, rows: int) -> Draw:
    """Each row followed by its complement, cut to so many rows."""
    masks = np.stack([half, ~half], axis=1).reshape(-1, half.shape[1])[:rows]
    return masks, np.arange(rows) // 2


def _block(
    rng: np.random.Generator, order: int, n_players: int, turn: bool, constant: bool
) -> Rows:
    """All rows of a Hadamard matrix on random columns, shuffled; without ``turn``, the constant
    row stays first. constant: whether the constant column may be one of them."""
    matrix = hadamard_matrix(order)
    columns = rng.permutation(np.arange(0 if constant else 1, order))[:n_players]
    chosen = matrix[:, columns] > 0
    if not turn:
        return np.concatenate([chosen[:1], chosen[1 + rng.permutation(order - 1)]])
    return chosen[rng.permutation(order)] ^ (rng.random(n_players) < 0.5)


# --- Hadamard matrices --------------------------------------------------------------------------


def hadamard_order(least: int) -> int:
    """The smallest order, at least ``least``, that :func:`hadamard_matrix` can make."""
    order = max(1, least)
    while _recipe(order) is None:
        order += 1
    if order > MAX_ORDER:
        raise InputError(
            f"{least} players would need a Hadamard matrix of order {order}; at most {MAX_ORDER} "
            f"is made. Use design='antithetic', or group the players."
        )
    return order


@functools.lru_cache(maxsize=4)
def hadamard_matrix(order: int) -> Int[np.ndarray, "order order"]:
    """±1, rows and columns orthogonal, the first of both all ones. Sylvester's doubling, and
    Paley's two constructions from the squares modulo a prime (1933)."""
    recipe = _recipe(order)
    if recipe is None:
        raise InputError(f"There is no recipe for a Hadamard matrix of order {order}.")
    if recipe == "one":
        return np.ones((1, 1), np.int8)
    if recipe == "double":
        half = hadamard_matrix(order // 2)
        return np.block([[half, half], [half, -half]])
    if recipe == "paley":
        matrix = _conference(order - 1, skew=True) + np.eye(order, dtype=np.int8)
    else:
        core = _conference(order // 2 - 1, skew=False)
        ones = np.eye(order // 2, dtype=np.int8)
        matrix = np.block([[core + ones, core - ones], [core - ones, -core - ones]])
    matrix = matrix * matrix[:, :1]
    return matrix * matrix[:1]


def _recipe(order: int) -> str | None:
    if order == 1:
        return "one"
    if order % 4 == 0 and _prime(order - 1):
        return "paley"
    if order % 4 == 0 and order // 2 % 4 == 2 and _prime(order // 2 - 1):
        return "paley, doubled"
    return "double" if order % 2 == 0 and _recipe(order // 2) else None


def _prime(number: int) -> bool:
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))


def _conference(q: int, skew: bool) -> Int[np.ndarray, "order order"]:
    """0 on the diagonal, ±1 elsewhere, ``C Cᵀ = q I``, of order q + 1, for a prime q."""
    character = np.full(q, -1, np.int8)
    character[(np.arange(1, q) ** 2) % q] = 1
    character[0] = 0
    matrix = np.zeros((q + 1, q + 1), np.int8)
    matrix[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)) % q]
    matrix[0, 1:] = 1
    matrix[1:, 0] = -1 if skew else 1
    return matrix
