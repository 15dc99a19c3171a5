"""The arithmetic floor: what a sweep must compute, over how fast this machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True)
class Dimensions:
    """The sizes that a block's arithmetic depends on."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    gated: bool
    parallel: bool

    @property
    def key_value_flops(self) -> float:
        """Of keys and values, per token and layer."""
        return 4 * self.d_model * self.n_key_value_heads * self.d_head

    @property
    def mlp_flops(self) -> float:
        return (6 if self.gated else 4) * self.d_model * self.d_mlp

    @property
    def other_flops(self) -> float:
        """Queries, output projection and MLP, per token and layer."""
        return 4 * self.d_model * self.n_heads * self.d_head + self.mlp_flops

    def attention_flops(self, first: int, last: int) -> float:
        """Scores and weighted values of the queries at positions [first, last], causal."""
        keys = sum(range(first + 1, last + 2))
        return 4 * self.n_heads * self.d_head * keys


def head_patch_flops(size: Dimensions, layer: int, position: int, target: int) -> float:
    """FLOPs in the causal cone of one head's patch at one position, read at ``target``.

    In its own layer one position changes (one head's share of the output projection, and the MLP
    there unless it runs in parallel); above, every position from there to the target; in the last
    layer keys and values of those, and the rest at the target alone. Norms and the read-out of two
    columns are not counted.
    """
    if position > target:
        return 0.0
    last = size.n_layers - 1
    if layer == last and position != target:
        return 0.0
    own = 2 * size.d_head * size.d_model + (0 if size.parallel else size.mlp_flops)
    if layer == last:
        return own
    width = target - position + 1
    between = last - layer - 1
    full = width * (size.key_value_flops + size.other_flops)
    full += size.attention_flops(position, target)
    top = width * size.key_value_flops + size.other_flops + size.attention_flops(target, target)
    return own + between * full + top


def matmul_rate(device: torch.device, dtype: torch.dtype, d_in: int, d_out: int) -> float:
    """FLOP/s of the fastest of several [rows, d_in] @ [d_in, d_out] products, as a user's own
    code would run them."""
    best = 0.0
    weight = torch.randn(d_out, d_in, device=device, dtype=dtype)
    for rows in (512, 1024, 2048, 4096, 16384):
        if device.type == "cpu" and rows > 4096:
            continue
        x = torch.randn(rows, d_in, device=device, dtype=dtype)
        flops = 2.0 * rows * d_in * d_out
        repeats = max(5, int(2e10 / flops) if device.type == "cpu" else int(2e12 / flops))
        seconds = timed(partial(torch.nn.functional.linear, x, weight), device, repeats)
        best = max(best, flops / seconds)
    return best


def timed(run: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds a call, after one warm-up."""
    run()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait(device)
    return (time.perf_counter() - start) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
