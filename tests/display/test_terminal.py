"""Terminal output: colours where there are some, the same in letters where there are none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from mechattr.display import terminal
from mechattr.display.views import view
from tests.display.fakes import (
    IOI,
    fake,
    heads,
    long_tokens,
    magnitudes,
    mixed,
    mlps,
    token_players,
)


def printed(result, *, width=80, colour=None, **options) -> str:
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=colour is not None, color_system=colour, no_color=None
    )
    terminal.show(result, console=console, **options)
    return out.getvalue()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def test_piped_output_has_no_codes_and_says_all():
    text = printed(fake(token_players(), draws=True), top=3)
    assert "\x1b" not in text
    assert "14 tokens by integrated_gradients" in text
    assert "target logit_diff(' Mary', ' John')" in text
    assert "v(N) 6.252" in text
    assert "completeness gap +0.059, 0.5 %" in text
    for i, token in enumerate(IOI):
        assert f"{i:>8}  {token.replace(' ', '·')} " in text
    assert "± over draws" in text


@pytest.mark.parametrize("width", [30, 46, 80, 200])
@pytest.mark.parametrize(
    "result",
    [fake(token_players()), fake(heads()), fake(mlps(4, 600), (long_tokens(),)), fake(mixed())],
)
def test_no_line_is_wider_than_the_terminal(result, width):
    text = printed(result, width=width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text  # nothing is cut


def test_tokens_are_coloured_on_a_terminal():
    text = printed(
        fake(token_players(("[red]", *IOI[1:])), (("[red]", *IOI[1:]),)), colour="truecolor"
    )
    assert "\x1b[" in text
    assert "48;2;" in text  # background colours
    assert "[red]" in text  # a token is no markup


@pytest.mark.parametrize("colour", [None, "truecolor"])
@pytest.mark.parametrize("players", [token_players(), heads(3, 3)])
def test_magnitudes_have_neither_gap_nor_negative_end(players, colour):
    text = printed(magnitudes(players), colour=colour, width=200)
    assert "v(N) 6." in text
    for word in ("gap", "raises", "−", "-9"):
        assert word not in text.replace("v(∅) −", "")
    assert ("size only" in text) is (colour is not None)


def test_sixteen_colours_are_too_few():
    assert "[48;" not in printed(fake(heads(3, 3)), colour="standard")


def test_a_map_in_letters_gives_signs_and_ninths():
    players = heads(2, 3)
    result = fake(players)
    values = np.array([[9.0, -9.0, 0.1, 5.0, np.nan, 0.0]])
    result = type(result)(values, players, "m", np.ones(1), np.zeros(1), ("p",))
    lines = printed(result).splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["0", "1", "2"])
    assert lines[start + 1].split() == ["1", "+5", "."]  # the middle cell has no player
    assert lines[start + 2].split() == ["0", "+9", "-9", "."]
    assert "+9 is 9.000" in lines[start + 3]


def test_columns_that_do_not_fit_are_drawn_by_their_strongest():
    long = long_tokens()
    shown = view(fake(mlps(2, 600), (long,)))
    grouped, size = terminal._grouped(shown.scores.values, 50)
    assert grouped.shape == (2, 50)
    assert size == 12
    first = shown.scores.values[:, :12]
    np.testing.assert_allclose(np.abs(grouped[:, 0]), np.abs(first).max(1))
    assert "strongest of" in printed(fake(mlps(2, 600), (long,)))


def test_exact_zeros_are_counted_instead_of_listed():
    players = token_players()
    values = np.zeros((1, 14))
    values[0, 9] = 3.0
    result = type(fake(players))(
        values, players, "m", np.ones(1), np.zeros(1), ("p",), tokens=(IOI,)
    )
    assert "13 other players score exactly 0" in printed(result)
    assert terminal.ranking(result).rows[0].name == "9 ·John"
    nothing = type(result)(values * 0, players, "m", np.ones(1), np.zeros(1), ("p",))
    assert len(terminal.ranking(nothing).rows) == 10
