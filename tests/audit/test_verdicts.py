"""The rules, case by case, at both sides of every threshold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mechattr.audit import verdicts
from mechattr.audit.plan import Plan
from mechattr.audit.verdicts import Evidence, Whole, carries, helped, statement_verdict, strength
from mechattr.errors import InputError, UnknownNameError

PLAN = Plan(tau=1.0, strong=4.0, share=0.1, explained=0.2, part=0.25, carried=0.5, memory=-0.5)
NONE = Evidence(
    cited=False,
    effect=0.0,
    necessary=False,
    carries=False,
    group=(),
    group_effect=0.0,
    upper=0.5,
    h=1.0,
)
WORDS: dict[str, dict[str, Any]] = {
    "cited": {"cited": True},
    "minor": {"necessary": True, "effect": 2.0, "upper": math.inf},
    "necessary": {"necessary": True, "carries": True, "effect": 3.0, "upper": math.inf},
    "main": {"necessary": True, "carries": True, "effect": 8.0, "upper": math.inf},
    "grouped": {"group": (0, 1), "group_effect": 7.0, "upper": math.inf},
    "open": {"upper": 1.5},
    "chance": {"effect": 6.0, "upper": 7.0},
    "entailed": {"entailed": True},
}
"""What a passage may be: of 10 nats in all, "minor" is worth 2, "necessary" 3, "main" 8; "grouped"
is one of two that are worth 7."""


def evidence(text: str, **changes: Any) -> Evidence:
    """A passage's part in words."""
    made = NONE
    for word in text.split():
        made = dataclasses.replace(made, **WORDS[word])
    return dataclasses.replace(made, **changes)


# --- passages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passage", "verdict", "used"),
    [
        ("cited necessary", verdicts.USED, True),
        ("cited necessary entailed", verdicts.SUPPORTED, True),
        ("necessary", verdicts.UNCITED, True),
        ("necessary entailed", verdicts.UNCITED, True),
        ("cited grouped", verdicts.REDUNDANT, True),
        ("cited grouped entailed", verdicts.REDUNDANT, True),
        ("grouped", verdicts.REDUNDANT, True),
        ("cited", verdicts.UNUSED, False),
        ("cited open", verdicts.INCONCLUSIVE, False),
        ("", verdicts.NOT_USED, False),
        ("open", verdicts.NOT_USED, False),
    ],
)
def test_a_passage(passage, verdict, used):
    found = evidence(passage)
    assert (found.verdict, found.used) == (verdict, used)
    assert verdict in (verdicts.CITATIONS if found.cited else verdicts.PASSAGES)


def test_one_of_two_that_is_used_by_itself_too():
    assert evidence("cited grouped minor").verdict == verdicts.REDUNDANT
    assert evidence("cited grouped main").verdict == verdicts.USED
    assert evidence("grouped main").verdict == verdicts.UNCITED


@pytest.mark.parametrize(
    ("effect", "upper", "verdict"),
    [
        (0.0, 0.999, verdicts.UNUSED),
        (0.0, 1.0, verdicts.INCONCLUSIVE),
        (0.999, 0.0, verdicts.UNUSED),
        (1.0, 0.0, verdicts.INCONCLUSIVE),
        (-3.0, -2.0, verdicts.UNUSED),
        (0.0, math.inf, verdicts.INCONCLUSIVE),
    ],
)
def test_absence_of_evidence_is_not_enough_for_unused(effect, upper, verdict):
    assert evidence("cited", effect=effect, upper=upper).verdict == verdict


# --- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passages", "verdict"),
    [
        (["cited main", ""], verdicts.USED),
        (["cited main", "main"], verdicts.USED),
        (["cited minor", "main"], verdicts.USED),
        (["cited main entailed", "cited"], verdicts.SUPPORTED),
        (["cited necessary entailed", "cited necessary entailed"], verdicts.SUPPORTED),
        (["main", "cited"], verdicts.UNUSED),
        (["main", "cited", "cited open"], verdicts.UNUSED),
        (["main", "cited open"], verdicts.UNCITED),
        (["main", ""], verdicts.UNCITED),
        (["cited grouped", "grouped"], verdicts.REDUNDANT),
        (["grouped", "grouped", "cited"], verdicts.REDUNDANT),
        (["grouped", "grouped", "cited minor"], verdicts.REDUNDANT),
        (["grouped", "grouped", "cited necessary"], verdicts.USED),
        (["grouped", "grouped", "cited main"], verdicts.USED),
        (["cited grouped", "grouped", "main"], verdicts.USED),
        (["grouped", "grouped", "main"], verdicts.UNCITED),
        (["cited necessary", "necessary"], verdicts.USED),
        (["cited necessary", ""], verdicts.UNSUPPORTED),
        (["cited minor", "minor", "minor"], verdicts.UNSUPPORTED),
        (["cited", ""], verdicts.UNSUPPORTED),
        (["cited chance", ""], verdicts.INCONCLUSIVE),
        (["cited main", "chance"], verdicts.USED),
        (["", ""], verdicts.UNSUPPORTED),
    ],
)
def test_a_statement_that_the_context_helps(passages, verdict):
    """10 nats from the context, of 20 that it was surprising by; unless nothing carries that."""
    whole = Whole(full=-10.0, none=-20.0, n_tokens=10)
    assert statement_verdict(whole, [evidence(p) for p in passages], PLAN) == verdict
    assert verdict in verdicts.STATEMENTS


@pytest.mark.parametrize(
    ("full", "none", "effect", "verdict"),
    [
        (-1.0, -2.01, 1.5, verdicts.USED),  # more than τ
        (-1.0, -2.0, 1.5, verdicts.MEMORY),  # no more than τ, and likely: −.2 a token
        (-4.0, -5.0, 1.5, verdicts.MEMORY),  # likely, just: −.5
        (-4.01, -5.01, 1.5, verdicts.USED),
        (-9.0, -1.0, 8.0, verdicts.MEMORY),
        (-24.0, -30.0, 6.0, verdicts.USED),  # a fifth of the 30 without it
        (-24.0, -30.0, 5.9, verdicts.UNSUPPORTED),  # less
        (-30.0, -20.0, 8.0, verdicts.USED),  # the other passages mislead
        (-30.0, -20.0, 7.0, verdicts.UNSUPPORTED),
    ],
)
def test_how_much_a_passage_must_help(full, none, effect, verdict):
    whole = Whole(full, none, 10)
    found = evidence("cited necessary", effect=effect, carries=carries(effect, whole, PLAN))
    assert statement_verdict(whole, [found], PLAN) == verdict


@pytest.mark.parametrize(
    ("passages", "expected"),
    [
        ([evidence("cited main", effect=5.0)], True),
        ([evidence("cited main", effect=4.99)], False),
        ([evidence("main", effect=9.0, necessary=False)], False),
        ([evidence("minor", effect=2.5)] * 2, True),
        ([evidence("minor", effect=2.49)] * 4, False),
        ([evidence("grouped", group_effect=5.0)] * 2, True),
        ([evidence("grouped", group_effect=4.99)] * 2, False),
        ([evidence("grouped", group_effect=2.5)] * 2 + [evidence("minor", effect=2.5)], True),
        ([], False),
    ],
)
def test_main_parts_must_carry_it(passages, expected):
    """Of 10 nats, parts of at least 2.5 must add up to 5; a set counts once."""
    assert helped(Whole(-10.0, -20.0, 10), passages, PLAN) is expected


@pytest.mark.parametrize(
    ("effect", "expected"),
    [(0.5, "weak"), (1.0, "weak"), (1.01, "moderate"), (4.0, "moderate"), (4.01, "strong"),
     (-1.01, "moderate"), (-5.0, "strong")],
)  # fmt: skip
def test_strength(effect, expected):
    assert strength(effect, PLAN) == expected


# --- thresholds -----------------------------------------------------------------------------------


def test_an_effect_must_be_more_than_tau_and_a_share():
    assert PLAN.threshold(5.0) == 1.0
    assert PLAN.threshold(10.0) == 1.0
    assert PLAN.threshold(20.0) == 2.0
    assert PLAN.threshold(-50.0) == 1.0


def test_a_small_run_makes_more_of_its_null():
    """So that some p can reach α: 19 nulls at least for .05."""
    for n_questions in (1, 2, 5, 19, 20, 60, 1000):
        assert n_questions * Plan().n_swaps(n_questions) >= 40
    assert Plan().n_swaps(1000) == 2
    assert Plan(swaps=3).n_swaps(1) == 3
    assert Plan(null="per passage").n_swaps(1000) >= 19
    assert Plan(null="per passage", alpha=0.01).n_swaps(1) >= 99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operators": ("remove", "erase")}, "Unknown operator 'erase'"),
        ({"operators": "remove"}, r"expected a tuple of names, such as \('remove',\)"),
        ({"operators": ()}, "operators is empty"),
        ({"operators": ("mask", "mask")}, "an operator twice"),
        ({"unit": "word"}, "Unknown unit 'word'"),
        ({"surrogate": "lime"}, "Unknown surrogate 'lime'"),
        ({"null": "pool"}, "Unknown null 'pool'. Did you mean pooled"),
        ({"control": "fdr"}, "Unknown control 'fdr'"),
        ({"tokens": "gradient_cleen"}, "Unknown method 'gradient_cleen'. Did you mean gradient_c"),
        ({"samples": 3}, "got samples=3; expected at least 4"),
        ({"shapley": -1}, "got shapley=-1"),
        ({"swaps": 0}, "got swaps=0"),
        ({"tau": 0.0}, "expected 0 < tau <= strong"),
        ({"tau": 3.0}, "expected 0 < tau <= strong"),
        ({"share": 1.0}, "got share=1.0"),
        ({"explained": -0.1}, "got explained=-0.1"),
        ({"carried": 1.1}, "got carried=1.1"),
        ({"part": 1.5}, "got part=1.5"),
        ({"memory": 0.1}, "got memory=0.1"),
        ({"alpha": 1.0}, "got alpha=1.0"),
        ({"max_new_tokens": 0}, "got max_new_tokens=0"),
        ({"seed": -1}, "got seed=-1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(InputError, match=message) as raised:
        Plan(**settings)
    unknown = "Unknown" in message
    assert isinstance(raised.value, UnknownNameError) is unknown
