"""A HookedTransformer from a Hugging Face model of a supported architecture, weights unprocessed.

`HookedTransformer.from_pretrained` knows only names on its own list. Here the configuration is
written from the Hugging Face one, TransformerLens' weight converters do the rest, and the result is
run once against the original: a conversion that does not compute the same function is refused.
(Among what a converter drops in silence: biases that its usual checkpoints don't have.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mechattr.errors import NotSupportedError
from mechattr.transformer.quiet import quiet_transformer_lens

__all__ = ["SUPPORTED", "has_hooked_transformer", "to_hooked"]

MAX_CONTEXT = 2048
"""n_ctx is cut to this: every layer keeps an n_ctx x n_ctx mask (2 GB for 30 layers of 8192)."""

_USE_BRIDGE = "Load it as a TransformerBridge: leave out hooked=True."


def has_hooked_transformer() -> bool:
    """Whether the installed transformer-lens has the class; version 4 dropped it."""
    try:
        # Not hasattr: version 4 raises ImportError there, with advice for whoever imports the name.
        from transformer_lens import HookedTransformer  # noqa: F401
    except ImportError:
        return False
    return True


def to_hooked(hf_model: Any, tokenizer: Any, name: str) -> Any:
    """The HookedTransformer that computes what `hf_model` does: nothing folded or centred.

    It stays on the CPU, in the dtype of `hf_model`, with context length at most `MAX_CONTEXT`.

    Raises:
        NotSupportedError: the architecture, or a variant of it, can't be converted.
    """
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained import weight_conversions

    recipe = _recipe(hf_model.config, name)
    settings = _common(hf_model.config) | recipe.settings(hf_model.config, name)
    _check_activation(settings, name)
    cfg = HookedTransformerConfig(
        **settings, model_name=name, dtype=hf_model.dtype, device="cpu", init_weights=False,
        original_architecture=_architecture(hf_model.config),
    )  # fmt: skip
    weights = getattr(weight_conversions, recipe.converter)(hf_model, cfg)
    with quiet_transformer_lens():
        model = HookedTransformer(cfg, tokenizer, move_to_device=False)
    # Not load_and_process_state_dict, which rounds float64 to float32 even with nothing to process.
    # What a converter leaves out (masks, a zero b_U) is there already; the check tells of the rest.
    model.load_state_dict(weights, strict=False)
    _check_same(hf_model, model.eval(), name)
    return model


def _check_same(hf_model: Any, hooked: Any, name: str) -> None:
    import torch

    vocabulary = hf_model.get_input_embeddings().num_embeddings
    length = min(16, hooked.cfg.n_ctx)
    tokens = torch.linspace(0, vocabulary - 1, length).long()[None]
    with torch.no_grad():
        wanted = hf_model(tokens).logits.double()
        got = hooked(tokens).double()
    error = float((got - wanted).norm() / (wanted - wanted.mean(-1, keepdim=True)).norm())
    tolerance = 1e-3 if hf_model.dtype in (torch.float32, torch.float64) else 0.1
    # Written so that NaN fails too.
    if not error < tolerance:
        raise NotSupportedError(
            f"{name}: as a HookedTransformer it does not reproduce the logits of the original "
            f"(relative error {error:.1e}, allowed {tolerance:.0e}). {_USE_BRIDGE}"
        )


# Hugging Face configurations in TransformerLens' words


@dataclass(frozen=True)
class _Recipe:
    settings: Callable[[Any, str], dict[str, Any]]
    converter: str


def _architecture(config: Any) -> str:
    return (getattr(config, "architectures", None) or [type(config).__name__])[0]


def _recipe(config: Any, name: str) -> _Recipe:
    architecture = _architecture(config)
    if architecture not in _RECIPES:
        raise NotSupportedError(
            f"{name} is a {architecture}, which can't be made a HookedTransformer here. "
            f"Supported: {', '.join(sorted(_RECIPES))}. {_USE_BRIDGE}"
        )
    return _RECIPES[architecture]


def _common(config: Any) -> dict[str, Any]:
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "d_head": d_head,
        "d_vocab": config.vocab_size,
        # Within one window, local attention is global attention.
        "n_ctx": min(config.max_position_embeddings, window, MAX_CONTEXT),
        # load_model sets the tokenizer's own habit.
        "default_prepend_bos": False,
    }


def _gpt2(config: Any, name: str) -> dict[str, Any]:
    return {
        "d_mlp": config.n_inner or 4 * config.hidden_size,
        "act_fn": config.activation_function,
        "eps": config.layer_norm_epsilon,
        "normalization_type": "LN",
        "use_attn_scale": config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


def _neox(config: Any, name: str) -> dict[str, Any]:
    _refuse(not config.attention_bias, "attention without biases", name)
    return _rotary(config, name) | {
        "d_mlp": config.intermediate_size,
        "act_fn": config.hidden_act,
        "eps": config.layer_norm_eps,
        "normalization_type": "LN",
        "parallel_attn_mlp": config.use_parallel_residual,
    }


def _llama(config: Any, name: str) -> dict[str, Any]:
    for biases in ("attention_bias", "mlp_bias"):
        _refuse(getattr(config, biases, False), f"{biases}=True", name)
    n_kv = config.num_key_value_heads
    return _rotary(config, name) | {
        "d_mlp": config.intermediate_size,
        "act_fn": getattr(config, "hidden_activation", None) or config.hidden_act,
        "eps": config.rms_norm_eps,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        # The Llama converter wants None where every head has its own keys and values.
        "n_key_value_heads": n_kv if n_kv != config.num_attention_heads else None,
    }


def _always_grouped(config: Any, name: str) -> dict[str, Any]:
    # The other converters always write the names for groups, even of one head each.
    return _llama(config, name) | {"n_key_value_heads": config.num_key_value_heads}


def _qwen3(config: Any, name: str) -> dict[str, Any]:
    return _llama(config, name) | {"use_qk_norm": True}


def _gemma2(config: Any, name: str) -> dict[str, Any]:
    return _always_grouped(config, name) | {
        "use_normalization_before_and_after": True,
        "attn_scale": config.query_pre_attn_scalar**0.5,
        # TransformerLens writes "no soft cap" as -1.
        "attn_scores_soft_cap": config.attn_logit_softcapping or -1.0,
        "output_logits_soft_cap": config.final_logit_softcapping or -1.0,
    }


def _rotary(config: Any, name: str) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", "default")
    _refuse(kind not in ("default", "llama3"), f"rotary embeddings of type {kind!r}", name)
    d_head = _common(config)["d_head"]
    fraction = rope.get("partial_rotary_factor") or getattr(config, "rotary_pct", None) or 1.0
    settings = {
        "positional_embedding_type": "rotary",
        "rotary_base": rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10000.0,
        "rotary_dim": int(d_head * fraction),
        "rotary_adjacent_pairs": False,
    }
    if kind == "llama3":
        settings |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": rope["factor"],
            "NTK_by_parts_low_freq_factor": rope["low_freq_factor"],
            "NTK_by_parts_high_freq_factor": rope["high_freq_factor"],
            "NTK_original_ctx_len": rope["original_max_position_embeddings"],
        }
    return settings


def _refuse(condition: bool, what: str, name: str) -> None:
    if condition:
        raise NotSupportedError(
            f"{name} has {what}, which transformer-lens' converter to HookedTransformer does not "
            f"cover. {_USE_BRIDGE}"
        )


def _check_activation(settings: dict[str, Any], name: str) -> None:
    from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS

    _refuse(
        settings["act_fn"] not in SUPPORTED_ACTIVATIONS,
        f"the activation function {settings['act_fn']!r}",
        name,
    )


_RECIPES = {
    "GPT2LMHeadModel": _Recipe(_gpt2, "convert_gpt2_weights"),
    "GPTNeoXForCausalLM": _Recipe(_neox, "convert_neox_weights"),
    "LlamaForCausalLM": _Recipe(_llama, "convert_llama_weights"),
    "MistralForCausalLM": _Recipe(_always_grouped, "convert_mistral_weights"),
    "Qwen2ForCausalLM": _Recipe(_always_grouped, "convert_qwen2_weights"),
    "Qwen3ForCausalLM": _Recipe(_qwen3, "convert_qwen3_weights"),
    "GemmaForCausalLM": _Recipe(_always_grouped, "convert_gemma_weights"),
    "Gemma2ForCausalLM": _Recipe(_gemma2, "convert_gemma_weights"),
}

SUPPORTED = tuple(sorted(_RECIPES))
"""Architectures, by their name in a Hugging Face config, that `to_hooked` converts."""
