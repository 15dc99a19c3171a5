"""The manifest says where the records are from; a run goes on when there are more."""

from __future__ import annotations

import hashlib
import json

from mechattr.audit import manifest
from tests.audit import small
from tests.audit.small import record
from tests.audit.test_running import RECORDS, audit, write

TEMPLATE = "Read this.{passages}\n\nQuestion: {question}"
MESSAGES = [{"role": "user", "content": "Passages: {passages}\n\nQuestion: {question}"}]


def test_a_file_and_its_digest(tmp_path):
    given = [*RECORDS[2:], record(id="bad", passages=[]), record(id="own", template=TEMPLATE),
             record(id="sent", messages=MESSAGES), record(id="made", answer=None),
             record(id="not there", messages=[{"role": "user", "content": "Tom"}])]  # fmt: skip
    path = write(tmp_path / "questions.jsonl", *given)
    found = audit(path, out=tmp_path / "audit.jsonl", max_new_tokens=4)
    told = json.loads((tmp_path / "audit.manifest.json").read_text())
    assert told["source"] == {
        "name": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "n_records": 7,
        "own_template": 1,
        "messages": 1,  # the other is a problem
        "generated": 1,
    }
    assert (len(found.questions), len(found.problems)) == (5, 2)
    assert "source" not in found.facts


def test_a_run_goes_on_with_more_records_in_its_file(tmp_path):
    out = tmp_path / "audit.jsonl"
    path = write(tmp_path / "questions.jsonl", RECORDS[3])
    first = audit(path, out=out).manifest["source"]
    write(path, RECORDS[3], record(id="late", passages=[small.PASSAGES[2]], answer="Tom slept."))
    kept = (tmp_path / "audit.measured.jsonl").read_bytes()
    second = audit(str(path), out=out).manifest["source"]
    assert (tmp_path / "audit.measured.jsonl").read_bytes().startswith(kept)
    assert (first["n_records"], second["n_records"]) == (1, 2)
    assert first["sha256"] != second["sha256"]


def test_what_isnt_a_file_has_a_name():
    from datasets import Dataset

    named = [manifest.described(source, 4)["name"] for source in (RECORDS, iter(RECORDS))]
    assert named == ["list", "list_iterator"]
    source = Dataset.from_list(RECORDS, split="test")
    source.info.dataset_name = "asked"
    assert manifest.described(source, 4) == {
        "name": "Dataset asked test", "sha256": None, "n_records": 4}  # fmt: skip


def test_counts_of_a_run_that_was_resumed(tmp_path):
    """What was measured before counts as well."""
    given = [record(id="own", template=TEMPLATE, answer="Tom slept.")]
    for _ in range(2):
        found = audit(given, out=tmp_path / "audit.jsonl")
        assert found.manifest["source"]["own_template"] == 1
        assert found.manifest["source"]["name"] == "list"
