"""Players of a transformer: names, coordinates, and what is refused, with what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mechattr as ma
from mechattr.transformer.sites import Shape
from tests import oracles
from tests.oracles import patch_game, shared_model

LENGTH = len(oracles.CLEAN)


def players(spec, name: str = "llama-bridge"):
    return patch_game(shared_model(name), spec).players


# --- names and coordinates ------------------------------------------------------------------------

GRIDS = {
    "heads": (ma.heads(), {"layer": 2, "head": 4}, "L1H3"),
    "heads at positions": (
        ma.heads(per_position=True), {"layer": 2, "head": 4, "position": LENGTH}, "L1H3@8",
    ),
    "queries": (ma.queries(), {"layer": 2, "head": 4}, "L1H3.q"),
    "keys": (ma.keys(), {"layer": 2, "kv_head": 2}, "L1KV1.k"),
    "values": (
        ma.values(per_position=True), {"layer": 2, "kv_head": 2, "position": LENGTH}, "L1KV1.v@8",
    ),
    "attention": (ma.attention(), {"layer": 2}, "A1"),
    "mlps": (ma.mlps(per_position=True), {"layer": 2, "position": LENGTH}, "M1@8"),
    "neurons": (ma.neurons(layers=0), {"layer": 1, "neuron": 32}, "M0N31"),
    "residual": (ma.residual("mid"), {"layer": 2, "position": LENGTH}, "resid_mid1@8"),
    "residual everywhere": (ma.residual("post", per_position=False), {"layer": 2}, "resid_post1"),
}  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
def test_players_span_a_grid_slowest_dimension_first(grid):
    spec, sizes, last = GRIDS[grid]
    found = players(spec)
    assert found.dims == tuple(sizes)
    assert len(found) == np.prod(list(sizes.values()))
    assert found.names[-1] == last
    wanted = np.meshgrid(*(np.arange(n) for n in sizes.values()), indexing="ij")
    for dim, values in zip(sizes, wanted, strict=True):
        assert list(found.coords[dim]) == values.ravel().tolist()


def test_tokens_are_named_by_their_text_in_a_single_prompt():
    model = shared_model("llama-bridge")
    prompts = ma.Prompts.from_texts(model, "Mary had a cat")
    game = patch_game(model, ma.tokens(), prompts=prompts, source=ma.sources.Zero())
    assert game.players.names == ("0:Mary", "1: had", "2: a", "3: cat")
    two = ma.Prompts.from_texts(model, ["Mary had a cat", "John had"])
    game = patch_game(model, ma.tokens(), prompts=two, source=ma.sources.Zero())
    assert game.players.names[1] == "position 1"
    assert game.exists.tolist() == [[True] * 4, [True, True, False, False]]


def test_players_of_shorter_prompts_do_not_exist_beyond_their_end():
    model = shared_model("llama-bridge")
    prompts = ma.Prompts.from_texts(model, ["Mary had a cat", "John had"])
    spec = (
        ma.heads(per_position=True, layers=1)
        + ma.mlps()
        + ma.tokens().group({"late": [3], "some": [1, 2]})
    )
    game = patch_game(model, spec, prompts=prompts, source=ma.sources.Zero())
    assert game.exists[0].all()
    position = game.players.coords["position"]
    there = [p is None or p < 2 for p in position[:-2]] + [False, True]
    assert game.exists[1].tolist() == there


def test_layers_in_any_form():
    for layers in (
        1,
        [1],
        (1,),
        {1},
        range(1, 2),
        np.array([1]),
        np.int64(1),
        -1,
        torch.tensor([1]),
    ):
        assert players(ma.heads(layers=layers)).names == ("L1H0", "L1H1", "L1H2", "L1H3")
    assert players(ma.mlps(layers=[1, 0, 1])).names == ("M0", "M1")


def test_coordinates_survive_sums_and_groups():
    both = players(ma.heads() + ma.tokens())
    assert both.kind_dims == {"head": ("layer", "head"), "token": ("position",)}
    assert both.of_kind("head").dims == ("layer", "head")
    grouped = players(ma.heads(per_position=True).group(["layer", "position"]))
    assert grouped.dims == ("layer", "position")
    assert len(grouped) == 2 * LENGTH


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "unknown hook": (
        lambda: ma.hook("blocks.0.attn.hook_zz"),
        ma.UnknownNameError,
        r"Unknown hook point 'blocks.0.attn.hook_zz'. Did you mean blocks.0.attn.hook_z,",
    ),
    "near names are of the same layer": (
        lambda: ma.hook("blocks.1.hook_mlp"),
        ma.UnknownNameError,
        r"Did you mean blocks.1.hook_mlp_out",
    ),
    "hook without its layer": (
        lambda: ma.hook("blocks.x.hook_mlp_out"), ma.UnknownNameError, r"blocks.0.hook_mlp_out",
    ),
    "hook outside blocks": (
        lambda: ma.hook("embed"), ma.UnknownNameError, r"Did you mean hook_embed\?",
    ),
    "hook of a layer that isn't there": (
        lambda: players(ma.hook("blocks.7.attn.hook_z")),
        ma.InputError,
        r"Layer 7 doesn't exist: the model has 2 layers \(0 to 1\)",
    ),
    "layers out of range": (
        lambda: players(ma.mlps(layers=[0, 5])), ma.InputError, "Layer 5 doesn't exist",
    ),
    "negative layer out of range": (
        lambda: players(ma.mlps(layers=-3)), ma.InputError, "Layer -3 doesn't exist",
    ),
    "layers as text": (
        lambda: ma.heads(layers="12"), ma.InputError, "layers is '12'; expected a layer's number",
    ),
    "layers as a fraction": (
        lambda: ma.heads(layers=[0.5]), ma.InputError, r"layers is \[0.5\]; expected",
    ),
    "no layers": (
        lambda: ma.heads(layers=[]), ma.InputError, "layers is an empty selection",
    ),
    "unknown stage": (
        lambda: ma.residual("middle"), ma.UnknownNameError, r"stage 'middle'. Did you mean mid\?",
    ),
    "mid of parallel blocks": (
        lambda: players(ma.residual("mid"), "neox-bridge"),
        ma.NotSupportedError,
        r"no resid_mid: its attention and MLP run in parallel .* Use residual\('pre'\)",
    ),
    "empty selection": (
        lambda: players(ma.heads().select(layer=9)),
        ma.InputError,
        r"The selection \{'layer': 9\} is empty: .* Values that exist: layer: 0, 1",
    ),
    "selection by an unknown coordinate": (
        lambda: players(ma.heads().select(heads=1)),
        ma.UnknownNameError,
        r"Unknown coordinate 'heads'. Did you mean head\?",
    ),
    "group by an unknown coordinate": (
        lambda: players(ma.tokens().group("layer")),
        ma.UnknownNameError,
        "Unknown coordinate 'layer'. Known: kind, position",
    ),
    "group of an unknown player": (
        lambda: players(ma.heads().group({"a": ["L0H11"]})),
        ma.UnknownNameError,
        "Unknown player 'L0H11'. Did you mean L0H1,",
    ),
    "group without members": (
        lambda: players(ma.tokens().group({"names": {"position": [40]}})),
        ma.InputError,
        "Group 'names' has no members",
    ),
    "groups that share a player": (
        lambda: players(ma.tokens().group({"a": [1, 2], "b": [2, 3]})),
        ma.InputError,
        "'2:.' is in two groups, 'a' and 'b'",
    ),
    "players that overlap": (
        lambda: players(ma.heads() + ma.heads(per_position=True, layers=1)),
        ma.InputError,
        r"'L1H0' and 'L1H0@0' both own blocks.1.attn.hook_z \(position 0, unit 0\); "
        "players must not overlap",
    ),
    "groups that overlap": (
        lambda: players(ma.heads().group("layer") + ma.heads().select(layer=1, head=2)),
        ma.InputError,
        "'layer 1' and 'L1H2' both own blocks.1.attn.hook_z",
    ),
    "the same players twice": (
        lambda: players(ma.heads() + ma.heads()), ma.InputError, "'L0H0' came twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    what, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        what()


def test_what_overlaps_in_no_cell_can_be_added():
    """Heads 0 everywhere and head 1 at one position: the same site, other cells."""
    spec = ma.heads().select(head=0) + ma.heads(per_position=True).select(head=1, position=4)
    assert players(spec).names == ("L0H0", "L1H0", "L0H1@4", "L1H1@4")


def test_a_model_without_mlps_has_no_mlp_players():
    shape = Shape(2, 4, 4, 0, False, False, frozenset({"blocks.0.attn.hook_z"}))
    prompts = oracles.pair(shared_model("gpt2-bridge"))
    for spec in (ma.mlps(), ma.neurons(layers=0)):
        with pytest.raises(ma.NotSupportedError, match="no MLPs"):
            spec.bind(shape, prompts)
    with pytest.raises(ma.NotSupportedError, match="no resid_mid"):
        ma.residual("mid").bind(shape, prompts)
    assert len(ma.heads().bind(shape, prompts).players) == 8


def test_a_hook_that_this_model_lacks():
    shape = Shape(
        2, 4, 4, 8, True, False, frozenset({"blocks.0.attn.hook_z", "blocks.0.hook_mlp_out"})
    )
    prompts = oracles.pair(shared_model("gpt2-bridge"))
    with pytest.raises(ma.UnknownNameError, match=r"'blocks.0.attn.hook_q'. Did you mean .*hook_z"):
        ma.queries().bind(shape, prompts)
