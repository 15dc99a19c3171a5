"""From GGUF to a Hugging Face directory, with the mistakes of transformers' reader mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mechattr.transformer.quiet import quiet_transformers

__all__ = ["write_directory"]


def write_directory(gguf: Path, folder: Path, *, digits_apart: bool) -> None:
    """Write config, weights and tokenizer of `gguf` to `folder`.

    Weights are unpacked to float32, so that nothing is rounded a second time, and written as one
    safetensors file. `digits_apart` is for a tokenizer that cuts numbers into digits first.

    Raises:
        Exception: whatever transformers raises for a file that it can't read or a full disk.
    """
    with quiet_transformers():
        tokenizer, model = _read(gguf)
        _mend_config(model.config)
        if digits_apart:
            _cut_digits_first(tokenizer)
        model.save_pretrained(folder, max_shard_size="100GB")
        tokenizer.save_pretrained(folder)


def _read(gguf: Path) -> tuple[Any, Any]:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = str(gguf.parent)
    how: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):
        # Newer releases would keep the weights packed where a kernel for that is installed.
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=gguf.name)
    unpacked = AutoModelForCausalLM.from_pretrained(where, **how)
    # The weights are plain now, yet newer releases refuse to save a model read from GGUF.
    config = unpacked.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(unpacked.state_dict())
    return tokenizer, plain


def _mend_config(config: Any) -> None:
    # GGUF keeps numbers in float32, so that 1e-5 comes back as 9.999999747378752e-06.
    if hasattr(config, "rms_norm_eps"):
        config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")


def _cut_digits_first(tokenizer: Any) -> None:
    # The reader gives every byte-level tokenizer GPT-2's rule, whatever the file names
    # (tokenizer.ggml.pre). The difference shows where blanks stand before a number.
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
