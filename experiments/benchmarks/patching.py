"""All (layer, head, position) patches of one pair, against one patch at a time.

Peers, in the same process and with the same sites: TransformerLens' own
``transformer_lens.patching`` on a HookedTransformer, and ``run_with_hooks`` on a TransformerBridge.
A sample of the peers' patches is timed and scaled to the sweep. The floor is the arithmetic in the
patches' causal cones over the matmul rate measured just before and after the sweep.
"""

from __future__ import annotations

import contextlib
import io
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mechattr as ma
from experiments.benchmarks.floor import Dimensions, head_patch_flops, matmul_rate, wait
from experiments.benchmarks.models import load

# They part at the first token, so that no patch is a no-op.
CLEAN = "When Mary and John went to the store, John gave a drink to"
COUNTERFACTUAL = "Then Mary and John went to the park, Mary gave a drink to"


@dataclass(frozen=True)
class Case:
    """A model, a pair of prompts and what to read."""

    label: str
    model: Any
    prompts: ma.Prompts
    target: Any
    answers: tuple[int, int]
    device: torch.device


@dataclass(frozen=True)
class Result:
    """One line of the report. Seconds are of the whole sweep."""

    label: str
    patches: int
    rows_run: int
    seconds: float
    peer: str
    peer_seconds: float
    peer_sample: int
    largest_difference: float
    floor_seconds: float
    rate: float
    loaded_gib: float
    peak_gib: float

    @property
    def speedup(self) -> float:
        return self.peer_seconds / self.seconds

    @property
    def of_floor(self) -> float:
        return self.floor_seconds / self.seconds


def run(model: str, device: str, dtype: str, sample: int, repeats: int) -> list[Result]:
    """Time both model classes; prints as it goes."""
    where = torch.device(device)
    results = []
    for hooked in (False, True):
        with _no_model_left(where):
            case = _case(model, where, getattr(torch, dtype), hooked=hooked)
            results.append(
                _measure(case, _hooked_peer if hooked else _bridge_peer, sample, repeats)
            )
            print_result(results[-1])
            del case
    return results


@contextlib.contextmanager
def _no_model_left(device: torch.device) -> Iterator[None]:
    import gc

    yield
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _case(name: str, device: torch.device, dtype: torch.dtype, *, hooked: bool) -> Case:
    model = load(name, hooked=hooked, device=device, dtype=dtype)
    label = f"{name}, {'HookedTransformer' if hooked else 'TransformerBridge'}, {dtype}".replace(
        "torch.", ""
    )
    if name.startswith("random-"):
        generator = torch.Generator().manual_seed(0)
        clean, other = torch.randint(10, 500, (2, 14), generator=generator)
        prompts = ma.Prompts.from_tokens(model, [clean], [other])
        answers = (11, 12)
    else:
        prompts = ma.Prompts.from_pairs(model, CLEAN, COUNTERFACTUAL)
        ids = [
            model.tokenizer(w, add_special_tokens=False).input_ids[-1] for w in (" Mary", " John")
        ]
        answers = (ids[0], ids[1])
    assert prompts.counterfactual is not None
    assert prompts.tokens[0][0] != prompts.counterfactual[0][0], "the pair must part at once"
    return Case(label, model, prompts, ma.targets.logit_diff(*answers), answers, device)


Peer = Callable[[Case, np.ndarray], tuple[str, Tensor]]


def _measure(case: Case, peer: Peer, sample: int, repeats: int) -> Result:
    loaded = memory_gib(case.device)
    game = ma.PatchGame(
        case.model,
        case.prompts,
        ma.heads(per_position=True),
        case.target,
        source=ma.sources.Counterfactual(),
        base="source",
    )
    masks = torch.eye(game.n_players, dtype=torch.bool)
    game(masks[:64])  # lays the ground and warms up
    size = dimensions(game)
    rates = [_rate(case, size)]
    before, seconds = game.rows_run, []
    for _ in range(repeats):
        wait(case.device)
        start = time.perf_counter()
        scores = game(masks)[:, 0]
        wait(case.device)
        seconds.append(time.perf_counter() - start)
    rates.append(_rate(case, size))
    rows_run = (game.rows_run - before) // repeats
    peak = memory_gib(case.device, peak=True)
    rng = np.random.default_rng(0)
    chosen = rng.choice(game.n_players, size=min(sample, game.n_players), replace=False)
    sites = np.array(
        [[game.players.coords[c][i] for c in ("layer", "position", "head")] for i in chosen]
    )
    peer(case, sites[:2])  # warm-up
    wait(case.device)
    start = time.perf_counter()
    label, theirs = peer(case, sites)
    wait(case.device)
    each = (time.perf_counter() - start) / len(chosen)
    difference = (scores[chosen] - theirs.double().cpu()).abs().max().item()
    return Result(
        label=case.label,
        patches=game.n_players,
        rows_run=rows_run,
        seconds=float(np.median(seconds)),
        peer=label,
        peer_seconds=each * game.n_players,
        peer_sample=len(chosen),
        largest_difference=difference,
        floor_seconds=sweep_flops(size, case.prompts.lengths[0]) / max(rates),
        rate=max(rates),
        loaded_gib=loaded,
        peak_gib=peak,
    )


def dimensions(game: ma.PatchGame) -> Dimensions:
    cfg, shape = game.face.model.cfg, game.face.shape
    return Dimensions(
        n_layers=shape.n_layers,
        d_model=game.face.d_model,
        n_heads=shape.n_heads,
        n_key_value_heads=shape.n_key_value_heads,
        d_head=int(cfg.d_head),
        d_mlp=shape.d_mlp,
        gated=bool(getattr(cfg, "gated_mlp", False)),
        parallel=shape.parallel,
    )


def sweep_flops(size: Dimensions, length: int) -> float:
    return size.n_heads * sum(
        head_patch_flops(size, layer, position, length - 1)
        for layer in range(size.n_layers)
        for position in range(length)
    )


def _rate(case: Case, size: Dimensions) -> float:
    return matmul_rate(case.device, case.model.W_U.dtype, size.d_model, size.d_mlp)


def _difference(case: Case) -> Callable[[Tensor], Tensor]:
    a, b = case.answers
    return lambda logits: logits[0, -1, a] - logits[0, -1, b]


@torch.no_grad()
def _hooked_peer(case: Case, sites: np.ndarray) -> tuple[str, Tensor]:
    import pandas as pd
    from transformer_lens import patching

    clean, corrupted = _pair(case)
    _, cache = case.model.run_with_cache(clean, names_filter=lambda name: name.endswith("hook_z"))
    with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar
        out = patching.generic_activation_patch(
            case.model,
            corrupted,
            cache,
            _difference(case),
            patching.layer_pos_head_vector_patch_setter,
            "z",
            index_df=pd.DataFrame(sites, columns=["layer", "pos", "head"]),
        )
    return "transformer_lens.patching", out


@torch.no_grad()
def _bridge_peer(case: Case, sites: np.ndarray) -> tuple[str, Tensor]:
    clean, corrupted = _pair(case)
    names = [f"blocks.{layer}.attn.hook_z" for layer in range(case.model.cfg.n_layers)]
    _, cache = case.model.run_with_cache(clean, names_filter=names)
    metric, values = _difference(case), []
    for layer, position, head in sites:
        name = names[layer]

        def patch(z: Tensor, hook: Any, name: str = name, at: Any = (0, position, head)) -> Tensor:
            z = z.clone()
            z[at] = cache[name][at]
            return z

        values.append(metric(case.model.run_with_hooks(corrupted, fwd_hooks=[(name, patch)])))
    return "run_with_hooks, one at a time", torch.stack(values)


def _pair(case: Case) -> tuple[Tensor, Tensor]:
    assert case.prompts.counterfactual is not None
    rows = (case.prompts.tokens[0], case.prompts.counterfactual[0])
    clean, corrupted = (row[None].to(case.device) for row in rows)
    return clean, corrupted


def memory_gib(device: torch.device, *, peak: bool = False) -> float:
    if device.type == "cuda":
        used = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return used(device) / 2**30
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**30


def print_result(r: Result) -> None:
    print(f"\n{r.label}: {r.patches} (layer, head, position) patches, {r.rows_run} run")
    print(f"  mechattr                {r.seconds:9.2f} s")
    print(
        f"  {r.peer:<23} {r.peer_seconds:9.2f} s  ({r.peer_sample} timed and scaled)  "
        f"-> {r.speedup:.1f}x"
    )
    print(
        f"  arithmetic floor        {r.floor_seconds:9.2f} s  ({r.rate / 1e9:.0f} GFLOP/s matmul) "
        f"-> {100 * r.of_floor:.0f} % of it reached"
    )
    print(f"  largest difference of scores over the sample: {r.largest_difference:.2g}")
    print(f"  memory: {r.loaded_gib:.2f} GiB loaded, {r.peak_gib:.2f} GiB peak", flush=True)


def machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
