"""ContextCite's 64 masks over the 14 sentences of a six-passage context: one call of a RemovalGame,
against each prompt alone.

Alone is ``model(tokens)`` of one prompt and the answer after another, log-softmax of the logits at
all positions, and the answer's picked from them; "inner" is the same by the Hugging Face model
inside, without hooks. All in the same process, in turn; medians. The prompts are those of the
default audit: chat template, numbered passages, question, answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mechattr as ma
from experiments.benchmarks.floor import wait
from experiments.benchmarks.models import load
from experiments.benchmarks.patching import memory_gib

MASKS = 64
QUESTION = "Why was the Orvane ferry given up, and what happened to the boat?"
ANSWER = (
    "The Orvane ferry was given up in 1931, when the new bridge at Telmar took most of its "
    "passengers away. The boat was sold to a fisherman from Brask, who turned it into a house."
)
PASSAGES = (
    (
        "The ferry at Orvane crossed the Isk from early morning until the last train had arrived.",
        "For many years it was the only way to reach the market of Telmar with a cart.",
        "The ferryman lived in a wooden house on the northern bank of the river.",
    ),
    (
        "In 1931 a bridge of steel and stone was opened at Telmar, two miles down the river.",
        "Within a few weeks most people preferred the bridge, since it cost nothing to cross it.",
    ),
    (
        "The company that ran the Orvane ferry closed its office in the autumn of the same year.",
        "Its last director wrote that there was no money left for another winter of repairs.",
    ),
    (
        "The boat of the ferry was bought by a fisherman from Brask for less than forty marks.",
        "He pulled it ashore, cut windows into its sides and lived in it with his family.",
        "Children of the village called it the ark, and some visitors came to see it.",
    ),
    (
        "The ferry at Merrow, further up the river, is still working during the summer months.",
        "It is pulled across by a rope and carries no more than twelve people at a time.",
    ),
    (
        "Telmar has grown quickly since the bridge was built and now has two schools.",
        "Its market is held every Friday on the square in front of the old town hall.",
    ),
)


@dataclass(frozen=True)
class Result:
    """Seconds are medians of the 64 masks; tokens are what went through the model."""

    label: str
    seconds: float
    alone: dict[str, float]
    tokens: int
    tokens_alone: int
    largest_difference: float
    peak_gib: float

    @property
    def ratio(self) -> float:
        """Of the time that the model itself takes, each prompt alone."""
        return self.seconds / self.alone["alone"]


def run(model: str, device: str, dtype: str, repeats: int) -> Result:
    """Time them in turn; prints the result."""
    where = torch.device(device)
    loaded = load(model, hooked=False, device=where, dtype=getattr(torch, dtype))
    game = game_of(loaded, words=model.startswith("random-"))
    masks = torch.from_numpy(np.random.default_rng(0).random((MASKS, game.n_players)) < 0.5)
    alone = _Alone(game)
    work: dict[str, Callable[[Tensor], Tensor]] = {"game": game, "alone": alone}
    if inner := getattr(loaded, "original_model", None):
        work["inner"] = _Alone(game, lambda tokens: inner(tokens).logits)
    for function in work.values():
        function(masks[:2])  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in work}
    values: dict[str, Tensor] = {}
    tokens = game.tokens_run, alone.tokens_run
    for _ in range(repeats):
        for name, function in work.items():
            wait(where)
            start = time.perf_counter()
            values[name] = function(masks)
            wait(where)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    result = Result(
        label=f"{model}, TransformerBridge, {dtype}, {game.n_players} sentences, "
        f"{len(game.layout.full)} + {len(game.answer.tokens)} tokens",
        seconds=medians.pop("game"),
        alone=medians,
        tokens=(game.tokens_run - tokens[0]) // repeats,
        tokens_alone=(alone.tokens_run - tokens[1]) // repeats,
        largest_difference=float((values["game"] - values["alone"]).abs().max()),
        peak_gib=memory_gib(where, peak=True),
    )
    print_result(result)
    return result


def game_of(model: Any, *, words: bool = False) -> ma.RemovalGame:
    """words: for a random model, whose tokenizer knows w0, w1, ... only: a word of the text is one
    of these."""
    shell = "{}" if words else model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "{}"}], tokenize=False, add_generation_prompt=True
    )  # fmt: skip
    spell = _in_words if words else str
    before, after = shell.split("{}")
    pieces: list[str | ma.Piece] = [spell(f"{before}Answer the question using the passages.")]
    for p, sentences in enumerate(PASSAGES, 1):
        pieces.append(spell(f"\n\n[{p}]"))
        pieces += [
            ma.Piece(f"{p}.{s}", spell(f" {text}"), kind="sentence")
            for s, text in enumerate(sentences, 1)
        ]
    pieces.append(spell(f"\n\nQuestion: {QUESTION}{after}"))
    answer = ANSWER if not words else _in_words(ANSWER)
    return ma.RemovalGame(model, pieces, answer)


def _in_words(text: str) -> str:
    return "".join(f" w{3 + sum(map(ord, word)) % 500}" for word in text.split())


class _Alone:
    """Each prompt by itself, logits of every position."""

    def __init__(self, game: ma.RemovalGame, forward: Callable[[Tensor], Tensor] | None = None):
        self.prompt = game.prompt_tokens
        self.forward = forward or game.face.model
        self.answer = torch.as_tensor(game.answer.tokens)
        self.device = game.face.device
        self.tokens_run = 0

    @torch.inference_mode()
    def __call__(self, masks: Tensor) -> Tensor:
        return torch.stack([self._value(mask) for mask in masks])[:, None]

    def _value(self, mask: Tensor) -> Tensor:
        prompt = self.prompt(mask[None])
        tokens = torch.cat([prompt, self.answer]).to(self.device)
        self.tokens_run += len(tokens)
        logs = self.forward(tokens[None])[0].float().log_softmax(-1)
        at = logs[len(prompt) - 1 : -1].gather(1, tokens[len(prompt) :, None])
        return at.sum().double().cpu()


def print_result(r: Result) -> None:
    print(f"\n{r.label}: {MASKS} masks")
    print(f"  one call                {r.seconds:9.2f} s  {r.tokens:,} tokens run")
    for name, seconds in r.alone.items():
        who = "each prompt alone" if name == "alone" else "the same, model inside"
        print(
            f"  {who:<23} {seconds:9.2f} s  {r.tokens_alone:,} tokens run  "
            f"-> {r.seconds / seconds:.2f} of it"
        )
    print(f"  largest difference of v: {r.largest_difference:.2g} nats")
    print(f"  memory: {r.peak_gib:.2f} GiB peak", flush=True)
