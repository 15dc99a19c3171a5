"""A prompt in a batch gets what it gets alone; and what every target is, prompt by prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import mechattr as ma
from mechattr.players import Players
from mechattr.transformer.graph import Bound, PlayerSpec
from mechattr.transformer.prompts import Prompts
from mechattr.transformer.sites import Cells, Shape, Site
from tests import oracles
from tests.oracles import (
    PAIR,
    Address,
    assert_agree,
    ids,
    patch_game,
    reference,
    shared_model,
    some_masks,
)
from tests.transformer.test_patching_parity import sources

CLEAN = ids((3, 4, 13, 9, 14, 22, 7, 30, 11), (8, 9, 10, 11, 12), (5, 6, 7, 20, 21, 22, 23))
OTHER = ids((3, 4, 13, 10, 14, 25, 7, 30, 11), (8, 9, 33, 11, 12), (41, 6, 7, 20, 21, 22, 24))
"""Of lengths 9, 5 and 7, which part at positions 3, 2 and 0."""


def batch(model: Any, **settings: Any) -> Prompts:
    return Prompts.from_tokens(model, CLEAN, OTHER, **settings)


def some_of_all() -> PlayerSpec:
    return ma.tokens() + ma.keys() + ma.heads(per_position=True) + ma.mlps()


def check_each_alone(game: Any, **changed: Any) -> None:
    """Values, gradients and sensitivities of a batch against games of one prompt each."""
    masks = some_masks(game.n_players, each=1)
    together = [f(masks) for f in (game, game.gradient, game.sensitivity)]
    for p in range(len(game.prompts)):
        alone = patch_game(
            game.face.model,
            some_of_all(),
            prompts=game.prompts[p],
            source=game.source if "source" not in changed else changed["source"](p),
            base=game.base,
            target=changed["target"](p) if "target" in changed else None,
        )
        own = [game.players.index(name) for name in _same_names(game, alone)]
        results = (alone(masks[:, own]), alone.gradient(masks[:, own]))
        assert_agree(together[0][:, p], results[0][:, 0])
        assert_agree(together[1][:, p, own], results[1][:, 0])
        assert_agree(together[2][:, p, own], alone.sensitivity(masks[:, own])[:, 0])
        rest = sorted(set(range(game.n_players)) - set(own))
        assert not game.exists[p][rest].any()
        assert bool((together[1][:, p, rest] == 0).all())
    assert float((together[0][:, 0] - together[0][:, 1]).abs().max()) > 1e-3


def _same_names(game: Any, alone: Any) -> list[str]:
    """The players of a prompt alone, as a batch names them: tokens only by their position."""
    kinds, at = alone.players.coords["kind"], alone.players.coords.get("position")
    return [
        f"position {at[i]}" if kinds[i] == "token" else name
        for i, name in enumerate(alone.players.names)
    ]


@pytest.mark.parametrize("base", ["clean", "source"])
@pytest.mark.parametrize("source", ["counterfactual", "zero", "mean per position", "token"])
def test_each_prompt_gets_what_it_gets_alone(base, source):
    model = shared_model("llama-bridge" if base == "clean" else f"gpt2-{oracles.CLASSES[0]}")
    chosen = sources(model)[source]
    game = patch_game(model, some_of_all(), prompts=batch(model), source=chosen, base=base)
    check_each_alone(game)


@pytest.mark.parametrize("base", ["clean", "source"])
def test_each_prompt_gets_the_noise_that_it_gets_alone(base):
    model = shared_model("gpt2-bridge")
    spans = [[3, 4], [1], [0, 2]]
    noise = ma.sources.Noise(draws=2, at=spans)
    game = patch_game(model, some_of_all(), prompts=batch(model), source=noise, base=base)
    check_each_alone(
        game,
        source=lambda p: ma.sources.Noise(draws=2, at=spans[p : p + 1]),
    )


def test_target_positions_of_each_prompt():
    model = shared_model("neox-bridge")
    game = patch_game(model, some_of_all(), prompts=batch(model, target_position=[4, -2, 6]))
    check_each_alone(game)


@pytest.mark.parametrize("name", [f"gpt2-{cls}" for cls in oracles.CLASSES])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(name, side):
    """A padded batch with its mask is the list of its prompts."""
    model = shared_model(name)

    def padded(rows: list[torch.Tensor]) -> torch.Tensor:
        short = [9 - len(row) for row in rows]
        around = [(n, 0) if side == "left" else (0, n) for n in short]
        pad = torch.nn.functional.pad
        return torch.stack([pad(row, where) for row, where in zip(rows, around, strict=True)])

    mask = padded([torch.ones_like(row) for row in CLEAN])
    prompts = Prompts.from_tokens(model, padded(CLEAN), padded(OTHER), attention_mask=mask)
    assert prompts.lengths == (9, 5, 7)
    game = patch_game(model, some_of_all(), prompts=prompts)
    same = patch_game(model, some_of_all(), prompts=batch(model))
    masks = some_masks(game.n_players)
    assert torch.equal(game(masks), same(masks))
    for p in range(3):
        assert_agree(game(masks)[:, p], reference(game, p).many(masks))


def test_order_of_prompts_does_not_matter():
    model = shared_model("gemma2-bridge")
    one, back = (
        patch_game(model, ma.heads(per_position=True), prompts=batch(model)[order])
        for order in ([0, 1, 2], [2, 1, 0])
    )
    masks = some_masks(one.n_players)
    assert_agree(one(masks), back(masks).flip(1), 1e-12)


# --- players that lie elsewhere in each prompt ----------------------------------------------------

SPANS = ([3, 4], [1], [0, 2, 6])


class _Name(PlayerSpec):
    """A span of tokens, with the first head there, at other positions in each prompt."""

    def bind(self, shape: Shape, prompts: Prompts) -> Bound:
        tokens = np.full((len(prompts), max(prompts.lengths), 1), -1)
        heads = np.full((len(prompts), max(prompts.lengths), shape.n_heads), -1)
        for p, span in enumerate(SPANS):
            tokens[p, span] = 0
            heads[p, span, 0] = 1
        cells = (
            Cells(Site("embed", 0, "hook_embed", 1), tokens),
            Cells(Site("z", 1, "blocks.1.attn.hook_z", shape.n_heads), heads),
        )
        return Bound(Players(("name", "its head")), cells, np.ones((len(prompts), 2), bool))


@pytest.mark.parametrize("base", ["clean", "source"])
@pytest.mark.parametrize("source", ["counterfactual", "mean"])
def test_players_at_other_positions_in_each_prompt(base, source):
    model = shared_model("gpt2-bridge")
    chosen = sources(model)[source]
    spec = _Name() + ma.mlps(per_position=True)
    game = patch_game(
        model, spec, prompts=batch(model, target_position=[4, -1, -1]), source=chosen, base=base
    )
    masks = some_masks(game.n_players)
    step = 1e-3 * torch.eye(game.n_players, dtype=torch.float64)[:2]
    for p, span in enumerate(SPANS):
        members = [
            [Address("hook_embed", None, at) for at in span],
            [Address("blocks.1.attn.hook_z", 0, at) for at in span],
            *oracles.addresses(game.players.take(range(2, game.n_players))),
        ]
        oracle = reference(game, p, members=members)
        assert_agree(game(masks)[:, p], oracle.many(masks))
        assert_agree(game.sensitivity(masks[-3:])[2, p], oracle.sensitivity(masks[-1]))
        up, down = oracle.many(masks[-1] + step), oracle.many(masks[-1] - step)
        slopes = game.gradient(masks[-1])[0, p, :2]
        torch.testing.assert_close(slopes, (up - down) / 2e-3, rtol=1e-4, atol=1e-5)


# --- targets --------------------------------------------------------------------------------------

ANSWERS = ([40, 41], [7], [7, 8, 9])
SEQUENCES = ((4, 6, 7), (-1, 2), (-2,))
"""Positions of each prompt, of several numbers."""

TARGETS: dict[str, tuple[Any, Any]] = {
    # what is given, and per prompt p (tokens t, position a, the clean run's logits c) what it means
    "logit": (
        ma.targets.logit(7),
        lambda p, t, a, c: lambda x: x[a, 7],
    ),
    "logit_diff of answers of each prompt": (
        ma.targets.logit_diff([40, 7, 12], [20, 30, 13]),
        lambda p, t, a, c: oracles.logit_diff(a, (40, 7, 12)[p], (20, 30, 13)[p]),
    ),
    "logit_diff of sets": (
        ma.targets.logit_diff([list(s) for s in ANSWERS], 20),
        lambda p, t, a, c: lambda x: x[a, ANSWERS[p]].mean() - x[a, 20],
    ),
    "prob": (ma.targets.prob(7), lambda p, t, a, c: oracles.prob(a, 7)),
    "prob of sets": (
        ma.targets.prob([list(s) for s in ANSWERS]),
        lambda p, t, a, c: lambda x: x[a].softmax(-1)[ANSWERS[p]].sum(),
    ),
    "prob_diff": (
        ma.targets.prob_diff(7, 20),
        lambda p, t, a, c: lambda x: oracles.prob(a, 7)(x) - oracles.prob(a, 20)(x),
    ),
    "log_prob": (ma.targets.log_prob(7), lambda p, t, a, c: oracles.log_prob(a, 7)),
    "loss of an answer": (
        ma.targets.loss([7, 8, 9]),
        lambda p, t, a, c: lambda x: -oracles.log_prob(a, 7 + p)(x),
    ),
    "sequence of tokens": (
        ma.targets.sequence_log_prob([list(s) for s in SEQUENCES]),
        lambda p, t, a, c: oracles.sequence_log_prob(t, SEQUENCES[p]),
    ),
    "loss over the whole prompt": (ma.targets.loss(), lambda p, t, a, c: oracles.prompt_loss(t)),
    "kl": (ma.targets.kl(), lambda p, t, a, c: oracles.kl(a, c)),
    "a function of the logits": (
        lambda logits: logits.square().mean(-1),
        lambda p, t, a, c: lambda x: x[a].square().mean(),
    ),
    "a function of the logits and the prompt": (
        lambda logits, prompt: logits[:, 7] * (1 + prompt),
        lambda p, t, a, c: lambda x: x[a, 7] * (1 + p),
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("base", ["clean", "source"])
def test_every_target_on_several_prompts(target, base):
    given, meaning = TARGETS[target]
    model = shared_model("gemma2-bridge" if base == "clean" else f"gpt2-{oracles.CLASSES[0]}")
    prompts = batch(model, target_position=[-1, 3, -2])
    players = ma.tokens() + ma.heads()
    game = patch_game(model, players, prompts=prompts, target=given, base=base)
    masks = some_masks(game.n_players, each=1)
    got = game(masks)
    for p, tokens in enumerate(CLEAN):
        with torch.no_grad():
            clean = model(tokens[None])[0]
        read = meaning(p, tokens, prompts.target_positions[p], clean)
        want = reference(game, p, read=read).many(masks)
        assert_agree(got[:, p], want, least=1e-5 if "prob" in target else 1e-3)


def test_loss_sees_every_position_but_the_last():
    """Its gradient reaches a player at each position whose next token counts."""
    model = shared_model("llama-bridge")
    game = patch_game(
        model, ma.heads(per_position=True), target=ma.targets.loss(), source=ma.sources.Zero()
    )
    eye = torch.eye(game.n_players, dtype=torch.float64)
    scores = (game.full() - game(1 - eye))[:, 0].reshape(2, 4, 9)
    assert bool((scores[..., :8] != 0).all())
    assert bool((scores[..., 8] == 0).all())


def test_kl_is_zero_for_the_clean_run_on_either_base():
    for base in ("clean", "source"):
        game = patch_game(
            shared_model("gpt2-bridge"), ma.tokens(), target=ma.targets.kl(), base=base
        )
        assert abs(float(game.full())) < 1e-12
        assert float(game.empty()) > 1e-2


def test_a_single_token_is_a_prompt():
    for name in oracles.MODELS:
        model = shared_model(name)
        prompts = Prompts.from_tokens(model, ids([9]), ids([10]))
        game = patch_game(model, ma.tokens() + ma.heads(), prompts=prompts)
        masks = some_masks(game.n_players)
        assert_agree(game(masks)[:, 0], reference(game).many(masks))
        assert float(game.gradient(masks).abs().max()) > 1e-3


def test_answers_are_read_from_their_columns_only(monkeypatch):
    """For a logit difference the vocabulary isn't computed."""
    model = shared_model("llama-bridge")
    game = patch_game(model, ma.heads(), prompts=batch(model))
    asked: list[torch.Tensor] = []
    logits = type(game.face).logits

    def watched(self: Any, resid: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        asked.append(columns)
        return logits(self, resid, columns)

    monkeypatch.setattr(type(game.face), "logits", watched)
    game(some_masks(game.n_players))
    assert asked
    assert all(columns.shape[1] == len(PAIR) for columns in asked)
