"""The engine against one hooked forward pass a mask: every family, class, base, kind and source."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import mechattr as ma
from mechattr.transformer.graph import PlayerSpec
from tests import oracles
from tests.oracles import Address, assert_agree, patch_game, reference, shared_model, some_masks
from tests.transformer import tiny

KINDS: dict[str, Callable[[], PlayerSpec]] = {
    "tokens": ma.tokens,
    "heads": ma.heads,
    "heads at positions": lambda: ma.heads(per_position=True),
    "queries at positions": lambda: ma.queries(per_position=True),
    "keys at positions": lambda: ma.keys(per_position=True),
    "values at positions": lambda: ma.values(per_position=True),
    "attention": ma.attention,
    "mlps at positions": lambda: ma.mlps(per_position=True),
    "resid_pre": lambda: ma.residual("pre"),
    "resid_mid": lambda: ma.residual("mid"),
    "resid_post": lambda: ma.residual("post"),
    "neurons": lambda: ma.neurons(layers=1),
}
"""Tried on every model. The rest on two models, because beyond these they exercise only the
bookkeeping."""

MORE_KINDS: dict[str, Callable[[], PlayerSpec]] = {
    "queries": ma.queries,
    "keys": ma.keys,
    "values": ma.values,
    "attention at positions": lambda: ma.attention(per_position=True),
    "mlps": ma.mlps,
    "resid_post everywhere": lambda: ma.residual("post", per_position=False),
    "neurons at positions": lambda: ma.neurons(layers=[0, 1], per_position=True),
    "tokens and heads at positions": lambda: ma.tokens() + ma.heads(per_position=True),
    "mlps and residual": lambda: ma.mlps() + ma.residual("pre"),
}


def everything(family: str) -> PlayerSpec:
    """Players of every kind in one game, with and without positions."""
    mid = [] if family == "neox" else [ma.residual("mid")]
    parts = [
        ma.tokens(),
        ma.residual("pre"),
        ma.queries(),
        ma.keys(per_position=True),
        ma.values(),
        ma.heads(per_position=True),
        ma.attention(),
        *mid,
        ma.neurons(layers=1),
        ma.mlps(per_position=True),
        ma.residual("post", layers=0, per_position=False),
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def sources(model: Any) -> dict[str, Any]:
    data = oracles.data(model)
    return {
        "counterfactual": ma.sources.Counterfactual(),
        "zero": ma.sources.Zero(),
        "mean": ma.sources.Mean(data),
        "mean per position": ma.sources.Mean(data, per_position=True),
        "noise": ma.sources.Noise(draws=1, at=[[2, 4]]),
        "token": ma.sources.Token(17),
    }


MODEL = pytest.mark.parametrize("name", oracles.MODELS)
BASE = pytest.mark.parametrize("base", ["clean", "source"])


@MODEL
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_player(name, kind):
    if kind == "resid_mid" and name.startswith("neox"):
        with pytest.raises(ma.NotSupportedError, match="no resid_mid"):
            patch_game(shared_model(name), KINDS[kind]())
        return
    _check_kind(name, KINDS[kind], kind)


@pytest.mark.parametrize("name", [f"qwen2-{cls}" for cls in oracles.CLASSES])
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_more_kinds_of_player(name, kind):
    _check_kind(name, MORE_KINDS[kind], kind)


def _check_kind(name: str, players: Callable[[], PlayerSpec], kind: str) -> None:
    for base in ("clean", "source"):
        game = patch_game(shared_model(name), players(), base=base)
        # other players every time; a patch of each sort
        masks = some_masks(game.n_players, zlib.crc32(f"{name}{kind}{base}".encode()), each=1)
        assert_agree(game(masks)[:, 0], reference(game).many(masks))


@MODEL
@pytest.mark.parametrize("source", ["zero", "mean", "mean per position", "noise", "token"])
def test_every_source_on_all_kinds_together(name, source):
    """The classes of a family take turns in the bases, but for one source of each sort."""
    model = shared_model(name)
    turn = (oracles.MODELS.index(name) + len(source)) % 2
    bases = ("clean", "source") if source in ("mean", "noise") else (("clean", "source")[turn],)
    for base in bases:
        chosen = sources(model)[source]
        game = patch_game(model, everything(name.partition("-")[0]), source=chosen, base=base)
        masks = some_masks(game.n_players, each=1)
        assert_agree(game(masks)[:, 0], reference(game).many(masks))


@pytest.mark.parametrize("name", [f"gemma2-{cls}" for cls in oracles.CLASSES])
@pytest.mark.parametrize("players", ["resid_mid", "resid_pre", "tokens"])
def test_a_stream_that_is_zero(name, players):
    """Exactly so: a norm divides what rounding would leave of it by its epsilon's root."""
    spec = {**KINDS, **MORE_KINDS}[players]()
    for base in ("clean", "source"):
        game = patch_game(shared_model(name), spec, source=ma.sources.Zero(), base=base)
        masks = torch.cat([torch.zeros(1, game.n_players), 1 - torch.eye(game.n_players)[-2:]])
        assert_agree(game(masks)[:, 0], reference(game).many(masks))


@pytest.mark.parametrize("target_position", [-3, -4, 3])
@pytest.mark.parametrize("base", ["clean", "source"])
def test_target_in_the_middle_of_the_prompt(base, target_position):
    for cls in oracles.CLASSES:
        model = shared_model(f"llama-{cls}")
        prompts = oracles.pair(model, target_position=target_position)
        game = patch_game(model, everything("llama"), base=base, prompts=prompts)
        masks = some_masks(game.n_players)
        assert_agree(game(masks)[:, 0], reference(game).many(masks))


@pytest.mark.parametrize("cls", oracles.CLASSES)
@BASE
def test_every_single_head_at_every_position(cls, base):
    """The whole sweep of activation patching, not a sample of it."""
    game = patch_game(shared_model(f"qwen2-{cls}"), ma.heads(per_position=True), base=base)
    eye = torch.eye(game.n_players, dtype=torch.float64)
    masks = 1 - eye if base == "clean" else eye
    got, want = game(masks)[:, 0], reference(game).many(masks)
    assert_agree(got, want)
    assert len(got.unique()) > 20


@pytest.mark.skipif(not tiny.HAS_HOOKED, reason="this transformer-lens has only the bridge")
@pytest.mark.parametrize("family", tiny.FAMILIES)
@BASE
def test_both_classes_are_the_same_game(family, base):
    """The bridge against hooks on a HookedTransformer of the same weights, which has its own
    ``hook_resid_mid`` to edit, and against the engine on it."""
    bridge = shared_model(f"{family}-bridge")
    hooked = tiny.tiny_hooked(family, like_bridge=True)
    one, other = (patch_game(model, everything(family), base=base) for model in (bridge, hooked))
    masks = some_masks(one.n_players, seed=1)
    want = reference(one, model=hooked).many(masks)
    assert_agree(one(masks)[:, 0], want)
    assert_agree(other(masks)[:, 0], want)


# --- what a value source means on base "source" ---------------------------------------------------


@pytest.mark.parametrize("name", [f"gpt2-{cls}" for cls in oracles.CLASSES])
def test_on_base_source_a_present_activation_is_its_clean_one_whatever_comes_before(name):
    """The second layer present, the first absent: the second layer's clean values are written."""
    model = shared_model(name)
    game = patch_game(model, ma.attention() + ma.mlps(), source=ma.sources.Zero(), base="source")
    assert game.players.names == ("A0", "A1", "M0", "M1")
    mask = torch.tensor([0, 1, 0, 1])
    added = ("blocks.0.hook_resid_pre", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    clean = oracles.recorded(model, game.prompts.tokens[0], added)
    with torch.no_grad():
        stream = sum(clean.values())
        logits = (model.ln_final(stream) @ model.W_U + model.b_U)[0, -1]
    want = logits[oracles.PAIR[0]] - logits[oracles.PAIR[1]]
    assert abs(float(game(mask)[0, 0]) - float(want)) < 1e-9
    assert abs(float(game.full()) - float(want)) > 1e-3


@pytest.mark.parametrize("name", [f"llama-{cls}" for cls in oracles.CLASSES])
@BASE
def test_ends_are_the_clean_and_the_source_run(name, base):
    model = shared_model(name)
    for players in (ma.tokens(), ma.residual("post", layers=1), ma.residual("pre", layers=0)):
        game = patch_game(model, players, base=base)
        for value, tokens in (
            (game.full(), game.prompts.tokens[0]),
            (game.empty(), game.prompts.counterfactual[0]),
        ):
            logits = model(tokens[None])[0, -1].detach()
            want = logits[oracles.PAIR[0]] - logits[oracles.PAIR[1]]
            assert abs(float(value) - float(want)) < 1e-9


# --- groups, selections, sums ---------------------------------------------------------------------


def units(hook: str, layer: int, chosen: range | list[int]) -> list[Address]:
    return [Address(f"blocks.{layer}.{hook}", unit) for unit in chosen]


GROUPED: dict[str, tuple[Callable[[], PlayerSpec], list[list[Address]]]] = {
    "heads by layer": (
        lambda: ma.heads().group("layer"),
        [units("attn.hook_z", layer, range(4)) for layer in (0, 1)],
    ),
    "heads by number": (
        lambda: ma.heads(per_position=True).group("head"),
        [[Address(f"blocks.{la}.attn.hook_z", h) for la in (0, 1)] for h in range(4)],
    ),
    "spans of tokens, two left out": (
        lambda: ma.tokens().group(
            {"names": {"position": [3, 5]}, "front": [0, 1], "rest": {"position": range(6, 9)}}
        ),
        [[Address("hook_embed", None, p) for p in span] for span in ((3, 5), (0, 1), (6, 7, 8))],
    ),
    "a circuit of heads": (
        lambda: ma.heads().group({"circuit": ["L0H1", "L1H2"], "others": ["L0H0"]}),
        [
            [*units("attn.hook_z", 0, [1]), *units("attn.hook_z", 1, [2])],
            units("attn.hook_z", 0, [0]),
        ],
    ),
    "blocks: attention and MLP of a layer": (
        lambda: (ma.attention() + ma.mlps()).group("layer"),
        [
            [Address(f"blocks.{la}.hook_attn_out"), Address(f"blocks.{la}.hook_mlp_out")]
            for la in (0, 1)
        ],
    ),
    "a selection": (
        lambda: ma.heads(per_position=True).select(layer=1, position=[3, 8]),
        [
            [Address("blocks.1.attn.hook_z", head, position)]
            for head in range(4)
            for position in (3, 8)
        ],
    ),
    "a selection, grouped, in a sum": (
        lambda: ma.heads().select(layer=0).group("layer") + ma.tokens().select(position=[5, 3]),
        [
            units("attn.hook_z", 0, range(4)),
            [Address("hook_embed", None, 3)],
            [Address("hook_embed", None, 5)],
        ],
    ),
    "one site shared by the parts of a sum": (
        lambda: (
            ma.heads().select(head=[0, 1])
            + ma.heads(per_position=True).select(head=3).group("position")
        ),
        [
            *[units("attn.hook_z", layer, [head]) for layer in (0, 1) for head in (0, 1)],
            *[[Address(f"blocks.{la}.attn.hook_z", 3, p) for la in (0, 1)] for p in range(9)],
        ],
    ),
    "neurons in bunches": (
        lambda: ma.neurons(layers=0).group({"low": range(16), "high": range(16, 30)}),
        [units("mlp.hook_post", 0, range(16)), units("mlp.hook_post", 0, range(16, 30))],
    ),
}


@pytest.mark.parametrize("grouped", GROUPED)
@pytest.mark.parametrize("name", [f"gemma2-{oracles.CLASSES[0]}", "gpt2-bridge"])
def test_groups_selections_and_sums(name, grouped):
    players, members = GROUPED[grouped]
    model = shared_model(name)
    for base, source in (("clean", "counterfactual"), ("source", "mean")):
        game = patch_game(model, players(), base=base, source=sources(model)[source])
        assert game.n_players == len(members)
        masks = some_masks(len(members))
        assert_agree(game(masks)[:, 0], reference(game, members=members).many(masks))


def test_hook_names_are_the_same_players():
    model = shared_model("llama-bridge")
    for name, players in {
        "blocks.1.attn.hook_z": ma.heads(layers=1),
        "blocks.0.hook_mlp_out": ma.mlps(layers=0),
        "blocks.1.mlp.hook_post": ma.neurons(layers=1),
        "hook_embed": ma.tokens(),
        "blocks.1.hook_resid_mid": ma.residual("mid", layers=1),
    }.items():
        one, other = patch_game(model, ma.hook(name)), patch_game(model, players)
        masks = some_masks(one.n_players)
        assert one.players == other.players
        assert_agree(one(masks), other(masks))
    game = patch_game(model, ma.hook("blocks.0.attn.hook_q", per_position=True))
    assert game.n_players == 4 * len(oracles.CLEAN)


# --- masks ----------------------------------------------------------------------------------------


@BASE
def test_kinds_of_masks(base):
    """Bools, integers, lists, float32 and bfloat16, one mask alone, none at all."""
    game = patch_game(shared_model("llama-bridge"), ma.heads(), base=base)
    binary = torch.rand(5, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    want = reference(game).many(binary.double())[:, None]
    assert_agree(game(binary), want)
    for same in (binary.int(), binary.float(), binary.bfloat16(), binary.tolist(), binary.numpy()):
        assert torch.equal(game(same), game(binary))
    torch.testing.assert_close(game(binary[2]), game(binary)[2:3], rtol=0, atol=1e-12)
    soft = torch.full((1, 8), 0.3)
    assert torch.equal(game(soft.clone().requires_grad_(True)), game(soft))
    assert game(torch.zeros(0, 8)).shape == (0, 1)
    assert game.gradient(torch.zeros(0, 8)).shape == (0, 1, 8)


def test_masks_of_each_prompt_its_own():
    model = shared_model("gpt2-bridge")
    clean, other = (oracles.ids(row, row[:6]) for row in (oracles.CLEAN, oracles.OTHER))
    prompts = ma.Prompts.from_tokens(model, clean, other)
    game = patch_game(model, ma.heads(per_position=True), prompts=prompts)
    masks = torch.stack([some_masks(game.n_players, seed) for seed in (0, 1)], dim=1)
    want = torch.stack([reference(game, p).many(masks[:, p]) for p in (0, 1)], dim=1)
    assert_agree(game.values_per_prompt(masks), want)
