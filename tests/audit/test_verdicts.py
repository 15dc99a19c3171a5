"""The rules, case by case, at both sides of every threshold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from mechattr.audit import verdicts
from mechattr.audit.plan import Plan
from mechattr.audit.verdicts import Evidence, Whole, counts, helped, statement_verdict, strength
from mechattr.errors import InputError, UnknownNameError

PLAN = Plan(tau=1.0, strong=4.0, share=0.1, part=0.25, carried=0.5, memory=-0.5)
NONE = Evidence(
    cited=False,
    effect=0.0,
    own=0.0,
    alone=False,
    above_chance=False,
    group=(),
    group_effect=0.0,
    group_own=0.0,
    set_above_chance=False,
    upper=0.5,
    h=1.0,
)
WORDS: dict[str, dict[str, Any]] = {
    "cited": {"cited": True},
    "minor": {"alone": True, "above_chance": True, "effect": 2.0, "own": 2.0, "upper": math.inf},
    "main": {"alone": True, "above_chance": True, "effect": 8.0, "own": 8.0, "upper": math.inf},
    "spread": {"above_chance": True, "effect": 8.0, "upper": 9.0},
    "grouped": {
        "group": (0, 1),
        "group_effect": 7.0,
        "group_own": 7.0,
        "set_above_chance": True,
        "upper": math.inf,
    },
    "hidden": {"group": (0, 1), "group_effect": 7.0, "group_own": 7.0, "upper": math.inf},
    "open": {"upper": 1.5},
    "chance": {"alone": True, "effect": 6.0, "own": 6.0, "upper": 7.0},
    "entailed": {"entailed": True},
}
"""What a passage may be: of 10 nats in all, "minor" is worth 2, "main" 8, "spread" too, but
nothing is owed to it; "grouped" is one of two that are worth 7, and "hidden"
too, by chance; "chance" is worth 6, by chance."""


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
        ("cited main", verdicts.USED, True),
        ("cited main entailed", verdicts.SUPPORTED, True),
        ("main", verdicts.UNCITED, True),
        ("main entailed", verdicts.UNCITED, True),
        ("cited grouped", verdicts.REDUNDANT, True),
        ("cited grouped entailed", verdicts.REDUNDANT, True),
        ("grouped", verdicts.REDUNDANT, True),
        ("cited", verdicts.UNUSED, False),
        ("cited open", verdicts.INCONCLUSIVE, False),
        ("", verdicts.NOT_USED, False),
        ("open", verdicts.NOT_USED, False),
        ("cited minor", verdicts.USED, True),
        ("cited grouped minor", verdicts.USED, True),
        ("grouped main", verdicts.UNCITED, True),
        ("cited spread", verdicts.INCONCLUSIVE, False),
        ("cited chance", verdicts.INCONCLUSIVE, False),
        ("chance", verdicts.NOT_USED, False),
        ("hidden", verdicts.NOT_USED, False),
    ],
)
def test_a_passage(passage, verdict, used):
    found = evidence(passage)
    assert (found.verdict, found.used) == (verdict, used)
    assert verdict in (verdicts.CITATIONS if found.cited else verdicts.PASSAGES)


@pytest.mark.parametrize(
    ("passage", "changes", "verdict"),
    [
        ("cited", {"upper": 0.999}, verdicts.UNUSED),
        ("cited", {"upper": 1.0}, verdicts.INCONCLUSIVE),
        ("cited", {"upper": math.inf}, verdicts.INCONCLUSIVE),
        ("cited", {"upper": -2.0, "effect": -3.0}, verdicts.UNUSED),
        ("cited", {"upper": 0.0, "own": 0.999}, verdicts.UNUSED),
        ("cited", {"upper": 0.0, "own": 1.0}, verdicts.INCONCLUSIVE),
        ("cited", {"upper": 0.0, "effect": 1.01}, verdicts.UNUSED),  # as much is by chance
        ("cited", {"upper": 0.0, "effect": 1.0, "above_chance": True}, verdicts.UNUSED),
        ("cited", {"upper": 0.0, "effect": 1.01, "above_chance": True}, verdicts.INCONCLUSIVE),
    ],
)
def test_absence_of_evidence_is_not_enough_for_unused(passage, changes, verdict):
    assert evidence(passage, **changes).verdict == verdict


# --- statements -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passages", "verdict"),
    [
        (["cited main", ""], verdicts.USED),
        (["cited main", "main"], verdicts.USED),
        (["cited minor", "main"], verdicts.USED),
        (["cited main entailed", "cited"], verdicts.SUPPORTED),
        (["main", "cited"], verdicts.UNUSED),
        (["main", "cited", "cited open"], verdicts.UNUSED),
        (["main", "cited open"], verdicts.UNCITED),
        (["main", "cited spread"], verdicts.UNCITED),
        (["main", ""], verdicts.UNCITED),
        (["cited grouped", "grouped"], verdicts.REDUNDANT),
        (["grouped", "grouped", "cited"], verdicts.REDUNDANT),
        (["grouped", "grouped", "cited minor"], verdicts.USED),
        (["cited grouped", "grouped minor"], verdicts.USED),
        (["grouped minor", "grouped"], verdicts.UNCITED),
        (["cited grouped", "grouped", "main"], verdicts.USED),
        (["grouped", "grouped", "main"], verdicts.UNCITED),
        (["cited minor", "minor"], verdicts.UNSUPPORTED),
        (["cited minor", "minor", "minor"], verdicts.USED),
        (["cited spread", ""], verdicts.UNSUPPORTED),
        (["cited", ""], verdicts.UNSUPPORTED),
        (["cited chance", ""], verdicts.INCONCLUSIVE),
        (["cited main", "chance"], verdicts.USED),
        (["cited minor", "chance"], verdicts.INCONCLUSIVE),
        (["cited hidden", "hidden"], verdicts.INCONCLUSIVE),
        (["", ""], verdicts.UNSUPPORTED),
    ],
)
def test_a_statement_that_the_context_helps(passages, verdict):
    """By 10 nats; 5 must be owed to what is used."""
    whole = Whole(full=-10.0, none=-20.0, gain=10.0, n_tokens=10)
    assert statement_verdict(whole, [evidence(p) for p in passages], PLAN) == verdict
    assert verdict in verdicts.STATEMENTS


def test_where_sentences_play_all_of_a_cited_passages_must_be_unused():
    whole = Whole(full=-10.0, none=-20.0, gain=10.0, n_tokens=10)
    main, unused, open_ = (evidence(p) for p in ("main", "cited", "cited open"))

    def verdict(*of: str) -> str:
        named = [dataclasses.replace(e, of=p) for e, p in zip((unused, open_), of, strict=True)]
        return statement_verdict(whole, [main, *named], PLAN)

    assert verdict("a", "a") == verdicts.UNCITED
    assert verdict("a", "b") == verdicts.UNUSED
    assert verdict("", "") == verdicts.UNUSED, "of nothing: passages play"


@pytest.mark.parametrize(
    ("full", "none", "gain", "own", "verdict"),
    [
        (-1.0, -2.01, 1.5, 1.5, verdicts.USED),  # more than τ
        (-1.0, -2.0, 1.5, 1.5, verdicts.MEMORY),  # no more than τ, and likely: −.2 a token
        (-4.0, -5.0, 1.5, 1.5, verdicts.MEMORY),  # likely, just: −.5
        (-4.01, -5.01, 1.5, 1.5, verdicts.USED),
        (-9.0, -1.0, 2.0, 8.0, verdicts.MEMORY),
        (-10.0, -20.0, 12.0, 6.0, verdicts.USED),  # half of the gain
        (-10.0, -20.0, 12.0, 5.9, verdicts.UNSUPPORTED),  # less
        (-30.0, -20.0, 4.0, 8.0, verdicts.USED),  # the other passages mislead
        (-30.0, -20.0, 0.0, 0.0, verdicts.UNSUPPORTED),
    ],
)
def test_how_much_a_passage_must_help(full, none, gain, own, verdict):
    whole = Whole(full, none, gain, 10)
    found = evidence("cited main", effect=own, own=own, alone=counts(own, own, whole, PLAN))
    assert statement_verdict(whole, [found], PLAN) == verdict


@pytest.mark.parametrize(
    ("effect", "own", "gain", "expected"),
    [
        (1.01, 1.01, 5.0, True),
        (1.0, 5.0, 5.0, False),
        (5.0, 1.0, 5.0, False),
        (2.01, 2.01, 20.0, True),
        (2.0, 9.0, 20.0, False),
        (9.0, 2.0, 20.0, False),
    ],
)
def test_both_effects_must_count(effect, own, gain, expected):
    assert counts(effect, own, Whole(-10.0, -20.0, gain, 10), PLAN) is expected


@pytest.mark.parametrize(
    ("passages", "expected"),
    [
        ([evidence("cited main", own=5.0)], True),
        ([evidence("cited main", own=4.99)], False),
        ([evidence("main", own=9.0, above_chance=False)], False),
        ([evidence("main", own=9.0, alone=False)], False),
        ([evidence("minor", own=2.5)] * 2, True),
        ([evidence("minor", own=2.49)] * 2, False),
        ([evidence("grouped", group_own=5.0)] * 2, True),
        ([evidence("grouped", group_own=4.99)] * 2, False),
        ([evidence("grouped", group_own=3.0)] * 2 + [evidence("minor")], True),
        ([evidence("grouped", group_own=2.9)] * 2 + [evidence("minor")], False),
        ([evidence("grouped minor", group_own=4.9), evidence("grouped", group_own=4.9)], False),
        ([evidence("grouped minor", group_own=5.0), evidence("grouped", group_own=5.0)], True),
        ([], False),
    ],
)
def test_what_is_owed_must_add_up(passages, expected):
    """To 5 of 10 nats; a set counts once, and a member that is used alone counts in its set."""
    assert helped(Whole(-10.0, -20.0, 10.0, 10), passages, PLAN) is expected


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
