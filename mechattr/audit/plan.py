"""What an audit measures of each question, and by which thresholds it judges."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechattr.audit.template import UNITS
from mechattr.errors import InputError, UnknownNameError
from mechattr.methods import METHODS
from mechattr.methods.designs import hadamard_order
from mechattr.methods.surrogate import ContextCite, Surrogate
from mechattr.transformer.removal import OPERATORS

SURROGATES: Mapping[str, Surrogate] = {"surrogate": Surrogate(), "contextcite": ContextCite()}
NULLS = ("pooled", "per passage")
CONTROLS = ("p", "q")


@dataclass(frozen=True)
class Plan:
    """Settings of an audit; every one is in the manifest.

    operators: what an absent passage is: "remove", "mask", "replace"; the first gives the
        verdicts, others are held against it.
    unit: who plays: "passage" or "sentence".
    template: the user's message with ``{passages}`` and ``{question}``; None: the default's.
    surrogate: "surrogate" (a fold-over Hadamard design) or "contextcite". samples: its rows; None:
        a whole fold-over design, two a player or somewhat more, at least 16 (64 for ContextCite).
    shapley: evaluations for Shapley values, 0 for none.
    swaps: off-topic passages put in a passage's place, a question, pooled over the run, and as many
        pairs of them in two places, for redundant sets; None: two, or as many as a small run needs
        for a pool of 60.
    null: "pooled", or "per passage": ``swaps`` of each passage, its p from them alone.
    earlier: whether earlier statements of an answer are players too.
    tokens: the method that highlights tokens inside passages, or None.
    tau, strong: nats. An effect counts above ``tau`` (ln 2: twice as likely), and is strong above
        ``strong`` (ln 10). share: and above this part of the gain: what the context does for the
        tokens that it helps.
    alpha: level of the tests. control: whether "p" or "q" is held against it.
    part: the part of the context effect that a set must be worth beyond what its members are worth
        one by one, to be redundant. carried: the part of the gain that used passages and redundant
        sets must add up to. See ``verdicts.py``.
    memory: a statement is likely where its mean log p a token is at least this (−ln 2: its tokens
        are more likely than not).
    seed: of masks, swaps and bootstrap. Each question's draws depend on it and the question's id
        only, not on the other questions.
    """

    operators: tuple[str, ...] = ("remove",)
    unit: str = "passage"
    template: str | None = None
    surrogate: str = "surrogate"
    samples: int | None = None
    shapley: int = 0
    swaps: int | None = None
    null: str = "pooled"
    earlier: bool = False
    tokens: str | None = None
    tau: float = math.log(2)
    strong: float = math.log(10)
    share: float = 0.1
    alpha: float = 0.05
    control: str = "p"
    part: float = 0.25
    carried: float = 0.5
    memory: float = -math.log(2)
    seed: int = 0
    max_new_tokens: int = 96
    temperature: float = 0.0
    prepend_bos: bool | None = None

    def __post_init__(self) -> None:
        known = {
            "unit": (self.unit, UNITS),
            "surrogate": (self.surrogate, SURROGATES),
            "null": (self.null, NULLS),
            "control": (self.control, CONTROLS),
        }
        if self.tokens is not None:
            known["method"] = (self.tokens, METHODS)
        if isinstance(self.operators, str):
            raise InputError(
                f"operators is {self.operators!r}; expected a tuple of names, such as ('remove',)."
            )
        for operator in self.operators:
            known[f"operator {operator!r}"] = (operator, OPERATORS)
        for what, (name, names) in known.items():
            if name not in names:
                raise UnknownNameError(what.split(" ")[0], name, names)
        for what, wrong in self._wrong().items():
            if wrong:
                raise InputError(f"An audit's settings: {what}.")

    def _wrong(self) -> dict[str, bool]:
        return {
            "operators is empty; expected at least one": not self.operators,
            f"an operator twice in {self.operators}": (
                len(set(self.operators)) < len(self.operators)
            ),
            f"got samples={self.samples}; expected at least 4, or None": (
                self.samples is not None and self.samples < 4
            ),
            f"got shapley={self.shapley}; expected a number of evaluations, 0 for none": (
                self.shapley < 0
            ),
            f"got swaps={self.swaps}; expected at least 1, or None": (
                self.swaps is not None and self.swaps < 1
            ),
            f"got tau={self.tau}, strong={self.strong}; expected 0 < tau <= strong, in nats": (
                not 0 < self.tau <= self.strong
            ),
            f"got share={self.share}; expected a part, 0 to 1": (not 0 <= self.share < 1),
            f"got carried={self.carried}; expected a part, 0 to 1": not 0 <= self.carried <= 1,
            f"got part={self.part}; expected a part, 0 to 1": not 0 <= self.part < 1,
            f"got memory={self.memory}; expected a log probability, at most 0": self.memory > 0,
            f"got alpha={self.alpha}; expected a level between 0 and 1": not 0 < self.alpha < 1,
            f"got max_new_tokens={self.max_new_tokens}; expected at least 1": (
                self.max_new_tokens < 1
            ),
            f"got seed={self.seed}; expected a whole number from 0": self.seed < 0,
        }

    def fit(self, n_players: int) -> Surrogate:
        """The surrogate, with its number of rows for so many players."""
        chosen = SURROGATES[self.surrogate]
        rows = self.samples or chosen.samples or max(16, 2 * hadamard_order(n_players))
        folds = 0 if n_players > 64 else 5
        if chosen.fit == "ard" and rows >= n_players + 3:
            # Enough rows for every player: plain slopes have no prior.
            return dataclasses.replace(chosen, samples=rows, folds=folds, fit="ols")
        return dataclasses.replace(chosen, samples=rows, folds=folds)

    def threshold(self, gain: float) -> float:
        """Nats that a passage must be worth to count."""
        return max(self.tau, self.share * gain)

    def hidden_threshold(self, context_effect: float) -> float:
        """Nats that a set must be worth beyond its members, to be redundant."""
        return max(self.tau, self.part * context_effect)

    def n_swaps(self, n_questions: int) -> int:
        """Off-topic passages a question; a passage, where the null is per passage. A small run
        makes more of each question, so that p <= alpha is in reach."""
        least = math.ceil(1 / self.alpha)
        if self.swaps is not None:
            return self.swaps
        if self.null == "per passage":
            return least
        return max(2, math.ceil(3 * least / max(1, n_questions)))

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
