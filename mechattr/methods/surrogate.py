"""Linear surrogates: a plane through the values of random masks; a score is a player's slope.

On uniform masks the best plane's slopes are the Banzhaf values, ``E_S[v(S∪i) − v(S∖i)]``, whatever
the game; LIME, ContextCite, COAR and datamodels are designs and fits of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float

from mechattr.errors import InputError, UnknownNameError
from mechattr.game import Game
from mechattr.methods import designs, masks, regression
from mechattr.methods.base import ENDS, Estimate, Method, Run
from mechattr.methods.designs import Design
from mechattr.methods.regression import Line
from mechattr.ranks import spearman

FITS = ("ard", "ols", "ridge", "lasso")
TRANSFORMS = ("logit",)

MAX_ARD_ROWS = 4096
"""Rows of the largest fit with a sparse prior: some 60 factorisations of 128 MiB, minutes."""

ROUNDING = 1e-4
"""How far above 0 a log probability may be by rounding."""

RESOLUTION = 2.0**-24
"""Half a float32 step below p = 1: what 1 − p may be where it rounds to 0."""

Y = Float[np.ndarray, " row"]


@dataclass(frozen=True)
class Surrogate(Method):
    """``φ = argmin_w E_m[(v(m) − b − Σ_i w_i m_i)²]``, estimated from a few random masks.

    The default, made for few evaluations: a fold-over Hadamard design with N and ∅ in it, which
    are known anyway, and a fit with a variance of its own for each player, so that where few of
    them matter, few evaluations do (``regression.ard``). Where all subsets fit, it is exact.

    design: ``"hadamard"``, ``"orthogonal"``, ``"antithetic"``, ``"balanced"``, ``"bernoulli"``
        (i.i.d.); see ``mechattr.methods.designs``.
    samples: rows of the regression; None: 64, or 4(n + 1) if that is more, and enough that every
        player is absent (and present) 16 times. A budget takes its place.
    keep: chance of presence; other than ½ with design "bernoulli" only.
    ends: whether N and ∅ are two of the rows.
    fit: ``"ard"``, ``"ols"``, ``"ridge"`` or ``"lasso"``.
    penalty: of ridge (None: by leave-one-out) and of the Lasso (on standardised masks).
    width: σ of LIME's weights ``exp(−D²/σ²)``, D = 1 − √(share present), the cosine distance from
        N; None: all alike. For ols and ridge.
    transform: ``"logit"`` fits ``log p − log(1 − p)`` of values that are log probabilities, and
        gives scores in logits; None fits the values.
    folds: of the cross-validation that the held-out LDS is from; 0 for none.

    ``draw_stderr`` is the standard error over draws of units (a mask, or a mask and its
    complement), from their residuals (``regression.doubt``); "ard" has its own. Of a ridge it
    counts the bias of shrinking too. Of a Lasso, it and ``ci95`` are those of least squares on its
    support, and for a player outside, with it added; the Lasso's score may lie outside ``ci95``. 0
    where all subsets were evaluated, NaN where the masks say nothing of a player.
    ``ci95`` holds the Banzhaf value (measured, five kinds of games, 4 to 14 players, 16 to 128
    rows): of ols in 88 to 100 % of cases a kind, 96 % on the whole; of ridge in 94 to 98 %, of a
    Lasso in 94 %, of "ard" in 99 %. Of fold-over designs with hardly more pairs than players, as an
    audit's, in 92 to 100 %, by an assumption (``regression.ODD``). With ``keep`` far from ½ it is
    too narrow where joint absences are too rare to be seen: 69 to 88 % of COAR's at its own rows.
    Notes: ``lds`` [prompt] (rank correlation of held-out values with their prediction), ``ci95``
    [prompt, player, 2], ``intercept`` [prompt], ``rows``, ``penalty`` [prompt].
    Cost: ``samples`` evaluations, equal masks once. When not: where players interact in large
    groups (low ``lds``), no plane fits; use Shapley.
    """

    design: str = "hadamard"
    samples: int | None = None
    keep: float = 0.5
    ends: bool = True
    fit: str = "ard"
    penalty: float | None = None
    width: float | None = None
    transform: str | None = None
    folds: int = 5

    sampled: ClassVar[bool] = True
    formula: ClassVar[str] = "slope of v on random masks: Banzhaf values from few of them"

    def __post_init__(self) -> None:
        if self.design not in designs.DESIGNS:
            raise UnknownNameError("design", self.design, designs.DESIGNS)
        if self.fit not in FITS:
            raise UnknownNameError("fit", self.fit, FITS)
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise UnknownNameError("transform", self.transform, TRANSFORMS)
        for what, wrong in self._wrong().items():
            if wrong:
                raise InputError(f"{type(self).__name__}: {what}.")

    def _wrong(self) -> dict[str, bool]:
        penalised = self.fit in ("ridge", "lasso")
        return {
            f"got keep={self.keep}; expected a chance between 0 and 1": not 0 < self.keep < 1,
            f"keep={self.keep} goes with design='bernoulli', the others are for ½": (
                self.keep != 0.5 and self.design != "bernoulli"
            ),
            f"keep={self.keep} goes with fit='ols', 'ridge' or 'lasso'; 'ard' is for ½": (
                self.keep != 0.5 and self.fit == "ard"
            ),
            f"got samples={self.samples}; expected at least 4, or None": (
                self.samples is not None and self.samples < 4
            ),
            f"fit={self.fit!r} has no penalty; that goes with 'ridge' and 'lasso'": (
                self.penalty is not None and not penalised
            ),
            "fit='lasso' needs a penalty above 0, such as ContextCite's 0.01": (
                self.fit == "lasso" and not (self.penalty or 0) > 0
            ),
            f"got penalty={self.penalty}; expected at least 0": (self.penalty or 0) < 0,
            f"got width={self.width}; expected above 0": (
                self.width is not None and self.width <= 0
            ),
            f"width weights the rows of 'ols' and 'ridge', not of {self.fit!r}": (
                self.width is not None and self.fit in ("ard", "lasso")
            ),
            f"got folds={self.folds}; expected 0, or at least 2": self.folds in (1,)
            or self.folds < 0,
        }

    @property
    def amounts(self) -> bool:  # type: ignore[override]
        """Ridge and Lasso shrink what they find; the others give a player its whole share."""
        return self.fit in ("ols", "ard")

    @property
    def cost(self) -> str:
        rows = "max(64, 4(n + 1))" if self.samples is None else str(self.samples)
        return rows if self.ends else f"{rows} + 2"

    def least(self, game: Game) -> int:
        n = game.n_players
        return ENDS + (n + 1 if self.fit == "ols" else 2)

    def estimate(self, game: Game, run: Run) -> Estimate:
        rows = self._rows(game, run)
        design = designs.draw(self.design, run.rng, game.n_players, rows, self.keep, self.ends)
        values = evaluate(game, run, design.masks)
        return self.of(design, values, game.target_lengths, game.exists)

    def of(
        self,
        design: Design,
        values: Float[np.ndarray, "row prompt"],
        lengths: Float[np.ndarray, " prompt"] | None = None,
        exists: Bool[np.ndarray, "prompt player"] | None = None,
    ) -> Estimate:
        """The same fit to masks whose values are known already; evaluates nothing.

        design: the masks; ``Design(masks, np.arange(len(masks)))`` where each was drawn by itself,
            ``design.with_known(masks)`` to add what was evaluated for something else.
        values: [row, prompt] ``v`` of each. lengths: [prompt] tokens that each sums over.
        exists: [prompt, player] as ``Game.exists``.
        """
        n_prompts, n_players = values.shape[1], design.masks.shape[1]
        lengths = np.ones(n_prompts) if lengths is None else lengths
        exists = np.ones((n_prompts, n_players), bool) if exists is None else exists
        out = _Collected(n_prompts, n_players)
        for prompt in range(n_prompts):
            y = self._outcome(values[:, prompt]) / lengths[prompt]
            there = exists[prompt]
            seen = design.masks[:, there].astype(float)
            line = self._line(seen, y, design.complete)
            errors, interval = self._errors(seen, y, line, design)
            held_out = self._held_out(seen, y, design)
            out.add(prompt, there, line, errors, interval, held_out, lengths[prompt])
        return out.estimate({"rows": len(design.masks), "complete": design.complete})

    # --- pieces -----------------------------------------------------------------------------------

    def _rows(self, game: Game, run: Run) -> int:
        known = ENDS if self.ends else 0
        if run.budget_left is not None:
            rows = run.budget_left + known
        elif self.samples is not None:
            rows = self.samples
        else:
            seldom = int(np.ceil(16 / min(self.keep, 1 - self.keep)))
            rows = max(64, 4 * (game.n_players + 1), seldom)
        inferred = not designs.lists_all(self.design, game.n_players, rows)
        if self.fit == "ard" and inferred and rows > MAX_ARD_ROWS:
            raise InputError(
                f"A fit with a sparse prior takes at most {MAX_ARD_ROWS} rows; {game.n_players} "
                f"players and this budget make {rows}. Give fewer samples, take fit='ols' or "
                f"'lasso', or group the players."
            )
        return rows

    def _outcome(self, values: Y) -> Y:
        return log_odds(values) if self.transform == "logit" else values

    def _line(self, seen: regression.Masks, y: Y, complete: bool) -> Line:
        if self.fit == "ard":
            return regression.ols(seen, y) if complete else regression.ard(seen, y)
        if self.fit == "lasso":
            assert self.penalty is not None
            return regression.lasso(seen, y, self.penalty)
        weights = self._importance(seen)
        if self.fit == "ridge":
            return regression.ridge(seen, y, self.penalty, weights)
        return regression.ols(seen, y, weights)

    def _importance(self, seen: regression.Masks) -> Y | None:
        if self.width is None:
            return None
        distance = 1 - np.sqrt(seen.mean(1))
        return np.exp(-((distance / self.width) ** 2))

    def _errors(
        self, seen: regression.Masks, y: Y, line: Line, design: Design
    ) -> tuple[np.ndarray, np.ndarray]:
        """Standard error [player] and 95 % interval [player, 2] over masks."""
        if self.fit == "ard" or design.complete:
            errors = np.zeros(len(line.weights)) if line.stderr is None else line.stderr
            spread = 1.959964 * errors[:, None] * np.array([-1.0, 1.0])
            return errors, line.weights[:, None] + spread
        penalty = line.penalty if self.fit == "ridge" and line.penalty is not None else 0.0
        support = line.weights != 0 if self.fit == "lasso" else None
        importance = self._importance(seen)
        doubt = regression.doubt(seen, y, design.units, penalty, importance, support)
        return doubt.stderr, doubt.interval()

    def _held_out(self, seen: regression.Masks, y: Y, design: Design) -> float:
        """Rank correlation of rows with the prediction of a fit that didn't see them."""
        drawn = np.arange(len(y)) >= design.given
        if not self.folds or drawn.sum() < 2 * self.folds:
            return float("nan")
        fold = np.where(drawn, design.units % self.folds, -1)
        predicted = np.full(len(y), np.nan)
        for left_out in range(self.folds):
            out = fold == left_out
            predicted[out] = self._line(seen[~out], y[~out], False)(seen[out])
        return spearman(predicted[drawn], y[drawn])


class _Collected:
    """The prompts' results, on the game's own axis."""

    def __init__(self, n_prompts: int, n_players: int):
        self.values = np.full((n_prompts, n_players), np.nan)
        self.stderr = self.values.copy()
        self.ci95 = np.full((n_prompts, n_players, 2), np.nan)
        self.notes: dict[str, list[float]] = {"lds": [], "intercept": []}

    def add(
        self,
        prompt: int,
        there: Bool[np.ndarray, " player"],
        line: Line,
        errors: np.ndarray,
        interval: np.ndarray,
        held_out: float,
        length: float,
    ) -> None:
        self.values[prompt, there] = line.weights * length
        self.stderr[prompt, there] = errors * length
        self.ci95[prompt, there] = interval * length
        self.notes["lds"].append(held_out)
        self.notes["intercept"].append(line.intercept * length)
        if line.penalty is not None:
            self.notes.setdefault("penalty", []).append(line.penalty)

    def estimate(self, more: dict[str, Any]) -> Estimate:
        kept = {**self.notes, "ci95": self.ci95.tolist()}
        return Estimate(self.values, self.stderr, {**more, **_without_nan(kept)})


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def log_odds(log_probs: Y) -> Y:
    """``log p − log(1 − p)`` of log probabilities, [row] of one prompt.

    ``expm1`` keeps the digits of 1 − p. Where p rounds to 1, 1 − p is taken as the smallest that
    is seen above 0, and as float32's resolution at most.
    """
    if log_probs.max() > ROUNDING:
        raise InputError(
            f"The log odds are of log probabilities, which are at most 0; v reaches "
            f"{log_probs.max():.4g}. Give the game a log-prob target, or use transform=None."
        )
    below = log_probs[log_probs < 0]
    nearest = -max(float(below.max(initial=-RESOLUTION)), -RESOLUTION)
    safe = np.minimum(log_probs, -nearest)
    return safe - np.log(-np.expm1(safe))


def evaluate(
    game: Game, run: Run, rows: Bool[np.ndarray, "row player"]
) -> Float[np.ndarray, "row prompt"]:
    """``v`` of each row; equal rows once, N and ∅ not again."""
    different, place = np.unique(rows, axis=0, return_inverse=True)
    full, empty = different.all(1), ~different.any(1)
    values = np.empty((len(different), game.n_prompts))
    values[full], values[empty] = run.full.numpy(), run.empty.numpy()
    asked = np.flatnonzero(~full & ~empty)
    run.progress(0, len(asked))
    for part in masks.chunks(len(asked), game.n_players):
        some = asked[part.start : part.stop]
        values[some] = game(torch.from_numpy(different[some])).numpy()
        run.progress(part.stop, len(asked))
    return values[place.reshape(-1)]


@dataclass(frozen=True)
class ContextCite(Surrogate):
    """ContextCite: a Lasso of the log odds of the whole response, over 64 i.i.d. masks.

    ``y = log p − log(1 − p)`` with log p the target summed over its T tokens; masks standardised;
    Lasso(0.01) on y/T; weights scaled back to y. Scores are in logits.
    The game's values must be log probabilities. Cohen-Wang et al., 2024.
    """

    design: str = "bernoulli"
    samples: int | None = 64
    ends: bool = False
    fit: str = "lasso"
    penalty: float | None = 0.01
    transform: str | None = "logit"

    formula: ClassVar[str] = "Lasso of the response's log odds on 64 random masks"

    @property
    def name(self) -> str:
        return "contextcite"


@dataclass(frozen=True)
class Lime(Surrogate):
    """LIME: ridge regression on random masks, near ones counting more.

    Weights ``exp(−D²/σ²)``, D the cosine distance of the mask from N; penalty 1. LIME's own code
    has the root of that with σ = 0.25, which is σ = 0.25·√2 here.
    Its slopes are near N, between leave-one-out and the Banzhaf values. Ribeiro et al., 2016.
    """

    design: str = "bernoulli"
    fit: str = "ridge"
    penalty: float | None = 1.0
    width: float | None = 0.25 * 2**0.5

    formula: ClassVar[str] = "slope of v on random masks, weighted by exp(−D²/σ²)"


@dataclass(frozen=True)
class Coar(Surrogate):
    """COAR: least squares on masks that keep 95 % of the players; for model components.

    With few players removed at a time a score is near leave-one-out, and exact for a game without
    interactions. Shah et al., 2024 (there: a zero source).
    """

    design: str = "bernoulli"
    keep: float = 0.95
    ends: bool = False
    fit: str = "ols"

    formula: ClassVar[str] = "slope of v on masks that keep 95 % of the players"
