"""From measured questions to lines: p and q against pools counted by hand, bounds, verdicts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mechattr.audit import verdicts
from mechattr.audit.judging import judge
from mechattr.audit.plan import Plan
from tests.audit.measured import nothing, question, source

PLAN = Plan(tau=0.7, share=0.1, carried=0.5, memory=-0.7)

KEYS = {
    "id", "sid", "start", "end", "text", "n_tokens", "logp_full", "logp_none", "context_effect",
    "verdict", "strength", "operator", "n_forwards", "warnings", "tokens", "gain", "passages",
}  # fmt: skip
PASSAGE_KEYS = {
    "pid", "cited", "necessity", "sufficiency", "surrogate", "ci95", "p", "q", "used", "verdict",
    "token_necessity", "token_sufficiency",
}  # fmt: skip
MORE_KEYS = {"operators", "earlier"}
MORE_PASSAGE_KEYS = {
    "of",
    "decisive",
    "upper",
    "redundant_with",
    "joint_effect",
    "shapley",
    "shapley_stderr",
}


def check_form(line):
    """The contract's keys, documented further ones, and JSON that any reader takes."""
    assert KEYS <= set(line) <= KEYS | MORE_KEYS
    for passage in line["passages"]:
        assert PASSAGE_KEYS <= set(passage) <= PASSAGE_KEYS | MORE_PASSAGE_KEYS
        assert len(passage["ci95"]) == 2
    json.dumps(line, allow_nan=False)


def of(line, key):
    return [passage[key] for passage in line["passages"]]


# --- numbers --------------------------------------------------------------------------------------


def test_a_line_has_the_numbers_that_were_measured():
    values = [lambda s: -20 + 10.1234567 * (0 in s) + 0.5 * (1 in s) - 0.25 * (2 in s)]
    (line,) = judge([question("q", values, cited=[[0, 2]])], PLAN)
    check_form(line)
    assert (line["id"], line["sid"], line["start"], line["end"]) == ("q", "s1", 0, 5)
    assert (line["text"], line["n_tokens"], line["n_forwards"]) == ("Said 1.", 10, 12)
    assert line["logp_full"] == -9.626543
    assert line["logp_none"] == -20.0
    assert line["context_effect"] == line["gain"] == 10.373457
    assert (line["operator"], line["strength"], line["warnings"]) == ("remove", "strong", [])
    assert of(line, "pid") == ["p1", "p2", "p3", "p4"]
    assert of(line, "cited") == [True, False, True, False]
    assert of(line, "necessity") == [10.123457, 0.5, -0.25, 0]
    assert of(line, "sufficiency") == [10.123457, 0.5, -0.25, 0]
    assert of(line, "surrogate") == [0.5, 0.5, 0.5, 0.5]
    assert of(line, "ci95") == [[0.25, None]] * 4, "what isn't known is null"
    assert of(line, "used") == [True, False, False, False]
    assert of(line, "verdict") == [
        verdicts.USED, verdicts.NOT_USED, verdicts.UNUSED, verdicts.NOT_USED]  # fmt: skip
    assert line["verdict"] == verdicts.USED
    told = {"text": "Said.", "start": 0, "end": 5, "logp_full": -9.626543, "logp_none": -20.0}
    assert line["tokens"] == [told]
    assert of(line, "token_necessity") == [[10.123457], [0.5], [-0.25], [0]]
    assert of(line, "token_sufficiency") == of(line, "token_necessity")
    assert of(line, "decisive") == [10.123457, 0, 0, 0], "half of the 10.4 nats is not lost"
    assert of(line, "upper")[0] is None
    assert of(line, "upper")[1:] == pytest.approx([0.5, -0.25, 0])


def test_p_counts_the_null_effects_of_the_whole_run():
    """39 swaps in one question, 20 in another: p of an effect is (1 + as large ones) / 60."""
    nulls = [[k / 100] for k in range(59)]
    values = [[lambda s: 0.305 * (0 in s) + 0.575 * (1 in s) + 9.0 * (2 in s) - 20], [nothing]]
    questions = [
        question("a", values[0], nulls=nulls[::3]),
        question("b", values[1], nulls=[n for i, n in enumerate(nulls) if i % 3]),
    ]
    first, second = judge(questions, PLAN)
    # .305: 28 of 0, .01, ..., .58 are as large; .575: the largest; 9: none.
    assert of(first, "p")[:3] == pytest.approx([29 / 60, 2 / 60, 1 / 60], abs=1e-6)
    # 0: all of them.
    assert of(second, "p") == [1.0] * 4


def test_q_is_over_all_passages_of_all_statements_of_the_run():
    nulls = [[k / 100, k / 100] for k in range(59)]
    values = [source(0, worth=9.0), lambda s: -20 + 0.565 * (0 in s) + 0.305 * (1 in s)]
    lines = judge([question("a", values, nulls=nulls), question("b", [nothing], nulls=[])], PLAN)
    p = np.array([value for line in lines for value in of(line, "p")])
    assert len(p) == 12
    expected = []
    for value in p:
        later = [other * 12 / (p <= other).sum() for other in p if other >= value]
        expected.append(min(1.0, *later))
    q = [value for line in lines for value in of(line, "q")]
    assert q == pytest.approx(expected, abs=1e-5)
    assert len(set(np.round(q, 6))) > 2


def test_p_is_of_statements_of_like_length():
    """Short statements move little, long ones much: each has its own null."""
    small, large = [[k / 100] for k in range(40)], [[k / 1.0] for k in range(40)]
    value = [lambda s: -20 + 3.0 * (0 in s)]
    questions = [
        question("short", value, n_tokens=5, nulls=small),
        question("long", value, n_tokens=50, nulls=large),
    ]
    short, long = judge(questions, PLAN)
    assert of(short, "p")[0] == pytest.approx(1 / 41, abs=1e-6)
    assert of(long, "p")[0] == pytest.approx(38 / 41, abs=1e-6)


def test_p_per_passage_is_from_its_own_swaps():
    """Swap i is in place i mod 3."""
    nulls = [[0.01 * k if k % 3 == 0 else 5.0] for k in range(57)]
    value = [lambda s: -20 + 3.0 * (0 in s) + 3.0 * (1 in s)]
    plan = Plan(null="per passage", tau=0.7)
    (line,) = judge([question("q", value, 3, nulls=nulls)], plan)
    assert of(line, "p") == [1 / 20, 1.0, 1.0]
    assert of(line, "used") == [True, False, False]


def test_q_is_held_against_alpha_where_that_is_asked_for():
    """One effect in eight, p = 2/61: below .05, but not among eight tests."""
    nulls = [[k / 100] for k in range(60)]
    value = [lambda s: -5 + 0.585 * (0 in s)]
    questions = [question("a", value, nulls=nulls), question("b", [nothing], nulls=[])]
    plans = {c: Plan(control=c, tau=0.1, share=0, carried=0) for c in ("p", "q")}
    by_p, by_q = (judge(questions, plans[c])[0] for c in ("p", "q"))
    assert of(by_p, "p")[0] == pytest.approx(2 / 61, abs=1e-6)
    assert of(by_p, "q")[0] == pytest.approx(8 * 2 / 61, abs=1e-6)
    assert of(by_p, "used") == [True, False, False, False]
    assert of(by_q, "used") == [False] * 4


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cited", "statement", "passages"),
    [
        ([0], verdicts.USED, [verdicts.USED, verdicts.NOT_USED]),
        ([0, 1], verdicts.USED, [verdicts.USED, verdicts.UNUSED]),
        ([1], verdicts.UNUSED, [verdicts.UNCITED, verdicts.UNUSED]),
        ([], verdicts.UNCITED, [verdicts.UNCITED, verdicts.NOT_USED]),
    ],
)
def test_one_source(cited, statement, passages):
    (line,) = judge([question("q", [source(0)], cited=[cited])], PLAN)
    assert line["verdict"] == statement
    assert of(line, "verdict") == [*passages, verdicts.NOT_USED, verdicts.NOT_USED]


def test_an_effect_no_larger_than_chance_is_not_used():
    chance = [[x] for x in np.linspace(-12, 12, 60)]
    (line,) = judge([question("q", [source(0)], cited=[[0]], nulls=chance)], PLAN)
    assert of(line, "used") == [False] * 4
    assert of(line, "verdict")[0] == verdicts.INCONCLUSIVE, "and not shown to be unused either"


def test_what_does_a_little_for_every_word_is_not_used():
    """Of 10 nats 4 are lost without p1, 10 without p2, and so of each of two tokens; then without
    p1 all of one token's are, and none of the other's."""

    def measured(*lost):
        (one,) = [question("q", [lambda s: -20 + 4.0 * (0 in s) + 6.0 * (1 in s)], cited=[[0]])]
        one["tokens"] = [dict(one["tokens"][0], start=3 * k, end=3 * k + 2) for k in range(2)]
        one["effects"][0] |= {
            "tokens_full": [-5.0, -5.0], "tokens_none": [-9.0, -11.0],
            "tokens_without": [np.subtract(-5.0, lost).tolist(), [-9.0, -7.0], [-5.0] * 2,
                               [-5.0] * 2],
            "tokens_alone": [[-9.0, -11.0]] * 4,
        }  # fmt: skip
        return judge([one], PLAN)[0]

    spread, whole = measured(1.6, 2.4), measured(4.0, 0.0)
    assert of(spread, "necessity") == of(whole, "necessity") == [4.0, 6.0, 0, 0]
    assert of(spread, "decisive") == [0, 4.0, 0, 0]
    assert of(whole, "decisive") == [4.0, 4.0, 0, 0]
    assert of(spread, "verdict")[:2] == [verdicts.INCONCLUSIVE, verdicts.UNCITED]
    assert of(whole, "verdict")[:2] == [verdicts.USED, verdicts.UNCITED]
    assert (spread["verdict"], whole["verdict"]) == (verdicts.UNSUPPORTED, verdicts.USED)


def test_sets_are_held_against_pairs():
    """What two off-topic passages are worth together is more than what one is."""
    value = [lambda s: -20 + 10.0 * bool(s & {0, 2})]
    measured = question("q", value, groups=[[[0, 2]]])
    assert judge([measured], PLAN)[0]["verdict"] == verdicts.REDUNDANT
    for i, pair in enumerate(measured["effects"][0]["pairs"]):
        pair["worth"] = [9.0 + i / 20]
    assert not any(of(judge([measured], PLAN)[0], "used"))


def test_two_copies_are_redundant_and_name_each_other():
    values = [source(0, 2), source(1)]
    measured = question("q", values, cited=[[0], [1]], groups=[[[0, 2]], []])
    first, second = judge([measured], PLAN)
    check_form(first)
    assert first["verdict"] == verdicts.REDUNDANT
    assert of(first, "verdict")[:3] == [
        verdicts.REDUNDANT, verdicts.NOT_USED, verdicts.REDUNDANT]  # fmt: skip
    assert of(first, "used") == [True, False, True, False]
    assert first["passages"][0]["redundant_with"] == ["p3"]
    assert first["passages"][2]["redundant_with"] == ["p1"]
    assert first["passages"][0]["joint_effect"] == 10.0
    assert "redundant_with" not in first["passages"][1]
    assert second["verdict"] == verdicts.USED


def test_a_set_no_larger_than_chance_is_not_redundant():
    chance = [[x] for x in np.linspace(-12, 12, 60)]
    measured = question("q", [source(0, 2)], cited=[[0]], groups=[[[0, 2]]], nulls=chance)
    (line,) = judge([measured], PLAN)
    assert of(line, "used") == [False] * 4
    assert not any("redundant_with" in passage for passage in line["passages"])


def test_sentences_are_cited_with_their_passage():
    measured = question("q", [source(0)], cited=[[0]])
    for passage, of_ in zip(measured["passages"], ("a", "a", "b", "b"), strict=True):
        passage["of"] = of_
    measured["statements"][0]["cited"] = ["a"]
    (line,) = judge([measured], PLAN)
    assert of(line, "cited") == [True, True, False, False]


# --- what is optional -----------------------------------------------------------------------------


def test_the_entailment_plug_in_sees_the_cited_passages_that_are_used():
    asked = []

    def entails(premise, statement):
        asked.append((premise, statement))
        return statement == "Said 1."

    two = lambda s: -20 + 6.0 * (0 in s) + 6.0 * (1 in s)  # noqa: E731
    values = [two, source(1), source(0)]
    measured = question("q", values, cited=[[0, 1], [1], [2]])
    lines = judge([measured], PLAN, entails)
    assert asked == [("Text of p1.\n\nText of p2.", "Said 1."), ("Text of p2.", "Said 2.")]
    assert [line["verdict"] for line in lines] == [
        verdicts.SUPPORTED, verdicts.USED, verdicts.UNUSED]  # fmt: skip
    assert of(lines[0], "verdict")[:2] == [verdicts.SUPPORTED, verdicts.SUPPORTED]


def test_operators_that_disagree():
    measured = question(
        "q", [source(0), source(1)], cited=[[0], [1]], others=[("mask", [nothing, source(1)])]
    )
    plan = Plan(operators=("remove", "mask"), tau=0.7)
    first, second = judge([measured], plan)
    check_form(first)
    assert (first["operator"], first["verdict"]) == ("remove", verdicts.USED)
    other = first["operators"]["mask"]
    assert (other["verdict"], other["context_effect"]) == (verdicts.UNSUPPORTED, 0.0)
    assert [passage["necessity"] for passage in other["passages"]] == [0.0] * 4
    assert first["warnings"] == [
        "Operators disagree: remove says 'cited and used', mask says 'unsupported'."
    ]
    assert second["warnings"] == []
    assert measured["warnings"] == [], "the question's own warnings are left alone"


def test_earlier_statements_and_shapley_values_come_along():
    told = {"sid": "s2", "context_effect_without": 1.23456789,
            "statements": [{"sid": "s1", "necessity": 2.0, "sufficiency": -1.0}]}  # fmt: skip
    measured = question("q", [source(0), source(1)], earlier=[told])
    measured["effects"][0] |= {
        "shapley": [[1, 2, 3, 4]] * 2,
        "shapley_stderr": [[0.1, 0, 0, 0]] * 2,
    }
    first, second = judge([measured], PLAN)
    check_form(second)
    assert "earlier" not in first
    assert second["earlier"] == {
        "context_effect_without": 1.234568,
        "statements": [{"sid": "s1", "necessity": 2.0, "sufficiency": -1.0}],
    }
    assert (of(first, "shapley"), of(first, "shapley_stderr")) == ([1, 2, 3, 4], [0.1, 0, 0, 0])


def test_nothing_measured_makes_no_line():
    assert judge([], PLAN) == []


def test_other_thresholds_make_other_verdicts_of_the_same_measurements():
    measured = question("q", [lambda s: -20 + 3.0 * (0 in s)], cited=[[0]])
    names = [judge([measured], Plan(tau=tau, strong=9.0))[0]["verdict"] for tau in (0.7, 3.0)]
    assert names == [verdicts.USED, verdicts.UNSUPPORTED]
    before = json.dumps(measured)
    judge([measured], PLAN)
    assert json.dumps(measured) == before
    assert not math.isnan(measured["effects"][0]["full"][0])
