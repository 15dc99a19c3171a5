"""Earlier statements as players, against whole runs of texts written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechattr.audit.earlier import earlier_effects
from mechattr.audit.plan import Plan
from mechattr.audit.question import Question
from mechattr.audit.reading import read
from mechattr.audit.records import Record
from tests.audit import small
from tests.audit.small import BLOCKS, prompt, record

NAME = "llama-bridge"
CHAT = pytest.mark.parametrize("chat", [False, True])

SENTENCES = ("Mary went to the park.", "John sat on the mat.", "Tom slept.")


def question(answer: str, *, chat: bool) -> Question:
    (one,) = read([record(answer=answer)])
    assert isinstance(one, Record), one
    return Question.of(small.model(NAME, chat=chat), one, Plan())


def worth(text: str, last: str, blocks: tuple[str, ...], chat: bool) -> float:
    """log p of the end of a text after a prompt; a token is of it that has a letter of it first."""
    answer = ("" if chat else " ") + text
    logs, spans = small.token_log_probs(NAME, prompt(blocks, chat=chat), answer, chat=chat)
    shown = [answer[a:b] for a, b in spans]
    firsts = [b - len(part.lstrip()) for (_, b), part in zip(spans, shown, strict=True)]
    begins = len(answer) - len(last)
    mine = [i for i, part in enumerate(shown) if part.strip() and firsts[i] >= begins]
    return float(logs[torch.tensor(mine)].sum())


@CHAT
@pytest.mark.parametrize("between", [" ", "\n"])
def test_earlier_statements_as_players(chat, between):
    """What is the first begins as an answer does: the reference strips what comes before it."""
    found, spent = earlier_effects(question(between.join(SENTENCES), chat=chat))
    assert [entry["sid"] for entry in found] == ["s2", "s3"]

    def v(s: int, earlier: tuple[int, ...], blocks: tuple[str, ...] = BLOCKS) -> float:
        return worth(between.join(SENTENCES[r] for r in (*earlier, s)), SENTENCES[s], blocks, chat)

    for s, entry in enumerate(found, 1):
        before = tuple(range(s))
        alone = v(s, ())
        assert entry["context_effect_without"] == pytest.approx(alone - v(s, (), ()), abs=1e-9)
        assert [r["sid"] for r in entry["statements"]] == [f"s{r + 1}" for r in before]
        for r, numbers in zip(before, entry["statements"], strict=True):
            rest = tuple(i for i in before if i != r)
            assert abs(numbers["necessity"]) > 1e-3
            assert numbers["necessity"] == pytest.approx(v(s, before) - v(s, rest), abs=1e-9)
            assert numbers["sufficiency"] == pytest.approx(v(s, (r,)) - alone, abs=1e-9)
    # Every mask once: for the second {0}, {}, {} without passages; for the third three more.
    assert sum(known.n_forwards for known in spent) == 3 + 5
    # Where a first statement has the tokens of one that follows, one game does.
    assert len(spent) == (2 if not chat and between == " " else 4)


def test_what_stands_between_statements_goes_with_the_one_before():
    answer = "Mary slept. and then John sat. Tom played."
    spans = [(0, 11), (21, 30), (31, 42)]
    given = record(
        answer=answer,
        statements=[{"sid": f"x{i}", "start": a, "end": b} for i, (a, b) in enumerate(spans)],
    )
    (one,) = read([given])
    assert isinstance(one, Record), one
    found, _ = earlier_effects(Question.of(small.model(NAME, chat=True), one, Plan()))
    parts = ("Mary slept. and then", " John sat.", " Tom played.")

    def v(*there: int) -> float:
        return worth("".join(parts[r] for r in there).lstrip(), "Tom played.", BLOCKS, chat=True)

    necessity = [r["necessity"] for r in found[1]["statements"]]
    expected = [v(0, 1, 2) - v(1, 2), v(0, 1, 2) - v(0, 2)]
    np.testing.assert_allclose(necessity, expected, atol=1e-9, rtol=0)
    assert np.abs(expected).min() > 1e-3


def test_one_statement_has_none_before_it():
    assert earlier_effects(question("John sat on the mat.", chat=True)) == ([], [])
