"""Limits on an audit's rates: what they are read as, and when they are broken."""

from __future__ import annotations

import pytest

from mechattr.audit import Audit, Plan, Problem, verdicts
from mechattr.audit.failing import Limit
from mechattr.errors import InputError, UnknownNameError
from tests.audit.measured import question, source

PLAN = Plan(tau=0.7, share=0.1, carried=0.5)


@pytest.fixture(scope="module")
def audit() -> Audit:
    """Four statements, six citations: three used, two shown to be unused, one open; one record of
    five is a problem."""
    questions = [
        question("a", [source(0)], cited=[[0, 1]]),
        question("b", [source(0)], cited=[[1]]),
        question("c", [source(0)], cited=[[0]]),
        question("d", [source(1)], cited=[[1, 0]]),
    ]
    lone = dict(questions[3])
    lone["effects"] = [{**lone["effects"][0], "masks": ["1111"], "values": [[-10.0]]}]
    return Audit.of([*questions[:3], lone], [Problem(5, None, "?")], PLAN, {})


def test_what_the_rates_are(audit):
    found = {(r["of"], r["verdict"]): (r["count"], r["total"]) for r in audit.rates}
    assert found["citations", verdicts.USED] == (3, 6)
    assert found["citations", verdicts.UNUSED] == (2, 6)
    assert found["citations", verdicts.INCONCLUSIVE] == (1, 6)
    assert found["citations", verdicts.SUPPORTED] == (0, 6)
    assert found["statements", verdicts.UNUSED] == (1, 4)
    assert found["passages", verdicts.UNCITED] == (1, 10)


@pytest.mark.parametrize(
    ("text", "of", "verdict", "sign", "bound"),
    [
        ("cited-but-unused>0.1", "citations", verdicts.UNUSED, ">", 0.1),
        (" Cited-but-unused >= 10% ", "citations", verdicts.UNUSED, ">=", 0.1),
        ("supported<.9", "citations", verdicts.SUPPORTED, "<", 0.9),
        ("cited-and-used<=50%", "citations", verdicts.USED, "<=", 0.5),
        ("statements:cited-but-unused>0", "statements", verdicts.UNUSED, ">", 0),
        ("unsupported>5%", "statements", verdicts.UNSUPPORTED, ">", 0.05),
        ("redundant-support>0", "statements", verdicts.REDUNDANT, ">", 0),
        ("citations:redundant-support>0", "citations", verdicts.REDUNDANT, ">", 0),
        ("parametric-memory>0.2", "statements", verdicts.MEMORY, ">", 0.2),
        ("statements:memory>0.2", "statements", verdicts.MEMORY, ">", 0.2),
        ("passages:used-but-uncited>0", "passages", verdicts.UNCITED, ">", 0),
        ("problems>0", "", "problems", ">", 0),
    ],
)
def test_forms(text, of, verdict, sign, bound):
    found = Limit.parse(text)
    assert (found.of, found.verdict, found.sign) == (of, verdict, sign)
    assert found.bound == pytest.approx(bound)
    assert found.text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cited-but-unused", "Can't read the limit 'cited-but-unused'; expected such as"),
        ("cited-but-unused=0.1", "Can't read the limit"),
        ("cited but unused>0.1", "Can't read the limit"),
        ("unsupported>-1", "Can't read the limit"),
        ("unsupported>1.2.3", "'1.2.3' in the limit 'unsupported>1.2.3' isn't a number"),
        ("", "Can't read the limit ''"),
    ],
)
def test_what_cant_be_read(text, message):
    with pytest.raises(InputError, match=message):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cited-but-unsued>0.1", "'cited-but-unsued'. Did you mean cited-but-unused"),
        ("citation:supported>0", "kind of rate 'citation'. Did you mean citations"),
        ("not-used>0", "verdict on statements 'not-used'"),
        ("citations:unsupported>0", "verdict on citations 'unsupported'. Did you mean supported"),
        ("statements:problems>0", "verdict on statements 'problems'"),
    ],
)
def test_names_that_arent_there(text, message):
    with pytest.raises(UnknownNameError, match=message):
        Limit.parse(text)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("cited-but-unused>0.33", "cited but unused (citations): 0.333 of 6, which is > 0.33"),
        ("cited-but-unused>34%", None),
        ("cited-and-used<51%", "cited and used (citations): 0.5 of 6, which is < 0.51"),
        ("cited-and-used<50%", None),
        ("cited-and-used<=50%", "cited and used (citations): 0.5 of 6, which is <= 0.5"),
        ("statements:cited-but-unused>=0.25",
         "cited but unused (statements): 0.25 of 4, which is >= 0.25"),
        ("unsupported>0", None),
        ("problems>0", "records with problems: 0.2 of 5, which is > 0"),
        ("problems>20%", None),
    ],
)  # fmt: skip
def test_broken_limits(audit, text, broken):
    assert Limit.parse(text).broken(audit) == broken


def test_a_citation_is_of_a_passage_where_its_sentences_play():
    """One of four is used: the passage that was cited is."""
    measured = question("a", [source(0)])
    for i, passage in enumerate(measured["passages"], 1):
        passage |= {"pid": f"p#{i}", "of": "p"}
    measured["statements"][0]["cited"] = ["p"]
    audit = Audit.of([measured], [], PLAN, {})
    assert Limit.parse("cited-but-unused>0").broken(audit) is None
    assert Limit.parse("cited-and-used>=100%").broken(audit) == (
        "cited and used (citations): 1 of 1, which is >= 1"
    )


def test_a_rate_of_nothing_breaks_no_limit():
    nobody = Audit.of([question("a", [source(0)])], [], PLAN, {})
    assert Limit.parse("cited-and-used<1").broken(nobody) is None
    assert Limit.parse("used-but-uncited>0.9").broken(nobody) is not None
