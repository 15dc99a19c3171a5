"""How far chance goes: null effects by size, p-values, false discoveries, rates over questions.

Only numpy; no model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from mechattr.errors import InputError

LEAST = 40
"""Null effects a band should hold. 39 are the fewest with which a two-sided 95 % interval is
finite; p can then go down to 1/41."""

_ROUNDING = 1e-9
"""(1 − .9)/2·(19 + 1) must count as 1, which it isn't in floating point."""

_CHUNK = 2**22
"""Weights of a bootstrap held at once."""

Label = TypeVar("Label", bound=Hashable)


# --- the null -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Band:
    """Null effects of statements of like size.

    low, high: the smallest and largest size (tokens of the statement) among them.
    effects: in rising order, nats.
    """

    low: float
    high: float
    effects: Float[np.ndarray, " null"]

    @property
    def n(self) -> int:
        return len(self.effects)


class Pool:
    """What an effect comes to by chance, from off-topic passages put in passages' places.

    effects: null effects, nats; any shape. sizes: of each, the tokens of the statement that it was
        measured on; the same shape, or one for all.
    least: how many nulls a band of sizes is to hold where there are that many. Neighbouring sizes
        are merged from the small end until they do; what is left at the large end joins the last
        band. Equal sizes are never parted.

    An effect is compared with the band that its statement's size falls in: half-way between two
    bands the nearer begins, and the first and last reach on without end. An empty pool knows
    nothing: every p is 1, every bound infinite. A p counts on an effect without influence and the
    null effects of its band being exchangeable; nulls that share a question are correlated, which
    keeps p right on the average over questions, not within each. No p is below 1/(K + 1) with K
    nulls in the band; for q ≤ α it must be possible that p ≤ α·(the share of tests that are found),
    so where one passage in six is used, q ≤ .05 takes 120 nulls a band at least: raise ``least``.

    Raises InputError where an effect isn't finite or the shapes differ.
    """

    def __init__(self, effects: ArrayLike, sizes: ArrayLike, least: int = LEAST):
        if isinstance(least, bool) or not isinstance(least, Integral) or least < 1:
            raise InputError(
                f"least is {least!r}; expected how many nulls a band holds, 1 or more."
            )
        values, spread = _pair(effects, "Null effects", sizes)
        if values.shape != np.shape(effects):
            raise InputError(
                f"Got {np.size(effects)} null effects and {np.size(sizes)} sizes; expected a pair."
            )
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise InputError(
                f"{wrong} of {values.size} null effects aren't finite; leave those swaps out."
            )
        self.least = int(least)
        self.bands: tuple[Band, ...] = tuple(_bands(values.ravel(), spread.ravel(), self.least))
        parts = [(one.high + other.low) / 2 for one, other in pairwise(self.bands)]
        self._starts: Float[np.ndarray, " part"] = np.array(parts, float)

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]], least: int = LEAST) -> Pool:
        """The pool of (effect, size) pairs, of which there may be none."""
        found = np.array(list(pairs), float).reshape(-1, 2)
        return cls(found[:, 0], found[:, 1], least)

    @property
    def n(self) -> int:
        """Null effects in all bands."""
        return sum(band.n for band in self.bands)

    def p(self, observed: ArrayLike, sizes: ArrayLike) -> Float[np.ndarray, ...]:
        """``(1 + #{null in the band ≥ observed}) / (K + 1)``, K nulls in the band: how often chance
        does as much. One-sided: large effects are what is looked for.

        observed, sizes: arrays of one shape, or that broadcast to it. Where ``observed`` is NaN, p
        is; with an empty pool it is 1.
        """
        values, spread = _pair(observed, "Observed effects", sizes)
        out = np.ones(values.shape)
        for i, here in self._in_bands(spread):
            out[here] = _exceedance(values[here], self.bands[i].effects)
        out[np.isnan(values)] = np.nan
        return out

    def bounds(
        self, sizes: ArrayLike, level: float = 0.95
    ) -> tuple[Float[np.ndarray, ...], Float[np.ndarray, ...]]:
        """Between what a further null effect of that size lies, with a chance of ``level`` or more.

        Of K nulls in the band, the order statistics of rank ``⌊(1−level)/2·(K+1)⌋`` and
        ``⌈(1+level)/2·(K+1)⌉``: a (split-)conformal interval, right for every K. Where a rank is
        outside 1..K the bound is ∓inf: too few nulls for the level (39 are the fewest for .95).

        If an observed effect is a true one plus such a null, the true one lies in
        ``[observed − high, observed − low]``.
        """
        if not isinstance(level, Real) or not 0 < level < 1:
            raise InputError(f"level is {level!r}; expected a number between 0 and 1, such as .95.")
        _, spread = _pair(0.0, "Levels", sizes)
        low, high = np.full(spread.shape, -np.inf), np.full(spread.shape, np.inf)
        for i, here in self._in_bands(spread):
            low[here], high[here] = _conformal(self.bands[i].effects, float(level))
        return low, high

    def _in_bands(self, sizes: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """Each band's number, and which sizes fall in it."""
        if not self.bands:
            return []
        band = np.searchsorted(self._starts, sizes, side="right")
        return [(int(i), band == i) for i in np.unique(band)]

    def describe(self) -> list[dict[str, float | None]]:
        """Of each band its sizes, how many nulls it holds, and the effect that p < .05 takes: the
        upper 95 % bound, one-sided (None: too few nulls)."""
        rows: list[dict[str, float | None]] = []
        for band in self.bands:
            q95 = _conformal(band.effects, 0.9)[1]
            bound = q95 if np.isfinite(q95) else None
            rows.append(dict(low=_plain(band.low), high=_plain(band.high), n=band.n, q95=bound))
        return rows

    def __repr__(self) -> str:
        spans = ", ".join(f"{b.low:g}–{b.high:g} tokens: {b.n}" for b in self.bands)
        return f"Pool({self.n} null effects{'; ' + spans if spans else ''})"


def _plain(size: float) -> float:
    return int(size) if float(size).is_integer() else float(size)


def _pair(values: ArrayLike, what: str, sizes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Effects and their sizes as float64 arrays of one shape."""
    try:
        one, other = np.asarray(values, float), np.asarray(sizes, float)
        one, other = np.broadcast_arrays(one, other)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} and sizes must be numbers of one shape: {error}.") from error
    if not np.isfinite(other).all():
        raise InputError("A size isn't finite; expected the number of tokens of a statement.")
    return one, other


def _bands(effects: np.ndarray, sizes: np.ndarray, least: int) -> Iterable[Band]:
    order = np.argsort(sizes, kind="stable")
    effects, sizes = effects[order], sizes[order]
    # Where a size ends: the only places that bands may part at.
    ends = np.flatnonzero(np.diff(sizes, append=np.inf)) + 1
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= least:
            cuts.append(int(end))
    if cuts[-1] < len(sizes):
        if len(cuts) > 1:
            cuts.pop()
        cuts.append(len(sizes))
    for start, stop in pairwise(cuts):
        part = np.sort(effects[start:stop])
        yield Band(float(sizes[start]), float(sizes[stop - 1]), part)


def _exceedance(observed: np.ndarray, rising: np.ndarray) -> np.ndarray:
    above = len(rising) - np.searchsorted(rising, observed, side="left")
    return (1 + above) / (len(rising) + 1)


def _conformal(rising: np.ndarray, level: float) -> tuple[float, float]:
    k = len(rising)
    rank = int(np.floor((1 - level) / 2 * (k + 1) + _ROUNDING))  # from below, and from above
    if rank < 1:
        return -np.inf, np.inf
    return float(rising[rank - 1]), float(rising[k - rank])


def p_own(
    observed: Float[np.ndarray, "*effect"] | float,
    nulls: Float[np.ndarray, "*effect swap"] | Sequence[float],
) -> Float[np.ndarray, "*effect"]:
    """``(1 + #{null ≥ observed}) / (K + 1)`` with each passage's own K swaps.

    observed: [*effect]. nulls: [*effect, swap]. With K swaps no p is below 1/(K + 1): 19 swaps are
    the fewest that reach .05. K = 0 gives p = 1. Where ``observed`` is NaN, p is.
    Raises InputError where a null is NaN or the shapes don't fit.
    """
    values, others = np.asarray(observed, float), np.asarray(nulls, float)
    if others.shape[:-1] != values.shape or others.ndim != values.ndim + 1:
        raise InputError(
            f"Nulls have shape {others.shape}, observed effects {values.shape}; expected one more "
            f"axis, of swaps, at the end."
        )
    if np.isnan(others).any():
        raise InputError(f"{int(np.isnan(others).sum())} null effects are NaN; leave them out.")
    p = (1 + (others >= values[..., None]).sum(-1)) / (others.shape[-1] + 1)
    return np.where(np.isnan(values), np.nan, p)


def benjamini_hochberg(p: ArrayLike) -> Float[np.ndarray, ...]:
    """q-values: ``q_(i) = min_{j ≥ i} p_(j)·m/j`` over the m p-values of a run, in rising order.

    Among the tests with q ≤ α the expected share of false ones is at most α, if the tests are
    independent or positively dependent. The shape stays; NaN stays NaN and isn't counted in m.
    Raises InputError for values outside [0, 1].
    """
    values = np.asarray(p, float)
    known = ~np.isnan(values)
    some = values[known]
    if ((some < 0) | (some > 1)).any():
        wrong = some[(some < 0) | (some > 1)][0]
        raise InputError(f"A p-value is {wrong:g}; expected numbers between 0 and 1.")
    q = np.full(values.shape, np.nan)
    order = np.argsort(some, kind="stable")
    scaled = some[order] * len(some) / np.arange(1, len(some) + 1)
    adjusted = np.empty(len(some))
    adjusted[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    q[known] = np.minimum(adjusted, 1)
    return q


# --- rates ----------------------------------------------------------------------------------------


class Rate(NamedTuple):
    """How often a label occurs, and its 95 % interval over questions."""

    label: Any
    count: int  # type: ignore[assignment]  # tuple has a method of that name
    total: int
    rate: float
    low: float
    high: float


def cluster_rates(
    labels: Sequence[Label],
    clusters: Sequence[Hashable],
    draws: int = 2000,
    seed: int = 0,
    *,
    every: Iterable[Label] = (),
) -> list[Rate]:
    """The rate of each label, with a 95 % percentile interval from a bootstrap of whole clusters.

    labels, clusters: of each item what it was judged to be, and the question that it is of. Items
        of one question aren't independent, so whole questions are drawn with replacement.
    every: labels to tell of even where no item has them.
    Returns the rates, most frequent first, equals in the order of their names.

    A bootstrap of a rate of 0 or 1 has no spread. There the interval is Clopper and Pearson's
    exact one with the number of clusters as n: ``[0, 1 − .025^(1/n)]``, or ``[.025^(1/n), 1]``: as
    if each question were one item, which can't be too narrow on account of correlation. With one
    cluster nothing is known of the spread between clusters: both ends are NaN.

    The same seed gives the same intervals, in whatever order the items come. Cost: draws × clusters
    random weights. Raises InputError for different lengths, or fewer than one draw.
    """
    labels, clusters = list(labels), list(clusters)
    if len(labels) != len(clusters):
        raise InputError(f"Got {len(labels)} labels and {len(clusters)} clusters; expected a pair.")
    if isinstance(draws, bool) or not isinstance(draws, Integral) or draws < 1:
        raise InputError(f"draws is {draws!r}; expected a whole number, 1 or more.")
    names = sorted(dict.fromkeys([*labels, *every]), key=str)
    counts = _counts(labels, clusters, names)
    if not len(counts):
        return [Rate(name, 0, 0, np.nan, np.nan, np.nan) for name in names]
    low, high = _percentiles(counts, int(draws), seed)
    total = len(labels)
    rates = [
        Rate(name, int(count), total, float(count / total), float(a), float(b))
        for name, count, a, b in zip(names, counts.sum(0), low, high, strict=True)
    ]
    return sorted(rates, key=lambda rate: -rate.count)


def _counts(
    labels: list[Any], clusters: list[Any], names: list[Any]
) -> Float[np.ndarray, "cluster label"]:
    row = {cluster: i for i, cluster in enumerate(sorted(dict.fromkeys(clusters), key=str))}
    column = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(row), len(names)))
    np.add.at(counts, ([row[c] for c in clusters], [column[name] for name in labels]), 1)
    return counts


def _percentiles(
    counts: Float[np.ndarray, "cluster label"], draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    n, n_labels = counts.shape
    if n == 1:
        return np.full(n_labels, np.nan), np.full(n_labels, np.nan)
    sizes = counts.sum(1)
    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, draws, step := max(1, _CHUNK // n)):
        weights = rng.multinomial(n, np.full(n, 1 / n), size=min(step, draws - start))
        found.append(weights @ counts / (weights @ sizes)[:, None])
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975], axis=0)
    sums, far = counts.sum(0), 0.025 ** (1 / n)
    low = np.where(sums == 0, 0.0, np.where(sums == sizes.sum(), far, low))
    high = np.where(sums == 0, 1 - far, np.where(sums == sizes.sum(), 1.0, high))
    return low, high
