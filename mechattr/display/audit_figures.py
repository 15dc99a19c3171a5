"""plotly's figure of an audit: the rate of every verdict, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mechattr.display import audit_words as words
from mechattr.display.audit_data import clean
from mechattr.display.figures import FONT
from mechattr.errors import InputError

if TYPE_CHECKING:
    import plotly.graph_objects as go


OF = {"passages": "uncited passages"}
"""What the rates are of, in words."""


def audit_plot(report: Mapping[str, Any]) -> go.Figure:
    """Bars of the corpus' rates: statements, citations and uncited passages, each in its own panel,
    every verdict in the page's colour, with 95 % intervals (bootstrap by question).

    report: as :func:`mechattr.display.audit_page` takes it. Raises InputError where it has no
        rates.
    """
    import plotly.graph_objects as go

    rows: Sequence[Mapping[str, Any]] = report["summary"].get("rates") or []
    if not rows:
        raise InputError("There are no rates to draw: no statement could be audited.")
    kinds = list(dict.fromkeys(str(row["of"]) for row in rows))
    panels = [[row for row in rows if str(row["of"]) == of] for of in kinds]
    made = go.Figure()
    bottom, gap = 1.0, 1.6  # panels below each other; a bar's height is 1
    whole = sum(len(panel) for panel in panels) + gap * (len(panels) - 1)
    for number, (of, panel) in enumerate(zip(kinds, panels, strict=True), start=1):
        top = bottom
        bottom = max(0.0, top - len(panel) / whole)
        _panel(made, of, panel, number, (bottom, top))
        bottom -= gap / whole
    summary = report["summary"]
    title = (
        f"Audit of {words.count(int(summary['n_statements']), 'statement')} in "
        f"{words.count(int(summary['n_questions']), 'answer')}"
    )
    made.update_layout(
        template="plotly_white",
        font={"family": FONT, "size": 12, "color": "#1a1a1a"},
        hoverlabel={"font": {"family": FONT}},
        title={"text": title},
        height=round(110 + 27 * whole),
        margin={"l": 10, "r": 10, "t": 74, "b": 10},
        bargap=0.3,
        showlegend=False,
    )
    return made


def _panel(
    made: go.Figure, of: str, rows: Sequence[Mapping[str, Any]], number: int, place: tuple
) -> None:
    import plotly.graph_objects as go

    rows = sorted(rows, key=lambda row: words.rank(row["verdict"]))
    looks = [words.look(row["verdict"]) for row in rows]
    rates = [clean(row.get("rate")) for row in rows]
    lows, highs = ([clean(row.get(key)) for row in rows] for key in ("low", "high"))
    made.add_trace(
        go.Bar(
            x=rates,
            y=[f"{escape(look.sign)} {escape(clean(look.verdict))}" for look in looks],
            orientation="h",
            marker={"color": [look.strong[0] for look in looks]},
            error_x={
                "type": "data", "symmetric": False, "color": "#1a1a1a", "thickness": 1, "width": 3,
                "array": list(map(_reach, rates, highs)),
                "arrayminus": list(map(_reach, lows, rates)),
            },
            hovertext=[_told(row) for row in rows],
            hovertemplate="%{hovertext}<extra></extra>",
            xaxis=f"x{number}",
            yaxis=f"y{number}",
        )
    )  # fmt: skip
    total = max(int(row["total"]) for row in rows)
    made.add_annotation(
        text=f"{escape(OF.get(of, of))} ({total:,})", x=0, y=place[1], xref="paper", yref="paper",
        xanchor="left", yanchor="bottom", showarrow=False, font={"color": "#5c6370"},
    )  # fmt: skip
    made.update_layout(
        {
            f"xaxis{number}": {"anchor": f"y{number}", "range": (0, 1), "tickformat": ".0%",
                               "zeroline": True, "zerolinecolor": "#555"},
            f"yaxis{number}": {"anchor": f"x{number}", "domain": place, "autorange": "reversed",
                               "type": "category", "automargin": True, "showgrid": False,
                               "dtick": 1},
        }
    )  # fmt: skip


def _reach(low: float | None, high: float | None) -> float:
    return max(high - low, 0.0) if low is not None and high is not None else 0.0


def _told(row: Mapping[str, Any]) -> str:
    said = f"{int(row['count']):,} of {int(row['total']):,}, {words.share(row.get('rate'))}"
    if row.get("low") is not None and row.get("high") is not None:
        said += f" (95 %: {words.share(row['low'])} to {words.share(row['high'])})"
    return f"<b>{escape(str(clean(row['verdict'])))}</b><br>{said}"
