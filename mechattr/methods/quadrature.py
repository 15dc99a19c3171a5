"""An adaptive integral of the mask gradient along ``t·1``, t from 0 to 1. Knows no game.

A Gauss–Kronrod rule sees only its nodes: a step between the first of them and 0 has no gradient at
any of them, and the rule would call its own error zero. Here every interval is also held against
the values at its two ends, since the gradients along it must sum to their difference. One value
more for each bisection, and nothing hides between the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechattr.errors import NotFiniteError
from mechattr.methods.masks import chunks, gauss_kronrod

NODES = 15
BISECTION = 2 * NODES + 1
"""Masks that one bisection takes: two intervals, and the value at their border."""

RESOLUTION = 2.0**-52
"""Intervals shorter than a float64 step at 1 aren't bisected: source + t·(clean − source) can't
tell their ends apart."""

STALL = 3
"""Rounds over which a spread-out error must fall."""


@dataclass(frozen=True)
class Path:
    """The integrand and its potential.

    gradient: nodes [node] -> [node, prompt, player].
    value: nodes [node] -> [node, prompt].
    start, end: [prompt] values at t = 0 and 1.
    intervals_per_call: how many intervals' gradients fit in memory at once.
    """

    gradient: Callable[[np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    start: Float[np.ndarray, " prompt"]
    end: Float[np.ndarray, " prompt"]
    intervals_per_call: int = 64


@dataclass(frozen=True)
class Integral:
    """values: [prompt, player]; error: [prompt], estimated, summed over players.

    reason: why the error isn't below what was allowed, None where it is. worst: the interval that
    holds most of the error.
    """

    values: Float[np.ndarray, "prompt player"]
    error: Float[np.ndarray, " prompt"]
    nodes: int
    intervals: int
    reason: str | None
    worst: tuple[float, float]


@dataclass(frozen=True)
class _Panel:
    """One interval: its ends, the values there, its integral and the error of each prompt."""

    a: float
    b: float
    at_a: np.ndarray  # [prompt]
    at_b: np.ndarray  # [prompt]
    integral: np.ndarray  # [prompt, player]
    error: np.ndarray  # [prompt]

    @property
    def divisible(self) -> bool:
        return self.b - self.a > RESOLUTION

    def share(self, allowed: np.ndarray) -> float:
        """The error over what is allowed, on the worst prompt."""
        return float((self.error / allowed).max())


@dataclass(frozen=True)
class _Sum:
    """The sum of many panels."""

    integral: np.ndarray
    error: np.ndarray
    count: int

    def plus(self, panel: _Panel) -> _Sum:
        return _Sum(self.integral + panel.integral, self.error + panel.error, self.count + 1)


def integrate(path: Path, allowed: Float[np.ndarray, " prompt"], max_nodes: int) -> Integral:
    """Bisect until the summed error of every prompt is at most ``allowed``, or say why not.

    Each round bisects the fewest intervals whose removal would bring the rest under half of what
    is allowed; all of them go through the integrand together.
    """
    # Intervals this exact are summed up and forgotten: an integral is [prompt, player] large.
    negligible = 0.25 / (1 + max_nodes // BISECTION)
    live = _measure(path, [(0.0, 1.0, path.start, path.end)])
    done = _Sum(np.zeros_like(live[0].integral), np.zeros_like(live[0].error), 0)
    nodes, history = NODES, []
    while True:
        done, live = _sort_out(done, live, allowed, negligible)
        errors = done.error + sum(panel.error for panel in live)
        history.append(float((errors / allowed).max()))
        if history[-1] <= 1:
            return _integral(done, live, nodes, None)
        reason = _stuck(live, allowed, history, max_nodes - nodes, max_nodes)
        if reason is not None:
            return _integral(done, live, nodes, reason)
        shares = np.array([panel.share(allowed) for panel in live])
        rest = shares.sum() - np.cumsum(shares)
        chosen = [panel for panel in live[: int(np.argmax(rest <= 0.5)) + 1] if panel.divisible]
        chosen = chosen[: (max_nodes - nodes) // BISECTION]
        kept = [panel for panel in live if all(panel is not c for c in chosen)]
        nodes += BISECTION * len(chosen)
        try:
            live = kept + _bisect(path, chosen)
        except NotFiniteError:
            share = shares[0] / shares.sum()
            return _integral(done, live, nodes, f"the gradient overflows; {_where(live[0], share)}")


def _sort_out(
    done: _Sum, panels: Sequence[_Panel], allowed: np.ndarray, negligible: float
) -> tuple[_Sum, list[_Panel]]:
    """Add the panels without error to ``done``; the others, the largest error first."""
    live = sorted(
        (panel for panel in panels if panel.share(allowed) > negligible),
        key=lambda panel: -panel.share(allowed),
    )
    for panel in panels:
        if panel.share(allowed) <= negligible:
            done = done.plus(panel)
    return done, live


def _measure(
    path: Path, parts: Sequence[tuple[float, float, np.ndarray, np.ndarray]]
) -> list[_Panel]:
    """Integrate over each ``(a, b, value at a, value at b)``."""
    nodes, kronrod, gauss = gauss_kronrod()
    panels = []
    for chunk in chunks(len(parts), 1, path.intervals_per_call):
        some = [parts[i] for i in chunk]
        points = np.concatenate([a + (b - a) * nodes for a, b, _, _ in some])
        gradients = path.gradient(points)
        for i, (a, b, at_a, at_b) in enumerate(some):
            rows = gradients[i * NODES : (i + 1) * NODES]
            integral = (b - a) * np.tensordot(kronrod, rows, axes=1)
            doubt = (b - a) * np.abs(np.tensordot(kronrod - gauss, rows, axes=1)).sum(1)
            gap = np.abs(integral.sum(1) - (at_b - at_a))
            panels.append(_Panel(a, b, at_a, at_b, integral, np.maximum(doubt, gap)))
    return panels


def _bisect(path: Path, panels: Sequence[_Panel]) -> list[_Panel]:
    middles = np.array([(panel.a + panel.b) / 2 for panel in panels])
    values = path.value(middles)
    parts = []
    for panel, middle, value in zip(panels, middles.tolist(), values, strict=True):
        parts.append((panel.a, middle, panel.at_a, value))
        parts.append((middle, panel.b, value, panel.at_b))
    return _measure(path, parts)


def _stuck(
    live: Sequence[_Panel],
    allowed: np.ndarray,
    history: Sequence[float],
    left: int,
    max_nodes: int,
) -> str | None:
    """Why there is no point in going on, or None. ``live``: the largest error first."""
    shares = [panel.share(allowed) for panel in live]
    where = _where(live[0], shares[0] / sum(shares))
    if not live[0].divisible:
        return f"the integrand jumps or has a pole, finer than machine resolution; {where}"
    spread = sum(shares[:3]) < 0.5 * sum(shares)
    if spread and len(history) > STALL and history[-1] > 0.7 * history[-1 - STALL]:
        return (
            f"the error no longer falls and is spread over {len(live)} intervals: it is rounding "
            f"noise (use a wider dtype or a larger tolerance), or the game's gradient isn't the "
            f"derivative of its values"
        )
    if left < BISECTION:
        return f"the budget of {max_nodes} nodes ran out; {where}"
    return None


def _where(panel: _Panel, share: float) -> str:
    a, b = f"{panel.a:.3g}", f"{panel.b:.3g}"
    text = f"{share:.0%} of the error lies " + (f"at t = {a}" if a == b else f"in t = {a} to {b}")
    if panel.a == 0 and panel.b < 0.05:
        text += (
            ": the integrand has a singularity near t = 0, as a zero embedding has under RMSNorm "
            "or LayerNorm; a source that isn't zero (mean, counterfactual, token) has none"
        )
    return text


def _integral(done: _Sum, live: Sequence[_Panel], nodes: int, reason: str | None) -> Integral:
    total = done
    for panel in live:
        total = total.plus(panel)
    worst = (live[0].a, live[0].b) if live else (0.0, 1.0)
    return Integral(total.integral, total.error, nodes, total.count, reason, worst)
