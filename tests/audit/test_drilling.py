"""Tokens inside a passage, and heads that carry it, against one plain run of each prompt."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mechattr as ma
from mechattr.audit import drilling
from mechattr.audit.drilling import Swap, heads_game, heads_that_carry, highlights, token_game
from mechattr.methods import IntegratedGradients
from mechattr.methods.perturbation import IncludeOne
from mechattr.methods.readings import Retrieval
from mechattr.transformer.memory import OutOfMemoryError
from mechattr.transformer.model import Face
from tests import oracles
from tests.oracles import assert_agree, shared_model
from tests.transformer import tiny
from tests.transformer.test_removal import ANSWER, STATEMENTS, closing, ids, plain

NAMES = [f"{family}-{cls}" for family in ("llama", "gpt2") for cls in oracles.CLASSES]
MODEL = pytest.mark.parametrize("name", NAMES)
ONE = NAMES[-1]

P = ma.Piece("p", " Mary went to")
Q = ma.Piece("q", " John sat on, xyz.")
PIECES: list[str | ma.Piece] = ["When", P, " and", Q, " Anna", " gave a"]
OTHER = " Tom was good in the park from the year 1 7 45"
"""A text to put in a passage's place, with tokens to spare."""


def parts_of(model: Any, name: str) -> tuple[list[int], list[int], list[int]]:
    """The prompt's tokens before a passage, of it, and after it."""
    texts = [part if isinstance(part, str) else part.text for part in PIECES]
    at = [i for i, part in enumerate(PIECES) if isinstance(part, ma.Piece) and part.name == name]
    # texts that follow each other are one
    texts[4:] = ["".join(texts[4:])]
    rows = [ids(model, text) for text in texts]
    before, after = (list(itertools.chain(*some)) for some in (rows[: at[0]], rows[at[0] + 1 :]))
    return before, rows[at[0]], after


def by_statement(values: Tensor) -> Tensor:
    return torch.stack([values[..., :2].sum(-1), values[..., 2:4].sum(-1), values[..., 4:].sum(-1)])


def values_of(result: ma.Attribution) -> Tensor:
    return torch.tensor(result.values)


# --- players --------------------------------------------------------------------------------------


@MODEL
@pytest.mark.parametrize("operator", ["remove", "mask"])
def test_tokens_of_one_passage_are_what_the_model_says_without_them(name, operator):
    model = shared_model(name)
    before, own, after = parts_of(model, "p")
    game = token_game(model, PIECES, ANSWER, STATEMENTS, "p", operator)
    assert game.players.names == ("p:0: Mary", "p:1: went", "p:2: to")
    masks = torch.tensor(list(itertools.product([0, 1], repeat=3)))
    want = []
    for mask in masks.tolist():
        there = [token for token, here in zip(own, mask, strict=True) if here]
        hooks = []
        if operator == "mask":
            there = own
            owner = torch.tensor([-1] * len(before) + [0, 1, 2] + [-1] * len(after))
            hooks = [closing(owner, mask, len(owner) + 7)]
        want.append(plain(model, torch.tensor([*before, *there, *after]), hooks))
    assert_agree(game(masks), by_statement(torch.stack(want)).T)


@pytest.mark.parametrize("unit", drilling.UNITS)
@pytest.mark.parametrize("pid", ["p", "q", None, ("q", "p")])
def test_the_prompt_stays_what_it_is(unit, pid):
    model = shared_model(ONE)
    whole = ma.RemovalGame(model, PIECES, ANSWER)
    game = token_game(model, PIECES, ANSWER, None, pid, unit=unit)
    everything = torch.ones(1, game.n_players)
    assert torch.equal(game.prompt_tokens(everything), whole.prompt_tokens([1, 1]))
    assert_agree(game(everything), whole([[1, 1]]), least=-1)
    coords = game.players.coords
    chosen = {"p", "q"} & set([pid] if isinstance(pid, str) else pid or "pq")
    assert set(coords["passage"]) == chosen
    for piece in (P, Q):
        own = list(game.players.where(passage=piece.name)) if piece.name in chosen else []
        starts, ends = ([coords[key][i] for i in own] for key in ("start", "end"))
        assert "".join(coords["text"][i] for i in own) == piece.text * (piece.name in chosen)
        assert [coords["text"][i] for i in own] == [
            piece.text[a:b] for a, b in zip(starts, ends, strict=True)
        ]
    if pid is None:
        assert_agree(game(0 * everything), whole([[0, 0]]), least=-1)


UNITS = {
    "token": [" John", " sat", " on", ",", " ", "x", "y", "z", ".", " Tom"],
    "word": [" John", " sat", " on,", " xyz.", " Tom"],
    "sentence": [" John sat on, xyz.", " Tom"],
}


@pytest.mark.parametrize("unit", UNITS)
def test_units(unit):
    pieces: list[str | ma.Piece] = ["When", ma.Piece("q", " John sat on, xyz. Tom"), " a"]
    game = token_game(shared_model(ONE), pieces, ANSWER, None, "q", unit=unit)
    assert list(game.players.coords["text"]) == UNITS[unit]
    assert set(game.players.coords["kind"]) == {unit}
    assert sum(game.players.coords["n_tokens"]) == 10


@pytest.mark.parametrize("text", [" a\n\n Mary. ", "\n\n", " Mary", " . Mary ,.,"])
def test_blanks_go_with_what_follows(text):
    model = shared_model(ONE)
    for unit in drilling.UNITS:
        pieces: list[str | ma.Piece] = ["When", ma.Piece("q", text), " a"]
        game = token_game(model, pieces, ANSWER, None, "q", unit=unit)
        texts = game.players.coords["text"]
        assert "".join(texts) == text
        if unit == "word":
            assert len(texts) == max(1, len(text.split()))
            assert all(len(one.split()) == 1 for one in texts if text.strip())


def test_tokens_that_make_a_character_together_are_one_player():
    """ "é" is two bytes, which are a token each."""
    model = tiny.tiny_bridge("llama", tokenizer=tiny.tiny_tokenizer(extra_words=["Ã", "©"]))
    pieces: list[str | ma.Piece] = ["When", ma.Piece("q", " catéé on"), " a"]
    game = token_game(model, pieces, ANSWER, None, "q", "mask")
    assert game.players.coords["text"] == (" cat", "é", "é", " on")
    assert game.players.coords["n_tokens"] == (1, 2, 2, 1)
    (entry,) = highlights(model, pieces, ANSWER)
    assert [(t["start"], t["end"]) for t in entry["tokens"]] == [(0, 4), (4, 5), (5, 6), (6, 9)]


def test_a_slow_tokenizers_tokens_are_told_by_their_length():
    model = tiny.tiny_bridge("llama")
    want = token_game(model, PIECES, ANSWER, None, None)
    slow = tiny.tiny_bridge("llama")

    class Slow(type(slow.tokenizer)):  # type: ignore[misc]
        is_fast = False

    slow.tokenizer.__class__ = Slow
    got = token_game(slow, PIECES, ANSWER, None, None)
    assert got.players.names == want.players.names
    assert got.players.coords == want.players.coords


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pid": "r"}, "Unknown player 'r'"),
        ({"pid": ["p", "x"]}, "Unknown player 'x'"),
        ({"unit": "letter"}, "Unknown unit 'letter'"),
        ({"operator": "replace"}, "'p:0: Mary' has no replacement"),
    ],
)
def test_what_is_wrong_is_said(settings, message):
    settings = {"pid": "p", **settings}
    with pytest.raises(ma.InputError, match=message):
        token_game(shared_model(ONE), PIECES, ANSWER, None, **settings)


# --- methods --------------------------------------------------------------------------------------


def test_perturbations_of_removed_tokens():
    game = token_game(shared_model(ONE), PIECES, ANSWER, STATEMENTS, "p")
    table = game(torch.tensor(list(itertools.product([0, 1], repeat=3))))

    def scores(method: Any) -> Tensor:
        return values_of(ma.attribute(game, method, seed=0))

    assert_agree(scores("leave_one_out"), (table[7] - table[[3, 5, 6]]).T)
    assert_agree(scores("shapley").sum(1), table[7] - table[0])
    for method in ("surrogate", "contextcite"):
        found = scores(method)
        assert found.shape == (3, 3)
        assert bool(found.isfinite().all())
        assert bool(found.any())
    with pytest.raises(ma.NotSupportedError, match="no gradient"):
        scores("gradient_clean")


@MODEL
def test_gradients_of_masked_tokens(name):
    game = token_game(shared_model(name), PIECES, ANSWER, STATEMENTS, None, "mask")
    whole = torch.ones(game.n_players, dtype=torch.float64)
    step = 1e-6
    down = game(whole - step * torch.eye(game.n_players, dtype=torch.float64))
    slopes = ((game(whole) - down) / step).T
    for method in ("attribution_patching", "gradient_clean"):
        found = values_of(ma.attribute(game, method))
        torch.testing.assert_close(found, slopes, rtol=1e-4, atol=1e-4)
        assert float(found.abs().max()) > 0.1
    exact = ma.attribute(game, IntegratedGradients(tolerance=1e-4))
    np.testing.assert_allclose(exact.gap, 0, atol=1e-3)
    assert np.abs(exact.full - exact.empty).min() > 0.01


# --- highlights -----------------------------------------------------------------------------------


def test_highlights_are_scores_by_statement_and_passage():
    model = shared_model(ONE)
    game = token_game(model, PIECES, ANSWER, STATEMENTS, None, "mask", between_players=False)
    slopes = game.gradient(torch.ones(1, game.n_players))[0].numpy()
    found = highlights(model, PIECES, ANSWER, STATEMENTS, method="gradient_clean")
    assert [(e["statement"], e["pid"]) for e in found] == list(itertools.product(range(3), "pq"))
    for entry in found:
        own = game.players.where(passage=entry["pid"])
        scores = [token["score"] for token in entry["tokens"]]
        np.testing.assert_allclose(scores, slopes[entry["statement"], own], rtol=1e-9)
        text = P.text if entry["pid"] == "p" else Q.text
        assert "".join(token["text"] for token in entry["tokens"]) == text
        assert all(
            token["text"] == text[token["start"] : token["end"]] for token in entry["tokens"]
        )
        assert entry["method"] == "gradient_clean"
    exact = highlights(
        model, PIECES, ANSWER, method="leave_one_out", operator="remove", unit="word"
    )
    assert [t["text"] for t in exact[1]["tokens"]] == [" John", " sat", " on,", " xyz."]
    assert exact[1]["method"] == "leave_one_out"
    words = token_game(model, PIECES, ANSWER, None, None, unit="word")
    lost = words([1] * 7) - words(1 - torch.eye(7, dtype=torch.int64))
    want = [t["score"] for e in exact for t in e["tokens"]]
    np.testing.assert_allclose(want, lost[:, 0].numpy(), rtol=1e-9)


def test_highlights_share_out_what_the_passages_give():
    model = shared_model(ONE)
    found = highlights(model, PIECES, ANSWER, STATEMENTS)
    game = token_game(model, PIECES, ANSWER, STATEMENTS, None, "mask", between_players=False)
    want = ma.attribute(game, IntegratedGradients(steps=8), progress=False)
    scores = np.array(
        [[t["score"] for e in found if e["statement"] == s for t in e["tokens"]] for s in range(3)]
    )
    np.testing.assert_allclose(scores, want.values, rtol=1e-9)
    np.testing.assert_allclose(scores.sum(1), want.full - want.empty, atol=0.1)
    every = highlights(model, PIECES, ANSWER, STATEMENTS, between_players=True)
    assert every[0]["tokens"][0]["score"] != pytest.approx(scores[0][0], abs=1e-3)


def test_characters_count_in_the_passages_own_text():
    """A token that is partly outside is cut; what is outside altogether is left out."""
    model = shared_model(ONE)
    texts = {"q": "t on, x", "p": P.text}
    found = highlights(model, PIECES, ANSWER, texts=texts)
    whole = highlights(model, PIECES, ANSWER)
    assert found[0] == whole[0]
    shown = [(t["text"], t["start"], t["end"]) for t in found[1]["tokens"]]
    assert shown == [("t", 0, 1), (" on", 1, 4), (",", 4, 5), (" ", 5, 6), ("x", 6, 7)]
    scores = [t["score"] for t in whole[1]["tokens"]]
    assert [t["score"] for t in found[1]["tokens"]] == scores[1:6]
    with pytest.raises(ma.InputError, match="text of passage 'q' isn't in its piece: 'dog'"):
        highlights(model, PIECES, ANSWER, texts={"q": "dog"})


def test_too_little_memory_is_a_note(monkeypatch):
    def never(*_: Any, **__: Any) -> Any:
        raise MemoryError

    model = shared_model(ONE)
    highlights(model, PIECES, ANSWER)
    monkeypatch.setattr(Face, "run_block", never)
    found = highlights(model, PIECES, ANSWER, STATEMENTS)
    assert len(found) == 6
    assert all(entry["tokens"] == [] for entry in found)
    assert all("doesn't fit in the memory" in entry["note"] for entry in found)
    with pytest.raises(OutOfMemoryError):
        token_game(model, PIECES, ANSWER, None, "p", "mask").gradient([[1, 1, 1]])


# --- heads ----------------------------------------------------------------------------------------


def swap(model: Any, statement: Any = (9, 15), pid: str = "p") -> Swap:
    return Swap.of(model, PIECES, ANSWER, statement, pid, OTHER)


@MODEL
@pytest.mark.parametrize("base", ["clean", "source"])
def test_heads_are_patched_from_the_prompt_with_another_text(name, base):
    """v(N) is the plain run with the passage, v(∅) that with the other text in its place, and what
    is between is that of hooks on the whole prompt."""
    model = shared_model(name)
    before, own, after = parts_of(model, "p")
    other = ids(model, OTHER)[: len(own)]
    found = swap(model)
    assert found.passage == list(range(len(before), len(before) + len(own)))
    game = heads_game(model, found, base=base)
    logs = [plain(model, torch.tensor([*before, *mid, *after])) for mid in (own, other)]
    ends = game([[True] * game.n_players, [False] * game.n_players])[:, 0]
    assert_agree(ends, torch.stack([log[2:4].sum() for log in logs]))
    read = oracles.sequence_log_prob(game.prompts.tokens[0], found.statement)
    oracle = oracles.reference(game, read=read)
    masks = torch.cat([1 - torch.eye(8), torch.eye(8)]).double()
    assert_agree(game(masks)[:, 0], oracle.many(masks))


@pytest.mark.parametrize("statement", [None, (0, 9)])
def test_heads_that_carry(statement):
    model = shared_model(ONE)
    args: Any = (model, PIECES, ANSWER, statement, "p", OTHER)
    game = heads_game(model, swap(model, statement))
    eye, whole = torch.eye(8, dtype=torch.float64), torch.ones(1, 8, dtype=torch.float64)
    lost = (game(whole) - game(1 - eye))[:, 0]
    assert_agree(values_of(heads_that_carry(*args, method="leave_one_out"))[0], lost)
    patched = heads_that_carry(*args)
    assert patched.method == "attribution_patching"
    assert_agree(values_of(patched)[0], game.gradient(whole)[0, 0])
    other = game.on_base(0.0)
    gained = (other(eye) - other(0 * whole))[:, 0]
    found = heads_that_carry(*args, method="include_one")
    assert_agree(values_of(found)[0], gained)
    assert found.provenance["base"] == "source"
    assert_agree(values_of(heads_that_carry(*args, method=IncludeOne()))[0], gained)
    assert patched.provenance["base"] == "clean"
    on_clean = heads_that_carry(*args, method="include_one", base="clean")
    assert on_clean.provenance["base"] == "clean"


@MODEL
def test_retrieval_heads_look_at_what_the_statement_copies(name):
    """The statement " to Mary, and a book" copies " Mary" and " to" of " Mary went to", of which
    the longest runs in the same order are one token."""
    model = shared_model(name)
    found = swap(model, None)
    tokens = found.prompts.tokens[0].tolist()
    needle = found.needle()
    assert {model.tokenizer.decode([tokens[p]]) for p in needle} <= {" Mary", " to"}
    assert set(needle) <= set(found.passage)
    scores = heads_that_carry(model, PIECES, ANSWER, None, "p", OTHER, method="retrieval")
    same = heads_that_carry(model, PIECES, ANSWER, None, "p", OTHER, method=Retrieval())
    np.testing.assert_array_equal(same.values, scores.values)
    assert scores.provenance["reading"]
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([tokens]))
    want = []
    for layer, head in itertools.product(range(2), range(4)):
        top = cache[f"blocks.{layer}.attn.hook_pattern"][0, head].argmax(-1).tolist()
        got = {
            top[t - 1]
            for t in found.statement
            if top[t - 1] in needle and tokens[top[t - 1]] == tokens[t]
        }
        want.append(len(got) / len(needle))
    assert scores.values[0].tolist() == pytest.approx(want)


def test_the_needle_is_the_longest_runs_in_common():
    model = shared_model(ONE)
    pieces: list[str | ma.Piece] = [
        "When",
        ma.Piece("p", " cat a book was had to Mary, and"),
        " Anna",
    ]
    found = Swap.of(model, pieces, ANSWER, None, "p", OTHER)
    tokens = found.prompts.tokens[0]
    texts = [model.tokenizer.decode([int(tokens[p])]) for p in found.needle()]
    assert texts == [" to", " Mary", ",", " and"]  # " a book" comes before these, not after
    with pytest.raises(ma.InputError, match="no token in common"):
        Swap.of(model, PIECES, " drink", None, "p", OTHER).needle()


def test_a_replacement_has_as_many_tokens():
    model = shared_model(ONE)
    _, own, _ = parts_of(model, "q")
    by_ids = Swap.of(model, PIECES, ANSWER, None, "q", ids(model, OTHER))
    by_text = swap(model, None, "q")
    others = [found.prompts.counterfactual or () for found in (by_ids, by_text)]
    rows = [other[0].tolist() for other in others]
    assert rows[0] == rows[1]
    assert [rows[0][p] for p in by_ids.passage] == ids(model, OTHER)[: len(own)]
    assert len(own) == 9
    with pytest.raises(ma.InputError, match=r"'q' has 9 tokens, .* in its place 1; .* first"):
        Swap.of(model, PIECES, ANSWER, None, "q", " Tom")
    with pytest.raises(ma.UnknownNameError, match="'r'"):
        swap(model, None, "r")
    with pytest.raises(ma.InputError, match="Statement 0"):
        swap(model, (5, 5))
