"""The question sets of known truth, and what judges an audit by them. No model."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.rag_audit import checks, generator, judging, showing
from experiments.rag_audit.__main__ import main
from experiments.rag_audit.classes import CLASSES
from experiments.rag_audit.contexts import Draft
from experiments.rag_audit.items import ALL, ANY, NONE, SINGLE, Claim, Item
from experiments.rag_audit.kinds import KINDS
from mechattr.errors import InputError

N = 240
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def items():
    return list(generator.generate(N, 0))


def of_class(items, cls):
    return [item for item in items if item["truth"]["class"] == cls]


def statements(items):
    return [(item, s) for item in items for s in item["truth"]["statements"]]


# --- what is written ------------------------------------------------------------------------------


def test_every_item_is_a_record_with_its_truth(items):
    assert len(items) == N
    assert [item["id"] for item in items] == [f"q{i:04d}" for i in range(1, N + 1)]
    for item in items:
        assert not checks.record_problems(item)
        assert item["question"].endswith("?")
        assert item["question"][0].isupper()
        pids = [passage["pid"] for passage in item["passages"]]
        assert pids == [f"p{i + 1}" for i in range(len(pids))]
        assert all(passage["title"] and passage["text"] for passage in item["passages"])
        assert set(item["gold_pids"]) <= set(pids)
        gold = {pid for s in item["truth"]["statements"] for pid in s["sources"]}
        assert set(item["gold_pids"]) == gold


def test_the_audit_reads_it_and_finds_the_same_statements_and_citations(items):
    reading = pytest.importorskip("mechattr.audit.reading")
    for record, item in zip(reading.read(items), items, strict=True):
        assert not isinstance(record, reading.Problem), record
        truth = item["truth"]["statements"]
        stated = record.stated
        texts = [stated.scored[slice(*s.scored)] for s in stated.statements]
        assert texts == [s["text"] for s in truth]
        assert [list(s.cited) for s in stated.statements] == [s["cited"] for s in truth]
        assert not stated.warnings


def test_marks_in_the_answer_are_the_citations(items):
    styles: Counter[str] = Counter()
    for item in items:
        if "statements" in item:
            styles["field"] += 1
            spans = [item["answer"][s["start"] : s["end"]] for s in item["statements"]]
            assert spans == [s["text"] for s in item["truth"]["statements"]]
            cited = {c["sid"]: c["pids"] for c in item["citations"]}
            for s in item["truth"]["statements"]:
                assert cited.get(s["sid"], []) == s["cited"]
            continue
        marks = re.findall(r"\[(\d+)\]", item["answer"])
        assert [f"p{mark}" for mark in marks] == [
            pid for s in item["truth"]["statements"] for pid in s["cited"]
        ]
        styles["inside" if re.search(r"\]\.", item["answer"]) else "other"] += 1
    assert min(styles.values()) > N / 10
    assert len(styles) == 3


# --- balance --------------------------------------------------------------------------------------


def test_all_classes_by_their_shares(items):
    counts = Counter(item["truth"]["class"] for item in items)
    assert counts == generator.shares(N)
    assert set(counts) == set(CLASSES)
    assert min(counts.values()) >= 20


@pytest.mark.parametrize("n", [1, 7, 60, 241])
def test_shares_add_up(n):
    assert sum(generator.shares(n).values()) == n


def test_at_least_half_are_hard_in_each_way_asked_for(items):
    assert sum(item["truth"]["hard"] for item in items) >= N / 2
    assert sum(not item["truth"]["hard"] for item in items) >= N / 10
    features = Counter(f for item in items for f in item["truth"]["features"])
    assert features["near distractors"] >= N / 2
    assert features["rephrased"] >= N / 4
    for feature in ("two passages", "several statements", "short answer"):
        assert features[feature] >= 20, feature
    assert features["reworded value"] >= 5


def test_sources_stand_everywhere(items):
    six = [pair for pair in statements(items) if len(pair[0]["passages"]) == 6]
    places = Counter(pid for _, s in six for pid in s["sources"])
    assert set(places) == {f"p{i}" for i in range(1, 7)}
    assert max(places.values()) <= 1.25 * min(places.values())
    assert {len(item["passages"]) for item in items} == {4, 6, 8}


def test_every_kind_and_many_relations_are_asked_about():
    assert len(KINDS) >= 6
    assert sum(len(kind.relations) for kind in KINDS) >= 12
    for kind in KINDS:
        for relation in kind.relations:
            assert len(relation.wordings) >= 3
            for text in (*relation.wordings, *relation.answers, *relation.rephrased):
                assert text.count("{e}") <= 1, text
                assert text.count("{v}") == 1, text
                assert text.endswith("."), text
            assert "{v}" not in relation.mention + relation.question
            assert "{e}" in relation.mention
            assert "{e}" in relation.question
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_verdicts_of_every_kind_are_expected(items):
    found = Counter(s["verdict"] for _, s in statements(items))
    assert set(found) == {
        "cited and used",
        "cited but unused",
        "used but uncited",
        "redundant support",
        "not distinguishable from parametric memory",
        "unsupported",
    }
    assert min(found.values()) >= 20


# --- the truth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
def test_no_item_of_other_seeds_leaks(seed):
    for cls, count in generator.shares(120).items():
        for number in range(count):
            item = generator.built(cls, generator.shape_of(cls, number), seed)
            assert not checks.problems(item)
            assert all(claim.values for claim in item.claims)


def test_values_are_in_sources_alone(items):
    """Read from what is written rather than from what was planned: the capitalised names and the
    numbers of a statement that the question doesn't have."""
    checked = 0
    for item, s in statements(items):
        texts = {p["pid"]: f"{p['title']}\n{p['text']}" for p in item["passages"]}
        told = re.findall(r"\b(?:[A-Z]\w+|\d+)\b", s["text"][1:])
        for word in told:
            if checks.occurs(word, item["question"]) or s["role"] == ALL:
                continue
            there = {pid for pid, text in texts.items() if checks.occurs(word, text)}
            assert there <= set(s["sources"]), (item["id"], word)
            checked += 1
    assert checked > N / 3


def test_roles_and_verdicts_agree_with_sources_and_citations(items):
    n_sources = {SINGLE: {1}, ALL: {2}, ANY: {2}, NONE: {0}}
    for item, s in statements(items):
        assert len(s["sources"]) in n_sources[s["role"]]
        cls = item["truth"]["class"]
        for pid, verdict in s["passages"].items():
            cited, source = pid in s["cited"], pid in s["sources"]
            if not source or cls == "parametric memory":
                assert verdict == ("cited but unused" if cited else "not used")
            elif cls == "redundant support":
                assert verdict == "redundant support"
            else:
                assert verdict == ("cited and used" if cited else "used but uncited")
        if s["verdict"] == "cited and used":
            assert set(s["cited"]) & set(s["sources"])
        if s["verdict"] == "cited but unused":
            assert s["cited"]
            assert not set(s["cited"]) & set(s["sources"])
        if s["verdict"] == "used but uncited":
            assert s["sources"]
            assert not s["cited"]


def test_a_copy_has_the_same_text_under_another_title(items):
    copied = other = 0
    for item in of_class(items, "redundant support"):
        texts = {p["pid"]: p for p in item["passages"]}
        first, second = (texts[pid] for pid in item["gold_pids"])
        assert first["title"] != second["title"]
        same = first["text"] == second["text"]
        assert same == item["truth"]["variant"].startswith("copied")
        copied, other = copied + same, other + (not same)
    assert min(copied, other) >= 10


def test_both_passages_of_a_joint_statement_give_something_of_their_own(items):
    for item in of_class(items, "two passages"):
        if "reworded value" in item["truth"]["features"]:
            continue
        (s,) = item["truth"]["statements"]
        texts = {p["pid"]: p["text"] for p in item["passages"]}
        for pid in s["sources"]:
            others = " ".join(text for other, text in texts.items() if other != pid)
            own = [w for w in checks.words(s["text"]) if checks.occurs(w, texts[pid])]
            alone = [w for w in own if not checks.occurs(w, others + item["question"])]
            hops = item["truth"]["variant"].startswith("two hops")
            assert alone or hops, item["id"]


def test_near_distractors_share_relation_or_thing(items):
    for item in items:
        about = Counter(item["truth"]["about"].values())
        near = sum(about[a] for a in ("same relation", "same thing", "mention"))
        assert (near > 0) == ("near distractors" in item["truth"]["features"])


# --- the checks can fail --------------------------------------------------------------------------


def made(question="When was the Ovar launched?", **changes) -> Item:
    source = "The Ovar left the yard in 1811, and people were glad to see it go at last."
    other = "The Tirra has two masts and is slow, which nobody minds on a summer evening."
    claim = Claim("The Ovar was launched in 1811.", (0,), (0,), SINGLE, ("1811",))
    drafts = [Draft("The Ovar", source, "source"), Draft("The Tirra", other, "off topic")]
    return replace(Item(question, drafts, [claim]), **changes)


def test_a_sound_item_has_no_problems():
    assert not checks.problems(made())


def test_a_value_in_the_question_or_a_distractor_is_a_leak():
    assert checks.leaks(made("Was the Ovar launched in 1811?"))
    drafts = made().drafts
    leaky = Draft("The Tirra", "The Tirra was built in 1811.", "off topic")
    assert checks.leaks(made(drafts=[drafts[0], leaky]))
    assert not checks.leaks(made(drafts=[drafts[0], replace(leaky, text="18111 masts.")]))


def test_a_source_that_does_not_say_it_is_found():
    assert checks.leaks(made(drafts=made().drafts[::-1]))


def test_sentences_and_titles_that_come_twice_are_found():
    first, second = made().drafts
    assert checks.doubles(made(drafts=[first, replace(second, text=first.text + " It sank.")]))
    assert checks.doubles(made(drafts=[first, replace(second, title=first.title)]))


def test_an_answer_in_the_words_of_its_source_is_not_rephrased():
    claim = replace(made().claims[0], text="The Ovar left the yard in 1811.")
    assert not checks.too_literal(made(claims=[claim]))
    assert checks.too_literal(made(claims=[claim], features=["rephrased"]))
    assert not checks.too_literal(made(features=["rephrased"]))


# --- determinism ----------------------------------------------------------------------------------


def test_a_seed_makes_the_same_bytes_whatever_the_hashes(tmp_path):
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for hashes, path in zip(("1", "2"), paths, strict=True):
        command = [sys.executable, "-m", "experiments.rag_audit", "generate"]
        subprocess.run(
            [*command, "--n", "40", "--seed", "3", "--out", str(path)],
            cwd=ROOT,
            env={"PYTHONHASHSEED": hashes, "PATH": ""},
            check=True,
        )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    generator.write(generator.generate(40, 4), paths[1])
    assert paths[0].read_bytes() != paths[1].read_bytes()


# --- judging --------------------------------------------------------------------------------------


def perfect(items) -> list[dict]:
    lines = []
    for item, s in statements(items):
        passages = []
        for pid, verdict in s["passages"].items():
            source = pid in s["sources"]
            needed = source and s["role"] != ANY
            passages.append(
                {
                    "pid": pid,
                    "necessity": 3.0 * needed,
                    "sufficiency": 2.0 * source,
                    "surrogate": 1.0 * source,
                    "p": 0.01 if source else 0.5,
                    "used": source,
                    "verdict": verdict,
                }
            )
        start = int(s["sid"][1:])
        line = {"id": item["id"], "start": start, "verdict": s["verdict"], "passages": passages}
        lines.append(line)
    return lines


@pytest.fixture(scope="module")
def few(items):
    return items[:60]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(judging, "RESAMPLES", 20)


def test_a_perfect_audit(few):
    lines = perfect(few)
    found = judging.evaluated(few, lines[::-1])
    assert found["n_questions"] == len(few)
    assert found["verdicts"]["accuracy"]["value"] == 1
    assert found["passage_verdicts"]["accuracy"]["value"] == 1
    assert found["redundancy"]["recall"]["value"] == 1
    assert found["redundancy"]["a duplicate called unused"]["value"] == 0
    assert found["false_positives"]["all"]["used"]["value"] == 0
    assert found["auroc"]["all"]["surrogate"]["value"] == 1
    assert found["auroc"]["without duplicates"]["necessity"]["value"] == 1
    assert found["auroc"]["redundant support"]["necessity"]["value"] == 0.5
    assert found["missing"] == []
    json.dumps(found)
    assert "| accuracy | 1.000 ± 0.000" in showing.text(found)


def test_what_is_wrong_is_counted(few):
    lines = perfect(few)
    item = next(item for item in few if item["truth"]["class"] == "cited and used")
    line = next(line for line in lines if line["id"] == item["id"])
    line["verdict"] = "inconclusive"
    other = next(row for row in line["passages"] if row["pid"] not in item["gold_pids"])
    other.update(used=True, p=0.01, necessity=9.0, verdict="used but uncited")
    found = judging.evaluated(few, lines)
    wrong = found["verdicts"]["accuracy"]
    assert wrong["count"] == wrong["total"] - 1
    assert wrong["stderr"] > 0
    assert found["verdicts"]["confusion"]["cited and used"]["inconclusive"] == 1
    assert found["false_positives"]["all"]["used"]["count"] == 1
    assert found["false_positives"]["all"]["p < .05"]["count"] == 1
    assert found["passage_verdicts"]["confusion"]["not used"]["used but uncited"] == 1
    assert found["auroc"]["cited and used"]["necessity"]["value"] < 1


def test_supported_is_cited_and_used_with_entailment(few):
    lines = perfect(few)
    for line in lines:
        if line["verdict"] == "cited and used":
            line["verdict"] = "supported"
    assert judging.evaluated(few, lines)["verdicts"]["accuracy"]["value"] == 1


def test_questions_without_lines_are_named(few):
    lines = [line for line in perfect(few) if line["id"] != few[3]["id"]]
    found = judging.evaluated(few, lines)
    assert found["missing"] == [few[3]["id"]]
    assert found["n_questions"] == len(few) - 1


def test_lines_of_another_set_are_refused(few):
    lines = perfect(few)
    with pytest.raises(InputError, match="No line of the audit"):
        judging.evaluated(few, [])
    with pytest.raises(InputError, match="statements in the set"):
        judging.evaluated(few, [*lines, lines[0]])
    lines[0]["passages"] = lines[0]["passages"][1:]
    with pytest.raises(InputError, match="another set"):
        judging.evaluated(few, lines)


def test_auroc_by_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[truth] for b in scores[~truth]]
    assert judging.auroc(scores, truth) == pytest.approx(np.mean(pairs))
    assert math.isnan(judging.auroc(scores, np.zeros(40, dtype=bool)))


# --- the command ----------------------------------------------------------------------------------


def test_the_command_from_end_to_end(tmp_path, capsys):
    items, lines, numbers = (tmp_path / name for name in ("items.jsonl", "a.jsonl", "n.json"))
    assert main(["generate", "--n", "20", "--out", str(items)]) == 0
    made = judging.read_lines(items)
    assert made == list(generator.generate(20, 0))
    lines.write_text("".join(json.dumps(line) + "\n" for line in perfect(made)))
    command = ["evaluate", "--items", str(items), "--lines", str(lines), "--json", str(numbers)]
    assert main(command) == 0
    assert "## Verdicts of statements" in capsys.readouterr().out
    assert json.loads(numbers.read_text())["n_questions"] == 20


def test_the_command_says_what_is_wrong_with_a_file(tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": 1}\n{\n')
    assert main(["evaluate", "--items", str(broken), "--lines", str(broken)]) == 1
    assert "line 2 isn't JSON" in capsys.readouterr().err
    absent = str(tmp_path / "absent.jsonl")
    assert main(["evaluate", "--items", absent, "--lines", absent]) == 1
