"""plotly figures: zero-centred scale, labels, hover, escaping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mechattr import display
from mechattr.attribution import Attribution
from mechattr.display import scale
from mechattr.faithfulness import deletion
from mechattr.game import TableGame
from mechattr.methods import attribute
from tests.display.fakes import (
    IOI,
    fake,
    grid_players,
    heads,
    magnitudes,
    mixed,
    mlps,
    token_players,
)


def plot(attribution: Attribution, **options: Any) -> Any:
    """plotly's own types stand in the way of reading its figures."""
    return display.plot(attribution, **options)


EVIL = '<b>bold</b><script>alert("x")</script>'


def test_a_heat_map_is_centred_on_zero_and_labelled_with_tokens():
    made = plot(fake(mlps(positions=14)))
    (heat,) = made.data
    assert heat.zmin == -heat.zmax
    assert heat.zmid == 0
    assert list(heat.x) == [f"{i} {t.replace(' ', '·')}" for i, t in enumerate(IOI)]
    assert len(set(heat.x)) == 14
    assert made.layout.xaxis.type == "category"
    assert made.layout.yaxis.type == "category"
    title = heat.colorbar.title.text
    assert title.startswith("logit difference")
    assert scale.SIGN in title
    assert heat.text[1][9].startswith("<b>M1.9</b><br>9 ·John<br>")


def test_magnitudes_begin_at_zero():
    made = plot(magnitudes(mlps(positions=14)))
    (heat,) = made.data
    assert heat.zmin == 0 < heat.zmax
    assert heat.colorscale[0][1] == scale.colour(0.0, 1.0)
    for text in (heat.colorbar.title.text, made.layout.title.text):
        assert "no sign" in text
        assert "raises" not in text


def test_tokens_are_bars_with_unique_labels_and_error_bars():
    (bars,) = plot(fake(token_players(), draws=True)).data
    assert bars.orientation == "v"
    assert list(bars.x)[9] == "9 ·John"
    assert len(bars.error_y.array) == 14
    assert "over draws" in bars.hovertext[0]
    (plain,) = plot(fake(token_players())).data
    assert plain.error_y.array is None


def test_mixed_players_are_ranked_with_error_bars_over_prompts():
    made = plot(fake(mixed(), (IOI, IOI)), top=5)
    (bars,) = made.data
    assert bars.orientation == "h"
    assert len(bars.y) == 5
    assert len(bars.error_x.array) == 5
    assert made.layout.yaxis.autorange == "reversed"  # the strongest on top
    assert "mean of 2 prompts" in made.layout.title.text


def test_neurons_and_a_given_limit():
    result = fake(grid_players("neuron", "N", layer=2, neuron=100))
    assert len(plot(result).data[0].y) == 30
    assert plot(fake(heads()), limit=5).data[0].zmax == 5


def test_missing_players_and_nothing_at_all_can_be_drawn():
    values = np.array([[np.nan, 1.0], [np.nan, np.nan]])
    for players in (grid_players("mlp", "M", layer=2), grid_players("head", "L", layer=1, head=2)):
        result = Attribution(values, players, "m", np.ones(2), np.zeros(2), ("a", "b"))
        for prompt in (None, 0, 1):
            plot(result, prompt=prompt).to_json()


@pytest.mark.parametrize("players", [token_players((EVIL, *IOI[1:])), mixed()])
def test_html_in_tokens_is_text_in_a_figure(players):
    made = plot(fake(players, ((EVIL, *IOI[1:]),)))
    json = made.to_json()
    assert "<script" not in json.replace("\\u003c", "<")
    assert "<b>bold" not in json.replace("\\u003c", "<")


def test_a_long_prompt_has_no_hover_text_a_cell():
    long = tuple(f" w{i}" for i in range(600))
    (heat,) = plot(fake(mlps(30, 600), (long,))).data
    assert heat.text is None
    assert "%{z" in heat.hovertemplate


def test_a_curve_has_both_ends_and_its_area():
    game = TableGame(np.arange(8.0) + np.array([[0.0], [1.0]]))
    curve = deletion(game, attribute(game, "leave_one_out", progress=False))
    made: Any = display.curve_plot(curve)
    assert "lower is better" in made.layout.title.text
    assert len(made.layout.shapes) == 2
    band, mean = made.data
    assert band.fill == "toself"
    np.testing.assert_allclose(mean.y, curve.values.mean(1))
