"""What the pictures of an audit share: verdicts that can be read, numbers in words."""

from __future__ import annotations

import math
import re

import pytest

from mechattr.audit import Plan, verdicts
from mechattr.display import audit_words as words
from mechattr.display import theme
from tests.display.audit_reports import VERDICTS, report
from tests.display.test_theme import contrast

INK, PAPER = ("#1a1c20", "#e4e6ea"), ("#ffffff", "#15181d")


@pytest.mark.parametrize("look", words.LOOKS, ids=lambda look: look.slug)
def test_every_verdict_can_be_read_on_both_papers(look):
    for paper in (0, 1):
        assert contrast(INK[paper], look.tint[paper]) >= 7
        assert contrast(look.strong[paper], look.tint[paper]) >= 4.5  # the sign
        assert contrast(PAPER[paper], look.strong[paper]) >= 4.5  # the number before a statement


def test_verdicts_are_told_apart_without_their_colours():
    looks = words.LOOKS
    assert {one.verdict for one in looks} == {*VERDICTS, "not used"}
    for what in ("sign", "short", "sentence", "slug", "rule"):
        assert len({getattr(one, what) for one in looks}) == len(looks), what
    assert len({one.strong[0] for one in looks}) == len(looks)


def test_an_unknown_verdict_is_shown_by_its_name():
    one = words.look("a verdict of tomorrow")
    assert (one.verdict, one.sign, one.slug) == ("a verdict of tomorrow", "?", "v-inconclusive")
    assert words.rank("a verdict of tomorrow") > words.rank("not used")
    assert words.rank("unsupported") == 0


def test_rules_have_the_runs_own_thresholds():
    told = report_with(tau=math.log(3), alpha=0.01, control="q", memory=-1.5, share=0.2)
    assert words.threshold(told, "tau") == "1.1 nats (×3)"
    assert words.threshold(told, "strong") == "2.3 nats (×10)"
    assert "(q ≤ 0.01)" in words.rule(words.look("cited and used"), told)
    assert "below −1.5" in words.rule(words.look("unsupported"), told)
    said = dict(words.terms(told))
    assert "τ = 1.1 nats (×3), or 20 % of the gain" in said["h"]
    assert f"{100 * Plan().carried:g} % of the gain" in said["helped by its context"]
    assert "(p ≤ 0.05)" in words.rule(words.look("used but uncited"), report_with())
    assert "{" not in "".join(words.rule(one, told) for one in words.LOOKS)


def report_with(**rules):
    return {"summary": {"rules": {**Plan().describe(), **rules}}}


def test_every_verdict_of_the_rules_has_a_look():
    assert {one.verdict for one in words.LOOKS} == {
        *verdicts.STATEMENTS, *verdicts.CITATIONS, *verdicts.PASSAGES
    }  # fmt: skip


@pytest.mark.parametrize(
    ("nats", "said"),
    [
        (0.0, "×1"), (math.log(2), "×2"), (2.0, "×7.4"), (-2.0, "×0.14"), (0.2, "×1.2"),
        (math.log(96), "×96"), (math.log(147), "×150"), (math.log(12345), "×12,000"),
        (-5.0, "×1/150"), (-0.001, "×1"), (30.0, "×10¹³"), (-30.0, "×10⁻¹³"), (math.nan, "–"),
        (math.log(9.97), "×10"), (math.log(0.0312), "×0.031"),
    ],
)  # fmt: skip
def test_how_many_times_as_likely(nats, said):
    assert words.times(nats) == said


def test_durations_and_shares():
    times = {0.42: "0.42 s", 59.4: "59 s", 754.3: "12 min 34 s", 3600: "1 h 0 min", 120: "2 min"}
    for seconds, said in times.items():
        assert words.duration(seconds) == said
    assert words.duration(None) == words.share(None) == words.share(math.nan) == "–"
    assert words.share(0.12345) == "12.3 %"


def test_the_facts_say_what_was_run():
    facts = dict(words.facts(report([])))
    assert facts["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct @ 12fd25f"
    assert facts["operator"].startswith("remove: an absent passage's text is removed")
    assert facts["threshold τ"] == "0.693 nats (×2)"
    assert words.operator_text("another") == "another"
    assert "0 statements of 0 answers" in words.sentence(report([]))


def test_every_rule_of_the_style_sheet_stays_within_the_audit():
    sheet = re.sub(r"/\*.*?\*/", "", theme.sheet("audit") + words.css(), flags=re.S)
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", re.sub(r"@[^{]+\{", "", sheet))
    assert len(rules) > 60
    for selectors in rules:
        for selector in selectors.split(","):
            assert selector.strip().startswith(".ma-audit"), selector
    assert "url(" not in sheet
    assert "@import" not in sheet
    for one in words.LOOKS:
        assert f".{one.slug} {{" in sheet
