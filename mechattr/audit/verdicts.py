"""The rules by which effects become verdicts: pure, and all in one place.

All effects are in nats, of one statement. C = F − E is what the context does; an effect counts
above h = max(τ, share · C).

A passage is

- **used** where its necessity is above h, and above chance (what an off-topic passage in its place
  does; p, or q, at most α): "cited and used" or "used but uncited"; "supported" where the cited
  passages that are used also entail the statement;
- **redundant support** where it is in a set that is worth more together than the sum of its
  members' necessities, by ``part`` · C and τ at least, and more than chance: another passage says
  the same. A used passage in such a set is redundant unless it carries the statement by itself
  (below);
- **cited but unused** where it is cited, and both effects are below h: its necessity, and the upper
  bound of its effect given the passages that are used (see ``given.py``). That p is large isn't
  enough;
- **not used** where it is uncited and none of these. No claim that it does nothing;
- **inconclusive** where it is cited and none of these.

A used passage or redundant set carries a statement where it is worth at least ``part`` of C, and
takes away at least ``explained`` of the surprise that there is without it. (Passages of the same
kind teach a statement's form, whatever it says: each takes away a little.) A statement is helped by
its context where what carries it adds up to ``carried`` of C. That C itself is above τ isn't asked:
other passages may mislead the model as much as the source helps. One that isn't helped, or that the
model finds likely without passages while C ≤ τ, is

- **not distinguishable from parametric memory** where the model finds it likely (mean log p a token
  without passages at least ``memory``);
- **inconclusive** where a passage would carry it, were its effect above chance: with a small null,
  nothing is;
- **unsupported** otherwise.

One that is helped is

- **redundant support** where no used passage carries it by itself;
- "supported", **cited and used** where a cited passage is used, or one in a redundant set is cited;
- **cited but unused** where neither is, and a citation is shown to be unused;
- **used but uncited** otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mechattr.audit.plan import Plan

USED, SUPPORTED = "cited and used", "supported"
UNUSED, UNCITED = "cited but unused", "used but uncited"
REDUNDANT, MEMORY = "redundant support", "not distinguishable from parametric memory"
UNSUPPORTED, INCONCLUSIVE, NOT_USED = "unsupported", "inconclusive", "not used"

STATEMENTS = (SUPPORTED, USED, UNUSED, UNCITED, REDUNDANT, MEMORY, UNSUPPORTED, INCONCLUSIVE)
CITATIONS = (SUPPORTED, USED, UNUSED, REDUNDANT, INCONCLUSIVE)
PASSAGES = (UNCITED, REDUNDANT, NOT_USED)

Entails: TypeAlias = Callable[[str, str], bool]
"""Whether a premise (texts of passages, a blank line between two) entails a statement."""


@dataclass(frozen=True)
class Evidence:
    """A passage's part in a statement.

    effect, necessary: its necessity, and whether that is above h and above chance.
    carries: whether it is necessary, and carries the statement by itself.
    group, group_effect: the redundant set, above chance, that it is in, and what that is worth;
        none: empty.
    upper: the upper bound of its effect given the passages that are used.
    entailed: whether the cited and used passages entail the statement; None without a plug-in.
    """

    cited: bool
    effect: float
    necessary: bool
    carries: bool
    group: tuple[int, ...]
    group_effect: float
    upper: float
    h: float
    entailed: bool | None = None

    @property
    def used(self) -> bool:
        """By itself, or together with what says the same."""
        return self.necessary or bool(self.group)

    @property
    def verdict(self) -> str:
        if self.group and not self.carries:
            return REDUNDANT
        if self.necessary and self.cited:
            return SUPPORTED if self.entailed else USED
        if self.necessary:
            return UNCITED
        if not self.cited:
            return NOT_USED
        return UNUSED if max(self.upper, self.effect) < self.h else INCONCLUSIVE


@dataclass(frozen=True)
class Whole:
    """A statement with its whole context.

    full, none: its log p with all passages, and with none. n_tokens: of the statement.
    """

    full: float
    none: float
    n_tokens: int

    @property
    def effect(self) -> float:
        return self.full - self.none


def statement_verdict(whole: Whole, passages: Sequence[Evidence], plan: Plan) -> str:
    """The verdict on a statement, from what is known of its passages."""
    likely = whole.none / whole.n_tokens >= plan.memory
    if not helped(whole, passages, plan) or (likely and whole.effect <= plan.tau):
        if likely:
            return MEMORY
        unproven = [e.effect for e in passages if e.effect > e.h and not e.necessary]
        by_chance = any(carries(effect, whole, plan) for effect in unproven)
        return INCONCLUSIVE if by_chance else UNSUPPORTED
    if not any(e.carries for e in passages):
        return REDUNDANT
    if any(e.cited and e.used for e in passages):
        return SUPPORTED if any(e.entailed for e in passages) else USED
    return UNUSED if any(e.verdict == UNUSED for e in passages) else UNCITED


def helped(whole: Whole, passages: Sequence[Evidence], plan: Plan) -> bool:
    """Whether passages or sets carry a statement, and what the context does for it."""
    sets = {e.group: e.group_effect for e in passages if e.group}
    parts = [e.effect for e in passages if e.necessary] + list(sets.values())
    carrying = [part for part in parts if carries(part, whole, plan)]
    return bool(carrying) and sum(carrying) >= plan.carried * whole.effect


def carries(part: float, whole: Whole, plan: Plan) -> bool:
    """Whether an effect is more than that of a passage that is merely of the same kind."""
    surprise = part - whole.full
    return part >= max(plan.tau, plan.part * whole.effect, plan.explained * surprise)


def strength(context_effect: float, plan: Plan) -> str:
    """How much the context does, in either direction."""
    size = abs(context_effect)
    return "strong" if size > plan.strong else "moderate" if size > plan.tau else "weak"
