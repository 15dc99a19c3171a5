"""Gradients through the engine: one backward pass for all players and prompts of a batch of rows.

There is one leaf, the [row, player] mask; each site looks its weights up in it. No tensor a node.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mechattr.transformer.engine import Engine, Masks
from mechattr.transformer.graph import Site
from mechattr.transformer.memory import in_pieces
from mechattr.transformer.schedule import Pack, Rows, make_packs


def mask_gradients(engine: Engine, rows: Rows, masks: Tensor) -> Tensor:
    """``∂v/∂mask`` of each row: [row, player]. ``rows.mask`` indexes ``masks``."""
    return _over_packs(engine, rows, masks, _mask_gradient)


def sensitivities(engine: Engine, rows: Rows, masks: Tensor) -> Tensor:
    """``‖∂v/∂x_i‖₂`` over the cells of each player: [row, player]."""
    return _over_packs(engine, rows, masks, _sensitivity)


def _over_packs(engine: Engine, rows: Rows, masks: Tensor, each) -> Tensor:  # type: ignore[no-untyped-def]
    wide = torch.promote_types(engine.face.dtype, torch.float32)
    out = torch.zeros(len(rows), masks.shape[1], dtype=wide, device=engine.face.device)
    for pack in make_packs(rows, engine.budget.overhead, engine.budget.graph_tokens):
        done = 0

        def piece(part: slice, pack: Pack = pack) -> Tensor:
            some = np.arange(part.start, part.stop)
            mine = masks[torch.as_tensor(pack.rows.mask[some])].to(engine.face.device, wide)
            own = replace(pack.rows.take(some), mask=np.arange(len(some)))
            return each(engine, Pack(own, some, pack.start, pack.stop), mine)

        for part in in_pieces(piece, len(pack.rows), len(pack.rows), engine.face.device):
            index = torch.as_tensor(pack.index[done : done + len(part)], device=out.device)
            out[index] = part
            done += len(part)
            engine.ticks(len(part))
    return out


def _mask_gradient(engine: Engine, pack: Pack, masks: Tensor) -> Tensor:
    leaf = masks.detach().requires_grad_(True)
    with torch.enable_grad():
        own = replace(engine, masks=Masks.of(leaf, engine.masks.base, engine.face.device))
        total = own.climb(pack).sum()
        (slope,) = torch.autograd.grad(total, leaf)
    return slope


def _sensitivity(engine: Engine, pack: Pack, masks: Tensor) -> Tensor:
    seen: list[tuple[Site, Tensor, np.ndarray, int]] = []
    leaf = masks.detach().requires_grad_(True)  # puts every edited value on the graph
    with torch.enable_grad():
        own = replace(
            engine,
            masks=Masks.of(leaf, engine.masks.base, engine.face.device),
            tap=lambda site, value, rows, start: seen.append((site, value, rows, start)),
        )
        total = own.climb(pack).sum()
        slopes = torch.autograd.grad(total, [value for _, value, _, _ in seen])
    squared = torch.zeros(len(masks), masks.shape[1] + 1, dtype=leaf.dtype, device=leaf.device)
    for (site, _, rows, start), slope in zip(seen, slopes, strict=True):
        for row, owner, amount in _cells(engine, pack, site, rows, start, slope):
            squared.index_put_((row, owner), amount.to(squared.dtype), accumulate=True)
    return squared[:, :-1].sqrt()


def _cells(
    engine: Engine, pack: Pack, site: Site, rows: np.ndarray, start: int, slope: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(row, owner, Σ slope²) of each cell; unowned cells go to the column after the last player."""
    device = slope.device
    owner = dict(engine.ground.cells)[site]
    if owner.shape[1] > 1:
        owner = owner[:, start : start + slope.shape[1]]
    if len(owner) > 1:
        owner = owner[torch.as_tensor(pack.rows.prompt[rows], device=device)]
    amount = slope.double().pow(2).sum(-1)  # [row, position, unit]
    owner = owner.expand(amount.shape)
    row = torch.as_tensor(rows, device=device)[:, None, None].expand(amount.shape)
    last = engine.masks.table.shape[1] - 1
    yield row, torch.where(owner < 0, last, owner), amount
