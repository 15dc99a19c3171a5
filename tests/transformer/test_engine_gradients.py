"""Gradients against finite differences of the values, sensitivities against torch's autograd."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
import torch
from torch import Tensor

import mechattr as ma
from tests import oracles
from tests.oracles import assert_agree, patch_game, reference, shared_model
from tests.transformer.test_patching_parity import KINDS, everything, sources


def soft(n: int, seed: str) -> Tensor:
    """A mask in the interior, away from both ends."""
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return 0.1 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)


def slopes_along(game: Any, mask: Tensor, directions: Tensor, step: float = 3e-4) -> Tensor:
    """``d v(mask + t·direction) / dt`` by fourth-order central differences: [direction, prompt]."""
    at = torch.stack([mask + k * step * directions for k in (-2, -1, 1, 2)])
    v = game(at.flatten(0, 1)).unflatten(0, at.shape[:2])
    return (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * step)


def check_gradient(game: Any, seed: str, most: int = 10) -> None:
    """Some players' derivatives, and that along a direction in which all of them move."""
    n = game.n_players
    mask = soft(n, seed)
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()) + 1)
    chosen = torch.randperm(n, generator=generator)[:most]
    mixed = torch.randn(1, n, generator=generator, dtype=torch.float64) / n**0.5
    directions = torch.cat([torch.eye(n, dtype=torch.float64)[chosen], mixed])
    gradient = game.gradient(mask[None])[0]  # [prompt, player]
    want = slopes_along(game, mask, directions)
    assert_agree(directions @ gradient.T, want, 1e-6, least=1e-4)


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("base", ["clean", "source"])
def test_mask_gradient_of_all_kinds_together(name, base):
    game = patch_game(shared_model(name), everything(name.partition("-")[0]), base=base)
    check_gradient(game, name + base, most=30)


@pytest.mark.parametrize("name", [f"llama-{cls}" for cls in oracles.CLASSES])
@pytest.mark.parametrize("kind", KINDS)
def test_mask_gradient_of_every_kind_alone(name, kind):
    for base in ("clean", "source"):
        check_gradient(patch_game(shared_model(name), KINDS[kind](), base=base), kind + base)


@pytest.mark.parametrize("source", ["zero", "mean", "mean per position", "noise", "token"])
@pytest.mark.parametrize("base", ["clean", "source"])
def test_mask_gradient_of_every_source(source, base):
    for cls in oracles.CLASSES:
        model = shared_model(f"gpt2-{cls}")
        players = ma.tokens() + ma.heads() + ma.mlps(per_position=True)
        game = patch_game(model, players, source=sources(model)[source], base=base)
        check_gradient(game, source + base)


@pytest.mark.parametrize("base", ["clean", "source"])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_mask_gradient_at_both_ends(base, end):
    """Where attribution patching takes it; from the inner side, because masks stay in [0, 1]."""
    game = patch_game(shared_model("qwen2-bridge"), ma.heads(per_position=True), base=base)
    eye = torch.eye(game.n_players, dtype=torch.float64)
    inward = 1 - 2 * end
    mask = torch.full((game.n_players,), end, dtype=torch.float64)
    h = 5e-4 * inward
    v0, v1, v2, v3, v4 = (game(mask + k * h * eye)[:, 0] for k in range(5))
    want = (-25 * v0 + 48 * v1 - 36 * v2 + 16 * v3 - 3 * v4) / (12 * h)
    assert_agree(game.gradient(mask)[0, 0], want, 1e-6)


def test_gradient_of_groups():
    game = patch_game(
        shared_model("gemma2-bridge"),
        ma.heads(per_position=True).group("layer") + ma.tokens().group({"names": [3, 5]}),
    )
    check_gradient(game, "groups")


@pytest.mark.parametrize(
    "target",
    [
        ma.targets.kl(),
        ma.targets.loss(),
        ma.targets.prob(7),
        ma.targets.log_prob([[7, 20]]),
        lambda logits: logits.square().mean(-1),
    ],
)
def test_gradient_of_every_target(target):
    game = patch_game(shared_model("neox-bridge"), ma.heads() + ma.mlps(), target=target)
    check_gradient(game, "target")


def test_gradient_of_several_masks_and_prompts_at_once():
    model = shared_model("llama-bridge")
    clean = oracles.ids(oracles.CLEAN[:5], oracles.CLEAN)
    prompts = ma.Prompts.from_tokens(model, clean, oracles.ids(oracles.OTHER[:5], oracles.OTHER))
    game = patch_game(model, ma.heads(per_position=True), prompts=prompts)
    masks = torch.stack([soft(game.n_players, str(k)) for k in range(3)])
    together = game.gradient(masks)
    assert together.shape == (3, 2, game.n_players)
    for k in range(3):
        torch.testing.assert_close(together[k], game.gradient(masks[k])[0], rtol=0, atol=1e-12)
    check_gradient(game, "several", most=80)


# --- sensitivity --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", oracles.MODELS)
@pytest.mark.parametrize("base", ["clean", "source"])
def test_sensitivity_is_the_norm_of_autograds_gradient(name, base):
    """At both ends and between, for players of every kind together."""
    game = patch_game(shared_model(name), everything(name.partition("-")[0]), base=base)
    n = game.n_players
    masks = torch.stack([torch.ones(n), torch.zeros(n), soft(n, name).float()]).double()
    oracle = reference(game)
    want = torch.stack([oracle.sensitivity(mask) for mask in masks])
    assert_agree(game.sensitivity(masks)[:, 0], want)


@pytest.mark.parametrize("kind", ["tokens", "heads at positions", "resid_mid", "neurons"])
def test_sensitivity_counts_where_clean_and_source_agree(kind):
    """No source enters: the shared prefix matters, though its mask gradient is zero."""
    game = patch_game(shared_model("gpt2-bridge"), KINDS[kind]())
    mask = torch.ones(game.n_players)
    got = game.sensitivity(mask)[0, 0]
    assert_agree(got, reference(game).sensitivity(mask))
    if "position" in game.players.coords:
        first = [int(p) == 1 for p in game.players.coords["position"]]
        assert bool((game.gradient(mask)[0, 0][first] == 0).all())
        assert float(got[first].max()) > 1e-3


@pytest.mark.parametrize("base", ["clean", "source"])
def test_sensitivity_where_nothing_differs(base):
    """A counterfactual that is the prompt itself; and one that differs after the target only."""
    model = shared_model("gpt2-bridge")
    clean = oracles.ids(oracles.CLEAN, oracles.CLEAN)
    other = oracles.ids(oracles.CLEAN, (*oracles.CLEAN[:-1], 50))
    prompts = ma.Prompts.from_tokens(model, clean, other, target_position=-2)
    game = patch_game(model, ma.heads() + ma.mlps(per_position=True), prompts=prompts, base=base)
    mask = soft(game.n_players, base)
    for p in range(2):
        want = reference(game, p).sensitivity(mask)
        assert_agree(game.sensitivity(mask)[0, p], want)
    assert bool((game.gradient(mask) == 0).all())


@pytest.mark.parametrize("source", ["zero", "mean"])
def test_sensitivity_on_base_source_with_a_value_source(source):
    model = shared_model("llama-bridge")
    game = patch_game(model, ma.heads() + ma.mlps(), source=sources(model)[source], base="source")
    mask = soft(game.n_players, source)
    assert_agree(game.sensitivity(mask)[0, 0], reference(game).sensitivity(mask))


@pytest.mark.parametrize("name", ["llama-bridge", f"gpt2-{oracles.CLASSES[0]}"])
@pytest.mark.parametrize("base", ["clean", "source"])
def test_mask_gradient_of_a_target_read_at_several_positions(name, base):
    players = ma.tokens() + ma.heads(per_position=True) + ma.mlps()
    target = ma.targets.sequence_log_prob([4, 6, 7])
    game = patch_game(shared_model(name), players, target=target, base=base)
    check_gradient(game, name + base)
    mask = soft(game.n_players, "norms")
    read = oracles.sequence_log_prob(game.prompts.tokens[0], [4, 6, 7])
    norms = reference(game, read=read).sensitivity(mask)
    assert_agree(game.sensitivity(mask[None])[0, 0], norms, 1e-8)
    # what comes after the last of them, or only feeds it, has no part in it
    late = [i for i, p in enumerate(game.players.coords["position"]) if p is not None and p >= 7]
    assert not game.gradient(mask[None])[0, 0, late].any()
