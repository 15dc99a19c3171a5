"""The page of an audit as text: sound, escaped, complete, the same data as it was given."""

from __future__ import annotations

import json
import math
import re
from html import unescape

import pytest

from mechattr.display import AuditView, audit_data, audit_page
from mechattr.display.audit_report import SHOWN
from mechattr.display.page import POLICY
from mechattr.errors import InputError
from tests.display.audit_reports import EVIL, STRANGE, VERDICTS, question, report, usual
from tests.display.test_attention_view import Page

JSON = r'<script type="application/json">(.*?)</script>'


def page_of(told: dict, tmp_path) -> str:
    return audit_page(told, tmp_path / "deep" / "audit.html").read_text("utf-8")


def pieces(html: str) -> tuple[list[dict], dict]:
    """The questions and the index that the script reads."""
    *questions, index = [json.loads(text) for text in re.findall(JSON, html, re.S)]
    return questions, index


def sound(html: str) -> Page:
    page = Page()
    page.feed(re.sub(r"<(meta|link)[^>]*>", "", html))
    assert not page.open
    return page


@pytest.mark.parametrize("whole", [True, False])
def test_the_html_is_sound_and_needs_no_network(whole, tmp_path):
    strange = question(1, VERDICTS, strange=STRANGE)
    evil = report(
        [strange],
        problems=[{"line": 3, "id": EVIL, "reason": STRANGE}],
        manifest={"model": EVIL, "template": STRANGE, EVIL: {"x": [EVIL]}},
    )
    evil["summary"] |= {"notes": [EVIL], "operator": EVIL, "disagreement": {EVIL: EVIL}}
    evil["summary"]["rates"][0]["verdict"] = EVIL
    evil["summary"]["rules"]["control"] = EVIL
    html = page_of(evil, tmp_path) if whole else AuditView(evil).html
    tags = [tag for tag, _ in sound(html).seen]
    assert tags.count("script") == 3  # one question, the index, the script
    assert not {"img", "iframe", "object", "link"} & set(tags)
    assert not any(key.startswith("on") for _, attributes in sound(html).seen for key in attributes)
    assert "alert(1)</script" not in html
    assert "url(" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert (POLICY in html) == whole
    assert "\ud83d" not in html


def test_the_questions_in_the_page_are_the_ones_given(tmp_path):
    told = usual()
    questions, index = pieces(page_of(told, tmp_path))
    assert len(questions) == len(told["questions"]) == 22
    assert index["ids"] == [one["id"] for one in questions]
    for shown, given in zip(questions, told["questions"], strict=True):
        text = audit_data.well_formed(given["answer"])
        assert (shown["answer"], shown["generated"]) == (text, given["generated"])
        assert [p["n"] for p in shown["passages"]] == [p["n_tokens"] for p in given["passages"]]
        for line, statement in zip(shown["statements"], given["statements"], strict=True):
            assert set(statement) - set(line) in ({"id", "text", "tokens"}, {"id", "text"})
            for mine, theirs in zip(line["passages"], statement["passages"], strict=True):
                assert mine["necessity"] == pytest.approx(theirs["necessity"], abs=1e-4)
                assert mine["ci95"] == pytest.approx(theirs["ci95"], abs=1e-4)
        for mine, theirs in zip(shown["tokens"], given["tokens"], strict=True):
            assert mine[:2] == [theirs["start"], theirs["end"]]
            assert mine[2:4] == pytest.approx([theirs["logp_full"], theirs["logp_none"]], abs=5e-4)
            assert given["statements"][mine[4]]["sid"] == theirs["sid"]


def test_effects_on_words_are_kept_small(tmp_path):
    one = question(14, ("cited and used", "supported"), second=True)
    first = one["statements"][0]
    first["passages"][1]["token_necessity"][:3] = [math.nan, None, -1e-9]
    told = audit_data.packed(one, 10_000)
    for line, given in zip(told["statements"], one["statements"], strict=True):
        assert "tokens" not in line
        mine = [token for token in told["tokens"] if token[4] == one["statements"].index(given)]
        assert len(mine) == len(given["tokens"]) > 8
        for score, theirs in zip(line["passages"], given["passages"], strict=True):
            for key in ("token_necessity", "token_sufficiency"):
                known = [0 if x is None or math.isnan(x) else x for x in theirs[key]]
                assert [x or 0 for x in score[key]] == pytest.approx(known, abs=5e-4)
                assert all(len(str(abs(x))) <= 5 for x in score[key] if x is not None)
        for other in line["operators"]["mask"]["passages"]:
            assert set(other) == {"pid", "necessity", "surrogate", "verdict"}
    # what isn't a number is None, and nothing is written out as more than it is
    assert json.dumps(told["statements"][0]["passages"][1]["token_necessity"][:3]) == (
        "[null, null, 0]"
    )
    assert len(told["tokens"][0]) == 5


def test_effects_on_other_words_than_the_answers_are_left_out():
    one = question(14, ("cited and used", "supported"))
    first, second = (line["passages"][0] for line in one["statements"])
    first["token_necessity"].append(0.5)
    del second["token_sufficiency"]
    told = [line["passages"][0] for line in audit_data.packed(one, 10_000)["statements"]]
    assert "token_necessity" not in told[0]
    assert "token_necessity" in told[1]
    assert "token_sufficiency" not in told[1]
    # without the answer's tokens they belong to no word
    bare = audit_data.packed(one | {"tokens": []}, 10_000)["statements"]
    assert not any(key.startswith("token_") for p in bare[1]["passages"] for key in p)


def test_a_token_of_no_statement():
    one = question(14, ("cited and used",))
    one["tokens"][0]["sid"] = None
    del one["tokens"][1]["sid"]
    assert [token[4] for token in audit_data.packed(one, 10_000)["tokens"]][:3] == [None, None, 0]


def test_what_json_cannot_hold_is_mended():
    value = {
        "a": math.nan,
        3: (math.inf, True, None, 7, "\ud83d🙂"),
        "b": 0.00012345678,
        "c": -12.34567,
    }
    assert audit_data.clean(value) == {
        "a": None, "3": [None, True, None, 7, "�🙂"], "b": 0.00012346, "c": -12.3457
    }  # fmt: skip
    one = question(1, ("unsupported",))
    one["statements"][0]["passages"][0] |= {"p": math.nan, "necessity": None, "ci95": None}
    one["tokens"][0]["logp_none"] = -math.inf
    told = audit_data.packed(one, 10_000)
    assert told["statements"][0]["passages"][0]["p"] is None
    assert told["tokens"][0][3] is None
    json.dumps(told, allow_nan=False)


def test_numbers_of_arrays_are_numbers():
    np = pytest.importorskip("numpy")
    assert audit_data.clean([np.float32(0.5), np.int64(3), np.float64(math.nan)]) == [0.5, 3, None]


def test_the_summary_says_everything(tmp_path):
    html = unescape(page_of(usual(), tmp_path))
    for part in (
        "53 statements of 22 answers audited against 103 retrieved passages",
        "HuggingFaceTB/SmolLM2-135M-Instruct @ 12fd25f",
        "2 records could not be used",
        "There are no passages.",
        "Not valid UTF-8 at byte 212.",
        "The null: 184 swaps for off-topic passages, pooled",
        "128 or more",
        "The null is pooled over the run",
        "Where two operators disagree",
        "{passages}",
        "13.2 %",
    ):
        assert part in html, part
    found = re.search(r'class="rate v-unsupported">.*?</div>', html, re.S)
    assert found
    rate = report(usual()["questions"])["summary"]["rates"]
    mine = next(r for r in rate if (r["of"], r["verdict"]) == ("statements", "unsupported"))
    assert f'<i style="width:{100 * mine["rate"]:.2f}%">' in found[0]
    low, high = mine["low"], mine["high"]
    assert f'<b style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%">' in found[0]


def test_the_most_alarming_question_comes_first():
    questions = [
        question(0, ("supported", "supported")),
        question(1, ("cited but unused",)),
        question(2, ("unsupported", "supported")),
        question(3, ("unsupported", "unsupported")),
        question(4, ("unsupported", "cited but unused")),
        question(5, ()),
    ]
    _, index = pieces(AuditView(report(questions), shown=6).html)
    assert index["order"] == [3, 4, 2, 1, 0, 5]
    names = [one["name"] for one in index["looks"]]
    assert [[names[v] for v in has] for has in index["has"]][4] == [
        "unsupported", "cited but unused"
    ]  # fmt: skip


def test_a_citation_is_found_by_its_own_verdict():
    one = question(0, ("cited and used",))
    one["statements"][0]["passages"][1] |= {"cited": True, "verdict": "cited but unused"}
    assert audit_data.verdicts(one) == ["cited and used", "cited but unused"]


def test_a_notebook_shows_the_first_few(tmp_path):
    told = usual()
    view = AuditView(told)
    questions, index = pieces(view.html)
    assert len(questions) == SHOWN
    assert not index["whole"]
    worst = sorted(told["questions"], key=audit_data.alarm)[:SHOWN]
    assert {one["id"] for one in questions} == {one["id"] for one in worst}
    assert f"The {SHOWN} most alarming of 22 questions" in view.html
    assert "22 questions, 53 statements" in view.heading
    assert view.save(tmp_path / "v.html").read_text("utf-8").count("application/json") > SHOWN
    assert "most alarming of" not in AuditView(told, shown=30).html


def test_long_passages_are_cut_to_what_a_page_can_hold(tmp_path, monkeypatch):
    questions = [question(i, ("supported",), passages=2, length=40) for i in range(3)]
    questions[0]["passages"][0]["text"] = "x" * 50_000
    short = sum(len(p["text"]) for one in questions for p in one["passages"]) - 50_000
    assert audit_data.longest_passage(questions, 10**6) == 50_000
    assert audit_data.longest_passage(questions, short + 9_000) == 9_000
    assert audit_data.longest_passage(questions, 10) == audit_data.LEAST
    assert audit_data.longest_passage([], 10) == audit_data.LEAST
    monkeypatch.setattr("mechattr.display.audit_report.BUDGET", short + 9_000)
    shown, _ = pieces(page_of(report(questions), tmp_path))
    first, second = shown[0]["passages"]
    assert (len(first["text"]), first["letters"]) == (9_000, 50_000)
    assert second["text"] == questions[0]["passages"][1]["text"]
    assert "letters" not in second
    assert all(start < 9_000 for one in shown[0]["highlights"] for start, _, _ in one["tokens"])


def test_a_run_without_anything_is_said_to_be_so(tmp_path):
    html = page_of(report([], manifest={}, problems=[]), tmp_path)
    sound(html)
    assert "No question was shown." in html
    assert "There are no rates" in html
    assert "could not be used" not in html
    assert pieces(html)[0] == []


def test_parts_may_be_missing(tmp_path):
    told = report([question(1, ("supported",))])
    kept = ("n_questions", "n_statements", "rules")
    summary = {key: told["summary"][key] for key in kept}
    bare = {"questions": told["questions"], "summary": summary}
    one = bare["questions"][0]
    for key in ("tokens", "highlights", "warnings", "gold_pids", "generated"):
        del one[key]
    assert "1 statement of 1 answer audited" in page_of(bare, tmp_path)
    with pytest.raises(InputError, match="lacks questions, summary"):
        AuditView({})
    with pytest.raises(InputError, match="shown is -1"):
        AuditView(told, shown=-1)


def test_many_problems_are_counted(tmp_path):
    problems = [{"line": i, "id": None, "reason": "No."} for i in range(1200)]
    html = page_of(report([], problems=problems), tmp_path)
    assert "1,200 records could not be used" in html
    assert "And 700 more." in html
