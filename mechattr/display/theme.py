"""Light and dark: the colours of scores on either paper, and the style sheet of the views."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import numpy as np

from mechattr.display import scale

DARK = ("#c3dcff", "#5f95e0", "#2c4c85", "#1f232a", "#82362b", "#dc674f", "#ffcdb5")
"""The anchors of :mod:`scale` for dark paper: zero is near the paper, strong scores are bright."""

MISSING_DARK = "#434851"


def colours(value: float, end: float) -> tuple[str, str]:
    """A score's colour on light and on dark paper, as ``#rrggbb``."""
    return scale.colour(value, end), _hexadecimal(_dark(value, end))


def background(value: float, end: float) -> str:
    """The style of a cell with a score and nothing written in it."""
    light, dark = colours(value, end)
    return f"background:{light};background:light-dark({light},{dark})"


def cell_style(value: float, end: float) -> str:
    """The style of a cell with a score: its background, and an ink that can be read on it.

    A browser that doesn't know ``light-dark()`` (before 2024) keeps the light colours.
    """
    ink, dark_ink = _ink(scale.rgb(value, end)), _ink(_dark(value, end))
    return f"{background(value, end)};color:{ink};color:light-dark({ink},{dark_ink})"


def gradient(signed: bool) -> str:
    """The style of a colour key, from its lowest to its highest end."""
    middle = 0 if signed else len(DARK) // 2
    stops = [
        f"light-dark({a},{b})" for a, b in zip(scale.anchors(signed), DARK[middle:], strict=True)
    ]
    plain = ",".join(scale.anchors(signed))
    return (
        f"background:linear-gradient(90deg,{plain});"
        f"background:linear-gradient(90deg,{','.join(stops)})"
    )


def pixels(values: np.ndarray, end: float) -> np.ndarray:
    """The light colours of many scores at once, in 512 steps: [..., 3] bytes."""
    steps = np.linspace(-1, 1, 513)
    table = np.array([scale.rgb(float(v), 1.0) for v in (*steps, np.nan)], dtype=np.uint8)
    place = np.clip(np.nan_to_num(values) / end, -1, 1) * 256 + 256
    return table[np.where(np.isfinite(values), np.rint(place), 513).astype(int)]


@cache
def style() -> str:
    """The style sheet of the views; every rule is under ``.ma-view``."""
    return sheet("view")


@cache
def sheet(name: str) -> str:
    """A style sheet of the templates."""
    return files("mechattr.display").joinpath(f"templates/{name}.css").read_text("utf-8")


@cache
def script(*names: str) -> str:
    """Templates joined into one script that leaves no name behind on the page."""
    folder = files("mechattr.display").joinpath("templates")
    parts = [folder.joinpath(f"{name}.js").read_text("utf-8") for name in names]
    return "(function () {\n'use strict';\n" + "\n".join(parts) + "})();"


def palettes() -> dict[str, list[str]]:
    """The anchors and the colour of a missing cell of either paper, for a script."""
    return {
        "light": [*scale.ANCHORS, scale.MISSING],
        "dark": [*DARK, MISSING_DARK],
    }


def _dark(value: float, end: float) -> tuple[int, int, int]:
    if not np.isfinite(value):
        return _rgb(MISSING_DARK)
    place = (np.clip(value / end, -1, 1) + 1) / 2 * (len(DARK) - 1)
    low = min(int(place), len(DARK) - 2)
    share = place - low
    below, above = _rgb(DARK[low]), _rgb(DARK[low + 1])
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(below, above, strict=True))
    return red, green, blue


def _ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever stands out more (at least 4.5 : 1, as WCAG asks of text)."""
    shares = [c / 255 for c in colour]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return "#ffffff" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 else "#000000"


def _rgb(hexadecimal: str) -> tuple[int, int, int]:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue


def _hexadecimal(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
