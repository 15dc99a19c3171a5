"""Runs: the same file however often they were interrupted, and nothing lost to a bad record."""

from __future__ import annotations

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mechattr as ma
from mechattr.audit import Audit, Plan, read, run
from mechattr.audit.asking import Known
from mechattr.audit.measuring import Measurer
from mechattr.audit.question import Question
from mechattr.errors import InputError, UnknownNameError
from mechattr.transformer.removal import RemovalGame
from tests.audit import small
from tests.audit.small import PASSAGES, record
from tests.audit.test_judging import check_form

MODEL = "llama-bridge"

RECORDS = [
    record(id="a"),
    record(id="b", passages=list(PASSAGES[:2]), answer="John sat on the mat [b]."),
    record(id="c", question="When was Anna in the park?", answer="Anna played. Tom slept [3]."),
    record(id="d", passages=[PASSAGES[2]], answer="Tom slept."),
]


def audit(records: Any = RECORDS, model: str = MODEL, **settings: Any) -> Audit:
    settings = {"swaps": 2, "progress": False, "off_topic": [small.OFF_TOPIC], **settings}
    return run(small.model(model), records, **settings)


def write(path: Path, *lines: Any) -> Path:
    """JSONL; bytes are written as they are."""
    encoded = [
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in encoded))
    return path


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "questions.jsonl", *RECORDS)


@pytest.fixture(scope="module")
def whole() -> Audit:
    return audit()


@pytest.fixture
def measured(monkeypatch):
    """Ids of the records that are measured from here on."""
    seen: list[str] = []
    measure = Measurer.measure

    def watched(self: Measurer, record: Any) -> dict[str, Any]:
        seen.append(record.id)
        return measure(self, record)

    monkeypatch.setattr(Measurer, "measure", watched)
    return seen


# --- what comes out -------------------------------------------------------------------------------


def test_a_line_a_statement_in_the_order_of_the_records(whole):
    assert [(line["id"], line["sid"]) for line in whole.lines] == [
        ("a", "s1"), ("a", "s2"), ("b", "s1"), ("c", "s1"), ("c", "s2"), ("d", "s1")]  # fmt: skip
    assert [q["line"] for q in whole.questions] == [1, 2, 3, 4]
    assert whole.problems == []
    for line in whole.lines:
        check_form(line)
    first, second = whole.lines[:2]
    assert [p["pid"] for p in first["passages"] if p["cited"]] == ["a"]
    assert [p["pid"] for p in second["passages"] if p["cited"]] == ["b", "c"]
    assert small.ANSWER[first["start"] : first["end"]] == "Mary went to the park [a]."
    assert first["text"] == "Mary went to the park."
    assert first["context_effect"] == pytest.approx(
        first["logp_full"] - first["logp_none"], abs=2e-6
    )


def test_files(tmp_path, whole):
    found = audit(out=tmp_path / "new" / "audit.jsonl")
    lines = (tmp_path / "new" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found.lines == whole.lines
    manifest = json.loads((tmp_path / "new" / "audit.manifest.json").read_text())
    assert manifest["model"] == "tiny-llama"
    assert manifest["settings"]["seed"] == 0
    assert manifest["judging"]["alpha"] == 0.05
    assert (manifest["n_records"], manifest["n_questions"], manifest["n_statements"]) == (4, 4, 6)
    assert manifest["versions"]["torch"] == torch.__version__
    for key in ("model_revision", "chat_template", "tokenizer", "dtype", "swaps", "problems"):
        assert key in manifest
    kept = (tmp_path / "new" / "audit.measured.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 4
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "audit.jsonl", "audit.manifest.json", "audit.measured.jsonl"]  # fmt: skip


def test_tables_and_pictures(whole):
    rows = whole.to_frame()
    assert len(rows) == 3 + 3 + 2 + 3 + 3 + 1
    assert {"id", "sid", "pid", "necessity", "ci95_low", "statement_verdict"} <= set(rows.columns)
    statements = whole.to_frame("statements")
    assert statements["logp_full"].tolist() == [line["logp_full"] for line in whole.lines]
    with pytest.raises(InputError, match="'passages' or 'statements'; got 'tokens'"):
        whole.to_frame("tokens")
    summary = whole.summary()
    assert summary[summary.of == "statements"]["count"].sum() == 6
    assert "6 statements of 4 answers" in repr(whole)
    assert "Mary went to the store and had a drink." in whole._repr_html_()


def test_the_report_says_where_the_null_is_too_small():
    assert any(
        "no p can reach 0.05" in note for note in audit(RECORDS[:1]).report["summary"]["notes"]
    )
    each = audit(RECORDS[:1], null="per passage", swaps=18).report["summary"]
    assert each["null"]["n"] > 60
    assert any("only 18 effects" in note for note in each["notes"])
    enough = audit(RECORDS[:1], swaps=None)
    assert enough.report["summary"]["notes"] == []
    assert enough.report["summary"]["null"]["n"] >= 60


# --- interruptions --------------------------------------------------------------------------------


def interrupted(monkeypatch, after: int, **settings: Any) -> None:
    """A run that is stopped once so many records are measured."""
    done: list[str] = []
    measure = Measurer.measure

    def stopped(self: Measurer, record: Any) -> dict[str, Any]:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(record.id)
        return measure(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            audit(**settings)


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_file(
    tmp_path, source, monkeypatch, measured, torn
):
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    audit(source, out=once)
    assert measured == ["a", "b", "c", "d"]
    for after in (1, 2):  # the second goes on from the first
        interrupted(monkeypatch, after, records=source, out=twice)
        if torn:
            with (tmp_path / "twice.measured.jsonl").open("ab") as file:
                file.write(b'{"id": "c", "digest": "12')
    assert not twice.exists()
    measured.clear()
    audit(source, out=twice)
    assert measured == ["d"]
    assert twice.read_bytes() == once.read_bytes()
    measured.clear()
    again = audit(source, out=twice)
    assert measured == []
    assert twice.read_bytes() == once.read_bytes()
    assert len(again.questions) == 4


def test_a_finished_record_is_known_wherever_it_stands(tmp_path, source, measured):
    out = tmp_path / "audit.jsonl"
    before = audit(source, out=out).lines
    measured.clear()
    moved = [RECORDS[3], RECORDS[0], {**RECORDS[1], "answer": "Anna slept [b]."}, RECORDS[2]]
    found = audit(write(source, *moved), out=out)
    assert measured == ["b"]
    assert [q["id"] for q in found.questions] == ["d", "a", "b", "c"]
    assert [q["line"] for q in found.questions] == [1, 2, 3, 4]
    now = {(line["id"], line["sid"]): line["passages"][0]["necessity"] for line in found.lines}
    for line in before:
        same = now[line["id"], line["sid"]] == line["passages"][0]["necessity"]
        assert same is (line["id"] != "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, r"seed: there 0, here 1\)"),
        ({"unit": "sentence"}, r'unit: there "passage", here "sentence"'),
        (
            {"operators": ("remove", "mask")},
            r'operators: there \["remove"\], here \["remove", "mask"',
        ),
        ({"swaps": 3}, "swaps: there 2, here 3"),
        ({"carried": 0.4}, "carried: there 0.5, here 0.4"),
        ({"off_topic": ["dog sat on mat"]}, "off_topic: there"),
        ({"model": "gpt2-bridge"}, 'model: there "tiny-llama", here "tiny-gpt2"'),
    ],
)
def test_measurements_under_other_settings_are_refused(tmp_path, measured, settings, message):
    out = tmp_path / "audit.jsonl"
    audit(RECORDS[3:], out=out)
    kept = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    measured.clear()
    with pytest.raises(InputError, match=message):
        audit(RECORDS[3:], out=out, **settings)
    assert measured == []
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == kept
    audit(RECORDS[3:], out=out, fresh=True, **settings)
    assert measured == ["d"]


def test_verdicts_under_other_thresholds_need_no_model(tmp_path, measured):
    """Every setting that the measurements don't depend on."""
    out = tmp_path / "audit.jsonl"
    audit(out=out)
    measured.clear()
    settings: dict[str, Any] = dict(strong=5.0, alpha=0.5, control="q", memory=-9.0)
    found = audit(out=out, **settings)
    assert measured == []
    assert found.lines == audit(**settings).lines
    assert measured == ["a", "b", "c", "d"], "without a file nothing is kept"


# --- bad records ----------------------------------------------------------------------------------


def test_a_bad_record_is_reported_and_the_rest_goes_on(tmp_path):
    long = "Mary " * 600
    bad = {
        2: (record(id="no passages", passages=[]), "There are no passages"),
        3: (record(id="empty", answer=" "), "The answer is empty"),
        4: (
            record(id="outside", statements=[{"sid": "x", "start": 5, "end": 500}]),
            "'x', characters 5 to 500, lies outside the answer, which has 72",
        ),
        5: (b'{"id": "latin", "question": "Caf\xe9?"}', "Not UTF-8: byte 0xe9 at place 33"),
        7: (
            record(id="long", passages=[*PASSAGES, {"pid": "z", "text": long}]),
            "the model's context is 256. The longest piece, 'z'",
        ),
        8: (record(id="no place", template="Just {question}"), r"has {passages} 0 times"),
        9: (b'{"id": "torn", "question": "W', "Not JSON"),
        10: (
            record(id="not there", messages=[{"role": "user", "content": "Tom slept."}]),
            "Passage 'b' is found 0 times in the messages",
        ),
        11: (record(id="a"), "The id 'a' was line 1's already"),
    }
    lines: list[Any] = [bad[i][0] if i in bad else None for i in range(1, 13)]
    unknown = record(id="unknown pid", answer="Tom slept [7]. Anna played [c].")
    lines[0], lines[5], lines[11] = record(id="a"), unknown, record(id="last")
    found = audit(write(tmp_path / "q.jsonl", *lines), out=tmp_path / "audit.jsonl")
    assert [p.line for p in found.problems] == sorted(bad)
    for problem in found.problems:
        assert bad[problem.line][1] in problem.reason, problem
    names = {p.line: p.id for p in found.problems}
    assert (names[2], names[5], names[7], names[9]) == ("no passages", None, "long", None)
    assert [q["id"] for q in found.questions] == ["a", "unknown pid", "last"]
    own = [line for line in found.lines if line["id"] == "unknown pid"]
    assert [[p["pid"] for p in line["passages"] if p["cited"]] for line in own] == [[], ["c"]]
    assert any("cites 7" in warning for warning in own[0]["warnings"])
    manifest = json.loads((tmp_path / "audit.manifest.json").read_text())
    assert manifest["n_records"] == 12
    assert [p["line"] for p in manifest["problems"]] == sorted(bad)


def test_a_run_of_bad_records_only(tmp_path):
    found = audit([record(passages=[])], out=tmp_path / "audit.jsonl")
    assert (len(found.problems), found.lines) == (1, [])
    assert (tmp_path / "audit.jsonl").read_text() == ""
    assert found.to_frame().empty
    assert all(rate["total"] == 0 and rate["rate"] is None for rate in found.rates)
    assert found.report["summary"]["null"]["n"] == 0
    assert repr(found)


def test_what_isnt_the_records_fault_stops_the_run(monkeypatch):
    def broken(self: Measurer, record: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Measurer, "measure", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        audit()


# --- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["path", "text", "generator", "records", "dataset", "columns"])
def test_sources(how, source, whole, tmp_path):
    records: Any = source
    if how == "text":
        records = str(source)
    elif how == "generator":
        records = (entry for entry in RECORDS)
    elif how == "records":
        records = tuple(read(RECORDS))
    elif how in ("dataset", "columns"):
        from datasets import Dataset

        # A dataset fills the passages' missing titles with None.
        records = Dataset.from_list(RECORDS)
        records = records.to_list() if how == "columns" else records
    assert audit(records).lines == whole.lines


def test_an_iterable_that_can_be_gone_through_twice_isnt_held(whole):
    class Lazy:
        given = 0

        def __iter__(self):
            for entry in RECORDS:
                self.given += 1
                yield entry

    lazy = Lazy()
    assert audit(lazy).lines == whole.lines
    assert lazy.given == 2 * len(RECORDS), "once to count, once to measure"


def test_a_folder_is_no_file_to_write_to(tmp_path, monkeypatch):
    from mechattr.audit import running

    monkeypatch.setattr(running, "_loaded", lambda model: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match="out is a directory"):
        audit(out=tmp_path)


def test_what_is_no_source(tmp_path):
    import pandas as pd

    for records, message in (
        (RECORDS[0], "The source is one mapping"),
        (pd.DataFrame(RECORDS), r"to_dict\(.records.\)"),
        (3, r"The source is int \(3\)"),
        (tmp_path / "none.jsonl", "Can't open"),
        ([], "There is no record: the source is empty"),
        (write(tmp_path / "empty.jsonl"), "There is no record"),
    ):
        with pytest.raises(InputError, match=message):
            audit(records)


def test_settings_by_name(monkeypatch, whole):
    asked = []

    def load_model(name: str) -> Any:
        asked.append(name)
        return small.model(MODEL)

    from mechattr.transformer import loading

    monkeypatch.setattr(loading, "load_model", load_model)
    found = run("some-model", RECORDS, plan=Plan(swaps=2), progress=False,
                off_topic=[small.OFF_TOPIC])  # fmt: skip
    assert asked == ["some-model"]
    assert found.lines == whole.lines
    assert ma.audit.run is run
    with pytest.raises(UnknownNameError, match=r"'operator'\. Did you mean operators"):
        audit(operator="mask")
    assert audit(plan=Plan(seed=3), seed=4).plan.seed == 4


# --- what a question's numbers depend on ----------------------------------------------------------


def without_p(line: dict[str, Any]) -> dict[str, Any]:
    """What doesn't depend on the run's null."""
    numbers = ("pid", "cited", "necessity", "sufficiency", "surrogate", "ci95")
    kept = {k: v for k, v in line.items() if k not in ("verdict", "passages")}
    return {**kept, "passages": [{k: p[k] for k in numbers} for p in line["passages"]]}


def test_numbers_dont_depend_on_the_other_records(whole):
    alone = audit([RECORDS[2]])
    assert [without_p(line) for line in alone.lines] == [
        without_p(line) for line in whole.lines if line["id"] == "c"
    ]
    assert alone.questions[0]["effects"] == whole.questions[2]["effects"]


def test_a_seed_is_a_file(whole):
    assert audit().lines == whole.lines
    other = audit(seed=1)
    assert [q["effects"][0]["swaps"] for q in other.questions] != [
        q["effects"][0]["swaps"] for q in whole.questions
    ]


def test_nothing_but_json_is_kept(whole):
    def alive() -> int:
        gc.collect()
        return sum(type(thing) in (RemovalGame, Known, Question) for thing in gc.get_objects())

    before = alive()
    found = audit()
    assert alive() == before
    assert json.loads(json.dumps(found.questions)) == found.questions


def test_the_plan_is_left_as_it_was():
    plan = Plan(swaps=2)
    assert dataclasses.replace(plan) == plan
    assert audit(RECORDS[3:], plan=plan).plan == plan
