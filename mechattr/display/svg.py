"""Small static drawings: a heat map and bars as inline SVG, with titles to hover. No script."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from html import escape

import numpy as np

from mechattr.display import scale
from mechattr.display.views import Bars, Heat, Strip

HOVERED = 2_500
"""Cells up to which a heat map is made of rectangles with titles; a larger one is a picture."""

LETTER = 5.6
"""Width of a letter of the labels, in pixels, about."""


@dataclass(frozen=True)
class _Frame:
    """Where the cells lie: room for labels at the left and below, then cells of one size."""

    left: float
    cell: tuple[float, float]
    size: tuple[int, int]
    below: float

    @property
    def grid(self) -> tuple[float, float]:
        return self.size[0] * self.cell[0], self.size[1] * self.cell[1]

    @property
    def whole(self) -> tuple[float, float]:
        return self.left + self.grid[0] + 8, 6 + self.grid[1] + self.below


def heat(shown: Heat, end: float) -> str:
    """A heat map; the first row (layer 0) is at the bottom, as in the plotly figures."""
    rows, columns = shown.scores.values.shape
    longest = max(len(label) for label in shown.columns.labels)
    frame = _Frame(
        left=LETTER * max(len(label) for label in shown.rows.labels) + 24,
        cell=(_side(columns, 18, 720), _side(rows, 13, 420)),
        size=(columns, rows),
        below=(LETTER * longest * 0.85 if longest > 2 else 8) + 26,
    )
    cells = _picture(shown, end, frame) if rows * columns > HOVERED else _cells(shown, end, frame)
    return _svg(
        frame,
        cells + _row_labels(shown, frame) + _column_labels(shown.columns.labels, frame)
        + _axis_names(shown.rows.name, shown.columns.name, frame),
        f"{shown.title}, {shown.rows.name} by {shown.columns.name}",
    )  # fmt: skip


def bars(shown: Bars | Strip, end: float) -> str:
    """Upright bars about zero, in the order of the axis."""
    labels = shown.axis.labels
    longest = max(len(label) for label in labels)
    frame = _Frame(
        left=24,
        cell=(_side(len(labels), 18, 720), 120),
        size=(len(labels), 1),
        below=(LETTER * longest * 0.85 if longest > 2 else 8) + 26,
    )
    middle, width = 6 + 60, frame.cell[0]
    parts = []
    for i, value in enumerate(shown.scores.values):
        height = 56 * min(abs(value) / end, 1) if np.isfinite(value) else 0
        top = middle - height if value > 0 else middle
        title = escape(f"{shown.scores.names[i]}: {shown.scores.hover(i)}")
        x = frame.left + i * width
        parts.append(
            # An invisible rectangle over the whole height makes small bars easy to point at.
            f'<g><title>{title}</title><rect x="{x:g}" y="6" width="{width:g}" height="120" '
            f'fill="transparent"/><rect x="{x + 1:g}" y="{top:.1f}" width="{width - 1.5:g}" '
            f'height="{height:.1f}" fill="{scale.colour(value, end)}" stroke="#999" '
            f'stroke-width=".4"/></g>'
        )
    zero = f'<path d="M{frame.left:g} {middle}h{frame.grid[0]:g}" stroke="#555" fill="none"/>'
    labelled = _column_labels(labels, frame) + _axis_names("", shown.axis.name, frame)
    return _svg(frame, "".join(parts) + zero + labelled, shown.title)


def _side(count: int, most: float, room: float) -> float:
    """A cell's side: as large as fits, but never so small that it can't be seen."""
    return round(min(most, max(room / count, 3)), 2)


def _svg(frame: _Frame, inside: str, label: str) -> str:
    width, height = frame.whole
    return (
        f'<div class="ma-scroll"><svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'aria-label="{escape(label)}">{inside}</svg></div>'
    )


def _top(row: int, frame: _Frame) -> float:
    return 6 + (frame.size[1] - 1 - row) * frame.cell[1]


def _cells(shown: Heat, end: float, frame: _Frame) -> str:
    width, height = frame.cell
    scores, parts = shown.scores, []
    for r in range(frame.size[1]):
        for c in range(frame.size[0]):
            name = str(scores.names[r, c])
            label = shown.columns.labels[c]
            at = f" ({label})" if shown.columns.tokens and label not in name else ""
            title = escape(f"{name}{at}: {scores.hover((r, c))}")
            parts.append(
                f'<rect x="{frame.left + c * width:g}" y="{_top(r, frame):g}" width="{width:g}" '
                f'height="{height:g}" fill="{scale.colour(scores.values[r, c], end)}">'
                f"<title>{title}</title></rect>"
            )
    return f'<g stroke="#fff" stroke-width=".5">{"".join(parts)}</g>'


def _picture(shown: Heat, end: float, frame: _Frame) -> str:
    """One pixel a cell, enlarged without smoothing: some kilobytes where rectangles take some
    megabytes."""
    colours = [[scale.rgb(value, end) for value in row] for row in shown.scores.values[::-1]]
    data = base64.b64encode(png(np.array(colours, dtype=np.uint8))).decode()
    return (
        f'<image x="{frame.left:g}" y="6" width="{frame.grid[0]:g}" height="{frame.grid[1]:g}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"/>'
    )


def png(pixels: np.ndarray) -> bytes:
    """[row, column, 3] bytes as a PNG file."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)  # each line with filter 0, none

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def _row_labels(shown: Heat, frame: _Frame) -> str:
    every = _every(frame.cell[1], 10)
    return "".join(
        f'<text x="{frame.left - 4:g}" y="{_top(r, frame) + frame.cell[1] / 2 + 3:g}" '
        f'text-anchor="end">{escape(label)}</text>'
        for r, label in enumerate(shown.rows.labels)
        if r % every == 0
    )


def _column_labels(labels: tuple[str, ...], frame: _Frame) -> str:
    width = frame.cell[0]
    every = _every(width, 11)
    y = 6 + frame.grid[1] + 11
    turned = max(len(label) for label in labels) > 2
    parts = []
    for c, label in enumerate(labels):
        if c % every:
            continue
        x = frame.left + (c + 0.5) * width
        if turned:
            place = f'transform="translate({x + 3:.1f} {y - 3:g}) rotate(-60)" text-anchor="end"'
        else:
            place = f'x="{x:.1f}" y="{y:g}" text-anchor="middle"'
        parts.append(f"<text {place}>{escape(label)}</text>")
    return "".join(parts)


def _every(side: float, need: float) -> int:
    """Label every so many cells that labels don't touch."""
    least = int(np.ceil(need / side))
    return next((n for n in (1, 2, 5, 10, 20, 50, 100) if n >= least), least)


def _axis_names(rows: str, columns: str, frame: _Frame) -> str:
    _, height = frame.whole
    middle = 6 + frame.grid[1] / 2
    across = (
        f'<text x="{frame.left + frame.grid[0] / 2:g}" y="{height - 5:g}" class="ma-axis" '
        f'text-anchor="middle">{escape(columns)}</text>'
    )
    up = (
        f'<text transform="translate(10 {middle:g}) rotate(-90)" class="ma-axis" '
        f'text-anchor="middle">{escape(rows)}</text>'
    )
    return across + (up if rows else "")
