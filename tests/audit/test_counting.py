"""What the rates count: passages, whoever plays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mechattr.audit import Audit, Plan, verdicts
from mechattr.audit.counting import passage_verdicts
from tests.audit.measured import nothing, question, source

PLAN = Plan(tau=0.7, share=0.1, carried=0.5)


def entry(of: str, number: int, verdict: str, cited: bool = True) -> dict[str, Any]:
    return {"pid": f"{of}#{number}", "of": of, "cited": cited, "verdict": verdict}


@pytest.mark.parametrize(
    ("sentences", "verdict"),
    [
        ((verdicts.UNUSED, verdicts.UNUSED), verdicts.UNUSED),
        ((verdicts.UNUSED, verdicts.INCONCLUSIVE), verdicts.INCONCLUSIVE),
        ((verdicts.UNUSED, verdicts.USED, verdicts.UNUSED), verdicts.USED),
        ((verdicts.INCONCLUSIVE, verdicts.REDUNDANT, verdicts.UNUSED), verdicts.REDUNDANT),
        ((verdicts.REDUNDANT, verdicts.USED), verdicts.USED),
        ((verdicts.REDUNDANT, verdicts.SUPPORTED), verdicts.SUPPORTED),
        ((verdicts.INCONCLUSIVE, verdicts.SUPPORTED), verdicts.SUPPORTED),
        ((verdicts.NOT_USED, verdicts.NOT_USED), verdicts.NOT_USED),
        ((verdicts.NOT_USED, verdicts.UNCITED), verdicts.UNCITED),
        ((verdicts.NOT_USED, verdicts.REDUNDANT), verdicts.REDUNDANT),
    ],
)
def test_sentences_are_one_passage(sentences, verdict):
    for order in itertools.permutations(sentences):
        entries = [entry("a", i, v) for i, v in enumerate(order, 1)]
        assert passage_verdicts(entries) == [(True, verdict)]


def test_passages_are_told_apart():
    entries = [
        entry("a", 1, verdicts.UNUSED),
        entry("a", 2, verdicts.UNUSED),
        entry("b", 1, verdicts.NOT_USED, cited=False),
        {"pid": "c", "cited": True, "verdict": verdicts.USED},
    ]
    expected = [(True, verdicts.UNUSED), (False, verdicts.NOT_USED), (True, verdicts.USED)]
    assert passage_verdicts(entries) == expected


# --- in an audit ----------------------------------------------------------------------------------


def by_sentence(name: str, *values: Any, cited: str, **more: Any) -> dict[str, Any]:
    """A question of passages a and b, of two sentences each; every statement cites some of them."""
    made = question(name, values, **more)
    for passage, (of, i) in zip(made["passages"], itertools.product("ab", (1, 2)), strict=True):
        passage |= {"pid": f"{of}#{i}", "of": of}
    for statement in made["statements"]:
        statement["cited"] = list(cited)
    return made


@pytest.fixture(scope="module")
def audit() -> Audit:
    """a is used by its first sentence, the second is redundant with nothing, b is shown unused."""
    return Audit.of(
        [
            by_sentence("q1", source(0), cited="ab"),
            by_sentence("q2", source(2), source(1), cited="a"),
            by_sentence("q3", nothing, cited=""),
        ],
        [],
        PLAN,
        {},
    )


def test_rates_of_citations_count_passages(audit):
    found = {(r["of"], r["verdict"]): (r["count"], r["total"]) for r in audit.rates if r["count"]}
    assert found["citations", verdicts.USED] == (2, 4)
    assert found["citations", verdicts.UNUSED] == (2, 4)
    assert found["passages", verdicts.UNCITED] == (1, 4)
    assert found["passages", verdicts.NOT_USED] == (3, 4)
    assert audit.report["summary"]["n_passages"] == 6


def test_lines_keep_every_sentence_and_say_what_it_is_of(audit):
    told = [[(p["pid"], p["of"], p["cited"]) for p in line["passages"]] for line in audit.lines]
    assert told[0] == [
        ("a#1", "a", True), ("a#2", "a", True), ("b#1", "b", True), ("b#2", "b", True)]  # fmt: skip
    assert [p["verdict"] for p in audit.lines[0]["passages"]] == [
        verdicts.USED, *[verdicts.UNUSED] * 3]  # fmt: skip
    frame = audit.to_frame()
    assert frame["of"].tolist() == list("aabb") * 4
    whole = Audit.of([question("q", [source(0)], cited=[[0]])], [], PLAN, {})
    assert all("of" not in entry for entry in whole.lines[0]["passages"])


def test_a_page_finds_questions_by_the_verdict_on_a_passage(audit):
    from mechattr.display.audit_data import verdicts as shown

    first = shown(audit.report["questions"][0])
    assert first == [verdicts.USED, verdicts.UNUSED]
    second = shown(audit.report["questions"][1])
    # The first statement cites what it doesn't use; the second uses a, by one of its sentences.
    assert second == [verdicts.UNUSED, verdicts.USED]
    alone = Audit.of([by_sentence("q", source(0), cited="a")], [], PLAN, {})
    assert shown(alone.report["questions"][0]) == [verdicts.USED]
