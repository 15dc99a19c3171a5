"""Results in a terminal: a table, coloured tokens, a small heat map. Readable when piped, too.

    show(attribution)                       all that fits the players
    tokens_text(attribution)                the prompt with coloured tokens
    heat_text(view(attribution))            a heat map of letters
    top_table(ranking(attribution))         the strongest players

Where there are no colours (a pipe, a file, NO_COLOR) the signs and digits say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mechattr.attribution import Attribution
from mechattr.display import scale, words
from mechattr.display.ranking import Ranking, ranking
from mechattr.display.tokens import printable, readable
from mechattr.display.views import Heat, Strip, View, kinds_with_grid

if TYPE_CHECKING:
    from collections.abc import Sequence

LONG_PROMPT = 80
"""Tokens up to which a plain terminal lists each with its score; the table has the strongest."""

NARROW = 60
"""Letters of width below which bars are left out."""

_BAR = "█"


def show(
    attribution: Attribution,
    *,
    console: Console | None = None,
    top: int = 10,
    prompt: int | None = None,
    title: str | None = None,
) -> None:
    """Print a result: what it is, coloured tokens or a heat map, the ``top`` strongest players."""
    console = Console() if console is None else console
    target = words.target_text(attribution)
    whole = f"{words.players_text(attribution.players)} by {attribution.method}"
    console.print(Text(title or whole, style="bold"))
    console.print(Text(f"target {target}\n{_ends(attribution)}", style="dim"))
    for part in parts(attribution, prompt, console):
        console.print()
        console.print(part)
    console.print()
    best = ranking(attribution, top, prompt)
    console.print(top_table(best, width=console.width))
    if best.note:
        console.print(Text(best.note, style="dim"))


def parts(attribution: Attribution, prompt: int | None, console: Console) -> list[RenderableType]:
    """Pictures of the views that a terminal can show."""
    from mechattr.display.static import pictures

    drawn: list[RenderableType] = []
    # Of one kind the first picture says most; of a concatenation each has its own.
    most = len(kinds_with_grid(attribution)) or 1
    for shown in pictures(attribution, prompt)[:most]:
        picture = _picture(shown, console)
        if picture is not None:
            drawn.append(picture)
    return drawn


def _picture(shown: View, console: Console) -> RenderableType | None:
    if isinstance(shown, Strip):
        return tokens_text(shown) if _colours(console) else tokens_plain(shown, console.width)
    if isinstance(shown, Heat):
        return heat_text(shown, width=console.width, colours=_colours(console))
    return None  # bars say nothing that the table doesn't


def _colours(console: Console) -> bool:
    """Whether shades can be told apart: sixteen colours are too few."""
    shades = console.color_system in ("256", "truecolor")
    return console.is_terminal and shades and not console.no_color


def _ends(attribution: Attribution) -> str:
    full, empty = words.mean_text(attribution.full), words.mean_text(attribution.empty)
    ends = f"v(N) {full}   v(∅) {empty}"
    if words.is_reading(attribution):
        ends += f"\n{words.READING}"
    elif rules := words.rules_of(attribution):
        ends += f"   gradients under {rules}"
    gap = words.gap_text(attribution)
    return f"{ends}   completeness gap {gap} of v(N) − v(∅)" if gap else ends


def tokens_text(shown: Strip) -> Text:
    """The prompt as it reads, each token on the colour of its score."""
    end = scale.limit(shown.scores.values)
    text = Text()
    for token, value in zip(shown.axis.tokens or (), shown.scores.values, strict=True):
        style = f"{scale.ink(value, end)} on {scale.colour(value, end)}"
        # A newline would cut the coloured run: it is shown, then made.
        for line in printable(token or "").replace("\n", "↵\n").splitlines(keepends=True):
            text.append(line.rstrip("\n"), style=style)
            text.append("\n" if line.endswith("\n") else "")
    text.append("\n")
    text.append_text(_key(end, shown))
    return text


def tokens_plain(shown: Strip, width: int = 80) -> RenderableType | None:
    """One token a line with its score, for where there are no colours."""
    values = shown.scores.values
    if len(values) > LONG_PROMPT:
        return None
    end = scale.limit(values)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("position", justify="right", overflow="fold")
    table.add_column("token", overflow="fold")
    table.add_column(shown.units, justify="right", overflow="fold")
    bars = width >= NARROW
    if bars:
        table.add_column("", no_wrap=True)
    for label, token, value in zip(shown.axis.labels, shown.axis.tokens or (), values, strict=True):
        number = words.number(float(value))
        cells: list[Text | str] = [label.split(" ")[0], Text(readable(token or "", 24)), number]
        table.add_row(*cells, *([_signed_bar(float(value), end, 16)] if bars else []))
    return table


def _signed_bar(value: float, end: float, width: int) -> str:
    if not np.isfinite(value):
        return ""
    length = round(abs(value) / end * width)
    return ("+" if value > 0 else "-") * length


def _key(end: float, shown: View) -> Text:
    low = -end if shown.signed else 0.0
    text = Text(f"{words.number(low)} ", style="dim")
    for step in np.linspace(low, end, 15):
        text.append(" ", style=f"on {scale.colour(float(step), end)}")
    high, reading = words.number(end, sign=shown.signed), scale.reading(shown.signed)
    text.append(f" {high} {shown.units} ({reading})", style="dim")
    return text


def heat_text(shown: Heat, *, width: int = 80, colours: bool = True) -> RenderableType:
    """A heat map of coloured cells, or of signs and ninths of the largest score.

    Columns that don't fit the width are drawn together, each group as its strongest; the caption
    says how many.
    """
    left = max(len(label) for label in (*shown.rows.labels, shown.rows.name)) + 1
    side = 2 if colours else 3
    values, group = _grouped(shown.scores.values, max((width - left) // side, 1))
    end = scale.limit(values)
    numbers = [shown.columns.labels[i * group].split(" ")[0] for i in range(values.shape[1])]
    lines = [_column_line(numbers, left, side)]
    for row in range(len(values) - 1, -1, -1):  # layer 0 at the bottom, as everywhere
        line = Text(f"{shown.rows.labels[row]:>{left - 1}} ", style="dim")
        for value in values[row]:
            line.append_text(_cell(float(value), end, colours))
        lines.append(line)
    caption = [f"{shown.rows.name} × {shown.columns.name}", *filter(None, [shown.note])]
    if group > 1:
        caption.append(f"each column is the strongest of {group} {shown.columns.name}s")
    if not colours:
        top = words.number(end, sign=False)
        ends = f"+9 is {top}, -9 is −{top}" if shown.signed else f"+9 is {top}"
        caption.append(f"{ends} {shown.units}, . is near 0")
    lines.append(Text("; ".join(caption), style="dim"))
    if colours:
        lines.append(_key(end, shown))
    return Group(*lines)


def _grouped(values: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """At most ``most`` columns: neighbours are replaced by the one of largest magnitude."""
    group = -(-values.shape[1] // most)
    if group == 1:
        return values, 1
    padding = -values.shape[1] % group
    padded = np.pad(values, ((0, 0), (0, padding)), constant_values=np.nan)
    parts = padded.reshape(len(values), -1, group)
    strongest = np.abs(np.nan_to_num(parts)).argmax(-1)[..., None]
    picked = np.take_along_axis(np.nan_to_num(parts), strongest, -1)[..., 0]
    return np.where(np.isfinite(parts).any(-1), picked, np.nan), group


def _column_line(numbers: Sequence[str], left: int, side: int) -> Text:
    """Numbers over the columns, as many as fit without touching."""
    every = -(-(max(len(number) for number in numbers) + 1) // side)
    shown = "".join(f"{number:<{side * every}}" for number in numbers[::every])
    return Text(" " * left + shown.rstrip(), style="dim")


def _cell(value: float, end: float, colours: bool) -> Text:
    if colours:
        return Text("  ", style=f"on {scale.colour(value, end)}")
    if not np.isfinite(value):
        return Text("   ")
    ninths = round(abs(value) / end * 9)
    return Text(f"{'+' if value > 0 else '-'}{ninths} " if ninths else " . ")


def top_table(best: Ranking, *, width: int = 80) -> Table:
    """The strongest players. Narrow terminals go without the bars."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("player", overflow="fold")
    if best.has_tokens:
        table.add_column("token", overflow="fold")
    for heading in (best.units, *best.error_names):
        table.add_column(heading, justify="right", overflow="fold")
    bars = width >= NARROW
    if bars:
        table.add_column("", no_wrap=True)
    for row in best.rows:
        cells: list[RenderableType] = [row.name, *([row.token] if best.has_tokens else [])]
        cells = [Text(str(cell)) for cell in cells]  # a "[" in a token is no markup
        cells += [words.number(row.score), *row.errors]
        if bars:
            length = max(round(abs(row.score) / best.end * 16), 1)
            cells.append(Text(_BAR * length, style=scale.colour(row.score, best.end)))
        table.add_row(*cells)
    return table
