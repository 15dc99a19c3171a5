"""Tiny models with room for a prompt of passages, and what they say of one: a slow reference.

The reference knows texts and characters only: a prompt is written out by the test, the whole text
is tokenised at once and run once, with full logits, and what a statement is worth is read off them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.transformer import tiny

N_CTX = 256
NAMES = (*["llama-hooked"] * tiny.HAS_HOOKED, "llama-bridge", "gpt2-bridge")
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)

_MARKS = ("Ċ", "[", "]", ":", "2", "3", "4", "5", "Answer", "Question", "Tom", "Anna")
_WORDS = (" question", " using", " passages", " assistant", " user", " played", " slept")


@functools.cache
def model(name: str, *, chat: bool = False, n_ctx: int = N_CTX) -> Any:
    """ "llama-bridge": a tiny model that takes prompts of ``n_ctx`` tokens."""
    family, _, cls = name.partition("-")
    make = {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[cls]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "N_CTX", n_ctx)
        tokenizer = tiny.tiny_tokenizer((*_MARKS, *_WORDS))
        tokenizer.chat_template = CHAT if chat else None
        return make(family, tokenizer=tokenizer)


# --- records --------------------------------------------------------------------------------------

PASSAGES = (
    {"pid": "a", "text": "Mary went to the store and had a drink."},
    {"pid": "b", "title": "John", "text": "John sat on the mat. Anna played in the park."},
    {"pid": "c", "text": "Tom slept in the park."},
)
ANSWER = "Mary went to the park [a]. John sat on the mat, and a dog played [b][c]."
SCORED = "Mary went to the park. John sat on the mat, and a dog played."
SPANS = ((0, 22), (23, 61))
QUESTION = "When was Tom in the park?"
OFF_TOPIC = "cat was in a war and the dog lasted from year to year of the good book on a bad mat"


def record(**changes: Any) -> dict[str, Any]:
    """A record with two statements, which cite passage a, and b and c. A change to None leaves a
    key out."""
    made = {"id": "q1", "question": QUESTION, "passages": list(PASSAGES), "answer": ANSWER}
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def block(number: int, text: str, title: str = "") -> str:
    return f"\n\n[{number}] {title}\n{text}" if title else f"\n\n[{number}] {text}"


BLOCKS = tuple(block(i, p["text"], p.get("title", "")) for i, p in enumerate(PASSAGES, 1))


def prompt(blocks: Sequence[str], *, chat: bool = False) -> str:
    """The default prompt around blocks of passages."""
    content = f"Answer the question using the passages.{''.join(blocks)}\n\nQuestion: {QUESTION}"
    return f"[user]\n{content}\n[assistant]\n" if chat else f"{content}\n\nAnswer:"


# --- what the model says --------------------------------------------------------------------------


def token_log_probs(
    name: str, before: str, answer: str, *, chat: bool = False, closed: Sequence[str] = ()
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Each token of the answer: its log probability, and its characters in the answer.

    closed: parts of the prompt whose keys nothing behind them attends to.
    """
    running = model(name, chat=chat)
    text = before + answer
    found = running.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens, spans = torch.tensor(found["input_ids"]), found["offset_mapping"]
    hooks = []
    if closed:
        allowed = torch.zeros(len(tokens), len(tokens), dtype=torch.float64)
        for part in closed:
            assert before.count(part) == 1
            start = before.index(part)
            own = torch.tensor([start <= a and b <= start + len(part) for a, b in spans])
            allowed[~own[:, None] & own[None]] = -torch.inf
        hooks = [(lambda point: point.endswith("hook_attn_scores"), lambda s, hook: s + allowed)]
    with torch.no_grad(), running.hooks(fwd_hooks=hooks):
        logs = running(tokens[None])[0].double().log_softmax(-1)
    mine = [i for i, (start, _) in enumerate(spans) if start >= len(before)]
    values = torch.stack([logs[i - 1, tokens[i]] for i in mine])
    return values, [(spans[i][0] - len(before), spans[i][1] - len(before)) for i in mine]


def values(
    name: str,
    before: str,
    scored: str = SCORED,
    spans: Sequence[tuple[int, int]] = SPANS,
    **how: Any,
) -> np.ndarray:
    """[statement] log p, nats: a token is of the statement that its first letter is in.

    A prompt of the plain kind ends in a word: a blank comes between it and the answer.
    """
    lead = "" if before.endswith("\n") else " "
    answer = lead + scored
    logs, places = token_log_probs(name, before, answer, **how)
    firsts = [start + len(answer[start:end]) - len(answer[start:end].lstrip())
              for start, end in places]  # fmt: skip
    out = []
    for start, end in spans:
        inside = [start + len(lead) <= first < end + len(lead) for first in firsts]
        assert any(inside)
        out.append(float(logs[torch.tensor(inside)].sum()))
    return np.array(out)


def effects(worth: Mapping[frozenset[int], np.ndarray], n: int) -> dict[str, np.ndarray]:
    """F, E, necessity and sufficiency, [statement] or [statement, player], from sets' values."""
    every = frozenset(range(n))
    full, none = worth[every], worth[frozenset()]
    return {
        "full": full,
        "none": none,
        "necessity": np.stack([full - worth[every - {j}] for j in range(n)], 1),
        "sufficiency": np.stack([worth[frozenset({j})] - none for j in range(n)], 1),
    }


def n_tokens(text: str) -> int:
    return len(model("llama-bridge").tokenizer(text, add_special_tokens=False)["input_ids"])


def masks(n: int) -> list[tuple[int, ...]]:
    return list(itertools.product([0, 1], repeat=n))
