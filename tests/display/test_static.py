"""Static HTML for notebooks: nothing runs, nothing is fetched, everything is escaped."""

from __future__ import annotations

import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from mechattr.display import attribution_html
from mechattr.display.svg import png
from tests.display.fakes import IOI, fake, grid_players, heads, long_tokens, magnitudes, mixed, mlps
from tests.display.fakes import token_players as tokens

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
LONG = long_tokens()
CASES = {
    "tokens": fake(tokens(), draws=True),
    "heads": fake(heads()),
    "heads at positions": fake(heads(positions=14)),
    "mlps": fake(mlps()),
    "mixed": fake(mixed()),
    "neurons": fake(grid_players("neuron", "N", layer=1, neuron=500)),
    "long": fake(tokens(LONG), (LONG,)),
    "long grid": fake(mlps(30, 600), (LONG,)),
    "magnitudes": magnitudes(heads()),
    "several": fake(tokens(prompts=6), (IOI,) * 5 + (("Yesterday", *IOI[1:9]),)),
    "evil": fake(tokens((EVIL, *IOI[1:])), ((EVIL, *IOI[1:]),)),
}


class _Balance(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", CASES)
def test_the_html_is_sound_and_inert(name):
    html = attribution_html(CASES[name])
    page = _Balance()
    page.feed(html)
    assert not page.open
    tags = {tag for tag, _ in page.seen}
    assert not tags & {"script", "img", "link", "iframe", "object"}
    for _, attributes in page.seen:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("href", "src"):
            assert attributes.get(key, "data:").startswith("data:")
    assert "@import" not in html
    assert "url(" not in html
    assert len(html) < 300_000


def test_it_says_what_was_done():
    html = attribution_html(CASES["tokens"])
    for part in (
        "method integrated_gradients",
        "target logit_diff(&#x27; Mary&#x27;, &#x27; John&#x27;)",
        "source counterfactual",
        "base clean",
        "model smollm2-135m",
        "v(N) = 6.252",
        "v(∅) = −5.454",
        "completeness gap +0.059, 0.5 % of v(N) − v(∅)",
        "raises the target",
        "± over draws",
    ):
        assert part in html, part


def test_magnitudes_have_neither_gap_nor_negative_end():
    html = attribution_html(CASES["magnitudes"])
    for part in ("size only, no sign", "it has no sign", "per unit of activation"):
        assert part in html, part
    for part in ("completeness gap", "raises", "lowers", "#1d3f8f"):
        assert part not in html, part


def test_tokens_have_titles_and_several_prompts_each_their_text():
    assert 'title="9 ·John: ' in attribution_html(CASES["tokens"])
    several = attribution_html(CASES["several"])
    assert several.count('class="ma-tokens"') == 4
    assert "2 more prompts" in several


def test_a_notebook_calls_it():
    assert CASES["heads"]._repr_html_() == attribution_html(CASES["heads"])


def test_rows_of_a_map_run_upwards_and_cells_say_who_they_are():
    html = attribution_html(CASES["heads"])
    tops = {name: float(y) for y, name in re.findall(r'y="([\d.]+)"[^>]*><title>(L\d+\.0):', html)}
    assert tops["L0.0"] > tops["L29.0"]
    assert html.count("<title>L") == 270


def test_no_scores_at_all_can_be_shown():
    result = fake(heads(2, 2))
    nothing = type(result)(
        values=result.values * np.nan,
        players=result.players,
        method="m",
        full=result.full,
        empty=result.full,
        prompt_labels=result.prompt_labels,
    )
    assert "nan" not in attribution_html(nothing).lower()


def test_png_is_a_picture_of_its_pixels():
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    data = png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (3, 2)
    start = data.index(b"IDAT")
    (size,) = struct.unpack(">I", data[start - 4 : start])
    lines = zlib.decompress(data[start + 4 : start + 4 + size])
    assert lines == b"\0" + pixels[0].tobytes() + b"\0" + pixels[1].tobytes()
    (check,) = struct.unpack(">I", data[start + 4 + size : start + 8 + size])
    assert check == zlib.crc32(data[start : start + 4 + size])
