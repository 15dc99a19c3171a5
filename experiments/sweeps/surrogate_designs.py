"""Which design and fit of a linear surrogate needs the fewest evaluations?

    python -m experiments.sweeps.surrogate_designs [--games 10]

Toy questions of 12 to 20 players, as sentences are of a retrieved context: few of them matter, they
interact in pairs, and the value is a log probability that saturates. Each design and fit is given
so many evaluations, N and ∅ included (ContextCite uses neither, and is given that many masks
besides them), and judged by the rank correlation of its plane with 400 other random masks. Prints a
Markdown table a kind of game: mean over games, its standard error at 32 evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import Tensor, from_numpy

import mechattr as ma
from mechattr.methods import ContextCite, Surrogate

BUDGETS = (8, 16, 24, 32, 48, 64, 128, 256)

METHODS: dict[str, Surrogate] = {
    "ContextCite (i.i.d., Lasso 0.01 of the log odds)": ContextCite(),
    "i.i.d., least squares": Surrogate("bernoulli", fit="ols"),
    "i.i.d., ridge": Surrogate("bernoulli", fit="ridge"),
    "i.i.d., ARD": Surrogate("bernoulli"),
    "complements, least squares": Surrogate("antithetic", fit="ols"),
    "complements, Lasso 0.01": Surrogate("antithetic", fit="lasso", penalty=0.01),
    "complements, ARD": Surrogate("antithetic"),
    "half of the players, complements, ARD": Surrogate("balanced"),
    "Hadamard, least squares": Surrogate("hadamard", fit="ols"),
    "Hadamard, ridge": Surrogate("hadamard", fit="ridge"),
    "Hadamard, Lasso 0.01": Surrogate("hadamard", fit="lasso", penalty=0.01),
    "Hadamard, without complements, ARD": Surrogate("orthogonal"),
    "Hadamard, without N and ∅, ARD": Surrogate("hadamard", ends=False),
    "Hadamard, ARD (the default)": Surrogate(),
    "Hadamard, ARD of the log odds": Surrogate(transform="logit"),
}
FREE = "the default, leave-one-outs known"
FREE_BOTH = "the default, leave-one-outs and include-ones known"


def sparse(rng: np.random.Generator, n: int, far: bool) -> tuple[np.ndarray, np.ndarray]:
    """Two to four players that matter; interactions among them, or (far) of any two."""
    weights, pairs = rng.normal(size=n) * 0.15, np.zeros((n, n))
    active = rng.permutation(n)[: rng.integers(2, 5)]
    signs = np.where(rng.random(len(active)) < 0.8, 1, -0.5)
    weights[active] = rng.uniform(1.5, 5, len(active)) * signs
    for _ in range(rng.integers(1, 3)):
        i, j = rng.choice(n if far else active, 2, replace=False)
        pairs[i, j] += rng.uniform(1, 4) * rng.choice([-1, 1])
    for _ in range(n // 2):
        i, j = rng.choice(n, 2, replace=False)
        pairs[i, j] += rng.normal() * 0.15
    return weights, pairs


def dense(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Every player matters, a third of the pairs interact."""
    return rng.normal(size=n) + 0.4, rng.normal(size=(n, n)) * 0.4 * (rng.random((n, n)) < 0.3)


def question(rng: np.random.Generator, kind: str) -> ma.Game:
    """A log probability: of one token, or of several that saturate one after another."""
    n = int(rng.integers(12, 21))
    weights, pairs = dense(rng, n) if kind == "dense" else sparse(rng, n, kind == "far pairs")
    whole = weights.sum() + pairs.sum()
    shift = -rng.uniform(0.3, 0.7) * whole - rng.uniform(0, 3)
    n_tokens = int(rng.integers(2, 12)) if kind == "several tokens" else 1
    slopes = np.ones(1) if n_tokens == 1 else 2 * rng.dirichlet(np.full(n_tokens, 1.5))
    offsets = np.zeros(1) if n_tokens == 1 else 1.5 * rng.normal(size=n_tokens)

    def value(masks: Tensor) -> Tensor:
        m = masks.numpy()
        odds = m @ weights + np.einsum("mi,ij,mj->m", m, pairs, m) + shift
        return from_numpy(-np.logaddexp(0, -(odds[:, None] * slopes + offsets)).sum(1))

    return ma.FunctionGame(value, n)


def with_known(game: ma.Game, budget: int, both: bool, seed: int) -> np.ndarray:
    """The default, with singles that an audit has evaluated anyway as further rows."""
    from mechattr.methods import designs

    method, n = Surrogate(folds=0), game.n_players
    rng = np.random.default_rng(seed)
    design = designs.draw(method.design, rng, n, budget, method.keep, method.ends)
    singles = ~np.eye(n, dtype=bool)
    design = design.with_known(np.concatenate([singles, ~singles]) if both else singles)
    return method.of(design, game(from_numpy(design.masks)).numpy()).values


def scores(game: ma.Game, name: str, budget: int, seed: int) -> np.ndarray:
    if name in (FREE, FREE_BOTH):
        return with_known(game, budget, name == FREE_BOTH, seed)
    extra = 2 if name.startswith("ContextCite") else 0
    method = replace(METHODS[name], folds=0)
    return ma.attribute(game, method, budget=budget + extra, seed=seed, progress=False).values


def table(kind: str, n_games: int, report: Callable[[str], None] = print) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(n_games):
        game = question(np.random.default_rng(seed), kind)
        masks = np.random.default_rng(10_000 + seed).random((400, game.n_players)) < 0.5
        values = game(masks)[:, 0].numpy()
        for name in (*METHODS, FREE, FREE_BOTH):
            for budget in BUDGETS:
                if budget < METHODS.get(name, Surrogate()).least(game):
                    continue
                weights = scores(game, name, budget, seed)[0]
                found.setdefault((name, budget), []).append(correlation(masks @ weights, values))
    report(f"\n{kind}, {n_games} games of 12 to 20 players\n")
    report("| | " + " | ".join(map(str, BUDGETS)) + " | ± at 32 |")
    report("|---|" + "---:|" * (len(BUDGETS) + 1))
    for name in (*METHODS, FREE, FREE_BOTH):
        cells = [found.get((name, budget), []) for budget in BUDGETS]
        shown = [f"{np.mean(c):.3f}" if len(c) == n_games else "" for c in cells]
        at32 = found[name, 32]
        report(f"| {name} | {' | '.join(shown)} | {np.std(at32) / len(at32) ** 0.5:.3f} |")


def correlation(predicted: np.ndarray, values: np.ndarray) -> float:
    from mechattr.ranks import spearman

    found = spearman(predicted, values)
    return 0.0 if np.isnan(found) else found


KINDS = ("one token", "several tokens", "far pairs", "dense")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--games", type=int, default=10, help="questions of each kind")
    for kind in KINDS:
        table(kind, parser.parse_args().games)


if __name__ == "__main__":
    main()
