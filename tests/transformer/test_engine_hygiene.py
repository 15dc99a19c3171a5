"""After anything, the model is as it was: hooks, flags, outputs. And the user's own hooks count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechattr as ma
from tests import oracles
from tests.oracles import assert_agree, patch_game, reference, some_masks
from tests.transformer import tiny

NAMES = ("gemma2-bridge", *["gpt2-hooked"] * tiny.HAS_HOOKED)
MODEL = pytest.mark.parametrize("name", NAMES)


def fresh(name: str) -> Any:
    family, _, cls = name.partition("-")
    return {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[cls](family)


def state(model: Any) -> dict[str, Any]:
    """Everything about a model that a tool might leave behind."""
    with torch.no_grad():
        logits = model(torch.tensor([oracles.CLEAN]))
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "logits": logits,
        "hooks": {
            name: (list(point.fwd_hooks), list(point.bwd_hooks))
            for name, point in model.hook_dict.items()
        },
        "torch hooks": {
            (name, kind): list(getattr(module, kind).items())
            for name, module in modules.items()
            for kind in kinds
        },
        "training": {name: module.training for name, module in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "grad": {name: p.grad for name, p in model.named_parameters()},
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "cfg": dict(vars(model.cfg)),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert torch.equal(before.pop("logits"), after.pop("logits"))
    weights = after.pop("weights")
    for name, weight in before.pop("weights").items():
        assert torch.equal(weight, weights[name]), name
    for what, value in before.items():
        assert value == after[what], what


def work(model: Any, **settings: Any) -> None:
    game = patch_game(model, ma.tokens() + ma.heads() + ma.residual("mid"), **settings)
    masks = some_masks(game.n_players, each=1)
    game(masks)
    game.gradient(masks)
    game.sensitivity(masks)


@MODEL
@pytest.mark.parametrize("source", [ma.sources.Counterfactual(), ma.sources.Noise(draws=2)])
def test_the_model_is_as_it_was(name, source):
    model = fresh(name)
    next(iter(model.parameters())).requires_grad_(False)  # a user's own choice
    before = state(model)
    assert set(before["requires_grad"].values()) == {True, False}
    work(model, source=source)
    work(model, source=ma.sources.Zero(), base="source")
    assert_same(before, state(model))


@MODEL
def test_training_mode_is_restored_and_not_used(name):
    """Values are those of evaluation mode: dropout is off inside."""
    model = fresh(name)
    want = patch_game(model, ma.heads())(some_masks(8))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    modes = {id(module): module.training for module in model.modules()}
    assert any(modes.values())
    assert torch.equal(patch_game(model, ma.heads())(some_masks(8)), want)
    assert {id(module): module.training for module in model.modules()} == modes


class OwnError(Exception):
    pass


def failing_after(calls: int) -> Callable[[torch.Tensor], torch.Tensor]:
    seen = []

    def target(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        if len(seen) > calls:
            raise OwnError
        return logits[:, 0]

    return target


@MODEL
@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("what", ["__call__", "gradient", "sensitivity"])
def test_the_model_is_as_it_was_after_an_error_in_the_target(name, calls, what):
    model = fresh(name)
    before = state(model)
    game = patch_game(model, ma.heads(), target=failing_after(calls))
    masks = some_masks(8)[1:]
    if calls and what == "__call__":  # the first call of the target is the base run's
        with pytest.raises(OwnError):
            game(masks)
    else:
        for _ in range(calls):
            getattr(game, what)(masks)
        with pytest.raises(OwnError):
            getattr(game, what)(masks)
    assert_same(before, state(model))


@MODEL
@pytest.mark.parametrize("what", ["__call__", "gradient", "sensitivity"])
def test_the_model_is_as_it_was_after_an_error_inside_a_block(name, what):
    """In the midst of a block, with the engine's hooks on it."""
    model = fresh(name)
    before = state(model)
    game = patch_game(model, ma.heads() + ma.mlps())
    game.full()
    point = model.hook_dict["blocks.1.attn.hook_z"]
    ours = []

    def fail(value: torch.Tensor, hook: Any) -> None:
        ours.append(len(point.fwd_hooks))
        raise OwnError

    point.add_hook(fail)
    with pytest.raises(OwnError):
        getattr(game, what)(torch.zeros(1, 10))
    assert ours == [2]  # the failing one and the engine's
    assert len(point.fwd_hooks) == 1
    model.reset_hooks()
    assert_same(before, state(model))


@MODEL
@pytest.mark.parametrize("permanent", [True, False])
def test_the_users_own_hooks_stay_and_are_respected(name, permanent):
    model = fresh(name)
    plain = patch_game(model, ma.heads())(some_masks(8))
    points = ("blocks.0.attn.hook_z", "blocks.1.hook_mlp_out")
    seen = []

    def halve_and_shift(value: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(hook.name)
        return 0.5 * value + 0.1

    # transformers leaves hooks of its own at the first call for all activations
    model.run_with_cache(torch.tensor([oracles.CLEAN]))
    for point in points:
        model.hook_dict[point].add_hook(halve_and_shift, is_permanent=permanent)
    before = state(model)
    for base in ("clean", "source"):
        game = patch_game(model, ma.heads() + ma.mlps(per_position=True), base=base)
        masks = some_masks(game.n_players)
        got = game(masks)[:, 0]
        assert_agree(got, reference(game).many(masks))
        game.gradient(masks)
    assert len(set(seen)) == len(points)
    assert_same(before, state(model))
    changed = patch_game(model, ma.heads())(some_masks(8))
    assert float((changed - plain).abs().max()) > 1e-3


@MODEL
def test_a_users_hook_that_counts_positions_is_refused(name):
    """A window's third position isn't the prompt's: better an error than wrong numbers."""
    model = fresh(name)

    def zero_the_last_but_one(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 1] = 0
        return value

    model.hook_dict["blocks.0.hook_mlp_out"].add_hook(zero_the_last_but_one)
    with pytest.raises(ma.NotSupportedError, match="can't be run block by block"):
        patch_game(model, ma.heads())


@MODEL
@pytest.mark.parametrize("what", ["__call__", "gradient", "sensitivity"])
def test_inside_no_grad_and_inference_mode(name, what):
    """As in a user's evaluation script; and grounds laid there serve gradients outside."""
    model = fresh(name)
    masks = some_masks(8)
    source = ma.sources.Mean(oracles.data(model))
    want = getattr(patch_game(model, ma.heads(), source=source), what)(masks)
    with torch.no_grad():
        game = patch_game(model, ma.heads(), source=source)
        assert torch.equal(getattr(game, what)(masks), want)
    with torch.inference_mode():
        game = patch_game(model, ma.heads(), source=source)
        torch.testing.assert_close(getattr(game, what)(masks), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(getattr(game, what)(masks), want, rtol=0, atol=1e-12)


@MODEL
def test_arguments_are_left_alone(name):
    model = fresh(name)
    prompts = oracles.pair(model)
    kept = [row.clone() for row in (*prompts.tokens, *prompts.counterfactual)]
    game = patch_game(model, ma.tokens() + ma.heads(), prompts=prompts)
    masks = some_masks(game.n_players)
    before = masks.clone()
    game(masks)
    game.gradient(masks)
    game.sensitivity(masks)
    assert torch.equal(masks, before)
    rows = (*prompts.tokens, *prompts.counterfactual)
    assert all(torch.equal(a, b) for a, b in zip(kept, rows, strict=True))
    for values in (game(masks), game.gradient(masks)):
        assert not values.requires_grad
        assert values.dtype == torch.float64
