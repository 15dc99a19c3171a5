"""Records from files and iterables: names, problems with their lines, what goes on regardless."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mechattr.audit.reading import Problem, read
from mechattr.audit.records import Passage, Record
from mechattr.errors import InputError

GOOD: dict[str, Any] = {
    "question": "What is hard?",
    "passages": ["Iron is hard.", {"title": "Gold", "text": "Gold is soft."}],
    "answer": "Iron is hard [1]. Gold isn't [2].",
}


def one(value: Any) -> Record:
    (found,) = read([value])
    assert isinstance(found, Record), found
    return found


def problem(value: Any) -> Problem:
    (found,) = read([value])
    assert isinstance(found, Problem)
    assert "\n" not in found.reason
    return found


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


# --- what is read ---------------------------------------------------------------------------------


def test_a_record() -> None:
    record = one(
        {**GOOD, "id": "q1", "gold_pids": [1], "seed": 3, "template": "{passages} {question}"}
    )
    assert (record.id, record.question, record.line) == ("q1", "What is hard?", 1)
    assert record.passages == (
        Passage("1", "Iron is hard."),
        Passage("2", "Gold is soft.", "Gold"),
    )
    assert record.stated is not None
    assert record.stated.scored == "Iron is hard. Gold isn't."
    assert [s.cited for s in record.stated.statements] == [("1",), ("2",)]
    assert (record.gold_pids, record.seed) == (("1",), 3)
    assert record.template == "{passages} {question}"
    assert record.warnings == ()


@pytest.mark.parametrize("question", ["question", "user_input", "query"])
@pytest.mark.parametrize(
    "passages", ["passages", "retrieved_contexts", "contexts", "docs", "documents", "ctxs"]
)
@pytest.mark.parametrize("answer", ["answer", "response", "output", "generated_answer"])
def test_other_names(question: str, passages: str, answer: str) -> None:
    record = one(
        {question: GOOD["question"], passages: GOOD["passages"], answer: GOOD["answer"], "meta": 1}
    )
    expected = one(GOOD)
    assert record == expected
    assert record.warnings == ()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("Iron.", Passage("1", "Iron.")),
        ({"pid": "a", "text": "Iron.", "title": None}, Passage("a", "Iron.")),
        ({"id": 7, "content": "Iron.", "score": 0.5}, Passage("7", "Iron.")),
        ({"doc_id": "d", "contents": "Iron.", "title": "T"}, Passage("d", "Iron.", "T")),
        ({"page_content": "Iron.", "metadata": {}, "type": "Document"}, Passage("1", "Iron.")),
        (SimpleNamespace(page_content="Iron.", metadata={}), Passage("1", "Iron.")),
    ],
)
def test_passages_of_any_kind(entry: Any, expected: Passage) -> None:
    record = one({**GOOD, "passages": [entry]})
    assert record.passages == (expected,)
    assert record.warnings == ()


def test_ragas_and_alce_and_columns() -> None:
    ragas = {
        "user_input": "What is hard?",
        "retrieved_contexts": ["Iron is hard."],
        "reference_contexts": ["Iron."],
        "retrieved_context_ids": ["x"],
        "response": "Iron [1].",
        "reference": "Iron",
        "rubrics": None,
    }
    assert one(ragas).warnings == ()
    alce = {
        "question": "What is hard?",
        "answer": "The reference.",
        "docs": [{"id": "86", "title": "Iron", "text": "Iron is hard.", "score": 1.5}],
        "output": "Iron is [1].",
        "qa_pairs": [],
    }
    record = one(alce)
    assert record.stated is not None
    assert record.stated.answer == "Iron is [1]."
    assert record.stated.statements[0].cited == ("86",)
    assert "`output` is read as the answer" in record.warnings[0]
    columns = {"title": ["Iron", None], "text": np.array(["Iron is hard.", "Gold is soft."])}
    assert one({**GOOD, "passages": columns}).passages == (
        Passage("1", "Iron is hard.", "Iron"),
        Passage("2", "Gold is soft."),
    )


def test_names_that_mean_other_things_are_read_last() -> None:
    chain = {"input": "What is hard?", "context": [SimpleNamespace(page_content="Iron.")]}
    record = one(chain)
    assert (record.question, record.passages) == ("What is hard?", (Passage("1", "Iron."),))
    assert one({**GOOD, "input": "other", "context": "all of it"}) == one(GOOD)


def test_an_answer_to_generate() -> None:
    for without in ({"answer": None}, {"answer": float("nan")}, {}):
        value = {key: GOOD[key] for key in ("question", "passages")} | without
        assert one(value).stated is None
    reason = problem({**GOOD, "answer": None, "statements": [{"start": 0, "end": 2}]}).reason
    assert "statements but no answer" in reason


def test_messages() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "{passages}", "name": "Ann", "tool_calls": None},
    ]
    record = one({**GOOD, "messages": messages})
    assert record.messages == (messages[0], {"role": "user", "content": "{passages}"})
    assert record.warnings == ("Message 2: name isn't used.",)


def test_slips_are_warned_of_once() -> None:
    record = one(
        {
            **GOOD,
            "passage": "Iron",
            "Messages": [{}],
            "gold-pids": ["1"],
            "colour": 1,
            "passages": [
                {"text": "Iron is hard.", "titel": "Iron"},
                {"text": "Gold.", "titel": "G"},
            ],
        }
    )
    assert len(record.warnings) == 5
    for slip, known in [
        ("passage", "passages"),
        ("Messages", "messages"),
        ("gold-pids", "gold_pids"),
    ]:
        assert (
            f"There is the key {slip!r}, which isn't read; did you mean {known!r}?"
            in record.warnings
        )
    assert (
        "Passage 1 has the key 'titel', which isn't read; did you mean 'title'?" in record.warnings
    )


def test_gold_that_was_not_retrieved_stays() -> None:
    record = one({**GOOD, "gold_pids": ["1", "9"]})
    assert record.gold_pids == ("1", "9")
    assert record.warnings == ("gold_pids has 9, which isn't among the passages.",)


def test_citations_of_unknown_pids_are_warned_of() -> None:
    record = one({**GOOD, "answer": "Iron is hard [8]."})
    assert record.stated is not None
    assert "cites 8" in record.stated.warnings[0]


# --- what can't be used ---------------------------------------------------------------------------

BAD: list[tuple[Any, str]] = [
    ({**GOOD, "question": None}, "No question: expected one of the keys question, user_input"),
    ({**GOOD, "question": " "}, "The question is empty"),
    ({**GOOD, "question": ["a"]}, "The question is a list (['a']); expected a text"),
    ({**GOOD, "query": "Which?"}, "under 'question' and 'query'; keep one"),
    ({**GOOD, "response": "Gold."}, "The answer comes twice, and differs"),
    ({"question": "Which?", "answer": "Iron."}, "No passages: expected one of the keys passages"),
    ({"question": "Which?", "passage": ["Iron."]}, "did you mean 'passages'?"),
    ({**GOOD, "passages": []}, "There are no passages"),
    ({**GOOD, "passages": "Iron."}, "passages is a text ('Iron.'); expected a list"),
    ({**GOOD, "passages": {"a": "Iron."}}, "passages is an object"),
    ({**GOOD, "passages": ["Iron.", ""]}, "Passage 2 is empty"),
    ({**GOOD, "passages": [3]}, "Passage 1 is a number (3); expected a text"),
    (
        {**GOOD, "passages": [{"title": "Iron"}]},
        "Passage 1 has no text: expected one of the keys text",
    ),
    ({**GOOD, "passages": [{"txt": "Iron"}]}, "Passage 1 has no text"),
    ({**GOOD, "passages": [{"text": ""}]}, "The text of passage 1 is empty"),
    ({**GOOD, "passages": [{"text": "a", "content": "b"}]}, "under 'text' and 'content'"),
    ({**GOOD, "passages": [{"text": "a", "title": 3}]}, "The title of passage '1' is 3"),
    ({**GOOD, "passages": [{"text": "a", "pid": True}]}, "The pid of passage 1 is true or false"),
    (
        {**GOOD, "passages": [{"pid": "2", "text": "a"}, "b"]},
        "Passages 1 and 2 have the same pid '2'",
    ),
    ({**GOOD, "passages": ["a\ud83d"]}, "half a surrogate pair"),
    ({**GOOD, "answer": ""}, "The answer is empty. To have one generated, leave it out"),
    ({**GOOD, "answer": " \n"}, "The answer is empty"),
    ({**GOOD, "answer": ["Iron."]}, "The answer is a list"),
    (
        {**GOOD, "statements": [{"start": 0, "end": 99}]},
        "outside the answer, which has 33 characters",
    ),
    ({**GOOD, "citations": {"x": ["1"]}}, "citations has the sid 'x'"),
    ({**GOOD, "gold_pids": "1"}, "gold_pids is a text ('1'); expected a list"),
    ({**GOOD, "messages": []}, "messages is empty"),
    ({**GOOD, "messages": ["Hi"]}, "Message 1 is a text ('Hi')"),
    ({**GOOD, "messages": [{"role": "user"}]}, "The content of message 1 is missing"),
    ({**GOOD, "messages": [{"role": "user", "content": []}]}, "The content of message 1 is a list"),
    ({**GOOD, "template": "Answer."}, "The template has {passages} 0 times"),
    (
        {**GOOD, "template": "{passages}", "messages": [{"role": "user", "content": "a"}]},
        "both messages and a template",
    ),
    ({**GOOD, "seed": True}, "The seed is True"),
    ({**GOOD, "seed": -1}, "The seed is -1"),
    ({**GOOD, "id": [1]}, "The id is a list"),
    ({**GOOD, "id": ""}, "The id is empty"),
    (["a"], "The record is a list"),
    ([GOOD], "Write each of its objects on a line of its own"),
    ("a", "The record is a text ('a'); expected an object"),
    (None, "The record is null"),
]


@pytest.mark.parametrize(("value", "said"), BAD, ids=[said[:40] for _, said in BAD])
def test_bad_records_say_why(value: Any, said: str) -> None:
    assert said in problem(value).reason


def test_a_problem_has_the_record_s_own_id() -> None:
    assert problem({**GOOD, "id": 12, "answer": ""}).id == "12"
    assert problem({**GOOD, "answer": ""}).id is None


# --- files ----------------------------------------------------------------------------------------


def test_a_file_goes_on_after_bad_lines(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    path = write(
        tmp_path / "q.jsonl",
        b"\xef\xbb\xbf" + good.encode() + b"\r",
        "",
        "{not json}",
        b'{"question": "caf' + b'\xe9"}',
        "[1, 2]",
        "   ",
        json.dumps({**GOOD, "id": "1"}),
        json.dumps({**GOOD, "id": "x", "question": "東京\u2028?"}, ensure_ascii=False),
        '{"question": "a", "question": "b"}',
        "[" * 100_000,
        '{"seed": ' + "9" * 5000 + "}",
        json.dumps({**GOOD, "answer": "half \ud83d"}),
        json.dumps({**GOOD, "id": "x"}),
        json.dumps({**GOOD, "id": "x2"})[:-9],
        good,
    )
    found = list(read(path))
    assert [record.line for record in found] == [1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    assert [record.id for record in found if isinstance(record, Record)] == ["1", "x", "15"]
    said = {p.line: p.reason for p in found if isinstance(p, Problem)}
    for line, words in {
        3: "Not JSON: Expecting property name",
        4: "Not UTF-8: byte 0xe9 at place 18 of the line, after",
        5: "The record is a list ([1, 2])",
        7: "The id '1' was line 1's already",
        9: "the key 'question' comes twice",
        10: "Not JSON that can be read",
        11: "Not JSON that can be read",
        12: "The answer has half a surrogate pair",
        13: "The id 'x' was line 8's already",
        14: "Not JSON: ",
    }.items():
        assert words in said[line], (line, said[line])
    assert not any("\n" in reason for reason in said.values())


def test_a_bad_record_leaves_its_id_free() -> None:
    found = list(read([{**GOOD, "id": "a", "answer": ""}, {**GOOD, "id": "a"}]))
    assert [type(record) for record in found] == [Problem, Record]


def test_a_json_document_is_no_jsonl(tmp_path: Path) -> None:
    path = write(tmp_path / "q.json", *json.dumps([GOOD], indent=1).splitlines())
    first = next(iter(read(path)))
    assert isinstance(first, Problem)
    assert "Is the file one JSON document? Write an object a line" in first.reason


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert list(read(str(write(tmp_path / "q.jsonl", "", " ")))) == []


def test_memory_holds_one_record(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "passages": ["Iron is hard. " * 20_000]})
    path = write(tmp_path / "q.jsonl", *([line] * 40))
    tracemalloc.start()
    n = sum(isinstance(record, Record) for record in read(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 40
    assert peak < 8 * len(line)


@pytest.mark.parametrize(
    ("begins", "said"),
    [(b"\x1f\x8b\x08", "compressed"), (b"\xff\xfe{\0", "UTF-16"), (b"PAR1", "Parquet")],
)
def test_files_of_another_kind(tmp_path: Path, begins: bytes, said: str) -> None:
    with pytest.raises(InputError) as error:
        read(write(tmp_path / "q.jsonl", begins))
    assert said in str(error.value)


def test_sources_that_are_none(tmp_path: Path) -> None:
    class Frame:
        columns = to_dict = 1

    for source, said in [
        (tmp_path / "none.jsonl", "No such file"),
        (tmp_path, "Is a directory"),
        (GOOD, "one mapping"),
        (5, "The source is int (5)"),
        (b"q.jsonl", "The source is bytes"),
        (Frame(), 'frame.to_dict("records")'),
    ]:
        with pytest.raises(InputError) as error:
            read(source)
        assert said in str(error.value)


# --- iterables ------------------------------------------------------------------------------------


def test_iterables_are_read_one_by_one() -> None:
    def endless() -> Iterator[dict[str, Any]]:
        while True:
            yield GOOD

    source = read(endless())
    assert [next(source).line for _ in range(3)] == [1, 2, 3]


def test_a_dataset() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "question": "What is hard?",
            "passages": [{"pid": "a", "text": "Iron."}, {"pid": "b", "text": "Gold."}],
            "answer": "Iron [a].",
            "statements": [{"sid": "x", "start": 0, "end": 8}],
            "citations": [{"sid": "x", "pids": ["b"]}],
            "seed": 1,
        },
        {"question": "What is soft?", "passages": [{"pid": "a", "title": "T", "text": "Gold."}]},
    ]
    data = datasets.Dataset.from_list(rows)
    for source in (data, data.to_iterable_dataset(), data.with_format("numpy")):
        first, second = read(source)
        assert isinstance(first, Record)
        assert isinstance(second, Record)
        assert first.stated is not None
        assert first.stated.statements[0].cited == ("b",)
        assert first.seed == 1
        assert second.stated is None
        assert second.passages == (Passage("a", "Gold.", "T"),)
    with pytest.raises(InputError, match="several splits"):
        read(datasets.DatasetDict({"test": data}))


def test_tables_with_gaps() -> None:
    import pandas as pd

    frame = pd.DataFrame([{**GOOD, "id": 1, "seed": 3}, {**GOOD, "question": "Which?"}])
    first, second = read(frame.to_dict("records"))
    assert isinstance(first, Record)
    assert isinstance(second, Record)
    assert (first.id, first.seed, second.id, second.seed) == ("1", 3, "2", None)


def test_records_pass_as_they_are() -> None:
    record = one({**GOOD, "id": "a"})
    again, twice = read([record, record])
    assert again == record
    assert isinstance(twice, Problem)
    assert "The id 'a' was line 1's already" in twice.reason


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {**GOOD, "id": "q", "gold_pids": ["2"], "seed": 0, "template": "{passages}"},
        {**GOOD, "answer": None, "messages": [{"role": "user", "content": "{passages}"}]},
        {**GOOD, "answer": "[1] Iron. [2] Gold. [9] Lead.\n- [sic] Tin[1].Copper. [2]. Zinc ([1])"},
    ],
)
def test_describe_and_back(value: dict[str, Any]) -> None:
    record = one(value)
    again = one(json.loads(json.dumps(record.describe())))
    assert again.describe() == record.describe()
    assert again.digest == record.digest
    assert again.passages == record.passages
    if record.stated is not None:
        assert again.stated is not None
        assert again.stated.statements == record.stated.statements
        assert again.stated.scored == record.stated.scored


def test_the_digest_is_of_what_is_audited() -> None:
    base = {**GOOD, "id": "q"}
    digest = one(base).digest
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")
    same = {"docs": GOOD["passages"], "output": GOOD["answer"], "question": GOOD["question"]}
    assert one({**same, "id": "q", "score": 1}).digest == digest
    changes: list[dict[str, Any]] = [
        {"id": "r"},
        {"question": "Who?"},
        {"passages": ["Iron is hard.", {"title": "Au", "text": "Gold is soft."}]},
        {"answer": "Iron is hard [1]. Gold isn't [1]."},
        {"answer": None},
        {"citations": {"s1": ["2"]}},
        {"gold_pids": ["1"]},
        {"seed": 0},
        {"template": "{passages}"},
    ]
    assert len({digest, *(one({**base, **change}).digest for change in changes)}) == 10


def test_records_check_themselves() -> None:
    with pytest.raises(InputError, match="no passages"):
        Record("a", "Which?", (), None)
    with pytest.raises(InputError, match="pid is empty"):
        Passage("", "Iron.")
    with pytest.raises(InputError, match="same pid 'a'"):
        Record("a", "Which?", (Passage("a", "Iron."), Passage("a", "Gold.")), None)
