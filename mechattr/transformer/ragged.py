"""Blocks on windows that start at another position in each row.

A row's cells are its past, padded on the left to the longest, and its window; rows with little
behind them and rows with much go through a block together. Padding is seen by nobody, and positions
are a row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechattr.errors import NotSupportedError
from mechattr.transformer.calls import CACHE_NAMES
from mechattr.transformer.model import BridgeFace, Edit, Face, Past, _OneLayerCache


@dataclass(frozen=True, eq=False)
class Places:
    """Where rows' windows start.

    starts: [row] the position at which each window starts, so that as many cells of its own are
        before it.
    before: cells before the windows, padding included: the largest start.
    even: whether all start alike, and nothing is padded.
    """

    starts: Int[Tensor, " row"]
    before: int
    even: bool

    @classmethod
    def of(cls, starts: Sequence[int], device: torch.device) -> Places:
        return cls(torch.as_tensor(starts, device=device), max(starts), max(starts) == min(starts))

    def positions(self, first: int, last: int) -> Int[Tensor, "row cell"]:
        """The positions of cells [first, last) in each row; negative ones are padding."""
        cells = torch.arange(first, last, device=self.starts.device)
        return cells - (self.before - self.starts[:, None])


def run_block_at(
    face: Face,
    layer: int,
    resid: Tensor,
    places: Places,
    first: int,
    past: Past | None,
    edits: Sequence[Edit] = (),
    *,
    keep: bool = False,
) -> tuple[Tensor, Past | None]:
    """``Face.run_block`` on cells from ``first`` on, the rest as there. A model for which
    :func:`can_be_ragged` says no can do it only where all rows start alike."""
    if places.even:
        return face.run_block(layer, resid, first, past, edits, keep=keep)
    with ExitStack() as stack:
        for name, edit in edits:
            stack.enter_context(face._hooked(name, edit))
        assert past is not None
        if isinstance(face, BridgeFace):
            return _bridge(face, layer, resid, places, first, past, keep)
        return _hooked(face, layer, resid, places, first, past, keep)


def _hooked(
    face: Face, layer: int, resid: Tensor, places: Places, first: int, past: Past, keep: bool
) -> tuple[Tensor, Past | None]:
    """A HookedTransformer's block counts positions along its attention mask."""
    from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

    entry = TransformerLensKeyValueCacheEntry(*past)
    entry.frozen = not keep
    there = places.positions(0, first + resid.shape[1]) >= 0
    block = face.model.blocks[layer]
    out = block(resid, past_kv_cache_entry=entry, attention_mask=there.long())
    return out, (entry.past_keys, entry.past_values) if keep else None


def _bridge(
    face: BridgeFace, layer: int, resid: Tensor, places: Places, first: int, past: Past, keep: bool
) -> tuple[Tensor, Past | None]:
    """A bridge's block takes rotations and masks for whatever positions it is given."""
    cache = _OneLayerCache(past)
    window = {
        key: cache
        if key in CACHE_NAMES
        else _placed(value, key, places, slice(first, first + resid.shape[1]), face._length)
        for key, value in face._calls[layer].items()
    }
    if not CACHE_NAMES & window.keys():
        window["past_key_values"] = cache
    out = face.model.blocks[layer](resid, **window)
    return out[0] if isinstance(out, tuple) else out, cache.kept if keep else None


def _placed(value: Any, key: str, places: Places, cells: slice, length: int) -> Any:
    """A block's keyword argument, captured for positions [0, length), for the rows' own."""
    if isinstance(value, tuple):
        return tuple(_placed(part, key, places, cells, length) for part in value)
    if not isinstance(value, Tensor):
        return value
    queries = places.positions(cells.start, cells.stop).clamp(0, length - 1)
    if "mask" in key and value.ndim == 4:  # [1, 1 or head, query, key]
        return _mask(value[0], queries, places, cells)
    if key == "cache_position":
        return torch.arange(cells.start, cells.stop, device=value.device)
    if "position_ids" in key:
        return queries.to(value.dtype)
    if value.ndim == 3 and value.shape[-2] == length:  # rotary tables [1, position, d]
        return value[0][queries]
    if length in value.shape:
        raise NotSupportedError(f"Can't tell what {key} of shape {tuple(value.shape)} counts.")
    return value


def _mask(causal: Tensor, queries: Tensor, places: Places, cells: slice) -> Tensor:
    """[row, 1 or head, query, key] from [1 or head, position, position]."""
    keys = places.positions(0, cells.stop)
    at = keys.clamp(0, causal.shape[-1] - 1)
    mask = causal[:, queries[:, :, None], at[:, None, :]].transpose(0, 1)
    index = torch.arange(cells.stop, device=keys.device)
    # Cells after a row's end have no position of their own: only those after may see them.
    there = (keys >= 0)[:, None, None] & (index <= index[cells.start :, None])
    closed = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(~there, closed)


@torch.no_grad()
def can_be_ragged(face: Face, tokens: Int[Tensor, " position"]) -> bool:
    """Once a model: whether two windows of a prompt, run together from different positions, give
    what the prompt gives as a whole."""
    if face.known("ragged") or face.known("not ragged"):
        return face.known("ragged")
    row = tokens[None, :12].to(face.device)
    if row.shape[1] < 4:
        return False
    with face.quiet():
        try:
            fits = _agrees(face, row)
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError):
            fits = False  # rows that start alike are still run together
    face.learn("ragged" if fits else "not ragged")
    return fits


def _agrees(face: Face, row: Int[Tensor, "1 position"]) -> bool:
    length = row.shape[1]
    starts = (1, length // 2)
    places = Places.of(starts, face.device)
    face.prepare(row)
    whole, _ = face.embed(row)
    windows = [whole[:, start:] for start in starts]
    width = max(window.shape[1] for window in windows)
    both = torch.cat([_to_width(window, 1, width) for window in windows])
    axis = face.past_axis
    for layer in range(face.n_layers):
        whole, kept = face.run_block(layer, whole, 0, None, keep=True)
        assert kept is not None
        keys, values = (
            torch.cat(
                [_to_width(part.narrow(axis, 0, s), axis, places.before, left=True) for s in starts]
            )
            for part in kept
        )
        both, _ = run_block_at(face, layer, both, places, places.before, (keys, values))
    got = torch.stack([both[0, : length - starts[0]][-1], both[1, : length - starts[1]][-1]])
    error = (got - whole[:, -1]).abs().max() / whole[:, -1].abs().max().clamp(min=1e-6)
    return bool(error < {torch.float64: 1e-5, torch.float32: 1e-3}.get(face.dtype, 0.1))


def _to_width(value: Tensor, axis: int, width: int, *, left: bool = False) -> Tensor:
    size = list(value.shape)
    size[axis] = width - size[axis]
    nothing = value.new_zeros(size)
    return torch.cat([nothing, value] if left else [value, nothing], dim=axis)
