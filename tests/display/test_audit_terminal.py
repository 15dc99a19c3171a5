"""An audit in a terminal of any width, and as a plotly figure."""

from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from mechattr.display import audit_plot, audit_summary
from mechattr.display.audit_words import LOOKS
from mechattr.errors import InputError
from tests.display.audit_reports import EVIL, STRANGE, VERDICTS, question, report, usual


def printed(told: dict, width: int = 100, inside: list | None = None, **options) -> str:
    out = StringIO()
    audit_summary(told, Console(file=out, width=width, **options), inside=inside)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_every_verdict_and_its_share_fits_any_width(width):
    text = printed(usual(), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    words = " ".join(text.split())
    for one in usual()["summary"]["rates"]:
        assert f"{100 * one['rate']:.1f} %" in words
    for verdict in ("unsupported", "cited but unused", "a verdict of tomorrow"):
        assert verdict in words
    assert "2 records could not be used" in words
    assert "line 17 (q17): There are no passages." in words
    assert "line 40: Not valid UTF-8" in words
    assert ("6/53" in words) == (width >= 72)


def test_the_most_alarming_statements_are_named():
    text = printed(usual())
    assert "Look first at (5 of 20)" in text
    lines = text[text.index("Look first") :].splitlines()[1:6]
    assert all(line.startswith("× ") for line in lines)
    calm = report([question(0, ("supported", "cited and used"))], problems=[])
    assert "Look first" not in printed(calm)
    assert "could not be used" not in printed(calm)


COMMAND = ["mechattr", "inside", "my questions.jsonl"]


def test_a_command_for_a_passage_that_was_used():
    """Of the most alarming statement that has one, its strongest; as it can be typed."""
    told = report([question(3, ("cited and used",)), question(4, ("used but uncited",))])
    (line,) = told["questions"][1]["statements"]
    line["passages"][0] |= {"used": True, "necessity": 99.0}
    text = printed(told, 40, COMMAND).splitlines()
    expected = "mechattr inside 'my questions.jsonl' --id q4 --pid doc-4-0 --sid s1"
    assert text.count(expected) == 1, "on one line, however narrow"
    assert "Look inside" not in printed(told)
    assert "Look inside" not in printed(report([question(5, ("unsupported",))]), inside=COMMAND)


def test_no_command_that_a_terminal_would_obey():
    told = report([question(1, ("used but uncited",), strange="\x1b[2J")])
    text = printed(told, inside=COMMAND)
    assert "mechattr inside" not in text
    assert "\x1b" not in text


def test_no_text_of_a_user_is_markup_or_a_command_to_the_terminal():
    told = report(
        [question(1, ("unsupported",), strange=f"[bold]\x1b[2J{STRANGE}")],
        problems=[{"line": 1, "id": EVIL, "reason": "\x1b]0;title\x07 [red]x[/red]"}] * 7,
    )
    told["summary"]["notes"] = ["[bold]loud[/bold]\x1b[31m"]
    text = printed(told)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]loud[/bold]" in text
    assert "[red]x[/red]" in text
    assert "and 2 more" in text
    colours = printed(told, force_terminal=True, color_system="truecolor")
    assert "\x1b[2J" not in colours
    assert "\x1b]0" not in colours


def test_a_run_without_statements():
    assert "No statement could be audited." in printed(report([]))
    with pytest.raises(InputError, match="no rates"):
        audit_plot(report([]))


def test_the_figure_has_every_rate_with_its_interval():
    told = usual()
    rates = told["summary"]["rates"]
    figure = audit_plot(told)
    assert len(figure.data) == 3
    order = [one.verdict for one in LOOKS]
    for trace, of in zip(figure.data, ("statements", "citations", "passages"), strict=True):
        mine = [row for row in rates if row["of"] == of]
        mine.sort(key=lambda r: order.index(r["verdict"]) if r["verdict"] in order else 99)
        np.testing.assert_allclose(trace.x, [row["rate"] for row in mine], atol=1e-4)
        high = np.add(trace.x, trace.error_x.array)
        low = np.subtract(trace.x, trace.error_x.arrayminus)
        np.testing.assert_allclose(high, [row["high"] for row in mine], atol=2e-4)
        np.testing.assert_allclose(low, [row["low"] for row in mine], atol=2e-4)
        for name, row in zip(trace.y, mine, strict=True):
            assert name.endswith(row["verdict"])
    domains = [figure.layout[f"yaxis{i}"].domain for i in ("", 2, 3)]
    assert domains[0][0] > domains[1][1] > domains[1][0] > domains[2][1]


def test_the_figure_reads_nothing_as_html():
    told = report([question(1, VERDICTS)])
    told["summary"]["rates"][0] |= {"verdict": EVIL, "low": None, "high": float("nan")}
    (first, *_) = audit_plot(told).data
    assert not any("<script" in text for text in (*first.y, *first.hovertext))
