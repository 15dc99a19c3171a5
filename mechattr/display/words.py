"""The sentences beside a picture: units, how to read the sign, one line of provenance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.players import Players

_UNITS = {
    "logit_diff": "logit difference",
    "logit": "logit",
    "log_prob": "log probability (nats)",
    "prob": "probability",
    "prob_diff": "probability difference",
    "kl": "KL divergence (nats)",
    "loss": "loss (nats)",
}


READING = "reading of one run, not an intervention"


def signed(attribution: Attribution) -> bool:
    """Whether scores share out the target; the others are magnitudes, in a unit of their own."""
    return bool(attribution.provenance.get("signed", True))


def is_reading(attribution: Attribution) -> bool:
    """Whether scores were read off one run: no player was removed."""
    return bool(attribution.provenance.get("reading", False))


def rules_of(attribution: Attribution) -> str:
    """The backward rules that gradients flowed under, by name; "" for the plain gradient."""
    rules = attribution.provenance.get("rules")
    return "" if rules is None else str(rules["name"])


def target_text(attribution: Attribution) -> str:
    """The target as its provenance names it."""
    return text(attribution.provenance.get("target", "value"))


def units(attribution: Attribution) -> str:
    """What a score is measured in: ``"logit difference"``."""
    if is_reading(attribution):
        return text(attribution.provenance.get("unit", "value"))
    name = target_text(attribution).partition("(")[0].strip().lower()
    unit = _UNITS.get(name, name.replace("_", " ") or "value")
    return unit if signed(attribution) else f"{unit} per unit of activation"


def how_to_read(attribution: Attribution) -> str:
    """One sentence on sign and scale."""
    unit = units(attribution)
    if is_reading(attribution):
        signs = "red is above 0 and blue below" if signed(attribution) else "it has no sign"
        return (
            f"A {READING}: what it finds in the clean run, in {unit} ({signs}). Nothing was "
            f"removed, so that it can't say what would happen without a player."
        )
    if not signed(attribution):
        return f"A score is a gradient's norm, in {unit}: its size counts, it has no sign."
    return (
        f"A positive score (red) means that the player's presence raises the target, a negative "
        f"one (blue) that it lowers it; scores are in units of the {unit}, and colours run "
        f"evenly from blue through white at exactly 0 to red."
    )


def gap_text(attribution: Attribution) -> str:
    """The completeness gap, also as a share of what there was to explain: ``"0.058, 0.50 %"``.

    "" for magnitudes and readings, which needn't sum to it.
    """
    if not signed(attribution) or is_reading(attribution):
        return ""
    gap, change = attribution.gap, attribution.full - attribution.empty
    total = float(np.mean(np.abs(change)))
    value = number(float(np.mean(gap)), digits=2)
    if total == 0:
        return value
    share = 100 * float(np.mean(np.abs(gap))) / total
    return f"{value}, {share:.2g} %" if share < 100 else f"{value}, {share:.0f} %"


def mean_text(values: Any) -> str:
    """One number, or the mean of several."""
    array = np.asarray(values, dtype=float)
    if array.size == 1:
        return number(float(array.reshape(-1)[0]), sign=False)
    return f"{number(float(array.mean()), sign=False)} (mean of {array.size})"


def number(value: float, *, sign: bool = True, digits: int = 4) -> str:
    """A score for people: signed, four significant digits, trailing zeros kept to line up."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    plus = "+" if sign else ""
    # Whole numbers of many digits stay whole: 2600, not 2.6e+03.
    form = ".0f" if 10**digits <= abs(value) < 1e7 else f"#.{digits}g"
    return f"{value:{plus}{form}}".rstrip(".").replace("-", "−")


_KINDS = {
    "token": ("token", "tokens"),
    "word": ("word", "words"),
    "sentence": ("sentence", "sentences"),
    "passage": ("passage", "passages"),
    "head": ("head", "heads"),
    "mlp": ("MLP", "MLPs"),
    "attention": ("attention layer", "attention layers"),
    "neuron": ("neuron", "neurons"),
    "query": ("query", "queries"),
    "key": ("key", "keys"),
    "value": ("value", "values"),
    "edge": ("edge", "edges"),
    "path": ("path", "paths"),
    "group": ("group", "groups"),
    "player": ("player", "players"),
}


_TEXT = ("token", "word", "sentence")
"""Kinds that are a position themselves."""


def players_text(players: Players) -> str:
    """``"14 tokens + 3,780 (head, position) pairs"``."""
    kinds = [str(kind) for kind in players.coords["kind"]]
    positions = players.coords.get("position", (None,) * len(kinds))
    parts = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        one, many = _KINDS.get(kind, (kind, f"× {kind}"))
        if kind not in _TEXT and positions[kinds.index(kind)] is not None:
            one, many = f"({one}, position) pair", f"({one}, position) pairs"
        parts.append(f"{count:,} {one if count == 1 else many}")
    return " + ".join(parts)


def provenance_line(attribution: Attribution) -> str:
    """Method, target, source, base, model and the values at both ends, on one line."""
    given = attribution.provenance
    parts = [f"method {attribution.method}", f"target {target_text(attribution)}"]
    parts += [READING] if is_reading(attribution) else []
    if rules := rules_of(attribution):
        parts.append(f"gradients under {rules}")
    parts += [f"{key} {text(given[key])}" for key in ("source", "base", "model") if given.get(key)]
    parts += [
        f"v(N) = {mean_text(attribution.full)}",
        f"v(∅) = {mean_text(attribution.empty)}",
    ]
    if gap := gap_text(attribution):
        parts.append(f"completeness gap {gap} of v(N) − v(∅)")
    return " · ".join(parts)


def text(value: Any) -> str:
    """A value of the provenance, or one that was asked for, in words."""
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
