"""Models to time: any that load_model knows, or random weights of a stated shape, which need no
files (for machines without a network)."""

from __future__ import annotations

from typing import Any

import torch

import mechattr as ma
from mechattr.errors import UnknownNameError

SHAPES: dict[str, dict[str, Any]] = {
    # SmolLM2-135M's own shape, and one of a billion parameters (Llama-3.2-1B's)
    "random-135m": {
        "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
    },
    "random-1b": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256,
    },
    "random-tiny": {
        "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512,
    },
}  # fmt: skip


def load(name: str, *, hooked: bool, device: torch.device, dtype: torch.dtype) -> Any:
    if not name.startswith("random-"):
        return ma.load_model(name, hooked=hooked, device=device, dtype=dtype)
    if name not in SHAPES:
        raise UnknownNameError("random model", name, SHAPES)
    return (_random_hooked if hooked else _random_bridge)(SHAPES[name], device, dtype)


def _random_bridge(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape, max_position_embeddings=2048, tie_word_embeddings=True, attn_implementation="eager"
    )
    torch.manual_seed(0)
    with torch.device(device):
        inner = LlamaForCausalLM(config).to(dtype).eval()
    return TransformerBridge.boot_transformers(
        "random",
        hf_model=inner,
        tokenizer=_tokenizer(shape["vocab_size"]),
        device=str(device),
        dtype=dtype,
    )


def _random_hooked(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=shape["num_hidden_layers"],
        d_model=shape["hidden_size"],
        n_heads=shape["num_attention_heads"],
        n_key_value_heads=shape["num_key_value_heads"],
        d_head=shape["hidden_size"] // shape["num_attention_heads"],
        d_mlp=shape["intermediate_size"],
        d_vocab=shape["vocab_size"],
        n_ctx=2048,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=shape["hidden_size"] // shape["num_attention_heads"],
        final_rms=True,
        seed=0,
        dtype=dtype,
        device=str(device),
        default_prepend_bos=False,
    )
    model = HookedTransformer(config)
    model.tokenizer = _tokenizer(shape["vocab_size"])
    return model.eval()


def _tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        name_or_path="random",
        bos_token="w1",
        eos_token="w1",
        pad_token="w2",
        add_bos_token=True,
    )
