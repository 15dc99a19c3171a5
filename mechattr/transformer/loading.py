"""`load_model`: a TransformerLens model, by name, with everything that provenance needs.

Examples:
    load_model("smollm2-135m")               # TransformerBridge; the zoo's default needs no hub
    load_model("smollm2-135m", hooked=True)  # HookedTransformer, where transformer-lens has it
    load_model("./my-checkpoint")            # a Hugging Face model directory
    load_model("EleutherAI/pythia-70m")      # a Hugging Face name
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mechattr.errors import InputError, NotSupportedError
from mechattr.transformer.locating import Location, is_official, locate
from mechattr.transformer.quiet import quiet_transformer_lens, quiet_transformers

if TYPE_CHECKING:
    import torch

__all__ = ["load_model", "revision_of"]

# Beside the models, not on them: their classes stay untouched, and an entry goes with its model.
_REVISIONS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def load_model(
    name: Any,
    *,
    hooked: bool = False,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Any:
    """A TransformerLens model in evaluation mode, weights as trained: nothing folded or centred.

    Args:
        name: a zoo name (`mechattr models` lists them), the path of a Hugging Face model directory,
            a Hugging Face name, or a TransformerLens model, which is returned itself, moved or cast
            only where asked.
        hooked: a HookedTransformer instead of a TransformerBridge (transformer-lens below 4; its
            context is at most 2048 tokens unless transformer-lens has the model on its own list).
        device: "cpu", "cuda", "cuda:1", ...; None means CUDA where available, else the CPU.
        dtype: "float32", "bfloat16", ... or a torch.dtype; None means float32. A bridge computes
            softmax and RMS norms in float32 whatever the dtype, as Hugging Face does; a
            HookedTransformer in float64 does not.

    Returns:
        The model with its own tokenizer on it, as the tokenizer's authors set it up:
        `cfg.default_prepend_bos` says whether that adds a BOS token. (TransformerLens by itself
        swaps the tokenizer for one that does, and prepends BOS whatever the tokenizer's habit; only
        models in its own format, such as NeelNanda's, are left so, because they were trained so.)

    Raises:
        InputError: unknown name (with near ones and the reason), no such directory, bad device or
            dtype.
        NotSupportedError: transformer-lens has no such class for this model, or at all.
        ModelFetchError: a zoo model can't be fetched.
    """
    torch_dtype, torch_device = _parse_dtype(dtype), _parse_device(device)
    if not isinstance(name, str | os.PathLike):
        return _given_model(name, hooked, torch_device, torch_dtype)
    if hooked:
        _check_hooked_exists()
    import torch

    torch_dtype = torch_dtype or torch.float32
    torch_device = torch_device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = locate(os.fspath(name))
    load = _hooked if hooked else _bridge
    model = load(where, torch_device, torch_dtype)
    model.cfg.model_name = where.label
    _REVISIONS[model] = where.revision
    return model.eval()


def revision_of(model: Any) -> str:
    """What pins the model's weights.

    The package's version and the checksum for a zoo model, the commit for one from the hub (also
    inside a bridge that the user made), else "unknown".
    """
    if model in _REVISIONS:
        return _REVISIONS[model]
    config = getattr(getattr(model, "original_model", None), "config", None)
    return getattr(config, "_commit_hash", None) or "unknown"


# What was asked for


def _parse_dtype(dtype: Any) -> torch.dtype | None:
    import torch

    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    known = ("float32", "float64", "bfloat16", "float16")
    plain = dtype.removeprefix("torch.") if isinstance(dtype, str) else None
    if plain not in known:
        raise InputError(
            f"dtype is {dtype!r}; it should be one of {', '.join(known)}, or such a torch.dtype."
        )
    return getattr(torch, plain)


def _parse_device(device: Any) -> torch.device | None:
    import torch

    if device is None:
        return None
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as reason:
        raise InputError(
            f'device is {device!r}; it should be like "cpu", "cuda", "cuda:1" or "mps".'
        ) from reason
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parsed.type == "cuda" and (parsed.index or 0) >= count:
        raise InputError(f'device is {device!r}, but torch sees {count} CUDA devices. Use "cpu".')
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f'device is {device!r}, but torch has no MPS here. Use "cpu".')
    return parsed


def _given_model(
    model: Any, hooked: bool, device: torch.device | None, dtype: torch.dtype | None
) -> Any:
    from transformer_lens import HookedRootModule
    from transformer_lens.model_bridge import TransformerBridge

    is_bridge = isinstance(model, TransformerBridge)
    if not is_bridge and not isinstance(model, HookedRootModule):
        raise InputError(
            "load_model takes a name, a path or a TransformerLens model, not a "
            f"{type(model).__name__}. Wrap a Hugging Face model first: "
            "TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer)."
        )
    if hooked and is_bridge:
        raise InputError("hooked=True can't convert a TransformerBridge: load it by its name.")
    for change in (device, dtype):
        if change is not None:
            model = model.to(change, print_details=False)
    return model


def _check_hooked_exists() -> None:
    from mechattr.transformer.hooked import has_hooked_transformer

    if not has_hooked_transformer():
        raise NotSupportedError(
            f"hooked=True: transformer-lens {version('transformer-lens')} has no HookedTransformer "
            "any more. Leave out hooked=True to get a TransformerBridge, or "
            '`pip install "transformer-lens<4"`.'
        )


# Loading it


def _bridge(where: Location, device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with _quiet(where):
        tokenizer = _tokenizer(where)
        adds_bos = _adds_bos(tokenizer)
        with _tokenizer_kept(tokenizer):
            try:
                bridge = TransformerBridge.boot_transformers(
                    where.source, device=str(device), dtype=dtype, tokenizer=tokenizer
                )
            except ValueError as reason:
                if "Could not determine supported architecture" not in str(reason):
                    raise
                # The original goes on to list all hundred that it knows.
                raise NotSupportedError(
                    f"{where.label}: transformer-lens {version('transformer-lens')} has no "
                    "TransformerBridge for its architecture."
                ) from reason
    bridge.cfg.default_prepend_bos = adds_bos
    return bridge


def _hooked(where: Location, device: torch.device, dtype: torch.dtype) -> Any:
    if not where.is_local and is_official(where.source):
        return _official_hooked(where, device, dtype)
    from transformers import AutoModelForCausalLM

    from mechattr.transformer.hooked import to_hooked

    with _quiet(where):
        tokenizer = _tokenizer(where)
        adds_bos = _adds_bos(tokenizer)
        hf_model = AutoModelForCausalLM.from_pretrained(
            where.source, dtype=dtype, attn_implementation="eager"
        )
    with _tokenizer_kept(tokenizer):
        model = to_hooked(hf_model.eval(), tokenizer, where.label)
    model.cfg.default_prepend_bos = adds_bos
    return model.to(device, print_details=False)


def _official_hooked(where: Location, device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer

    load = HookedTransformer.from_pretrained_no_processing
    # It prints "Loaded pretrained model ..." to stdout, where a caller's results belong.
    with quiet_transformer_lens(), contextlib.redirect_stdout(io.StringIO()):
        if where.source.startswith(_LENS_FORMAT):
            return load(where.source, device=str(device), dtype=dtype)
        tokenizer = _tokenizer(where)
        adds_bos = _adds_bos(tokenizer)
        with _tokenizer_kept(tokenizer):
            model = load(where.source, device=str(device), dtype=dtype, tokenizer=tokenizer)
    model.cfg.default_prepend_bos = adds_bos
    return model


# These have no tokenizer beside their weights.
_LENS_FORMAT = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")


def _tokenizer(where: Location) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where.source)
        if not tokenizer("a").input_ids:
            # What transformers makes up, without a word, where there are no tokenizer files.
            raise ValueError("its vocabulary is empty")
    except (OSError, ValueError, KeyError) as reason:
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise InputError(
            f"{where.label} has no tokenizer that transformers can load ({first_line}). Put the "
            "tokenizer's files beside the weights, or make the TransformerBridge and pass that."
        ) from reason
    return tokenizer


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


@contextlib.contextmanager
def _tokenizer_kept(tokenizer: Any) -> Iterator[None]:
    """TransformerLens loads a tokenizer anew unless it says that it was made to add BOS."""
    before = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs |= {"add_bos_token": True, "name_or_path": tokenizer.name_or_path}
    try:
        yield
    finally:
        tokenizer.init_kwargs = before


@contextlib.contextmanager
def _quiet(where: Location) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_transformer_lens())
        if where.is_local:  # A download's progress should be seen.
            stack.enter_context(quiet_transformers())
        yield
