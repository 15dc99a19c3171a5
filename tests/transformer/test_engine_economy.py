"""What the engine may skip, it skips: counted in rows and in calls of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import mechattr as ma
from tests import oracles
from tests.oracles import assert_agree, patch_game, reference, shared_model, some_masks

SHARED, LENGTH = 3, len(oracles.CLEAN)
"""The pair's prompts part at position 3."""

MODEL = pytest.mark.parametrize("name", [f"llama-{cls}" for cls in oracles.CLASSES])
BASE = pytest.mark.parametrize("base", ["clean", "source"])


def sweep(game: Any) -> torch.Tensor:
    """Each player off the base run alone: one row a player."""
    eye = torch.eye(game.n_players, dtype=torch.float64)
    return 1 - eye if game.base == "clean" else eye


@dataclass(frozen=True)
class Call:
    layer: int
    rows: int
    start: int
    stop: int


def watched_blocks(game: Any) -> list[Call]:
    """The calls of blocks from now on, once the base run is done."""
    game(torch.full((1, game.n_players), game.base_end))
    calls: list[Call] = []
    run_block = game.face.run_block

    def watched(layer: int, resid: torch.Tensor, start: int, *args: Any, **kwargs: Any) -> Any:
        calls.append(Call(layer, resid.shape[0], start, start + resid.shape[1]))
        return run_block(layer, resid, start, *args, **kwargs)

    game.face.run_block = watched
    return calls


@MODEL
@BASE
@pytest.mark.parametrize("target_position", [LENGTH - 1, 6])
def test_players_that_change_nothing_are_not_run(name, base, target_position):
    """Not: positions that the prompts share, positions after the target, and in the last layer
    heads elsewhere than at the target. They score exactly zero."""
    model = shared_model(name)
    prompts = oracles.pair(model, target_position=target_position)
    game = patch_game(model, ma.heads(per_position=True), prompts=prompts, base=base)
    values = game(sweep(game))[:, 0].reshape(2, 4, LENGTH)
    changed = torch.zeros(2, 4, LENGTH, dtype=torch.bool)
    changed[0, :, SHARED : target_position + 1] = True
    changed[1, :, target_position] = True
    at_base = game(torch.full((1, game.n_players), game.base_end))[0, 0]
    assert torch.equal(values != at_base, changed)
    assert game.rows_run == int(changed.sum())


@BASE
def test_tokens_that_are_the_same_are_not_run(base):
    game = patch_game(shared_model("gpt2-bridge"), ma.tokens(), base=base)
    values = game(sweep(game))[:, 0]
    differ = [p for p in range(LENGTH) if oracles.CLEAN[p] != oracles.OTHER[p]]
    at_base = game(torch.full((1, LENGTH), game.base_end))[0, 0]
    assert (values != at_base).nonzero().flatten().tolist() == differ
    assert game.rows_run == len(differ)


@BASE
def test_the_base_end_costs_no_run(base):
    game = patch_game(shared_model("llama-bridge"), ma.heads(), base=base)
    value = game(torch.full((7, 8), game.base_end))
    assert game.rows_run == 0
    assert len(value.unique()) == 1
    tokens = game.prompts.tokens[0] if base == "clean" else game.prompts.counterfactual[0]
    want = oracles.logit_diff(-1, *oracles.PAIR)(game.face.model(tokens[None])[0]).detach()
    torch.testing.assert_close(value[0, 0], want, rtol=0, atol=1e-12)
    game(torch.full((1, 8), 1 - game.base_end))
    assert game.rows_run == 1


@BASE
def test_equal_masks_are_run_once(base):
    game = patch_game(shared_model("llama-bridge"), ma.heads(), base=base)
    different = some_masks(8, each=3)[2:]
    values = game(different[[0, 1, 0, 0, 5, 1, 5, 0]])[:, 0]
    assert game.rows_run == 3
    assert_agree(values[[0, 1, 4]], reference(game).many(different[[0, 1, 5]]))
    assert torch.equal(values, values[[0, 1, 0, 0, 4, 1, 4, 0]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_masks_that_differ_in_what_does_not_matter_are_run_once(dtype):
    """Players of the shared prefix and after the target are in no one's way."""
    model = shared_model("llama-bridge")
    game = patch_game(
        model,
        ma.heads(per_position=True),
        prompts=oracles.pair(model, target_position=6),
    )
    at = torch.tensor(game.players.coords["position"])
    masks = (torch.rand(6, game.n_players, generator=torch.Generator().manual_seed(1)) < 0.5).to(
        dtype
    )
    masks[:, (at >= SHARED) & (at <= 6)] = masks[0, (at >= SHARED) & (at <= 6)]
    layer = torch.tensor(game.players.coords["layer"])
    masks[1, (layer == 1) & (at == 4)] = 1  # the last layer matters at the target only
    masks[2, (layer == 1) & (at == 4)] = 0
    values = game(masks)[:, 0]
    assert game.rows_run == 1
    assert len(values.unique()) == 1
    assert abs(float(values[5]) - reference(game)(masks[5])) < 1e-9


@MODEL
@BASE
def test_rows_start_at_their_layer_and_position(name, base):
    """Heads of the second layer cost no run of the first; no block runs on the shared prefix."""
    game = patch_game(shared_model(name), ma.heads(per_position=True), base=base)
    calls = watched_blocks(game)
    layer = torch.tensor(game.players.coords["layer"])
    game(sweep(game)[layer == 1])
    assert {call.layer for call in calls} == {1}
    # four heads of which only the target's position matters
    assert sum(call.rows * (call.stop - call.start) for call in calls) == 4
    calls.clear()
    game(sweep(game))
    assert {call.layer for call in calls} == {0, 1}
    assert min(call.start for call in calls) == SHARED
    naive = LENGTH * 2 * game.n_players
    spent = sum(call.rows * (call.stop - call.start) for call in calls)
    assert spent < 0.2 * naive


def test_rows_whose_windows_are_disjoint_share_a_run():
    """Patches of a head at six positions change six different positions of its block: in their
    entry layer they are one row."""
    game = patch_game(shared_model("llama-bridge"), ma.heads(per_position=True))
    calls = watched_blocks(game)
    game(sweep(game)[game.players.where(layer=0)])
    assert sum(call.rows * (call.stop - call.start) for call in calls if call.layer == 0) == 4 * 6


def test_positions_after_the_target_are_not_run():
    model = shared_model("llama-bridge")
    prompts = oracles.pair(model, target_position=5)
    game = patch_game(model, ma.heads(), prompts=prompts)
    calls = watched_blocks(game)
    game(some_masks(8))
    assert max(call.stop for call in calls) == 6


@pytest.mark.parametrize("players", [ma.mlps, lambda: ma.residual("post")])
def test_what_a_block_adds_last_needs_no_run_of_it(players):
    game = patch_game(shared_model("gpt2-bridge"), players())
    calls = watched_blocks(game)
    masks = sweep(game)
    values = game(masks)[:, 0]
    assert {call.layer for call in calls} == {1}
    assert_agree(values, reference(game).many(masks))
    calls.clear()
    game(masks[game.players.where(layer=1)])
    assert not calls
    assert game.rows_run > 0


def test_a_value_source_equal_to_the_clean_value_changes_nothing():
    """The mean over the prompt alone at each position is the prompt: nothing to run."""
    model = shared_model("llama-bridge")
    prompts = oracles.pair(model)
    source = ma.sources.Mean(prompts, per_position=True)
    game = patch_game(model, ma.heads() + ma.mlps(), prompts=prompts, source=source)
    values = game(some_masks(game.n_players))
    assert game.rows_run == 0
    assert len(values.unique()) == 1


def test_evaluations_count_what_was_asked_and_rows_what_was_run():
    game = patch_game(shared_model("llama-bridge"), ma.heads())
    game(torch.ones(5, 8))
    game.gradient(torch.ones(2, 8))
    assert game.evaluations == 7
    assert game.rows_run == 2


def test_a_prompt_whose_counterfactual_is_itself_runs_nothing():
    model = shared_model("gpt2-bridge")
    prompts = ma.Prompts.from_tokens(
        model, oracles.ids(oracles.CLEAN, oracles.CLEAN), oracles.ids(oracles.CLEAN, oracles.OTHER)
    )
    game = patch_game(model, ma.heads(), prompts=prompts)
    masks = some_masks(8)[1:]
    values = game(masks)
    assert game.rows_run == len(masks)
    assert len(values[:, 0].unique()) == 1
    assert len(values[:, 1].unique()) > 1
    assert bool((game.gradient(masks)[:, 0] == 0).all())
    assert bool((game.gradient(masks)[:, 1] != 0).any())
