"""What the rates over a run count: each passage of a statement once, whoever plays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechattr.audit import verdicts

_ONE_IS_ENOUGH = (verdicts.SUPPORTED, verdicts.USED, verdicts.UNCITED, verdicts.REDUNDANT)
"""What a passage is where any of its sentences is, the first that holds."""


def passage_verdicts(entries: Sequence[Mapping[str, Any]]) -> list[tuple[bool, str]]:
    """Of each passage of a statement, in order: whether it is cited, and the verdict on it.

    entries: "passages" of an output line: one a player, and several of a passage ("of") where its
        sentences play.
    A passage is supported, used or redundant where a sentence of it is, the first of these that
    holds; unused where all its sentences are shown to be; and inconclusive otherwise.
    """
    found: dict[str, list[str]] = {}
    cited: dict[str, bool] = {}
    for entry in entries:
        of = entry.get("of", entry["pid"])
        found.setdefault(of, []).append(entry["verdict"])
        cited[of] = entry["cited"]
    return [(cited[of], _together(own)) for of, own in found.items()]


def _together(own: Sequence[str]) -> str:
    for verdict in _ONE_IS_ENOUGH:
        if verdict in own:
            return verdict
    return own[0] if len(set(own)) == 1 else verdicts.INCONCLUSIVE
