"""Generated answers are scored as the model wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from mechattr.audit import Plan, question, read
from mechattr.audit.generating import Generated, generate
from mechattr.audit.question import Question
from mechattr.audit.records import Record
from tests.audit import small
from tests.audit.small import record
from tests.audit.test_running import MODEL, audit
from tests.transformer.tiny import tiny_tokenizer

OTHER_TOKENS = "The tokenizer makes other tokens of the generated answer"


def written(
    monkeypatch, text: str, *, chat: bool, tokens: Any = None, ended: bool = True, most: int = 64
) -> Any:
    """A question that the model answers so."""
    model = small.model(MODEL, chat=chat)
    if tokens is None:
        tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    made = Generated(torch.tensor(tokens), text, ended)
    monkeypatch.setattr(question, "generate", lambda *_, **__: made)
    (one,) = read([record(answer=None)])
    assert isinstance(one, Record), one
    return Question.of(model, one, Plan(max_new_tokens=most)), made


@pytest.mark.parametrize(
    ("chat", "text", "answer"),
    [
        (False, " John sat. Tom slept.", "John sat. Tom slept."),
        (False, "John sat. Tom slept.", "John sat. Tom slept."),
        (False, "\nJohn sat. Tom slept.", "\nJohn sat. Tom slept."),
        (False, "  John sat. Tom slept.", " John sat. Tom slept."),
        (True, "John sat. Tom slept.", "John sat. Tom slept."),
        (True, " John sat. Tom slept.", " John sat. Tom slept."),
        (True, "\n\nJohn sat. Tom slept.", "\n\nJohn sat. Tom slept."),
        (True, "John sat. Tom slept. \n", "John sat. Tom slept."),
    ],
)
def test_the_models_own_tokens_are_scored(monkeypatch, chat, text, answer):
    """Whatever it begins with; a lead of the template's only where the model wrote it."""
    asked, made = written(monkeypatch, text, chat=chat)
    game = asked.game("remove")
    assert game.answer.tokens.tolist() == made.tokens.tolist()[: len(game.answer.tokens)]
    assert game.answer.text == text.rstrip()
    assert asked.answer.answer == answer
    assert game.answer.statement_texts == ("John sat.", "Tom slept.")
    given = [answer[s.start : s.end] for s in asked.answer.statements]
    assert given == ["John sat.", "Tom slept."]
    assert asked.answer.warnings == ()
    expected, _ = small.token_log_probs(
        MODEL, small.prompt(small.BLOCKS, chat=chat), text.rstrip(), chat=chat
    )
    found = game.token_log_probs(torch.ones(1, 3))
    np.testing.assert_allclose(found[0], expected, atol=1e-9, rtol=0)


def test_other_tokens_than_the_model_wrote_are_told(monkeypatch):
    tokenizer = small.model(MODEL).tokenizer
    text = " John sat."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    letters = tokenizer.convert_tokens_to_ids(["Ġ", "s", "a", "t", "."])
    assert tokenizer.decode([ids[0], *letters]) == text
    asked, _ = written(monkeypatch, text, chat=False, tokens=[ids[0], *letters])
    (warning,) = asked.answer.warnings
    assert warning.startswith(OTHER_TOKENS)
    assert asked.game("remove").answer.tokens.tolist() == ids
    own, _ = written(monkeypatch, text, chat=False)
    assert own.answer.warnings == ()


def test_blanks_at_the_end_stay_where_the_last_token_has_them():
    """As with tokenizers for which a full stop and a line break are one."""
    tokenizer = tiny_tokenizer((".Ċ", "Ċ"))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    as_one = tokenizer(" a cat.\n", add_special_tokens=False)["input_ids"]
    in_two = tokenizer(" a cat.", add_special_tokens=False)["input_ids"]
    assert as_one[:-1] == in_two[:-1]
    in_two += tokenizer.convert_tokens_to_ids(["Ċ"])
    for tokens, text in ((as_one, " a cat.\n"), (in_two, " a cat.")):
        made = Generated(torch.tensor(tokens), " a cat.\n", True)
        assert question._as_generated(tokenizer, made) == (text, True)
    made = Generated(torch.tensor(as_one[:-2] + in_two[-2:]), " a bad cat.\n", True)
    assert question._as_generated(tokenizer, made) == (" a bad cat.\n", False)


def test_what_ended_an_answer_is_told(monkeypatch):
    text = " John sat on the mat"
    room = small.N_CTX - small.n_tokens(small.prompt(small.BLOCKS)) + 1
    for asked, why in ((room, "raise max_new_tokens"), (room + 1, "the context ends there")):
        found, _ = written(monkeypatch, text, chat=False, ended=False, most=asked)
        assert found.answer.warnings == (f"The answer was cut at 5 tokens; {why}.",)
    found, _ = written(monkeypatch, text, chat=False)
    assert found.answer.warnings == ()


def test_marks_are_cut_from_an_answer_that_was_cut_itself(monkeypatch):
    """What is where in the answer is known all the same."""
    text = " Mary slept [1]. John sat on the mat [2]. Tom"
    asked, _ = written(monkeypatch, text, chat=False, ended=False)
    (warning,) = asked.answer.warnings
    assert "was cut at" in warning
    scored = asked.answer.scored
    assert scored == "Mary slept. John sat on the mat. Tom"
    at = scored.index("John")
    start, end = asked.answer.as_given(at, at + 4)
    assert asked.answer.answer[start:end] == "John"
    assert [s.cited for s in asked.answer.statements] == [("a",), ("b",), ()]


# --- in a run -------------------------------------------------------------------------------------


def test_an_answer_that_the_model_gives():
    given = [record(id="g", answer=None), record(id="h")]
    found = audit(given, max_new_tokens=12)
    first = found.questions[0]
    assert first["generated"]
    assert not found.questions[1]["generated"]
    model = small.model(MODEL)
    tokens = model.tokenizer(small.prompt(small.BLOCKS), add_special_tokens=False)["input_ids"]
    made = generate(model, tokens, max_new_tokens=12)
    text = made.text.rstrip()
    assert text != made.text, "a line break at the end is a token of its own here"
    assert text in (first["answer"], " " + first["answer"])
    assert len(made.tokens) == 12
    assert any("was cut at 12 tokens; raise max_new_tokens" in w for w in first["warnings"])
    assert not any(w.startswith(OTHER_TOKENS) for w in first["warnings"])
    lines = [line for line in found.lines if line["id"] == "g"]
    assert [line["sid"] for line in lines] == [f"s{i + 1}" for i in range(len(lines))]
    expected, _ = small.token_log_probs(MODEL, small.prompt(small.BLOCKS), text)
    for line in lines:
        own = torch.tensor([token["sid"] == line["sid"] for token in first["tokens"]])
        assert line["n_tokens"] == int(own.sum())
        assert line["logp_full"] == pytest.approx(float(expected[own].sum()), abs=1e-6)


def test_a_generated_answer_depends_on_the_records_seed_where_it_is_drawn():
    def answers(**more: Any) -> list[str]:
        given = [record(id="x", answer=None, **more), record(id="y", answer=None, **more)]
        return [q["answer"] for q in audit(given, max_new_tokens=8, temperature=1.0).questions]

    first, second = answers()
    assert first == second
    assert answers(seed=5)[0] != first
    assert answers(seed=5) == answers(seed=5)


def test_a_model_that_says_nothing(monkeypatch):
    silent = generate(small.model(MODEL), [5, 6], max_new_tokens=1, stop_ids=range(200))
    for made in (silent, Generated(torch.tensor([3]), " \n", True)):
        monkeypatch.setattr(question, "generate", lambda *_, made=made, **__: made)
        (problem,) = audit([record(answer=None)]).problems
        assert (problem.line, problem.id) == (1, "q1")
        assert "The model's answer is empty: it ends its turn at once" in problem.reason
