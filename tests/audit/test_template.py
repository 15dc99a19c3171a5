"""A record's prompt in pieces: texts written out by hand, and the tokenizer's own chat template."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import Environment

from mechattr.audit.reading import read
from mechattr.audit.records import Record
from mechattr.audit.template import TEMPLATE, Framed, block, frame
from mechattr.errors import InputError
from tests.audit.small import BLOCKS, CHAT, PASSAGES, QUESTION, prompt, record

TEXTS = tuple(passage["text"] for passage in PASSAGES)


class Tokenizer:
    """No more of a tokenizer than a prompt's text takes."""

    def __init__(self, chat_template: str | None = None):
        self.chat_template = chat_template

    def apply_chat_template(self, messages: Any, **how: Any) -> str:
        assert how == {"tokenize": False, "add_generation_prompt": True}
        assert self.chat_template is not None
        environment = Environment(keep_trailing_newline=True)
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(self.chat_template)
        return template.render(messages=messages, add_generation_prompt=True)


def _refuse(text: str) -> None:
    raise ValueError(text)


PLAIN, CHATTY = Tokenizer(), Tokenizer(CHAT)
TOKENIZERS = pytest.mark.parametrize("tokenizer", [PLAIN, CHATTY], ids=["plain", "chat"])


def one(**changes: Any) -> Record:
    (found,) = read([record(**changes)])
    assert isinstance(found, Record), found
    return found


def framed(tokenizer: Any = PLAIN, of_run: str | None = None, **changes: Any) -> Framed:
    return frame(tokenizer, one(**changes), of_run)


def text(found: Framed, without: Any = (), texts: Any = None) -> str:
    """The prompt, some passages left out."""
    blocks = found.blocks if texts is None else texts
    return "".join(
        part if isinstance(part, str) else blocks[part] * (part not in without)
        for part in found.parts
    )


# --- the default, and templates -------------------------------------------------------------------


@TOKENIZERS
def test_the_default_prompt(tokenizer):
    found = framed(tokenizer)
    chat = tokenizer is CHATTY
    assert found.blocks == BLOCKS
    assert text(found) == prompt(BLOCKS, chat=chat)
    assert text(found, [1]) == prompt((BLOCKS[0], BLOCKS[2]), chat=chat)
    assert text(found, [0, 1, 2]) == prompt((), chat=chat)
    assert found.template == ("chat" if chat else "plain")
    assert found.lead == ("" if chat else " ")
    assert not text(found, [0, 1, 2]).count("\n\n\n")


def test_blocks():
    assert block(2, "Tea", "It is hot.") == "\n\n[2] Tea\nIt is hot."
    assert block(12, "", "It is hot.") == "\n\n[12] It is hot."
    assert TEMPLATE.format(passages="", question="Q?") == (
        "Answer the question using the passages.\n\nQuestion: Q?"
    )


@TOKENIZERS
@pytest.mark.parametrize("whose", ["run", "record"])
def test_a_template(tokenizer, whose):
    mine = "Notes: {passages}\nAsk {question}; {question}"
    given = {"template": mine} if whose == "record" else {}
    found = framed(tokenizer, mine if whose == "run" else None, **given)
    body = f"Notes:{''.join(BLOCKS)}\nAsk {QUESTION}; {QUESTION}"
    expected = f"{body}\n\nAnswer:" if tokenizer is PLAIN else f"[user]\n{body}\n[assistant]\n"
    assert text(found) == expected


def test_a_records_template_goes_before_the_runs():
    assert text(framed(PLAIN, "One {passages}", template="Two {passages}")).startswith("Two\n\n[1]")


@pytest.mark.parametrize("template", ["no place {question}", "{passages} and {passages}"])
def test_a_run_template_without_one_place_for_the_passages(template):
    with pytest.raises(InputError, match=r"must have \{passages\} in it, once; it has it [02]"):
        framed(PLAIN, template)


def test_what_is_in_the_texts_is_no_place():
    """Braces in a passage or a question are text."""
    odd = "What is {passages}, {question} and {0}?"
    passages = [{"text": "It says {question} and {passages}."}, {"text": "{}"}]
    found = framed(PLAIN, question=odd, passages=passages, answer="No.")
    assert text(found) == (
        "Answer the question using the passages.\n\n[1] It says {question} and {passages}.\n\n"
        f"[2] {{}}\n\nQuestion: {odd}\n\nAnswer:"
    )


def test_a_template_that_trims_leaves_the_passages_whole():
    trims = "{% for m in messages %}<{{ m['content'] | trim }}>{% endfor %}"
    found = framed(Tokenizer(trims), "{passages}\n\n{question}\n")
    assert text(found) == f"<{''.join(BLOCKS)}\n\n{QUESTION}>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only user and assistant') }}", "refuses these messages .only user"),
        ("{{ messages[0]['role'] }}", "doesn't repeat every passage once"),
        ("{{ messages[0]['content'] * 2 }}", "doesn't repeat every passage once"),
        ("{{ messages[0]['content'][:42] }}", "doesn't repeat every passage once"),
    ],
)
def test_chat_templates_that_wont_do(template, message):
    with pytest.raises(InputError, match=message):
        framed(Tokenizer(template))


# --- messages -------------------------------------------------------------------------------------


SYSTEM = {"role": "system", "content": "Be short. {question}"}


@TOKENIZERS
def test_messages_with_a_place(tokenizer):
    messages = [SYSTEM, {"role": "user", "content": "Read: {passages}\n\n{question}"}]
    found = framed(tokenizer, "not {passages} this", messages=messages)
    bodies = [f"Be short. {QUESTION}", f"Read:{''.join(BLOCKS)}\n\n{QUESTION}"]
    if tokenizer is PLAIN:
        assert text(found) == "\n\n".join(bodies) + "\n\nAnswer:"
    else:
        assert text(found) == f"[system]\n{bodies[0]}\n[user]\n{bodies[1]}\n[assistant]\n"


VERBATIM = [
    {"role": "system", "content": f"Doc one: {TEXTS[2]}\nMore below."},
    {"role": "user", "content": f"<doc>\n{TEXTS[0]}\n</doc>{TEXTS[1]}\n\n{QUESTION}"},
]


@TOKENIZERS
def test_passages_found_verbatim_in_messages(tokenizer):
    found = framed(tokenizer, messages=VERBATIM)
    whole = [message["content"] for message in VERBATIM]
    if tokenizer is PLAIN:
        assert text(found) == "\n\n".join(whole) + "\n\nAnswer:"
    else:
        assert text(found) == f"[system]\n{whole[0]}\n[user]\n{whole[1]}\n[assistant]\n"
    assert found.blocks == (f"\n{TEXTS[0]}", TEXTS[1], f" {TEXTS[2]}")
    assert [part for part in found.parts if isinstance(part, int)] == [2, 0, 1]
    for i, (separator, other) in enumerate([("\n", "Other."), ("", "Other."), (" ", "Other.")]):
        assert found.render[i]("Title", other) == separator + other
    assert "<doc>\n</doc>" in text(found, [0])


def test_titles_in_messages_stay():
    """What is absent is the passage's text; whatever a pipeline wrote around it is always there."""
    content = f"[1] A\n{TEXTS[0]}\n[2] John\n{TEXTS[1]}\n[3] C\n{TEXTS[2]}"
    found = framed(messages=[{"role": "user", "content": content}])
    assert text(found, [0, 1, 2]) == "[1] A\n[2] John\n[3] C\n\nAnswer:"


def test_blanks_around_a_passage_dont_hide_it():
    passages = [{"text": f" \n{TEXTS[0]} "}, {"text": f"{TEXTS[1]}\n"}, {"text": TEXTS[2]}]
    for messages in (VERBATIM, None):
        given = one(messages=messages, passages=passages, answer="No.")
        found = frame(PLAIN, given)
        pieces = found.sentences(given.passages)
        assert "".join(p if isinstance(p, str) else p.text for p in pieces) == text(found)
        own = {p.name: p.coords["text"] for p in pieces if not isinstance(p, str)}
        assert own == {
            "1#1": TEXTS[0],
            "2#1": "John sat on the mat.",
            "2#2": "Anna played in the park.",
            "3#1": TEXTS[2],
        }


def test_passages_with_the_same_text_are_taken_in_order():
    passages = [{"text": TEXTS[0]}, {"text": TEXTS[2]}, {"text": TEXTS[0]}]
    content = f"A: {TEXTS[0]} B: {TEXTS[0]} C: {TEXTS[2]}"
    found = framed(messages=[{"role": "user", "content": content}], passages=passages, answer="No.")
    assert [part for part in found.parts if isinstance(part, int)] == [0, 2, 1]
    assert text(found, [0]) == f"A: B: {TEXTS[0]} C: {TEXTS[2]}\n\nAnswer:"


def test_a_passage_that_stands_in_another_too():
    passages = [{"text": "Tom slept."}, {"text": "Anna was there. Tom slept. He was good."}]
    content = "One: Tom slept. Two: Anna was there. Tom slept. He was good."
    found = framed(messages=[{"role": "user", "content": content}], passages=passages, answer="No.")
    assert found.blocks == (" Tom slept.", " Anna was there. Tom slept. He was good.")
    assert text(found, [0]) == "One: Two: Anna was there. Tom slept. He was good.\n\nAnswer:"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{TEXTS[0]} {TEXTS[1]}", "'c' is found 0 times in the messages; expected its text once"),
        (f"{TEXTS[0]} {TEXTS[1]} {TEXTS[2]} {TEXTS[2]}", "'c' is found 2 times"),
    ],
)
def test_passages_that_arent_in_the_messages_once(content, message):
    with pytest.raises(InputError, match=message):
        framed(messages=[{"role": "user", "content": content}])


def test_two_places_in_messages():
    messages = [{"role": "user", "content": "{passages}"}] * 2
    with pytest.raises(InputError, match="Two of the messages"):
        framed(messages=messages)


# --- pieces ---------------------------------------------------------------------------------------


def test_pieces_are_the_blocks_by_their_pids():
    given = one()
    pieces = frame(PLAIN, given).pieces(given.passages)
    named = [(p.name, p.text, p.kind) for p in pieces if not isinstance(p, str)]
    assert named == [(pid, own, "passage") for pid, own in zip("abc", BLOCKS, strict=True)]
    assert "".join(p if isinstance(p, str) else p.text for p in pieces) == prompt(BLOCKS)


@TOKENIZERS
def test_sentences_are_the_prompt_cut_up(tokenizer):
    passages = [
        {"pid": "x", "title": "Tea. Or not", "text": "Tea is hot.  It is wet!\nTea, that is."},
        {"pid": "y", "text": "No stop at all"},
        {"pid": "z", "text": "---"},
    ]
    given = one(passages=passages, answer="No.")
    found = frame(tokenizer, given)
    pieces = [p for p in found.sentences(given.passages) if not isinstance(p, str)]
    assert [p.name for p in pieces] == ["x#1", "x#2", "x#3", "y#1", "z#1"]
    assert [p.text for p in pieces[:4]] == [
        "\n\n[1] Tea. Or not\nTea is hot.",
        "  It is wet!",
        "\nTea, that is.",
        "\n\n[2] No stop at all",
    ]
    assert [p.coords["text"] for p in pieces] == [
        "Tea is hot.", "It is wet!", "Tea, that is.", "No stop at all", "---"]  # fmt: skip
    assert [p.coords["sentence"] for p in pieces] == [1, 2, 3, 1, 1]
    assert {p.kind for p in pieces} == {"sentence"}
