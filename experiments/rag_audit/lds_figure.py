"""The curve of held-out LDS by evaluations, as an SVG by itself."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 76, 48
INK, PALE = "#1a1a1a", "#d9d9d9"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
COLOURS = ("#c0453a", "#2c5fb3", "#2a8a5b", "#8a5bb3")
"""Of the lines, in the order they are given."""


def drawn(curves: dict[str, pd.DataFrame], title: str, level: tuple[str, int]) -> str:
    """curves: of each line its name and [budget] ``mean``, ``low``, ``high``. level: the line and
    budget at whose height a dashed line says what is to be reached."""
    budgets = sorted({int(b) for curve in curves.values() for b in curve.index})
    lowest = min(float(curve["low"].min()) for curve in curves.values())
    frame = _Frame(budgets, max(0.0, np.floor(lowest * 10) / 10))
    parts = [_axes(frame, title)]
    name, budget = level
    if name in curves and budget in curves[name].index:
        y = frame.y(curves[name].loc[budget, "mean"])
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{COLOURS[0]}" fill="none" '
            f'stroke-dasharray="5 4" stroke-width="1"/>'
        )
    for colour, (label, curve), k in zip(COLOURS, curves.items(), range(len(curves)), strict=False):
        parts.append(_line(frame, curve, colour, label) + _key(colour, label, k))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONT}" font-size="12" fill="{INK}">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


class _Frame:
    """Where a budget (in doublings) and an LDS lie on the page."""

    def __init__(self, budgets: list[int], bottom: float):
        self.budgets, self.bottom = budgets, bottom
        self._first, self._last = np.log2(budgets[0]), np.log2(max(budgets[-1], budgets[0] + 1))

    def x(self, budget: float) -> float:
        share = (np.log2(budget) - self._first) / (self._last - self._first)
        return float(LEFT + 14 + share * (WIDTH - LEFT - RIGHT - 28))

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (1 - self.bottom)
        return float(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM))


def _axes(frame: _Frame, title: str) -> str:
    parts = [f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>']
    for value in np.arange(frame.bottom, 1.001, 0.1):
        y = frame.y(value)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{PALE}" fill="none"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        )
    parts += [
        f'<text x="{frame.x(b):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{b}</text>'
        for b in frame.budgets
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">evaluations of v</text>'
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">held-out LDS</text>'
    )
    return "".join(parts)


def _line(frame: _Frame, curve: pd.DataFrame, colour: str, label: str) -> str:
    points = [(frame.x(b), frame.y(row["mean"])) for b, row in curve.iterrows()]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for (x, y), (budget, row) in zip(points, curve.iterrows(), strict=True):
        low, high = frame.y(max(row["low"], frame.bottom)), frame.y(min(row["high"], 1.0))
        said = f"{label}, {budget}: {row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        parts.append(
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity=".45"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">'
            f"<title>{escape(said)}</title></circle>"
        )
    return "".join(parts)


def _key(colour: str, label: str, place: int) -> str:
    x, y = LEFT + (place % 2) * 340, 40 + 18 * (place // 2)
    return (
        f'<path d="M{x} {y - 4}h20" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x + 26}" y="{y}">{escape(label)}</text>'
    )
