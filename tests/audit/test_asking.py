"""Effects of a question's passages, against one whole run of every prompt's text.

Nothing is shared with what is tested: prompts are written out here, removed or replaced text is cut
out of them by hand, and a masked passage is one whose keys a hook closes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mechattr.audit.judging import judge
from mechattr.audit.measuring import Measurer
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.reading import read
from mechattr.audit.records import Record
from tests.audit import small
from tests.audit.small import BLOCKS, PASSAGES, block, prompt, record

MODEL = pytest.mark.parametrize("name", small.NAMES)
OPERATOR = pytest.mark.parametrize("operator", ["remove", "mask", "replace"])
CHAT = pytest.mark.parametrize("chat", [False, True])

N = len(PASSAGES)
SETS = [frozenset(s) for k in range(N + 1) for s in itertools.combinations(range(N), k)]
EVERY = frozenset(range(N))


def measured(name: str, given: dict[str, Any], *, chat: bool = False, **settings: Any) -> Any:
    """One record, measured."""
    (one,) = read([given])
    assert isinstance(one, Record), one
    plan = Plan(**{"swaps": 1, **settings})
    swaps = plan.n_swaps(1)
    off_topic = OffTopic([small.OFF_TOPIC])
    return Measurer(small.model(name, chat=chat), plan, off_topic, swaps).measure(one)


def off_topic(place: int, blocks: tuple[str, ...] = BLOCKS) -> str:
    """The off-topic text as a block of a passage's length."""
    # A block's two line breaks and its number are five tokens; every word of the text is one.
    n_tokens = small.n_tokens(blocks[place])
    made = block(place + 1, " ".join(small.OFF_TOPIC.split()[: n_tokens - 5]))
    assert small.n_tokens(made) == n_tokens
    return made


def worth(
    name: str,
    operator: str,
    here: frozenset[int],
    blocks: tuple[str, ...] = BLOCKS,
    *,
    chat: bool = False,
) -> np.ndarray:
    """[statement] log p with some passages there."""
    if operator == "mask":
        closed = [text for j, text in enumerate(blocks) if j not in here]
        return small.values(name, prompt(blocks, chat=chat), chat=chat, closed=closed)
    others = [off_topic(j) if operator == "replace" else "" for j in range(N)]
    shown = [text if j in here else others[j] for j, text in enumerate(blocks)]
    return small.values(name, prompt(shown, chat=chat), chat=chat)


def assert_close(found: Any, expected: np.ndarray, atol: float = 1e-9) -> None:
    expected = np.asarray(expected)
    assert np.shape(found) == expected.shape
    assert np.abs(expected).max() > 0.01, "numbers that are all zero show nothing"
    np.testing.assert_allclose(np.asarray(found, float), expected, atol=atol, rtol=0)


# --- effects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chat"),
    [*((name, False) for name in small.NAMES), ("llama-bridge", True)],
)
@OPERATOR
def test_effects_are_what_the_model_says_of_each_prompt(name, operator, chat):
    found = measured(name, record(), chat=chat, operators=(operator,))["effects"][0]
    values = {s: worth(name, operator, s, chat=chat) for s in SETS}
    expected = small.effects(values, N)
    assert found["operator"] == operator
    for key, numbers in expected.items():
        assert_close(found[key], numbers)


@pytest.mark.parametrize("name", small.NAMES[-2:])
def test_tokens_sum_to_statements(name):
    found = measured(name, record())
    for key, blocks in (("full", BLOCKS), ("none", ())):
        logs, _ = small.token_log_probs(name, prompt(blocks), f" {small.SCORED}")
        assert_close(found["effects"][0][f"tokens_{key}"], logs.numpy())
        for i, sid in enumerate(["s1", "s2"]):
            own = [t["sid"] == sid for t in found["tokens"]]
            total = np.array(found["effects"][0][f"tokens_{key}"])[own].sum()
            assert found["statements"][i]["n_tokens"] == sum(own)
            assert total == pytest.approx(found["effects"][0][key][i], abs=1e-9)
    for j in range(N):
        for key, here in (("without", EVERY - {j}), ("alone", {j})):
            left = prompt([BLOCKS[i] for i in sorted(here)])
            logs, _ = small.token_log_probs(name, left, f" {small.SCORED}")
            assert_close(found["effects"][0][f"tokens_{key}"][j], logs.numpy())
    places = [(t["start"], t["end"]) for t in found["tokens"]]
    shown = [small.ANSWER[a:b] for a, b in places]
    assert [text.strip() for text in shown] == [t["text"].strip() for t in found["tokens"]]


def test_surrogate_is_the_least_squares_plane_through_all_subsets():
    """Three passages have fewer subsets than the design has rows."""
    found = measured("llama-bridge", record())["effects"][0]
    masks = np.array([[j in s for j in range(N)] for s in SETS], float)
    y = np.stack([worth("llama-bridge", "remove", s) for s in SETS])
    plane = np.linalg.lstsq(np.c_[np.ones(len(masks)), masks], y, rcond=None)[0]
    assert_close(found["surrogate"], plane[1:].T)
    banzhaf = [
        [np.mean([y[SETS.index(s | {j})][i] - y[SETS.index(s)][i] for s in SETS if j not in s])
         for j in range(N)] for i in range(2)
    ]  # fmt: skip
    assert_close(found["surrogate"], np.array(banzhaf))


def test_every_mask_that_was_run_is_kept_with_its_values():
    found = measured("llama-bridge", record())
    effects = found["effects"][0]
    assert sorted(effects["masks"]) == sorted("".join(map(str, m)) for m in small.masks(N))
    for mask, values in zip(effects["masks"], effects["values"], strict=True):
        here = frozenset(j for j, digit in enumerate(mask) if digit == "1")
        assert_close(values, worth("llama-bridge", "remove", here))


def test_shapley_values():
    found = measured("llama-bridge", record(), shapley=8)["effects"][0]
    values = {s: worth("llama-bridge", "remove", s) for s in SETS}
    expected = np.zeros((2, N))
    for order in itertools.permutations(range(N)):
        for k, j in enumerate(order):
            before = frozenset(order[:k])
            expected[:, j] += (values[before | {j}] - values[before]) / 6
    assert_close(found["shapley"], expected)
    assert not np.any(found["shapley_stderr"])


def test_shapley_values_are_sampled_where_subsets_are_too_many():
    given = record(passages=[{"text": f"{who} was in the park."} for who in ("Tom", "Anna", "Mary")
                             for _ in range(2)], answer="Tom was in the park.")  # fmt: skip
    found = measured("llama-bridge", given, shapley=40)["effects"][0]
    assert np.shape(found["shapley"]) == (1, 6)
    np.testing.assert_allclose(
        np.sum(found["shapley"], 1), np.subtract(found["full"], found["none"]), atol=1e-9
    )
    assert np.median(found["shapley_stderr"]) > 0.1


SIX = [{"pid": f"p{i}", "text": text} for i, text in enumerate((
    "Mary went to the store and had a drink.", "John sat on the mat.", "Tom slept in the park.",
    "Anna played.", "The dog lasted from year to year.", "a cat sat on a bad mat of the war"))
]  # fmt: skip


def test_more_is_asked_of_what_is_cited_and_not_needed():
    """With what carries the statement there: the others come and go."""
    plain = record(passages=SIX, answer="John sat on the mat.")
    before = measured("llama-bridge", plain)["effects"][0]
    (line,) = judge([{**measured("llama-bridge", plain), "warnings": []}], Plan())
    full, none = (
        np.array([t[f"logp_{which}"] for t in line["tokens"]]) for which in ("full", "none")
    )
    threshold = Plan().threshold(np.maximum(full - none, 0).sum())
    counted = [min(p["necessity"], p["decisive"]) for p in line["passages"]]
    support = set(np.flatnonzero(np.array(counted) > threshold).tolist())
    support.update(j for group in before["groups"][0] for j in group["players"])
    assert 0 < len(support) < 5
    idle = next(j for j in range(6) if j not in support)

    def more(*cited: int) -> list[str]:
        marks = "".join(f"[p{j}]" for j in cited)
        given = record(passages=SIX, answer=f"John sat on the mat {marks}.")
        now = measured("llama-bridge", given)["effects"][0]
        assert now["masks"][: len(before["masks"])] == before["masks"]
        np.testing.assert_array_equal(now["values"][: len(before["masks"])], before["values"])
        return now["masks"][len(before["masks"]) :]

    assert more(*support) == []
    asked = more(*support, idle)
    assert len(asked) >= 6, "equal masks count once"
    for mask in asked:
        assert all(mask[j] == "1" for j in support)
    assert 0 < sum(mask[idle] == "1" for mask in asked) < len(asked)


# --- the null -------------------------------------------------------------------------------------


@MODEL
@OPERATOR
def test_swaps_put_an_off_topic_text_in_a_passages_place(name, operator):
    given = record(passages=[{k: v for k, v in p.items() if k != "title"} for p in PASSAGES])
    plain = tuple(block(i, p["text"]) for i, p in enumerate(PASSAGES, 1))
    found = measured(name, given, operators=(operator,), null="per passage", swaps=1)
    swaps = found["effects"][0]["swaps"]
    assert [swap["place"] for swap in swaps] == [0, 1, 2]
    for swap in swaps:
        j = swap["place"]
        blocks = tuple(off_topic(i, plain) if i == j else text for i, text in enumerate(plain))

        def v(here: frozenset[int], kept: tuple[str, ...] = blocks, j: int = j) -> np.ndarray:
            if operator != "replace":
                return worth(name, operator, here, kept)
            shown = [kept[i] if i in here else off_topic(i, plain) for i in range(N)]
            return small.values(name, prompt(shown))

        both = np.abs([swap["necessity"], swap["sufficiency"]])
        if operator == "replace":  # one off-topic text in the place of the same
            assert both.max() < 1e-9
            continue
        assert_close(swap["necessity"], v(EVERY) - v(EVERY - {j}))
        assert_close(swap["sufficiency"], v(frozenset({j})) - v(frozenset()))


@MODEL
@pytest.mark.parametrize("operator", ["remove", "mask"])
def test_pairs_put_off_topic_texts_in_two_places(name, operator):
    given = record(passages=[{k: v for k, v in p.items() if k != "title"} for p in PASSAGES])
    plain = tuple(block(i, p["text"]) for i, p in enumerate(PASSAGES, 1))
    (pair,) = measured(name, given, operators=(operator,), swaps=1)["effects"][0]["pairs"]
    two = set(pair["places"])
    assert len(two) == len(pair["titles"]) == 2
    blocks = tuple(off_topic(i, plain) if i in two else text for i, text in enumerate(plain))
    with_them, without = (worth(name, operator, s, blocks) for s in (EVERY, EVERY - two))
    assert_close(pair["worth"], with_them - without)


def test_pairs_of_each_run_and_none_of_one_passage():
    def count(**settings: Any) -> int:
        return len(measured("llama-bridge", **settings)["effects"][0]["pairs"])

    assert count(given=record(), swaps=7) == 7
    assert count(given=record(), swaps=4, null="per passage") == 4
    assert count(given=record(passages=PASSAGES[:1], answer="Tom slept."), swaps=4) == 0


def test_swaps_are_spread_evenly_over_places():
    places = [
        swap["place"] for swap in measured("llama-bridge", record(), swaps=7)["effects"][0]["swaps"]
    ]
    counts = np.bincount(places, minlength=N)
    assert counts.sum() == 7
    assert counts.max() - counts.min() == 1


def test_draws_depend_on_the_record_and_the_seed_alone():
    def of(**changes: Any) -> Callable[..., Any]:
        return lambda **settings: [
            (swap["place"], swap["necessity"])
            for swap in measured("llama-bridge", record(**changes), swaps=6, **settings)["effects"][
                0
            ]["swaps"]
        ]

    once = of()()
    assert of()() == once
    assert of()(seed=1) != once
    assert of(id="other")() != once
    assert of(seed=5)() != once


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["remove", "mask"])
def test_sentences_as_players(operator):
    found = measured("llama-bridge", record(), unit="sentence", operators=(operator,))
    names = [p["pid"] for p in found["passages"]]
    assert names == ["a#1", "b#1", "b#2", "c#1"]
    assert [p["of"] for p in found["passages"]] == ["a", "b", "b", "c"]
    assert [p["text"] for p in found["passages"]][1:3] == [
        "John sat on the mat.", "Anna played in the park."]  # fmt: skip
    parts = [
        BLOCKS[0],
        "\n\n[2] John\nJohn sat on the mat.",
        " Anna played in the park.",
        BLOCKS[2],
    ]
    whole = prompt(["".join(parts)])
    assert whole == prompt(BLOCKS)

    def v(here: frozenset[int]) -> np.ndarray:
        if operator == "remove":
            return small.values(
                "llama-bridge", prompt([p for j, p in enumerate(parts) if j in here])
            )
        closed = [p for j, p in enumerate(parts) if j not in here]
        return small.values("llama-bridge", whole, closed=closed)

    sets = [frozenset(s) for k in range(5) for s in itertools.combinations(range(4), k)]
    expected = small.effects({s: v(s) for s in sets}, 4)
    for key, numbers in expected.items():
        assert_close(found["effects"][0][key], numbers)


# --- what was spent -------------------------------------------------------------------------------


def test_forwards_are_the_different_prompts():
    found = measured("llama-bridge", record(), swaps=2)
    assert found["n_forwards"] == 2**N + 2 * 2 + 2, "two swaps, and two of pairs"
    both = measured("llama-bridge", record(), swaps=2, operators=("remove", "mask"))
    assert both["n_forwards"] == 2 * 2**N + 2 * 2 + 2 + 2 * 4 + 2 * 2
    assert both["tokens_run"] > found["tokens_run"] > 0


def test_forwards_for_shapley_values_count_too():
    with_them = measured("llama-bridge", record(), swaps=2, shapley=8)["n_forwards"]
    assert 6 <= with_them - (2**N + 2 * 2 + 2) <= 8
