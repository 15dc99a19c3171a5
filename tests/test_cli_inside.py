"""``mechattr inside`` on a tiny model in memory: the library's scores, the page, messages."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechattr as ma
from mechattr import cli
from mechattr.audit.inside import find
from mechattr.audit.plan import Plan
from mechattr.cli import inside_command
from mechattr.display import words
from mechattr.errors import InputError
from tests.audit import small
from tests.audit.small import record
from tests.test_cli_audit import _surroundings, asked, write  # noqa: F401  fixtures

ONE = record(id="b", passages=list(small.PASSAGES[:2]), answer="John sat on the mat [b].")
BOTH = ("q.jsonl", "--id", "a", "--pid", "b", "--sid", "s2")


@pytest.fixture(autouse=True)
def _texts(_surroundings):  # noqa: F811
    Path("long.txt").write_text(f"{small.OFF_TOPIC} {small.OFF_TOPIC}")


def run(*arguments: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inside", *arguments, "--off-topic", "long.txt"])
    return int(stopped.value.code or 0)


def looked(pid: str = "b", sid: str | None = "s2", **plan: Any) -> Any:
    """The same through the library."""
    model = small.model("llama-bridge")
    return ma.audit.inside(model, record(id="a"), pid, sid, plan=Plan(**plan))


def off_topic() -> Any:
    from mechattr.audit.offtopic import OffTopic

    return OffTopic([f"{small.OFF_TOPIC} {small.OFF_TOPIC}"])


def told(capsys: Any) -> str:
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return " ".join(printed.err.split())


# --- what it does ---------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_library(asked, capsys):  # noqa: F811
    assert run(*BOTH, "--model", "some-model", "--out", "new/s.safetensors", "--html",
               "new/page.html") == 0  # fmt: skip
    assert [name for name, _ in asked] == ["some-model"]
    look = looked()
    expected = {
        "tokens-leave_one_out": look.tokens(progress=False),
        "heads-attribution_patching": look.heads(off_topic=off_topic()),
    }
    for label, scores in expected.items():
        saved = ma.Attribution.load(Path(f"new/s-{label}.safetensors"))
        assert saved.players == scores.players
        np.testing.assert_allclose(saved.values, scores.values, atol=1e-6)
        assert np.abs(saved.values).max() > 1e-3
    printed = capsys.readouterr()
    for text in ("Question: When was Tom in the park?", "Passage b (cited): John: John sat on",
                 "Statement s2: John sat on the mat, and a dog played [b][c].",
                 "Tokens of b by leave_one_out", "Heads that bring b into s2"):  # fmt: skip
        assert text in printed.out
    assert "\x1b" not in printed.out
    assert "Report: new/page.html" in printed.err.replace("\n", "")
    page = Path("new/page.html").read_text()
    assert "Inside passage b, for statement s2 of a" in page
    assert page.count("How much does each part") == 1, "tokens and heads answer one question"
    assert 'class="ma-tokens"' in page, "the passage as text"


def test_settings_reach_the_library(asked, monkeypatch):  # noqa: F811
    from mechattr.audit.inside import Inside

    seen: dict[str, Any] = {}
    scores = looked().tokens(unit="sentence", progress=False)

    def tokens(self: Any, method: str, **how: Any) -> Any:
        seen.update(how, method=method, plan=self.question.prepend_bos)
        seen["prompt"] = self.question.pieces[0]
        return scores

    monkeypatch.setattr(Inside, "tokens", tokens)
    Path("t.txt").write_text("Look: {passages} {question}")
    assert run(*BOTH, "--method", "shapley", "--budget", "40", "--operator", "mask", "--unit",
               "word", "--seed", "3", "--no-prepend-bos", "--template", "t.txt", "--heads",
               "none") == 0  # fmt: skip
    assert seen == {"method": "shapley", "budget": 40, "operator": "mask", "unit": "word",
                    "seed": 3, "plan": False, "prompt": "Look:"}  # fmt: skip


def test_several_methods_each_by_its_name(asked, capsys):  # noqa: F811
    assert run(*BOTH, "--unit", "word", "--operator", "mask", "--method",
               "leave_one_out,integrated_gradients", "--heads", "activation_patching,retrieval",
               "--out", "s.safetensors") == 0  # fmt: skip
    names = {path.stem for path in Path.cwd().glob("s-*.safetensors")}
    assert names == {"s-tokens-leave_one_out", "s-tokens-integrated_gradients",
                     "s-heads-activation_patching", "s-heads-retrieval"}  # fmt: skip
    exact = ma.Attribution.load(Path("s-heads-activation_patching.safetensors"))
    expected = looked().heads("include_one", off_topic=off_topic())
    np.testing.assert_allclose(exact.values, expected.values, atol=1e-6)
    assert exact.provenance["base"] == "source"
    printed = capsys.readouterr().out
    assert "Words of b by integrated_gradients" in printed
    assert "a retrieval head's share" in printed


def test_what_is_the_only_one_needs_no_name(asked, capsys):  # noqa: F811
    write("one.jsonl", record(id="x", passages=[small.PASSAGES[1]], answer="John sat [b]."))
    assert run("one.jsonl", "--heads", "none", "--unit", "sentence") == 0
    assert "Sentences of b by leave_one_out" in capsys.readouterr().out


def test_a_sentence_of_an_audit_of_sentences(asked, capsys):  # noqa: F811
    assert run("q.jsonl", "--id", "a", "--pid", "b#2", "--sid", "s2", "--heads", "none",
               "--out", "s.safetensors") == 0  # fmt: skip
    found = ma.Attribution.load(Path("s.safetensors"))
    assert "".join(found.players.coords["text"]).strip() == "Anna played in the park."
    assert run("q.jsonl", "--id", "a", "--pid", "b#3", "--sid", "s2") == 2
    assert "Unknown passage 'b#3'. Did you mean" in told(capsys)


def test_a_generated_answer(asked, capsys):  # noqa: F811
    write("open.jsonl", record(id="x", answer=None))
    arguments = ("open.jsonl", "--pid", "a", "--heads", "none", "--max-new-tokens", "6",
                 "--unit", "sentence", "--temperature", "0.5", "--seed", "1")  # fmt: skip
    code = run(*arguments, "--sid", "s1")
    printed = capsys.readouterr().out
    assert code == 0
    assert "Statement s1 (generated): " in printed
    assert run(*arguments, "--sid", "s99") == 2
    assert "Unknown statement 's99'" in told(capsys)


def test_bad_records_beside_the_chosen_one(asked, capsys):  # noqa: F811
    good, bad = record(id="a"), record(id="bad", passages=[])
    write("q.jsonl", bad, good)
    with Path("q.jsonl").open("a") as file:
        file.write("{no json\n")
    assert run(*BOTH, "--heads", "none", "--unit", "sentence") == 0
    capsys.readouterr()
    for name, reason in (("bad", "The record of line 1 can't be used: There are no passages"),
                         ("3", "The record of line 3 can't be used: Not JSON"),
                         ("zzz", "Known: bad, a, 3. No id could be read in line 3.")):  # fmt: skip
        assert run("q.jsonl", "--id", name) == 2
        assert reason in told(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "Can't open 'none.jsonl': No such file"),
        (["empty.jsonl"], "There is no record: the source is empty"),
        (["q.jsonl"], "Which of 2 questions? Give the id of one: a, b."),
        (["q.jsonl", "--id", "c"], "Unknown id 'c'. Known: a, b."),
        (["q.jsonl", "--id", "a"],
         "Which passage? Give --pid. There are a ('Mary went to the store and had a drink.'), "
         "b ('John'), c ("),
        (["q.jsonl", "--id", "a", "--pid", "d"], "Unknown passage 'd'. Known: a, b, c."),
        (["q.jsonl", "--id", "a", "--pid", "d#1"], "Unknown passage 'd#1'"),
        (["q.jsonl", "--id", "a", "--pid", "b"],
         "Which statement? Give --sid. There are s1 ('Mary went to the park [a].'), s2 ("),
        ([*BOTH[:-1], "s3"], "Unknown statement 's3'. Did you mean s2, s1?"),
        ([*BOTH, "--operator", "replace"], "Unknown operator 'replace'. Known: remove, mask."),
        ([*BOTH, "--unit", "letter"], "Unknown unit 'letter'"),
        ([*BOTH, "--method", "leave_one"], "Did you mean leave_one_out"),
        ([*BOTH, "--method", "activation_patching"], "Unknown method 'activation_patching'"),
        ([*BOTH, "--heads", "retrieve"], "Did you mean retrieval"),
        ([*BOTH, "--method", "none", "--heads", "none"], "nothing is left to do"),
        ([*BOTH, "--method", "saliency"], "--method saliency needs gradients"),
        ([*BOTH, "--html", "page.txt"], "'page.txt'; expected one ending in .html"),
        ([*BOTH, "--template", "none.txt"], "Can't read none.txt"),
    ],
)  # fmt: skip
def test_what_cant_be_carried_out(asked, capsys, arguments, message):  # noqa: F811
    """And no model is loaded for it."""
    Path("empty.jsonl").touch()
    assert run(*arguments) == 2
    assert message in told(capsys)
    assert asked == []


def test_what_is_finished_is_kept(asked, capsys):  # noqa: F811
    """A statement that copies nothing has no retrieval heads; its tokens are told all the same."""
    write("q.jsonl", record(id="a", passages=[small.PASSAGES[1]], answer="war"))
    assert run("q.jsonl", "--heads", "retrieval", "--unit", "word", "--html", "page.html") == 2
    printed = capsys.readouterr()
    assert "no token in common" in " ".join(printed.err.split())
    assert "Words of b by leave_one_out" in printed.out
    assert "Words of b by leave_one_out" in Path("page.html").read_text()


def test_a_passage_commands_no_terminal(asked, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    evil = "John \x1b]0;title\x07 sat on the \x1b[2J mat."
    write(
        "q.jsonl", record(id="e", passages=[{"pid": "p\x1b[2J", "text": evil}], answer="John sat.")
    )
    assert run("q.jsonl", "--id", "e", "--heads", "none") == 0
    printed = capsys.readouterr().out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert len(plain) < len(printed), "there are colours, and no other codes"
    assert "John" in plain
    assert "\x1b" not in plain
    assert "\x07" not in plain


# --- what the audit says of it --------------------------------------------------------------------


def test_the_audit_ends_in_a_command_that_works(asked, capsys):  # noqa: F811
    """The hint, as it is printed, looks inside a passage that was used."""
    Path("with blank").mkdir()
    write("with blank/q.jsonl", record(id="a b"))
    Path("t.txt").write_text("Look: {passages} {question}")
    with pytest.raises(SystemExit):
        cli.main(["audit", "with blank/q.jsonl", "--swaps", "2", "--off-topic", "offtopic.txt",
                  "--tau", "1e-9", "--share", "0", "--alpha", "0.99", "--template", "t.txt",
                  "--seed", "5", "--no-prepend-bos"])  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    (hint,) = [line for line in printed if line.startswith("mechattr inside")]
    words_of = shlex.split(hint)
    assert words_of[2] == "with blank/q.jsonl"
    assert {"--seed", "--no-prepend-bos", "--template"} <= set(words_of)
    assert "--max-new-tokens" not in words_of
    assert run(*words_of[2:], "--heads", "none", "--unit", "sentence") == 0
    name = words_of[words_of.index("--pid") + 1]
    assert f"Sentences of {name} by" in capsys.readouterr().out


def test_the_command_has_what_differs_from_the_defaults():
    plan = Plan(prepend_bos=True, max_new_tokens=5, temperature=0.5)
    assert inside_command.command(Path("q.jsonl"), "m", None, plan) == [
        "mechattr", "inside", "q.jsonl", "--model", "m", "--prepend-bos",
        "--max-new-tokens", "5", "--temperature", "0.5"]  # fmt: skip
    plain = inside_command.command(Path("q.jsonl"), "m", None, Plan())
    assert plain == ["mechattr", "inside", "q.jsonl", "--model", "m"]


# --- in Python ------------------------------------------------------------------------------------


def test_find_a_record():
    records = [record(), record(id="b")]
    assert find(records, "b").id == "b"
    assert find(records[1:]).id == "b"
    with pytest.raises(InputError, match="Which of 2 questions"):
        find(records)
    with pytest.raises(InputError, match="Unknown id 'c'"):
        find(records, "c")


@pytest.mark.parametrize("unit", ["token", "word", "sentence"])
def test_the_passage_reads_as_text(unit):
    look = looked("b", None)
    assert look.sid is None
    scores = look.tokens(unit=unit, progress=False)
    assert scores.n_prompts == 2
    assert scores.players.dims == ("position",)
    assert scores.players.coords["position"] == tuple(range(len(scores.players)))
    for texts in scores.tokens:
        assert "".join(texts) == small.BLOCKS[1]
    assert words.players_text(scores.players).split()[1] in (unit, f"{unit}s")
    assert words.units(scores) == "log probability (nats)"


def test_the_scores_are_leave_one_out_of_the_statement():
    """Against prompts written out by hand: the second sentence cut out of passage b."""
    scores = looked().tokens(unit="sentence", progress=False)
    cut = small.BLOCKS[1].replace(" Anna played in the park.", "")
    full, without = (
        small.values("llama-bridge", small.prompt([small.BLOCKS[0], block, small.BLOCKS[2]]))[1]
        for block in (small.BLOCKS[1], cut)
    )
    assert float(scores.full[0]) == pytest.approx(full, abs=1e-6)
    assert float(scores.values[0, -1]) == pytest.approx(full - without, abs=1e-6)
    assert abs(full - without) > 1e-3


def test_heads_name_the_statement():
    look = looked()
    heads, tokens = look.heads(off_topic=off_topic()), look.tokens(progress=False)
    assert heads.prompt_labels == tokens.prompt_labels
    assert heads.provenance["target"] == tokens.provenance["target"] == "log_prob(s2)"
    assert float(heads.full[0]) == pytest.approx(float(tokens.full[0]), abs=1e-5)
    assert words.units(heads) == "log probability (nats)"
