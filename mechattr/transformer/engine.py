"""The engine: runs rows (one mask on one prompt each) up the layers.

    entrances   in its entry layer a row differs from the base run in a window of positions only;
                rows with disjoint windows share one run of that block
    packs       above it, rows with like windows go up together; others join as their layer comes
    read-out    the target is read at its own positions and columns

A row before its entry layer, a position before its first change, and whatever comes after the
last position read, is never computed. It is exact: a row's value is what a forward pass with hooks
on the whole prompt gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mechattr.transformer.ground import Ground, as_cells, entering, fit, leaving
from mechattr.transformer.memory import Budget, in_pieces
from mechattr.transformer.model import Face, Past
from mechattr.transformer.schedule import Pack, Rows, Slots, make_packs, make_slots, make_waves
from mechattr.transformer.sites import ADDED_LAST, Site
from mechattr.transformer.targets import BoundTarget

Tap = Callable[[Site, Tensor, Tensor, Tensor, int], None]
"""Sees each edited value: (site, value [row, position, unit, width], prompt [row], mask [row,
position or 1], first position)."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Mask values on the device: [mask + 1, player + 1]. The last column is that of unowned cells
    and the last row that of the base run: the edit's weight is 0 there."""

    table: Tensor
    base: str

    @classmethod
    def of(cls, masks: Tensor, base: str, device: torch.device) -> Masks:
        rest = 1.0 if base == "clean" else 0.0
        masks = masks.to(device, non_blocking=True)
        padded = torch.nn.functional.pad(masks, (0, 1, 0, 1), value=rest)
        return cls(padded, base)

    @property
    def none(self) -> int:
        """Index of the base run's mask."""
        return len(self.table) - 1

    def weight(self, mask: Tensor, owner: Tensor, dtype: torch.dtype) -> Tensor:
        """How far each cell moves from the base run's value to its goal.

        mask: [row, position or 1] which mask; owner: [row or 1, position or 1, unit].
        Returns [row, position or 1, unit, 1].
        """
        n = self.table.shape[1]
        flat = mask[..., None] * n + torch.where(owner < 0, n - 1, owner)
        value = self.table.reshape(-1)[flat].to(dtype)[..., None]
        return 1 - value if self.base == "clean" else value


@dataclass(frozen=True, eq=False)
class Entrance:
    """What rows' entry layers put out where they differ from the base run.

    changed: [cell, d_model] residual streams; row ``r`` has the cells
        ``offset[r] ... offset[r] + high[r] - low[r]``.
    """

    changed: Tensor
    offset: np.ndarray


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
        wide = torch.promote_types(self.face.dtype, torch.float32)
        out = torch.empty(len(rows), device=self.face.device, dtype=wide)
        with torch.no_grad():
            for wave in make_waves(rows, self.budget.pack_tokens):

                def piece(part: slice, wave: np.ndarray = wave) -> Tensor:
                    return self.climb(rows.take(wave[part]))

                # Blocks are halved inside; this is for what is held between them.
                values = torch.cat(list(in_pieces(piece, len(wave), len(wave), self.face.device)))
                out[self._index(wave)] = values
        return out

    def climb(self, rows: Rows) -> Tensor:
        """[row] values of rows that fit in memory together."""
        entrance = self._enter(rows)
        values: list[Tensor] = []
        order: list[np.ndarray] = []
        for pack in make_packs(rows, self.budget.overhead):
            values.append(self._climb_pack(pack, entrance))
            order.append(pack.index)
            self.ticks(len(pack.index))
        back = np.argsort(np.concatenate(order))
        return torch.cat(values)[self._index(back)]

    # --- entrances --------------------------------------------------------------------------------

    def _enter(self, rows: Rows) -> Entrance:
        """Each row's entry layer, on the positions that change in it."""
        length = rows.high - rows.low
        offset = np.cumsum(length) - length
        parts: list[Tensor] = []
        places: list[np.ndarray] = []
        for layer in np.unique(rows.entry):
            for late in (False, True):
                which = np.flatnonzero((rows.entry == layer) & (rows.late == late))
                if len(which):
                    for slots in make_slots(rows, which, self.budget.overhead):
                        parts.append(self._enter_layer(int(layer), slots, late))
                        places.append(slots.places(offset, rows.low))
        back = np.argsort(np.concatenate(places))
        return Entrance(torch.cat(parts)[self._index(back)], offset)

    def _enter_layer(self, layer: int, slots: Slots, late: bool) -> Tensor:
        """[cell, d_model] for the cells of the slots, in their order."""
        low, high = slots.start, slots.stop
        size = max(1, self.budget.call_tokens // (high - low))
        mask = np.where(slots.mask < 0, self.masks.none, slots.mask)

        def piece(part: slice) -> Tensor:
            prompt = slots.prompt[part]
            edit = self._editor(layer, self._index(prompt), self._index(mask[part]), low)
            if late:
                return self._add_last(layer, prompt, edit, (low, high))
            stream = self.ground.run.resid[layer]
            return self._block(layer, stream[self._index(prompt), low:high], prompt, low, edit)

        out = torch.cat(list(in_pieces(piece, len(slots.prompt), size, self.face.device)))
        slot, position = slots.cells
        return out[self._index(slot), self._index(position - low)]

    def _add_last(
        self,
        layer: int,
        prompt: np.ndarray,
        edit: Callable[[Site, Tensor], Tensor],
        window: tuple[int, int],
    ) -> Tensor:
        """Rows whose first change is what a block adds last: no block need be run."""
        low, high = window
        which = self._index(prompt)
        resid = self.ground.run.resid[layer + 1][which, low:high]
        for site, _ in self._by_layer[layer]:
            if site.stage == "resid_post":
                resid = edit(site, resid)
            elif site.stage in ADDED_LAST:
                base = self.ground.run.values[site][which, low:high].flatten(2)
                resid = resid + (edit(site, base) - base)
        return resid

    # --- packs ------------------------------------------------------------------------------------

    def _climb_pack(self, pack: Pack, entrance: Entrance) -> Tensor:
        """Take one pack from its first entry to the target: [row] values in the pack's order."""
        rows = pack.rows
        resid: Tensor | None = None
        live = 0
        for layer in range(int(rows.entry.min()), self.face.n_layers):
            parts = []
            if resid is not None:
                parts.append(self._advance(layer, resid, pack, live))
            joining = live + np.flatnonzero(rows.entry[live:] == layer)
            if len(joining):  # the pack is sorted by entry
                parts.append(self._join(layer, pack, joining, entrance))
                live += len(joining)
            resid = torch.cat(parts) if len(parts) > 1 else parts[0]
        assert resid is not None
        return self._read(resid, rows, pack.start)

    def _advance(self, layer: int, resid: Tensor, pack: Pack, live: int) -> Tensor:
        """One block for the rows under way, as many at a time as fit."""
        size = max(1, self.budget.call_tokens // (pack.stop - pack.start))
        edited = layer in self._by_layer and (
            self.ground.origin is not None or bool(pack.rows.touched[:live, layer].any())
        )

        def piece(part: slice) -> Tensor:
            prompt = pack.rows.prompt[part]
            edit = None
            if edited:
                mask = self._index(pack.rows.mask[part])[:, None]
                edit = self._editor(layer, self._index(prompt), mask, pack.start)
            return self._block(layer, resid[part], prompt, pack.start, edit)

        return torch.cat(list(in_pieces(piece, live, size, self.face.device)))

    def _join(self, layer: int, pack: Pack, joining: np.ndarray, entrance: Entrance) -> Tensor:
        """The base run's stream above the entry layer, with what the row changed in it."""
        rows = pack.rows.take(joining)
        stream = self.ground.run.resid[layer + 1]
        wide = stream[self._index(rows.prompt), pack.start : pack.stop]
        length = rows.high - rows.low
        row = np.repeat(np.arange(len(rows)), length)
        step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        position = np.repeat(rows.low - pack.start, length) + step
        cell = np.repeat(entrance.offset[pack.index[joining]], length) + step
        return wide.index_put(
            (self._index(row), self._index(position)), entrance.changed[self._index(cell)]
        )

    def _block(
        self,
        layer: int,
        resid: Tensor,
        prompt: np.ndarray,
        start: int,
        edit: Callable[[Site, Tensor], Tensor] | None,
    ) -> Tensor:
        """One block on a window that begins at ``start``, with its edits."""
        past = self._past(layer, prompt, start)
        if edit is None:
            return self.face.run_block(layer, resid, start, past)[0]
        sites = [site for site, _ in self._by_layer[layer]]
        position = None
        if sites[0].stage == "embed" and self.ground.run.positional is not None:
            # the same for every prompt: positions count from 0 in each
            position = self.ground.run.positional[:1, start : start + resid.shape[1]]
        resid, edits = entering(sites, resid, position, edit)
        out, _ = self.face.run_block(layer, resid, start, past, edits)
        return leaving(sites, out, edit)

    def _past(self, layer: int, prompt: np.ndarray, start: int) -> Past | None:
        """The base run's keys and values before the window; it can't differ there."""
        if not start:
            return None
        keys, values = (
            part.narrow(self.face.past_axis, 0, start) for part in self.ground.run.past[layer]
        )
        if (prompt == prompt[0]).all():
            one, n = int(prompt[0]), len(prompt)
            keys, values = keys[one : one + 1], values[one : one + 1]
            return keys.expand(n, -1, -1, -1), values.expand(n, -1, -1, -1)
        index = self._index(prompt)
        return keys[index], values[index]

    # --- edits ------------------------------------------------------------------------------------

    def _editor(
        self, layer: int, prompt: Tensor, mask: Tensor, start: int
    ) -> Callable[[Site, Tensor], Tensor]:
        """The edit of a layer's sites for rows with these prompts and masks [row, position or 1]"""
        owners = dict(self._by_layer[layer])

        def edit(site: Site, value: Tensor) -> Tensor:
            moved = self._move(site, owners[site], as_cells(value, site), prompt, mask, start)
            if self.tap is not None:
                self.tap(site, moved, prompt, mask, start)
            return moved.reshape(value.shape)

        return edit

    def _move(
        self, site: Site, owner: Tensor, live: Tensor, prompt: Tensor, mask: Tensor, start: int
    ) -> Tensor:
        """``x + w (goal − x)``: exactly x at w = 0 and exactly the goal at w = 1."""
        window = slice(start, start + live.shape[1])
        owner = _window(owner, prompt, window)
        weight = self.masks.weight(mask, owner, live.dtype)
        if self.ground.origin is not None:
            origin = self.ground.origin[site]
            fixed = torch.zeros_like(live)
            if origin is not None:
                fixed = _window(fit(origin, window.stop), prompt, window).to(live).expand_as(live)
            live = torch.where(owner[..., None] >= 0, fixed, live)
        goal = self.ground.goal[site]
        if goal is None:
            return live * (1 - weight)
        goal = _window(goal, prompt, window).to(live)
        return torch.lerp(live, goal.expand_as(live), weight.expand_as(live))

    # --- read-out ---------------------------------------------------------------------------------

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
    of_game = ground.number[prompt]
    columns = None if ground.columns is None else ground.columns[prompt]
    logits = face.logits(read, columns)
    clean = None if ground.clean_logits is None else ground.clean_logits[prompt]
    return target.value(logits, of_game, clean)


def _window(value: Tensor, prompt: Tensor, window: slice) -> Tensor:
    """Rows' share of a table [prompt or 1, position or 1, ...]."""
    if value.shape[1] > 1:
        value = value[:, window]
    return value if len(value) == 1 else value[prompt]
