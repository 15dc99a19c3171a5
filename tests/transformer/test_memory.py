"""Memory: any budget gives the same numbers, and what doesn't fit is tried again in halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import mechattr as ma
from mechattr.transformer import memory, patching
from mechattr.transformer.engine import Engine
from mechattr.transformer.memory import Budget, OutOfMemoryError, free_bytes, in_pieces, plan
from mechattr.transformer.model import Face, face_of
from tests.oracles import assert_agree, patch_game, shared_model, some_masks
from tests.transformer.test_patching_batches import batch, some_of_all

CPU = torch.device("cpu")
TINY: dict[str, dict[str, Any]] = {
    "one token a call": {"call_tokens": 1},
    "one row a wave": {"pack_tokens": 1},
    "one row a graph": {"graph_tokens": 1},
    "one prompt a chunk": {"ground_tokens": 1},
    "two prompts a chunk": {"ground_tokens": 14},
    "one pack": {"overhead": 1e9},
    "all at once": {
        "call_tokens": 1, "pack_tokens": 20, "graph_tokens": 20, "ground_tokens": 1, "read_rows": 1,
        "overhead": 0.0,
    },
}  # fmt: skip


def small_budget(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    monkeypatch.setattr(
        patching,
        "plan",
        lambda face, longest, edges: replace(plan(face, longest, edges=edges), **changes),
    )


def game_of(model: Any, **settings: Any) -> Any:
    return patch_game(model, some_of_all(), prompts=batch(model), **settings)


def results(game: Any) -> list[torch.Tensor]:
    masks = some_masks(game.n_players, each=1)
    own = torch.stack([some_masks(game.n_players, seed, each=1) for seed in range(3)], dim=1)
    return [
        game(masks),
        game.gradient(masks),
        game.sensitivity(masks[:3]),
        game.values_per_prompt(own),
        game(masks[:4]),  # again, from grounds that were dropped in between
    ]


AT_ONCE: dict[str, list[torch.Tensor]] = {}
"""What the usual budget gives, made once."""


@pytest.mark.parametrize("changes", TINY)
def test_any_budget_gives_the_same_numbers(monkeypatch, changes):
    for base, source, target in (
        ("clean", ma.sources.Counterfactual(), ma.targets.loss()),
        ("source", ma.sources.Zero(), None),
    ):
        model = shared_model("llama-bridge")
        settings: dict[str, Any] = {"base": base, "source": source, "target": target}
        if base not in AT_ONCE:
            AT_ONCE[base] = results(game_of(model, **settings))
        want = AT_ONCE[base]
        with monkeypatch.context() as patch:
            small_budget(patch, **TINY[changes])
            game = game_of(model, **settings)
            got = results(game)
        for one, other in zip(got, want, strict=True):
            assert_agree(one, other, 1e-11)
        assert game.rows_run > 0


def test_chunks_hold_what_the_budget_says(monkeypatch):
    model = shared_model("gpt2-bridge")
    small_budget(monkeypatch, ground_tokens=14)
    game = game_of(model)
    # of lengths 9, 5, 7: the two short ones together, padded to 7
    assert [chunk.tolist() for chunk in game._store.chunks] == [[1, 2], [0]]
    game.full()
    assert list(game._store.kept) == [
        ("clean", False, 0, 0)
    ]  # the other is dropped when this is laid


def test_what_a_call_is_given_at_least(monkeypatch):
    """The longest prompt, unless it goes through blocks in chunks; more only if there is room."""
    face = face_of(shared_model("llama-bridge"))
    for free, most in ((2**40, 1280), (2**20, 1000)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        assert plan(face, 4000).call_tokens == 4000
        assert plan(face, 4000, least=1000).call_tokens == most
        assert plan(face, 4000, least=1000) == replace(plan(face, 4000), call_tokens=most)


def test_calls_hold_what_the_budget_says(monkeypatch):
    small_budget(monkeypatch, call_tokens=20)
    game = patch_game(shared_model("gpt2-bridge"), ma.heads(per_position=True))
    sizes = watched_sizes(game)
    game(some_masks(game.n_players, each=20))
    assert max(sizes) == 20 // 6  # rows of six positions
    assert len(sizes) > 10


def watched_sizes(game: Any) -> list[int]:
    """Rows in each call of a block once the base run is done."""
    game(torch.full((1, game.n_players), game.base_end))
    sizes: list[int] = []
    run_block = game.face.run_block

    def watched(layer: int, resid: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(resid))
        return run_block(layer, resid, *args, **kwargs)

    game.face.run_block = watched
    return sizes


def test_logits_of_the_whole_vocabulary_are_read_as_the_budget_says(monkeypatch):
    small_budget(monkeypatch, read_rows=20)
    read: list[int] = []
    logits = Face.logits

    def watched(self: Face, resid: torch.Tensor, columns: torch.Tensor | None) -> torch.Tensor:
        read.append(len(resid) * resid.shape[1])
        return logits(self, resid, columns)

    game = game_of(shared_model("llama-bridge"), target=ma.targets.loss())
    monkeypatch.setattr(Face, "logits", watched)
    game(some_masks(game.n_players))
    assert max(read) == 16  # two rows of eight positions
    assert len(read) > 10


# --- out of memory --------------------------------------------------------------------------------

ERRORS: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: not enough memory: "
        "you tried to allocate 1000 bytes."
    ),
    "python": MemoryError,
}


def limit_rows(
    monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], Exception]
) -> list[int]:
    """Blocks run out of memory above so many rows; returns the sizes that were tried."""
    tried: list[int] = []
    run_block = Face.run_block

    def limited(self: Face, layer: int, resid: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        tried.append(len(resid))
        if len(resid) > most:
            raise error()
        return run_block(self, layer, resid, *args, **kwargs)

    monkeypatch.setattr(Face, "run_block", limited)
    return tried


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("most", [1, 3])
def test_what_does_not_fit_is_run_in_halves(monkeypatch, error, most):
    model = shared_model("llama-bridge")
    game = patch_game(model, some_of_all())
    masks = some_masks(game.n_players, each=4)
    want = [game(masks), game.gradient(masks[:6]), game.sensitivity(masks[:6])]
    game = patch_game(model, some_of_all())
    tried = limit_rows(monkeypatch, most, ERRORS[error])
    got = [game(masks), game.gradient(masks[:6]), game.sensitivity(masks[:6])]
    assert max(tried) > most
    for one, other in zip(got, want, strict=True):
        assert_agree(one, other, 1e-11)


def test_what_is_held_between_blocks_and_does_not_fit_is_run_in_halves(monkeypatch):
    game = patch_game(shared_model("llama-bridge"), some_of_all())
    masks = some_masks(game.n_players, each=4)
    want = [game(masks), game.gradient(masks[:6])]
    join, sizes = Engine._join, []

    def limited(self: Engine, layer: int, pack: Any, joining: Any, *rest: Any) -> Any:
        sizes.append(len(joining))
        if len(joining) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return join(self, layer, pack, joining, *rest)

    monkeypatch.setattr(Engine, "_join", limited)
    for one, other in zip([game(masks), game.gradient(masks[:6])], want, strict=True):
        assert_agree(one, other, 1e-11)
    assert max(sizes) > 3


def test_a_base_run_that_does_not_fit_is_run_in_halves(monkeypatch):
    model = shared_model("llama-bridge")
    game = game_of(model)
    want = results(game)
    game = game_of(model)
    tried = limit_rows(monkeypatch, 1, ERRORS["cuda"])
    got = results(game)
    assert max(tried) > 1
    # once is enough to learn it
    assert [chunk.tolist() for chunk in game._store.chunks] == [[1], [2], [0]]
    for one, other in zip(got, want, strict=True):
        assert_agree(one, other, 1e-11)


def test_a_data_set_that_does_not_fit_is_run_in_halves(monkeypatch):
    model = shared_model("llama-bridge")
    mean = ma.sources.Mean(batch(model))
    want = patch_game(model, ma.heads(), source=mean)(some_masks(8))
    tried = limit_rows(monkeypatch, 1, ERRORS["cuda"])
    game = patch_game(model, ma.heads(), source=mean)
    assert tried.count(3) == 1
    assert_agree(game(some_masks(8)), want, 1e-11)


def test_a_single_row_that_never_fits_says_so(monkeypatch):
    game = patch_game(shared_model("llama-bridge"), ma.heads())
    game.full()
    limit_rows(monkeypatch, 0, ERRORS["cuda"])
    for compute in (game, game.gradient, game.sensitivity):
        with pytest.raises(OutOfMemoryError, match="single row doesn't fit in the memory of cpu"):
            compute(torch.zeros(1, 8))


def test_other_errors_pass_through(monkeypatch):
    game = patch_game(shared_model("llama-bridge"), ma.heads())
    game.full()
    tried = limit_rows(monkeypatch, 0, lambda: RuntimeError("shapes can't be multiplied"))
    with pytest.raises(RuntimeError, match="can't be multiplied"):
        game(torch.zeros(3, 8))
    assert len(tried) == 1


# --- the parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [0, 1, 7, 16])
@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("fits", [1, 2, 5, 1000])
def test_in_pieces_covers_everything_once_in_order(total, size, fits):
    def run(piece: slice) -> list[int]:
        if piece.stop - piece.start > fits:
            raise MemoryError
        return list(range(piece.start, piece.stop))

    pieces = list(in_pieces(run, total, size, CPU))
    assert [i for piece in pieces for i in piece] == list(range(total))
    assert all(len(piece) <= min(size, fits) for piece in pieces)


def test_in_pieces_halves_until_it_fits_and_stays_there():
    tried = []

    def run(piece: slice) -> int:
        tried.append(piece.stop - piece.start)
        if tried[-1] > 3:
            raise MemoryError
        return tried[-1]

    assert list(in_pieces(run, 20, 16, CPU)) == [2] * 10
    assert tried == [16, 8, 4] + [2] * 10


def test_a_budget_lets_at_least_one_prompt_through(monkeypatch):
    """However little is free; and never more than the device's share."""
    face = patch_game(shared_model("llama-bridge"), ma.heads()).face
    monkeypatch.setattr("mechattr.transformer.memory.free_bytes", lambda device: 0)
    least = plan(face, 50)
    assert least == Budget(50, 50, 1, 1, 1, 50, 1, least.overhead)
    monkeypatch.setattr("mechattr.transformer.memory.free_bytes", lambda device: 2**50)
    most = plan(face, 50)
    for name in ("call_tokens", "pack_tokens", "graph_tokens", "ground_tokens", "read_rows"):
        assert getattr(most, name) > getattr(least, name)


def test_free_bytes_is_what_the_machine_says():
    assert 0 < free_bytes(CPU) < 2**50
