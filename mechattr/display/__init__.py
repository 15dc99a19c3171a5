"""Pictures of results: plotly figures, static HTML, terminal tables, one report file.

    plot(attribution)               a plotly figure fit for the players
    curve_plot(curve)               a faithfulness curve
    attribution_html(attribution)   static HTML for a notebook: no script, no network
    comparison_plot(comparison)     methods side by side; comparison_html, comparison_item too
    AttentionView, MatrixView       attention patterns and heat maps to point at, offline
    stack({name: attribution})      scores of several methods under one sentence
    report(items, path, title=...)  one self-contained HTML file that works offline
    audit_page(report, path)        an audit as a page; AuditView, audit_plot, audit_summary too
    terminal.show(attribution)      tables, coloured tokens and a small heat map

What is drawn (a strip of tokens, a heat map, bars) is decided once, in ``views.py``; the other
files only draw it. Everything loads at first use: importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechattr.display import comparison_terminal as comparison_terminal
    from mechattr.display import terminal as terminal
    from mechattr.display.attention_view import AttentionView as AttentionView
    from mechattr.display.audit_figures import audit_plot as audit_plot
    from mechattr.display.audit_report import AuditView as AuditView
    from mechattr.display.audit_report import audit_page as audit_page
    from mechattr.display.audit_terminal import audit_summary as audit_summary
    from mechattr.display.comparison_figures import comparison_plot as comparison_plot
    from mechattr.display.comparison_view import comparison_html as comparison_html
    from mechattr.display.comparison_view import comparison_item as comparison_item
    from mechattr.display.figures import curve_plot as curve_plot
    from mechattr.display.figures import plot as plot
    from mechattr.display.html_report import Item as Item
    from mechattr.display.html_report import report as report
    from mechattr.display.maps import MatrixView as MatrixView
    from mechattr.display.maps import matrix_html as matrix_html
    from mechattr.display.stacking import Stack as Stack
    from mechattr.display.stacking import stack as stack
    from mechattr.display.stacking import stacked_html as stacked_html
    from mechattr.display.static import attribution_html as attribution_html
    from mechattr.display.tokens import position_labels as position_labels
    from mechattr.display.tokens import readable as readable
    from mechattr.display.views import view as view

_HOME = {
    "plot": "figures",
    "curve_plot": "figures",
    "AttentionView": "attention_view",
    "AuditView": "audit_report",
    "MatrixView": "maps",
    "Stack": "stacking",
    "attribution_html": "static",
    "audit_page": "audit_report",
    "audit_plot": "audit_figures",
    "audit_summary": "audit_terminal",
    "comparison_html": "comparison_view",
    "comparison_item": "comparison_view",
    "comparison_plot": "comparison_figures",
    "report": "html_report",
    "Item": "html_report",
    "matrix_html": "maps",
    "position_labels": "tokens",
    "readable": "tokens",
    "stack": "stacking",
    "stacked_html": "stacking",
    "view": "views",
}
__all__ = [
    "AttentionView",
    "AuditView",
    "Item",
    "MatrixView",
    "Stack",
    "attribution_html",
    "audit_page",
    "audit_plot",
    "audit_summary",
    "comparison_html",
    "comparison_item",
    "comparison_plot",
    "comparison_terminal",
    "curve_plot",
    "matrix_html",
    "plot",
    "position_labels",
    "readable",
    "report",
    "stack",
    "stacked_html",
    "terminal",
    "view",
]


def __getattr__(name: str) -> Any:
    if name in ("terminal", "comparison_terminal"):
        return import_module(f"mechattr.display.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
