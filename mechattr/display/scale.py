"""One colour scale for everything: symmetric about zero, warm raises the target, cool lowers it."""

from __future__ import annotations

from typing import Any

import numpy as np

ANCHORS = ("#1d3f8f", "#4f83c9", "#a9c6ea", "#fafafa", "#f3b9a5", "#d8614b", "#96142b")
"""From most negative to most positive, evenly spaced; the middle one is zero."""

MISSING = "#d9d9d9"
"""A cell without a player: darker than zero, and no hue of the scale."""

SIGN = "red raises it, blue lowers it"
MAGNITUDE = "size only, no sign"


def anchors(signed: bool) -> tuple[str, ...]:
    """The colours that scores can have: magnitudes only those from zero upwards."""
    return ANCHORS if signed else ANCHORS[len(ANCHORS) // 2 :]


def reading(signed: bool) -> str:
    """What the colours say."""
    return SIGN if signed else MAGNITUDE


def limit(values: Any) -> float:
    """The scale's end: the largest finite magnitude, or 1 where there is none (never 0 or NaN)."""
    array = np.abs(np.asarray(values, dtype=float))
    array = array[np.isfinite(array)]
    top = float(array.max()) if array.size else 0.0
    return top if top > 0 else 1.0


def plotly_scale(signed: bool = True) -> list[list[Any]]:
    """The anchors in plotly's form, on [0, 1]; use with ``zmin=-limit`` (magnitudes: 0) and
    ``zmax=limit``."""
    shown = anchors(signed)
    step = 1 / (len(shown) - 1)
    return [[round(i * step, 6), colour] for i, colour in enumerate(shown)]


def rgb(value: float, end: float) -> tuple[int, int, int]:
    """The colour of a score as red, green, blue in 0..255."""
    if not np.isfinite(value):
        return _parse(MISSING)
    place = (np.clip(value / end, -1, 1) + 1) / 2 * (len(ANCHORS) - 1)
    low = min(int(place), len(ANCHORS) - 2)
    share = place - low
    below, above = _parse(ANCHORS[low]), _parse(ANCHORS[low + 1])
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(below, above, strict=True))
    return red, green, blue


def colour(value: float, end: float) -> str:
    """The colour of a score as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb(value, end))


def ink(value: float, end: float) -> str:
    """Black or white, whichever can be read on :func:`colour`."""
    red, green, blue = rgb(value, end)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else "#1a1a1a"


def _parse(hexadecimal: str) -> tuple[int, int, int]:
    return tuple(int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]
