"""How much may be held at once: from free memory, never from hope."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from mechattr.errors import MechattrError
from mechattr.transformer.model import Face

GIB = 2**30


@dataclass(frozen=True)
class Budget:
    """What one pass of the engine may hold.

    call_tokens: (row, position) pairs in one block call.
    pack_tokens: (row, position) pairs whose residual streams are held while going up the layers.
    graph_tokens: the same when a gradient's graph is kept over all layers.
    live_tokens, live_graph_tokens: the same two when every writer is followed, for edges.
    ground_tokens: prompt positions whose base run is kept, over all prompts.
    read_rows: rows whose logits over the whole vocabulary are held at once.
    overhead: what one block call costs beyond its tokens, counted in tokens.
    """

    call_tokens: int
    pack_tokens: int
    graph_tokens: int
    live_tokens: int
    live_graph_tokens: int
    ground_tokens: int
    read_rows: int
    overhead: float


def plan(face: Face, longest: int, *, edges: bool = False, least: int | None = None) -> Budget:
    """A budget for prompts of up to ``longest`` tokens, from the memory that is free now.

    edges: whether players are edges, for which every writer's contribution is held.
    least: what a block call must be given at least, whatever is free: the longest prompt (None),
        or less where prompts go through blocks in chunks.
    """
    shape = face.shape
    item = torch.finfo(face.dtype).bits // 8
    inner = 3 * max(shape.d_mlp, 2 * face.d_model) + 8 * face.d_model
    attention = 4 * shape.n_heads * longest
    keys_values = 2 * longest * face.d_model  # a row's copy of its prefix, spread over its tokens
    call = item * (inner + attention + keys_values / max(longest / 2, 1))
    on_gpu = face.device.type == "cuda"
    free = free_bytes(face.device)
    if item < 4:
        free -= 4 * face.d_model * face.d_vocab  # the unembedding, held in float32 while reading
    # On a CPU, bigger calls than the caches hold are no faster; memory beyond this buys nothing.
    share = 0.3 * free if on_gpu else min(0.2 * free, 0.75 * GIB)
    ground = item * face.n_layers * 5 * face.d_model
    stream = item * face.d_model * (5 + face.n_layers * (shape.n_heads + 1))
    readers = item * face.d_model * 3 * (shape.n_heads + 2 * shape.n_key_value_heads + 1)
    if edges:
        ground += stream
        call += readers
    return Budget(
        call_tokens=_between(share / call, least or longest, 2**18 if on_gpu else 1280),
        pack_tokens=_between(share / (4 * item * face.d_model), longest, 2**24),
        graph_tokens=_between(share / (call * face.n_layers), 1, 2**20),
        live_tokens=_between(share / stream, 1, 2**22),
        # beside the stream, each layer keeps its readers' inputs and a copy of some writers
        live_graph_tokens=_between(2 * share / (call * face.n_layers + 2 * stream), 1, 2**20),
        ground_tokens=_between(share / ground, longest, 2**24),
        read_rows=_between(share / (4 * 4 * face.d_vocab), 1, 2**16),
        overhead=2048.0 if on_gpu else 48.0,
    )


def _between(value: float, low: int, high: int) -> int:
    return int(max(low, min(value, high)))


def free_bytes(device: torch.device) -> int:
    """Bytes that can be allocated on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what PyTorch holds but doesn't use is ours too
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return int(psutil.virtual_memory().available)


class OutOfMemoryError(MechattrError, MemoryError):
    """Even one row at a time doesn't fit."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


Result = TypeVar("Result")


def in_pieces(
    run: Callable[[slice], Result], total: int, size: int, device: torch.device
) -> Iterator[Result]:
    """``run(slice)`` over ``range(total)``, ``size`` at a time; a piece that doesn't fit in memory
    is run again at half the size, down to one."""
    first = 0
    while first < total:
        piece = slice(first, min(first + size, total))
        with _freeing(device) as outcome:
            result = run(piece)
            outcome.fits = True
        if outcome.fits:
            yield result
            first = piece.stop
        elif size == 1:
            raise OutOfMemoryError(
                f"A single row doesn't fit in the memory of {device}. Use shorter prompts, a "
                f"half precision dtype, or a device with more memory."
            )
        else:
            size = max(1, min(size, total) // 2)


@dataclass
class _Outcome:
    fits: bool = False


@contextmanager
def _freeing(device: torch.device) -> Iterator[_Outcome]:
    outcome = _Outcome()
    try:
        yield outcome
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        outcome.fits = False
    if not outcome.fits and device.type == "cuda":
        torch.cuda.empty_cache()
