"""What blocks are called with: as in the model's own forward pass, and without running it."""

from __future__ import annotations

import gc
import inspect
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import mechattr as ma
from mechattr.transformer import calls
from mechattr.transformer.calls import CACHE_NAMES, calls_for
from mechattr.transformer.model import Face, face_of
from tests import oracles
from tests.oracles import assert_agree, shared_model
from tests.transformer import tiny
from tests.transformer.test_engine_hygiene import assert_same, state
from tests.transformer.test_model import in_windows
from tests.transformer.test_removal import ANSWER, MASKS, PIECES

FAMILY = pytest.mark.parametrize("family", [*tiny.FAMILIES, "qwen3"])
TOKENS = torch.tensor([oracles.CLEAN, oracles.OTHER])


@torch.no_grad()
def of_a_whole_run(model: Any, tokens: Tensor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def see(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(block.original_component.forward).parameters)
        found.append(dict(list(zip(names, args, strict=False))[1:]) | kwargs)
        found[-1].pop("hidden_states", None)

    handles = [b.register_forward_pre_hook(see, with_kwargs=True) for b in model.blocks]
    try:
        model(tokens, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


def assert_alike(one: Any, other: Any) -> None:
    if isinstance(one, tuple):
        for part, same in zip(one, other, strict=True):
            assert_alike(part, same)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


def tensors(call: dict[str, Any]) -> list[Tensor]:
    parts = [part for v in call.values() for part in (v if isinstance(v, tuple) else (v,))]
    return [part for part in parts if isinstance(part, Tensor)]


def room(face: Face) -> Face:
    """Of a model that goes on for longer than the tiny ones."""
    face.n_ctx = 2**31
    return face


# --- what is seen ---------------------------------------------------------------------------------


@FAMILY
@pytest.mark.parametrize("window", [None, 5])
def test_the_same_as_in_a_whole_run(family, window):
    model = tiny.tiny_bridge(family)
    if window is not None:  # of gemma2's first layer alone
        model.original_model.config.sliding_window = window
    tokens = torch.arange(tiny.N_CTX)[None]
    want = of_a_whole_run(model, tokens)
    made = calls_for(face_of(model), tokens[:, :30])
    assert made.length == tiny.N_CTX
    assert len(made.of) == len(want) == 2
    for call, expected in zip(made.of, want, strict=True):
        assert call.keys() == expected.keys()
        assert len(tensors(call)) >= 2
        for name, value in call.items():
            if name in CACHE_NAMES:
                assert value is None, "keys and values of a whole prompt aren't kept"
            else:
                assert_alike(value, expected[name])
    masks = [call["attention_mask"] for call in made.of]
    assert torch.equal(*masks) == (family != "gemma2" or window is None)


class PairBlock(torch.nn.Module):
    """Returns a pair, and takes its mask by position."""

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, str]:
        return hidden + mask.sum(), "more"

    @property
    def original_component(self) -> Any:
        return self


class PairModel(torch.nn.Module):
    """As some architectures go through their blocks; nothing comes after them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(PairBlock() for _ in range(4))

    def forward(self, tokens: Tensor, *, stop_at_layer: int = 4, **_: Any) -> None:
        out: Any = (tokens[..., None].double(), "embedded")
        for layer, block in enumerate(self.blocks[:stop_at_layer]):
            hidden, more = out
            assert hidden.shape == (*tokens.shape, 1)
            assert more == ("more" if layer else "embedded")
            out = block(hidden, torch.full(tokens.shape, layer))
        assert stop_at_layer == 1, "all has been seen"


def test_blocks_that_return_more_than_the_stream():
    face: Any = SimpleNamespace(model=PairModel(), n_layers=4, quiet=nullcontext)
    made = calls._seen(face, TOKENS[:1])
    assert [list(call) for call in made] == [["mask"]] * 4
    assert [int(call["mask"].max()) for call in made] == [0, 1, 2, 3]
    assert made[0]["mask"].shape == TOKENS[:1].shape


def test_a_single_layer():
    model = shared_model("llama-bridge")
    face = face_of(model)
    face.n_layers = 1
    assert_alike(calls_for(face, TOKENS).of[0], calls_for(face_of(model), TOKENS).of[0])


# --- what is run ----------------------------------------------------------------------------------


def test_many_games_on_a_model_see_its_calls_once(monkeypatch):
    model = tiny.tiny_bridge("llama")
    ma.RemovalGame(model, PIECES, ANSWER)(MASKS)  # checks the model, once, on its own logits
    prepared, unembedded, blocks = [], [], []
    seen = calls._seen

    def count(*args: Any) -> Any:
        prepared.append(1)
        return seen(*args)

    monkeypatch.setattr(calls, "_seen", count)
    model.unembed.register_forward_hook(lambda *_: unembedded.append(1))
    model.blocks[1].register_forward_hook(lambda block, args, out: blocks.append(out.shape[:2]))
    calls._KEPT.clear()
    found = []
    for _ in range(3):
        game = ma.RemovalGame(model, PIECES, ANSWER)
        found.append(game(MASKS))
    assert len(prepared) == 1
    assert not unembedded, "only the answer's rows, by themselves"
    assert sum(map(torch.Size.numel, blocks)) == 3 * game.tokens_run
    assert torch.equal(found[0], found[2])


def test_no_block_is_run_on_the_prompt():
    model = tiny.tiny_bridge("gemma2")
    widths: dict[int, list[int]] = {0: [], 1: []}
    for layer in widths:
        model.blocks[layer].register_forward_hook(
            lambda block, args, out, layer=layer: widths[layer].append(out.shape[1])
        )
    calls_for(face_of(model), torch.arange(40)[None])
    assert widths == {0: [4], 1: []}


def test_the_model_is_as_it_was():
    model = tiny.tiny_bridge("llama")
    next(iter(model.parameters())).requires_grad_(False)
    model.blocks[1].train()
    before = state(model)
    calls_for(face_of(model), TOKENS)
    assert_same(before, state(model))
    assert all("_call_impl" not in vars(block) for block in model.blocks)
    model.blocks[0].register_forward_hook(lambda block, args, out: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calls._seen(face_of(model), TOKENS[:1])
    assert all("_call_impl" not in vars(block) for block in model.blocks)


# --- what is kept ---------------------------------------------------------------------------------


def test_lengths_are_rounded_up_and_covered():
    face = room(face_of(tiny.tiny_bridge("llama")))
    few = calls_for(face, torch.arange(30)[None])
    assert few.length == 128
    assert calls_for(face, torch.zeros(1, 128, dtype=torch.long)) is few
    more = calls_for(face, torch.zeros(1, 129, dtype=torch.long))
    assert more.length == 256
    assert calls_for(face, TOKENS) is more


def test_what_is_long_is_not_kept():
    face = room(face_of(tiny.tiny_bridge("llama")))
    few = calls_for(face, TOKENS)
    long = torch.zeros(1, calls.LONGEST_KEPT + 1, dtype=torch.long)
    assert calls_for(face, long).length == calls.LONGEST_KEPT + calls.STEP
    assert calls_for(face, TOKENS) is few


def test_a_prompt_longer_than_the_context_is_taken_as_it_is():
    face = face_of(tiny.tiny_bridge("llama"))
    assert calls_for(face, torch.zeros(1, 70, dtype=torch.long)).length == 70


@pytest.mark.parametrize("change", ["dtype", "window", "attention", "frequencies"])
def test_a_model_that_has_changed_is_asked_again(change):
    model = tiny.tiny_bridge("gemma2")
    before = calls_for(face_of(model), TOKENS)
    config = model.original_model.config
    if change == "dtype":
        model.to(torch.float32)
    elif change == "window":
        config.sliding_window = 3
    elif change == "attention":
        config._attn_implementation = "sdpa"
    else:
        model.original_model.model.rotary_emb.inv_freq.mul_(0.5)
    after = calls_for(face_of(model), TOKENS)
    assert after is not before
    assert calls_for(face_of(model), TOKENS) is after


def test_weights_make_no_difference():
    """They may be changed in place, which nobody would be told of."""
    model = tiny.tiny_bridge("llama")
    before = calls_for(face_of(model), TOKENS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-1.5)
    assert calls_for(face_of(model), TOKENS) is before
    calls._KEPT.clear()
    for one, other in zip(before.of, calls_for(face_of(model), TOKENS).of, strict=True):
        assert_alike(tuple(one.values()), tuple(other.values()))
    with torch.no_grad():
        assert_agree(in_windows(model, TOKENS, [4]), model(TOKENS))


@pytest.mark.parametrize("kind", ["dynamic", "longrope", {"full_attention": "dynamic"}])
def test_rotations_that_depend_on_the_length_are_not_shared(kind):
    model = tiny.tiny_bridge("llama")
    rotary = model.original_model.model.rotary_emb
    vars(getattr(rotary, "original_component", rotary))["rope_type"] = kind
    face = face_of(model)
    first = calls_for(face, TOKENS)
    assert first.length == TOKENS.shape[1]
    assert calls_for(face, TOKENS) is not first


def test_what_may_depend_on_the_tokens_is_not_kept(monkeypatch):
    model = tiny.tiny_bridge("llama")
    seen = calls._seen
    for other in ({"per_layer_input": torch.ones(1)}, {"parent": model}):
        monkeypatch.setattr(calls, "_seen", lambda *a, o=other: tuple(c | o for c in seen(*a)))
        first = calls_for(face_of(model), TOKENS)
        assert calls_for(face_of(model), TOKENS) is not first


def test_kept_calls_can_have_gradients_and_keep_no_model():
    model = tiny.tiny_bridge("llama")
    with torch.inference_mode():
        made = calls_for(face_of(model), TOKENS)
    found = tensors(made.of[0])
    assert len(found) == 4
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in found)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
