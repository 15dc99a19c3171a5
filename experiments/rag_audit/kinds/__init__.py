"""Kinds of invented things and what passages say of them."""

from __future__ import annotations

from experiments.rag_audit.kinds.made import BRIDGE, COMPANY, INVENTION, SHIP
from experiments.rag_audit.kinds.people import PERSON, TOWN
from experiments.rag_audit.kinds.shared import Kind, Relation
from experiments.rag_audit.kinds.staged import FESTIVAL, MUSEUM, OPERA
from experiments.rag_audit.kinds.wild import ANIMAL, DISH, LAW

KINDS: tuple[Kind, ...] = (
    PERSON, TOWN, SHIP, BRIDGE, INVENTION, COMPANY, MUSEUM, FESTIVAL, OPERA, LAW, ANIMAL, DISH,
)  # fmt: skip

__all__ = ["KINDS", "Kind", "Relation"]
