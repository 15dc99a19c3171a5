"""An audit as a page: the answers coloured by verdict, the passages beside them, the rates.

The page is one file and fetches nothing. Each question is a piece of JSON in it that the page's
script reads when the question is opened, so that thousands of them cost nothing until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mechattr.display import audit_data, audit_parts, audit_words, theme
from mechattr.display.audit_data import BUDGET
from mechattr.display.page import HtmlView, document, live_frame, safe_json
from mechattr.errors import InputError

SHOWN = 5
"""Questions in a notebook's view; the page has them all."""

VIEW_BUDGET = 4_000_000
"""Letters of passages in a notebook's view."""

TITLE = "RAG context-use audit"


def audit_page(report: Mapping[str, Any], path: str | Path) -> Path:
    """Write one HTML file of the whole run that works offline, on a phone and in print.

    report: questions, summary, manifest and problems, as ``Audit`` has them.
    path: where to write; folders are made.

    A question is linked to by ``#q=ID``. Where all passages together have more than 60 million
    letters, long ones are cut and say so. Raises InputError where the report lacks a part.
    """
    _check(report)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    page = document(_title(report), _html(report, report["questions"], whole=True))
    path.write_text(page, encoding="utf-8")
    return path


@dataclass(frozen=True, eq=False, repr=False)
class AuditView(HtmlView):
    """An audit in a notebook: the summary, and the most alarming questions to look into.

    report: as :func:`audit_page` takes it.
    shown: how many questions; :func:`audit_page` writes all.
    """

    report: Mapping[str, Any]
    shown: int = SHOWN

    def __post_init__(self) -> None:
        _check(self.report)
        if self.shown < 0:
            raise InputError(f"shown is {self.shown}; expected how many questions to show, 0 up.")

    @property
    def heading(self) -> str:
        return _title(self.report)

    @cached_property
    def html(self) -> str:
        questions = self.report["questions"]
        first = sorted(range(len(questions)), key=lambda i: audit_data.alarm(questions[i]))
        chosen = sorted(first[: self.shown])
        return _html(self.report, [questions[i] for i in chosen], whole=False)


def _check(report: Mapping[str, Any]) -> None:
    missing = [key for key in ("questions", "summary") if key not in report]
    if missing:
        raise InputError(
            f"The report of an audit lacks {', '.join(missing)}; expected questions and summary "
            f"(manifest and problems may be left out)."
        )


def _title(report: Mapping[str, Any]) -> str:
    summary = report["summary"]
    questions = audit_words.count(int(summary["n_questions"]), "question")
    statements = audit_words.count(int(summary["n_statements"]), "statement")
    return f"{TITLE}: {questions}, {statements}"


def _html(report: Mapping[str, Any], questions: Sequence[Mapping[str, Any]], *, whole: bool) -> str:
    first, second = ("h1", "h2") if whole else ("h4", "h5")
    longest = audit_data.longest_passage(questions, BUDGET if whole else VIEW_BUDGET)
    store = "".join(
        f'<script type="application/json">{safe_json(audit_data.packed(one, longest))}</script>'
        for one in questions
    )
    sheet = theme.sheet("audit") + audit_words.css()
    top = [
        f"<style>{sheet}</style>",
        f"<{first}>{TITLE}</{first}>",
        audit_parts.opening(report),
        audit_parts.notes(report),
        audit_parts.problems(report),
        f"<{second}>Summary</{second}>" if whole else "",
        audit_parts.rates(report, "h3" if whole else "h5"),
        audit_parts.legend(report, opened=whole),
        audit_parts.disagreement(report),
        audit_parts.manifest(report),
        f"<{second}>Questions</{second}>" if whole else "",
        _asked(report, questions, whole=whole),
        f'<div class="store" hidden>{store}</div>',
    ]
    kind = "audit ma-whole" if whole else "audit"
    scripts = theme.script("audit_parts", "audit_answer", "audit_passages", "audit")
    return live_frame(kind, _title(report), "".join(top), _index(report, questions, whole), scripts)


def _asked(report: Mapping[str, Any], questions: Sequence[Any], *, whole: bool) -> str:
    """The controls and the empty list that the script fills."""
    total = len(report["questions"])
    if not questions:
        return f'<p class="note">{"No question was" if not total else "No question is"} shown.</p>'
    left = total - len(questions)
    note = (
        f'<p class="note">The {len(questions)} most alarming of {total:,} questions; the page that '
        f"the audit writes has all.</p>"
        if left
        else ""
    )
    return (
        '<noscript><p class="note">The questions themselves need JavaScript; the summary above '
        "doesn't.</p></noscript>"
        f'{note}<div class="live" hidden><div class="bar controls"{"" if whole else " hidden"}>'
        '<label>verdict <select data-is="verdict"></select></label>'
        '<label>sorted <select data-is="order"><option value="alarm">most alarming first</option>'
        '<option value="file">as in the file</option></select></label>'
        '<label class="grow">search <input type="search" data-is="search" '
        'placeholder="words of a question, answer or passage"></label>'
        '<span class="note" data-is="count" role="status"></span></div>'
        '<div class="list"></div><div class="bar pager" data-is="pager" hidden>'
        '<button type="button" data-do="previous">‹ previous</button>'
        '<span data-is="range"></span><button type="button" data-do="next">next ›</button></div>'
        "</div>"
    )


def _index(
    report: Mapping[str, Any], questions: Sequence[Mapping[str, Any]], whole: bool
) -> dict[str, Any]:
    """What the script knows of all questions before it reads any."""
    looks = audit_data.looks_of(questions)
    place = {one["name"]: i for i, one in enumerate(looks)}
    settings = audit_words.settings(report)
    return {
        "whole": whole,
        "looks": looks,
        "order": sorted(range(len(questions)), key=lambda i: audit_data.alarm(questions[i])),
        "ids": [audit_data.clean(one["id"]) for one in questions],
        "has": [
            [place[audit_data.clean(name)] for name in audit_data.verdicts(one)]
            for one in questions
        ],
        "tau": float(settings["tau"]),
        "share": float(settings["share"]),
        "palettes": theme.palettes(),
    }
