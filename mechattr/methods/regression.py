"""Linear fits of values on masks: least squares, ridge, Lasso and a sparse prior. No game.

All fit ``y ≈ b + Σ_i w_i m_i`` with m in {0, 1}: a weight is what a player's presence adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

PENALTIES = np.logspace(-4, 4, 33)
"""Ridge penalties that leave-one-out chooses from, relative to the masks' mean squared spread."""

ADDITIVE = 1e-10
"""A residual, relative to the values' spread, that says that the players only add up."""

# Of the sparse prior, in units of the values' spread and with players coded ±1: half of the
# players have a variance below e^−4, the largest few of about 1.
PRIOR_LOG, PRIOR_SPREAD = -4.0, 1.5
PAIR_LOG, NOISE_LOG, VAGUE = -1.0, -3.0, 3.0
INTERCEPT = 10.0
BOUNDS = {"player": (-12.0, 4.0), "pair": (-6.0, 3.0), "noise": (-8.0, 2.0)}
STEPS = 60

FEWEST, LEAST = 4.0, 0.5
"""Degrees of freedom that an error should have, and below which nothing is known."""

ODD = 1 / 3
"""Variance of the interactions of three, five, ... players, to that of those of two, four, ..., in
what is the case where three players all are there, or any is. Of two it is 0, of four 4/7."""

Masks = Float[np.ndarray, "row player"]
Row = Float[np.ndarray, " row"]
Player = Float[np.ndarray, " player"]


@dataclass(frozen=True)
class Line:
    """weights [player] and intercept. stderr: where the fit itself knows it. penalty: the one
    used, where there is one."""

    weights: Player
    intercept: float
    stderr: Player | None = None
    penalty: float | None = None

    def __call__(self, masks: Masks) -> Row:
        return self.intercept + masks @ self.weights


@dataclass(frozen=True)
class Doubt:
    """weights that an interval is about, their standard error and its degrees of freedom,
    [player]; NaN where the rows don't tell."""

    weights: Player
    stderr: Player
    freedom: Player

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "player 2"]:
        """By Student's t."""
        from scipy.special import stdtrit

        half = stdtrit(self.freedom, (1 + level) / 2) * self.stderr
        return np.stack([self.weights - half, self.weights + half], axis=1)


def ols(masks: Masks, y: Row, importance: Row | None = None) -> Line:
    """Least squares; where the masks don't determine the weights, the smallest that fit."""
    centred, target, mean, level = _centred(masks, y, importance)
    weights = np.linalg.lstsq(centred, target, rcond=None)[0]
    return Line(weights, float(level - mean @ weights))


def ridge(masks: Masks, y: Row, penalty: float | None, importance: Row | None = None) -> Line:
    """``Σ_k a_k (y_k − b − w·m_k)² + penalty·‖w‖²``, the intercept free.

    penalty: None chooses the one with the least squared error on rows left out, one at a time.
    """
    centred, target, mean, level = _centred(masks, y, importance)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    along = u.T @ target
    if penalty is None:
        share = np.full(len(y), 1 / len(y)) if importance is None else importance / importance.sum()
        penalty = _least_left_out(u, s, target, share)
    found = s > np.finfo(float).eps * max(masks.shape) * s.max(initial=0.0)
    shrunk = np.where(found, s / np.where(found, s**2 + penalty, 1), 0)
    weights = vt.T @ (shrunk * along)
    return Line(weights, float(level - mean @ weights), penalty=float(penalty))


def lasso(masks: Masks, y: Row, penalty: float) -> Line:
    """``‖y − b − w·z‖²/(2·rows) + penalty·‖w‖₁`` on standardised masks z, weights scaled back."""
    from sklearn.linear_model import Lasso

    mean, spread = masks.mean(0), masks.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    # Run to the optimum: at scikit-learn's own tolerance the fourth digit is left to chance.
    model = Lasso(alpha=penalty, max_iter=100_000, tol=1e-10)
    model.fit((masks - mean) / spread, y)
    weights = model.coef_ / spread
    return Line(weights, float(model.intercept_ - mean @ weights), penalty=penalty)


def ard(masks: Masks, y: Row) -> Line:
    """The plane of a Bayesian model with a variance ``a_i`` for each player, found from the data
    (automatic relevance determination; MacKay, 1992; Tipping, 2001).

    With x = 2m − 1: ``y = b + Σ β_i x_i + Σ_{i<j} γ_ij x_i x_j + noise``, ``β_i ~ N(0, a_i)``,
    ``γ_ij ~ N(0, p·a_i·a_j)``: players that matter may interact, the others hardly. The variances
    maximise the marginal likelihood times log-normal priors on them; the scores are the posterior
    means of 2β. ``stderr² ``: their posterior variance, plus what the residuals of rows left out
    would move them (the variance of a wild bootstrap), since the model is wrong.
    Where the values are additive to rounding and the masks tell all players apart, that plane.
    A player whose column is constant is left out: weight 0, stderr NaN.
    Cost: some 60 factorisations of [row, row].
    """
    told = np.ptp(masks, axis=0) > 0
    weights, stderr = np.zeros(len(told)), np.full(len(told), np.nan)
    if not told.any():
        return Line(weights, float(y.mean()), stderr)
    line = _ard(masks[:, told], y)
    weights[told], stderr[told] = line.weights, line.stderr
    return Line(weights, line.intercept, stderr)


def _ard(masks: Masks, y: Row) -> Line:
    spread = y.std()
    if spread == 0:
        return Line(np.zeros(masks.shape[1]), float(y.mean()), np.zeros(masks.shape[1]))
    plane = ols(masks, y)
    spare = len(y) > masks.shape[1] + 1
    if spare and np.abs(plane(masks) - y).max() <= ADDITIVE * spread and _determined(masks):
        return Line(plane.weights, plane.intercept, np.zeros(masks.shape[1]))
    signs, scaled = 2 * masks - 1, (y - y.mean()) / spread
    variances, pairs, noise = _relevances(signs, scaled)
    inverse = np.linalg.inv(_kernel(signs, variances, pairs) + noise * np.eye(len(y)))
    lift = 2 * variances[:, None] * (signs.T @ inverse)  # [player, row]: weights of each row
    weights = lift @ scaled
    doubt = 4 * variances - 2 * variances * np.einsum("ir,ri->i", lift, signs)
    left_out = (inverse @ scaled) / np.diag(inverse)
    stderr = np.sqrt(np.maximum(doubt, 0) + (lift**2) @ left_out**2)
    level = INTERCEPT * (inverse @ scaled).sum() - weights.sum() / 2
    return Line(weights * spread, float(y.mean() + level * spread), stderr * spread)


def doubt(
    masks: Masks,
    y: Row,
    units: Int[np.ndarray, " row"],
    penalty: float = 0.0,
    importance: Row | None = None,
    support: Bool[np.ndarray, " player"] | None = None,
) -> Doubt:
    """Errors of least squares (or ridge) over draws of units, from their residuals.

    With weights ``ŵ_i = Σ_r l_ir y_r``, residuals e and the matrix M, ``e = M y``:

        ``stderr_i² = Σ_g (Σ_{r in g} l_ir e_r)²·|l_ig|² / (l_igᵀ (M Mᵀ)_gg l_ig) + bias²``

    the sandwich of clusters g (Liang & Zeger, 1986), each corrected for how far the fit bends to
    it, so that even noise gives it without bias at any number of units (as CR2 of Bell & McCaffrey,
    2002, but in the one direction that counts). Degrees of freedom: the share of those corrections
    times Kish's number of units; u − p for u complementary pairs of an orthogonal array and p
    players, about u − p − 1 for u single rows.

    Where units of several rows leave fewer than ``FEWEST`` degrees of freedom, what lacks is filled
    from the rows, each taken for a unit; where all units are complementary pairs, their variance
    times ``ODD``. That is an assumption: what blurs the scores of such pairs are the odd
    interactions (of three, five, ... players), what their rows have besides is the even ones.

    bias: of a ridge, ``‖penalty·(XᵀX + penalty)⁻¹‖_i`` times the players' root mean square, as
        its weights and their shrinking tell it. Without a penalty, NaN where the masks don't tell a
        player from others.
    units: [row] which rows were drawn together. importance: [row] weights of the squared errors.
    support: fit these players only; each of the others is added alone, which is what says how
        certain it is that a Lasso left it out.
    Cost: a singular value decomposition of [row, player].
    """
    order = np.argsort(units, kind="stable")
    masks, y, units = masks[order], y[order], units[order]
    importance = None if importance is None else importance[order]
    fit = _fitted(masks, y, penalty, importance, support)
    stderr, freedom = _spread(fit, units)
    if freedom.min(initial=FEWEST) < FEWEST:
        single, most = _spread(fit, np.arange(len(y)))
        lacking = np.maximum(np.minimum(FEWEST, most) - freedom, 0)
        both = freedom + lacking
        part = ODD if _folded(masks, units) else 1.0
        mixed = (freedom * stderr**2 + lacking * part * single**2) / np.where(both > 0, both, 1)
        stderr, freedom = np.sqrt(mixed), both
    unknown = (np.ptp(masks, axis=0) == 0) | (freedom < LEAST)
    stderr = np.where(unknown, np.nan, np.sqrt(stderr**2 + fit.bias**2))
    return Doubt(fit.weights, stderr, np.where(unknown, np.nan, freedom))


def _folded(masks: Masks, units: Int[np.ndarray, " row"]) -> bool:
    """Whether each unit is a mask and its complement; the rows of a unit are neighbours."""
    pairs = len(units) % 2 == 0 and (np.unique(units, return_counts=True)[1] == 2).all()
    return bool(pairs and (masks[::2] + masks[1::2] == 1).all())


@dataclass(frozen=True)
class _Fitted:
    """weights, and lift [player, row] which gives them from the target; left: [row] residuals;
    basis: [row, k], M Mᵀ = I − basis basisᵀ; added: [player] those fitted besides, each alone."""

    weights: Player
    lift: Float[np.ndarray, "player row"]
    left: Row
    basis: Float[np.ndarray, "row k"]
    bias: Player
    added: Bool[np.ndarray, " player"]


def _fitted(
    masks: Masks,
    y: Row,
    penalty: float,
    importance: Row | None,
    support: Bool[np.ndarray, " player"] | None,
) -> _Fitted:
    centred, target, _, _ = _centred(masks, y, importance)
    inside = np.ones(masks.shape[1], bool) if support is None else support
    u, s, vt = np.linalg.svd(centred[:, inside], full_matrices=False)
    found = s > np.finfo(float).eps * max(masks.shape) * s.max(initial=0.0)
    u, s, vt = u[:, found], s[found], vt[found]
    kept = s**2 / (s**2 + penalty)
    lift = np.zeros(masks.T.shape)
    lift[inside] = (vt.T * (kept / s)) @ u.T
    left = target - u @ (kept * (u.T @ target))
    if not inside.all():
        rest = centred[:, ~inside]
        rest = rest - u @ (u.T @ rest)
        sizes = (rest**2).sum(0)
        lift[~inside] = (rest / np.where(sizes > 1e-12 * len(y), sizes, np.inf)).T
    weights = lift @ target
    mean = np.ones(len(y)) if importance is None else np.sqrt(importance)
    basis = np.c_[mean / np.linalg.norm(mean), u * np.sqrt(kept * (2 - kept))]
    lost, bias = 1 - (vt**2).T @ (1 - (1 - kept) ** 2), np.zeros(len(weights))
    typical = (weights[inside] ** 2).sum() / max((kept**2).sum(), 1e-300) if penalty else np.nan
    bias[inside] = np.where(lost > 1e-9, np.sqrt(np.maximum(lost, 0) * typical), 0)
    return _Fitted(weights, lift, left, basis, bias, ~inside)


def _spread(fit: _Fitted, units: Int[np.ndarray, " row"]) -> tuple[Player, Player]:
    """Standard error and degrees of freedom [player]; the rows of a unit are neighbours."""
    starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]])
    lift = fit.lift

    def by_unit(rows: Float[np.ndarray, "player row"]) -> Float[np.ndarray, "player unit"]:
        return np.add.reduceat(rows, starts, axis=1)

    size, score = by_unit(lift**2), by_unit(lift * fit.left)
    bent = lift**2 * (fit.basis**2).sum(1)
    for apart in range(1, int(np.diff(np.r_[starts, len(units)]).max())):
        both = np.flatnonzero(units[apart:] == units[:-apart])
        shared = (fit.basis[both] * fit.basis[both + apart]).sum(1)
        bent[:, both] += 2 * lift[:, both] * lift[:, both + apart] * shared
    bend, total = by_unit(bent), size.sum(1, keepdims=True)
    share = size / np.where(total > 0, total, 1)
    # a player added alone takes its own part of the residuals, and its own freedom
    score -= np.where(fit.added, fit.weights, 0)[:, None] * share
    bend += np.where(fit.added[:, None], size * share, 0)
    free = np.where(size > 0, 1 - bend / np.where(size > 0, size, 1), 0)
    known = free > 1e-9  # the fit goes through the others: they count as those that are known
    reach = np.where(known, share, 0).sum(1)
    variance = np.where(known, score**2 / np.where(known, free, 1), 0).sum(1)
    variance /= np.where(reach > 0, reach, 1)
    kish = (share**2).sum(1)
    freedom = (share * np.where(known, free, 0)).sum(1) / np.where(kish > 0, kish, 1)
    return np.sqrt(variance), freedom


def _centred(masks: Masks, y: Row, importance: Row | None) -> tuple[Masks, Row, Player, np.float64]:
    """Masks and values less their means, rows scaled by the roots of their weights."""
    if importance is None:
        mean, level = masks.mean(0), y.mean()
        return masks - mean, y - level, mean, level
    share = importance / importance.sum()
    mean, level = share @ masks, share @ y
    root = np.sqrt(importance)
    return (masks - mean) * root[:, None], (y - level) * root, mean, level


def _least_left_out(u: np.ndarray, s: np.ndarray, target: Row, share: Row) -> float:
    if not len(s) or s.max() == 0:
        return 1.0
    along, scale = u.T @ target, float((s**2).mean())
    errors = []
    for penalty in PENALTIES * scale:
        kept = s**2 / (s**2 + penalty)
        fitted, leverage = u @ (kept * along), (u**2) @ kept + share
        errors.append((((target - fitted) / np.maximum(1 - leverage, 1e-9)) ** 2).mean())
    return float(PENALTIES[int(np.argmin(errors))] * scale)


def _determined(masks: Masks) -> bool:
    return int(np.linalg.matrix_rank(masks - masks.mean(0))) == masks.shape[1]


# --- the sparse prior ---------------------------------------------------------------------------


def _kernel(signs: Masks, variances: Player, pairs: float) -> Float[np.ndarray, "row row"]:
    """Covariance of the rows' values, without noise."""
    single = (signs * variances) @ signs.T
    return INTERCEPT + single + pairs * (single**2 - (variances**2).sum()) / 2


def _relevances(signs: Masks, y: Row) -> tuple[Player, float, float]:
    """The variances of players, of pairs (relative) and of noise, at the posterior's mode."""
    from scipy.optimize import minimize

    n = signs.shape[1]
    start = np.r_[np.full(n, -np.log(n)), PAIR_LOG, NOISE_LOG + 1]
    bounds = [BOUNDS["player"]] * n + [BOUNDS["pair"], BOUNDS["noise"]]
    start = np.clip(start, *np.array(bounds).T)
    done = minimize(
        _objective,
        start,
        (signs, y),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": STEPS},
    )
    found = np.exp(done.x)
    return found[:n], float(found[n]), float(found[n + 1])


def _objective(logs: np.ndarray, signs: Masks, y: Row) -> tuple[float, np.ndarray]:
    """Minus the log of marginal likelihood × prior, up to a constant, and its gradient."""
    n = signs.shape[1]
    variances, pairs, noise = np.exp(logs[:n]), np.exp(logs[n]), np.exp(logs[n + 1])
    single = (signs * variances) @ signs.T
    kernel = _kernel(signs, variances, pairs) + noise * np.eye(len(y))
    inverse = np.linalg.inv(kernel)
    solved = inverse @ y
    centre = np.r_[np.full(n, PRIOR_LOG), PAIR_LOG, NOISE_LOG]
    spread = np.r_[np.full(n, PRIOR_SPREAD), VAGUE, VAGUE]
    away = (logs - centre) / spread
    value = 0.5 * (y @ solved + np.linalg.slogdet(kernel)[1] + away @ away)
    slope = 0.5 * (inverse - np.outer(solved, solved))  # by the kernel's entries
    total = slope.sum()
    by_single = slope * (1 + pairs * single)
    by_player = (signs * (by_single @ signs)).sum(0) - pairs * variances * total
    by_pairs = 0.5 * ((slope * single**2).sum() - (variances**2).sum() * total)
    gradient = np.r_[by_player * variances, by_pairs * pairs, np.trace(slope) * noise]
    return float(value), gradient + away / spread
