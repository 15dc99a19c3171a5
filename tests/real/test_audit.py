"""An audit on the real model, as a user runs it."""

from __future__ import annotations

import json

import pytest

import mechattr as ma
from mechattr.cli import main

pytestmark = pytest.mark.real

KEYS = {
    "id", "sid", "start", "end", "text", "n_tokens", "logp_full", "logp_none", "context_effect",
    "verdict", "strength", "operator", "n_forwards", "warnings", "passages",
}  # fmt: skip
PASSAGE_KEYS = {
    "pid", "cited", "necessity", "sufficiency", "surrogate", "ci95", "p", "q", "used", "verdict",
}  # fmt: skip

KEEPER = "The lighthouse at Zorvan Point is kept by Tamsin Orrel, who came there after the war."
AGAIN = "Visitors may climb on Sundays. The lighthouse at Zorvan Point is kept by Tamsin Orrel."
REWORDED = "Tamsin Orrel keeps the lighthouse at Zorvan Point. Visitors may climb it on Sundays."
OTHER = "The lighthouse at Melgate stands on a chalk cliff. Ivo Brandt keeps it in order."
BREAD = "Sourdough bread rises slowly. The bakers of Lower Harn feed their starter every evening."
QUESTION = "Who keeps the lighthouse at Zorvan Point?"
ANSWER = "The lighthouse at Zorvan Point is kept by Tamsin Orrel"

RECORDS = [
    {"id": "right", "passages": [OTHER, KEEPER, BREAD], "answer": f"{ANSWER} [2]."},
    {"id": "wrong", "passages": [OTHER, KEEPER, BREAD], "answer": f"{ANSWER} [3]."},
    {"id": "twice", "passages": [AGAIN, BREAD, KEEPER], "answer": f"{ANSWER} [1][3]."},
    {"id": "reworded", "passages": [REWORDED, BREAD, KEEPER], "answer": f"{ANSWER} [1][3]."},
    {"id": "nowhere", "passages": [OTHER, BREAD], "answer": "It is kept by Wilmet Sulkirai [1]."},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    source = folder / "questions.jsonl"
    lines = [json.dumps({"question": QUESTION, **record}) for record in RECORDS]
    source.write_text("\n".join([*lines, '{"id": "bad", "question": "Why?"}']) + "\n")
    command = [str(source), "--model", "smollm2-135m", "--swaps", "6"]
    out, page = folder / "audit.jsonl", folder / "audit.html"
    with pytest.raises(SystemExit) as ended:
        main(["audit", *command, "--out", str(out), "--html", str(page)])
    assert ended.value.code == 0
    return folder


def test_lines_manifest_and_page(files):
    lines = [json.loads(line) for line in (files / "audit.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [record["id"] for record in RECORDS]
    for line in lines:
        assert set(line) >= KEYS
        assert all(set(passage) >= PASSAGE_KEYS for passage in line["passages"])
    manifest = json.loads((files / "audit.manifest.json").read_text())
    assert manifest["model"] == "smollm2-135m"
    assert [problem["line"] for problem in manifest["problems"]] == [6]
    page = (files / "audit.html").read_text()
    assert "Tamsin Orrel" in page
    assert "http" not in page.replace("http-equiv", "")


def test_verdicts_on_what_is_known(files):
    lines = {
        line["id"]: line
        for line in map(json.loads, (files / "audit.jsonl").read_text().splitlines())
    }
    assert {name: line["verdict"] for name, line in lines.items()} == {
        "right": "cited and used",
        "wrong": "cited but unused",
        "twice": "redundant support",
        "reworded": "cited and used",  # the name is there twice, the answer's wording once
        "nowhere": "unsupported",
    }
    source = lines["right"]["passages"][1]
    assert source["necessity"] > 10
    assert source["p"] <= 0.05
    assert lines["twice"]["passages"][0]["redundant_with"] == ["3"]
    assert lines["reworded"]["passages"][0]["verdict"] == "redundant support"


def test_the_values_are_the_models_own(files):
    """One necessity by two plain forward passes."""
    import torch

    model = ma.load_model("smollm2-135m")
    measured = (files / "audit.measured.jsonl").read_text().splitlines()[1]
    found = json.loads(measured)["effects"][0]["necessity"][0][1]

    def log_prob(passages):
        blocks = "".join(f"\n\n[{i}] {text}" for i, text in passages)
        content = f"Answer the question using the passages.{blocks}\n\nQuestion: {QUESTION}"
        prompt = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        own, answer = (model.tokenizer(text).input_ids for text in (prompt, f"{ANSWER}."))
        with torch.no_grad():
            logits = model(torch.tensor([own + answer]))
        rows = logits[0, len(own) - 1 : -1].double().log_softmax(-1)
        return float(rows.gather(1, torch.tensor(answer)[:, None]).sum())

    every = list(enumerate([OTHER, KEEPER, BREAD], start=1))
    expected = log_prob(every) - log_prob([every[0], every[2]])
    assert abs(expected) > 10
    assert found == pytest.approx(expected, abs=1e-3)


def test_inside_the_source(files):
    model = ma.load_model("smollm2-135m")
    record = {"question": QUESTION, **RECORDS[0]}
    look = ma.audit.inside(model, record, "2", "s1")
    words = look.tokens("leave_one_out", unit="word", progress=False)
    assert any("Tamsin" in name or "Orrel" in name for name in words.top(2)["player"])
    heads = look.heads("attribution_patching")
    assert float(heads.values.max()) > 0.5
