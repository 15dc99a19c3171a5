"""Narrower dtypes and other devices give what float64 on the CPU gives, to their precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mechattr as ma
from tests import oracles
from tests.oracles import patch_game, some_masks
from tests.transformer import tiny

MAKE: dict[str, Any] = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}
PRECISION = {torch.float32: 1e-5, torch.bfloat16: 0.15}
"""Allowed error of a value, as a share of the spread of values."""


def results(model: Any, base: str, source: Any = None) -> dict[str, torch.Tensor]:
    spec = ma.tokens() + ma.heads(per_position=True) + ma.mlps()
    game = patch_game(model, spec, base=base, source=source)
    masks = some_masks(game.n_players, each=4)
    out = {
        "values": game(masks),
        "gradients": game.gradient(masks[:3]),
        "sensitivities": game.sensitivity(masks[:3]),
    }
    for what, values in out.items():
        assert values.dtype == torch.float64, what
        assert bool(values.isfinite().all()), what
    return out


def assert_near(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], share: float) -> None:
    for what, values in want.items():
        spread = float(values.max() - values.min())
        assert spread > 1e-2
        error = float((got[what] - values).abs().max())
        assert error < share * spread, f"{what}: {error / spread:.2g} of the spread"


def same_weights(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model of a narrow dtype, and a float64 one of just the same (rounded) weights."""
    family, _, cls = name.partition("-")
    narrow, wide = MAKE[cls](family, dtype=dtype), MAKE[cls](family)
    rounded = dict(narrow.named_parameters())
    for key, parameter in wide.named_parameters():
        parameter.data.copy_(rounded[key].data)
    return narrow, wide


@pytest.mark.parametrize("name", [n for n in oracles.MODELS if not n.startswith(("neox", "qwen2"))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(name, dtype):
    narrow, wide = same_weights(name, dtype)
    base = "clean" if dtype == torch.float32 else "source"
    assert_near(results(narrow, base), results(wide, base), PRECISION[dtype])


@pytest.mark.parametrize("cls", oracles.CLASSES)
def test_sources_in_bfloat16(cls):
    narrow, wide = same_weights(f"llama-{cls}", torch.bfloat16)
    for source in ("mean", "noise"):
        one, other = (
            results(
                model,
                "source",
                ma.sources.Mean(oracles.data(model))
                if source == "mean"
                else ma.sources.Noise(draws=1, at=[[3, 5]]),
            )
            for model in (narrow, wide)
        )
        assert_near(one, other, PRECISION[torch.bfloat16])


def test_what_is_left_alone_stays_so_in_bfloat16():
    """To the last bit: a present player changes nothing, not even a rounding."""
    model = tiny.tiny_bridge("gpt2", dtype=torch.bfloat16)
    for spec in (ma.tokens(), ma.residual("mid"), ma.heads(per_position=True)):
        game = patch_game(model, spec)
        mask = torch.ones(1, game.n_players)
        shared = game.players.where(position=range(3))
        mask[0, shared] = 0  # the positions that both prompts share
        assert float(game(mask)) == float(game.full())


def test_logits_are_read_in_float32():
    """A logit difference of bfloat16 logits would be rounded to a few values."""
    game = patch_game(tiny.tiny_bridge("llama", dtype=torch.bfloat16), ma.heads(per_position=True))
    masks = some_masks(game.n_players, each=10)[2:]
    values = game(masks)[:, 0]
    assert len((values.float() - values.bfloat16().float()).unique()) > 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [f"llama-{cls}" for cls in oracles.CLASSES])
def test_on_a_gpu(name):
    for dtype in (torch.float64, torch.bfloat16):
        model, wide = same_weights(name, dtype)
        model = model.to("cuda")
        for base in ("clean", "source"):
            share = PRECISION.get(dtype, 1e-9)
            for source in (None, ma.sources.Zero(), ma.sources.Noise(draws=1)):
                assert_near(results(model, base, source), results(wide, base, source), share)
