"""An audit's report as the data of a page: what can't be JSON or UTF-8 mended, texts cut to fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mechattr.display.audit_words import LOOKS, look, rank

BUDGET = 60_000_000
"""Letters of passages that a page may hold; where there are more, long passages are cut."""

_OF_TOKENS = ("token_necessity", "token_sufficiency")

LEAST = 400
"""Letters that a cut leaves of any passage."""


def clean(value: Any) -> Any:
    """A value that JSON and UTF-8 can hold: no NaN, no half of a letter pair; numbers rounded."""
    if isinstance(value, str):
        return well_formed(value)
    if type(value) is float:  # most of a report
        return rounded(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, (dict, Mapping)):  # dict first: it is known at once
        return {well_formed(str(key)): clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(inner) for inner in value]
    if hasattr(value, "__float__"):
        return rounded(float(value))
    return well_formed(str(value))


def well_formed(text: str) -> str:
    """A lone surrogate, as ``"\\ud83d"`` in JSONL gives, can't be written as UTF-8; the
    replacement is one letter as well, so that every offset stays right."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "".join("�" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text


def rounded(value: float) -> float | None:
    """Five digits, at least to the fourth place: what a page shows is coarser."""
    if not math.isfinite(value):
        return None
    return float(f"{value:.5g}") if abs(value) < 1 else round(value, 4)


def thousandths(values: Sequence[Any]) -> list[float | int | None]:
    """Numbers of single tokens, of which a page has very many: three decimals, and 0 for 0.0."""
    told = [None if value is None else float(value) for value in values]
    return [None if x is None or not math.isfinite(x) else round(x, 3) or 0 for x in told]


def longest_passage(questions: Sequence[Mapping[str, Any]], budget: int) -> int:
    """Letters that each passage may have, so that all together stay within the budget."""
    sizes = sorted(len(p["text"]) for question in questions for p in question["passages"])
    left = budget
    for i, size in enumerate(sizes):
        even = left // (len(sizes) - i)
        if size > even:  # from here on all are longer than their even share
            return max(even, LEAST)
        left -= size
    return max(sizes, default=LEAST)


def packed(question: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """One question as the page's script reads it. Offsets are in letters (code points).

    A token is its start and end, its two log p and the number of its statement.
    """
    tokens = question.get("tokens") or []
    number = {line["sid"]: k for k, line in enumerate(question["statements"])}
    return {
        "id": clean(question["id"]),
        "question": clean(question["question"]),
        "answer": clean(question["answer"]),
        "generated": bool(question.get("generated")),
        "gold": clean(question.get("gold_pids") or []),
        "warnings": clean(question.get("warnings") or []),
        "passages": [_passage(passage, longest) for passage in question["passages"]],
        "tokens": [
            [
                *(t["start"], t["end"]),
                *thousandths([t.get("logp_full"), t.get("logp_none")]),
                number.get(t.get("sid")),
            ]
            for t in tokens
        ],
        "statements": [
            _statement(line, sum(t.get("sid") == line["sid"] for t in tokens))
            for line in question["statements"]
        ],
        "highlights": [
            {
                "sid": clean(one["sid"]),
                "pid": clean(one["pid"]),
                "method": clean(one["method"]),
                "note": clean(one.get("note")),
                "tokens": [
                    [t["start"], t["end"], clean(t["score"])]
                    for t in one["tokens"]
                    if t["start"] < longest
                ],
            }
            for one in question.get("highlights") or []
        ],
    }


def _passage(passage: Mapping[str, Any], longest: int) -> dict[str, Any]:
    text = clean(passage["text"])
    made = {
        "pid": clean(passage["pid"]),
        "title": clean(passage.get("title") or ""),
        "text": text[:longest],
        "n": clean(passage.get("n_tokens")),
        "of": clean(passage.get("of", passage["pid"])),
    }
    return made | {"letters": len(text)} if len(text) > longest else made


def _statement(line: Mapping[str, Any], n_tokens: int) -> dict[str, Any]:
    """A statement of ``n_tokens`` tokens as the script reads it."""
    # The text is in the answer, the id and the tokens in the question.
    kept = {key: value for key, value in line.items() if key not in ("id", "text", "tokens")}
    passages = [_score(entry, n_tokens) for entry in kept.pop("passages")]
    if kept.get("operators"):  # words are shown by the first operator only
        kept["operators"] = {
            name: {**told, "passages": [_score(one, 0) for one in told.get("passages") or []]}
            for name, told in kept["operators"].items()
        }
    return clean(kept) | {"passages": passages}


def _score(entry: Mapping[str, Any], n_tokens: int) -> dict[str, Any]:
    """A passage's numbers for a statement; those of single tokens where there is one for each."""
    made = {key: clean(value) for key, value in entry.items() if key not in _OF_TOKENS}
    for key in _OF_TOKENS:
        values = entry.get(key)
        if n_tokens and values is not None and len(values) == n_tokens:
            made[key] = thousandths(values)
    return made


def verdicts(question: Mapping[str, Any]) -> list[str]:
    """Those that a filter finds the question by: its statements', and its citations'."""
    found = [str(line["verdict"]) for line in question["statements"]]
    # Where sentences play, a citation is of the passage, and what it comes to is told.
    told = question.get("citations")
    if told is None:
        entries = [entry for line in question["statements"] for entry in line["passages"]]
        told = [p["verdict"] for p in entries if p.get("cited") and "verdict" in p]
    return list(dict.fromkeys([*found, *map(str, told)]))


def alarm(question: Mapping[str, Any]) -> tuple[int, ...]:
    """Sorts the most alarming question first: by how many statements have the worst verdict, then
    the next."""
    counts = [0] * (len(LOOKS) + 1)
    for line in question["statements"]:
        counts[rank(line["verdict"])] += 1
    return tuple(-count for count in counts)


def looks_of(questions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The looks of the known verdicts and of every other that occurs, for the script."""
    names = [one.verdict for one in LOOKS]
    for question in questions:
        for line in question["statements"]:
            others = line.get("operators") or {}
            for told in (line, *line["passages"], *others.values()):
                names.append(str(told.get("verdict", names[0])))
    return [
        {"name": clean(name), "slug": one.slug, "sign": one.sign, "short": clean(one.short),
         "sentence": one.sentence}
        for name, one in ((name, look(name)) for name in dict.fromkeys(names))
    ]  # fmt: skip
