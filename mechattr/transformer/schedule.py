"""The schedule: which rows start at which layer and position. Pure bookkeeping, no model.

A *row* is one mask on one prompt. It equals the base run before its divergence point, so it is run
only from its entry layer on, only from its first touched position on, and only up to the last
position that the target reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechattr.transformer.graph import ADDED_LAST, SPREADING, Cells

NEVER = np.iinfo(np.int32).max


@dataclass(frozen=True, eq=False)
class Reach:
    """Per (prompt, player): where switching that player first changes anything.

    entry: layer of its first cell that differs from the base run; NEVER if none does.
    late: that layer's change happens only after the block has computed everything, so the block
        itself needn't run.
    low, high: window of positions that change within the entry layer, [low, high).
    start: first position that changes in any layer.
    idle: the player can't change anything in any mask (its cells lie before any divergence, or
        where the target can't see them): its mask value is immaterial.
    layers: [player, layer] whether it owns cells there.
    """

    entry: np.ndarray
    late: np.ndarray
    low: np.ndarray
    high: np.ndarray
    start: np.ndarray
    idle: np.ndarray
    layers: np.ndarray


@dataclass(frozen=True, eq=False)
class Rows:
    """What to run. Arrays over rows; ``touched`` is [row, layer]: some edit applies there."""

    prompt: np.ndarray
    mask: np.ndarray
    entry: np.ndarray
    late: np.ndarray
    low: np.ndarray
    high: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    touched: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, index: np.ndarray) -> Rows:
        return Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def reach(
    cells: Sequence[Cells],
    differs: Sequence[np.ndarray],
    stop: np.ndarray,
    read_only_at: np.ndarray,
    n_players: int,
    n_layers: int,
) -> Reach:
    """Summarise the cells per (prompt, player).

    differs: per site, bool [prompt, position, unit]: source and base run differ there.
    stop: [prompt] one past the last position that the target reads.
    read_only_at: [prompt, position] positions that the target reads: in the last layer, a stage
        that doesn't spread matters only there.
    """
    n_prompts, n_positions = read_only_at.shape
    position = np.arange(n_positions)
    seen = [
        _visible(c, position[None] < stop[:, None], read_only_at, n_layers) for c in cells
    ]  # [prompt, position]
    changing = [d & s[..., None] for d, s in zip(differs, seen, strict=True)]
    first = np.full(n_prompts, NEVER)
    for c, change in zip(cells, changing, strict=True):
        owned = np.broadcast_to(c.owner >= 0, change.shape)
        hit = (change & owned).any(2)
        first = np.minimum(first, np.where(hit.any(1), hit.argmax(1), NEVER))
    shape = (n_prompts, n_players)
    out = Reach(
        entry=np.full(shape, NEVER, np.int32),
        late=np.ones(shape, bool),
        low=np.full(shape, NEVER, np.int32),
        high=np.zeros(shape, np.int32),
        start=np.full(shape, NEVER, np.int32),
        idle=np.ones(shape, bool),
        layers=np.zeros((n_players, n_layers), bool),
    )
    for c, change, visible in zip(cells, changing, seen, strict=True):
        _add_site(out, c, change, visible & (position[None] >= first[:, None]), stop)
    return out


def _visible(c: Cells, before_stop: np.ndarray, read: np.ndarray, n_layers: int) -> np.ndarray:
    last = c.site.layer == n_layers - 1 and c.site.stage not in SPREADING
    return before_stop & read if last else before_stop


def _add_site(
    out: Reach, c: Cells, change: np.ndarray, live: np.ndarray, stop: np.ndarray
) -> None:
    layer, spreads = c.site.layer, c.site.stage in SPREADING
    owner = np.broadcast_to(c.owner, change.shape)
    owned = owner >= 0
    out.layers[np.unique(owner[owned]), layer] = True
    prompt, position, unit = np.nonzero(owned & live[..., None])
    out.idle[prompt, owner[prompt, position, unit]] = False
    prompt, position, unit = np.nonzero(owned & change)
    player = owner[prompt, position, unit]
    # sites come in order of computation, so the first layer seen for a player is its entry
    fresh = out.entry[prompt, player] >= layer
    out.entry[prompt[fresh], player[fresh]] = layer
    here = (prompt[fresh], player[fresh])
    if c.site.stage not in ADDED_LAST:
        out.late[here] = False
    np.minimum.at(out.low, here, position[fresh].astype(np.int32))
    end = stop[prompt[fresh]] if spreads else position[fresh] + 1
    np.maximum.at(out.high, here, end.astype(np.int32))
    np.minimum.at(out.start, (prompt, player), position.astype(np.int32))


def plan_rows(active: np.ndarray, prompt: int, mask: np.ndarray, r: Reach, stop: int) -> Rows:
    """Rows of one prompt from ``active`` [row, player]: which players are off the base run."""
    n_rows, n_layers = len(active), r.layers.shape[1]
    entry = np.where(active, r.entry[prompt], NEVER).min(1)
    at_entry = active & (r.entry[prompt] == entry[:, None]) & (entry[:, None] != NEVER)
    return Rows(
        prompt=np.full(n_rows, prompt),
        mask=mask,
        entry=entry,
        late=np.where(at_entry, r.late[prompt], True).all(1),
        low=np.where(at_entry, r.low[prompt], NEVER).min(1),
        high=np.where(at_entry, r.high[prompt], 0).max(1),
        start=np.where(active, r.start[prompt], NEVER).min(1),
        stop=np.full(n_rows, stop),
        touched=_touched(active, r.layers, n_layers),
    )


def _touched(active: np.ndarray, layers: np.ndarray, n_layers: int) -> np.ndarray:
    if active.sum() <= 4 * len(active):  # a sweep: a few active players a row
        out = np.zeros((len(active), n_layers), bool)
        row, player = np.nonzero(active)
        np.logical_or.at(out, row, layers[player])
        return out
    return (active.astype(np.float32) @ layers.astype(np.float32)) > 0


def concatenate_rows(parts: Sequence[Rows]) -> Rows:
    return Rows(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in Rows.__dataclass_fields__)
    )


@dataclass(frozen=True, eq=False)
class Pack:
    """Rows that share one window of positions and go up the layers together.

    rows: sorted by entry layer (those that skip its block last), so that the rows under way are
        always the first ones.
    """

    rows: Rows
    index: np.ndarray
    start: int
    stop: int


def make_packs(rows: Rows, overhead: float, max_rows_tokens: int) -> list[Pack]:
    """Split rows into packs of similar windows.

    overhead: what one block call costs beyond its tokens, counted in tokens. Rows of different
        windows share a pack, at the price of some wasted positions, where that is cheaper.
    max_rows_tokens: most (row, position) pairs a pack may hold.
    """
    packs = []
    for by_stop in _partition(rows.stop.max() - rows.stop, rows.stop, rows, overhead):
        part = rows.take(by_stop)
        for by_start in _partition(part.start, part.stop - part.start, part, overhead):
            packs += _limited(rows, by_stop[by_start], max_rows_tokens)
    return packs


def _limited(rows: Rows, index: np.ndarray, max_rows_tokens: int) -> list[Pack]:
    start, stop = int(rows.start[index].min()), int(rows.stop[index].max())
    index = index[np.lexsort((rows.late[index], rows.entry[index]))]
    size = max(1, max_rows_tokens // max(stop - start, 1))
    n = -(-len(index) // size)
    # interleaved, so that each piece has the same mix of entry layers
    pieces = [index[k::n] for k in range(n)]
    return [Pack(rows.take(piece), piece, start, stop) for piece in pieces]


def _partition(key: np.ndarray, width: np.ndarray, rows: Rows, overhead: float) -> list[np.ndarray]:
    """Group rows by ``key`` (a window gets wider as its group's smallest key falls) so that
    Σ overhead + Σ rows × width × layers is least: optimal 1-d partition by dynamic programming."""
    n_layers = rows.touched.shape[1]
    distinct, group = np.unique(key, return_inverse=True)
    if len(distinct) > 256:  # the programme is quadratic; a coarser grid costs little
        edges = np.unique(np.quantile(key, np.linspace(0, 1, 256), method="lower"))
        group = np.searchsorted(edges, key, side="right") - 1
        distinct = edges
    k = len(distinct)
    work = np.bincount(group, n_layers - np.minimum(rows.entry, n_layers - 1), k)
    widest = np.zeros(k)
    np.maximum.at(widest, group, width + (key - distinct[group]))
    cumulative = np.concatenate([[0.0], np.cumsum(work)])
    best = np.concatenate([[0.0], np.full(k, np.inf)])
    cut = np.zeros(k + 1, int)
    for j in range(1, k + 1):
        costs = best[:j] + overhead * n_layers + (cumulative[j] - cumulative[:j]) * widest[:j]
        cut[j] = int(costs.argmin())
        best[j] = costs[cut[j]]
    groups, j = [], k
    while j > 0:
        groups.append(np.flatnonzero((group >= cut[j]) & (group < j)))
        j = cut[j]
    return groups[::-1]
