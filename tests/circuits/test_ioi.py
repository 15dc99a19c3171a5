"""Indirect object identification: sentences, counterfactuals, positions, balance, bad input."""

from __future__ import annotations

from collections import Counter

import pytest

import circuits
from circuits.tasks.ioi import COUNTERFACTUALS, NAMES, TEMPLATES
from mechattr.errors import InputError, UnknownNameError
from tests.circuits.vocabulary import rows_of, stub, task_tokenizer
from tests.transformer.tiny import tiny_tokenizer

ONE = TEMPLATES[:1]


def names_of(row, which="clean"):
    """The three names in a sentence, in order."""
    known = {f" {name}" for name in NAMES}
    return [word for word in row[which].replace(",", "").split() if f" {word}" in known]


def test_demo_pair_is_the_one_of_the_documentation():
    assert circuits.tasks.demo_pair() == (
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        " Mary",
        " John",
    )


def test_there_are_enough_templates_and_each_is_sound():
    assert len(TEMPLATES) >= 8
    assert all(template.endswith(" to") for template in TEMPLATES)
    assert any("{object}" not in template for template in TEMPLATES)


@pytest.mark.parametrize("kind", COUNTERFACTUALS)
def test_clean_sentences_follow_the_order(kind):
    for row in rows_of(circuits.tasks.ioi(stub(), size=48, counterfactual=kind)):
        io, s = row["io"], row["subject"]
        assert names_of(row) == {"ABBA": [io, s, s], "BABA": [s, io, s]}[row["order"]]
        assert (row["answer"], row["distractor"]) == (f" {io}", f" {s}")


@pytest.mark.parametrize("kind", COUNTERFACTUALS)
def test_counterfactuals(kind):
    task = circuits.tasks.ioi(stub(), size=48, counterfactual=kind)
    for row in rows_of(task):
        a, b, s = names_of(row)
        x, y, z = names_of(row, "counterfactual")
        old = {row["io"], row["subject"]}
        if kind == "swap_subject":
            assert [x, y, z] == [a, b, row["io"]]
        elif kind == "random_subject":
            assert [x, y] == [a, b]
            assert z not in old
        elif kind == "random_names":
            assert not {x, y} & old
            assert x != y
            assert [x, y].index(z) == [a, b].index(s)
        elif kind == "abc":
            assert len({x, y, z} | old) == 5
        else:
            assert [x, y, z] == [b, a, s]
        without = [word for word in row["clean"].replace(",", "").split() if word not in old]
        other = [w for w in row["counterfactual"].replace(",", "").split() if w not in {x, y, z}]
        assert without == other


@pytest.mark.parametrize("bos", [False, True])
def test_prompts_are_the_data_sets_sentences_and_positions_point_at_the_names(bos):
    task = circuits.tasks.ioi(stub(task_tokenizer(bos=bos)), size=30)
    assert task.prompts.begins_with_bos == bos
    assert task.prompts.counterfactual is not None
    for i, row in enumerate(rows_of(task)):
        labels = task.prompts.labels[i]
        assert "".join(labels[bos:]) == row["clean"]
        assert labels[row["position_io"]] == row["answer"]
        assert labels[row["position_s1"]] == labels[row["position_s2"]] == row["distractor"]
        assert row["position_s1"] < row["position_s2"] < row["position_end"]
        assert row["position_end"] == len(labels) - 1 == task.prompts.target_positions[i]
        assert len(task.prompts.tokens[i]) == len(task.prompts.counterfactual[i])


def test_prepend_bos_can_be_refused():
    model = stub(task_tokenizer(bos=True))
    with_bos = circuits.tasks.ioi(model, size=2)
    without = circuits.tasks.ioi(model, size=2, prepend_bos=False)
    assert [n - 1 for n in with_bos.prompts.lengths] == list(without.prompts.lengths)
    assert not without.prompts.begins_with_bos


def test_the_same_seed_gives_the_same_task_another_seed_another():
    first, again, other = (circuits.tasks.ioi(stub(), size=20, seed=s) for s in (3, 3, 4))
    assert first.columns == again.columns
    assert first.prompts.digest() == again.prompts.digest()
    assert first.columns["clean"] != other.columns["clean"]


def test_clean_prompts_do_not_depend_on_the_kind_of_counterfactual():
    tasks = [circuits.tasks.ioi(stub(), size=20, counterfactual=kind) for kind in COUNTERFACTUALS]
    assert all(task.columns["clean"] == tasks[0].columns["clean"] for task in tasks)
    assert len({tuple(task.columns["counterfactual"]) for task in tasks}) == len(COUNTERFACTUALS)


def test_templates_and_orders_are_balanced_and_nothing_repeats():
    task = circuits.tasks.ioi(stub(), size=100)
    groups = Counter(zip(task.columns["template"], task.columns["order"], strict=True))
    assert len(groups) == 2 * len(TEMPLATES)
    assert max(groups.values()) - min(groups.values()) <= 1
    assert len(set(task.columns["clean"])) == 100


def test_a_small_space_is_used_up_and_no_further():
    # The tiny tokenizer knows 7 names, 2 places and 2 objects.
    model = stub(tiny_tokenizer())
    most = 2 * 7 * 6 * 2 * 2
    task = circuits.tasks.ioi(model, size=most, templates=ONE)
    assert len(set(task.columns["clean"])) == most
    with pytest.raises(InputError, match=f"only {most} distinct sentences"):
        circuits.tasks.ioi(model, size=most + 1, templates=ONE)


def test_only_words_of_one_token_are_used():
    task = circuits.tasks.ioi(stub(tiny_tokenizer()), size=20, templates=ONE)
    used = set(task.columns["io"]) | set(task.columns["subject"])
    assert used <= {"Mary", "John", "Tom", "Anna", "Paul", "Alice", "Mark"}
    assert set(task.columns["place"]) == {"store", "park"}
    assert set(task.columns["object"]) == {"drink", "book"}


def test_own_templates():
    own = ["At noon {A} saw {B}, and {S} waved to"]
    task = circuits.tasks.ioi(stub(tiny_tokenizer()), size=10, templates=own)
    assert set(task.columns["template"]) == set(own)
    assert set(task.columns["place"]) == set(task.columns["object"]) == {""}


@pytest.mark.parametrize(
    "template",
    [
        "When {A} met {S}, {S} waved to",
        "When {S} met {A} and {B}, they waved to",
        "When {A} met {B}, {S} gave {thing} to",
        "{A} met {B}, and {S} waved to",
        "When {A} met {B}, {S} waved to ",
    ],
)
def test_unsound_templates_are_refused(template):
    with pytest.raises(InputError, match="once each in this order"):
        circuits.tasks.ioi(stub(), templates=[template])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": []}, "templates is empty"),
        ({"templates": [*ONE, *ONE]}, "twice"),
        ({"size": 0}, "size is 0; expected a whole number from 1 up"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        circuits.tasks.ioi(stub(), **settings)


def test_an_unknown_kind_is_told_the_near_ones():
    with pytest.raises(UnknownNameError, match="Did you mean swap_subject"):
        circuits.tasks.ioi(stub(), counterfactual="swap_subjekt")


def test_too_few_names_says_how_many_were_found():
    tokenizer = few_names(" Mary", " John", " Tom")
    with pytest.raises(InputError, match=r"has 3 of the \d+ names .*Mary, John, Tom.* at least 5"):
        circuits.tasks.ioi(stub(tokenizer), counterfactual="abc", templates=ONE)
    circuits.tasks.ioi(stub(tokenizer), counterfactual="random_subject", templates=ONE, size=4)


def few_names(*names):
    """A tokenizer of whole words, where everything unknown is one and the same <unk>."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ("<unk>", "and", "When", " and", " went", " to", " the", " store", " gave", " a", ",")
    vocabulary = {word: i for i, word in enumerate((*words, " drink", *names))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s,]+|,"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
