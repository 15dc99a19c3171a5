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


# --- earlier statements ---------------------------------------------------------------------------


@CHAT
def test_earlier_statements_as_players(chat):
    answer = "Mary went to the park. John sat on the mat. Tom slept."
    pieces = ["Mary went to the park.", " John sat on the mat.", " Tom slept."]
    found = measured("llama-bridge", record(answer=answer), earlier=True, chat=chat)["earlier"]
    assert [entry["sid"] for entry in found] == ["s2", "s3"]

    def v(s: int, earlier: tuple[int, ...], blocks: tuple[str, ...] = BLOCKS) -> float:
        text = "".join(pieces[r] for r in (*earlier, s))
        if not chat:  # the blank before an answer is always there
            text = text.lstrip()
        lead = prompt(blocks, chat=chat)
        span = (len(text) - len(pieces[s].strip()), len(text))
        return float(small.values("llama-bridge", lead, text, [span], chat=chat)[0])

    for s, entry in enumerate(found, 1):
        before = tuple(range(s))
        alone = v(s, ())
        assert entry["context_effect_without"] == pytest.approx(alone - v(s, (), ()), abs=1e-9)
        assert [r["sid"] for r in entry["statements"]] == [f"s{r + 1}" for r in before]
        for r, numbers in zip(before, entry["statements"], strict=True):
            rest = tuple(i for i in before if i != r)
            assert abs(numbers["necessity"]) > 1e-3
            assert numbers["necessity"] == pytest.approx(v(s, before) - v(s, rest), abs=1e-9)
            assert numbers["sufficiency"] == pytest.approx(v(s, (r,)) - alone, abs=1e-9)


# --- what was spent -------------------------------------------------------------------------------


def test_forwards_are_the_different_prompts():
    found = measured("llama-bridge", record(), swaps=2)
    assert found["n_forwards"] == 2**N + 2 * 2
    both = measured("llama-bridge", record(), swaps=2, operators=("remove", "mask"))
    assert both["n_forwards"] == 2 * 2**N + 2 * 2 + 2 * 4
    assert both["tokens_run"] > found["tokens_run"] > 0


def test_forwards_for_shapley_values_count_too():
    with_them = measured("llama-bridge", record(), swaps=2, shapley=8)["n_forwards"]
    assert 6 <= with_them - (2**N + 2 * 2) <= 8
