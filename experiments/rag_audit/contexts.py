"""A question's invented world, and passages about it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from experiments.rag_audit.kinds import KINDS, Kind, Relation
from experiments.rag_audit.names import Names
from experiments.rag_audit.values import Value, Values

SIDE_FACTS = 0.3
"""How many of a passage's other sentences state something, too."""
_TITLES = ("About {e}", "More on {e}", "Notes on {e}", "{e}: questions and answers")


@dataclass(frozen=True)
class Thing:
    """name: in full. noun: what it is called once it is introduced ("the ship", a surname)."""

    kind: Kind
    name: str
    noun: str


@dataclass(frozen=True)
class Fact:
    thing: Thing
    relation: Relation
    value: Value

    def say(self, text: str, *, later: bool = False, reworded: bool = False) -> str:
        """A template filled in. later: the thing was introduced before."""
        value = self.value.reworded if reworded else self.value.written
        name = self.thing.noun if later else self.thing.name
        return capital(text.replace("{e}", name).replace("{v}", value))


@dataclass(frozen=True)
class Draft:
    """A passage that has no place yet. about: how it stands to the answer, for the reader of the
    set: "source", "same relation", "same thing", "mention", "off topic" and so on."""

    title: str
    text: str
    about: str


@dataclass
class World:
    """Things, facts and what was said of them. A thing has one value for a relation."""

    rng: random.Random
    names: Names = field(init=False)
    values: Values = field(init=False)
    facts: dict[tuple[str, str], Fact] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = Names(self.rng)
        self.values = Values(self.rng, self.names)

    def kind(self, *without: str) -> Kind:
        return self.rng.choice([kind for kind in KINDS if kind.name not in without])

    def thing(self, kind: Kind, name: str | None = None) -> Thing:
        if kind.name == "person":
            name = name or self.names.person()
            return Thing(kind, name, name.split()[-1])
        if name is None:
            shape = self.rng.choice(kind.names)
            name = shape.replace("{n}", self.names.place())
        return Thing(kind, name, kind.noun)

    def fact(self, thing: Thing, relation: Relation | None = None) -> Fact:
        """The thing's fact; without a relation, of one that has none yet."""
        if relation is None:
            free = [r for r in thing.kind.relations if (thing.name, r.name) not in self.facts]
            relation = self.rng.choice(free)
        key = thing.name, relation.name
        if key not in self.facts:
            self.facts[key] = Fact(thing, relation, self.values.draw(relation.value))
        return self.facts[key]

    # --- passages ---------------------------------------------------------------------------------

    def passage(self, fact: Fact, about: str, wordings: tuple[str, ...] = ()) -> Draft:
        """States the fact and one or two other things. wordings: those to choose from."""
        wording = self._new(wordings or fact.relation.wordings)
        return self._around(fact.thing, fact, wording, about)

    def mention(self, fact: Fact) -> Draft:
        """About the thing and the relation, without the value."""
        self.said.add(fact.relation.mention)
        return self._around(fact.thing, fact, fact.relation.mention, "mention")

    def off_topic(self, *without: str) -> Draft:
        """About another kind of thing."""
        return self.passage(self.fact(self.thing(self.kind(*without))), "off topic")

    def _around(self, thing: Thing, fact: Fact, wording: str, about: str) -> Draft:
        n_sides = 2 if len(wording.split()) < 9 or self.rng.random() < 0.3 else 1
        sentences = [self._side(thing, fact) for _ in range(n_sides)]
        sentences.insert(self.rng.randrange(n_sides + 1), (fact, wording))
        said = []
        for place, (of, sentence) in enumerate(sentences):
            later = place > 0 and (sentence != wording or self.rng.random() < 0.5)
            said.append(of.say(sentence, later=later))
        return Draft(self._title(thing), " ".join(said), about)

    def _title(self, thing: Thing) -> str:
        own, general = (
            tuple(capital(title.replace("{e}", thing.name)) for title in titles)
            for titles in (thing.kind.titles, _TITLES)
        )
        return self._new(own if set(own) - self.said else general)

    def _side(self, thing: Thing, fact: Fact) -> tuple[Fact, str]:
        """A sentence besides the fact: another fact now and then, of a relation that nothing else
        in the question states of the thing."""
        free = [r for r in thing.kind.relations if (thing.name, r.name) not in self.facts]
        if self.rng.random() < SIDE_FACTS and len(free) > 1:
            other = self.fact(thing, self.rng.choice(free))
            return other, self._new(other.relation.wordings)
        return fact, self._new(thing.kind.sides)

    def retitled(self, draft: Draft, thing: Thing) -> Draft:
        """The same text under another title."""
        return Draft(self._title(thing), draft.text, draft.about)

    def _new(self, texts: tuple[str, ...]) -> str:
        """One that wasn't used in this question, while there are such."""
        fresh = [text for text in texts if text not in self.said] or list(texts)
        text = self.rng.choice(fresh)
        self.said.add(text)
        return text


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
