"""Answers in statements: sentences, citation marks, what is scored, and the map between."""

from __future__ import annotations

import random
import time

import pytest

from mechattr.audit.answering import Stated, stated
from mechattr.audit.records import Passage
from mechattr.audit.sentences import sentences
from mechattr.errors import InputError


def passages(*pids: str) -> list[Passage]:
    return [Passage(pid, f"Text of {pid}.") for pid in pids or ("1", "2", "3")]


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def given(made: Stated) -> list[str]:
    return [made.answer[s.start : s.end] for s in made.statements]


def scored(made: Stated) -> list[str]:
    return [made.scored[slice(*s.scored)] for s in made.statements]


def cited(made: Stated) -> list[tuple[str, ...]]:
    return [s.cited for s in made.statements]


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Ankara is the capital.|It lies inland.",
        "Dr. Smith met Mrs. Jones.|They spoke.",
        "It has fruit, e.g. Apples, i.e. food.|Yes.",
        "He lives in the U.S.|The town is small.",
        "He met the U.S. President.|She left.",
        "No. 5 won, see Fig. 3 and Vol. IV.|It did.",
        "No.|It isn't.|No.|I don't.",
        "J. K. Rowling and J. R. R. Tolkien wrote.|J. A. Smith read.",
        "Vitamin C.|Oranges have it.|At 20 °C.|Water.",
        "I can't.|Paris can.|Then 'tis.|Yes.",
        "It costs 3.14 euros, 1.000.000 in all.|Version 2.0.|Done.",
        "At 5 p.m.|The end.|On Jan. 5 Apple Inc. grew.",
        "Smith et al. (2019) say so.|Others don't.",
        '"Why?" she asked.|"Go!"|Then (he left.)|[Nobody came.]|So?!|Yes...',
        "Yahoo! is a firm.|iPad sales rose.|iPad sales fell.",
        "There are: 1. One thing.|2. Another.|3. More.",
        "In 1999.|The next.|Room 12.|It was.",
        "Am 3. Mai war es.|Dann nicht.",
        "it is blue.|it is red.",
        "It is blue.|5 are red.|«Oui.»|¿Qué?",
        "私は猫。|「はい。」と言った。|次！|終？",
        "यह है।|वह है।",
        "Great!|🎉 Thanks. 🎉",
        "See http://a.b/c.html?x=1. or ask Mr. X. about it.",
        "...",
    ],
)
def test_sentences_of_a_line(text: str) -> None:
    expected = text.split("|")
    joined = text.replace("|", "" if "私" in text else " ")
    assert split(joined) == expected


def test_lines_lists_and_headings_end_statements() -> None:
    text = (
        "# A heading\nThe reasons are:\r\n- one thing\n  * another. And more.\n\n1. First\n2) Next"
    )
    assert split(text) == [
        "# A heading",
        "The reasons are:",
        "- one thing",
        "* another.",
        "And more.",
        "1. First",
        "2) Next",
    ]


def test_what_has_no_letters_goes_with_its_neighbour() -> None:
    assert split("---\nOne.\n***\n```\nTwo.\n---\n") == ["---\nOne.\n***\n```", "Two.\n---"]
    assert split("--- !\n ?") == ["--- !\n ?"]
    assert split(" \n\t") == []


def test_sentences_cover_whatever_comes() -> None:
    rng = random.Random(0)
    parts = [
        "A",
        "b",
        "Dr.",
        "No. 5",
        ". ",
        "! ",
        "\n",
        " ",
        "…",
        "。",
        "「",
        "」",
        '"',
        ")",
        "- ",
        "🎉",
    ]
    many = 0
    for _ in range(500):
        text = "".join(rng.choices(parts, k=rng.randint(1, 30)))
        found = sentences(text)
        many += len(found) > 2
        ends = 0
        for start, end in found:
            assert ends <= start < end
            assert not text[ends:start].strip()
            assert text[start:end].strip() == text[start:end]
            ends = end
        assert not text[ends:].strip()
    assert many > 100


def test_long_texts_take_no_time() -> None:
    began = time.perf_counter()
    for text in ("A b [1]. " * 5000, ". " * 20000, "[" * 50000, "[1] " * 5000, "[1" + " " * 50000):
        stated("Begin. " + text, passages())
    assert time.perf_counter() - began < 10  # a rule that looks back to the beginning takes minutes


# --- marks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "left", "pids"),
    [
        ("Iron is hard [2].", "Iron is hard.", "2"),
        ("Iron is hard[2].", "Iron is hard.", "2"),
        ("Iron [1][3] is hard [1, 2].", "Iron is hard.", "132"),
        ("Iron [1], [3] and [2] is hard.", "Iron is hard.", "132"),
        ("Iron [1-3] is hard.", "Iron is hard.", "123"),
        ("Iron [2–3; 1] is hard.", "Iron is hard.", "231"),
        ("Iron is hard [^2].", "Iron is hard.", "2"),
        ("Iron is hard 【2†source】.", "Iron is hard.", "2"),
        ("Iron is hard [Passage 3] [doc 1].", "Iron is hard.", "31"),
        ("Iron is hard ([1], [2]).", "Iron is hard.", "12"),
        ("Iron is hard (see [3]).", "Iron is hard.", "3"),
        ("Iron is hard [[3]].", "Iron is hard.", "3"),
        ("Iron is hard<sup>[3]</sup>.", "Iron is hard.", "3"),
        ("Iron is hard [1](https://a.b/c).", "Iron is hard.", "1"),
        ("Iron is hard. Sources: [1], [3]", "Iron is hard.", "13"),
        ("Iron is hard. [3].", "Iron is hard.", "3"),
        ("Iron is hard.\n\n[3]\n", "Iron is hard.\n", "3"),
        ("[2] Iron is hard.", "Iron is hard.", "2"),
        ("[^2]: Iron is hard.", "Iron is hard.", "2"),
        ("- [2] Iron is hard", "- Iron is hard", "2"),
        (' "Iron [2]" is hard [3]!', ' "Iron" is hard!', "23"),
        ("東京は首都[2]。", "東京は首都。", "2"),
        (
            "Iron was found in 1999[1] and 2001 [2], too.",
            "Iron was found in 1999 and 2001, too.",
            "12",
        ),
    ],
)
def test_marks_are_understood_and_removed(answer: str, left: str, pids: str) -> None:
    made = stated(answer, passages())
    assert made.scored == left
    assert cited(made) == [tuple(pids)]
    assert made.warnings == ()
    assert made.answer == answer


@pytest.mark.parametrize(
    "answer",
    [
        "He wrote [sic] and [a] and [citation needed] and [...].",
        "Take x[0] and x[0][1], row_2[1] or items[1] = 3.",
        "Run `f[1]` and\n```\n[2] = 3\n```",
        "It was so [2019] and [1.5] and [3-1] and [].",
    ],
)
def test_brackets_that_are_no_citations_stay(answer: str) -> None:
    made = stated(answer, passages())
    assert made.scored == answer
    assert not any(cited(made))
    assert made.warnings == ()


def test_a_mark_after_the_stop_is_of_the_sentence_before() -> None:
    made = stated(
        "Iron is hard. [2] Gold is soft.[1][3]Lead is grey.\n[2]\nTin is not.", passages()
    )
    assert scored(made) == ["Iron is hard.", "Gold is soft.", "Lead is grey.", "Tin is not."]
    assert made.scored == "Iron is hard. Gold is soft. Lead is grey.\nTin is not."
    assert cited(made) == [("2",), ("1", "3"), ("2",), ()]
    assert given(made) == [
        "Iron is hard. [2]",
        "Gold is soft.[1][3]",
        "Lead is grey.\n[2]",
        "Tin is not.",
    ]


def test_a_mark_that_begins_a_line_is_of_what_follows() -> None:
    made = stated("Iron is hard.\n[2] Gold is soft. Lead [3].", passages())
    assert cited(made) == [(), ("2",), ("3",)]
    assert given(made)[1] == "[2] Gold is soft."
    # A whole line may be written so.
    leading = stated("[1] Iron is hard. [2] Gold is soft. [3] Lead is grey.", passages())
    assert cited(leading) == [("1",), ("2",), ("3",)]
    assert given(leading) == ["[1] Iron is hard.", "[2] Gold is soft.", "[3] Lead is grey."]


def test_names_cite_and_numbers_count_in_order() -> None:
    made = stated("One [doc7]. Two [Doc 9; 1]. Three [2].", passages("doc9", "doc7"))
    assert cited(made) == [("doc7",), ("doc9",), ("doc7",)]


def test_pids_that_are_numbers_win() -> None:
    made = stated("One is [2]. Two is [0]. Three is [3].", passages("0", "1", "2"))
    assert cited(made) == [("2",), ("0",), ()]
    assert "cites 3" in made.warnings[0]
    # Numbers of a database aren't what the prompt shows: [2] can only be the second.
    far = stated("One is [2]. Two is [8311].", passages("8311", "977"))
    assert cited(far) == [("977",), ("8311",)]
    assert far.warnings == ()
    zeros = stated("One is [2]. Two is [1-3].", passages("01", "02"))
    assert cited(zeros) == [("02",), ("01", "02")]


def test_numbers_in_another_order_are_warned_of_or_told() -> None:
    answer = "One is [2]. Two is [1] [Passage 1]."
    made = stated(answer, passages("2", "1"))
    assert cited(made) == [("2",), ("1",)]
    assert made.warnings == (
        "The marks' numbers are read as pids: 2 is passage 1 of 2. By order it would be '1'.",
    )
    told = stated(answer, passages("2", "1"), by_order=True)
    assert cited(told) == [("1",), ("2",)]
    assert told.warnings == ()


def test_a_range_is_no_name() -> None:
    made = stated("One [1-3]. Two [1 3].", passages("13", "b", "c"))
    assert cited(made) == [("13", "b", "c"), ("13", "c")]


def test_unknown_pids_are_a_warning() -> None:
    made = stated("Iron is hard [doc9]. Gold is soft [7, doc1].", passages("doc1", "doc2"))
    assert made.scored == "Iron is hard. Gold is soft."
    assert cited(made) == [(), ("doc1",)]
    first, second = made.warnings
    assert "'s1' cites doc9" in first
    assert "2 passages" in first
    assert "'s2' cites 7" in second


def test_doubtful_marks_are_warned_of() -> None:
    made = stated("According to [1], iron is hard. [0] it isn't.", passages())
    assert "is a word of the sentence" in made.warnings[0]
    assert any("Numbers count from 1" in warning for warning in made.warnings)


# --- the map --------------------------------------------------------------------------------------


def test_characters_map_both_ways() -> None:
    rng = random.Random(1)
    parts = [
        "Iron",
        " is",
        " [2]",
        "[1]",
        " ",
        ". ",
        ".",
        "\n",
        ", ",
        "([3])",
        "[a]",
        "x[0]",
        "東京",
        "。",
    ]
    cut = 0
    for _ in range(500):
        answer = "Tin " + "".join(rng.choices(parts, k=rng.randint(1, 25)))
        made = stated(answer, passages())
        cut += len(made.cuts) > 1
        blanks = {c.end - 1 for c in made.cuts if c.blank}
        removed = "".join(answer[c.start : c.end] for c in made.cuts)
        assert not set(removed) - set("[](),.。: and123\n"), removed
        for i, letter in enumerate(made.scored):
            start, end = made.as_given(i, i + 1)
            assert made.given(i) == start
            assert end == start + 1
            assert answer[start] == letter or (start in blanks and letter == " ")
            assert made.as_scored(start, end) == (i, i + 1)
        assert made.given(len(made.scored)) == len(answer)
        assert made.as_scored(0, len(answer)) == (0, len(made.scored))
        ends = 0
        for one in made.statements:
            assert ends <= one.start < one.end <= len(answer)
            assert not answer[ends : one.start].strip()
            ends = one.end
            low, high = made.as_scored(one.start, one.end)
            assert made.scored[low:high].strip() == made.scored[slice(*one.scored)] != ""
    assert cut > 100


# --- given statements and citations ---------------------------------------------------------------

ANSWER = "Iron is hard [2]. Gold is soft. [3]"


def test_statements_as_given_keep_their_places() -> None:
    spans = [{"sid": "b", "start": 18, "end": 31}, {"sid": 7, "start": 0, "end": 17}]
    made = stated(ANSWER, passages(), spans)
    assert [(s.sid, s.start, s.end) for s in made.statements] == [("7", 0, 17), ("b", 18, 31)]
    assert scored(made) == ["Iron is hard.", "Gold is soft."]
    assert cited(made) == [("2",), ("3",)]  # the mark right after a statement is its own
    part = stated(ANSWER, passages(), [{"start": 17, "end": 32, "text": ANSWER[17:32]}])
    assert part.statements[0].sid == "s1"
    assert scored(part) == ["Gold is soft."]
    assert "[2] at character 13 is of no statement" in part.warnings[0]


def test_a_statement_cut_before_its_mark_is_doubted() -> None:
    spans = [{"start": 0, "end": 13}, {"start": 14, "end": 32}]
    made = stated(
        "Iron is hard. [2] Gold is soft.", passages(), [spans[0], {"start": 14, "end": 31}]
    )
    assert cited(made) == [(), ("2",)]
    assert "'s2' begins with [2]" in made.warnings[0]


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ([{"sid": "a", "start": 0, "end": 99}], "lies outside the answer, which has 35 characters"),
        ([{"sid": "a", "start": -1, "end": 5}], "lies outside"),
        ([{"sid": "a", "start": 9, "end": 5}], "lies outside"),
        ([{"sid": "a", "start": 5, "end": 5}], "is empty"),
        ([{"sid": "a", "start": 17, "end": 18}], "is empty"),
        ([{"sid": "a", "start": 31, "end": 35}], "is empty but for citation marks: ' [3]'"),
        ([{"sid": "a", "start": 0, "end": 9}, {"sid": "b", "start": 8, "end": 12}], "overlap"),
        ([{"sid": "a", "start": 0, "end": 4}, {"sid": "a", "start": 5, "end": 7}], "the sid 'a'"),
        ([{"sid": "a", "start": 0, "end": 4, "text": "Gold"}], "has the text 'Gold', but"),
        ([{"sid": "a", "start": 0}], "The end of statement 'a' is missing"),
        ([{"sid": "a", "start": "0", "end": 3}], "The start of statement 'a' is '0'"),
        ([{"sid": ["a"], "start": 0, "end": 3}], "The sid of statement 1 is a list"),
        (["Iron is hard."], "Statement 1 is 'Iron is hard.'; expected a list of"),
        ([], "statements is empty"),
        ("Iron is hard.", "statements is a text"),
    ],
)
def test_bad_statements_say_why(statements: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        stated(ANSWER, passages(), statements)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "citations",
    [
        {"s1": ["3", "1", "3"], "s2": None},
        [{"sid": "s1", "pids": [3]}, {"sid": "s1", "pids": [1, 3]}, {"sid": "s2", "pids": []}],
        {"sid": ["s1"], "pids": [["3", "1"]]},
    ],
)
def test_citations_as_given_win_over_marks(citations: object) -> None:
    made = stated(ANSWER, passages(), citations=citations)
    assert cited(made) == [("3", "1"), ()]
    assert made.scored == "Iron is hard. Gold is soft."
    assert made.warnings == ()


def test_given_citations_of_unknown_pids_are_a_warning() -> None:
    made = stated(ANSWER, passages(), citations={"s2": ["1", "zz"]})
    assert cited(made) == [(), ("1",)]
    assert made.warnings == ("Statement 's2' cites 'zz', which isn't among the 3 passages.",)


@pytest.mark.parametrize(
    ("citations", "said"),
    [
        ({"x": ["1"]}, "the sid 'x', which no statement has (they have s1, s2)"),
        ([["1"]], "Citation 1 is ['1']"),
        ([{"pids": ["1"]}], "Citation 1 is"),
        ({"s1": {"1": 2}}, "The pids that 's1' cites are"),
        ({"s1": [None]}, "A pid that 's1' cites is null"),
        ("[1]", "citations is a text"),
    ],
)
def test_bad_citations_say_why(citations: object, said: str) -> None:
    with pytest.raises(InputError) as error:
        stated(ANSWER, passages(), citations=citations)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "The answer is empty"),
        (" \n", "The answer is empty"),
        ("[1] [2].", "nothing but citation marks"),
        ("a\ud800b", "half a surrogate pair (\\ud800) at character 1"),
    ],
)
def test_answers_without_text_say_so(answer: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        stated(answer, passages())
    assert said in str(error.value)
