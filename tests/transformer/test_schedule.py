"""The schedule, without a model: reach, rows, windows, waves, packs and slots."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mechattr.transformer.schedule import (
    NEVER,
    Reach,
    Rows,
    _assign,
    _partition,
    _windows,
    concatenate_rows,
    make_packs,
    make_slots,
    make_waves,
    plan_rows,
    reach,
)
from mechattr.transformer.sites import Cells, Site

N_LAYERS = 3

CellsOf = Mapping[tuple[str, int], Any]
"""A player's cells: {(stage, layer): positions} or {(stage, layer): {position: it differs}}."""


def make_reach(
    *players: CellsOf, n_positions: int = 6, stop: int = 6, read: tuple[int, ...] = (5,)
) -> Reach:
    """The reach of players given by their cells."""
    owners: dict[tuple[str, int], np.ndarray] = {}
    differs: dict[tuple[str, int], np.ndarray] = {}
    for player, sites in enumerate(players):
        for site, positions in sites.items():
            owner = owners.setdefault(site, np.full((1, n_positions, 1), -1))
            differ = differs.setdefault(site, np.zeros((1, n_positions, 1), bool))
            for position in positions:
                owner[0, position] = player
                differ[0, position] = not isinstance(positions, dict) or positions[position]
    stages = ["embed", "resid_pre", "q", "k", "v", "z", "attn_out", "mlp_out", "resid_post"]
    order = sorted(owners, key=lambda site: (site[1], stages.index(site[0])))
    cells = [Cells(Site(stage, la, f"{stage}{la}", 1), owners[stage, la]) for stage, la in order]
    read_at = np.zeros((1, n_positions), bool)
    read_at[0, list(read)] = True
    return reach(
        cells, [differs[s] for s in order], np.array([stop]), read_at, len(players), N_LAYERS
    )


def summary(r: Reach, player: int) -> tuple[Any, ...]:
    return tuple(
        getattr(r, name)[0, player].item()
        for name in ("entry", "late", "low", "high", "start", "idle")
    )


NOTHING = (NEVER, True, NEVER, 0, NEVER)


# --- reach ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        # (entry, late, low, high, start, idle)
        ({("z", 0): [2]}, (0, False, 2, 3, 2, False)),
        ({("z", 1): [2, 4]}, (1, False, 2, 5, 2, False)),
        ({("q", 1): [2]}, (1, False, 2, 3, 2, False)),
        # these reach every later position within their block
        ({("k", 1): [2]}, (1, False, 2, 6, 2, False)),
        ({("v", 1): [2]}, (1, False, 2, 6, 2, False)),
        ({("resid_pre", 0): [3]}, (0, False, 3, 6, 3, False)),
        ({("embed", 0): [3]}, (0, False, 3, 6, 3, False)),
        # what a block adds last
        ({("mlp_out", 1): [2]}, (1, True, 2, 3, 2, False)),
        ({("resid_post", 1): [2, 3]}, (1, True, 2, 4, 2, False)),
        ({("attn_out", 1): [2], ("mlp_out", 1): [4]}, (1, False, 2, 5, 2, False)),
        # the first layer decides entry and window, every layer the start
        ({("z", 0): [4], ("z", 1): [1]}, (0, False, 4, 5, 1, False)),
        ({("mlp_out", 0): [4], ("z", 1): [5]}, (0, True, 4, 5, 4, False)),
        # in the last layer only the positions read matter, unless through keys and values
        ({("z", 2): [2]}, (*NOTHING, True)),
        ({("z", 2): [2, 5]}, (2, False, 5, 6, 5, False)),
        ({("q", 2): [2]}, (*NOTHING, True)),
        ({("mlp_out", 2): [4]}, (*NOTHING, True)),
        ({("v", 2): [2]}, (2, False, 2, 6, 2, False)),
        ({("resid_pre", 2): [2]}, (2, False, 2, 6, 2, False)),
        # nothing differs
        ({("z", 0): {2: False}}, (*NOTHING, True)),
        ({("z", 0): {2: False, 3: True}}, (0, False, 3, 4, 3, False)),
        ({("z", 0): {2: False}, ("z", 1): {2: True}}, (1, False, 2, 3, 2, False)),
    ],
)
def test_reach_of_one_player(cells, expected):
    assert summary(make_reach(cells), 0) == expected


def test_positions_from_the_stop_on_are_out_of_reach():
    r = make_reach({("z", 0): [3]}, {("z", 0): [4]}, {("k", 0): [2]}, stop=4, read=(3,))
    assert summary(r, 0) == (0, False, 3, 4, 3, False)
    assert summary(r, 1) == (*NOTHING, True)
    assert summary(r, 2)[3] == 4


def test_a_player_without_a_difference_matters_only_after_one():
    """At or after the first divergence its cells are live: they carry what comes before."""
    r = make_reach(
        {("z", 0): [3]}, {("z", 1): {2: False}}, {("z", 1): {3: False}}, {("z", 1): {4: False}}
    )
    assert [summary(r, p) for p in (1, 2, 3)] == [
        (*NOTHING, True), (*NOTHING, False), (*NOTHING, False),
    ]  # fmt: skip


def test_layers_a_player_owns_cells_in():
    r = make_reach({("z", 0): [3], ("mlp_out", 2): [1]}, {("k", 1): {0: False}})
    assert r.layers.tolist() == [[True, False, True], [False, True, False]]


def test_prompts_have_reaches_of_their_own():
    cells = [Cells(Site("z", 0, "z0", 1), np.arange(4)[None, :, None])]
    differs = [np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)[..., None]]
    read = np.array([[0, 0, 0, 1], [0, 1, 0, 0]], bool)
    r = reach(cells, differs, np.array([4, 2]), read, 4, N_LAYERS)
    assert (r.entry == 0).tolist() == [[False, False, True, True], [True, True, False, False]]
    assert (~r.idle).tolist() == (r.entry == 0).tolist()


# --- rows -----------------------------------------------------------------------------------------


def test_rows_of_masks():
    r = make_reach(
        {("z", 0): [4]},
        {("mlp_out", 0): [2]},
        {("z", 1): [3]},
        {("mlp_out", 1): [1]},
        {("z", 1): {5: False}},
    )
    active = np.array(
        [
            [1, 0, 0, 0, 0],
            [0, 1, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 1, 1, 0, 1],
            [0, 0, 0, 1, 1],
        ],
        bool,
    )
    rows = plan_rows(active, 0, np.arange(10, 16), r, 6)
    assert rows.mask.tolist() == [10, 11, 12, 13, 14, 15]
    assert rows.entry.tolist() == [0, 0, 0, 1, 0, 1]
    assert rows.late.tolist() == [False, True, False, False, True, True]
    assert rows.low.tolist() == [4, 2, 2, 1, 2, 1]
    assert rows.high.tolist() == [5, 3, 5, 4, 3, 2]
    assert rows.start.tolist() == [4, 2, 2, 1, 2, 1]
    assert rows.stop.tolist() == [6] * 6
    touched = [[1, 0], [1, 0], [1, 0], [0, 1], [1, 1], [0, 1]]
    assert rows.touched[:, :2].astype(int).tolist() == touched
    assert not rows.touched[:, 2].any()


def test_touched_layers_of_dense_and_sparse_masks_agree():
    """There are two ways of computing it, by how many players are off."""
    cells = [{("z", layer): [p % 6]} for p, layer in enumerate((0, 0, 1, 2, 2, 1, 1, 0))]
    r = make_reach(*cells, read=tuple(range(6)))
    rng = np.random.default_rng(0)
    dense = rng.random((20, 8)) < 0.8
    sparse = rng.random((20, 8)) < 0.2
    for active in (dense, sparse):
        rows = plan_rows(active, 0, np.arange(20), r, 6)
        assert np.array_equal(rows.touched, (active[..., None] & r.layers[None]).any(1))
    assert dense.sum() > 4 * 20 > sparse.sum()


def some_rows(n: int, seed: int = 0, n_positions: int = 12, n_prompts: int = 3) -> Rows:
    """Rows with windows of all sorts."""
    rng = np.random.default_rng(seed)
    stop = rng.integers(n_positions // 2, n_positions + 1, n_prompts)
    prompt = rng.integers(0, n_prompts, n)
    start = (rng.random(n) * stop[prompt]).astype(int)
    low = (start + rng.random(n) * (stop[prompt] - start)).astype(int)
    high = low + 1 + (rng.random(n) * (stop[prompt] - low)).astype(int)
    return Rows(
        prompt=prompt,
        mask=rng.permutation(n),
        entry=rng.integers(0, N_LAYERS, n),
        late=rng.random(n) < 0.3,
        low=low,
        high=high,
        start=start,
        stop=stop[prompt],
        touched=np.ones((n, N_LAYERS), bool),
    )


def test_rows_can_be_taken_and_joined():
    rows = some_rows(10)
    again = concatenate_rows([rows.take(np.arange(4)), rows.take(np.arange(4, 10))])
    for name in Rows.__dataclass_fields__:
        assert np.array_equal(getattr(again, name), getattr(rows, name)), name
    assert len(again) == 10


# --- windows --------------------------------------------------------------------------------------


def cost(groups: list[np.ndarray], key: np.ndarray, width: np.ndarray, work: np.ndarray,
         overhead: float) -> float:  # fmt: skip
    """Σ overhead + Σ work × width, a window being as wide as its smallest key makes it."""
    total = 0.0
    for group in groups:
        widest = (width[group] + key[group] - key[group].min()).max()
        total += overhead + work[group].sum() * widest
    return total


def partitions(key: np.ndarray) -> list[list[np.ndarray]]:
    """All partitions of the indices into runs of neighbouring keys."""
    distinct = np.unique(key)
    out = []
    for cuts in itertools.product([False, True], repeat=len(distinct) - 1):
        number = np.concatenate([[0], np.cumsum(cuts)])[np.searchsorted(distinct, key)]
        out.append([np.flatnonzero(number == k) for k in range(number.max() + 1)])
    return out


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("overhead", [0.0, 3.0, 20.0, 100.0, 1e6])
def test_the_partition_is_the_best_of_all(seed, overhead):
    """Windows with a common end: [key, end)."""
    rng = np.random.default_rng(seed)
    n, end = int(rng.integers(1, 14)), 9
    key = rng.integers(0, end, n)
    width, work = end - key, rng.integers(1, 5, n).astype(float)
    groups = _partition(key, width, work, overhead)
    assert sorted(np.concatenate(groups)) == list(range(n))
    least = min(cost(p, key, width, work, overhead) for p in partitions(key))
    assert cost(groups, key, width, work, overhead) == pytest.approx(least)


def test_the_partition_weighs_overhead_against_waste():
    key = np.array([0, 0, 8, 8, 9])
    width, work = 10 - key, np.ones(5)
    assert [g.tolist() for g in _partition(key, width, work, 0.5)] == [[0, 1], [2, 3], [4]]
    assert [g.tolist() for g in _partition(key, width, work, 5.0)] == [[0, 1], [2, 3, 4]]
    assert [g.tolist() for g in _partition(key, width, work, 50.0)] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("n", [1, 300, 2000])
def test_very_many_windows(n):
    """Beyond 256 different ones the grid is coarser; still every index comes once."""
    rng = np.random.default_rng(n)
    start = rng.integers(0, 5000, n)
    stop = start + rng.integers(1, 3000, n)
    for overhead in (0.0, 100.0, 1e9):
        groups = _windows(start, stop, np.ones(n), overhead)
        assert sorted(np.concatenate(groups)) == list(range(n))
    assert len(groups) == 1


# --- waves and packs ------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 20, 100, 10**6])
def test_waves_cover_every_row_once_and_hold_no_more(most):
    rows = some_rows(60)
    waves = make_waves(rows, most)
    assert sorted(np.concatenate(waves)) == list(range(60))
    total = (rows.stop - rows.start).sum()
    assert len(waves) == min(max(1, -(-total // most)), 60)
    assert all(len(wave) for wave in waves)
    sizes = [(rows.stop - rows.start)[wave].sum() for wave in waves]
    assert max(sizes) <= 1.5 * most + 12
    if most == 100:  # each with the same mix of entry layers
        shares = [np.mean(rows.entry[wave] == 0) for wave in waves]
        assert max(shares) - min(shares) < 0.5


@pytest.mark.parametrize("overhead", [0.0, 5.0, 50.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_packs_cover_every_row_once_within_its_window(overhead, seed):
    rows = some_rows(40, seed)
    packs = make_packs(rows, overhead)
    assert sorted(np.concatenate([pack.index for pack in packs])) == list(range(40))
    for pack in packs:
        assert (np.diff(pack.rows.entry) >= 0).all()
        assert pack.start == rows.start[pack.index].min()
        assert pack.stop == rows.stop[pack.index].max()
        for name in Rows.__dataclass_fields__:
            assert np.array_equal(getattr(pack.rows, name), getattr(rows, name)[pack.index]), name
    windows = {(pack.start, pack.stop) for pack in packs}
    different = set(zip(rows.start.tolist(), rows.stop.tolist(), strict=True))
    if overhead == 0:
        assert windows == different
    assert overhead < 1e6 or len(packs) == 1


# --- slots ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_windows_of_a_slot_are_disjoint_and_slots_as_few_as_can_be(seed):
    rows = some_rows(40, seed)
    slot, n_slots = _assign(rows.prompt, rows.low, rows.high)
    for one, other in itertools.combinations(range(40), 2):
        if slot[one] == slot[other]:
            assert rows.prompt[one] == rows.prompt[other]
            assert rows.high[one] <= rows.low[other] or rows.high[other] <= rows.low[one]
    depth = 0
    for prompt in range(3):
        mine = rows.prompt == prompt
        covered = [((rows.low <= p) & (p < rows.high) & mine).sum() for p in range(12)]
        depth += max(covered)
    assert n_slots == depth == len(np.unique(slot))


@pytest.mark.parametrize("overhead", [0.0, 10.0, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_slots_carry_each_rows_mask_at_each_of_its_cells(overhead, seed):
    rows = some_rows(40, seed)
    which = np.flatnonzero(rows.entry == 1)
    length = rows.high - rows.low
    offset = np.cumsum(length) - length
    filled: dict[int, int] = {}
    for slots in make_slots(rows, which, overhead):
        slot, position = slots.cells
        assert slots.mask.shape == (len(slots.prompt), slots.stop - slots.start)
        assert (slots.mask >= 0).sum() == len(slot) == len(slots.row)
        assert np.array_equal(slots.mask[slot, position - slots.start], rows.mask[slots.row])
        assert np.array_equal(slots.prompt[slot], rows.prompt[slots.row])
        assert ((rows.low[slots.row] <= position) & (position < rows.high[slots.row])).all()
        for place, row in zip(slots.places(offset, rows.low), slots.row, strict=True):
            assert place not in filled
            filled[int(place)] = int(row)
    wanted = {offset[r] + k: r for r in which for k in range(length[r])}
    assert filled == wanted
