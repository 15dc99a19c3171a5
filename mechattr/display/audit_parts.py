"""The still parts of an audit's page: what was audited, the rates, the legend, the problems.

They need no script. All that users wrote is escaped here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mechattr.display import audit_words as words
from mechattr.display.audit_data import clean

PROBLEMS_SHOWN = 500
"""Bad records listed on the page; it says how many more there are."""

_OF = {
    "statements": ("Statements", "share of all statements"),
    "citations": ("Citations", "share of all cited passages"),
    "passages": ("Uncited passages", "share of all passages that a statement doesn't cite"),
}


def opening(report: Mapping[str, Any]) -> str:
    """What was audited, in one sentence, and the facts below it."""
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>"
        for name, value in words.facts(report)
    )
    return f'<p class="lead">{_text(words.sentence(report))}</p><dl class="facts">{facts}</dl>'


def notes(report: Mapping[str, Any]) -> str:
    """What the run has to say about itself."""
    said = [str(note) for note in report["summary"].get("notes") or []]
    items = "".join(f"<li>{_text(note)}</li>" for note in said)
    return f'<ul class="noted">{items}</ul>' if items else ""


def rates(report: Mapping[str, Any], heading: str) -> str:
    """Every rate as a bar with its 95 % interval; a verdict's name is a button that filters."""
    panels = []
    rows = list(report["summary"].get("rates") or [])
    for of in dict.fromkeys(str(row["of"]) for row in rows):
        mine = sorted(
            (r for r in rows if str(r["of"]) == of), key=lambda r: words.rank(r["verdict"])
        )
        title, what = _OF.get(of, (of, f"share of all {of}"))
        total = max((int(row["total"]) for row in mine), default=0)
        lines = "".join(_rate(row, of == "statements" and row["count"] > 0) for row in mine)
        panels.append(
            f'<div class="panel"><{heading}>{_text(title)} '
            f"<small>{_text(what)}, {total:,}</small></{heading}>"
            f'<div class="rates">{lines}</div></div>'
        )
    if not panels:
        return '<p class="note">There are no rates: no statement could be audited.</p>'
    return (
        f'<div class="panels">{"".join(panels)}</div><p class="note">A bar is a share, the line on '
        f"it its 95 % interval (questions drawn again with replacement).</p>"
    )


def _rate(row: Mapping[str, Any], filters: bool) -> str:
    shown = words.look(row["verdict"])
    value, low, high = (_share(row.get(key)) for key in ("rate", "low", "high"))
    interval = ""
    if low is not None and high is not None:
        interval = f'<b style="left:{100 * low:.2f}%;width:{100 * max(high - low, 0):.2f}%"></b>'
    ends = f" ({100 * low:.0f}–{100 * high:.0f})" if low is not None and high is not None else ""
    name = f"<i>{escape(shown.sign)}</i> {_text(shown.verdict)}"
    if filters:
        told = _text(shown.verdict)
        chip = (
            f'<button type="button" class="chip {shown.slug}" data-verdict="{told}" '
            f'title="Show the questions with it">{name}</button>'
        )
    else:
        chip = f'<span class="chip {shown.slug}">{name}</span>'
    return (
        f'<div class="rate {shown.slug}"><span class="name">{chip}</span>'
        f'<span class="track"><i style="width:{100 * (value or 0):.2f}%"></i>{interval}</span>'
        f'<span class="n">{_text(words.share(value))}<small>{ends} '
        f"{int(row['count']):,}/{int(row['total']):,}</small></span></div>"
    )


def _share(value: Any) -> float | None:
    if value is None or not math.isfinite(float(value)):
        return None
    return min(max(float(value), 0.0), 1.0)


def legend(report: Mapping[str, Any], *, opened: bool) -> str:
    """Each verdict in a sentence, and when it is given."""
    named = {str(row["verdict"]) for row in report["summary"].get("rates") or []}
    looks = [*words.LOOKS]
    looks += [words.look(name) for name in sorted(named - {one.verdict for one in looks})]
    items = "".join(
        f'<div class="{one.slug}"><dt><span class="chip {one.slug}"><i>{escape(one.sign)}</i> '
        f"{_text(one.verdict)}</span></dt><dd>{_text(one.sentence)} "
        f"<small>Rule: {_text(words.rule(one, report) or 'of the run')}.</small></dd></div>"
        for one in looks
    )
    return (
        f'<details class="fold"{" open" * opened}><summary>What the verdicts mean</summary>'
        f'<dl class="legend">{items}</dl>{_quantities(report)}</details>'
    )


def _quantities(report: Mapping[str, Any]) -> str:
    rows = (
        ("context effect C", "log p of the statement with all passages, less with none."),
        ("necessity", "what the statement's log p loses when only this passage goes."),
        ("sufficiency", "what it gains when this passage is the only one there."),
        ("surrogate", "the passage's weight in a linear model over many random sets of passages, "
                      "with a 95 % interval."),
        ("p, q", "how often an off-topic passage of matched length, in its place, has as large a "
                 "necessity; q is p after Benjamini–Hochberg over the whole run."),
        ("nats", "natural logarithms: +0.69 is twice as likely, +2 is 7.4 times, +4.6 is 100 "
                 "times."),
        ("strength", f"how large |C| is: strong above {words.threshold(report, 'strong')}, "
                     f"moderate above {words.threshold(report, 'tau')}, else weak."),
    )  # fmt: skip
    items = "".join(
        f"<div><dt>{_text(a)}</dt><dd>{_text(b)}</dd></div>"
        for a, b in (*rows, *words.terms(report))
    )
    return f'<dl class="legend terms">{items}</dl>{_null(report["summary"].get("null"))}'


def _null(null: Mapping[str, Any] | None) -> str:
    """What off-topic passages did, by their length."""
    if not null:
        return ""
    said = f"The null: {int(null.get('n') or 0):,} swaps for off-topic passages, {null.get('kind')}"
    bands = null.get("bands") or []
    if not bands:
        return f'<p class="note">{_text(said)}.</p>'
    lines = "".join(
        f'<tr><td>{_text(_band(one))}</td><td class="n">{int(one.get("n") or 0):,}</td>'
        f'<td class="n">{_text(_nats(one.get("q95")))}</td></tr>'
        for one in bands
    )
    return (
        f'<p class="note">{_text(said)}. Below: by the statement\'s length, how large an effect is '
        f"above chance (95 % of them stay under it).</p>"
        '<div class="scroll"><table class="plain"><tr><th>tokens</th>'
        f'<th class="n">swaps</th><th class="n">95 % below (nats)</th></tr>{lines}</table></div>'
    )


def _band(one: Mapping[str, Any]) -> str:
    low, high = one.get("low"), one.get("high")
    if high is None or not math.isfinite(float(high)):
        return f"{low} or more"
    return f"{low}–{high}"


def _nats(value: Any) -> str:
    if value is None or not math.isfinite(float(value)):
        return "–"
    return f"{float(value):+.3f}".replace("-", "−")


def disagreement(report: Mapping[str, Any]) -> str:
    """What a second operator says otherwise, as the run puts it."""
    told = report["summary"].get("disagreement")
    if not told:
        return ""
    return _folded("Where two operators disagree", _table(told))


def problems(report: Mapping[str, Any]) -> str:
    """Records that couldn't be used, with their lines and the reason."""
    found: Sequence[Mapping[str, Any]] = report.get("problems") or []
    if not found:
        return ""
    lines = "".join(
        f'<tr><td class="n">{_text(one.get("line", ""))}</td><td>{_text(one.get("id") or "–")}</td>'
        f'<td class="wide">{_text(one.get("reason", ""))}</td></tr>'
        for one in found[:PROBLEMS_SHOWN]
    )
    more = len(found) - PROBLEMS_SHOWN
    left = f'<p class="note">And {more:,} more.</p>' if more > 0 else ""
    table = (
        '<div class="scroll tall"><table class="plain"><tr><th class="n">line</th><th>id</th>'
        f"<th>reason</th></tr>{lines}</table></div>{left}"
    )
    title = f"{words.count(len(found), 'record')} could not be used"
    return _folded(title, table, kind="alarm")


def manifest(report: Mapping[str, Any]) -> str:
    """Everything that is needed to do it again."""
    told = report.get("manifest") or {}
    # The problems have a table of their own.
    told = {key: value for key, value in told.items() if key != "problems"}
    return _folded("Manifest: model, template, seeds, versions", _table(told)) if told else ""


def _folded(title: str, inside: str, kind: str = "") -> str:
    return f'<details class="fold {kind}"><summary>{_text(title)}</summary>{inside}</details>'


def _table(told: Any) -> str:
    if not isinstance(told, Mapping):
        return f"<p>{_value(told)}</p>"
    lines = "".join(
        f'<tr><th scope="row">{_text(key)}</th><td class="wide">{_value(value)}</td></tr>'
        for key, value in told.items()
    )
    return f'<div class="scroll tall"><table class="plain">{lines}</table></div>'


def _value(value: Any) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        dumped = json.dumps(clean(value), indent=1, ensure_ascii=False)
        return f"<pre>{_text(dumped)}</pre>"
    return f'<span class="as-is">{_text(value)}</span>'


def _text(value: Any) -> str:
    """Anything as text of a page."""
    return escape(str(clean(value)))
