"""The engine: runs rows (one mask on one prompt each) up the layers, in packs.

    pack:   rows whose windows of positions are alike
    layer:  rows under way run the block; rows whose entry it is join, from the base run
    top:    the target is read at its own positions and columns

A row before its entry layer, a position before its first change, and whatever comes after the
last position read, is never computed. It is exact: a row's value is what a forward pass with hooks
on the whole prompt gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mechattr.transformer.graph import ADDED_LAST, Site
from mechattr.transformer.ground import Ground, as_cells, entering, fit, leaving
from mechattr.transformer.memory import Budget, in_pieces
from mechattr.transformer.model import Face, Past
from mechattr.transformer.schedule import Pack, Rows, make_packs
from mechattr.transformer.targets import BoundTarget

Tap = Callable[[Site, Tensor, np.ndarray, int], None]
"""Sees each edited value: (site, value [row, position, unit, width], rows, first position)."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Mask values on the device: [mask, player + 1]; the last column is that of unowned cells,
    for which the edit's weight is 0."""

    table: Tensor
    base: str

    @classmethod
    def of(cls, masks: Tensor, base: str, device: torch.device) -> Masks:
        rest = 1.0 if base == "clean" else 0.0
        masks = masks.to(device, non_blocking=True)
        column = torch.full((len(masks), 1), rest, device=device).to(masks.dtype)
        return cls(torch.cat([masks, column], dim=1), base)

    def weight(self, mask: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
        """How far each cell moves from the base run's value to its goal.

        mask: [row] which mask; owner: [row or 1, position or 1, unit].
        Returns [row, position or 1, unit, 1].
        """
        n = self.table.shape[1]
        flat = mask[:, None, None] * n + torch.where(owner < 0, n - 1, owner)
        value = self.table.reshape(-1)[flat].to(dtype)[..., None]
        return 1 - value if self.base == "clean" else value


@dataclass(eq=False)
class Engine:
    """Runs rows over one ground. ``ticks`` is called with the number of rows just finished."""

    face: Face
    ground: Ground
    target: BoundTarget
    masks: Masks
    budget: Budget
    ticks: Callable[[int], None] = lambda rows: None
    tap: Tap | None = None
    _by_layer: dict[int, list[tuple[Site, Tensor]]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_layer = {}
        for site, owner in self.ground.cells:
            self._by_layer.setdefault(site.layer, []).append((site, owner))

    def run(self, rows: Rows) -> Tensor:
        """[row] values, in the order of ``rows``; no graph is kept."""
        out = torch.empty(len(rows), device=self.face.device, dtype=self._wide)
        with torch.no_grad():
            for pack in make_packs(rows, self.budget.overhead, self.budget.pack_tokens):
                index = torch.as_tensor(pack.index, device=self.face.device)
                out[index] = self.climb(pack)
                self.ticks(len(pack.rows))
        return out

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.face.dtype, torch.float32)

    def climb(self, pack: Pack) -> Tensor:
        """Take one pack from its first entry to the target: [row] values in the pack's order."""
        rows, window = pack.rows, (pack.start, pack.stop)
        resid: Tensor | None = None
        live = 0
        for layer in range(int(rows.entry.min()), self.face.n_layers):
            parts = []
            if resid is not None and live:
                parts.append(self._advance(layer, resid, rows, live, window))
            joining = live + np.flatnonzero(rows.entry[live:] == layer)
            for late in (False, True):
                who = joining[rows.late[joining] == late]
                if len(who):
                    parts.append(self._join(layer, rows.take(who), window, late))
            # the pack is sorted by entry; within it, late joiners of a layer come last
            live += len(joining)
            resid = torch.cat(parts) if len(parts) > 1 else parts[0]
        assert resid is not None
        return self._read(resid, rows, pack.start)

    def _advance(
        self, layer: int, resid: Tensor, rows: Rows, live: int, window: tuple[int, int]
    ) -> Tensor:
        """One block for the rows under way, as many at a time as fit."""
        size = max(1, self.budget.call_tokens // (window[1] - window[0]))

        def piece(part: slice) -> Tensor:
            chosen = np.arange(part.start, part.stop)
            return self._block(layer, resid[part], rows.take(chosen), window[0])

        return torch.cat(list(in_pieces(piece, live, size, self.face.device)))

    def _join(self, layer: int, rows: Rows, window: tuple[int, int], late: bool) -> Tensor:
        """Rows that leave the base run in this layer: run only the positions that change in it,
        then widen to the pack's window with the base run's stream."""
        low, high = int(rows.low.min()), int(rows.high.max())
        prompt = self._index(rows.prompt)
        stream = self.ground.run.resid
        size = max(1, self.budget.call_tokens // (high - low))

        def piece(part: slice) -> Tensor:
            some = rows.take(np.arange(part.start, part.stop))
            if late:
                changed = self._add_last(layer, some, (low, high))
            else:
                entry = stream[layer][prompt[part], low:high]
                changed = self._block(layer, entry, some, low)
            wide = stream[layer + 1][prompt[part], window[0] : window[1]]
            before, after = wide[:, : low - window[0]], wide[:, high - window[0] :]
            return torch.cat([before, changed, after], dim=1)

        return torch.cat(list(in_pieces(piece, len(rows), size, self.face.device)))

    def _block(self, layer: int, resid: Tensor, rows: Rows, start: int) -> Tensor:
        """One block with the edits that the rows' masks ask for in it."""
        sites: Sequence[Site] = ()
        see = None
        if rows.touched[:, layer].any() or self.ground.origin is not None:
            edited = self._by_layer.get(layer, [])
            sites = [site for site, _ in edited]
            see = self._editor(dict(edited), rows, layer, start)
        past = self._past(layer, rows.prompt, start)
        if see is None:
            return self.face.run_block(layer, resid, start, past)[0]
        position = None
        if layer == 0 and any(site.stage == "embed" for site in sites):
            position = self._positional(start, resid.shape[1])
        resid, edits = entering(sites, resid, position, see)
        out, _ = self.face.run_block(layer, resid, start, past, edits)
        return leaving(sites, out, see)

    def _positional(self, start: int, width: int) -> Tensor | None:
        table = self.ground.run.positional
        # the same for every prompt: positions count from 0 in each
        return None if table is None else table[:1, start : start + width]

    def _past(self, layer: int, prompt: np.ndarray, start: int) -> Past | None:
        """The base run's keys and values before the window; it can't differ there."""
        if not start:
            return None
        keys, values = (
            part.narrow(self.face.past_axis, 0, start) for part in self.ground.run.past[layer]
        )
        if (prompt == prompt[0]).all():
            one, n = int(prompt[0]), len(prompt)
            return tuple(p[one : one + 1].expand(n, *p.shape[1:]) for p in (keys, values))  # type: ignore[return-value]
        index = self._index(prompt)
        return keys[index], values[index]

    def _editor(
        self, owners: dict[Site, Tensor], rows: Rows, layer: int, start: int
    ) -> Callable[[Site, Tensor], Tensor | None]:
        touched = rows.touched[:, layer]
        everyone = bool(touched.all()) or self.ground.origin is not None
        some = np.arange(len(rows)) if everyone else np.flatnonzero(touched)
        prompt = self._index(rows.prompt[some])
        mask = self._index(rows.mask[some])
        which = None if everyone else self._index(some)

        def see(site: Site, value: Tensor) -> Tensor:
            cells = as_cells(value, site)
            chosen = cells if which is None else cells[which]
            moved = self._move(site, owners[site], chosen, prompt, mask, start)
            if self.tap is not None:
                self.tap(site, moved, some, start)
            if which is None:
                return moved.reshape(value.shape)
            return cells.index_copy(0, which, moved).reshape(value.shape)

        return see

    def _move(
        self, site: Site, owner: Tensor, live: Tensor, prompt: Tensor, mask: Tensor, start: int
    ) -> Tensor:
        """``x + w (goal − x)``: exactly x at w = 0 and exactly the goal at w = 1."""
        window = slice(start, start + live.shape[1])
        owner = _window(owner, prompt, window)
        weight = self.masks.weight(mask, owner, live.dtype)
        if self.ground.origin is not None:
            origin = _window(fit(self.ground.origin[site], window.stop), prompt, window)
            origin = torch.zeros_like(live) if origin is None else origin.to(live)
            live = torch.where(owner[..., None] >= 0, origin, live)
        goal = _window(self.ground.goal[site], prompt, window)
        if goal is None:
            return live * (1 - weight)
        return torch.lerp(live, goal.to(live).expand_as(live), weight.expand_as(live))

    def _add_last(self, layer: int, rows: Rows, window: tuple[int, int]) -> Tensor:
        """Rows whose first change is what a block adds last: no block need be run."""
        low, high = window
        sites = [(s, o) for s, o in self._by_layer[layer] if s.stage in ADDED_LAST]
        see = self._editor(dict(sites), rows, layer, low)
        prompt = self._index(rows.prompt)
        resid = self.ground.run.resid[layer + 1][prompt, low:high]
        for site, _ in sites:
            if site.stage == "resid_post":
                seen = see(site, resid)
                resid = resid if seen is None else seen
            else:
                base = self.ground.run.values[site][prompt, low:high]
                seen = see(site, base)
                if seen is not None:
                    resid = resid + (seen - base).reshape(resid.shape)
        return resid

    def _read(self, resid: Tensor, rows: Rows, start: int) -> Tensor:
        """The target's value of each row from its own positions and columns."""
        positions = self.ground.positions  # [prompt, read]
        n_read = positions.shape[1]
        size = self.budget.read_rows // n_read if self.target.columns is None else 2**14

        def piece(part: slice) -> Tensor:
            prompt = self._index(rows.prompt[part])
            at = positions[prompt] - start  # [row, read]
            index = at.clamp(min=0)[..., None].expand(-1, -1, resid.shape[-1])
            own = resid[part].gather(1, index)
            read = torch.where((at < 0)[..., None], self.ground.final[prompt], own)
            return read_target(self.face, self.target, self.ground, read, prompt)

        return torch.cat(list(in_pieces(piece, len(rows), max(1, size), self.face.device)))

    def _index(self, index: np.ndarray) -> Tensor:
        return torch.as_tensor(index, dtype=torch.long).to(self.face.device, non_blocking=True)


def read_target(
    face: Face, target: BoundTarget, ground: Ground, read: Tensor, prompt: Tensor
) -> Tensor:
    """[row] target values from the last residual stream at the positions read."""
    of_game = torch.as_tensor(ground.prompts, device=face.device)[prompt]
    columns = None
    if target.columns is not None:
        columns = target.columns.to(face.device)[of_game]
    logits = face.logits(read, columns)
    clean = None if ground.clean_logits is None else ground.clean_logits[prompt]
    return target.value(logits, of_game, clean)


def _window(value: Tensor | None, prompt: Tensor, window: slice) -> Tensor | None:
    """Rows' share of a table [prompt or 1, position or 1, ...]."""
    if value is None:
        return None
    if value.shape[1] > 1:
        value = value[:, window]
    return value if len(value) == 1 else value[prompt]
