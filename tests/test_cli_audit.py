"""``mechattr audit`` on a tiny model in memory: the library's lines, files, codes, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mechattr as ma
from mechattr import cli
from tests.audit import small
from tests.audit.small import record

RECORDS = [
    record(id="a"),
    record(id="b", passages=list(small.PASSAGES[:2]), answer="John sat on the mat [b]."),
]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch, tmp_path):
    for name in ("NO_COLOR", "FORCE_COLOR", "MECHATTR_DEBUG", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    Path("offtopic.txt").write_text(f"{small.OFF_TOPIC}\n\n  dog played in the park and\n\n\n")
    write("q.jsonl", *RECORDS)


@pytest.fixture
def asked(monkeypatch):
    """Every load_model call of the test; all get the same tiny model."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def load_model(name: str, **how: Any) -> Any:
        calls.append((name, how))
        return small.model("llama-bridge")

    monkeypatch.setattr(ma, "load_model", load_model)
    return calls


def write(name: str, *records: Any) -> None:
    Path(name).write_text("".join(json.dumps(entry) + "\n" for entry in records))


def run(*arguments: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["audit", *arguments])
    return int(stopped.value.code or 0)


QUICK = ("q.jsonl", "--swaps", "2", "--off-topic", "offtopic.txt", "--dtype", "float64")


def lines(name: str = "audit.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


# --- what it does ---------------------------------------------------------------------------------


def test_the_lines_are_those_of_the_library(asked, capsys):
    assert run(*QUICK, "--model", "some-model", "--out", "new/a.jsonl", "--html", "new/a.html",
               "--dtype", "float64", "--seed", "3") == 0  # fmt: skip
    assert [name for name, _ in asked] == ["some-model"]
    expected = ma.audit.run(
        small.model("llama-bridge"),
        RECORDS,
        off_topic=[small.OFF_TOPIC, "dog played in the park and"],
        swaps=2,
        seed=3,
        progress=False,
    )
    assert lines("new/a.jsonl") == expected.lines
    assert len(expected.lines) == 3
    manifest = json.loads(Path("new/a.manifest.json").read_text())
    assert manifest["settings"]["seed"] == 3
    assert manifest["off_topic"] == expected.facts["off_topic"]
    page = Path("new/a.html").read_text()
    assert "<html" in page
    assert "had a drink" in page
    printed = capsys.readouterr()
    assert "3 statements of 2 answers" in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert "\x1b" not in printed.out
    for name in ("Lines: new/a.jsonl", "Report: new/a.html"):
        assert name in printed.err.replace("\n", "")


def test_settings_reach_the_plan(asked, monkeypatch):
    from mechattr.audit import running

    seen: dict[str, Any] = {}

    def stopped(model: Any, records: Any, *, plan: Any, **how: Any) -> None:
        seen.update(plan.describe(), **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", stopped)
    Path("t.txt").write_text("Look: {passages} {question}")
    assert run("q.jsonl", "--operator", "mask, remove", "--unit", "sentence", "--template", "t.txt",
               "--surrogate", "contextcite", "--samples", "40", "--shapley", "64", "--earlier",
               "--tokens", "gradient_clean", "--max-new-tokens", "7", "--null", "per passage",
               "--swaps", "4", "--alpha", "0.1", "--control", "q", "--tau", "1.5",
               "--share", "0.2", "--set", "strong=3", "--set", "part=0.3",
               "--no-prepend-bos", "--seed", "9", "--fresh") == 130  # fmt: skip
    expected = {
        "operators": ("mask", "remove"), "unit": "sentence",
        "template": "Look: {passages} {question}", "surrogate": "contextcite", "samples": 40,
        "shapley": 64, "earlier": True, "tokens": "gradient_clean", "max_new_tokens": 7,
        "null": "per passage", "swaps": 4, "alpha": 0.1, "control": "q", "tau": 1.5, "share": 0.2,
        "strong": 3.0, "part": 0.3, "prepend_bos": False, "seed": 9, "fresh": True,
        "entails": None, "out": Path("audit.jsonl"),
    }  # fmt: skip
    assert {key: seen[key] for key in expected} == expected


def test_defaults_are_those_of_the_library(asked, monkeypatch):
    from mechattr.audit import Plan, running

    seen: list[Any] = []

    def stopped(model: Any, records: Any, *, plan: Any, **how: Any) -> None:
        seen.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "run", stopped)
    assert run("q.jsonl") == 130
    assert seen == [Plan()]
    assert asked[0][0] == "smollm2-135m"


def test_the_same_command_goes_on_and_fresh_begins_again(asked, monkeypatch):
    from mechattr.audit.measuring import Measurer

    seen: list[str] = []
    measure = Measurer.measure

    def watched(self: Any, record: Any) -> Any:
        if len(seen) == 1:
            seen.append("stopped")
            raise KeyboardInterrupt
        seen.append(record.id)
        return measure(self, record)

    monkeypatch.setattr(Measurer, "measure", watched)
    assert run(*QUICK) == 130
    assert run(*QUICK) == 0
    assert seen == ["a", "stopped", "b"]
    before = Path("audit.jsonl").read_bytes()
    assert run(*QUICK) == 0
    assert seen == ["a", "stopped", "b"]
    assert Path("audit.jsonl").read_bytes() == before
    assert run(*QUICK, "--fresh") == 0
    assert seen[3:] == ["a", "b"]
    assert Path("audit.jsonl").read_bytes() == before


def test_problems_are_told_and_the_rest_goes_on(asked, capsys):
    write("q.jsonl", RECORDS[0], record(id="bad", passages=[]), RECORDS[1])
    assert run(*QUICK) == 0
    assert [line["id"] for line in lines()] == ["a", "a", "b"]
    printed = capsys.readouterr()
    told = " ".join((printed.out + printed.err).split())
    assert "There are no passages" in told
    assert "2" in told


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "code", "said"),
    [
        (["statements:unsupported>=0", "problems>0"], 3, ["unsupported (statements): "]),
        (["problems>0"], 0, []),
        (["cited-and-used<101%", "passages:not-used<=1"], 3,
         ["cited and used (citations): ", "not used (passages): "]),
    ],
)  # fmt: skip
def test_limits(asked, capsys, limits, code, said):
    options = [part for limit in limits for part in ("--fail-on", limit)]
    assert run(*QUICK, *options) == code
    error = capsys.readouterr().err
    assert error.count("--fail-on: ") == len(said)
    for text in said:
        assert f"--fail-on: {text}" in error
    assert len(lines()) == 3, "what was found is written all the same"


def test_problems_as_a_limit(asked, capsys):
    write("q.jsonl", RECORDS[0], record(id="bad", passages=[]))
    assert run(*QUICK, "--fail-on", "problems>0.4") == 3
    assert "records with problems: 0.5 of 2, which is > 0.4" in capsys.readouterr().err


def test_no_record_that_can_be_used(asked, capsys):
    """A check must not pass because nothing was looked at."""
    write("q.jsonl", record(passages=[]), record(id="x", answer=""))
    assert run(*QUICK, "--fail-on", "cited-but-unused>0.1") == 2
    error = capsys.readouterr().err
    assert "None of the 2 records could be used. Line 1: There are no passages" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "There is no file none.jsonl; expected JSONL, one question a line."),
        (["."], "There is no file ."),
        (["empty.jsonl"], "There is no record: the source is empty"),
        (["q.jsonl", "--operator", "erase"], "Unknown operator 'erase'. Known: remove, mask"),
        (["q.jsonl", "--operator", ","], "operators is empty"),
        (["q.jsonl", "--unit", "sentences"], "Unknown unit 'sentences'. Did you mean sentence"),
        (["q.jsonl", "--tokens", "gradient_cleen"], "Unknown method 'gradient_cleen'"),
        (["q.jsonl", "--fail-on", "cited-but-unused"], "Can't read the limit 'cited-but-unused'"),
        (["q.jsonl", "--fail-on", "cited-but-unsed>0"], "Did you mean cited-but-unused"),
        (["q.jsonl", "--html", "page.txt"], "'page.txt'; expected one ending in .html"),
        (["q.jsonl", "--out", "a.json"], "'a.json'; expected one ending in .jsonl"),
        (["q.jsonl", "--template", "none.txt"], "Can't read none.txt"),
        (["q.jsonl", "--off-topic", "latin.txt"], "Can't read latin.txt"),
        (["q.jsonl", "--off-topic", "empty.jsonl"], "No off-topic texts"),
        (["q.jsonl", "--entails", "no_such_module:f"], "Can't import 'no_such_module:f'"),
        (["q.jsonl", "--entails", "math:nothing"], "expected module:function"),
        (["q.jsonl", "--entails", "math"], "Can't import 'math'"),
        (["q.jsonl", "--entails", "math:pi"], "math:pi is a float; expected a function"),
        (["q.jsonl", "--swaps", "0"], "got swaps=0"),
        (["q.jsonl", "--tau", "0"], "got tau=0.0"),
        (["q.jsonl", "--set", "prat=1"], "Did you mean part"),
        (["q.jsonl", "--set", "part"], "write --set NAME=NUMBER"),
        (["q.jsonl", "--seed", "-1"], "seed"),
    ],
)
def test_what_cant_be_carried_out(asked, capsys, arguments, message):
    Path("empty.jsonl").touch()
    Path("latin.txt").write_bytes(b"Caf\xe9")
    assert run(*arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert "Traceback" not in error
    assert not Path("audit.jsonl").exists()


def test_bad_requests_load_no_model(asked):
    assert run("none.jsonl") == 2
    for option in (("--operator", "erase"), ("--fail-on", "x"), ("--entails", "no.such:f")):
        assert run("q.jsonl", *option) == 2
    assert asked == []


def test_measurements_of_another_run(asked, capsys):
    assert run(*QUICK) == 0
    assert run(*QUICK, "--unit", "sentence") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert 'holds measurements of another run (unit: there "passage", here "sentence")' in error
    assert "--fresh" in error


# --- the plug-in ----------------------------------------------------------------------------------


def test_an_entailment_function_beside_the_questions(asked, monkeypatch):
    """Of a module in the folder where the command is called."""
    import sys

    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(Path.cwd()))])
    Path("my_checks_of_audit.py").write_text(
        "def entails(premise, statement):\n"
        "    with open('asked.txt', 'a') as file:\n"
        "        print(statement, file=file)\n"
        "    return True\n"
    )
    # The limits are so low that every passage whose removal costs something is used.
    settings = ("--tau", "1e-9", "--share", "0", "--alpha", "0.99")
    try:
        assert run(*QUICK, *settings, "--entails", "my_checks_of_audit:entails") == 0
    finally:
        sys.modules.pop("my_checks_of_audit", None)
    found = {passage["verdict"] for line in lines() for passage in line["passages"]}
    assert "supported" in found
    assert "cited and used" not in found
    asked_of = Path("asked.txt").read_text().splitlines()
    assert set(asked_of) <= {line["text"] for line in lines()}
    assert asked_of
