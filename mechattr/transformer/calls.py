"""What a TransformerBridge's own forward pass calls its blocks with: masks, positions, rotations.

A block needs them to be called by itself. They are had without running the blocks: nothing that
the blocks make goes into them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from mechattr.transformer.model import Face

CACHE_NAMES = {"past_key_values", "past_key_value", "layer_past"}
"""What Hugging Face calls the key/value cache among a block's arguments."""

STEP = 128
"""Lengths are rounded up to a multiple of it, so that prompts of about one length share."""

LONGEST_KEPT = 2048
"""Masks of so many positions (16 MiB in float32) are kept for other games; longer ones aren't."""

_POSITIONAL = ("mask", "position")
"""Arguments that have one of these in their names depend on nothing but positions."""


@dataclass(frozen=True)
class Calls:
    """The keyword arguments of each block for one row of prompts of up to ``length`` tokens. The
    residual stream isn't among them, and None stands for the key/value cache."""

    length: int
    of: tuple[dict[str, Any], ...]


_KEPT: WeakKeyDictionary[Any, tuple[Any, Calls]] = WeakKeyDictionary()
"""Of each model what it was when its calls were seen last, and the calls."""


def calls_for(face: Face, tokens: Int[Tensor, "row position"]) -> Calls:
    """The calls for the first row, or for a longer one.

    Cost: an embedding, masks and rotations, and block 0 on four tokens; nothing where another game
    on the model, as it is now, has asked for as many tokens already.
    """
    state = _state(face)
    if state is None:
        return Calls(tokens.shape[1], _seen(face, tokens[:1]))
    was, kept = _KEPT.get(face.model, (None, None))
    if kept is not None and was == state and kept.length >= tokens.shape[1]:
        return kept
    length = max(tokens.shape[1], min(-(-tokens.shape[1] // STEP) * STEP, face.n_ctx))
    row = torch.cat([tokens[:1], tokens[:1, -1:].expand(1, length - tokens.shape[1])], dim=1)
    made = Calls(length, _seen(face, row))
    if length <= LONGEST_KEPT and all(
        _is_positional(*argument) for call in made.of for argument in call.items()
    ):
        _KEPT[face.model] = state, made
    return made


def _state(face: Face) -> tuple[Any, ...] | None:
    """All that calls are made from but the tokens; None where rotations depend on how long the
    prompt is, so that a longer one's are others. No weights: they make the residual stream."""
    frequencies = []
    for module in face.model.modules():
        kinds = vars(module).get("rope_type")
        for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
            if kind is not None and ("dynamic" in kind or kind == "longrope"):
                return None
        for name, buffer in module.named_buffers(recurse=False):
            if "inv_freq" in name:
                frequencies.append(tuple(buffer.tolist()))
    config = face.model.original_model.config
    attention = getattr(config, "_attn_implementation", None)
    return str(face.device), face.dtype, attention, repr(config.to_dict()), frequencies


def _is_positional(name: str, value: Any) -> bool:
    """Whether it can be kept: nothing of the tokens or the weights, nor the model itself."""
    if isinstance(value, tuple):
        return all(_is_positional(name, part) for part in value)
    if isinstance(value, Tensor):
        return any(part in name for part in _POSITIONAL)
    return value is None or isinstance(value, (bool, int, float, str))


class _AllSeenError(Exception):
    """Ends a forward pass at its last block: no norm, no logits."""


@torch.inference_mode(False)
@torch.no_grad()
def _seen(face: Face, row: Int[Tensor, "1 position"]) -> tuple[dict[str, Any], ...]:
    """The calls of a forward pass whose blocks hand on what they are given."""
    calls: dict[int, dict[str, Any]] = {}

    def handing_on(layer: int, block: Any, rest: tuple[Any, ...] | None) -> Callable[..., Any]:
        # some architectures pass the cache and the mask by position: name them
        names = list(inspect.signature(block.original_component.forward).parameters)

        def call(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            resid = given.pop(names[0])
            calls[layer] = {k: None if k in CACHE_NAMES else v for k, v in given.items()}
            if layer == face.n_layers - 1:
                raise _AllSeenError
            return resid if rest is None else (resid, *rest)

        return call

    with face.quiet(), ExitStack() as stack:
        rest = _rest(face, row)
        for layer, block in enumerate(face.model.blocks):
            stack.enter_context(_called(block, handing_on(layer, block, rest)))
        with suppress(_AllSeenError):
            face.model(row, return_type=None, use_cache=True)
    return tuple(calls[layer] for layer in range(face.n_layers))


def _rest(face: Face, row: Int[Tensor, "1 position"]) -> tuple[Any, ...] | None:
    """What a block returns beside the residual stream; None where it returns that alone."""
    if face.n_layers == 1:
        return None  # nothing comes after it that would ask
    found: list[Any] = []
    handle = face.model.blocks[0].register_forward_hook(lambda block, args, out: found.append(out))
    try:
        face.model(row[:, :4], stop_at_layer=1, use_cache=True)
    finally:
        handle.remove()
    return tuple(found[0][1:]) if isinstance(found[0], tuple) else None


@contextmanager
def _called(module: Any, call: Callable[..., Any]) -> Iterator[None]:
    """``call`` in a module's place, its hooks left out."""
    before = vars(module).get("_call_impl")
    module._call_impl = call
    try:
        yield
    finally:
        del module._call_impl
        if before is not None:
            module._call_impl = before
