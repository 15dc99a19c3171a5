"""One statement of a measured question, its effects held against the null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mechattr.audit.decisive import decisive, gain
from mechattr.audit.verdicts import Whole

Question = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Tested:
    """Statement number ``s`` of a question, under one operator.

    effects: the operator's, of all statements. p, q: [n] of each passage's necessity. group_p: of
    each redundant set's effect.
    """

    question: Question
    effects: Mapping[str, Any]
    s: int
    p: np.ndarray
    q: np.ndarray
    group_p: np.ndarray

    @property
    def statement(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.question["statements"][self.s]
        return found

    @property
    def whole(self) -> Whole:
        full, none = self.effects["full"][self.s], self.effects["none"][self.s]
        helped = gain(self.tokens("full"), self.tokens("none"))
        return Whole(full, none, helped, self.statement["n_tokens"])

    @property
    def places(self) -> list[int]:
        """Which of the answer's tokens are the statement's."""
        sid = self.statement["sid"]
        return [i for i, token in enumerate(self.question["tokens"]) if token["sid"] == sid]

    def tokens(self, which: str, j: int | None = None) -> Float[np.ndarray, " token"]:
        """log p of the statement's tokens: with all passages ("full") or "none", "without" j, or
        with j "alone"."""
        found = self.effects[f"tokens_{which}"]
        return np.array(found if j is None else found[j], float)[self.places]

    def own(self, j: int) -> float:
        """What the statement owes to passage j alone, nats."""
        return decisive(self.tokens("full"), self.tokens("none"), self.tokens("without", j))

    def group_own(self, group: Mapping[str, Any]) -> float:
        """What it owes to a redundant set."""
        without = np.array(group["tokens_without"], float)[self.places]
        return decisive(self.tokens("full"), self.tokens("none"), without)
