"""The report in a real browser, where one is installed: it draws, and nothing complains."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mechattr.display import report
from tests.display.fakes import IOI, fake, heads, mlps, token_players

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium here")


def opened(page: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what they and the browser said on the console."""
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",  # containers run as root
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, whatever the page tries
            "--enable-logging=stderr",
            "--virtual-time-budget=10000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_is_read(tmp_path):
    """So that silence below means something."""
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('listen')</script>")
    assert any("listen" in line for line in opened(page)[1])


def test_the_report_draws_without_network_or_errors(tmp_path):
    evil = "<img src=x onerror=console.error('inert')>"
    tokens = (*IOI[:9], evil, *IOI[10:])
    items = [
        ("Tokens", fake(token_players(tokens), (tokens,))),
        ("Heads", fake(heads(4, 3), (IOI,) * 2)),
        ("MLPs", fake(mlps(4, 14))),
    ]
    document, said = opened(report(items, tmp_path / "report.html", title=evil))
    assert said == []
    assert document.count('class="main-svg"') >= 3
    ticks = {html.unescape(t) for t in re.findall(r'<text class="xtick[^>]*>([^<]*)', document)}
    ticks |= {
        html.unescape(t) for t in re.findall(r'class="xtick"[^>]*>\s*<text[^>]*>([^<]*)', document)
    }
    assert {f"{i} {token.replace(' ', '·')}" for i, token in enumerate(IOI)} <= ticks
    assert any(tick.startswith("9 <img src") for tick in ticks)
