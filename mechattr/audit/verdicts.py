"""The rules by which effects become verdicts: pure, and all in one place.

All effects are in nats, of one statement. C = F − E is what the context does, and *gain* what it
does for the tokens that it helps: more than C where passages mislead. An effect counts above
h = max(τ, share · gain). What a statement *owes* to a passage alone (see ``decisive.py``) is the
sum of its necessities for those tokens of which at least half of the context's help is lost without
it. (Passages of the same kind teach a statement's form, whatever it says: each does a little for
every token.)

A passage is

- **used** where both its necessity and what the statement owes to it are above h, and the former is
  above chance (what an off-topic passage in its place does; p, or q, at most α): "cited and used"
  or "used but uncited"; "supported" where the cited passages that are used also entail the
  statement;
- **redundant support** where it isn't used alone, but is in a set that is worth more together than
  the sum of its members' necessities, by ``part`` · C and τ at least, and more than chance:
  another passage says the same;
- **cited but unused** where it is cited, and both what the statement owes to it and the upper bound
  of its effect given the passages that are used (see ``given.py``) are below h, unless its
  necessity is above h and above chance. That p is large isn't enough;
- **not used** where it is uncited and none of these. No claim that it does nothing;
- **inconclusive** where it is cited and none of these.

A statement is helped by its context where what it owes to used passages and redundant sets adds up
to ``carried`` · gain. That C itself is above τ isn't asked: other passages may mislead the model as
much as the source helps. One that isn't helped, or that the model finds likely without passages
while C ≤ τ, is

- **not distinguishable from parametric memory** where the model finds it likely (mean log p a token
  without passages at least ``memory``);
- **inconclusive** where it would be helped by passages or sets, were their effects above chance:
  with a small null, nothing is;
- **unsupported** otherwise.

One that is helped is

- **redundant support** where no passage is used alone;
- "supported", **cited and used** where a cited passage is used, or one in a redundant set is cited;
- **cited but unused** where neither is, and a citation is shown to be unused;
- **used but uncited** otherwise.
"""

from __future__ import annotations

import dataclasses
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

    effect, own: its necessity, and what the statement owes to it alone. alone: whether both count.
    above_chance: whether its necessity is.
    group, group_effect, group_own: the redundant set that it is in, what that is worth, and what
        the statement owes to it; none: empty. set_above_chance: whether that is.
    upper: the upper bound of its effect given the passages that are used.
    entailed: whether the cited and used passages entail the statement; None without a plug-in.
    of: the passage, where its sentences play.
    """

    cited: bool
    effect: float
    own: float
    alone: bool
    above_chance: bool
    group: tuple[int, ...]
    group_effect: float
    group_own: float
    set_above_chance: bool
    upper: float
    h: float
    entailed: bool | None = None
    of: str = ""

    @property
    def necessary(self) -> bool:
        """Used, by itself."""
        return self.alone and self.above_chance

    @property
    def redundant(self) -> bool:
        """In a set that is worth more than chance."""
        return bool(self.group) and self.set_above_chance

    @property
    def used(self) -> bool:
        """By itself, or together with what says the same."""
        return self.necessary or self.redundant

    @property
    def verdict(self) -> str:
        if self.necessary:
            return UNCITED if not self.cited else SUPPORTED if self.entailed else USED
        if self.redundant:
            return REDUNDANT
        if not self.cited:
            return NOT_USED
        nothing = self.effect <= self.h or not self.above_chance
        return UNUSED if nothing and max(self.own, self.upper) < self.h else INCONCLUSIVE


@dataclass(frozen=True)
class Whole:
    """A statement with its whole context.

    full, none: its log p with all passages, and with none. gain: what the context does for the
        tokens that it helps. n_tokens: of the statement.
    """

    full: float
    none: float
    gain: float
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
        were = [dataclasses.replace(e, above_chance=True, set_above_chance=True) for e in passages]
        return INCONCLUSIVE if helped(whole, were, plan) else UNSUPPORTED
    if not any(e.necessary for e in passages):
        return REDUNDANT
    if any(e.cited and e.used for e in passages):
        return SUPPORTED if any(e.entailed for e in passages) else USED
    return UNUSED if _unused(passages) else UNCITED


def _unused(passages: Sequence[Evidence]) -> bool:
    """Whether a citation is shown to be unused: where sentences play, each of its passage's."""
    shown: dict[str, list[bool]] = {}
    for j, e in enumerate(passages):
        if e.cited:
            shown.setdefault(e.of or str(j), []).append(e.verdict == UNUSED)
    return any(all(each) for each in shown.values())


def helped(whole: Whole, passages: Sequence[Evidence], plan: Plan) -> bool:
    """Whether what is owed to used passages and redundant sets is most of what the context does."""
    alone = {j: e.own for j, e in enumerate(passages) if e.necessary}
    sets = {e.group: e.group_own for e in passages if e.redundant}
    # What is owed to a member is owed to its set too: it counts once.
    more = [own - sum(alone.get(j, 0.0) for j in group) for group, own in sets.items()]
    owed = sum(alone.values()) + sum(max(0.0, own) for own in more)
    return bool(alone or sets) and owed >= plan.carried * whole.gain


def counts(effect: float, own: float, whole: Whole, plan: Plan) -> bool:
    """Whether a passage's necessity counts, and what the statement owes to it alone."""
    return min(effect, own) > plan.threshold(whole.gain)


def strength(context_effect: float, plan: Plan) -> str:
    """How much the context does, in either direction."""
    size = abs(context_effect)
    return "strong" if size > plan.strong else "moderate" if size > plan.tau else "weak"
