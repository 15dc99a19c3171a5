"""Made-up reports of audits, of the shape that an audit gives its pictures: nothing is measured."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
HEBREW = "הספרייה הלאומית נוסדה בשנת 1892 בירושלים"
STRANGE = f"{EVIL} </script> <!-- \u2028 \u202e 🙂 \ud83d & 'x' \x00"
VERDICTS = (
    "supported", "cited and used", "cited but unused", "used but uncited", "redundant support",
    "not distinguishable from parametric memory", "unsupported", "inconclusive",
)  # fmt: skip
STORY = (
    "The archive of Velmora was moved to the old mill in 1893 after a flood had reached its cellar "
    "and the keepers feared for the maps"
)
WORDS = STORY.split()

PLACES = {"cited and used": 0, "supported": 0, "cited but unused": 1, "used but uncited": 2}

RULES = {
    "tau": 0.6931, "strong": 2.303, "share": 0.1, "carried": 0.5, "part": 0.25,
    "memory": -0.6931, "alpha": 0.05, "control": "p",
}  # fmt: skip
"""Thresholds, as ``Audit.report`` tells them."""


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words)).capitalize() + "."


def tokens_of(answer: str, spans: list[tuple[str, int, int]], rng: np.random.Generator) -> list:
    """Words as tokens, all but the citation marks."""
    found = []
    for sid, start, end in spans:
        for match in re.finditer(r"\s*(?:\[\d+\]|\w+|[^\w\s])", answer[start:end]):
            if match[0].strip() in ("[1]", "[2]"):
                continue
            full = -float(rng.exponential(0.5))
            found.append(
                {"text": match[0], "start": start + match.start(), "end": start + match.end(),
                 "sid": sid, "logp_full": full, "logp_none": full - float(rng.normal(1, 1.5))}
            )  # fmt: skip
    return found


def passage_line(verdict: str, j: int, pid: str, rng: np.random.Generator) -> dict[str, Any]:
    """Passage j's numbers for a statement of a verdict: its source is the one PLACES names."""
    source = PLACES.get(verdict, -1) == j and verdict != "cited but unused"
    cited = (verdict in ("cited and used", "supported") and j == 0) or (
        verdict == "cited but unused" and j == 1
    )
    centre = float(rng.uniform(1.5, 6)) if source else float(rng.normal(0, 0.15))
    own = (
        verdict if source or (cited and verdict == "cited but unused")
        else "redundant support" if verdict == "redundant support" and j < 2 else "not used"
    )  # fmt: skip
    shared = 4.0 if own == "redundant support" else 0.0
    return {
        "pid": pid, "cited": cited, "necessity": centre, "sufficiency": centre * 1.1 + shared,
        "surrogate": centre * 0.9 + shared / 2, "ci95": [centre * 0.9 - 0.4, centre * 0.9 + 0.5],
        "decisive": 0.8 * centre if source else 0.0,
        "p": 0.002 if source else float(rng.uniform()), "q": 0.011 if source else 0.6,
        "used": source, "verdict": own,
    }  # fmt: skip


def per_word(one: dict[str, Any], seed: int = 0) -> None:
    """Give a question's lines their tokens, and each passage's effects on each of them: they add
    up to the passage's on the statement."""
    rng = np.random.default_rng(seed)
    for line in one["statements"]:
        own = [token for token in one["tokens"] if token["sid"] == line["sid"]]
        line["tokens"] = [{k: v for k, v in token.items() if k != "sid"} for token in own]
        others = [told["passages"] for told in line.get("operators", {}).values()]
        for score in [*line["passages"], *(score for told in others for score in told)]:
            for what in ("necessity", "sufficiency"):
                parts = rng.dirichlet(np.full(len(own), 0.4)) if own else np.zeros(0)
                score[f"token_{what}"] = (parts * score.get(what, 1.0)).tolist()


def statement_line(
    name: str, number: int, span: tuple[int, int], answer: str, verdict: str, pids: list[str],
    rng: np.random.Generator, second: bool,
) -> dict[str, Any]:  # fmt: skip
    effect = 4.2 if verdict not in VERDICTS[5:] else 0.2
    passages = [passage_line(verdict, j, pid, rng) for j, pid in enumerate(pids)]
    line = {
        "id": name, "sid": f"s{number}", "start": span[0], "end": span[1],
        "text": answer[span[0] : span[1]], "n_tokens": 12, "logp_full": -3.1,
        "logp_none": -3.1 - effect, "context_effect": effect, "verdict": verdict,
        "strength": "strong" if effect > 2.3 else "weak", "operator": "remove", "n_forwards": 40,
        "warnings": ["Only 3 of the statement's tokens are scored."] if number == 2 else [],
        "passages": passages,
    }  # fmt: skip
    if second:
        other = [
            {"pid": p["pid"], "necessity": p["necessity"] * 0.4, "surrogate": 0.1,
             "verdict": "not used" if j == 0 else p["verdict"]}
            for j, p in enumerate(passages)
        ]  # fmt: skip
        said = "inconclusive" if number == 1 else verdict
        line["operators"] = {
            "mask": {"context_effect": effect / 2, "verdict": said, "passages": other}
        }
    return line


def question(
    number: int, verdicts: tuple[str, ...], *, passages: int = 4, length: int = 60,
    second: bool = False, strange: str = "", highlights: bool = True, words: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """One question. strange: put into every text that a user gives. words: False as older runs
    wrote it, without effects on single words."""
    rng = np.random.default_rng(number)
    name = f"q{number}{strange}"
    pids = [f"doc-{number}-{j}{strange}" for j in range(passages)]
    shown = [
        {"pid": pid, "title": f"Archive note {j + 1}{strange}" if j % 3 else "",
         "text": strange + text(rng, length), "n_tokens": length}
        for j, pid in enumerate(pids)
    ]  # fmt: skip
    answer, spans = "", []
    for i, verdict in enumerate(verdicts, start=1):
        mark = {"cited and used": " [1]", "supported": " [1]", "cited but unused": " [2]"}
        start = len(answer)
        answer += strange + text(rng, 12)[:-1] + mark.get(verdict, "") + "."
        spans.append((f"s{i}", start, len(answer)))
        answer += " "
    statements = [
        statement_line(name, i, (a, b), answer, verdict, pids, rng, second)
        for i, ((_, a, b), verdict) in enumerate(zip(spans, verdicts, strict=True), start=1)
    ]
    lit = []
    if highlights and verdicts and shown:
        body = str(shown[0]["text"])
        marks = [m.span() for m in re.finditer(r"\s*\S+", body)]
        lit = [
            {"sid": "s1", "pid": pids[0], "method": "attribution_patching",
             "tokens": [{"text": body[a:b], "start": a, "end": b, "score": float(rng.normal())}
                        for a, b in marks]}
        ]  # fmt: skip
    made: dict[str, Any] = {
        "id": name, "question": f"Where is the archive of Velmora kept, part {number}?{strange}",
        "answer": answer, "generated": number % 2 == 0, "gold_pids": pids[:1],
        "warnings": [f"A citation of an unknown passage: 'x9'{strange}"] * (number == 3),
        "passages": shown, "tokens": tokens_of(answer, spans, rng), "statements": statements,
        "highlights": lit,
    }  # fmt: skip
    if words:
        per_word(made, number)
    return made


def report(questions: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A whole report, its rates counted from the questions."""
    lines = [line for one in questions for line in one["statements"]]
    told = [p for line in lines for p in line["passages"]]
    rates = []
    for of, parts in (
        ("statements", lines), ("citations", [p for p in told if p["cited"]]),
        ("passages", [p for p in told if not p["cited"]]),
    ):  # fmt: skip
        for verdict in dict.fromkeys(str(part["verdict"]) for part in parts):
            count, total = sum(p["verdict"] == verdict for p in parts), len(parts)
            rate, margin = (
                count / total,
                1.96 * (count / total * (1 - count / total) / total) ** 0.5,
            )
            rates.append(
                {"of": of, "verdict": verdict, "count": count, "total": total, "rate": rate,
                 "low": max(0.0, rate - margin), "high": min(1.0, rate + margin)}
            )  # fmt: skip
    return {
        "questions": questions,
        "summary": {
            "n_questions": len(questions), "n_statements": len(lines),
            "n_passages": sum(len(one["passages"]) for one in questions), "n_forwards": 12840,
            "seconds": 754.3, "operator": "remove", "rates": rates, "rules": dict(RULES),
            "null": {"n": 184, "kind": "pooled", "bands": [
                {"low": 0, "high": 128, "n": 90, "q95": 0.21},
                {"low": 128, "high": None, "n": 94, "q95": 0.34}]},
            "disagreement": {"operators": ["remove", "mask"], "statements": 9, "share": 0.12},
            "notes": ["The null is pooled over the run: p values are approximate."],
        },
        "manifest": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "12fd25f",
                     "template": "{passages}\n\nQuestion: {question}", "seed": 0,
                     "versions": {"mechattr": "0.5.0", "torch": "2.9.0"}},
        "problems": [{"line": 17, "id": "q17", "reason": "There are no passages."},
                     {"line": 40, "id": None, "reason": "Not valid UTF-8 at byte 212."}],
    } | changes  # fmt: skip


def usual() -> dict[str, Any]:
    """What a run looks like, and everything that is hard to show."""
    long = question(20, ("cited and used", "inconclusive"), length=5000)
    hebrew = question(21, ("cited and used",))
    hebrew |= {"question": "מתי נוסדה הספרייה?", "answer": f"{HEBREW} [1].", "tokens": [],
               "highlights": []}  # fmt: skip
    hebrew["statements"][0] |= {"start": 0, "end": len(hebrew["answer"])}
    hebrew["passages"][0] |= {"text": f"{HEBREW}. " * 4, "title": "הספרייה הלאומית"}
    nothing = question(22, ()) | {"answer": "", "tokens": []}
    return report(
        [question(i, VERDICTS[(i * 3) % 8 :][:3] or VERDICTS[:3]) for i in range(1, 14)]
        + [
            question(14, VERDICTS, passages=6, second=True),
            question(15, ("used but uncited", "cited but unused"), passages=20),
            question(16, ("unsupported",), passages=1),
            question(17, ("cited and used", "supported"), strange=STRANGE),
            question(18, ("redundant support", "redundant support", "a verdict of tomorrow")),
            question(19, ("supported",), highlights=False, words=False),
            long, hebrew, nothing,
        ]
    )  # fmt: skip
