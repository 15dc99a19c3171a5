"""What is drawn: the right view for the players, reductions, errors, and the scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mechattr as ma
from mechattr.attribution import Attribution
from mechattr.display import scale
from mechattr.display.views import Bars, Heat, Strip, view
from mechattr.display.words import gap_text, how_to_read, number, players_text, signed, units
from mechattr.errors import InputError, UnknownNameError
from mechattr.players import Players
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
from tests.games import linear_game


def drawn(attribution: Attribution, **options: Any) -> Any:
    """A view of whatever kind; the tests know which."""
    return view(attribution, **options)


OTHER = tuple(token.replace("Mary", "Anna") for token in IOI[:9])


def test_each_kind_of_player_gets_its_view():
    assert isinstance(drawn(fake(token_players())), Strip)
    assert isinstance(drawn(fake(mlps())), Bars)
    assert not drawn(fake(mlps())).ranked
    for players in (heads(), heads(positions=14), mlps(positions=14)):
        assert isinstance(drawn(fake(players)), Heat)
    for players in (mixed(), grid_players("neuron", "N", layer=2, neuron=100), Players.numbered(9)):
        ranked = drawn(fake(players))
        assert isinstance(ranked, Bars)
        assert ranked.ranked


def test_heads_at_positions_are_summed_over_heads_or_selected():
    result = fake(heads(3, 2, 14))
    cube = result.values[0].reshape(3, 2, 14)
    whole = drawn(result)
    assert (whole.rows.name, whole.columns.name) == ("layer", "position")
    assert whole.note == "sum over heads"
    np.testing.assert_allclose(whole.scores.values, cube.sum(1))
    np.testing.assert_allclose(drawn(result, head=1).scores.values, cube[:, 1])
    np.testing.assert_allclose(drawn(result, position=4).scores.values, cube[:, :, 4])
    turned = drawn(result, axes=("head", "layer"), reduce="mean")
    np.testing.assert_allclose(turned.scores.values, cube.mean(2).T)
    strongest = drawn(result, axes=("layer", "head"), reduce="strongest").scores.values
    at = np.abs(cube).argmax(2)
    np.testing.assert_allclose(strongest, np.take_along_axis(cube, at[..., None], 2)[..., 0])
    assert whole.scores.names[1, 9] == "layer 1, 9 ·John"
    assert drawn(result, head=1).scores.names[2, 9] == "L2.1.9"


def test_one_layer_of_the_residual_stream_is_a_strip_of_tokens():
    result = fake(grid_players("resid_pre", "R", layer=4, position=14))
    strip = drawn(result, layer=2)
    assert isinstance(strip, Strip)
    np.testing.assert_allclose(strip.scores.values, result.values[0].reshape(4, 14)[2])
    assert strip.axis.labels[3] == "3 ·John"


def test_the_mean_over_prompts_leaves_out_players_that_do_not_exist():
    result = fake(token_players(prompts=2), (IOI, OTHER))
    both = drawn(result)
    assert type(both).__name__ == "Bars"  # prompts differ at position 1: no text to colour
    np.testing.assert_allclose(both.scores.values, result.mean)
    np.testing.assert_allclose(both.scores.stderr, result.stderr)
    assert np.isnan(both.scores.stderr[9])
    short = drawn(result, prompt=1)
    assert isinstance(short, Strip)
    assert short.axis.tokens == OTHER
    np.testing.assert_allclose(short.scores.values, result.values[1, :9])


def test_errors_over_draws_are_those_of_the_attribution():
    result = fake(heads(2, 3), (IOI, IOI), draws=True)
    shown = drawn(result)
    assert result.draw_stderr is not None
    expected = result.draw_stderr.mean(0).reshape(2, 3)
    np.testing.assert_allclose(shown.scores.draws, expected)
    assert shown.scores.hover((0, 0)).endswith("over draws")
    # The error of a sum would need the draws: none is better than a wrong one.
    assert drawn(fake(heads(2, 3, 14), draws=True)).scores.draws is None


def test_missing_players_stay_missing():
    values = np.array([[np.nan, 1.0, -2.0, np.nan]])
    players = grid_players("head", "L", layer=2, head=2)
    result = Attribution(values, players, "m", np.ones(1), np.zeros(1), ("p",))
    assert np.isnan(drawn(result).scores.values[0, 0])
    assert scale.limit(drawn(result).scores.values) == 2
    nothing = Attribution(values * np.nan, players, "m", np.ones(1), np.zeros(1), ("p",))
    assert scale.limit(drawn(nothing).scores.values) == 1
    assert drawn(nothing, axes=("layer",)).scores.values.shape == (2,)


def test_one_kind_of_a_concatenation():
    result = fake(mixed())
    part = drawn(result, kind="head")
    assert isinstance(part, Heat)
    np.testing.assert_allclose(part.scores.values.ravel(), result.values[0, 14:])


def test_a_ranking_is_by_magnitude_and_says_how_many_it_leaves_out():
    result = fake(grid_players("neuron", "N", layer=1, neuron=50))
    ranked = drawn(result, top=7)
    assert list(ranked.axis.labels) == list(result.top(7)["player"])
    assert ranked.note == "the 7 largest of 50 players"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 5}, "no prompt 5"),
        ({"axes": ("layer", "heads")}, "Did you mean head"),
        ({"axes": ("layer", "layer")}, "one or two different axes"),
        ({"reduce": "max"}, "Unknown reduction 'max'"),
        ({"layr": 2}, "Unknown coordinate 'layr'"),
        ({"layer": 77}, "No player matches"),
        ({"kind": "hed"}, "Did you mean head"),
    ],
)
def test_bad_options_say_what_is_wrong(options, message):
    with pytest.raises((InputError, UnknownNameError), match=message):
        drawn(fake(heads()), **options)


def test_the_scale_is_symmetric_about_a_neutral_zero():
    red, green, blue = scale.rgb(0.0, 3.0)
    assert max(red, green, blue) - min(red, green, blue) < 5
    assert scale.colour(3.0, 3.0) == scale.colour(9.0, 3.0) == scale.ANCHORS[-1]
    assert scale.colour(-3.0, 3.0) == scale.ANCHORS[0]
    assert scale.colour(float("nan"), 3.0) == scale.MISSING
    for share in (0.2, 0.5, 1.0):
        warm, cool = scale.rgb(share, 1.0), scale.rgb(-share, 1.0)
        assert warm[0] > warm[2]  # positive is red
        assert cool[2] > cool[0]
    assert scale.ink(1.0, 1.0) == "#ffffff"
    assert scale.ink(0.0, 1.0) != "#ffffff"
    assert scale.plotly_scale()[3][0] == 0.5


def test_units_and_numbers_in_words():
    result = fake(heads(2, 2))
    assert units(result) == "logit difference"
    assert "raises the target" in how_to_read(result)
    assert gap_text(result) == "+0.058, 0.5 %"
    saliency = magnitudes(heads(2, 2))
    assert units(saliency) == "logit difference per unit of activation"
    assert "no sign" in how_to_read(saliency)
    assert gap_text(saliency) == ""
    for label, unit in (("KL(clean || run)", "KL divergence (nats)"), ("my_score", "my score")):
        assert units(fake(heads(2, 2), provenance={"target": label})) == unit
    assert [number(x) for x in (0.0, -2.5, float("nan"), 1e-7, 12345.0)] == [
        "0",
        "−2.500",
        "–",
        "+1.000e−07",
        "+12345",
    ]
    assert players_text(mixed()) == "14 tokens + 12 heads"
    assert players_text(heads(2, 2, 3)) == "12 (head, position) pairs"
    assert players_text(mlps(1)) == "1 MLP"


@pytest.mark.parametrize("method", ["saliency", "gradient_clean"])
def test_whether_scores_have_a_sign_is_read_from_the_result(method):
    result = ma.attribute(linear_game(), method, progress=False)
    assert signed(result) is (method != "saliency")
    assert drawn(result).signed is signed(result)


def test_magnitudes_get_half_the_scale():
    for players in (heads(2, 2), mlps(4), token_players(), mixed()):
        assert drawn(fake(players)).signed
        assert not drawn(magnitudes(players)).signed
    assert scale.anchors(False)[0] == scale.colour(0.0, 1.0) == scale.anchors(True)[3]
    half = scale.plotly_scale(False)
    assert [place for place, _ in half] == [0, 0.333333, 0.666667, 1]
    assert half[-1] == scale.plotly_scale()[-1]
