"""p-values hold their level, bounds cover, rates know that items of one question go together."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mechattr.audit.statistics import (
    Pool,
    Rate,
    benjamini_hochberg,
    cluster_rates,
    p_own,
)
from mechattr.errors import InputError

# --- bands ----------------------------------------------------------------------------------------


def spans(pool: Pool) -> list[tuple[float, float, int]]:
    return [(band.low, band.high, band.n) for band in pool.bands]


def test_neighbouring_sizes_are_merged_until_a_band_has_enough():
    sizes = np.repeat([3, 5, 8, 9, 20], [4, 2, 7, 3, 6])
    pool = Pool(np.arange(22.0), sizes, least=5)
    assert spans(pool) == [(3, 5, 6), (8, 8, 7), (9, 20, 9)]
    assert pool.n == 22


def test_what_is_left_at_the_large_end_joins_the_last_band():
    sizes = np.repeat([3, 5, 8], [6, 6, 2])
    assert spans(Pool(np.zeros(14), sizes, least=5)) == [(3, 3, 6), (5, 8, 8)]


def test_equal_sizes_are_never_parted():
    assert spans(Pool(np.zeros(90), np.full(90, 7), least=5)) == [(7, 7, 90)]


def test_fewer_than_wanted_make_one_band():
    pool = Pool([0.1, 0.2, 0.3], [1, 50, 9])
    assert spans(pool) == [(1, 50, 3)]
    assert pool.bands[0].effects.tolist() == [0.1, 0.2, 0.3]


def test_every_band_has_enough_and_none_could_be_parted():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, size=900)
    pool = Pool(rng.normal(size=900), sizes)
    assert all(band.n >= 40 for band in pool.bands)
    for band in pool.bands[:-1]:  # without its largest size, a band has too few
        inside = sizes[(sizes >= band.low) & (sizes < band.high)]
        assert len(inside) < 40
    assert sum(band.n for band in pool.bands) == 900


def test_the_order_of_the_nulls_does_not_matter():
    rng = np.random.default_rng(1)
    effects, sizes = rng.normal(size=300), rng.integers(1, 30, size=300)
    order = rng.permutation(300)
    seen, sizes_seen = rng.normal(size=50), rng.integers(1, 40, size=50)
    one, other = Pool(effects, sizes), Pool(effects[order], sizes[order])
    np.testing.assert_array_equal(one.p(seen, sizes_seen), other.p(seen, sizes_seen))


def test_a_size_falls_in_the_nearer_band():
    pool = Pool([0.0, 0.0, 10.0, 10.0], [4, 4, 10, 10], least=2)
    found = pool.p(np.full(6, 5.0), [1, 4, 6, 7, 10, 99])
    assert found.tolist() == [1 / 3, 1 / 3, 1 / 3, 1, 1, 1]


def test_a_pool_of_pairs():
    pool = Pool.of([(0.5, 3), (0.1, 3), (2.0, 9)], least=1)
    assert spans(pool) == [(3, 3, 2), (9, 9, 1)]
    assert pool.p(0.3, 3) == 2 / 3
    assert Pool.of([]).n == 0


def test_describe_tells_of_each_band():
    pool = Pool([*range(40), 0.5, 1.5], [*[3] * 40, 12, 12], least=40)
    assert pool.describe() == [{"low": 3, "high": 12, "n": 42, "q95": 38.0}]
    assert Pool([1.0, 2.0], [3, 3]).describe()[0]["q95"] is None
    # what exceeds it, and nothing less, has p < .05
    assert pool.p(38.0001, 5) < 0.05 < pool.p(38.0, 5)


# --- p and bounds ---------------------------------------------------------------------------------


def test_p_counts_what_is_at_least_as_large():
    pool = Pool([0.0, 1.0, 1.0, 2.0], [5, 5, 5, 5])
    found = pool.p([[-1.0, 1.0], [1.5, 3.0]], 5)
    np.testing.assert_allclose(found, [[5 / 5, 4 / 5], [2 / 5, 1 / 5]])


def test_p_of_nan_is_nan():
    found = Pool([0.0, 1.0], [5, 5]).p([np.nan, 2.0, np.inf], 5)
    np.testing.assert_allclose(found, [np.nan, 1 / 3, 1 / 3])
    assert np.isnan(Pool([], []).p(np.nan, 5))


def test_an_empty_pool_knows_nothing():
    pool = Pool([], [])
    assert pool.p([3.0, 9.0], [1, 100]).tolist() == [1, 1]
    low, high = pool.bounds([1, 100])
    assert low.tolist() == [-np.inf] * 2
    assert high.tolist() == [np.inf] * 2
    assert pool.describe() == []
    assert pool.n == 0


@pytest.mark.parametrize(
    ("n", "level", "ranks"),
    [
        (38, 0.95, None),
        (39, 0.95, (1, 39)),
        (40, 0.95, (1, 40)),
        (79, 0.95, (2, 78)),
        (19, 0.9, (1, 19)),
        (9, 0.8, (1, 9)),
        (8, 0.8, None),
    ],
)
def test_bounds_are_order_statistics(n, level, ranks):
    low, high = Pool(np.arange(1, n + 1), np.full(n, 5)).bounds([5, 6], level)
    expected = (-np.inf, np.inf) if ranks is None else ranks
    assert (low.tolist(), high.tolist()) == ([expected[0]] * 2, [expected[1]] * 2)


def test_null_effects_are_significant_as_often_as_they_should():
    """Small and large statements, whose null effects spread differently."""
    rng = np.random.default_rng(2)
    hits = tests = 0
    for _ in range(200):
        sizes = rng.choice([4, 5, 20, 21], size=200)
        effects = rng.standard_t(3, size=200) * np.sqrt(sizes)
        pool = Pool(effects[:160], sizes[:160])
        assert len(pool.bands) > 1
        hits += int((pool.p(effects[160:], sizes[160:]) < 0.05).sum())
        tests += 40
    rate = hits / tests
    noise = 3 * np.sqrt(0.05 * 0.95 / tests) * 2  # tests of one pool share its nulls
    assert 0.02 < rate < 0.05 + noise


def test_without_bands_the_large_statements_would_be_significant_too_often():
    rng = np.random.default_rng(3)
    sizes = np.repeat([4, 40], 400)
    effects = rng.normal(size=800) * sizes
    new = rng.normal(size=2000) * 40
    apart = (Pool(effects, sizes).p(new, 40) < 0.05).mean()
    together = (Pool(effects, sizes, least=800).p(new, 40) < 0.05).mean()
    assert apart < 0.07 < together


@pytest.mark.parametrize("n", [39, 60, 200])
def test_bounds_cover_a_true_effect(n):
    rng = np.random.default_rng(n)
    truth, covered = 3.0, []
    for _ in range(4000):
        nulls = rng.exponential(size=n + 1)  # lopsided: effects of off-topic text are
        low, high = Pool(nulls[1:], np.full(n, 5)).bounds(5)
        observed = truth + nulls[0]
        covered.append(observed - high <= truth <= observed - low)
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000) < np.mean(covered) < 0.985


def test_a_quantile_without_the_correction_would_not_cover():
    rng = np.random.default_rng(4)
    nulls = rng.normal(size=(4000, 40))
    low, high = np.quantile(nulls[:, 1:], [0.025, 0.975], axis=1)
    assert ((low <= nulls[:, 0]) & (nulls[:, 0] <= high)).mean() < 0.94


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(effects=[1.0, np.nan], sizes=[3, 4]), "1 of 2 null effects aren't finite"),
        (dict(effects=[1.0, np.inf], sizes=[3, 4]), "leave those swaps out"),
        (dict(effects=[1.0, 2.0], sizes=[3, 4, 5]), "one shape"),
        (dict(effects=1.0, sizes=[3, 4]), "expected a pair"),
        (dict(effects=[1.0], sizes=[np.nan]), "size isn't finite"),
        (dict(effects=["a"], sizes=[1]), "must be numbers"),
        (dict(effects=[1.0], sizes=[1], least=0), "least is 0"),
    ],
)
def test_what_cannot_be_pooled_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        Pool(**arguments)


@pytest.mark.parametrize("level", [0, 1, 95, "high", None])
def test_a_level_is_a_share(level):
    with pytest.raises(InputError, match="level is"):
        Pool([1.0], [1]).bounds(1, level)


# --- a passage's own swaps ------------------------------------------------------------------------


def test_p_of_own_swaps():
    nulls = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    np.testing.assert_allclose(p_own(np.array([1.0, 5.0]), nulls), [3 / 4, 1 / 4])
    np.testing.assert_allclose(p_own(1.5, nulls[0]), 2 / 4)
    assert p_own(np.array([1.0]), np.zeros((1, 0))).tolist() == [1]
    assert np.isnan(p_own(np.nan, nulls[0]))


def test_p_of_own_swaps_holds_its_level():
    rng = np.random.default_rng(5)
    p = p_own(rng.normal(size=20000), rng.normal(size=(20000, 19)))
    assert abs((p <= 0.05).mean() - 0.05) < 0.006


def test_own_swaps_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="one more axis"):
        p_own(np.zeros(3), np.zeros((2, 4)))
    with pytest.raises(InputError, match="2 null effects are NaN"):
        p_own(np.zeros(1), np.array([[np.nan, np.nan, 1.0]]))


# --- false discoveries ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_q_values_are_scipys(n):
    rng = np.random.default_rng(n)
    p = np.round(rng.uniform(size=n) ** 2, 2)  # with ties
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def test_nan_is_no_test():
    p = np.array([[0.01, np.nan], [0.04, 0.5]])
    q = benjamini_hochberg(p)
    assert q.shape == p.shape
    assert np.isnan(q[0, 1])
    np.testing.assert_allclose(q[~np.isnan(q)], stats.false_discovery_control([0.01, 0.04, 0.5]))
    assert np.isnan(benjamini_hochberg([np.nan])).all()
    assert len(benjamini_hochberg([])) == 0


def test_the_share_of_false_discoveries_is_kept():
    rng = np.random.default_rng(6)
    shares = []
    for _ in range(400):
        z = rng.normal(size=100) + 3 * (np.arange(100) < 30)
        found = benjamini_hochberg(stats.norm.sf(z)) <= 0.1
        assert found.any()
        shares.append(found[30:].sum() / found.sum())
    assert np.mean(shares) < 0.1


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_q_of_what_is_no_probability_is_refused(wrong):
    with pytest.raises(InputError, match="between 0 and 1"):
        benjamini_hochberg([0.5, wrong])


# --- rates ----------------------------------------------------------------------------------------


def correlated(rng: np.random.Generator, n: int, size: int) -> tuple[list[str], list[int]]:
    """Questions whose items are mostly alike."""
    kind = rng.uniform(size=n) < 0.3
    same = rng.uniform(size=(n, size)) < 0.9
    used = np.where(same, kind[:, None], rng.uniform(size=(n, size)) < 0.3)
    labels = ["used" if item else "unused" for item in used.ravel()]
    return labels, np.repeat(np.arange(n), size).tolist()


def test_rates_and_counts():
    rates = cluster_rates(list("aabac"), [1, 1, 2, 3, 3])
    assert [(r.label, r.count, r.total, r.rate) for r in rates] == [
        ("a", 3, 5, 0.6),
        ("b", 1, 5, 0.2),
        ("c", 1, 5, 0.2),
    ]
    assert all(0 <= r.low <= r.rate <= r.high <= 1 for r in rates)
    assert all(r.low < r.high for r in rates)


def test_items_that_go_together_widen_the_interval():
    labels, clusters = correlated(np.random.default_rng(7), 60, 8)
    width = {r.label: r.high - r.low for r in cluster_rates(labels, clusters)}
    naive = {r.label: r.high - r.low for r in cluster_rates(labels, range(len(labels)))}
    for label in ("used", "unused"):  # √(1 + 7·ρ) times as wide, ρ = .81
        assert 2.0 < width[label] / naive[label] < 3.2


def test_intervals_of_whole_questions_cover_and_naive_ones_do_not():
    rng = np.random.default_rng(8)
    covered: list[bool] = []
    naive: list[bool] = []
    for _ in range(200):
        labels, clusters = correlated(rng, 50, 6)
        for groups, into in ((clusters, covered), (range(len(labels)), naive)):
            used = {r.label: r for r in cluster_rates(labels, groups, draws=200)}["used"]
            into.append(used.low <= 0.3 <= used.high)
    assert np.mean(covered) > 0.89
    assert np.mean(naive) < 0.75


def test_the_interval_of_independent_items_is_the_binomials():
    labels = ["used"] * 60 + ["unused"] * 140
    (_, used) = cluster_rates(labels, range(200), draws=8000)
    spread = 1.96 * np.sqrt(0.3 * 0.7 / 200)
    np.testing.assert_allclose([used.low, used.high], [0.3 - spread, 0.3 + spread], atol=0.01)


def test_all_or_none_gets_the_exact_bound_with_questions_as_n():
    labels, clusters = ["used"] * 40, np.repeat(np.arange(10), 4).tolist()
    used, never = cluster_rates(labels, clusters, every=["unsupported"])
    exact = stats.binomtest(10, 10).proportion_ci(method="exact")
    assert used[:4] == ("used", 40, 40, 1.0)
    np.testing.assert_allclose([used.low, used.high], [exact.low, 1])
    assert never[:4] == ("unsupported", 0, 40, 0.0)
    np.testing.assert_allclose([never.low, never.high], [0, 1 - exact.low])


def test_one_question_has_no_interval():
    for rate in cluster_rates(list("aab"), ["q"] * 3, every=["never"]):
        assert np.isnan([rate.low, rate.high]).all()


def test_no_items_no_rates():
    assert cluster_rates([], []) == []
    (never,) = cluster_rates([], [], every=["used"])
    assert never[:3] == ("used", 0, 0)
    assert np.isnan(never[3:]).all()


def test_the_seed_and_not_the_order_decides():
    labels, clusters = correlated(np.random.default_rng(9), 20, 3)
    order = np.random.default_rng(10).permutation(60)
    first = cluster_rates(labels, clusters, seed=1)
    shuffled = cluster_rates([labels[i] for i in order], [clusters[i] for i in order], seed=1)
    assert first == shuffled
    assert first != cluster_rates(labels, clusters, seed=2)
    # a label more to tell of changes nothing for the others
    assert cluster_rates(labels, clusters, seed=1, every=["a"])[:2] == first


def test_many_questions_are_drawn_in_pieces(monkeypatch):
    labels, clusters = correlated(np.random.default_rng(11), 20, 3)
    whole = cluster_rates(labels, clusters)
    monkeypatch.setattr("mechattr.audit.statistics._CHUNK", 150)
    assert cluster_rates(labels, clusters) == whole
    assert isinstance(whole[0], Rate)


def test_rates_of_what_does_not_fit_are_refused():
    with pytest.raises(InputError, match="2 labels and 1 clusters"):
        cluster_rates(["a", "b"], [1])
    with pytest.raises(InputError, match="draws is 0"):
        cluster_rates(["a"], [1], draws=0)
