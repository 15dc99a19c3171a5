"""The page of an audit in a real browser, where one is installed: pointer, keys, phone, dark."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mechattr.display import AuditView, audit_page, scale, theme
from mechattr.display.audit_words import times
from tests.display.audit_reports import STRANGE, VERDICTS, question, report, usual
from tests.display.browser import BROWSER, Page, browser

pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here")

COUNT = "document.querySelector('[data-is=count]').textContent"
IDS = "[...document.querySelectorAll('.q')].map((q) => q.dataset.id)"
OPEN = "[...document.querySelectorAll('.q')].filter((q) => !q.querySelector('.body').hidden)"
CARDS = "[...document.querySelectorAll('.passage')]"
PRESSED = "[...document.querySelectorAll('.pick')].map((b) => b.ariaPressed)"
WORDS = "document.querySelector('.passage .words')"
WORDWISE = "[...document.querySelectorAll('.wordwise button')]"
BACK_HIDDEN = "document.querySelector('.key .back').hidden"
SHUT = "document.querySelectorAll('button.open[aria-expanded=false]')"


@pytest.fixture(scope="module")
def only_page(tmp_path_factory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(only_page) -> Iterator[Page]:
    """Nothing may be said on the console, whatever a test does."""
    only_page.said.clear()
    only_page.screen()
    yield only_page
    assert only_page.said == []


def shown(page: Page, tmp_path, told: dict) -> Page:
    page.open(audit_page(told, tmp_path / "audit.html"))
    page.wait("document.querySelector('.q')")
    page.settle()
    return page


def put(page: Page, name: str, value: str, event: str = "change") -> None:
    page.run(
        f"(() => {{ const e = document.querySelector('[data-is={name}]'); e.value = {value!r};"
        f"e.dispatchEvent(new Event('{event}')) }})()"
    )
    page.settle()


def texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")


def by_effect(line: dict) -> list[str]:
    """The passages' ids as a statement sorts them."""
    ranked = sorted(line["passages"], key=lambda p: -max(p["necessity"], p["surrogate"]))
    return [p["pid"] for p in ranked]


def test_the_first_question_is_open_and_the_others_cost_nothing(page, tmp_path):
    shown(page, tmp_path, usual())
    assert page.run(f"{OPEN}.length") == 1
    assert page.run(f"{OPEN}[0].dataset.id") == "q14"  # the one with every verdict
    assert page.run("document.querySelectorAll('.body > *').length") < 5
    assert page.run("document.querySelectorAll('.q').length") == 20
    assert page.run(COUNT) == "22 of 22 questions"


def test_a_statement_is_chosen_by_pointer_list_and_key(page, tmp_path):
    told = question(14, VERDICTS, passages=6, second=True)
    shown(page, tmp_path, report([told]))

    def chosen(k: int) -> None:
        assert page.run(PRESSED) == ["true" if i == k else "false" for i in range(8)]
        line = told["statements"][k]
        assert page.run(f"{CARDS}.map((c) => c.dataset.pid)") == by_effect(line)
        assert f"for statement {k + 1}" in page.run(
            "document.querySelector('.passages h4').textContent"
        )
        on = page.run("[...document.querySelectorAll('.st.on')].map((s) => Number(s.dataset.k))")
        assert set(on) == {k}

    chosen(6)  # the most alarming
    page.click(*page.centre("document.querySelectorAll('.pick')[3]"))
    chosen(3)
    page.click(*page.centre("document.querySelector('.st[data-k=\"0\"] .tag')"))
    chosen(0)
    page.run("document.querySelector('.st[data-k=\"4\"]').focus()")
    page.key("Enter")
    chosen(4)
    page.run("document.querySelectorAll('.pick')[1].focus()")
    page.key("Enter")
    chosen(1)


def test_a_passage_has_the_statements_numbers(page, tmp_path):
    told = question(14, ("used but uncited", "supported"), passages=5)
    told["statements"][0]["passages"][3] |= {
        "necessity": None, "surrogate": None, "sufficiency": None, "ci95": None, "p": None,
        "q": None, "redundant_with": ["doc-14-1"], "shapley": 1.25,
    }  # fmt: skip
    shown(page, tmp_path, report([told]))
    by_id = {p["pid"]: p for p in told["statements"][0]["passages"]}
    for i, pid in enumerate(page.run(f"{CARDS}.map((c) => c.dataset.pid)")):
        score = by_id[pid]
        numbers = page.run(
            f"[...{CARDS}[{i}].querySelectorAll('.bars .n')].map((n) => n.innerText)"
        )
        if score["necessity"] is None:
            assert i == 4  # nothing known: last
            assert numbers == ["–", "–", "–", "+1.25 ×3.5"]
            assert "says the same as [2]" in page.run(f"{CARDS}[{i}].textContent")
            continue
        for what, text in zip(("necessity", "surrogate", "sufficiency"), numbers, strict=True):
            said = re.sub(r"\s+", " ", text).split(" ")
            value = float(said[0].replace("−", "-"))
            assert value == pytest.approx(score[what], abs=0.006)
            assert said[1] == times(score[what])
        low, high = (f"{end:+.2f}".replace("-", "−") for end in score["ci95"])
        assert f"[{low}, {high}]" in re.sub(r"\s+", " ", numbers[1])
    best = page.run(f"{CARDS}[0].innerText")
    assert "used but uncited" in best
    assert "p 0.002 · q 0.011" in best
    bars = page.run(
        f"[...{CARDS}[0].querySelectorAll('.track i')].map((i) => i.getBoundingClientRect().width)"
    )
    measured = [p for p in by_id.values() if p["necessity"] is not None]
    first = by_id[by_effect({"passages": measured})[0]]
    # the dashed line is at the larger of τ and a tenth of C
    lines = page.run(
        f"[...{CARDS}[0].querySelectorAll('.track')][0].querySelectorAll('s').length && "
        f"['s.zero', 's.counts'].map((s) => {CARDS}[0].querySelector(s).getBoundingClientRect().x)"
    )
    nats = bars[0] / first["necessity"]
    assert (lines[1] - lines[0]) / nats == pytest.approx(0.6931, rel=0.03)
    assert bars[0] / bars[2] == pytest.approx(first["necessity"] / first["sufficiency"], rel=0.02)


def test_badges_and_gold(page, tmp_path):
    told = question(14, ("cited and used",), passages=3)
    shown(page, tmp_path, report([told]))
    badges = page.run(
        f"{CARDS}.map((c) => [...c.querySelectorAll('.badge')].map((b) => b.textContent))"
    )
    assert badges == [["cited", "gold"], [], []]


@pytest.mark.parametrize("dark", [False, True])
def test_words_are_underlined_by_what_the_passages_change(page, tmp_path, dark):
    page.screen(dark=dark)
    told = question(14, ("cited and used", "supported"))
    shown(page, tmp_path, report([told]))
    effects = [t["logp_full"] - t["logp_none"] for t in told["tokens"]]
    end = max(map(abs, effects))
    first = [e for t, e in zip(told["tokens"], effects, strict=True) if t["sid"] == "s1"]
    colours = page.run(
        "[...document.querySelectorAll('.st.on .t')]"
        ".map((t) => getComputedStyle(t).borderBottomColor)"
    )
    assert len(colours) == len(first) > 8
    for colour, effect in zip(colours, first, strict=True):
        expected = theme.colours(effect, end)[dark]
        parts = [int(expected[i : i + 2], 16) for i in (1, 3, 5)]
        found = [int(float(part)) for part in re.findall(r"[\d.]+", colour)[:3]]
        assert max(abs(a - b) for a, b in zip(found, parts, strict=True)) <= 2
    assert scale.colour(effects[0], end) != scale.colour(0.0, end)
    assert texts(page, ".mark") == ["[1]", "[1]"]
    title = page.run("document.querySelector('.st.on .t').title")
    assert f"nats ({times(effects[0])})" in title


def heats(page: Page) -> list[list[int]]:
    """The colours of the lines under the chosen statement's words."""
    found = page.run(
        "[...document.querySelectorAll('.st.on .t')]"
        ".map((t) => getComputedStyle(t).borderBottomColor)"
    )
    return [[int(float(part)) for part in re.findall(r"[\d.]+", colour)[:3]] for colour in found]


def assert_coloured(page: Page, effects: list[float], end: float, dark: bool = False) -> None:
    found = heats(page)
    assert len(found) == len(effects) > 8
    for colour, effect in zip(found, effects, strict=True):
        said = theme.colours(effect, end)[dark]
        expected = [int(said[i : i + 2], 16) for i in (1, 3, 5)]
        assert max(abs(a - b) for a, b in zip(colour, expected, strict=True)) <= 2


def all_together(told: dict, sid: str) -> list[float]:
    return [t["logp_full"] - t["logp_none"] for t in told["tokens"] if t["sid"] == sid]


def end_of(told: dict) -> float:
    """Where the colours end, for all passages and for each."""
    parts = [p["token_necessity"] for line in told["statements"] for p in line["passages"]]
    whole = [t["logp_full"] - t["logp_none"] for t in told["tokens"]]
    return max(map(abs, [*whole, *(x for part in parts for x in part)]))


def card_of(told: dict, s: int, i: int) -> dict:
    """The numbers of the passage that stands at place i for statement s."""
    line = told["statements"][s]
    return next(p for p in line["passages"] if p["pid"] == by_effect(line)[i])


@pytest.mark.parametrize("dark", [False, True])
def test_what_one_passage_does_for_each_word(page, tmp_path, dark):
    page.screen(dark=dark)
    told = question(14, ("cited and used", "supported"))
    # a passage that does more for a word than all do together: the scale goes as far
    told["statements"][0]["passages"][0]["token_necessity"][2] = 9.5
    shown(page, tmp_path, report([told]))
    assert end_of(told) == 9.5
    assert_coloured(page, all_together(told, "s1"), 9.5, dark)
    assert texts(page, ".key")[0].startswith("−9.50+9.50nats: ")
    assert page.run(BACK_HIDDEN) is True
    for i in (0, 2):
        page.click(*page.centre(f"{WORDWISE}[{i}]"))
        score = card_of(told, 0, i)
        assert_coloured(page, score["token_necessity"], 9.5, dark)
        assert page.run(f"{WORDWISE}.map((b) => b.ariaPressed)") == [
            str(j == i).lower() for j in range(4)
        ]
        assert page.run("[...document.querySelectorAll('.passage.on')].map((c) => c.dataset.pid)") \
            == [score["pid"]]  # fmt: skip
        place = [p["pid"] for p in told["passages"]].index(score["pid"]) + 1
        key = texts(page, ".key")[0]
        assert key.startswith("−9.50+9.50nats: ")
        assert f"what each loses when only [{place}] " in key
        assert f"{score['pid']} goes: its necessity" in key
        titles = page.run("[...document.querySelectorAll('.st.on .t')].map((t) => t.title)")
        for title, one, other in zip(
            titles, score["token_necessity"], score["token_sufficiency"], strict=True
        ):
            said = re.fullmatch(
                rf"\[{place}\]: necessity (\S+) nats \(×\S+\), sufficiency (\S+) nats \(×\S+\)",
                title,
            )
            assert said, title
            assert [float(x.replace("−", "-")) for x in said.groups()] == pytest.approx(
                [one, other], abs=0.0056
            )
        # the other statement's words are as they were
        other = page.run("document.querySelector('.st:not(.on) .t').title")
        assert "with the passages" in other
    assert heats(page) != [heats(page)[0]] * len(heats(page))


def test_the_ways_back_to_all_passages(page, tmp_path):
    told = question(14, ("cited and used", "supported"))
    shown(page, tmp_path, report([told]))
    together = heats(page)
    focused = "document.activeElement"

    def chosen(i: int | None) -> None:
        assert page.run(f"{WORDWISE}.map((b) => b.ariaPressed)") == [
            str(j == i).lower() for j in range(4)
        ]
        assert (heats(page) == together) == (i is None)
        assert page.run(BACK_HIDDEN) == (i is None)
        assert ("all passages together make each" in texts(page, ".key")[0]) == (i is None)
        assert page.run("document.querySelectorAll('.passage.on').length") == (i is not None)

    chosen(None)
    page.run(f"{WORDWISE}[0].focus()")
    page.key("Enter")
    chosen(0)
    page.key("Enter")  # the same again
    chosen(None)
    page.key("Enter")
    page.key("Escape")
    chosen(None)
    page.click(*page.centre(f"{WORDWISE}[0]"))
    page.run("document.querySelector('.key .back').focus()")
    page.key("Enter")
    chosen(None)
    assert page.run(f"{focused} === {WORDWISE}[0]")
    # another statement begins with all of them, and this one too when it comes back
    page.key("Enter")
    chosen(0)
    page.click(*page.centre("document.querySelectorAll('.pick')[1]"))
    assert_coloured(page, all_together(told, "s2"), end_of(told))
    page.click(*page.centre("document.querySelectorAll('.pick')[0]"))
    chosen(None)
    page.run("document.querySelector('.answer').dispatchEvent("
             "new KeyboardEvent('keydown', {key: 'Escape', bubbles: true}))")  # fmt: skip
    chosen(None)


def test_on_a_phone_the_words_come_into_sight_and_the_passage_again(page, tmp_path):
    page.screen(390, 800)
    told = question(14, VERDICTS, passages=6)
    shown(page, tmp_path, report([told]))
    inside = (
        "(() => {{ const b = {}.getBoundingClientRect(); return b.top >= 0 && b.bottom <= 800 }})()"
    )
    words = inside.format("document.querySelector('.st.on')")
    back = inside.format("document.querySelector('.key .back')")
    page.tap(*page.centre(f"{WORDWISE}[3]"))
    pid = page.run("document.querySelector('.passage.on').dataset.pid")
    assert page.run(words)
    assert page.run(back)
    assert not page.run(inside.format(f"{WORDWISE}[3]"))
    page.tap(*page.centre("document.querySelector('.key .back')"))
    assert page.run(f"document.activeElement.closest('.passage').dataset.pid === {pid!r}")
    assert page.run(inside.format(f"{WORDWISE}[3]"))
    assert page.run(BACK_HIDDEN) is True


def test_runs_without_effects_on_words_are_drawn_as_ever(page, tmp_path):
    told = question(14, ("cited and used", "supported"), words=False)
    shown(page, tmp_path, report([told]))
    assert page.run(f"{CARDS}.length") == 4
    assert page.run(f"{WORDWISE}.length") == 0
    assert_coloured(page, all_together(told, "s1"), max(map(abs, [
        *all_together(told, "s1"), *all_together(told, "s2")])))  # fmt: skip
    # only of one passage, and of some words
    told = question(14, ("cited and used", "supported"))
    for score in told["statements"][0]["passages"][1:]:
        del score["token_necessity"]
    score = told["statements"][0]["passages"][0]
    score["token_necessity"][1] = None
    del score["token_sufficiency"]
    told["tokens"][0]["logp_none"] = None
    shown(page, tmp_path, report([told]))
    assert page.run(f"{WORDWISE}.length") == 1
    clear = "[...document.querySelectorAll('.st.on .t')].map((t, i) => [i, t.title, t.style" \
            ".getPropertyValue('--heat')]).filter((t) => t[2] === 'transparent')"  # fmt: skip
    assert page.run(clear) == [[0, "", "transparent"]]
    page.run(f"{WORDWISE}[0].click()")
    assert page.run(clear) == [[1, "", "transparent"]]
    assert page.run("document.querySelector('.st.on .t').title").startswith("[1]: necessity ")
    assert "sufficiency" not in page.run("document.querySelector('.st.on .t').title")
    # and without the answer's tokens
    shown(page, tmp_path, report([told | {"tokens": []}]))
    assert page.run(f"{WORDWISE}.length") == 0
    assert page.run(f"{CARDS}.length") == 4


def test_a_chosen_passage_of_strange_names_is_text(page, tmp_path):
    told = question(17, ("cited and used", "supported"), strange=STRANGE)
    shown(page, tmp_path, report([told]))
    for i in range(4):
        page.run(f"{WORDWISE}[{i}].click()")
        pid = card_of(told, 0, i)["pid"].replace("\ud83d", "�")
        assert pid in page.run("document.querySelector('.key').textContent")
    assert page.run("document.images.length") == 0
    assert page.run("document.scripts.length") == 3


def test_words_of_overlapping_statements_have_their_own_statements_effects(page, tmp_path):
    told = question(1, ("supported", "unsupported"))
    first, second = told["statements"]
    second |= {"start": first["start"] + 4, "end": second["end"]}
    shown(page, tmp_path, report([told]))
    page.run("document.querySelectorAll('.pick')[0].click()")
    page.run(f"{WORDWISE}[0].click()")
    score = card_of(told, 0, 0)
    assert_coloured(page, score["token_necessity"], end_of(told))
    page.run("document.querySelectorAll('.pick')[1].click()")
    page.run(f"{WORDWISE}[0].click()")
    assert_coloured(page, card_of(told, 1, 0)["token_necessity"], end_of(told))


def test_words_inside_a_passage(page, tmp_path):
    told = question(14, ("cited and used", "supported"))
    shown(page, tmp_path, report([told]))
    assert page.run("document.querySelectorAll('.words .t').length") == 0
    page.click(*page.centre(WORDS))
    marks = told["highlights"][0]["tokens"]
    assert texts(page, ".words .t") == [t["text"] for t in marks]
    end = max(abs(t["score"]) for t in marks)
    colours = page.run(
        "[...document.querySelectorAll('.words .t')]"
        ".map((t) => getComputedStyle(t).backgroundColor)"
    )
    for colour, mark in zip(colours, marks, strict=True):
        found = [int(part) for part in re.findall(r"\d+", colour)[:3]]
        expected = scale.rgb(mark["score"], end)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2
    assert "attribution_patching" in page.run(f"{CARDS}[0].textContent")
    page.click(*page.centre(WORDS))
    assert page.run("document.querySelectorAll('.words .t').length") == 0
    # another passage, and another statement, have none
    page.click(*page.centre("document.querySelectorAll('.passage .words')[1]"))
    assert "mechattr audit --tokens METHOD" in page.run(f"{CARDS}[1].textContent")
    page.click(*page.centre("document.querySelectorAll('.pick')[1]"))
    page.run("document.querySelector('.passage .bar button').focus()")
    page.key("Enter")
    assert page.run("document.querySelectorAll('.how code').length") == 2


def test_why_words_are_missing_is_said(page, tmp_path):
    told = question(14, ("cited and used",))
    told["highlights"][0] |= {"tokens": [], "note": "No highlights: out of memory"}
    shown(page, tmp_path, report([told]))
    page.click(*page.centre(WORDS))
    assert texts(page, ".how") == ["No highlights: out of memory"]


def test_a_second_operator_that_disagrees(page, tmp_path):
    told = question(14, ("cited and used", "unsupported"), second=True)
    shown(page, tmp_path, report([told]))
    said = texts(page, ".statements .warned li")
    assert said[0].startswith("By mask it is ? inconclusive (C +2.10 nats)")
    assert said[1] == "Only 3 of the statement's tokens are scored."
    assert len(said) == 2
    page.click(*page.centre("document.querySelectorAll('.pick')[0]"))
    lines = texts(page, ".other")
    assert len(lines) == 4
    assert lines[0].startswith(
        f"by mask: necessity +{told['statements'][0]['passages'][0]['necessity'] * 0.4:.2f}"
    )
    assert page.run("document.querySelectorAll('.other.differs').length") == 1


def test_filter_search_order_and_pages(page, tmp_path):
    told = report([question(i, (VERDICTS[i % 8],)) for i in range(47)])
    shown(page, tmp_path, told)
    ids = page.run(IDS)
    assert ids[:3] == ["q6", "q14", "q22"]  # unsupported, in the file's order
    put(page, "order", "file")
    assert page.run(IDS) == [f"q{i}" for i in range(20)]
    page.click(*page.centre("document.querySelector('[data-do=next]')"))
    page.click(*page.centre("document.querySelector('[data-do=next]')"))
    assert page.run(IDS) == [f"q{i}" for i in range(40, 47)]
    assert page.run("document.querySelector('[data-do=next]').disabled") is True
    assert "41–47 of 47" in page.run("document.querySelector('[data-is=range]').textContent")
    page.click(*page.centre("document.querySelector('button.chip[data-verdict=\"supported\"]')"))
    assert page.run(IDS) == ["q0", "q8", "q16", "q24", "q32", "q40"]
    assert page.run("document.querySelector('[data-is=pager]').hidden") is True
    options = page.run(
        "[...document.querySelector('[data-is=verdict]').options].map((o) => o.text)"
    )
    assert "✓✓ supported (6)" in options
    put(page, "search", "VELMORA doc-24-1", "input")
    page.wait(f"{COUNT}.startsWith('1 of')")
    assert page.run(IDS) == ["q24"]
    put(page, "search", "nowhere to be found", "input")
    page.wait(f"{COUNT}.startsWith('0 of')")
    assert "No question has all of this." in texts(page, ".list .note")


def test_a_link_to_a_question(page, tmp_path):
    told = report([question(i, ("supported",), strange=" ß/?#&'") for i in range(50)])
    shown(page, tmp_path, told)
    put(page, "search", "q3", "input")
    page.wait(f"{COUNT}.startsWith('11 of')")
    name = told["questions"][44]["id"]
    page.run(f"location.hash = '#q=' + encodeURIComponent({name!r})")
    page.wait(f"{OPEN}.some((q) => q.dataset.id === {name!r})")
    link = page.run(f"{OPEN}.find((q) => q.dataset.id === {name!r}).querySelector('.link a').href")
    page.open(tmp_path / "audit.html")  # another page in between, so that the link loads anew
    page.run(f"location.href = {link!r}")
    page.wait(f"{OPEN}.some((q) => q.dataset.id === {name!r})")
    page.run("location.hash = '#q=%E0%A4%A'")  # no such question, not even a text
    page.settle()


@pytest.mark.parametrize(("width", "dark"), [(360, False), (390, True), (768, False), (1400, True)])
def test_nothing_scrolls_sideways(page, tmp_path, width, dark):
    page.screen(width, 800, dark=dark)
    shown(page, tmp_path, usual())
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    for start in (0, 20):
        page.run(f"{SHUT}.forEach((b) => b.click())")
        page.run("document.querySelectorAll('.passage .bar button').forEach((b) => b.click())")
        page.run("document.querySelectorAll('.wordwise button').forEach((b) => b.click())")
        page.settle()
        assert page.run("document.documentElement.scrollWidth") <= width, start
        wide = page.run(
            "[...document.querySelectorAll('.ma-audit *')].filter((e) => "
            "!e.closest('.scroll, [hidden]') && "
            f"e.getBoundingClientRect().right > {width} + 1).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert wide == []
        page.run("document.querySelector('[data-do=next]').click()")
    side_by_side = page.run(
        "(() => { const box = (s) => document.querySelector(s).getBoundingClientRect();"
        "return box('.answer').right <= box('.passages').left })()"
    )
    assert side_by_side == (width > 860)


def test_offsets_are_letters_and_nothing_is_read_as_html(page, tmp_path):
    told = question(17, ("cited and used", "supported", "unsupported"), strange=STRANGE)
    clean = [
        told["answer"][line["start"] : line["end"]].replace("\ud83d", "�")
        for line in told["statements"]
    ]
    shown(page, tmp_path, report([told]))
    said = page.run(
        '[0, 1, 2].map((k) => [...document.querySelectorAll(`.st[data-k="${k}"]`)].map((s) => {'
        "const c = s.cloneNode(true); c.querySelectorAll('.tag').forEach((t) => t.remove());"
        "return c.textContent }).join(''))"
    )
    assert said == clean
    page.click(*page.centre("document.querySelectorAll('.pick')[0]"))
    page.run(f"{WORDS}.click()")
    assert texts(page, ".words .t") == [
        t["text"].replace("\ud83d", "�") for t in told["highlights"][0]["tokens"]
    ]
    assert page.run("document.images.length") == 0
    assert page.run("document.scripts.length") == 3


def test_right_to_left_text_runs_so(page, tmp_path):
    shown(page, tmp_path, usual())
    page.run("location.hash = '#q=q21'")
    page.wait(f"{OPEN}.length === 2")
    side = "getComputedStyle(document.querySelector('[data-id=q21] {}')).direction"
    assert page.run(side.format(".given")) == "rtl"
    assert page.run(side.format(".words")) == "rtl"
    assert page.run(side.format(".bars")) == "ltr"
    assert texts(page, "[data-id=q21] .mark") == ["[1]"]


def test_a_very_long_passage_and_many(page, tmp_path):
    told = [
        question(20, ("cited and used",), length=5000),
        question(15, ("supported",), passages=20),
    ]
    shown(page, tmp_path, report(told))
    page.run("document.querySelector('button.open[aria-expanded=false]').click()")
    assert page.run(f"{CARDS}.length") == 24
    assert page.run(f"{WORDS}.textContent.length") < 500
    fold = "document.querySelector('.passage .bar button')"
    assert page.run(f"{fold}.textContent") == "show all 5,000 tokens"
    page.click(*page.centre(fold))
    assert page.run(f"{WORDS}.textContent.length") == len(told[0]["passages"][0]["text"])
    page.click(*page.centre("document.querySelectorAll('.passage .bar button')[1]"))
    assert page.run("document.querySelectorAll('.words .t').length") == len(
        told[0]["highlights"][0]["tokens"]
    )
    assert page.run(f"{WORDS}.getBoundingClientRect().height") < 450


def test_answers_of_one_statement_and_of_none(page, tmp_path):
    nothing = question(2, ()) | {"answer": "", "tokens": []}
    shown(page, tmp_path, report([question(1, ("supported",)), nothing]))
    page.run("document.querySelectorAll('button.open')[1].click()")
    said = page.run("document.querySelectorAll('.q')[1].textContent")
    assert "The answer is empty." in said
    assert "This answer has no statements." in said
    assert page.run("document.querySelectorAll('.q')[1].querySelectorAll('.passage').length") == 4


def test_statements_may_overlap(page, tmp_path):
    told = question(1, ("supported", "unsupported"))
    first, second = told["statements"]
    second |= {"start": first["start"] + 4, "end": second["end"]}
    shown(page, tmp_path, report([told]))
    given = page.run(
        "(() => { const c = document.querySelector('.given').cloneNode(true);"
        "c.querySelectorAll('.tag').forEach((t) => t.remove()); return c.textContent })()"
    )
    assert given == told["answer"]
    assert texts(page, ".given .tag") == ["1 ✓✓", "2 ×"]


def test_what_only_some_runs_measure(page, tmp_path):
    told = question(1, ("redundant support", "supported"), passages=2)
    told["warnings"] = ["Of the whole question."]
    first, second = told["statements"]
    first["passages"][0] |= {"redundant_with": ["doc-1-1"], "joint_effect": 3.0}
    first["passages"][1] |= {"shapley": 1.0, "shapley_stderr": 0.125}
    first["context_p"] = 0.0123
    first["warnings"] = ["Of the whole question.", "Of the statement."]
    second["warnings"] = ["Operators disagree: mask says 'unsupported'."]
    second["operators"] = {"mask": {"verdict": "unsupported", "passages": []}}
    second["earlier"] = {
        "sid": "s2", "context_effect_without": -0.5,
        "statements": [{"sid": "s1", "necessity": 1.5, "sufficiency": 0.25}],
    }  # fmt: skip
    told["passages"][0] |= {"of": "doc-1"}
    told["gold_pids"] = ["doc-1"]
    shown(page, tmp_path, report([told]))
    assert texts(page, ".warned li") == [
        "Of the whole question.", "Of the statement.", second["warnings"][0]
    ]  # fmt: skip
    assert texts(page, ".badge.gold") == ["gold"]
    cards = {pid: page.run(f"{CARDS}[{i}].textContent") for i, pid in
             enumerate(page.run(f"{CARDS}.map((c) => c.dataset.pid)"))}  # fmt: skip
    assert "says the same as [2] (together +3.00 nats, ×20)" in cards["doc-1-0"]
    assert "Shapley ± 0.13" in cards["doc-1-1"]
    assert "p 0.012 of off-topic passages doing as much" in texts(page, ".detail")[0]
    assert (
        "C is −0.50 nats. Of them: s1 necessity +1.50, sufficiency +0.25."
        in (texts(page, ".detail")[1])
    )


def test_sentences_of_a_passage_share_its_number(page, tmp_path):
    told = question(1, ("redundant support",), passages=3)
    for passage, of in zip(told["passages"], ("a", "a", "b"), strict=True):
        passage["of"] = of
    told["gold_pids"] = ["b"]
    told["statements"][0]["passages"][0]["redundant_with"] = ["doc-1-1"]
    shown(page, tmp_path, report([told]))
    heads = dict(
        page.run(f"{CARDS}.map((c) => [c.dataset.pid, c.querySelector('.head').textContent])")
    )
    assert [heads[f"doc-1-{j}"][:3] for j in range(3)] == ["[1]", "[1]", "[2]"]
    assert ["gold" in heads[f"doc-1-{j}"] for j in range(3)] == [False, False, True]
    assert any("says the same as doc-1-1" in text for text in texts(page, ".facts-line"))


def test_two_views_on_one_page_do_not_meet(page, tmp_path):
    views = [AuditView(report([question(i, ("supported", "unsupported"))])) for i in (1, 2)]
    whole = views[0].save(tmp_path / "two.html").read_text("utf-8")
    (tmp_path / "two.html").write_text(
        whole.replace("</body>", f"{views[1].html}{views[1].html}</body>"), "utf-8"
    )
    page.open(tmp_path / "two.html")
    page.wait("document.querySelectorAll('.q').length === 3")
    assert page.run(IDS) == ["q1", "q2", "q2"]
    page.run("document.querySelectorAll('.pick')[0].click()")
    page.settle()
    assert page.run(PRESSED) == ["true", "false", "false", "true", "false", "true"]
    assert page.run("[...document.querySelectorAll('.link')].length") == 0
