"""Greater-than in both forms: years, answers, counterfactuals, bad input."""

from __future__ import annotations

from collections import Counter

import pytest

import circuits
from circuits.tasks.greater_than import NOUNS
from mechattr.errors import InputError, NotSupportedError, UnknownNameError
from mechattr.transformer.prompts import token_id
from tests.circuits.vocabulary import ONE_DIGIT, TWO_DIGITS, rows_of, stub, task_tokenizer
from tests.transformer.tiny import tiny_tokenizer

FORMS = {"two": TWO_DIGITS, "one": ONE_DIGIT}


def model_of(form, **settings):
    return stub(task_tokenizer(numbers=FORMS[form], **settings))


def test_the_form_is_found_and_named():
    assert "two digits" in circuits.tasks.greater_than(model_of("two"), size=4).form
    assert "decade digit" in circuits.tasks.greater_than(model_of("one"), size=4).form


def test_two_digits():
    for row in rows_of(circuits.tasks.greater_than(model_of("two"), size=97)):
        year = int(row["start"])
        assert 2 <= year <= 98
        assert row["answer"] == [f"{y:02d}" for y in range(year + 1, 100)]
        assert row["distractor"] == [f"{y:02d}" for y in range(year + 1)]
        assert row["counterfactual_start"] == "01"


def test_one_digit():
    for row in rows_of(circuits.tasks.greater_than(model_of("one"), size=40)):
        decade, last = row["start"]
        assert decade in "12345678"
        assert last == "9"
        assert row["answer"] == [str(d) for d in range(int(decade) + 1, 10)]
        assert row["distractor"] == [str(d) for d in range(int(decade) + 1)]
        assert row["counterfactual_start"] == "09"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["01", "random_year"])
@pytest.mark.parametrize("bos", [False, True])
def test_prompts_and_positions(form, kind, bos):
    task = circuits.tasks.greater_than(model_of(form, bos=bos), size=24, counterfactual=kind)
    prompts = task.prompts
    assert len(set(prompts.lengths)) == 1
    assert prompts.counterfactual_labels is not None
    for i, row in enumerate(rows_of(task)):
        labels, other = prompts.labels[i], prompts.counterfactual_labels[i]
        assert "".join(labels[bos:]) == row["clean"]
        assert "".join(other[bos:]) == row["counterfactual"]
        assert row["clean"].endswith(f"17{row['start']} to the year 17")
        assert row["counterfactual_start"] != row["start"]
        differ = [k for k, (a, b) in enumerate(zip(labels, other, strict=True)) if a != b]
        assert differ == [row["position_start"]]
        assert labels[row["position_noun"]] == f" {row['noun']}"
        assert row["position_end"] == prompts.target_positions[i] == len(labels) - 1
        assert row["start"].startswith(labels[row["position_start"]])


@pytest.mark.parametrize("form", FORMS)
def test_answers_and_distractors_share_out_all_ends(form):
    model = model_of(form)
    task = circuits.tasks.greater_than(model, size=20)
    size = len(model.tokenizer)
    for answers, distractors in zip(task.answers, task.distractors, strict=True):
        ids = [token_id(model.tokenizer, t, size) for t in (*answers, *distractors)]
        assert len(set(ids)) == len(ids) == len(FORMS[form])
        assert answers
        assert distractors


def test_years_that_are_cut_otherwise_are_left_out_as_starts_but_not_as_ends():
    task = circuits.tasks.greater_than(
        stub(task_tokenizer(numbers=(*TWO_DIGITS, "1776", "1745"))), size=95
    )
    starts = set(task.columns["start"])
    assert "75" in starts
    assert not {"76", "45"} & starts
    row = task.columns["start"].index("75")
    assert "76" in task.columns["answer"][row]


def test_start_years_are_balanced_and_nothing_repeats():
    task = circuits.tasks.greater_than(model_of("one"), size=27)
    counts = Counter(task.columns["start"])
    assert len(counts) == 8
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len(set(task.columns["clean"])) == 27


def test_seed():
    first, again, other = (
        circuits.tasks.greater_than(model_of("one"), size=9, seed=s) for s in (0, 0, 1)
    )
    random = circuits.tasks.greater_than(model_of("one"), size=9, counterfactual="random_year")
    assert first.columns == again.columns
    assert first.columns["clean"] != other.columns["clean"]
    assert first.columns["clean"] == random.columns["clean"]


def test_nouns_are_filtered():
    task = circuits.tasks.greater_than(model_of("one", nouns=NOUNS[1:3]), size=24)
    assert set(task.columns["noun"]) == {"war", *NOUNS[1:3]}  # the tiny tokenizer knows " war"
    with pytest.raises(InputError, match="only 24 distinct"):
        circuits.tasks.greater_than(model_of("one", nouns=NOUNS[1:3]), size=25)


def test_a_tokenizer_that_cuts_years_otherwise_is_refused_with_its_cut():
    tokenizer = tiny_tokenizer([f"{n}" for n in range(170, 180)])
    with pytest.raises(
        NotSupportedError, match=r"17\|32 or 1\|7\|3\|2; this one makes ' \|17\|32'"
    ):
        circuits.tasks.greater_than(stub(tokenizer))


def test_unknown_kind():
    with pytest.raises(UnknownNameError, match="random_year"):
        circuits.tasks.greater_than(model_of("one"), counterfactual="random")
