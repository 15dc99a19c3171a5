"""Pictures of results: plotly figures, static HTML, terminal tables, one report file.

    plot(attribution)               a plotly figure fit for the players
    curve_plot(curve)               a faithfulness curve
    attribution_html(attribution)   static HTML for a notebook: no script, no network
    report(items, path, title=...)  one self-contained HTML file that works offline
    terminal.show(attribution)      tables, coloured tokens and a small heat map

What is drawn (a strip of tokens, a heat map, bars) is decided once, in ``views.py``; the other
files only draw it. Everything loads at first use: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechattr.display import terminal as terminal
    from mechattr.display.figures import curve_plot as curve_plot
    from mechattr.display.figures import plot as plot
    from mechattr.display.html_report import Item as Item
    from mechattr.display.html_report import report as report
    from mechattr.display.static import attribution_html as attribution_html
    from mechattr.display.tokens import position_labels as position_labels
    from mechattr.display.tokens import readable as readable
    from mechattr.display.views import view as view

_HOME = {
    "plot": "figures",
    "curve_plot": "figures",
    "attribution_html": "static",
    "report": "html_report",
    "Item": "html_report",
    "position_labels": "tokens",
    "readable": "tokens",
    "view": "views",
}
__all__ = [
    "Item",
    "attribution_html",
    "curve_plot",
    "plot",
    "position_labels",
    "readable",
    "report",
    "terminal",
    "view",
]


def __getattr__(name: str) -> Any:
    if name == "terminal":
        return import_module("mechattr.display.terminal")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
