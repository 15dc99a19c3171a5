"""A set of questions about invented facts, each answer's sources known by construction.

A seed and a number make the same bytes everywhere: nothing depends on hashes or on time.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from experiments.rag_audit.checks import problems
from experiments.rag_audit.classes import CLASSES, Shape
from experiments.rag_audit.contexts import World
from experiments.rag_audit.items import Item, Layout, record

N_PASSAGES = (6, 6, 6, 6, 4, 6, 6, 6, 6, 8)
FORMS = ("rephrased", "full", "short", "rephrased", "full")
MARKS = ("inside", "inside", "after", "field")
NEAR = (True, True, False)
TRIES = 200


def generate(n: int = 240, seed: int = 0) -> Iterator[dict[str, Any]]:
    """n items of all classes by their shares, in an order of the seed's.

    Raises RuntimeError should an item not come out as it must in many tries: a bug in the texts.
    """
    plan = [(cls, number) for cls, count in shares(n).items() for number in range(count)]
    random.Random(f"{seed}/order").shuffle(plan)
    places = _Places(random.Random(f"{seed}/places"))
    for i, (cls, number) in enumerate(plan):
        rng = random.Random(f"{seed}/{cls}/{number}")
        shape = shape_of(cls, number)
        item = built(cls, shape, seed)
        n_sources = len({source for claim in item.claims for source in claim.sources})
        spots = places.draw(n_sources, shape.n)
        layout = Layout.draw(rng, spots, shape.n, MARKS[(number + number // 4) % len(MARKS)])
        yield record(item, f"q{i + 1:04d}", cls, seed, layout)


def shares(n: int) -> dict[str, int]:
    """Items a class, by largest remainders."""
    total = sum(share for _, share in CLASSES.values())
    exact = {cls: n * share / total for cls, (_, share) in CLASSES.items()}
    counts = {cls: int(x) for cls, x in exact.items()}
    short = sorted(exact, key=lambda cls: counts[cls] - exact[cls])[: n - sum(counts.values())]
    return {cls: count + (cls in short) for cls, count in counts.items()}


def shape_of(cls: str, number: int) -> Shape:
    """What the number-th of a class is to be like: all combinations come in turn."""
    n = N_PASSAGES[(number + len(cls)) % len(N_PASSAGES)]
    form = FORMS[number % len(FORMS)]
    if form == "short" and cls in ("two passages", "several statements"):
        form = "full"
    return Shape(n, NEAR[(number + number // 3) % len(NEAR)], form, number)


def built(cls: str, shape: Shape, seed: int) -> Item:
    """An item that has no problems, the first of its tries."""
    found: list[str] = []
    for attempt in range(TRIES):
        rng = random.Random(f"{seed}/{cls}/{shape.number}/{attempt}")
        try:
            item = CLASSES[cls][0](World(rng), shape)
        except LookupError as error:
            found = [str(error)]
            continue
        found = problems(item)
        if not found:
            return item
    raise RuntimeError(f"No item of class {cls!r} {shape} in {TRIES} tries: {'; '.join(found)}")


class _Places:
    """Positions of sources, each as often as the others."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.left: dict[tuple[int, int], list[tuple[int, ...]]] = {}

    def draw(self, n_sources: int, n: int) -> tuple[int, ...]:
        left = self.left.setdefault((n_sources, n), [])
        if not left:
            left += list(itertools.permutations(range(n), n_sources))
            self.rng.shuffle(left)
        return left.pop()


def write(records: Iterable[dict[str, Any]], path: str | Path) -> int:
    """JSONL, one item a line; how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for made in records:
            file.write(json.dumps(made, ensure_ascii=False) + "\n")
            count += 1
    return count
