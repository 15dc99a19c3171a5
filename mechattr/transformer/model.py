"""One face over HookedTransformer and TransformerBridge: run a block alone, from any position.

The engine needs few things of a model: the residual stream that enters block 0, one block on a
window of positions with the keys and values of what came before, and the logits of chosen rows.
Both model classes can do it with their own modules and hooks, so whatever they compute (rotary,
grouped queries, soft caps, post-norms) is computed by them and not again here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechattr.errors import InputError, NotSupportedError
from mechattr.transformer.calls import CACHE_NAMES, calls_for
from mechattr.transformer.sites import Shape

if TYPE_CHECKING:
    from mechattr.transformer.wiring import Wiring

Past = tuple[Tensor, Tensor]
"""Keys and values of the positions before a window, in the model's own layout."""

Edit = tuple[str, Callable[[Tensor], Tensor | None]]
"""A hook point's name and what to do to its value; None leaves it."""


class Face(ABC):
    """What the engine sees of a model. Use :func:`face_of` to get one."""

    past_axis: int
    """Axis of ``Past`` tensors that counts positions."""

    def __init__(self, model: Any):
        self.model = model
        cfg = model.cfg
        self.points: dict[str, Any] = dict(model.hook_dict)
        self.device = torch.device(model.W_U.device)
        self.dtype: torch.dtype = model.W_U.dtype
        self.d_model = int(cfg.d_model)
        self.d_vocab = int(model.W_U.shape[-1])
        self.n_layers = int(cfg.n_layers)
        self.soft_cap = float(getattr(cfg, "output_logits_soft_cap", None) or 0.0)
        n_heads = int(cfg.n_heads)
        # a HookedTransformer has the hook point even where it has no MLP
        attn_only = getattr(cfg, "attn_only", False)
        has_mlp = "blocks.0.hook_mlp_out" in self.points and not attn_only
        ungrouped = getattr(cfg, "ungroup_grouped_query_attention", False)
        self.shape = Shape(
            n_layers=self.n_layers,
            n_heads=n_heads,
            n_key_value_heads=n_heads
            if ungrouped
            else int(getattr(cfg, "n_key_value_heads", None) or n_heads),
            d_mlp=int(getattr(cfg, "d_mlp", None) or 0) if has_mlp else 0,
            has_mlp=has_mlp,
            parallel=has_mlp and "blocks.0.hook_resid_mid" not in self.points,
            hooks=frozenset(self.points),
        )
        self.n_ctx = int(getattr(cfg, "n_ctx", None) or 2**31)
        self._wide_unembed: Tensor | None = None

    @cached_property
    def wiring(self) -> Wiring:
        """How its blocks read from and write to the residual stream, for edges."""
        from mechattr.transformer.wiring import Wiring

        return Wiring(self)

    @property
    def name(self) -> str:
        return str(getattr(self.model.cfg, "model_name", None) or type(self.model).__name__)

    @abstractmethod
    def embed(self, tokens: Int[Tensor, "prompt position"]) -> tuple[Tensor, Tensor | None]:
        """The residual stream entering block 0, [prompt, position, d_model], and the part of it
        that is an additive positional embedding (None where positions enter elsewhere)."""

    @abstractmethod
    def block(
        self, layer: int, resid: Tensor, start: int, past: Past | None, keep: bool
    ) -> tuple[Tensor, Past | None]:
        """Block ``layer`` on positions [start, start + n) of ``resid`` [row, n, d_model].

        past: keys and values of positions [0, start) for each row. With ``keep`` the keys and
        values up to the window's end come back too.
        """

    @abstractmethod
    def prepare(self, tokens: Tensor) -> None:
        """Learn whatever depends on the length of [1, position] tokens, before blocks are run."""

    def run_block(
        self,
        layer: int,
        resid: Tensor,
        start: int,
        past: Past | None,
        edits: Sequence[Edit] = (),
        *,
        keep: bool = False,
    ) -> tuple[Tensor, Past | None]:
        """:meth:`block` with edits at hook points, which are gone afterwards."""
        with ExitStack() as stack:
            for name, edit in edits:
                stack.enter_context(self._hooked(name, edit))
            return self.block(layer, resid, start, past, keep)

    def _hooked(self, name: str, edit: Callable[[Tensor], Tensor | None]) -> Any:
        """Our edit at a hook point, or at ``blocks.{l}.mlp_in``: what the MLP alone sees of the
        stream, for which the two model classes have no hook point in common."""
        if name in self.points:
            return attached(self.points[name], edit)
        return input_changed(self.model.blocks[int(name.split(".")[1])].ln2, edit)

    def final_norm(self, resid: Float[Tensor, "*rows d_model"]) -> Tensor:
        norm = getattr(self.model, "ln_final", None)
        return resid if norm is None else norm(resid)

    def logits(
        self, resid: Float[Tensor, "row read d_model"], columns: Int[Tensor, "row column"] | None
    ) -> Float[Tensor, "row read column"]:
        """Final norm and unembedding of chosen rows, and of chosen columns only, in at least
        float32 whatever the model's dtype."""
        wide = torch.promote_types(self.dtype, torch.float32)
        normed = self.final_norm(resid).to(wide)
        weight, bias = self.model.W_U, self.model.b_U
        if columns is None:
            if self._wide_unembed is None:
                self._wide_unembed = weight.to(wide)  # no copy unless in half precision
            out = normed @ self._wide_unembed
            out = out if bias is None else out + bias.to(wide)
        else:
            out = torch.einsum("rkd,rcd->rkc", normed, weight.T[columns].to(wide))
            out = out if bias is None else out + bias[columns].to(wide)[:, None]
        if self.soft_cap > 0:
            out = self.soft_cap * torch.tanh(out / self.soft_cap)
        return out

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode, and parameters that ask for no gradients; both restored after."""
        training = [m for m in self.model.modules() if m.training]
        wanting = [p for p in self.model.parameters() if p.requires_grad]
        try:
            for module in training:
                module.training = False
            for parameter in wanting:
                parameter.requires_grad_(False)
            yield
        finally:
            self._wide_unembed = None
            for module in training:
                module.training = True
            for parameter in wanting:
                parameter.requires_grad_(True)

    def known(self, what: str) -> bool:
        """Whether ``what`` was found to hold of this model as it is (class, device, dtype, shape):
        its structure need be checked only once, whatever its weights."""
        return self._key(what) in _KNOWN.setdefault(self.model, set())

    def learn(self, what: str) -> None:
        _KNOWN.setdefault(self.model, set()).add(self._key(what))

    def _key(self, what: str) -> tuple[Any, ...]:
        return (what, str(self.device), self.dtype, self.shape)

    def check(self, tokens: Int[Tensor, " position"]) -> None:
        """Once a model: its logits, computed block by block in two windows, are its own logits.

        This is what guards against an architecture that does more than its blocks say.
        """
        if not self.known("blocks"):
            self._check(tokens)
            self.learn("blocks")

    @torch.no_grad()
    def _check(self, tokens: Int[Tensor, " position"]) -> None:
        with self.quiet():
            # a long prompt shows no more than a short one, and costs seconds
            row = tokens[None, :32].to(self.device)
            self.prepare(row)
            expected = self.model(row)[0, -1].float()
            half = row.shape[1] // 2
            resid, _ = self.embed(row)
            first, second = resid[:, :half], resid[:, half:]
            for layer in range(self.n_layers):
                past: Past | None = None
                if half:
                    first, past = self.run_block(layer, first, 0, None, keep=True)
                second, _ = self.run_block(layer, second, half, past)
            got = self.logits(second[:, -1:], None)[0, 0].float()
        # the bridge takes its softmax in float32 whatever its dtype, hence no tighter for float64
        loose = {torch.float64: 1e-5, torch.float32: 1e-3}.get(self.dtype, 0.1)
        finite = expected.isfinite()
        if not bool(finite.any()):
            return  # a broken model, not a foreign one: its game's values say so, by prompt
        got, expected = got[finite], expected[finite]
        error = (got - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not bool(error < loose):
            raise NotSupportedError(
                f"{self.name} can't be run block by block: its logits differ by "
                f"{error.item():.2g} (relative) from its own forward pass. Its forward does "
                f"something outside its blocks, final norm and unembedding; mechattr supports "
                f"decoder-only models of the GPT-2, Llama, Qwen, GPT-NeoX, Gemma kind."
            )


_KNOWN: WeakKeyDictionary[Any, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""What each model was found to be."""


@contextmanager
def attached(point: Any, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Our hook on a hook point, beside whatever hooks the user has there."""
    point.add_hook(lambda value, hook: edit(value))
    ours = point.fwd_hooks[-1]
    try:
        yield
    finally:
        ours.hook.remove()
        point.fwd_hooks[:] = [handle for handle in point.fwd_hooks if handle is not ours]


@contextmanager
def handed_on(point: Any, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Shows what a hook point hands on to the model when all its hooks are done: the user's, ours,
    backward ones, those that are added later.

    A forward hook can't: it comes before hooks added later, and before what PyTorch puts around an
    output for backward hooks.
    """
    before = vars(point).get("_call_impl")
    call = point._call_impl

    def watched(*args: Any, **kwargs: Any) -> Any:
        out = call(*args, **kwargs)
        view = getattr(point, "hook_conversion", None)  # a bridge's, from its layout to its hooks'
        see(out if view is None else view.convert(out))
        return out

    point._call_impl = watched
    try:
        yield
    finally:
        del point._call_impl
        if before is not None:
            point._call_impl = before


@contextmanager
def input_changed(module: Any, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Our edit of a module's first input."""

    def change(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = edit(args[0])
        return None if new is None else (new, *args[1:])

    handle = module.register_forward_pre_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def captured(points: dict[str, Any], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Any], None]:
        def edit(value: Any) -> None:
            found[name] = value

        return edit

    with ExitStack() as stack:
        for name in names:
            if name in points:
                stack.enter_context(attached(points[name], keep(name)))
        yield found


class HookedFace(Face):
    """A HookedTransformer."""

    past_axis = 1

    def __init__(self, model: Any):
        super().__init__(model)
        if getattr(model.cfg, "n_devices", 1) > 1:
            raise NotSupportedError(
                "This HookedTransformer is spread over several devices (n_devices > 1); load it "
                "on one."
            )
        if model.cfg.positional_embedding_type not in ("standard", "rotary", "alibi"):
            raise NotSupportedError(
                f"Positional embeddings of type {model.cfg.positional_embedding_type!r} aren't "
                f"supported; standard, rotary and alibi are."
            )

    def prepare(self, tokens: Tensor) -> None:
        """Nothing depends on it: blocks make their own masks and rotations."""

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        with captured(self.points, ["hook_pos_embed"]) as found:
            # An explicit mask of ones keeps a left-padding tokenizer's guesses out of it.
            resid, *_ = self.model.input_to_embed(tokens, attention_mask=torch.ones_like(tokens))
        return resid, found.get("hook_pos_embed")

    def block(
        self, layer: int, resid: Tensor, start: int, past: Past | None, keep: bool
    ) -> tuple[Tensor, Past | None]:
        if not start and not keep:
            return self.model.blocks[layer](resid), None
        from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

        if past is None:
            heads = self.shape.n_key_value_heads
            none = resid.new_empty(resid.shape[0], 0, heads, self.model.cfg.d_head)
            past = (none, none)
        entry = TransformerLensKeyValueCacheEntry(*past)
        entry.frozen = not keep
        out = self.model.blocks[layer](resid, past_kv_cache_entry=entry)
        return out, (entry.past_keys, entry.past_values) if keep else None


class BridgeFace(Face):
    """A TransformerBridge: its blocks are called with the keyword arguments of one forward pass,
    cut to the window."""

    past_axis = 2

    def __init__(self, model: Any):
        super().__init__(model)
        if not hasattr(model, "blocks"):
            raise NotSupportedError(
                f"{self.name} has no `blocks`; mechattr supports decoder-only language models."
            )
        self._length = 0
        self._calls: Sequence[dict[str, Any]] = ()

    def prepare(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self._length:
            calls = calls_for(self, tokens)
            self._length, self._calls = calls.length, calls.of

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        additive = getattr(self.model.cfg, "positional_embedding_type", None) == "standard"
        with captured(self.points, ["hook_pos_embed"] if additive else []) as found:
            resid = self.model(tokens, stop_at_layer=0)
        return resid, found.get("hook_pos_embed")

    def block(
        self, layer: int, resid: Tensor, start: int, past: Past | None, keep: bool
    ) -> tuple[Tensor, Past | None]:
        stop = start + resid.shape[1]
        kwargs = self._calls[layer]
        cache = _OneLayerCache(past)
        window = {
            key: cache if key in CACHE_NAMES else _cut(value, key, start, stop, self._length)
            for key, value in kwargs.items()
        }
        if not CACHE_NAMES & window.keys():
            window["past_key_values"] = cache
        out = self.model.blocks[layer](resid, **window)
        out = out[0] if isinstance(out, tuple) else out
        if (start or keep) and cache.kept is None:
            raise NotSupportedError(
                f"{self.name}'s attention ignores the key/value cache, so it can't be resumed "
                f"in the middle of a prompt."
            )
        return out, cache.kept if keep else None


class _OneLayerCache:
    """The little of transformers' cache that one block's attention asks for."""

    is_compileable = False

    def __init__(self, past: Past | None):
        self.past = past
        self.kept: Past | None = None

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> Past:
        if self.past is not None:
            keys = torch.cat([self.past[0], keys], dim=2)
            values = torch.cat([self.past[1], values], dim=2)
        self.kept = (keys, values)
        return self.kept

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return 0 if self.past is None else self.past[0].shape[2]


def _cut(value: Any, key: str, start: int, stop: int, length: int) -> Any:
    """A block's keyword argument, captured for all positions, cut to the window."""
    if isinstance(value, tuple):
        return tuple(_cut(part, key, start, stop, length) for part in value)
    if not isinstance(value, Tensor):
        return value
    if "mask" in key and value.ndim == 4:  # [1, 1 or head, query, key]
        return value[:, :, start:stop, :stop]
    if "position_ids" in key or key == "cache_position":
        return value[..., start:stop]
    if value.ndim >= 2 and value.shape[-2] == length:  # rotary tables [1, position, d]
        return value[..., start:stop, :]
    if value.ndim == 2 and value.shape[-1] == length:
        return value[..., :stop] if "mask" in key else value[..., start:stop]
    return value


def face_of(model: Any) -> Face:
    """The face of a TransformerLens model; an InputError for anything else."""
    if isinstance(model, Face):
        return model
    kinds = [cls.__name__ for cls in type(model).__mro__]
    if "TransformerBridge" in kinds:
        return BridgeFace(model)
    if "HookedTransformer" in kinds:
        return HookedFace(model)
    raise InputError(
        f"The model is {type(model).__name__}; expected a transformer_lens HookedTransformer or "
        f"TransformerBridge. mechattr.load_model(name) loads one."
    )
