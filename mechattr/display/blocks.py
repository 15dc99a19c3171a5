"""Scores spread over the grid of their players, reduced, and averaged over prompts. Only numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mechattr.attribution import Attribution, _cells

REDUCTIONS = ("sum", "mean", "strongest")


@dataclass(frozen=True)
class Block:
    """Scores on a grid, [prompt, *dims], NaN where there is no player.

    draws: standard errors over draws; names: [*dims] the players' names. None once combined.
    """

    dims: tuple[str, ...]
    axes: dict[str, list[Any]]
    values: np.ndarray
    draws: np.ndarray | None
    names: np.ndarray | None


def block(part: Attribution, rows: list[int]) -> Block:
    """The chosen prompts' scores on the grid of the players' ``dims``."""
    players = part.players
    axes, places = _cells(players, players.dims)
    cells: tuple[Any, ...] = tuple(places)
    shape = tuple(len(axis) for axis in axes.values())

    def spread(array: np.ndarray) -> np.ndarray:
        out = np.full((len(array), *shape), np.nan)
        out[(slice(None), *cells)] = array
        return out

    names = np.full(shape, "", dtype=object)
    names[cells] = players.names
    draws = None if part.draw_stderr is None else spread(part.draw_stderr[rows])
    return Block(players.dims, axes, spread(part.values[rows]), draws, names)


def reduced(whole: Block, keep: tuple[str, ...], reduce: str) -> Block:
    """Only the axes to keep, in that order; the others combined."""
    away = tuple(1 + i for i, dim in enumerate(whole.dims) if dim not in keep)
    left = [dim for dim in whole.dims if dim in keep]
    order = [left.index(dim) for dim in keep]
    axes = {dim: whole.axes[dim] for dim in keep}

    def turned(array: np.ndarray) -> np.ndarray:
        return array.transpose(0, *(1 + o for o in order))

    if any(whole.values.shape[i] > 1 for i in away):
        # The error over draws of a combination would need the draws themselves: it is left out.
        return Block(keep, axes, turned(_combine(whole.values, away, reduce)), None, None)
    # Axes of length one just go, and the scores keep their names and errors.
    assert whole.names is not None
    names = turned(whole.names[None].squeeze(away))[0]
    draws = None if whole.draws is None else turned(whole.draws.squeeze(away))
    return Block(keep, axes, turned(whole.values.squeeze(away)), draws, names)


def _combine(values: np.ndarray, axes: tuple[int, ...], reduce: str) -> np.ndarray:
    """NaN only where every part is NaN."""
    moved = np.moveaxis(values, axes, range(-len(axes), 0))
    flat = moved.reshape(*moved.shape[: -len(axes)], -1)
    there = np.isfinite(flat)
    filled = np.where(there, flat, 0.0)
    if reduce == "strongest":
        strongest = np.abs(filled).argmax(-1)[..., None]
        out = np.take_along_axis(filled, strongest, -1)[..., 0]
    else:
        out = filled.sum(-1)
        if reduce == "mean":
            out = out / np.maximum(there.sum(-1), 1)
    return np.where(there.any(-1), out, np.nan)


def mean(values: np.ndarray) -> np.ndarray:
    """Over prompts, of those in which the cell exists."""
    there = np.isfinite(values)
    count = there.sum(0)
    total = np.where(there, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def stderr(values: np.ndarray) -> np.ndarray | None:
    """Standard error of the mean over prompts; None for one prompt."""
    if len(values) < 2:
        return None
    there = np.isfinite(values)
    count = there.sum(0)
    squares = np.where(there, (values - mean(values)) ** 2, 0.0).sum(0)
    error = np.sqrt(squares / np.maximum(count - 1, 1) / np.maximum(count, 1))
    return np.where(count > 1, error, np.nan)


def mean_error(draws: np.ndarray) -> np.ndarray:
    """The error over draws of a mean over prompts: at most their mean, as prompts share draws."""
    return mean(draws)


def within(part: Attribution, prompt: int) -> Attribution:
    """Without the players at positions that this prompt is too short to have."""
    positions = part.players.coords.get("position")
    if positions is None or part.tokens is None:
        return part
    end = len(part.tokens[prompt])
    index = [i for i, p in enumerate(positions) if p is None or p < end]
    if not index or len(index) == len(positions):
        return part
    return replace(
        part,
        values=part.values[:, index],
        players=part.players.take(index),
        draw_stderr=None if part.draw_stderr is None else part.draw_stderr[:, index],
    )


def of_kind(attribution: Attribution, kind: str) -> Attribution:
    """One kind of player of a concatenation, on its own grid where it has one."""
    players = attribution.players.of_kind(kind)
    return replace(attribution.select(kind=kind), players=players)
