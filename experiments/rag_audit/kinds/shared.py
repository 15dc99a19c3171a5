"""What a kind of things is: its names, its relations, the sentences that say them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A fact that a passage can state of a thing.

    In every text ``{e}`` is the thing and ``{v}`` the value.
    value: the kind of value, see ``values.py``.
    wordings: sentences of passages. question, answers: plain ones.
    rephrased: answers that reuse few words of the wordings.
    mention: a sentence about the thing and the relation that doesn't give the value.
    phrase: a noun phrase for a value that is a thing of its own: "the founder of {e}".
    leads_to: the kind of that thing.
    """

    name: str
    value: str
    wordings: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    rephrased: tuple[str, ...]
    mention: str
    phrase: str = ""
    leads_to: str = ""


@dataclass(frozen=True)
class Kind:
    """names: forms with ``{n}``, an invented name. noun: what it is called once it is introduced.
    titles: of passages about it, with ``{e}``. sides: sentences that state nothing one asks for."""

    name: str
    names: tuple[str, ...]
    noun: str
    titles: tuple[str, ...]
    relations: tuple[Relation, ...]
    sides: tuple[str, ...]

    def relation(self, name: str) -> Relation:
        return next(relation for relation in self.relations if relation.name == name)
