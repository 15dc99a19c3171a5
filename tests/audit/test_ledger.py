"""What is finished is on disk; what was cut in the middle is dropped; what doesn't fit is said."""

from __future__ import annotations

import json

import pytest

from mechattr.audit.ledger import Ledger
from mechattr.errors import InputError

HEADER = {"model": "tiny", "settings": {"seed": 0, "tau": 0.5}}


def entry(name: str) -> dict[str, object]:
    return {"digest": name, "x": [0.1, None, "Übung \u2028\x85 \ud7ff"], "n": 3}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "a.measured.jsonl"


def test_what_is_put_is_there_again(path):
    first = Ledger(path, HEADER)
    kept = [first.put(entry(name)) for name in "ab"]
    assert (len(first), first.get("a"), first.get("c")) == (2, kept[0], None)
    again = Ledger(path, HEADER)
    assert (len(again), again.get("a"), again.get("b")) == (2, *kept)
    assert again.put(entry("c")) == {**entry("c")}
    assert len(Ledger(path, HEADER)) == 3
    assert len(path.read_bytes().split(b"\n")) == 1 + 3 + 1


def test_what_is_put_is_what_will_be_read(path):
    """Numbers and containers as JSON has them, at once."""
    put = Ledger(path, HEADER).put({"digest": "a", "x": (1, 2.0), "y": {3: "three"}})
    assert put == {"digest": "a", "x": [1, 2.0], "y": {"3": "three"}}
    assert Ledger(path, HEADER).get("a") == put


def test_in_memory():
    ledger = Ledger(None, HEADER)
    assert ledger.put(entry("a")) == ledger.get("a")


def test_no_nan_gets_in(path):
    ledger = Ledger(path, HEADER)
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.put({"digest": "a", "x": float("nan")})
    assert len(Ledger(path, HEADER)) == 0


@pytest.mark.parametrize("cut", [1, 7, -1])
def test_a_line_that_was_cut_in_the_middle_is_dropped(path, cut):
    first = Ledger(path, HEADER)
    first.put(entry("a"))
    whole = path.read_bytes()
    first.put(entry("b"))
    path.write_bytes(path.read_bytes()[: len(whole) + cut if cut > 0 else cut])
    again = Ledger(path, HEADER)
    assert (len(again), again.get("b")) == (1, None)
    assert path.read_bytes() == whole
    again.put(entry("b"))
    assert len(Ledger(path, HEADER)) == 2


def test_an_empty_file_is_begun(path):
    path.parent.mkdir()
    path.touch()
    Ledger(path, HEADER).put(entry("a"))
    assert len(Ledger(path, HEADER)) == 1


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({**HEADER, "model": "other"}, r'\(model: there "tiny", here "other"\)'),
        ({**HEADER, "swaps": 3}, r"\(swaps: there null, here 3\)"),
        ({"model": "tiny"}, r"\(seed: there 0, here null; tau: there 0.5, here null\)"),
    ],
)
def test_measurements_of_another_run_are_refused(path, header, message):
    Ledger(path, HEADER).put(entry("a"))
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"holds measurements of another run {message}.*--fresh"):
        Ledger(path, header)
    assert path.read_bytes() == before


def test_of_settings_those_that_differ_are_named(path):
    Ledger(path, HEADER)
    other = {**HEADER, "settings": {"seed": 1, "tau": 0.5}}
    with pytest.raises(InputError, match=r"\(seed: there 0, here 1\)"):
        Ledger(path, other)


def test_what_a_setting_came_to_counts(path):
    """Two swaps a question, whether that was asked for or not; never other ones."""
    Ledger(path, {"swaps": 2, "settings": {"swaps": None}}).put(entry("a"))
    assert len(Ledger(path, {"swaps": 2, "settings": {"swaps": 2}})) == 1
    with pytest.raises(InputError, match=r"\(swaps: there 2, here 3\)"):
        Ledger(path, {"swaps": 3, "settings": {"swaps": None}})


def test_fresh_overwrites(path):
    Ledger(path, HEADER).put(entry("a"))
    assert len(Ledger(path, {"model": "other"}, fresh=True)) == 0
    assert json.loads(path.read_text()) == {"model": "other"}


@pytest.mark.parametrize("text", ["# Notes\n", '["a list"]\n', "no line break at all"])
def test_a_file_that_is_something_else_is_left_alone(path, text):
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(
        InputError, match=r"a\.measured\.jsonl (isn't a file of|holds) measurements"
    ):
        Ledger(path, HEADER)
    assert path.read_text() == text


@pytest.mark.parametrize("line", ["{torn\n", "[]\n", '{"no": "digest"}\n'])
def test_a_line_that_was_damaged_is_named(path, line):
    ledger = Ledger(path, HEADER)
    ledger.put(entry("a"))
    with path.open("a") as file:
        file.write(line)
    ledger.put(entry("b"))
    with pytest.raises(InputError, match=r"Line 3 of .* isn't a measured question .*--fresh"):
        Ledger(path, HEADER)
