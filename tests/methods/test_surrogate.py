"""Linear surrogates against definitions written out, closed forms, and their own errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mechattr.errors import InputError, UnknownNameError
from mechattr.game import FunctionGame, Game
from mechattr.methods import (
    Coar,
    ContextCite,
    KernelShap,
    Lime,
    Surrogate,
    attribute,
    regression,
)
from mechattr.methods import designs as designs_
from mechattr.methods.designs import DESIGNS, Design, draw, hadamard_matrix, hadamard_order
from mechattr.methods.surrogate import log_odds
from mechattr.ranks import spearman
from tests.games import LogProbs, RaggedGame, linear_game, table_game


class Lengths(LogProbs):
    """Log probabilities of answers of several tokens."""

    target_lengths = np.array([3.0, 11.0])


def asked_of(game: Game, method, **options):
    """The result, and every mask and value that the game was asked for after its two ends."""
    rows: list[np.ndarray] = []
    inner = game._values

    def kept(masks):
        rows.append(masks.numpy().astype(bool))
        return inner(masks)

    game._values = kept  # type: ignore[method-assign]
    result = attribute(game, method, progress=False, **options)
    game._values = inner  # type: ignore[method-assign]
    return result, np.concatenate(rows[1:])


def banzhaf(game: Game) -> np.ndarray:
    """[prompt, player] straight from the definition: the mean of v(S∪i) − v(S∖i) over all S."""
    n = game.n_players
    subsets = np.array(list(itertools.product([0.0, 1.0], repeat=n)))
    found = []
    for i in range(n):
        with_it, without = subsets.copy(), subsets.copy()
        with_it[:, i], without[:, i] = 1.0, 0.0
        found.append((game(with_it) - game(without)).numpy().mean(0))
    return np.stack(found, axis=1)


def sparse_game(n: int = 14, seed: int = 0) -> FunctionGame:
    """Three players that matter and an interaction of two of them; the others, a little."""
    rng = np.random.default_rng(seed)
    w = torch.from_numpy(np.r_[3.0, 2.0, -2.5, 0.1 * rng.normal(size=n - 3)])
    return FunctionGame(lambda m: m @ w + 1.5 * m[:, 0] * m[:, 1] - m[:, 2] * m[:, 1], n)


class TestContextCite:
    def definition(self, masks: np.ndarray, log_probs: np.ndarray, n_tokens: float) -> np.ndarray:
        """As published, slowly: its Lasso by coordinate descent to the last digit."""
        y = np.array([lp - np.log(1 - np.exp(lp)) for lp in log_probs]) / n_tokens
        mean, spread = masks.mean(0), masks.std(0)
        z = (masks - mean) / spread
        w, b = np.zeros(z.shape[1]), y.mean()
        for _ in range(5000):
            for j in range(len(w)):
                rest = y - b - z @ w + z[:, j] * w[j]
                slope = z[:, j] @ rest / len(y)
                w[j] = np.sign(slope) * max(abs(slope) - 0.01, 0) / (z[:, j] @ z[:, j] / len(y))
            b = (y - z @ w).mean()
        return w / spread * n_tokens

    def setup_method(self):
        rng = np.random.default_rng(3)
        self.w = torch.from_numpy(rng.normal(size=(2, 10)) * (rng.random((2, 10)) < 0.5))
        odds = FunctionGame(lambda m: m @ self.w.T + 2 * m[:, :1] * m[:, 1:2] - 1, 10, 2)
        self.game = Lengths(odds)

    def test_weights_are_its_definitions(self):
        # masks and values by hand, since equal masks are asked for once
        rng = np.random.default_rng(5)
        masks = rng.random((64, 10)) < 0.5
        values = self.game(masks).numpy()
        lengths = self.game.target_lengths
        design = Design(masks, np.arange(64))
        found = ContextCite().of(design, values, lengths)
        for prompt in range(2):
            expected = self.definition(masks.astype(float), values[:, prompt], lengths[prompt])
            assert np.abs(expected).max() > 0.5
            assert (expected == 0).any()
            np.testing.assert_allclose(found.values[prompt], expected, atol=1e-8)

    def test_and_scikit_learns_to_four_digits(self):
        from sklearn.linear_model import Lasso
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        masks = np.random.default_rng(5).random((64, 10)) < 0.5
        values = self.game(masks).numpy()
        found = ContextCite().of(Design(masks, np.arange(64)), values, np.array([3.0, 11.0]))
        for prompt, n_tokens in enumerate((3.0, 11.0)):
            y = (values[:, prompt] - np.log(-np.expm1(values[:, prompt]))) / n_tokens
            pipe = make_pipeline(StandardScaler(), Lasso(alpha=0.01)).fit(masks.astype(float), y)
            scaler, lasso = pipe.named_steps.values()
            weights = lasso.coef_ / scaler.scale_ * n_tokens
            np.testing.assert_allclose(found.values[prompt], weights, atol=1e-4 * n_tokens)
            level = (lasso.intercept_ - scaler.mean_ / scaler.scale_ @ lasso.coef_) * n_tokens
            assert found.notes["intercept"][prompt] == pytest.approx(level, abs=1e-3 * n_tokens)

    def test_runs_64_masks_and_the_ends(self):
        result, rows = asked_of(self.game, "contextcite")
        assert result.provenance["notes"]["rows"] == 64
        assert 55 < len(rows) <= 64  # of 1024 subsets, a few come twice
        assert result.provenance["evaluations"] == (len(rows) + 2) * 2
        assert 0.4 < rows.mean() < 0.6

    def test_lengths_come_from_the_game(self):
        long = attribute(self.game, "contextcite", progress=False)
        short = attribute(LogProbs(self.game.odds), "contextcite", progress=False)
        assert np.abs(long.values - short.values).max() > 0.05
        assert (short.values == 0).sum() < (long.values == 0).sum()

    def test_values_that_are_no_log_probabilities_are_refused(self):
        with pytest.raises(InputError, match=r"at most 0; v reaches .*transform=None"):
            attribute(linear_game(6), "contextcite", progress=False)


class TestLogOdds:
    def test_digits_are_kept_where_p_is_nearly_1(self):
        one_minus = np.array([1e-15, 1e-12, 1e-8, 1e-3, 0.5])
        found = log_odds(np.log1p(-one_minus))
        np.testing.assert_allclose(found, np.log1p(-one_minus) - np.log(one_minus), rtol=1e-14)

    def test_p_that_rounds_to_1_stays_finite_and_in_order(self):
        found = log_odds(np.array([-3.0, -1e-7, 0.0, 1e-9]))
        assert np.isfinite(found).all()
        assert (np.diff(found) >= 0).all()
        assert found[2] == found[3] == pytest.approx(-np.log(2.0**-24), rel=1e-6)
        assert found[1] < found[2]
        # a wider dtype sees nearer to 1 than float32 does
        finer = log_odds(np.array([-3.0, -1e-12, 0.0]))
        assert finer[2] == finer[1] == pytest.approx(12 * np.log(10), rel=1e-6)

    def test_far_from_1_it_is_the_log_probability(self):
        np.testing.assert_allclose(log_odds(np.array([-800.0, -50.0])), [-800.0, -50.0])


class TestDesigns:
    @pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 44, 60, 72, 104])
    def test_hadamard_matrices(self, order):
        assert hadamard_order(order) == order
        matrix = hadamard_matrix(order).astype(int)
        np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))
        assert (matrix[0] == 1).all()
        assert (matrix[:, 0] == 1).all()

    def test_orders_go_up_to_a_limit(self):
        assert [hadamard_order(n) for n in (3, 5, 13, 17, 33)] == [4, 8, 16, 20, 36]
        with pytest.raises(InputError, match=r"8193 players .* design='antithetic'"):
            hadamard_order(8193)

    @pytest.mark.parametrize("name", DESIGNS)
    @pytest.mark.parametrize("rows", [4, 5, 17, 32, 64, 101])
    @pytest.mark.parametrize("ends", [True, False])
    def test_as_many_rows_as_asked_and_every_player_in_half(self, name, rows, ends):
        n = 11
        drawn = [draw(name, np.random.default_rng(seed), n, rows, 0.5, ends) for seed in range(30)]
        for design in drawn:
            assert design.masks.shape == (rows, n)
            assert design.units.shape == (rows,)
            assert design.given == 2 * ends
            assert not design.complete
            if ends:
                assert design.masks[0].all()
                assert not design.masks[1].any()
                assert design.units[0] == design.units[1]
        shares = np.mean([design.masks.mean(0) for design in drawn], axis=0)
        np.testing.assert_allclose(shares, 0.5, atol=0.2 if rows < 6 else 0.1)

    @pytest.mark.parametrize("name", ["antithetic", "balanced", "hadamard"])
    def test_pairs_are_complements(self, name):
        design = draw(name, np.random.default_rng(0), 11, 40, 0.5, True)
        assert (np.bincount(design.units) == 2).all()
        for unit in range(20):
            one, other = design.masks[design.units == unit]
            np.testing.assert_array_equal(one, ~other)

    @pytest.mark.parametrize("n", [9, 12, 16])
    def test_fold_over_frees_players_from_each_other_and_from_pairs(self, n):
        rows = 2 * hadamard_order(n)
        design = draw("hadamard", np.random.default_rng(0), n, rows, 0.5, True)
        x = 2 * design.masks.astype(int) - 1
        np.testing.assert_array_equal(x.T @ x, rows * np.eye(n))
        pairs = np.stack([x[:, i] * x[:, j] for i, j in itertools.combinations(range(n), 2)], 1)
        assert not (x.T @ pairs).any()
        assert not x.sum(0).any()
        # with too few rows for that, no complements: rows are the scarcer thing
        few = draw("hadamard", np.random.default_rng(0), n, 2 * n - 2, 0.5, True)
        assert len(np.unique(few.units)) == 2 * n - 3

    def test_all_subsets_where_they_fit(self):
        for name in set(DESIGNS) - {"bernoulli"}:
            design = draw(name, np.random.default_rng(0), 5, 32, 0.5, True)
            assert design.complete
            assert len(np.unique(design.masks, axis=0)) == 32
            assert not draw(name, np.random.default_rng(0), 5, 31, 0.5, True).complete
        assert not draw("bernoulli", np.random.default_rng(0), 5, 32, 0.5, True).complete

    def test_known_masks_come_in_front(self):
        design = draw("hadamard", np.random.default_rng(0), 6, 20, 0.5, True)
        more = design.with_known(~np.eye(6, dtype=bool))
        assert more.given == 8
        assert len(np.unique(more.units)) == len(np.unique(design.units)) + 6
        np.testing.assert_array_equal(more.masks[6:], design.masks)


class TestLeastSquares:
    @pytest.mark.parametrize(("fit", "penalty"), [("ridge", None), ("lasso", 0.01)])
    def test_all_subsets_leave_nothing_to_chance(self, fit, penalty):
        method = Surrogate(fit=fit, samples=16, penalty=penalty)
        result = attribute(table_game(4, 1), method, progress=False)
        assert result.provenance["notes"]["complete"]
        assert np.abs(result.values).max() > 0.1
        np.testing.assert_array_equal(result.draw_stderr, 0)

    @pytest.mark.parametrize("fit", ["ols", "ard"])
    def test_all_subsets_give_the_banzhaf_values(self, fit):
        game = table_game(6, 2)
        expected = banzhaf(game)
        assert np.abs(expected).min() > 1e-4
        result = attribute(game, Surrogate(fit=fit, samples=64), progress=False)
        np.testing.assert_allclose(result.values, expected, atol=1e-12)
        np.testing.assert_array_equal(result.draw_stderr, 0)
        assert result.provenance["notes"]["complete"]
        assert result.provenance["evaluations"] == 64 * 2

    def test_keep_converges_to_the_slope_of_the_extension_there(self):
        game = table_game(4, 1)
        expected = game.gradient([[0.8] * 4])[0, 0].numpy()
        method = Surrogate("bernoulli", samples=40_000, keep=0.8, fit="ols", ends=False, folds=0)
        result = attribute(game, method, progress=False)
        assert np.abs(expected - banzhaf(game)).max() > 0.1
        assert result.draw_stderr is not None
        assert (np.abs(result.values - expected) < 4.5 * result.draw_stderr).all()
        assert result.draw_stderr.max() < 0.05

    @pytest.mark.parametrize("design", DESIGNS)
    def test_linear_game_is_recovered(self, design):
        game = linear_game(12, 2)
        for fit in ("ols", "ard"):
            result = attribute(game, Surrogate(design, fit=fit), progress=False)
            np.testing.assert_allclose(result.values, game.weights, atol=1e-9)
            assert result.draw_stderr is not None
            np.testing.assert_allclose(result.draw_stderr, 0, atol=1e-9)
            np.testing.assert_allclose(
                result.provenance["notes"]["intercept"], game.empty(), atol=1e-9
            )

    def test_players_that_the_masks_do_not_tell_apart_share(self):
        masks = np.repeat(np.random.default_rng(0).random((20, 2)) < 0.5, 2, axis=1)
        y = masks @ np.array([1.0, 2.0, 0.0, 1.0])
        line = regression.ols(masks.astype(float), y)
        np.testing.assert_allclose(line.weights, [1.5, 1.5, 0.5, 0.5])

    @pytest.mark.parametrize("fit", ["ols", "ard", "ridge", "lasso"])
    @pytest.mark.parametrize("there", [True, False])
    def test_a_player_that_is_always_there_or_never_has_no_error(self, fit, there):
        masks = np.random.default_rng(0).random((20, 3)) < 0.5
        masks[:, 1] = there
        values = (masks @ [1.0, 2.0, 1.0] + 0.1 * masks[:, 0] * masks[:, 2])[:, None]
        method = Surrogate(fit=fit, penalty=1e-3 if fit in ("ridge", "lasso") else None)
        found = method.of(Design(masks, np.arange(20)), values)
        np.testing.assert_allclose(found.values, [[1.05, 0, 1.05]], atol=0.03)
        assert found.draw_stderr is not None
        assert np.isnan(found.draw_stderr[0]).tolist() == [False, True, False]
        assert found.notes["ci95"][0][1] == [None, None]
        level = 2.0 * there - 0.025
        np.testing.assert_allclose(found.notes["intercept"], level, atol=0.03)

    def test_players_that_are_always_there_are_all_that_ard_is_given(self):
        found = Surrogate().of(Design(np.ones((8, 2), bool), np.arange(8)), np.arange(8.0)[:, None])
        np.testing.assert_array_equal(found.values, 0)
        assert found.draw_stderr is not None
        assert np.isnan(found.draw_stderr).all()
        assert found.notes["intercept"] == [3.5]


class TestRidge:
    def setup_method(self):
        rng = np.random.default_rng(0)
        self.masks = (rng.random((30, 8)) < 0.5).astype(float)
        self.y = self.masks @ rng.normal(size=8) + rng.normal(size=30)
        self.importance = rng.random(30) + 0.1

    def test_is_scikit_learns(self):
        from sklearn.linear_model import Ridge

        for importance in (None, self.importance):
            expected = Ridge(alpha=2.5).fit(self.masks, self.y, sample_weight=importance)
            line = regression.ridge(self.masks, self.y, 2.5, importance)
            np.testing.assert_allclose(line.weights, expected.coef_, atol=1e-12)
            assert line.intercept == pytest.approx(expected.intercept_)

    def test_penalty_is_the_best_left_out_one_by_one(self):
        errors = []
        scale = (np.linalg.svd(self.masks - self.masks.mean(0))[1] ** 2).mean()
        for penalty in regression.PENALTIES * scale:
            left = 0.0
            for k in range(30):
                rest = np.arange(30) != k
                line = regression.ridge(self.masks[rest], self.y[rest], penalty)
                left += (line(self.masks[k : k + 1])[0] - self.y[k]) ** 2
            errors.append(left)
        line = regression.ridge(self.masks, self.y, None)
        assert line.penalty is not None
        # by the usual shortcut, which leaves a row out of the fit but not of the means
        chosen = int(np.argmin(np.abs(np.log(regression.PENALTIES * scale / line.penalty))))
        assert 0 < chosen < len(errors) - 1
        assert errors[chosen] <= 1.02 * min(errors)

    def test_without_a_penalty_it_is_least_squares(self):
        for importance in (None, self.importance):
            line = regression.ridge(self.masks, self.y, 0.0, importance)
            expected = regression.ols(self.masks, self.y, importance)
            np.testing.assert_allclose(line.weights, expected.weights, atol=1e-12)

    def test_lime_is_its_definition(self):
        game = table_game(5, 1)
        result = attribute(game, Lime(samples=60), seed=2, progress=False)
        design = draw("bernoulli", np.random.default_rng(2), 5, 60, 0.5, True)
        x = design.masks.astype(float)
        y = game(design.masks)[:, 0].numpy()
        size = np.sqrt(x.sum(1))
        cosine = np.where(size > 0, x.sum(1) / np.maximum(size, 1) / np.sqrt(5), 0)
        # LIME's own: the root of a kernel of width 25 on 100 times the distance
        weights = np.sqrt(np.exp(-((100 * (1 - cosine)) ** 2) / 25**2))
        from sklearn.linear_model import Ridge

        expected = Ridge(alpha=1).fit(x, y, sample_weight=weights).coef_
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(result.values[0], expected, atol=1e-10)


class TestSparsePrior:
    def test_slope_of_the_objective(self):
        rng = np.random.default_rng(0)
        signs = rng.choice([-1.0, 1.0], size=(12, 5))
        y = rng.normal(size=12)
        at = rng.normal(size=7) - 1
        value, slope = regression._objective(at, signs, y)
        for i in range(7):
            up, down = at.copy(), at.copy()
            up[i] += 1e-5
            down[i] -= 1e-5
            numeric = (
                regression._objective(up, signs, y)[0] - regression._objective(down, signs, y)[0]
            ) / 2e-5
            assert slope[i] == pytest.approx(numeric, rel=1e-5, abs=1e-7)
        assert np.isfinite(value)

    def test_scores_and_their_doubt_are_the_posterior_of_the_written_model(self):
        """The same model with all its coefficients written out, and Bayes' rule on them."""
        rng = np.random.default_rng(1)
        masks = (rng.random((16, 4)) < 0.5).astype(float)
        y = masks @ [2.0, 0.5, 0.0, -1.0] + 1.5 * masks[:, 0] * masks[:, 3] + 0.3
        line = regression.ard(masks, y)
        x, scaled = 2 * masks - 1, (y - y.mean()) / y.std()
        a, p, noise = regression._relevances(x, scaled)
        pairs = list(itertools.combinations(range(4), 2))
        features = np.c_[np.ones(16), x, *(x[:, i] * x[:, j] for i, j in pairs)]
        prior = np.r_[regression.INTERCEPT, a, [p * a[i] * a[j] for i, j in pairs]]
        covariance = np.linalg.inv(features.T @ features / noise + np.diag(1 / prior))
        mean = covariance @ features.T @ scaled / noise
        np.testing.assert_allclose(line.weights, 2 * mean[1:5] * y.std(), rtol=1e-6)
        level = (mean[0] - mean[1:5].sum()) * y.std() + y.mean()
        assert line.intercept == pytest.approx(level, rel=1e-6)
        assert line.stderr is not None
        assert (line.stderr >= 2 * np.sqrt(np.diag(covariance)[1:5]) * y.std() * (1 - 1e-6)).all()

    def test_more_masks_come_to_the_banzhaf_values(self):
        game = sparse_game(9)
        expected = banzhaf(game)
        far = [
            np.abs(attribute(game, Surrogate(samples=m), progress=False).values - expected).max()
            for m in (16, 48, 384)
        ]
        assert far[2] < far[1] < far[0]
        assert far[2] < 0.02

    def test_values_that_are_all_equal(self):
        game = FunctionGame(lambda m: 0 * m[:, 0] + 2.5, 9)
        for method in (Surrogate(), Surrogate(fit="ols"), Surrogate(fit="ridge"), Coar(), Lime()):
            result = attribute(game, method, progress=False)
            np.testing.assert_allclose(result.values, 0, atol=1e-12)
            assert result.provenance["notes"]["lds"] == [None]

    def test_too_many_rows_are_refused_before_any_is_run(self):
        game = linear_game(1200, 1)
        with pytest.raises(InputError, match=r"at most 4096 rows; 1200 players .* make 4804"):
            attribute(game, "surrogate", progress=False)
        assert game.evaluations == 2
        # all subsets leave nothing to fit
        small = linear_game(13, 1)
        result = attribute(small, "surrogate", budget=2**13, progress=False)
        np.testing.assert_allclose(result.values, small.weights, atol=1e-9)


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "lowest"),
        [
            (Surrogate(samples=32), 0.9),
            (Surrogate("bernoulli", samples=64), 0.88),
            (Surrogate("bernoulli", samples=64, fit="ols"), 0.92),
            (Surrogate("antithetic", samples=64, fit="ols"), 0.99),
            (Surrogate("bernoulli", samples=64, fit="lasso", penalty=0.03), 0.92),
            (Surrogate("bernoulli", samples=32, fit="ridge"), 0.92),
            (Surrogate("hadamard", samples=32, fit="ols"), 0.99),
        ],
        ids=[
            "default at 32",
            "i.i.d.",
            "i.i.d., ols",
            "complements, ols",
            "lasso",
            "ridge",
            "fold-over",
        ],
    )
    def test_intervals_cover(self, method, lowest):
        covered, width = [], []
        for seed in range(25):
            game = sparse_game(10, seed)
            truth = banzhaf(game)[0]
            result = attribute(game, method, seed=seed, progress=False)
            low, high = np.array(result.provenance["notes"]["ci95"])[0].T
            # complements leave rounding only: their intervals are as narrow
            covered.append((low - 1e-9 <= truth) & (truth <= high + 1e-9))
            width.append(high - low)
        assert lowest <= np.mean(covered) <= 1
        assert np.median(width) < 1.5  # of scores of up to 3.75

    def test_least_squares_errors_are_calibrated(self):
        game = table_game(6, 1)
        truth = banzhaf(game)
        method = Surrogate("bernoulli", samples=300, fit="ols", folds=0)
        runs = [attribute(game, method, seed=s, progress=False) for s in range(60)]
        errors = np.stack([run.values - truth for run in runs])
        claimed = np.sqrt(np.mean([run.draw_stderr**2 for run in runs], axis=0))  # type: ignore
        np.testing.assert_allclose(errors.std(0), claimed, rtol=0.3)

    def test_a_pair_is_drawn_together(self):
        """Where only interactions of two blur it, complements leave no error."""
        rng = np.random.default_rng(0)
        w = torch.from_numpy(np.triu(rng.normal(size=(8, 8))))
        game = FunctionGame(lambda m: torch.einsum("mi,ij,mj->m", m, w, m), 8)
        pairs = Surrogate("antithetic", samples=64, fit="ols")
        result = attribute(game, pairs, progress=False)
        np.testing.assert_allclose(result.values, banzhaf(game), atol=1e-9)
        assert result.draw_stderr is not None
        np.testing.assert_allclose(result.draw_stderr, 0, atol=1e-9)
        alone = attribute(game, Surrogate("bernoulli", samples=64, fit="ols"), progress=False)
        assert alone.draw_stderr is not None
        assert alone.draw_stderr.min() > 0.05

    def test_lasso_says_how_certain_it_is_of_whom_it_left_out(self):
        game = sparse_game(12)
        result = attribute(
            game, Surrogate("bernoulli", samples=64, fit="lasso", penalty=0.1), progress=False
        )
        out = result.values[0] == 0
        assert 2 < out.sum() < 12
        assert result.draw_stderr is not None
        assert (result.draw_stderr[0] > 0).all()

    def test_held_out_lds_is_that_of_fresh_masks(self):
        from mechattr.faithfulness import lds

        game = sparse_game(12)
        result = attribute(game, Surrogate(samples=128), progress=False)
        claimed = result.provenance["notes"]["lds"][0]
        fresh = lds(game, result, n=800, progress=False).mean
        assert claimed == pytest.approx(fresh, abs=0.05)
        noise = FunctionGame(lambda m: torch.sin(1e4 * (m @ torch.arange(1.0, 13).double())), 12)
        nothing = attribute(noise, Surrogate(samples=128), progress=False)
        assert abs(nothing.provenance["notes"]["lds"][0]) < 0.35
        for none in (Surrogate(folds=0), Surrogate(samples=8)):
            result = attribute(game, none, progress=False)
            assert result.provenance["notes"]["lds"] == [None]


class TestCost:
    @pytest.mark.parametrize(
        "method", [Surrogate(), Surrogate("antithetic"), Coar(), ContextCite()]
    )
    @pytest.mark.parametrize("budget", [20, 33, 64])
    def test_a_budget_is_spent(self, method, budget):
        game = LogProbs(linear_game(14, 2))
        result = attribute(game, method, budget=budget, progress=False)
        assert game.evaluations <= budget * 2
        if method.keep == 0.5:
            assert game.evaluations == budget * 2
        assert result.provenance["notes"]["rows"] == budget - 2 + 2 * method.ends

    def test_equal_masks_and_the_ends_are_asked_for_once(self):
        game = linear_game(3, 1)
        result, rows = asked_of(game, Surrogate("bernoulli", samples=100))
        assert len(rows) == len(np.unique(rows, axis=0)) == 6
        assert result.provenance["evaluations"] == 8

    def test_big_designs_go_in_chunks(self, monkeypatch):
        from mechattr.methods import masks

        expected = attribute(table_game(7, 2), Surrogate(samples=60), progress=False)
        monkeypatch.setattr(masks, "ENTRIES", 50)
        result = attribute(table_game(7, 2), Surrogate(samples=60), progress=False)
        np.testing.assert_array_equal(result.values, expected.values)

    def test_scikit_learn_is_needed_for_a_lasso_only(self):
        import subprocess
        import sys

        code = (
            "import sys, mechattr as ma; game = ma.FunctionGame(lambda m: m.sum(1), 9);"
            "ma.attribute(game, 'surrogate'); print('sklearn' in sys.modules, end='')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout == "False", done.stderr


def test_players_that_are_not_there_are_left_out():
    game = RaggedGame(np.random.default_rng(0).normal(size=(2, 9)), [9, 6])
    for method in (Surrogate(), Surrogate(fit="ols")):
        result = attribute(game, method, progress=False)
        assert np.isnan(result.values[1, 6:]).all()
        np.testing.assert_allclose(result.values[0], game.weights[0], atol=1e-9)
        np.testing.assert_allclose(result.values[1, :6], game.weights[1, :6], atol=1e-9)
        assert result.provenance["notes"]["ci95"][1][8] == [None, None]


def test_default_needs_half_the_masks_that_contextcite_does():
    """On sparse games like those of the sweep: 32 evaluations in all against its 64 masks."""
    ours: list[float] = []
    theirs: list[float] = []
    for seed in range(10):
        game = LogProbs(sparse_game(16, seed))
        held_out = np.random.default_rng(seed + 100).random((300, 16)) < 0.5
        values = game(held_out)[:, 0].numpy()
        for method, budget, out in ((Surrogate(), 32, ours), (ContextCite(), 66, theirs)):
            result = attribute(game, method, budget=budget, seed=seed, progress=False)

            out.append(spearman(held_out @ result.values[0], values))
    assert np.mean(ours) > np.mean(theirs) - 0.005
    assert np.mean(ours) > 0.9


class TestKernelShap:
    def test_all_subsets_give_the_shapley_values(self):
        for n in (2, 3, 6):
            game = table_game(n, 2, seed=n)
            expected = attribute(game, "exact_shapley", progress=False).values
            result = attribute(game, KernelShap(), progress=False)
            np.testing.assert_allclose(result.values, expected, atol=1e-10)
            np.testing.assert_array_equal(result.draw_stderr, 0)
            assert result.provenance["evaluations"] == 2**n * 2

    def test_closed_form(self):
        """A⁻¹(b − 1(1ᵀA⁻¹b − v(N) + v(∅))/(1ᵀA⁻¹1)) of the masks that it drew."""
        game = table_game(9, 2)
        result, rows = asked_of(game, KernelShap(rounds=3))
        assert len(rows) == 2 * 3 * 8
        z = rows.astype(float)
        v, empty, full = game(rows).numpy(), game.empty().numpy(), game.full().numpy()
        a = np.linalg.inv(z.T @ z / len(z))
        b = z.T @ (v - empty) / len(z)
        one = np.ones(9)
        for prompt in range(2):
            slack = one @ a @ b[:, prompt] - full[prompt] + empty[prompt]
            expected = a @ (b[:, prompt] - one * slack / (one @ a @ one))
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(result.values[prompt], expected, atol=1e-10)

    def test_converges_within_its_errors(self):
        game = table_game(9, 2)
        exact = attribute(game, "exact_shapley", progress=False).values
        result = attribute(game, KernelShap(), budget=500, progress=False)
        assert result.draw_stderr is not None
        assert (np.abs(result.values - exact) < 4.5 * result.draw_stderr).all()
        np.testing.assert_allclose(result.gap, 0, atol=1e-12)

    def test_errors_are_calibrated(self):
        game = table_game(8, 1)
        exact = attribute(game, "exact_shapley", progress=False).values
        runs = [
            attribute(game, KernelShap(rounds=8), seed=s, budget=120, progress=False)
            for s in range(120)
        ]
        errors = np.stack([run.values - exact for run in runs])
        claimed = np.sqrt(np.mean([run.draw_stderr**2 for run in runs], axis=0))  # type: ignore
        np.testing.assert_allclose(errors.std(0), claimed, rtol=0.25)

    def test_sizes_follow_the_kernel(self):
        _, rows = asked_of(linear_game(14, 1), KernelShap(rounds=200))
        sizes = np.bincount(rows.sum(1), minlength=15)[1:14]
        expected = 1 / (np.arange(1, 14) * (14 - np.arange(1, 14)))
        np.testing.assert_allclose(sizes / sizes.sum(), expected / expected.sum(), atol=0.03)
        np.testing.assert_array_equal(rows.sum(0), len(rows) / 2)  # complements

    def test_few_pairs_still_sum_to_the_whole(self):
        game = table_game(9, 3)
        result = attribute(game, KernelShap(), budget=18, progress=False)
        np.testing.assert_allclose(result.gap, 0, atol=1e-12)
        assert np.isfinite(result.values).all()

    def test_settings_are_checked(self):
        with pytest.raises(InputError, match="rounds=0"):
            KernelShap(rounds=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(keep=0.0), "keep=0.0; expected a chance"),
        (dict(keep=0.9, fit="ols"), "goes with design='bernoulli'"),
        (dict(keep=0.9, design="bernoulli"), "'ard' is for ½"),
        (dict(samples=3), "samples=3"),
        (dict(penalty=0.1), "fit='ard' has no penalty"),
        (dict(fit="lasso"), "needs a penalty above 0"),
        (dict(fit="ridge", penalty=-1.0), "penalty=-1.0"),
        (dict(fit="ols", width=0.0), "width=0.0"),
        (dict(width=0.3), "not of 'ard'"),
        (dict(folds=1), "folds=1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        Surrogate(**settings)


def test_unknown_names():
    for settings in (dict(design="hadamar"), dict(fit="lars"), dict(transform="probit")):
        with pytest.raises(UnknownNameError):
            Surrogate(**settings)  # type: ignore[arg-type]
    assert designs_.DESIGNS.keys() >= {"bernoulli", "hadamard"}


def test_names_and_what_is_said_of_amounts():
    assert [m.name for m in (Surrogate(), ContextCite(), Lime(), Coar())] == [
        "surrogate", "contextcite", "lime", "coar",
    ]  # fmt: skip
    assert [m.amounts for m in (Surrogate(), ContextCite(), Lime(), Coar())] == [
        True, False, False, True,
    ]  # fmt: skip
    assert Surrogate(samples=32).cost == "32"
    assert ContextCite().cost == "64 + 2"
