"""Static HTML of an attribution: coloured tokens, SVG maps, a table. No script, no network."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files

import numpy as np

from mechattr.attribution import Attribution
from mechattr.display import scale, svg, words
from mechattr.display.ranking import ranking
from mechattr.display.tokens import tokens_html
from mechattr.display.views import Bars, Heat, Strip, View, kinds_with_grid, view

SHOWN_PROMPTS = 4
"""Prompts whose tokens a notebook shows; more are a line that says how to see them."""


def attribution_html(attribution: Attribution) -> str:
    """What a notebook shows: self-contained, safe in an untrusted one, nothing to load."""
    parts = [
        f"<style>{style()}</style>",
        f"<h4>{escape(heading(attribution))}</h4>",
        f'<p class="ma-note">{escape(words.provenance_line(attribution))}</p>',
        body(attribution),
        _by_prompt(attribution),
        f'<p class="ma-note">{escape(words.how_to_read(attribution))}</p>',
    ]
    return f'<div class="ma">{"".join(parts)}</div>'


def body(attribution: Attribution, k: int = 10, prompt: int | None = None) -> str:
    """The pictures and the table, side by side where there is room."""
    parts = [part(shown) for shown in pictures(attribution, prompt)]
    table = f'<div class="ma-part">{top_table(attribution, k, prompt)}</div>'
    return f'<div class="ma-flow">{"".join(parts)}{table}</div>'


@cache
def style() -> str:
    """The style sheet; every rule is under ``.ma``, so that the page around is left alone."""
    return files("mechattr.display").joinpath("templates/style.css").read_text("utf-8")


def heading(attribution: Attribution) -> str:
    """``"270 × head by attribution_patching, logit_diff(' Mary', ' John')"``."""
    who = words.players_text(attribution.players)
    return f"{who} by {attribution.method}, {words.target_text(attribution)}"


def pictures(attribution: Attribution, prompt: int | None = None) -> list[View]:
    """The views worth showing: one a grid; heads per position from both sides; no ranking, which
    the table says already."""
    kinds: tuple[str | None, ...] = kinds_with_grid(attribution) or (None,)
    shown = [view(attribution, prompt=prompt, kind=kind) for kind in kinds]
    dims = attribution.players.dims
    if {"layer", "position"} < set(dims) and len(dims) == 3:
        other = next(dim for dim in dims if dim not in ("layer", "position"))
        shown.append(view(attribution, prompt=prompt, axes=("layer", other)))
    return [s for s in shown if not (isinstance(s, Bars) and s.ranked)]


def part(shown: View) -> str:
    """One view with its note and colour key."""
    end = scale.limit(shown.scores.values)
    if isinstance(shown, Strip):
        drawn = strip(shown, end)
    else:
        drawn = svg.heat(shown, end) if isinstance(shown, Heat) else svg.bars(shown, end)
    note = f'<p class="ma-note">{escape(shown.note)}</p>' if shown.note else ""
    wide = " ma-wide" if isinstance(shown, Strip) else ""
    return f'<div class="ma-part{wide}">{drawn}{key(end, shown)}{note}</div>'


def strip(shown: Strip, end: float) -> str:
    """The tokens as running text."""
    tokens = [token or "" for token in shown.axis.tokens or ()]
    titles = [f"{label}: {shown.scores.hover(i)}" for i, label in enumerate(shown.axis.labels)]
    return tokens_html(tokens, [float(v) for v in shown.scores.values], titles, end)


def key(end: float, shown: View) -> str:
    """The colour scale with its ends."""
    low = words.number(-end if shown.signed else 0.0)
    high = words.number(end, sign=shown.signed)
    return (
        f'<div class="ma-key"><span>{low}</span>'
        f'<i style="background:linear-gradient(90deg,{",".join(scale.anchors(shown.signed))})"></i>'
        f"<span>{high} {escape(shown.units)}: {scale.reading(shown.signed)}</span></div>"
    )


def _by_prompt(attribution: Attribution) -> str:
    """Several prompts' tokens one after the other, where their mean has no text of its own."""
    if attribution.n_prompts < 2 or attribution.players.dims != ("position",):
        return ""
    if isinstance(view(attribution), Strip):
        return ""  # the same text in all of them: its mean is shown already
    end = scale.limit(attribution.values)
    parts = []
    for i in range(min(attribution.n_prompts, SHOWN_PROMPTS)):
        shown = view(attribution, prompt=i)
        if isinstance(shown, Strip):
            parts.append(f'<div class="ma-part">{strip(shown, end)}</div>')
    left = attribution.n_prompts - len(parts)
    if left > 0:
        parts.append(f'<p class="ma-note">{left} more prompts: plot(prompt=...)</p>')
    return "".join(parts)


def top_table(attribution: Attribution, k: int = 10, prompt: int | None = None) -> str:
    """The strongest players, with a bar each."""
    best = ranking(attribution, k, prompt)
    head = ["player", *(["token"] if best.has_tokens else [])]
    lines = [
        "".join(f"<th>{escape(h)}</th>" for h in head)
        + "".join(f'<th class="ma-n">{escape(h)}</th>' for h in (best.units, *best.error_names))
        + "<th></th>"
    ]
    for row in best.rows:
        cells = [f'<td class="ma-name">{escape(row.name)}</td>']
        if best.has_tokens:
            cells.append(f"<td>{escape(row.token)}</td>")
        numbers = (words.number(row.score), *row.errors)
        cells += [f'<td class="ma-n">{number}</td>' for number in numbers]
        cells.append(f'<td class="ma-barcell">{_bar(row.score, best.end)}</td>')
        lines.append("".join(cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    note = f'<p class="ma-note">{escape(best.note)}</p>' if best.note else ""
    return f'<div class="ma-scroll"><table class="ma-top">{body}</table></div>{note}'


def _bar(score: float, end: float) -> str:
    if not np.isfinite(score):
        return ""
    width = min(abs(score) / end, 1) * 100
    colour = scale.colour(score, end)
    return f'<span class="ma-bar" style="width:{width:.1f}%;background:{colour}"></span>'
