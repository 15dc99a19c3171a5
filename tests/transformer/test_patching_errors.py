"""Bad input to a PatchGame: what was given, what was expected, how to mend it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import mechattr as ma
from tests import oracles
from tests.oracles import patch_game, shared_model
from tests.transformer import tiny

NAN = float("nan")
FAMILY = "llama"
MODEL = pytest.mark.parametrize("name", [f"{FAMILY}-{cls}" for cls in oracles.CLASSES])


def game(**settings: Any) -> Any:
    return patch_game(shared_model("llama-bridge"), ma.heads(), **settings)


# --- masks ----------------------------------------------------------------------------------------

BAD_MASKS = {
    "too few players": (torch.ones(3, 7), r"shape \(3, 7\); expected \[mask, 8\].*'L0H0'"),
    "transposed": (torch.ones(8, 3), r"shape \(8, 3\); expected \[mask, 8\]"),
    "of too many dimensions": (torch.ones(2, 2, 8), r"shape \(2, 2, 8\)"),
    "above one": (torch.full((1, 8), 1.5), r"must lie in \[0, 1\].*got 1.5 to 1.5"),
    "negative": ([[0, 0, -1, 0, 0, 0, 0, 1]], r"must lie in \[0, 1\].*got -1 to 1"),
    "NaN": (torch.full((1, 8), NAN), r"must lie in \[0, 1\].*nan"),
}


@pytest.mark.parametrize("masks", BAD_MASKS)
@pytest.mark.parametrize("what", ["__call__", "gradient", "sensitivity"])
def test_bad_masks(masks, what):
    given, message = BAD_MASKS[masks]
    with pytest.raises(ma.InputError, match=message):
        getattr(game(), what)(given)


def test_bad_masks_per_prompt():
    with pytest.raises(ma.InputError, match=r"\(3, 2, 8\); expected \[mask, 1, 8\]"):
        game().values_per_prompt(torch.ones(3, 2, 8))
    with pytest.raises(ma.InputError, match=r"expected \[mask, 8\]"):
        game().values_per_prompt(torch.ones(3, 1, 7))


# --- arguments ------------------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "source as a class": ({"source": ma.sources.Zero}, "an instance, with parentheses"),
    "source as text": ({"source": "zero"}, "source is 'zero'; expected one of mechattr.sources"),
    "base": ({"base": "cleen"}, 'base is \'cleen\'; expected "clean" or "source"'),
    "prompts": ({"prompts": "Mary had"}, "prompts is str; expected Prompts: .*from_pairs"),
    "target": ({"target": 5}, "target is 5; expected one of mechattr.targets"),
    "mean without data": ({"source": ma.sources.Mean()}, r"needs a data set .* Mean\(texts\)"),
}


@pytest.mark.parametrize("argument", BAD_ARGUMENTS)
def test_bad_arguments(argument):
    settings, message = BAD_ARGUMENTS[argument]
    with pytest.raises(ma.InputError, match=message):
        game(**settings)


def test_players_not_called():
    with pytest.raises(ma.InputError, match=r"players is <function heads.*expected tokens\(\)"):
        patch_game(shared_model("llama-bridge"), ma.heads)


def test_counterfactual_source_without_counterfactuals():
    model = shared_model("llama-bridge")
    prompts = ma.Prompts.from_tokens(model, oracles.ids(oracles.CLEAN))
    with pytest.raises(ma.InputError, match=r"needs counterfactual prompts.*from_pairs"):
        patch_game(model, ma.heads(), prompts=prompts)


@MODEL
def test_prompts_longer_than_the_context(name):
    model = shared_model(name)
    long = oracles.ids([k % 80 for k in range(70)])
    prompts = ma.Prompts.from_tokens(model, long, long)
    with pytest.raises(ma.InputError, match="prompt has 70 tokens; the model's context is 64"):
        patch_game(model, ma.heads(), prompts=prompts)
    with pytest.raises(ma.InputError, match="prompt has 70 tokens; the model's context is 64"):
        patch_game(model, ma.heads(), source=ma.sources.Mean(prompts))


@pytest.mark.parametrize("model", [None, torch.nn.Linear(2, 2), "gpt2"])
def test_a_model_of_a_wrong_type(model):
    kind = type(model).__name__
    prompts = oracles.pair(shared_model("llama-bridge"))
    with pytest.raises(ma.InputError, match=rf"is {kind}; expected .*HookedTransformer or Trans"):
        patch_game(model, ma.heads(), prompts=prompts)


def test_a_hugging_face_model():
    prompts = oracles.pair(shared_model("llama-bridge"))
    with pytest.raises(ma.InputError, match=r"is LlamaForCausalLM; expected .*load_model"):
        patch_game(tiny.tiny_hf("llama"), ma.heads(), prompts=prompts)


def test_a_model_without_a_tokenizer():
    model = tiny.tiny_bridge("llama")
    prompts = oracles.pair(model)
    model.tokenizer = None
    for attempt in (
        lambda: ma.Prompts.from_texts(model, "Mary had"),
        lambda: patch_game(model, ma.heads(), prompts=prompts),
    ):
        with pytest.raises(ma.InputError, match="carries no tokenizer"):
            attempt()


# --- NaN ------------------------------------------------------------------------------------------


@MODEL
@pytest.mark.parametrize("where", ["everywhere", "in one weight"])
def test_nan_in_the_weights(name, where):
    """It is the model's output that is broken: not an architecture that isn't known."""
    model = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[name.split("-")[1]](FAMILY)
    for key, parameter in model.named_parameters():
        if "mlp" in key and parameter.ndim > 1:
            parameter.data[0] = NAN
            if where == "in one weight":
                break
    broken = patch_game(model, ma.heads())
    for compute in (broken, broken.gradient):
        with pytest.raises(ma.NotFiniteError, match="NaN or infinite for prompt 0: "):
            compute(torch.ones(1, 8))


@MODEL
def test_nan_on_one_prompt_names_it(name):
    """A token whose embedding is broken, in the second of three prompts."""
    model = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[name.split("-")[1]](FAMILY)
    word = model.tokenizer(" store").input_ids[0]
    for key, parameter in model.named_parameters():
        if "embed" in key and "unembed" not in key and len(parameter) == len(model.tokenizer):
            parameter.data[word] = NAN
    prompts = ma.Prompts.from_texts(model, ["Mary had a book", "The store was", "The dog"])
    broken = patch_game(model, ma.heads(), prompts=prompts, source=ma.sources.Zero())
    for masks in (torch.ones(1, 8), torch.zeros(2, 8)):
        with pytest.raises(ma.NotFiniteError, match="for prompt 1: 'The store was'"):
            broken(masks)
    assert bool(patch_game(
        model, ma.heads(), prompts=prompts[[0, 2]], source=ma.sources.Zero()
    ).full().isfinite().all())  # fmt: skip


def test_a_target_that_is_infinite():
    infinite = game(target=lambda logits: 1 / (0 * logits[:, 0]))
    with pytest.raises(ma.NotFiniteError, match="target's value is NaN or infinite for prompt 0"):
        infinite.full()


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda logits: logits, r"returned \(1, 82\); expected one value a row, shape \(1,\)"),
        (lambda logits: logits.mean(), r"returned \(\); expected one value a row"),
        (lambda logits: 3.0, r"returned float; expected one value a row"),
    ],
)
def test_target_functions_of_a_wrong_shape(target, message):
    with pytest.raises(ma.InputError, match=message):
        game(target=target).full()


@pytest.mark.parametrize("what", ["gradient", "sensitivity"])
def test_a_target_without_a_gradient(what):
    def rank(logits: torch.Tensor) -> torch.Tensor:
        return (logits > logits[:, 7:8]).sum(-1).double()

    ranked = game(target=rank)
    assert float(ranked.full()) == float(ranked.full()) >= 0
    with pytest.raises(ma.NotSupportedError, match=r"target rank has no gradient.*leave_one_out"):
        getattr(ranked, what)(torch.zeros(1, 8))


# --- provenance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        ma.sources.Zero(),
        ma.sources.Counterfactual(),
        ma.sources.Mean(["Mary had a book", "The dog sat on the mat"]),
        ma.sources.Token(" the"),
        ma.sources.Noise(draws=2, at=[range(2, 4)]),
    ],
)
def test_provenance_can_be_written_as_json(source):
    described = game(source=source).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["model_class"] == "TransformerBridge"
    assert described["sites"] == ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    assert described["source"] == source.label
    assert described["base"] == "clean"
    assert described["dtype"] == "float64"


def test_prompts_of_another_models_tokenizer():
    model = shared_model("llama-bridge")
    from tests.transformer import tiny

    other = tiny.tiny_bridge("gpt2", tokenizer=tiny.tiny_tokenizer(bos=True))
    prompts = ma.Prompts.from_texts(other, ["When Mary had a book"])
    with pytest.raises(ma.InputError, match="another model's tokenizer"):
        patch_game(model, ma.heads(), prompts=prompts, source=ma.sources.Zero())


def test_targets_of_another_dtype_can_be_patched():
    model = shared_model("llama-bridge")
    for function in (
        lambda logits: logits.argmax(-1) == 5,
        lambda logits: logits.argmax(-1),
        lambda logits: logits[:, 0].half(),
    ):
        game = patch_game(model, ma.heads(), target=function)
        assert torch.isfinite(game(torch.eye(game.n_players))).all()


def test_groups_say_what_they_were_made_of():
    model = shared_model("llama-bridge")
    players = ma.heads().group({"a": ["L0H1", "L1H2"], "b": ["L1H0"]}) + ma.mlps()
    members = patch_game(model, players).describe()["members"]
    assert members == {"a": ("L0H1", "L1H2"), "b": ("L1H0",)}
