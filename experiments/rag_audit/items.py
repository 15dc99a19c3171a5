"""An item: a record that an audit reads, and the truth about it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.rag_audit.contexts import Draft

SINGLE, ALL, ANY, NONE = "single", "needs all", "any of", "none"
"""How a statement stands to its sources: it has one; it joins facts of all of them; each of them
says it all; there is none."""


@dataclass(frozen=True)
class Claim:
    """A statement before its passages have places: drafts are named by their index.

    values: what the statement says, in all forms; must be in its sources alone.
    verdict: "" lets sources and citations decide.
    """

    text: str
    sources: tuple[int, ...]
    cited: tuple[int, ...]
    role: str
    values: tuple[str, ...]
    verdict: str = ""


@dataclass
class Item:
    """drafts: sources first. place: the sources' positions, from 0, in the drafts' order."""

    question: str
    drafts: list[Draft]
    claims: list[Claim]
    features: list[str] = field(default_factory=list)
    variant: str = ""


HARD = ("near distractors", "rephrased", "reworded value", "two passages", "several statements")


def record(item: Item, name: str, cls: str, seed: int, layout: Layout) -> dict[str, Any]:
    """What is written: the issue's input and ``truth``."""
    order = layout.order(len(item.drafts))
    pid = {draft: f"p{place + 1}" for place, draft in enumerate(order)}
    marked = [_marked(claim, pid, layout.marks) for claim in item.claims]
    answer = " ".join(marked)
    made: dict[str, Any] = {
        "id": name,
        "question": item.question,
        "passages": [
            {"pid": pid[d], "title": item.drafts[d].title, "text": item.drafts[d].text}
            for d in order
        ],
        "answer": answer,
    }
    if layout.marks == "field":
        starts = [sum(len(text) + 1 for text in marked[:i]) for i in range(len(marked))]
        made["statements"] = [
            {"sid": f"s{i + 1}", "start": start, "end": start + len(text)}
            for i, (start, text) in enumerate(zip(starts, marked, strict=True))
        ]
        made["citations"] = [
            {"sid": f"s{i + 1}", "pids": _pids(claim.cited, pid)}
            for i, claim in enumerate(item.claims)
            if claim.cited
        ]
    gold = {pid[source] for claim in item.claims for source in claim.sources}
    made["gold_pids"] = sorted(gold, key=_number)
    made["seed"] = seed
    made["truth"] = {
        "class": cls,
        "variant": item.variant,
        "hard": any(feature in HARD for feature in item.features),
        "features": item.features,
        "about": {pid[d]: item.drafts[d].about for d in order},
        "statements": [_truth(i, claim, pid) for i, claim in enumerate(item.claims)],
    }
    return made


@dataclass(frozen=True)
class Layout:
    """Where sources stand, and how citations are written: "inside" (before the full stop), "after"
    it, or "field" (the answer has no marks)."""

    places: tuple[int, ...]
    rest: tuple[int, ...]
    marks: str

    @classmethod
    def draw(cls, rng: random.Random, places: Sequence[int], n: int, marks: str) -> Layout:
        rest = [place for place in range(n) if place not in places]
        rng.shuffle(rest)
        return cls(tuple(places), tuple(rest), marks)

    def order(self, n: int) -> list[int]:
        """The draft at each position."""
        spots = [*self.places, *self.rest]
        assert sorted(spots) == list(range(n))
        return sorted(range(n), key=lambda draft: spots[draft])


def _marked(claim: Claim, pid: dict[int, str], style: str) -> str:
    numbers = [p.removeprefix("p") for p in _pids(claim.cited, pid)]
    if style == "field" or not numbers:
        return claim.text
    marks = "".join(f"[{number}]" for number in numbers)
    if style == "after":
        return f"{claim.text} {marks}"
    return f"{claim.text[:-1]} {marks}{claim.text[-1]}"


def _pids(drafts: Sequence[int], pid: dict[int, str]) -> list[str]:
    return sorted((pid[draft] for draft in drafts), key=_number)


def _number(pid: str) -> int:
    return int(pid.removeprefix("p"))


def _truth(i: int, claim: Claim, pid: dict[int, str]) -> dict[str, Any]:
    verdicts = {pid[draft]: passage_verdict(claim, draft) for draft in pid}
    return {
        "sid": f"s{i + 1}",
        "text": claim.text,
        "sources": _pids(claim.sources, pid),
        "cited": _pids(claim.cited, pid),
        "role": claim.role,
        "verdict": statement_verdict(claim),
        "passages": dict(sorted(verdicts.items(), key=lambda pair: _number(pair[0]))),
    }


def passage_verdict(claim: Claim, draft: int) -> str:
    """What the answer doesn't need, a passage that says what is known anyway too, is unused."""
    cited = draft in claim.cited
    if draft not in claim.sources or claim.verdict:
        return "cited but unused" if cited else "not used"
    if claim.role == ANY:
        return "redundant support"
    return "cited and used" if cited else "used but uncited"


def statement_verdict(claim: Claim) -> str:
    """A citation that is right makes "cited and used", whatever else is cited; citations that are
    all wrong "cited but unused"; none at all "used but uncited"."""
    if claim.verdict:
        return claim.verdict
    if claim.role == ANY:
        return "redundant support"
    if set(claim.cited) & set(claim.sources):
        return "cited and used"
    return "cited but unused" if claim.cited else "used but uncited"
