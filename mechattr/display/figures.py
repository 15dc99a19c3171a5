"""plotly figures of attributions and faithfulness curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.display import scale, words
from mechattr.display.tokens import player_and_token
from mechattr.display.views import Bars, Heat, Scores, Strip, View, view

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
DETAILED = 10_000
"""Cells of a heat map up to which each carries a hover text of its own, with name and errors."""


def plot(attribution: Attribution, *, prompt: int | None = None, **options: Any) -> go.Figure:
    """A plotly figure fit for the players.

    Tokens give bars labelled with the tokens; heads a layer × head heat map; heads per position a
    layer × position one, summed over heads (``head=3``, ``position=5`` or
    ``axes=("layer", "head")`` for others); MLPs, attention layers and the residual stream bars or
    layer × position; neurons, groups and mixtures their ``top`` strongest with error bars.

    prompt: one prompt; None means the mean over prompts.
    options: ``limit`` (the colour scale's end, to compare figures) and those of
        :func:`mechattr.display.views.view`: ``kind``, ``axes``, ``reduce``, ``top``, coordinates.
    """
    end = options.pop("limit", None)
    return figure(view(attribution, prompt=prompt, **options), limit=end)


def figure(shown: View, *, limit: float | None = None, title: bool = True) -> go.Figure:
    """The plotly figure of a view. title: False leaves title and width to the page around it."""
    end = scale.limit(shown.scores.values) if limit is None else float(limit)
    made = _heat(shown, end) if isinstance(shown, Heat) else _bars(shown, end)
    _dress(made)
    if title:
        under = "; ".join(filter(None, [shown.note, scale.reading(shown.signed)]))
        head = f'{_plain(shown.title)}<br><span style="font-size:0.8em">{_plain(under)}</span>'
        made.update_layout(title={"text": head}, margin={"t": 70}, width=width(shown))
    return made


def width(shown: View) -> int | None:
    """Pixels in which cells and bars look right; None where there are many: all there is."""
    if isinstance(shown, Bars) and shown.ranked:
        return 640
    count = len(shown.columns.labels if isinstance(shown, Heat) else shown.axis.labels)
    natural = 170 + 29 * count
    return natural if natural < 900 else None


def _dress(made: go.Figure) -> None:
    made.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 12, "color": "#1a1a1a"},
        margin={"l": 10, "r": 10, "t": 34, "b": 10},  # at the top stands plotly's tool bar
        hoverlabel={"font": {"family": FONT}},
    )


def _heat(shown: Heat, end: float) -> go.Figure:
    import plotly.graph_objects as go

    rows, columns = len(shown.rows.labels), len(shown.columns.labels)
    height = int(np.clip(170 + 15 * rows, 330, 900))
    wrap = " " if height > 450 else "<br>"  # the colour bar's title must not be longer than it
    key = f"{_plain(shown.units)}{wrap}({scale.reading(shown.signed)})"
    heat = go.Heatmap(
        z=shown.scores.values,
        x=[_plain(label) for label in shown.columns.labels],
        y=[_plain(label) for label in shown.rows.labels],
        zmin=-end if shown.signed else 0,
        zmax=end,
        zmid=0 if shown.signed else None,
        colorscale=scale.plotly_scale(shown.signed),
        colorbar={
            "title": {"text": key, "side": "right"},
            "tickformat": "~g",
            "thickness": 12,
        },
        xgap=1 if columns <= 60 else 0,
        ygap=1 if rows <= 60 and columns <= 60 else 0,
        hoverongaps=False,
        **_heat_hover(shown),
    )
    made = go.Figure(heat)
    made.update_layout(height=height, plot_bgcolor=scale.MISSING)
    made.update_xaxes({"title": shown.columns.name} | _category(shown.columns.labels, turn=True))
    made.update_yaxes({"title": shown.rows.name} | _category(shown.rows.labels))
    return made


def _heat_hover(shown: Heat) -> dict[str, Any]:
    names, scores = shown.scores.names, shown.scores
    if names.size > DETAILED:
        where = f"{_plain(shown.rows.name)} %{{y}}<br>{_plain(shown.columns.name)} %{{x}}"
        return {"hovertemplate": f"{where}<br>%{{z:+.4g}}<extra></extra>"}
    text = [
        [_hover(scores, (r, c), shown.columns.labels[c]) for c in range(names.shape[1])]
        for r in range(names.shape[0])
    ]
    return {"text": text, "hovertemplate": "%{text}<extra></extra>"}


def _hover(scores: Scores, index: tuple[int, ...] | int, label: str) -> str:
    name = str(scores.names[index])
    # A player's own name says "L9H6@3"; the label adds which token position 3 is.
    token = f"<br>{_plain(label)}" if label not in name and not label.isdigit() else ""
    return f"<b>{_plain(name)}</b>{token}<br>{scores.hover(index)}"


def _bars(shown: Bars | Strip, end: float) -> go.Figure:
    import plotly.graph_objects as go

    lying = isinstance(shown, Bars) and shown.ranked
    scores = shown.scores
    labels = [_plain(label) for label in _bar_labels(shown)]
    values = [float(v) if np.isfinite(v) else None for v in scores.values]
    bars = go.Bar(
        x=values if lying else labels,
        y=labels if lying else values,
        orientation="h" if lying else "v",
        marker={
            "color": [scale.colour(v, end) for v in scores.values],
            "line": {"color": "#9a9a9a", "width": 0.5 if len(labels) <= 120 else 0},
        },
        hovertext=[_hover(scores, i, shown.axis.labels[i]) for i in range(len(labels))],
        hovertemplate="%{hovertext}<extra></extra>",
        **_error_bars(scores, lying),
    )
    made = go.Figure(bars)
    wide = {
        "title": _plain(shown.units),
        "automargin": True,
        "zeroline": True,
        "zerolinecolor": "#555",
    }
    if lying:
        made.update_layout(height=int(np.clip(120 + 20 * len(labels), 220, 1400)))
        made.update_xaxes(wide)
        made.update_yaxes({"autorange": "reversed"} | _category(labels))
    else:
        made.update_layout(height=360)
        made.update_yaxes(wide)
        made.update_xaxes({"title": shown.axis.name} | _category(labels, turn=True))
    return made


def _bar_labels(shown: Bars | Strip) -> list[str]:
    """Ranked players carry the token they stand at; labels stay unique."""
    if not (isinstance(shown, Bars) and shown.ranked) or shown.axis.tokens is None:
        return list(shown.axis.labels)
    named = [
        " ".join(filter(None, player_and_token(name, token or "")))
        for name, token in zip(shown.axis.labels, shown.axis.tokens, strict=True)
    ]
    return named if len(set(named)) == len(named) else list(shown.axis.labels)


def _error_bars(scores: Scores, lying: bool) -> dict[str, Any]:
    errors = scores.bars
    if errors is None or not np.isfinite(errors).any():
        return {}
    # Error bars of tokens are wanted at a glance, not in the way: thin and grey.
    bar = {
        "type": "data",
        "array": [float(e) if np.isfinite(e) else 0.0 for e in errors],
        "color": "#555",
        "thickness": 1,
        "width": 2,
    }
    return {"error_x" if lying else "error_y": bar}


def _category(labels: Sequence[str], *, turn: bool = False) -> dict[str, Any]:
    """Labels stay text (a "3" is a name, not a place), all shown where they fit."""
    shown: dict[str, Any] = {"type": "category", "automargin": True, "showgrid": False}
    shown |= {"dtick": 1} if len(labels) <= 40 else {"nticks": 24}
    if turn and max(len(label) for label in labels) > 3:
        shown["tickangle"] = -50
    return shown


def _plain(text: Any) -> str:
    """plotly reads a little HTML in any text: a prompt's "<b>" must stay what it is."""
    return escape(str(text), quote=False)


def curve_plot(curve: Any, *, title: bool = True) -> go.Figure:
    """A faithfulness curve: the target as the best players go (or come), mean over prompts.

    curve: has ``fractions`` [point], ``values`` [point, prompt], ``full`` and ``empty`` [prompt],
        and, where known, ``name`` and ``auc``.
    title: False leaves it to the page around.
    """
    import plotly.graph_objects as go

    fractions = np.asarray(curve.fractions, dtype=float)
    values = np.asarray(curve.values, dtype=float).reshape(len(fractions), -1)
    made = go.Figure()
    if values.shape[1] > 1:
        made.add_trace(_spread(fractions, values))
    made.add_trace(
        go.Scatter(
            x=fractions,
            y=values.mean(1),
            mode="lines+markers",
            line={"color": "#1a1a1a", "width": 2},
            marker={"size": 5},
            name="mean",
            hovertemplate="%{x:.1%} of players<br>%{y:.4g}<extra></extra>",
        )
    )
    for level, name, colour in (
        (curve.full, "v(N)", scale.ANCHORS[-2]),
        (curve.empty, "v(∅)", scale.ANCHORS[1]),
    ):
        at = float(np.mean(np.asarray(level, dtype=float)))
        made.add_hline(at, line={"color": colour, "dash": "dot"}, annotation_text=name)
    _dress(made)
    made.update_layout(height=300, showlegend=False)
    if title:
        made.update_layout(title={"text": _plain(curve_title(curve))}, margin={"t": 60})
    made.update_xaxes(title="share of players", tickformat=".0%", automargin=True)
    made.update_yaxes(title="target", automargin=True)
    return made


def curve_title(curve: Any) -> str:
    """``"deletion by shapley scores: area under the normalised curve 0.31, lower is better"``."""
    name, auc = getattr(curve, "name", "") or "faithfulness", getattr(curve, "auc", None)
    if auc is None:
        return name
    known = np.asarray(auc, dtype=float)
    known = known[np.isfinite(known)]
    area = words.mean_text(known) if known.size else "undefined"
    better = {"deletion": ", lower is better", "insertion": ", higher is better"}
    kind = getattr(curve, "kind", "")
    return f"{name}: area under the normalised curve {area}{better.get(kind, '')}"


def _spread(fractions: np.ndarray, values: np.ndarray) -> go.Scatter:
    import plotly.graph_objects as go

    error = values.std(1, ddof=1) / np.sqrt(values.shape[1])
    low, high = values.mean(1) - error, values.mean(1) + error
    return go.Scatter(
        x=np.concatenate([fractions, fractions[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor="rgba(0,0,0,0.12)",
        line={"width": 0},
        hoverinfo="skip",
        name="± standard error",
    )
