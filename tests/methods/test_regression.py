"""The errors of linear fits: closed forms, and how often an interval holds the truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mechattr.methods import designs, regression
from mechattr.methods.designs import hadamard_order
from mechattr.methods.regression import Doubt, doubt


def values_of(n: int, seed: int) -> np.ndarray:
    """[subset] a game with few players that matter, and interactions of two and of three."""
    rng = np.random.default_rng(seed)
    bits = subsets(n)
    v = bits @ (rng.normal(size=n) * (rng.random(n) < 0.5) * 3)
    for size in (2, 2, 2, 2, 3, 3):
        group = rng.choice(n, size, replace=False)
        v = v + rng.normal() * bits[:, group].all(1)
    return v


def subsets(n: int) -> np.ndarray:
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(float)


def at(v: np.ndarray, masks: np.ndarray) -> np.ndarray:
    return v[masks.astype(int) @ (1 << np.arange(masks.shape[1]))]


def coverage(fit: str, design: str, n: int, rows: int) -> tuple[float, float]:
    """The share of intervals that hold the Banzhaf value, and their median width, by the scores'
    spread."""
    held, widths = [], []
    for game, seed in itertools.product(range(12), range(3)):
        v, bits = values_of(n, game), subsets(n)
        truth = np.array([v[col == 1].mean() - v[col == 0].mean() for col in bits.T])
        drawn = designs.draw(design, np.random.default_rng([game, seed]), n, rows, 0.5, True)
        masks = drawn.masks.astype(float)
        low, high = errors(fit, masks, at(v, masks), drawn.units).interval().T
        held.append((low - 1e-9 <= truth) & (truth <= high + 1e-9))
        widths.append((high - low) / truth.std())
    return float(np.mean(held)), float(np.median(widths))


def errors(fit: str, masks: np.ndarray, y: np.ndarray, units: np.ndarray) -> Doubt:
    if fit == "lasso":
        line = regression.lasso(masks, y, 0.05)
        return doubt(masks, y, units, support=line.weights != 0)
    if fit == "ridge":
        line = regression.ridge(masks, y, None)
        return doubt(masks, y, units, line.penalty or 0.0)
    return doubt(masks, y, units)


class TestCoverage:
    @pytest.mark.parametrize(
        ("fit", "design", "rows"),
        [
            ("ols", "hadamard", 32),
            ("ols", "hadamard", 64),
            ("ols", "antithetic", 32),
            ("ols", "bernoulli", 16),
            ("ols", "bernoulli", 32),
            ("ols", "bernoulli", 64),
            ("ridge", "bernoulli", 32),
            ("ridge", "hadamard", 32),
            ("lasso", "bernoulli", 32),
            ("lasso", "bernoulli", 64),
        ],
    )
    def test_intervals_hold_what_they_say(self, fit, design, rows):
        held, width = coverage(fit, design, 8, rows)
        assert 0.9 <= held <= 1
        assert width < (6 if rows == 16 else 1.0)

    @pytest.mark.parametrize("n", [5, 6, 7, 8, 9, 12, 14])
    def test_where_an_audit_has_hardly_more_pairs_than_players(self, n):
        held, width = coverage("ols", "hadamard", n, max(16, 2 * hadamard_order(n)))
        assert 0.92 <= held <= 1
        assert width < 1.0


class TestClosedForms:
    def setup_method(self):
        rng = np.random.default_rng(0)
        self.masks = (rng.random((30, 6)) < 0.5).astype(float)
        self.y = self.masks @ rng.normal(size=6) + rng.normal(size=30)

    def test_single_rows_are_the_sandwich_with_each_rows_leverage(self):
        x = np.c_[np.ones(30), self.masks]
        bread = np.linalg.inv(x.T @ x)
        leverage = np.einsum("ri,ij,rj->r", x, bread, x)
        left = self.y - x @ bread @ x.T @ self.y
        meat = (x.T * (left**2 / (1 - leverage))) @ x
        expected = np.sqrt(np.diag(bread @ meat @ bread))[1:]
        found = doubt(self.masks, self.y, np.arange(30))
        np.testing.assert_allclose(found.stderr, expected)
        assert found.freedom.max() <= 30 - 7
        assert found.freedom.min() > 5  # fewer where a few rows do most

    def test_pairs_of_an_orthogonal_array_have_as_much_freedom_as_columns_to_spare(self):
        n, pairs = 6, 16
        drawn = designs.draw("hadamard", np.random.default_rng(0), n, 2 * pairs, 0.5, True)
        y = np.random.default_rng(1).normal(size=2 * pairs)
        order = np.random.default_rng(2).permutation(2 * pairs)  # the rows' order is nothing
        found = doubt(drawn.masks[order].astype(float), y[order], drawn.units[order])
        np.testing.assert_allclose(found.freedom, pairs - n)
        signs, half = 2.0 * drawn.masks[::2] - 1, (y[::2] - y[1::2]) / 2
        left = half - signs @ (signs.T @ half) / pairs
        stderr = 2 * np.sqrt((left**2).sum() / (pairs - n) / pairs)
        np.testing.assert_allclose(found.stderr, stderr)
        wide = stats.t.ppf(0.975, pairs - n) * stderr
        np.testing.assert_allclose(
            found.interval(), found.weights[:, None] + wide * np.array([-1, 1])
        )

    def test_even_noise_gives_the_error_without_bias_in_units_of_any_size(self):
        units = np.repeat(np.arange(14), [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4])
        rng = np.random.default_rng(0)
        found = [doubt(self.masks, rng.normal(size=30), units).stderr ** 2 for _ in range(1500)]
        centred = self.masks - self.masks.mean(0)
        expected = np.diag(np.linalg.inv(centred.T @ centred))
        np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=0.07)

    def test_a_player_that_a_lasso_left_out_is_as_if_fitted_with_the_others(self):
        support = np.array([True, True, False, True, False, False])
        units = np.arange(30) // 2
        found = doubt(self.masks, self.y, units, support=support)
        for player in np.flatnonzero(~support):
            more = support.copy()
            more[player] = True
            own = doubt(self.masks[:, more], self.y, units)
            place = int(more[:player].sum())
            for field in ("weights", "stderr", "freedom"):
                expected = getattr(own, field)[place]
                np.testing.assert_allclose(getattr(found, field)[player], expected)

    def test_a_ridge_counts_what_shrinking_costs(self):
        importance = np.random.default_rng(1).random(30) + 0.1
        line = regression.ridge(self.masks, self.y, 3.0, importance)
        found = doubt(self.masks, self.y, np.arange(30), 3.0, importance)
        np.testing.assert_allclose(found.weights, line.weights)
        # without noise the bias is all there is
        exact = self.masks @ np.array([1.0, -1, 1, -1, 1, -1])
        shrunk = doubt(self.masks, exact, np.arange(30), 3.0)
        bias = np.abs(shrunk.weights - [1, -1, 1, -1, 1, -1])
        assert bias.max() > 0.1
        assert bias.max() < 2 * shrunk.stderr.min()
        assert doubt(self.masks, exact, np.arange(30)).stderr.max() < 1e-12

    def test_as_many_numbers_as_rows_say_nothing_of_the_error(self):
        alone = np.concatenate([np.zeros((1, 6)), np.eye(6)])
        found = doubt(alone, self.y[:7], np.arange(7))
        assert np.isnan(found.stderr).all()
        assert np.isnan(found.interval()).all()
        # nor does a player whom only one row is without
        masks = np.array(self.masks)
        masks[:, 2] = 1
        masks[4, 2] = 0
        found = doubt(masks, self.y, np.arange(30))
        assert np.isnan(found.stderr).tolist() == [False, False, True, False, False, False]

    def test_players_that_the_masks_do_not_tell_apart_have_no_error_of_their_own(self):
        masks = np.c_[self.masks, self.masks[:, 1]]
        units = np.arange(30)
        twins = [False, True, False, False, False, False, True]
        assert np.isnan(doubt(masks, self.y, units).stderr).tolist() == twins
        shrunk = doubt(masks, self.y, units, 0.5).stderr  # these share; each may be either's
        assert shrunk[1] == pytest.approx(shrunk[6])
        assert shrunk[1] > 1.2 * shrunk[[0, 2, 3, 4, 5]].max()
