"""The classes of items: what each is, built in a world of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from experiments.rag_audit.contexts import Draft, Fact, Thing, World, capital
from experiments.rag_audit.items import ALL, ANY, NONE, SINGLE, Claim, Item
from experiments.rag_audit.kinds import KINDS
from experiments.rag_audit.memory import KNOWN

UNSUPPORTED = "unsupported"
MEMORY = "not distinguishable from parametric memory"
NUMBERS = ("count", "number", "date", "year")


@dataclass(frozen=True)
class Shape:
    """What an item of a class is to be like. n: passages. near: distractors share the answer's
    entities and relation. form: of the answer, "full", "rephrased" or "short". number: which of
    its class it is; decides the variant."""

    n: int
    near: bool
    form: str
    number: int

    @property
    def rephrased(self) -> bool:
        return self.form == "rephrased"


def cited_and_used(world: World, shape: Shape) -> Item:
    fact = _subject(world, shape)
    drafts = [_source(world, fact, shape), *_distractors(world, [fact], shape, shape.n - 1)]
    item = _item(world, fact, drafts, shape)
    item.claims = [_claim(fact, shape, (0,), (0,))]
    return item


def used_but_uncited(world: World, shape: Shape) -> Item:
    item = cited_and_used(world, shape)
    item.claims = [_with(item.claims[0], cited=())]
    return item


def cited_but_unused(world: World, shape: Shape) -> Item:
    """The citation is wrong; in every third item the right one is there as well."""
    item = cited_and_used(world, shape)
    wrong = world.rng.randrange(1, len(item.drafts))
    both = shape.number % 3 == 2
    item.claims = [_with(item.claims[0], cited=(0, wrong) if both else (wrong,))]
    item.variant = f"{item.drafts[wrong].about} cited" + (", source too" if both else "")
    return item


def redundant(world: World, shape: Shape) -> Item:
    """The source twice: the same text under another title, or other words."""
    fact = _subject(world, shape)
    first = _source(world, fact, shape)
    copied = shape.number % 2 == 0
    second = world.retitled(first, fact.thing) if copied else _source(world, fact, shape)
    drafts = [first, second, *_distractors(world, [fact], shape, shape.n - 2)]
    item = _item(world, fact, drafts, shape)
    both = shape.number // 2 % 2 == 0
    item.claims = [_claim(fact, shape, (0, 1), (0, 1) if both else (0,), ANY)]
    how = "copied" if copied else "in other words"
    item.variant = f"{how}, {'both' if both else 'one'} cited"
    return item


def two_passages(world: World, shape: Shape) -> Item:
    """One statement that joins the facts of two passages, or goes from one to the other."""
    first, second, variant = (_two_facts, _two_things, _two_hops)[shape.number % 3](world)
    drafts = [_source(world, fact, shape) for fact in (first, second)]
    drafts += _distractors(world, [first, second], shape, shape.n - 2)
    later = first.thing == second.thing
    question = _asked([(first, False), (second, later)])
    if variant == "two hops":
        inner = f"{first.relation.phrase.replace('{e}', first.thing.name)}"
        question = capital(second.relation.question.replace("{e}", inner))
    joined = _lower(second, later or variant == "two hops", shape)
    text = f"{_said(first, shape)[:-1]}, and {joined}"
    item = Item(question, drafts, [], [*_features(shape, first, second), "two passages"], variant)
    both = shape.number // 3 % 2 == 0
    item.variant += ", both cited" if both else ", one cited"
    cited = (0, 1) if both else (world.rng.randrange(2),)
    item.claims = [Claim(text, (0, 1), cited, ALL, first.value.words + second.value.words)]
    return item


def several_statements(world: World, shape: Shape) -> Item:
    """A statement a passage: of one thing or of several; each cited rightly, wrongly or not."""
    n_claims = 2 + shape.number % 2
    if shape.number % 4 < 2:
        thing = world.thing(world.kind())
        facts = [world.fact(thing) for _ in range(n_claims)]
    else:
        facts = [_subject(world)]
        facts += [
            world.fact(world.thing(facts[0].thing.kind), facts[0].relation)
            for _ in range(n_claims - 1)
        ]
    drafts = [_source(world, fact, shape) for fact in facts]
    drafts += _distractors(world, facts, shape, shape.n - n_claims)
    laters = [i > 0 and fact.thing == facts[0].thing for i, fact in enumerate(facts)]
    claims = []
    for i, fact in enumerate(facts):
        wrong = world.rng.choice([d for d in range(len(drafts)) if d != i])
        cited = ((i,), (), (wrong,))[(shape.number // 2 + i) % 3]
        claims.append(_claim(fact, shape, (i,), cited, later=laters[i]))
    features = [*_features(shape, *facts), "several statements"]
    variant = "one thing" if laters[-1] else "several things"
    return Item(_asked(list(zip(facts, laters, strict=True))), drafts, claims, features, variant)


def parametric(world: World, shape: Shape) -> Item:
    """Known without passages; in every other item one of them says it too."""
    known = KNOWN[shape.number % len(KNOWN)]
    stated = shape.number // 2 % 2 == 0
    drafts = [Draft(known.title, known.stating, "source")] if stated else []
    if shape.near:
        if not stated:
            drafts.append(Draft(known.title, known.near, "same thing"))
        others = [other for other in KNOWN if other.family == known.family and other != known]
        others = world.rng.sample(others, min(2, len(others)))
        drafts += [Draft(other.title, other.stating, "same relation") for other in others]
    while len(drafts) < shape.n:
        drafts.append(world.off_topic())
    cited: tuple[int, ...] = ()
    if shape.number % 2 == 0:
        cited = (0,) if stated else (world.rng.randrange(shape.n),)
    text = known.answer
    claim = Claim(text, (0,) if stated else (), cited, SINGLE if stated else NONE, (known.value,))
    variant = f"{'stated' if stated else 'not stated'}, {'cited' if cited else 'uncited'}"
    near = any(draft.about in ("same thing", "same relation") for draft in drafts)
    features = ["near distractors"] if near else []
    return Item(known.question, drafts, [_with(claim, verdict=MEMORY)], features, variant)


def unsupported(world: World, shape: Shape) -> Item:
    """No passage says it."""
    fact = _subject(world, shape)
    item = _item(world, fact, _distractors(world, [fact], shape, shape.n), shape)
    cited = (world.rng.randrange(shape.n),) if shape.number % 2 == 0 else ()
    claim = _claim(fact, shape, (), cited, NONE)
    item.claims = [_with(claim, verdict=UNSUPPORTED)]
    item.variant = "cited" if cited else "uncited"
    return item


CLASSES = {
    "cited and used": (cited_and_used, 4),
    "used but uncited": (used_but_uncited, 4),
    "cited but unused": (cited_but_unused, 5),
    "redundant support": (redundant, 4),
    "two passages": (two_passages, 4),
    "several statements": (several_statements, 4),
    "parametric memory": (parametric, 3),
    "unsupported": (unsupported, 3),
}
"""Builders, and their shares of a set."""


# --- pieces of them -------------------------------------------------------------------------------


def _subject(world: World, shape: Shape | None = None) -> Fact:
    """What is asked about. A number alone is so odd an answer to a small model, with and without
    its source, that short answers are names and lists."""
    thing = world.thing(world.kind())
    if shape is None or shape.form != "short":
        return world.fact(thing)
    relations = [relation for relation in thing.kind.relations if relation.value not in NUMBERS]
    return world.fact(thing, world.rng.choice(relations))


def _source(world: World, fact: Fact, shape: Shape) -> Draft:
    return world.passage(fact, "source")


def _distractors(world: World, facts: list[Fact], shape: Shape, n: int) -> list[Draft]:
    """Off-topic passages, or ones that share entities and relation with the answer: the same
    relation of another thing, another fact of the same thing, a passage that only mentions it."""
    drafts: list[Draft] = []
    kinds = [fact.thing.kind.name for fact in facts]
    if shape.near:
        for i in range(n - (n > 4)):
            fact = facts[i % len(facts)]
            makers = [_same_relation, _same_thing, _same_relation, _mention]
            if any(fact.thing.name == other.value.written for other in facts):
                makers = [_same_relation]  # the others would name the thing, an answer of two hops
            drafts.append(makers[(i // len(facts) + shape.number) % len(makers)](world, fact))
    while len(drafts) < n:
        drafts.append(world.off_topic(*kinds))
    return drafts


def _same_relation(world: World, fact: Fact) -> Draft:
    other = world.thing(fact.thing.kind)
    return world.passage(world.fact(other, fact.relation), "same relation")


def _same_thing(world: World, fact: Fact) -> Draft:
    said = {name for thing, name in world.facts if thing == fact.thing.name}
    if len(said) == len(fact.thing.kind.relations):
        return _same_relation(world, fact)
    return world.passage(world.fact(fact.thing), "same thing")


def _mention(world: World, fact: Fact) -> Draft:
    if fact.relation.mention in world.said:
        return _same_relation(world, fact)
    return world.mention(fact)


def _item(world: World, fact: Fact, drafts: list[Draft], shape: Shape) -> Item:
    return Item(_asked([(fact, False)]), drafts, [], _features(shape, fact))


def _features(shape: Shape, *facts: Fact) -> list[str]:
    features = ["near distractors"] if shape.near else []
    if shape.rephrased:
        features.append("rephrased")
        if any(fact.value.reworded != fact.value.written for fact in facts):
            features.append("reworded value")
    if shape.form == "short":
        features.append("short answer")
    return features


def _claim(
    fact: Fact,
    shape: Shape,
    sources: tuple[int, ...],
    cited: tuple[int, ...],
    role: str = SINGLE,
    *,
    later: bool = False,
) -> Claim:
    return Claim(_said(fact, shape, later=later), sources, cited, role, fact.value.words)


def _with(claim: Claim, **changes: Any) -> Claim:
    return replace(claim, **changes)


def _said(fact: Fact, shape: Shape, *, later: bool = False) -> str:
    if shape.form == "short":
        return f"{capital(fact.value.written)}."
    texts = fact.relation.rephrased if shape.rephrased else fact.relation.answers
    text = texts[shape.number % len(texts)]
    return fact.say(text, later=later, reworded=shape.rephrased)


def _lower(fact: Fact, later: bool, shape: Shape) -> str:
    """A fact as the second half of a sentence."""
    text = _said(fact, shape, later=later)
    name = fact.thing.noun if later else fact.thing.name
    for start in (name, fact.value.written, fact.value.reworded):
        if text.lower().startswith(start.lower()):
            return start[0] + text[1:]  # a proper name keeps its capital, "the" has none
    return text[0].lower() + text[1:]


def _asked(facts: list[tuple[Fact, bool]]) -> str:
    """One question for all of them."""
    questions = []
    for fact, later in facts:
        name = fact.thing.noun if later else fact.thing.name
        questions.append(fact.relation.question.replace("{e}", name)[:-1])
    rest = [question[0].lower() + question[1:] for question in questions[1:]]
    if not rest:
        return f"{questions[0]}?"
    return f"{', '.join([questions[0], *rest[:-1]])}, and {rest[-1]}?"


def _two_facts(world: World) -> tuple[Fact, Fact, str]:
    thing = world.thing(world.kind())
    return world.fact(thing), world.fact(thing), "two facts"


def _two_things(world: World) -> tuple[Fact, Fact, str]:
    first = _subject(world)
    return first, world.fact(world.thing(first.thing.kind), first.relation), "two things"


def _two_hops(world: World) -> tuple[Fact, Fact, str]:
    """The founder of a museum, and where that person was born."""
    links = [(kind, r) for kind in KINDS for r in kind.relations if r.leads_to]
    kind, relation = world.rng.choice(links)
    first = world.fact(world.thing(kind), relation)
    other = next(kind for kind in KINDS if kind.name == relation.leads_to)
    bridge: Thing = world.thing(other, first.value.written)
    if other.name == "town":  # a town isn't called "the town" by an answer that has just named it
        bridge = Thing(other, bridge.name, bridge.name)
    return first, world.fact(bridge), "two hops"
