"""Upper bounds of a passage's effect where what carries the statement is there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from mechattr.audit.given import rows_given, upper_given

ALL = np.array(list(itertools.product([False, True], repeat=4)))


def test_is_the_slope_and_a_t_quantile_of_its_standard_error():
    rng = np.random.default_rng(0)
    values = 4.0 * ALL[:, 0] + 0.5 * ALL[:, 1] - ALL[:, 2] + 0.3 * rng.normal(size=16)
    found = upper_given(ALL, values, [0], [], 0.95)
    assert found[0] == np.inf, "of what is always there nothing is known"
    kept = ALL[:, 0]
    x = np.column_stack([np.ones(8), ALL[kept][:, 1:]])
    slopes, (left,), *_ = np.linalg.lstsq(x, values[kept], rcond=None)
    errors = np.sqrt(left / 4 * np.diag(np.linalg.inv(x.T @ x)))
    np.testing.assert_allclose(found[1:], (slopes + stats.t.ppf(0.95, 4) * errors)[1:], atol=1e-12)
    assert found[2] < 0 < found[1]


def test_of_a_group_a_member_is_enough():
    """Without either copy everything else would seem to matter; and so it isn't looked at."""
    carried = ALL[:, 0] | ALL[:, 1]
    values = np.where(carried, 5.0 + 0.1 * ALL[:, 2], 3.0 * ALL[:, 2])
    found = upper_given(ALL, values, [], [[0, 1]], 0.95)
    np.testing.assert_array_equal(found[:2], np.inf)
    np.testing.assert_allclose(found[2:], [0.1, 0.0], atol=1e-12)
    assert upper_given(ALL, values, [], [], 0.95)[2] > 0.7


def test_a_bound_holds_as_often_as_it_says():
    rng = np.random.default_rng(1)
    true = np.array([0.0, 1.0, -0.5, 0.2])
    held = []
    for _ in range(400):
        values = ALL @ true + rng.normal(size=16)
        held.append(upper_given(ALL, values, [], [], 0.9) >= true)
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_of_few_passages_the_largest_effect_in_any_context():
    three = np.array(list(itertools.product([False, True], repeat=3)))
    values = 9.0 * three[:, 0] + 0.4 * three[:, 1] - 0.7 * three[:, 1] * three[:, 2]
    found = upper_given(three, values, [0], [], 0.95)
    assert found[0] == np.inf
    np.testing.assert_allclose(found[1:], [0.4, 0.0], atol=1e-12)
    some = three[:-1]
    np.testing.assert_array_equal(upper_given(some, values[:-1], [0], [], 0.95), np.inf)
    one = np.array([[True], [False]])
    np.testing.assert_allclose(upper_given(one, np.array([2.0, 1.5]), [], [], 0.95), [0.5])


@pytest.mark.parametrize(
    ("masks", "support"),
    [
        pytest.param(ALL[:5], [], id="too few rows"),
        pytest.param(ALL, [0, 1, 2, 3], id="no free player"),
        pytest.param(ALL[~ALL[:, 0]], [0], id="the support is never there"),
    ],
)
def test_where_nothing_is_known_it_is_infinite(masks, support):
    found = upper_given(masks, np.arange(len(masks), dtype=float), support, [], 0.95)
    np.testing.assert_array_equal(found, np.inf)


def test_a_player_that_is_never_absent():
    masks = ALL[ALL[:, 3]]
    found = upper_given(masks, masks[:, 0] * 2.0, [], [], 0.95)
    np.testing.assert_allclose(found[:3], [2, 0, 0], atol=1e-12)
    assert found[3] == np.inf


def test_of_three_passages_the_largest_effect_in_any_context():
    """One is used: four contexts are too few for a standard error, but they are all there are."""
    masks = np.array(list(itertools.product([False, True], repeat=3)))
    effect = 0.5 * masks[:, 1] - 2.0 * (masks[:, 1] & masks[:, 2]) + 0.1 * masks[:, 2]
    found = upper_given(masks, 5.0 * masks[:, 0] + effect, [0], [], 0.95)
    np.testing.assert_allclose(found, [np.inf, 0.5, 0.1], atol=1e-12)
    few = upper_given(masks[[0, 5, 6, 7]], effect[[0, 5, 6, 7]], [0], [], 0.95)
    np.testing.assert_array_equal(few, np.inf)


def test_of_two_passages_the_one_difference_that_there_is():
    masks = np.array(list(itertools.product([False, True], repeat=2)))
    found = upper_given(masks, np.array([0.0, 3.0, 5.0, 5.25]), [0], [], 0.95)
    np.testing.assert_allclose(found, [np.inf, 0.25])


@pytest.mark.parametrize(("supports", "rows"), [([{1}], 16), ([{0}, {2, 3}], 16), ([{0}] * 4, 32)])
def test_rows_hold_the_support_and_balance_the_rest(supports, rows):
    found = rows_given(7, supports, np.random.default_rng(0))
    assert found.shape == (rows, 7)
    for support, part in zip(supports, np.split(found, len(supports)), strict=True):
        free = [j for j in range(7) if j not in support]
        assert part[:, sorted(support)].all()
        signs = 2.0 * part[:, free] - 1
        np.testing.assert_array_equal(signs.T @ signs, len(part) * np.eye(len(free)))


def test_rows_where_nothing_is_free():
    assert rows_given(3, [{0, 1, 2}], np.random.default_rng(0)).shape == (0, 3)
    assert rows_given(3, [], np.random.default_rng(0)).shape == (0, 3)
    assert len(rows_given(3, [{0}], np.random.default_rng(0))) == 4, "all subsets of two"


def test_more_rows_tighten_the_bound():
    """Two passages do nothing, beside noise; one carries."""
    rng = np.random.default_rng(3)
    first = np.concatenate([np.ones((1, 5), bool), ~np.eye(5, dtype=bool)])
    first = np.concatenate([first, rng.random((10, 5)) < 0.5])
    more = np.concatenate([first, rows_given(5, [{0}], rng)])
    noise = rng.normal(size=len(more))
    values = 9.0 * more[:, 0] + 0.5 * noise
    few, many = (upper_given(m, values[: len(m)], [0], [], 0.95)[1:] for m in (first, more))
    assert many.mean() < 0.75 * few.mean()
