"""Generated answers are those of a plain loop without any cache, and leave nothing behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mechattr.audit import generating
from mechattr.audit.generating import Generated, end_tokens, generate
from mechattr.errors import InputError, NotFiniteError
from mechattr.transformer.model import face_of
from tests.transformer.tiny import (
    FAMILIES,
    HAS_HOOKED,
    N_CTX,
    tiny_bridge,
    tiny_hooked,
    tiny_tokenizer,
)

KINDS = [
    pytest.param(
        tiny_hooked, marks=pytest.mark.skipif(not HAS_HOOKED, reason="no HookedTransformer")
    ),
    tiny_bridge,
]
TEXT = "When Mary and John went to the store"


def prompt_of(model, text: str = TEXT) -> torch.Tensor:
    return torch.tensor(model.tokenizer(text).input_ids)


@torch.no_grad()
def naive(model, prompt: torch.Tensor, n: int) -> list[int]:
    """The whole text through the model for every token."""
    row = prompt.tolist()
    for _ in range(n):
        row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
    return row[len(prompt) :]


@pytest.fixture(scope="module")
def bridge():
    return tiny_bridge("llama")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_argmax_of_the_whole_text(make, family):
    model = make(family, seed=3)
    prompt = prompt_of(model)
    expected = naive(model, prompt, 20)
    assert len(set(expected)) > 2, "a loop on one token shows little"
    found = generate(model, prompt, max_new_tokens=20, stop_ids=())
    assert found.tokens.tolist() == expected
    assert found.tokens.dtype == torch.long
    assert not found.ended


@pytest.mark.parametrize("make", KINDS)
def test_a_long_prompt_is_read_in_chunks(make, monkeypatch):
    monkeypatch.setattr(generating, "CHUNK", 3)
    model = make("gpt2", seed=4)
    prompt = prompt_of(model)
    assert len(prompt) > 7
    assert generate(model, prompt, max_new_tokens=6, stop_ids=()).tokens.tolist() == naive(
        model, prompt, 6
    )


@pytest.mark.parametrize("n", [1, 2])
def test_short_prompts_and_answers(bridge, n):
    prompt = prompt_of(bridge)[:1]
    found = generate(bridge, prompt, max_new_tokens=n, stop_ids=())
    assert found.tokens.tolist() == naive(bridge, prompt, n)


def test_it_stops_at_a_stop_token_which_is_not_of_the_answer(bridge):
    prompt = prompt_of(bridge)
    expected = naive(bridge, prompt, 12)
    stop = expected[5]
    before = expected[: expected.index(stop)]
    found = generate(bridge, prompt, max_new_tokens=12, stop_ids=[stop])
    assert found.tokens.tolist() == before
    assert found.ended


def test_it_may_stop_at_once(bridge):
    prompt = prompt_of(bridge)
    found = generate(bridge, prompt, stop_ids=naive(bridge, prompt, 1))
    assert found.tokens.tolist() == []
    assert found.tokens.dtype == torch.long
    assert (found.text, found.ended) == ("", True)


def test_the_context_ends_an_answer(bridge):
    prompt = torch.arange(5, 5 + N_CTX - 3)
    found = generate(bridge, prompt, max_new_tokens=50, stop_ids=())
    assert len(found.tokens) == 4  # the last is written where nothing is read any more
    assert found.tokens.tolist() == naive(bridge, prompt, 4)
    assert not found.ended
    with pytest.raises(InputError, match=f"has {N_CTX + 1} tokens; the model's context is {N_CTX}"):
        generate(bridge, torch.ones(N_CTX + 1, dtype=torch.long))


# --- drawing --------------------------------------------------------------------------------------


def test_a_seed_fixes_what_is_drawn(bridge):
    prompt = prompt_of(bridge)

    def draw(seed: int, temperature: float = 1.0) -> list[int]:
        made = generate(
            bridge, prompt, max_new_tokens=10, temperature=temperature, seed=seed, stop_ids=()
        )
        return made.tokens.tolist()

    assert draw(0) == draw(0) != draw(1)
    assert draw(0, 1e-4) == naive(bridge, prompt, 10)


def test_tokens_are_drawn_by_their_chances(bridge):
    prompt = prompt_of(bridge)
    with torch.no_grad():
        chances = (bridge(prompt[None])[0, -1] / 2.0).softmax(-1)
    settings: Any = dict(max_new_tokens=1, temperature=2.0, stop_ids=())
    face = face_of(bridge)
    drawn = [int(generate(face, prompt, seed=seed, **settings).tokens[0]) for seed in range(200)]
    seen = torch.bincount(torch.tensor(drawn), minlength=len(chances)) / 200
    likely = chances.topk(4).indices
    assert chances[likely].max() < 0.9, "nothing to draw"
    np.testing.assert_allclose(seen[likely], chances[likely], atol=0.11)


# --- nothing left behind --------------------------------------------------------------------------


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()  # noqa: NPY002  the global one is meant
    return list(state[1])


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_model_and_the_random_state_stay_as_they_were(make, temperature):
    model = make("llama").train()
    prompt = prompt_of(model)
    with torch.no_grad():
        model(prompt[None])  # a bridge's first call puts hooks of its own
    wanting = [p.requires_grad for p in model.parameters()]
    hooks = {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()}
    pre = [len(module._forward_pre_hooks) for module in model.modules()]
    state, other = torch.get_rng_state(), numpy_state()
    generate(model, prompt, max_new_tokens=3, temperature=temperature)
    assert torch.equal(torch.get_rng_state(), state)
    assert numpy_state() == other
    assert [p.requires_grad for p in model.parameters()] == wanting
    assert any(wanting)
    assert all(module.training for module in model.modules())
    assert {name: list(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks
    assert [len(module._forward_pre_hooks) for module in model.modules()] == pre
    assert torch.is_grad_enabled()


def test_a_list_or_array_of_tokens_is_a_prompt_too(bridge):
    prompt = prompt_of(bridge)
    for given in (prompt.tolist(), prompt.numpy()):
        found = generate(bridge, given, max_new_tokens=3, stop_ids=())
        assert found.tokens.tolist() == naive(bridge, prompt, 3)


def test_the_prompt_is_not_written_to(bridge):
    prompt = prompt_of(bridge)
    before = prompt.clone()
    generate(bridge, prompt, max_new_tokens=4)
    assert torch.equal(prompt, before)


def test_inside_inference_mode_too(bridge):
    prompt = prompt_of(bridge)
    with torch.inference_mode():
        found = generate(bridge, prompt, max_new_tokens=4, stop_ids=())
    assert found.tokens.tolist() == naive(bridge, prompt, 4)


def test_a_face_serves_as_well_and_again(bridge):
    face, prompt = face_of(bridge), prompt_of(bridge)
    for text in (prompt, prompt[:3]):
        found = generate(face, text, max_new_tokens=5, stop_ids=())
        assert found.tokens.tolist() == naive(bridge, text, 5)


# --- text -----------------------------------------------------------------------------------------


def test_the_text_follows_the_prompt_exactly(bridge):
    prompt = prompt_of(bridge)
    found = generate(bridge, prompt, max_new_tokens=12, stop_ids=())
    whole = bridge.tokenizer.decode([*prompt.tolist(), *found.tokens.tolist()])
    assert found.text
    assert TEXT + found.text == whole


class SentencePieceLike:
    """Words with the blank before them, which isn't shown where nothing comes before."""

    words = ("▁the", "▁cat", "s", "▁sat")

    def decode(self, ids, **_):
        return "".join(self.words[i] for i in ids).replace("▁", " ").removeprefix(" ")


@pytest.mark.parametrize(("tokens", "text"), [([1, 2], " cats"), ([2], "s"), ([], "")])
def test_a_blank_that_a_tokenizer_hides_at_the_beginning_is_kept(tokens, text):
    assert generating._text_after(SentencePieceLike(), torch.tensor([0]), tokens) == text


class Bytes:
    """A tokenizer of bytes, few of them."""

    eos_token_id = None
    chat_template = None
    all_special_ids: tuple[int, ...] = ()
    known = "HI go é".encode()

    def decode(self, ids, **_):
        return bytes(self.known[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("n", "text", "ended"), [(9, "go é", True), (5, "go é", False), (4, "go ", False)]
)
def test_an_answer_is_not_cut_within_a_character(bridge, monkeypatch, n, text, ended):
    stop = 50
    written = iter([3, 4, 5, 6, 7, stop])
    monkeypatch.setattr(generating, "tokenizer_of", lambda model: Bytes())
    monkeypatch.setattr(generating._Chooser, "__call__", lambda self, _: next(written))
    found = generate(bridge, torch.tensor([0, 1]), max_new_tokens=n, stop_ids=[stop])
    assert (found.text, found.tokens.tolist()) == (text, [3, 4, 5, 6, 7][: len(text.encode())])
    assert found.ended is ended


# --- where an answer ends -------------------------------------------------------------------------


def test_the_end_of_text_ends_an_answer(bridge):
    assert end_tokens(bridge) == {bridge.tokenizer.eos_token_id}


CHAT = (
    "{% for m in messages %}<unk>{{ m.role }}: {{ m.content | trim }}"
    "{% if m.role == 'assistant' %}{{ end }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("end", "ids"), [("<pad>\n", {0, 1}), (" <pad>", {0, 1}), ("\n", {1}), ("", {1})]
)
def test_the_chat_templates_end_of_turn_ends_an_answer(end, ids):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT.replace("{{ end }}", end)
    assert end_tokens(SimpleNamespace(tokenizer=tokenizer)) == ids


def test_a_template_that_refuses_tells_nothing():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_tokens(SimpleNamespace(tokenizer=tokenizer)) == {1}


@pytest.mark.parametrize(("eos", "ids"), [([4, 5], {1, 4, 5}), (6, {1, 6}), (None, {1})])
def test_what_the_models_own_settings_stop_at_ends_an_answer(eos, ids):
    settings = SimpleNamespace(eos_token_id=eos)
    model = SimpleNamespace(
        tokenizer=tiny_tokenizer(), original_model=SimpleNamespace(generation_config=settings)
    )
    assert end_tokens(model) == ids


def test_they_are_what_it_stops_at_by_default(bridge, monkeypatch):
    prompt = prompt_of(bridge)
    expected = naive(bridge, prompt, 6)
    monkeypatch.setattr(generating, "end_tokens", lambda model: frozenset({expected[2]}))
    found = generate(bridge, prompt, max_new_tokens=6)
    assert found.tokens.tolist() == expected[: expected.index(expected[2])]
    assert found.ended
    assert isinstance(found, Generated)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (torch.zeros(0, dtype=torch.long), "at least one"),
        (torch.zeros(1, 3, dtype=torch.long), r"of shape \(1, 3\)"),
        (torch.zeros(3), "torch.float32"),
        (torch.tensor([1, 400]), "Token id 400 is outside"),
        (torch.tensor([-1, 4]), "Token id -1 is outside"),
    ],
)
def test_a_prompt_that_cannot_be_gone_on_with_is_refused(bridge, prompt, said):
    with pytest.raises(InputError, match=said):
        generate(bridge, prompt)


@pytest.mark.parametrize(
    "setting",
    [{"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"temperature": -1}, {"temperature": True}],
)
def test_settings_that_make_no_sense_are_refused(bridge, setting):
    with pytest.raises(InputError, match=f"{next(iter(setting))} is"):
        generate(bridge, torch.tensor([3]), **setting)


def test_a_broken_model_says_so():
    model = tiny_bridge("llama")
    with torch.no_grad():
        next(model.blocks[0].parameters()).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="NaN while generating"):
        generate(model, prompt_of(model))
