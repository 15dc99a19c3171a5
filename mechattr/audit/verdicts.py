"""The rules by which effects become verdicts: pure, and all in one place.

All effects are in nats, of one statement. C = F − E is what the context does; an effect counts
above h = max(τ, share · C).

A passage is

- **used** where its necessity is above h, and above chance (what an off-topic passage in its place
  does; p, or q, at most α): "cited and used" or "used but uncited"; "supported" where the cited
  passages that are used also entail the statement;
- **redundant support** where it is in a set that is worth more together than the sum of its
  members' necessities, by ``hidden`` · C and τ at least, and more than chance: another passage says
  the same. It goes before "used" unless the passage by itself carries the statement;
- **cited but unused** where it is cited, and both effects are below h: its necessity, and the upper
  bound of its effect given the passages that are used (see ``given.py``). That p is large isn't
  enough;
- **not used** where it is uncited and none of these. No claim that it does nothing;
- **inconclusive** where it is cited and none of these.

A statement is helped by its context where C is above τ and at least ``explained`` of the surprise
−E, and one used passage or redundant set carries it: accounts for at least ``carried`` of C.
(Passages of the same kind teach a statement's form, whatever it says: each of them helps a little.)
One that isn't helped is

- **not distinguishable from parametric memory** where the model finds it likely without passages
  (mean log p a token at least ``memory``);
- **unsupported** otherwise.

One that is helped is

- **redundant support** where no passage by itself carries it;
- "supported", **cited and used** where a cited passage is used;
- **cited but unused** where none is, and a citation is shown to be unused;
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

STATEMENTS = (SUPPORTED, USED, UNUSED, UNCITED, REDUNDANT, MEMORY, UNSUPPORTED)
CITATIONS = (SUPPORTED, USED, UNUSED, REDUNDANT, INCONCLUSIVE)
PASSAGES = (UNCITED, REDUNDANT, NOT_USED)

Entails: TypeAlias = Callable[[str, str], bool]
"""Whether a premise (texts of passages, a blank line between two) entails a statement."""


@dataclass(frozen=True)
class Evidence:
    """A passage's part in a statement.

    effect, necessary: its necessity, and whether that is above h and above chance.
    carries: whether it alone accounts for ``carried`` of C.
    group, group_effect: the redundant set, above chance, that it is in; none: empty.
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
    if not helped(whole, passages, plan):
        return MEMORY if whole.none / whole.n_tokens >= plan.memory else UNSUPPORTED
    if not any(e.carries for e in passages):
        return REDUNDANT
    found = {e.verdict for e in passages}
    cited = [verdict for verdict in (SUPPORTED, USED) if verdict in found]
    if cited:
        return cited[0]
    return UNUSED if UNUSED in found else UNCITED


def helped(whole: Whole, passages: Sequence[Evidence], plan: Plan) -> bool:
    """Whether the context makes a statement likelier, and a passage or a set carries that."""
    enough = max(plan.tau, -plan.explained * whole.none)
    parts = [e.effect for e in passages if e.necessary] + [e.group_effect for e in passages]
    return whole.effect > enough and max(parts, default=0.0) >= plan.carried * whole.effect


def strength(context_effect: float, plan: Plan) -> str:
    """How much the context does, in either direction."""
    size = abs(context_effect)
    return "strong" if size > plan.strong else "moderate" if size > plan.tau else "weak"
