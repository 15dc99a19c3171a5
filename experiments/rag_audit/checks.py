"""What must hold of every item, whatever was drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from experiments.rag_audit.items import NONE, Claim, Item

_FUNCTION_WORDS = frozenset(
    (
        "a", "an", "and", "are", "as", "at", "be", "been", "by", "did", "do", "does", "for", "from",
        "had", "has", "have", "how", "in", "is", "it", "its", "no", "not", "of", "on", "or", "than",
        "that", "the", "then", "there", "this", "to", "was", "were", "what", "when", "where",
        "which", "who", "with",
    )
)  # fmt: skip
_ENDINGS = ("ings", "ing", "ied", "ies", "ed", "es", "s", "er", "or")


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.casefold())


def occurs(value: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


def leaks(item: Item) -> list[str]:
    """Where a value stands that it mustn't: in the question, in a passage that is no source."""
    found = []
    texts = [f"{draft.title}\n{draft.text}" for draft in item.drafts]
    for claim in item.claims:
        for value in claim.values:
            if occurs(value, item.question):
                found.append(f"{value!r} is in the question")
            for i, text in enumerate(texts):
                if i not in claim.sources and occurs(value, text):
                    found.append(f"{value!r} is in passage {i}, which is no source")
        found += _unstated(claim, texts)
    return found


def _unstated(claim: Claim, texts: Sequence[str]) -> list[str]:
    """Sources without the value: "needs all" has the values spread over them."""
    sources = [texts[source] for source in claim.sources]
    there = [[value for value in claim.values if occurs(value, text)] for text in sources]
    return [f"source {i} states no value" for i, found in enumerate(there) if not found]


def doubles(item: Item) -> list[str]:
    """Sentences that two passages share, unless the passages are copies."""
    seen: dict[str, int] = {}
    found = []
    texts = list(dict.fromkeys(draft.text for draft in item.drafts))
    for i, text in enumerate(texts):
        for sentence in re.split(r"(?<=[.?!]) ", text):
            if sentence in seen:
                found.append(f"{sentence!r} is in two passages")
            seen[sentence] = i
    titles = [draft.title for draft in item.drafts]
    return found + [f"two passages have the title {t!r}" for t in titles if titles.count(t) > 1]


def shared_words(answer: str, source: str, known: str) -> float:
    """The part of an answer's content words that a source has too; those of ``known`` (the
    question, the value) don't count. 0 without content words."""
    skip = {_stem(word) for word in words(known)}
    mine = {_stem(word) for word in words(answer) if word not in _FUNCTION_WORDS} - skip
    return len(mine & {_stem(word) for word in words(source)}) / len(mine) if mine else 0.0


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def too_literal(item: Item, most: float = 0.34) -> list[str]:
    """A rephrased answer that has more of its source's words than it should."""
    if "rephrased" not in item.features:
        return []
    found = []
    for claim in item.claims:
        for source in claim.sources:
            known = " ".join([item.question, *claim.values])
            share = shared_words(claim.text, item.drafts[source].text, known)
            if share > most:
                found.append(f"{claim.text!r} shares {share:.0%} of its words with its source")
    return found


def problems(item: Item) -> list[str]:
    return [*leaks(item), *doubles(item), *too_literal(item), *_lengths(item)]


def _lengths(item: Item) -> list[str]:
    counts = [len(draft.text.split()) for draft in item.drafts]
    return [f"a passage has {count} words" for count in counts if not 12 <= count <= 36]


def record_problems(record: dict[str, Any]) -> list[str]:
    """What is wrong with a written item's truth."""
    pids = [passage["pid"] for passage in record["passages"]]
    found = [f"{pid} comes twice" for pid in pids if pids.count(pid) > 1]
    for statement in record["truth"]["statements"]:
        if set(statement["passages"]) != set(pids):
            found.append("verdicts aren't one a passage")
        if not set(statement["sources"]) <= set(pids):
            found.append("a source is no passage")
        if bool(statement["sources"]) == (statement["role"] == NONE):
            found.append("role and sources disagree")
    return found
