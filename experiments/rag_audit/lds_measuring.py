"""Values of subsets of a question's sentences, kept on disk: all that ``lds`` fits and judges.

A question's masks are run in one call of a ``RemovalGame``, whose prompts share their beginnings;
what is on disk already isn't run again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

import mechattr as ma
from experiments.rag_audit.lds_questions import Question
from mechattr.methods import designs
from mechattr.methods.designs import Design

BLOCK = 64
"""I.i.d. masks in a block: some are fitted, others judge."""

JUDGES = 2
"""Blocks that judge, where so many are left."""

DRAWS = {32: 3}
"""Draws of a Hadamard design of so many rows, where more than one."""

BUDGETS = (8, 16, 32, 64, 128, 256)

Masks = Bool[np.ndarray, "mask player"]


@dataclass(frozen=True)
class Plan:
    """Which masks a question of n players is measured at, up to so many evaluations of a fit.

    The i.i.d. masks are ``blocks`` of 64; the Hadamard designs one for each (budget, draw).
    """

    n_players: int
    seed: int
    most: int

    @property
    def blocks(self) -> int:
        """As many as the largest fit needs, and one that judges; three at least."""
        return max(1 + JUDGES, 1 + self.most // BLOCK)

    @property
    def budgets(self) -> tuple[int, ...]:
        return tuple(budget for budget in BUDGETS if budget <= self.most)

    def random(self) -> Masks:
        """Bernoulli(½) masks, [block · 64, player]; a longer plan begins with a shorter one's."""
        rng = np.random.default_rng([self.seed, 0])
        return rng.random((self.blocks * BLOCK, self.n_players)) < 0.5

    def hadamard(self, budget: int, draw: int) -> Design:
        rng = np.random.default_rng([self.seed, 1 + draw])
        return designs.draw("hadamard", rng, self.n_players, budget, 0.5, True)

    def leave_one_out(self) -> Masks:
        return ~np.eye(self.n_players, dtype=bool)

    def masks(self) -> Masks:
        """All of them, each once."""
        drawn = [self.hadamard(b, d).masks for b in self.budgets for d in range(DRAWS.get(b, 1))]
        singles = self.leave_one_out()
        return np.unique(np.concatenate([self.random(), singles, ~singles, *drawn]), axis=0)


class Values:
    """``v`` of the masks measured so far, [mask, statement], of one question.

    lengths: [statement] tokens of each.
    """

    def __init__(self, masks: Masks, values: Float[np.ndarray, "mask statement"], lengths: Any):
        self.masks, self.values = masks, values
        self.lengths: Int[np.ndarray, " statement"] = np.asarray(lengths)
        self._row = {row.tobytes(): i for i, row in enumerate(masks)}

    def __call__(self, masks: Masks) -> Float[np.ndarray, "mask statement"]:
        return self.values[[self._row[row.tobytes()] for row in masks]]

    def missing(self, masks: Masks) -> Masks:
        new = [row for row in masks if row.tobytes() not in self._row]
        return np.array(new, bool).reshape(-1, masks.shape[1])

    def with_more(self, masks: Masks, values: np.ndarray) -> Values:
        both = np.concatenate([self.masks, masks]), np.concatenate([self.values, values])
        return Values(*both, self.lengths)


def game_of(model: Any, question: Question) -> ma.RemovalGame:
    """Sentences are players; the numbers before the passages stay. The prompt is an audit's."""
    shell = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "\0"}], tokenize=False, add_generation_prompt=True
    )
    before, after = shell.split("\0")
    pieces: list[str | ma.Piece] = [f"{before}Answer the question using the passages."]
    for p, sentences in enumerate(question.passages, 1):
        pieces.append(f"\n\n[{p}]")
        pieces += [
            ma.Piece(f"{p}.{s}", f" {text}", kind="sentence", coords={"passage": p})
            for s, text in enumerate(sentences, 1)
        ]
    pieces.append(f"\n\nQuestion: {question.question}{after}")
    return ma.RemovalGame(model, pieces, question.answer, statements=question.spans)


def path_of(folder: Path, question: Question) -> Path:
    return folder / f"{question.name.replace(' ', '_')}.npz"


def load(folder: Path, game: ma.RemovalGame, question: Question) -> Values:
    """What is on disk for this very question and model; nothing where it is another's."""
    path, n = path_of(folder, question), game.n_players
    if path.exists():
        with np.load(path) as kept:
            if str(kept["of"]) == _identity(game):
                return Values(kept["masks"], kept["values"], kept["lengths"])
    return Values(np.zeros((0, n), bool), np.zeros((0, game.n_prompts)), game.target_lengths)


def measure(folder: Path, game: ma.RemovalGame, question: Question, plan: Plan) -> Values:
    """All of a plan's masks; runs those that aren't on disk, in one call, and keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    known = load(folder, game, question)
    new = known.missing(plan.masks())
    if not len(new):
        return known
    values = known.with_more(new, game(torch.from_numpy(new)).numpy())
    path = path_of(folder, question)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:  # an interruption leaves the old file or the new one
        np.savez_compressed(
            file,
            masks=values.masks,
            values=values.values,
            lengths=values.lengths,
            of=np.array(_identity(game)),
        )
    part.replace(path)
    return values


def _identity(game: ma.RemovalGame) -> str:
    said = game.describe()
    return "; ".join(
        str(said[key])
        for key in ("model", "model_revision", "dtype", "tokenizer", "pieces", "answer", "operator")
    )
