"""Shapley values against the definition over all orders, closed forms and their own errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mechattr.errors import InputError
from mechattr.game import FunctionGame, TableGame
from mechattr.methods import ExactShapley, Shapley, attribute, masks
from tests.games import linear_game, shapley_by_orders, table_game


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_enumeration_equals_the_mean_over_all_orders(n):
    game = table_game(n, 2, seed=n)
    expected = shapley_by_orders(game)
    assert np.abs(expected).min() > 1e-3
    result = attribute(game, "exact_shapley", progress=False)
    np.testing.assert_allclose(result.values, expected, atol=1e-12)
    assert result.draw_stderr is None


def test_two_players_in_closed_form_and_exactly_from_one_pair():
    empty, a, b, both = 0.5, 2.0, -1.0, 4.0
    expected = [(a - empty + both - b) / 2, (b - empty + both - a) / 2]
    game = TableGame([empty, a, b, both])
    for method in (ExactShapley(), Shapley(pairs=1), Shapley(pairs=7)):
        np.testing.assert_allclose(attribute(game, method, progress=False).values[0], expected)


def test_sampling_converges_to_enumeration_within_its_errors():
    game = table_game(8, 2)
    exact = attribute(game, "exact_shapley", progress=False).values
    result = attribute(game, "shapley", budget=14 * 300 + 2, progress=False)
    assert result.draw_stderr is not None
    assert result.provenance["notes"] == {"pairs": 300}
    assert (np.abs(result.values - exact) < 4.5 * result.draw_stderr).all()
    assert result.draw_stderr.max() < 0.1


def test_standard_error_is_calibrated():
    game = table_game(5, 1)
    exact = attribute(game, "exact_shapley", progress=False).values
    runs = [attribute(game, Shapley(pairs=12), seed=s, progress=False) for s in range(150)]
    errors = np.stack([run.values - exact for run in runs])
    claimed = np.sqrt(np.mean([run.draw_stderr**2 for run in runs], axis=0))  # type: ignore[operator]
    np.testing.assert_allclose(errors.std(0), claimed, rtol=0.25)
    assert (np.abs(errors.mean(0)) < 4 * claimed / np.sqrt(150)).all()


def test_antithetic_pairs_are_exact_where_interactions_are_of_two():
    weights = np.random.default_rng(0).normal(size=(6, 6))
    w = torch.from_numpy(weights)
    game = FunctionGame(lambda m: torch.einsum("mi,ij,mj->m", m, w, m), 6)
    exact = attribute(game, "exact_shapley", progress=False).values
    result = attribute(game, Shapley(pairs=1), progress=False)
    assert np.abs(exact).min() > 1e-3
    np.testing.assert_allclose(result.values, exact, atol=1e-12)


def test_scores_telescope_for_any_number_of_pairs():
    game = table_game(9, 3)
    for pairs in (1, 2, 5):
        result = attribute(game, Shapley(pairs=pairs), progress=False)
        np.testing.assert_allclose(result.gap, 0, atol=1e-12)


def test_one_pair_knows_no_error():
    result = attribute(table_game(4, 2), Shapley(pairs=1), progress=False)
    assert np.isnan(result.draw_stderr).all()  # type: ignore[arg-type]
    assert np.isfinite(result.values).all()


@pytest.mark.parametrize(("budget", "pairs"), [(12, 1), (21, 1), (22, 2), (102, 10)])
def test_as_many_pairs_as_fit_and_the_ends_only_once(budget, pairs):
    game = linear_game(6, 2)
    result = attribute(game, "shapley", budget=budget, progress=False)
    assert result.provenance["notes"]["pairs"] == pairs
    assert game.evaluations == (pairs * 10 + 2) * 2


def test_budget_below_one_pair_says_what_is_needed():
    with pytest.raises(
        InputError, match=r"budget=11 .*6 players needs at least 12 masks \(2\(n − 1"
    ):
        attribute(linear_game(6), "shapley", budget=11)


@pytest.mark.parametrize("entries", [1, 50, 200, 10_000])
def test_chunks_change_nothing(monkeypatch, entries):
    expected = attribute(table_game(6, 2), Shapley(pairs=9), progress=False)
    monkeypatch.setattr(masks, "ENTRIES", entries)
    result = attribute(table_game(6, 2), Shapley(pairs=9), progress=False)
    np.testing.assert_allclose(result.values, expected.values, atol=1e-12)
    assert result.draw_stderr is not None
    assert expected.draw_stderr is not None
    np.testing.assert_allclose(result.draw_stderr, expected.draw_stderr, atol=1e-12)


def test_masks_go_to_the_game_in_big_batches():
    sizes = []

    def v(m):
        sizes.append(len(m))
        return m.sum(-1)

    attribute(FunctionGame(v, 10), Shapley(pairs=20), progress=False)
    assert sizes == [2, 20 * 18]


def test_enumeration_refuses_many_players():
    with pytest.raises(InputError, match=r"17 players would take 2\^17 .* Use shapley"):
        attribute(linear_game(17), "exact_shapley")
    with pytest.raises(InputError, match="at most 16"):
        attribute(linear_game(17), "exact_shapley", budget=10**6)


def test_settings_are_checked():
    with pytest.raises(InputError, match="pairs=0"):
        Shapley(pairs=0)
