"""How many evaluations does a design need to predict what a subset of the sentences is worth?

    python -m experiments.rag_audit.lds --out lds [--most 256]

Questions of 12 to 14 sentences (``lds_questions``), SmolLM2-135M-Instruct, the answer given. Each
design and fit has so many evaluations of v, and is judged by the held-out LDS: the rank correlation
of its plane with v over 128 other masks (64 for the largest fits), each sentence present with
chance ½. Of log p and of the log odds that ContextCite fits it is the same, since ranks don't
change. A question's folds, each with masks of its own for fits and judges, are averaged; intervals
are over questions.

Values are kept in DIR/values and not measured again: kill it and start it again as you like, give
it ``--most 256`` later for the curve's end, or measure parts at once (``--part 1/2``, ``--part
2/2``) and then run it without.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.rag_audit.lds_figure import drawn
from experiments.rag_audit.lds_measuring import (
    BLOCK,
    BUDGETS,
    DRAWS,
    JUDGES,
    Plan,
    Values,
    game_of,
    load,
    measure,
)
from experiments.rag_audit.lds_questions import SENTENCES, Question, questions
from mechattr.methods import ContextCite, Surrogate
from mechattr.methods.designs import Design
from mechattr.ranks import spearman

CONTEXTCITE = "ContextCite (i.i.d., Lasso 0.01 of the log odds)"
DEFAULT = "Hadamard, ARD (the default)"
LEAVE_ONE_OUTS = "leave-one-outs, the rest Hadamard, ARD"
BOTH = "leave-one-outs, include-ones, the rest Hadamard, ARD"


@dataclass(frozen=True)
class Case:
    """A question's values, and the fold that is fitted."""

    plan: Plan
    values: Values
    fold: int

    def judges(self, budget: int) -> np.ndarray:
        """[128 or 64, player] masks that no fit of this fold with that budget sees."""
        left = self.plan.blocks - max(1, budget // BLOCK)
        return np.concatenate([self._block(1 + k) for k in range(min(JUDGES, left))])

    def random(self, budget: int) -> Design:
        """I.i.d. masks of the blocks that don't judge."""
        blocks = [self._block(-k) for k in range(max(1, budget // BLOCK))]
        return Design(np.concatenate(blocks)[:budget], np.arange(budget))

    def hadamard(self, budget: int) -> Design:
        return self.plan.hadamard(budget, self.fold % DRAWS.get(budget, 1))

    def with_leave_one_outs(self, budget: int) -> Design | None:
        """N, ∅ and the leave-one-outs among the evaluations; the rest from a Hadamard design."""
        return self._beside(self.plan.leave_one_out(), budget)

    def with_both_singles(self, budget: int) -> Design | None:
        """N, ∅, leave-one-outs and include-ones; the rest from a Hadamard design."""
        singles = self.plan.leave_one_out()
        return self._beside(np.concatenate([singles, ~singles]), budget)

    def _beside(self, singles: np.ndarray, budget: int) -> Design | None:
        left, whole = budget - len(singles), self.hadamard(budget)
        if left < 2:
            return None
        return Design(whole.masks[:left], whole.units[:left], whole.given).with_known(singles)

    def _block(self, k: int) -> np.ndarray:
        start = (self.fold + k) % self.plan.blocks * BLOCK
        return self.plan.random()[start : start + BLOCK]


Designed = Callable[[Case, int], Design | None]

METHODS: dict[str, tuple[Surrogate, Designed]] = {
    CONTEXTCITE: (ContextCite(), Case.random),
    "i.i.d., least squares": (Surrogate(fit="ols"), Case.random),
    "i.i.d., ARD": (Surrogate(), Case.random),
    "Hadamard, least squares": (Surrogate(fit="ols"), Case.hadamard),
    "Hadamard, Lasso 0.01 of the log odds": (ContextCite(), Case.hadamard),
    DEFAULT: (Surrogate(), Case.hadamard),
    "Hadamard, ARD of the log odds": (Surrogate(transform="logit"), Case.hadamard),
    LEAVE_ONE_OUTS: (Surrogate(), Case.with_leave_one_outs),
    BOTH: (Surrogate(), Case.with_both_singles),
}
"""A fit, and the masks that it has. ContextCite's have neither N nor ∅: it doesn't use them."""

DRAWN = (CONTEXTCITE, "i.i.d., ARD", DEFAULT, BOTH)
TARGETS = {"answer": "the whole answer", "statement": "each statement by itself"}


def lds_of(values: Values, plan: Plan) -> pd.DataFrame:
    """[method, budget, target] the LDS of one question, a mean over folds.

    target: "answer", or "statement": the mean over its statements, each with a fit of its own.
    """
    cases = [Case(plan, values, fold) for fold in range(plan.blocks)]
    rows = [
        {"method": name, "budget": budget, "target": target, "lds": found}
        for name, (method, designed) in METHODS.items()
        for budget in plan.budgets
        for target, found in _scores(replace(method, folds=0), designed, budget, cases)
    ]
    frame = pd.DataFrame(rows)
    return frame.groupby(["method", "budget", "target"], sort=False)["lds"].mean().reset_index()


def _scores(
    method: Surrogate, designed: Designed, budget: int, cases: Sequence[Case]
) -> Iterator[tuple[str, float]]:
    """Of each fold the LDS for the answer and for its statements. One fit a different design."""
    fitted: dict[bytes, np.ndarray] = {}
    for case in cases:
        design = designed(case, budget)
        if design is None:
            continue
        key = design.masks.tobytes()
        if key not in fitted:
            columns, lengths = _targets(case.values, design.masks)
            fitted[key] = method.of(design, columns, lengths).values
        judges = case.judges(budget)
        truth, _ = _targets(case.values, judges)
        every = [_correlation(judges @ w, v) for w, v in zip(fitted[key], truth.T, strict=True)]
        yield "answer", every[0]
        yield "statement", float(np.mean(every[1:]))


def _targets(values: Values, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[mask, target] v of the answer, then of its statements; [target] their tokens."""
    v = values(masks)
    lengths = values.lengths
    return np.column_stack([v.sum(1), v]), np.r_[lengths.sum(), lengths].astype(float)


def _correlation(predicted: np.ndarray, values: np.ndarray) -> float:
    found = spearman(predicted, values)
    return 0.0 if np.isnan(found) else found  # nobody has a weight: it predicts nothing


# --- over questions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences over questions, its 95 % intervals: Student's, and of a bootstrap
    over questions."""

    mean: float
    student: tuple[float, float]
    bootstrap: tuple[float, float]
    at_least: float
    n: int

    def __str__(self) -> str:
        (a, b), (c, d) = self.student, self.bootstrap
        return (
            f"{self.mean:+.4f}, 95 % {a:+.4f} to {b:+.4f} (bootstrap {c:+.4f} to {d:+.4f}), "
            f"at least as high on {self.at_least:.0%} of {self.n} questions"
        )


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> Difference:
    from scipy.stats import t

    d = ours - theirs
    n, half = len(d), t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / len(d) ** 0.5
    draws = np.random.default_rng(seed).integers(n, size=(10_000, n))
    low, high = np.quantile(d[draws].mean(1), [0.025, 0.975])
    mean = float(d.mean())
    student = (mean - half, mean + half)
    return Difference(mean, student, (low, high), float((d >= 0).mean()), n)


def compared(
    found: pd.DataFrame, ours: tuple[str, int], theirs: tuple[str, int], target: str
) -> Difference:
    one, other = (
        found[(found.method == name) & (found.budget == budget) & (found.target == target)]
        .set_index("question")["lds"]
        for name, budget in (ours, theirs)
    )  # fmt: skip
    both = one.index.intersection(other.index)
    return difference(one[both].to_numpy(), other[both].to_numpy())


def curve(found: pd.DataFrame, name: str, target: str) -> pd.DataFrame:
    """[budget] mean, low, high (95 %, Student's, over questions); without budgets that are too
    small for one of the questions."""
    from scipy.stats import t

    kept, n = found[(found.target == target) & (found.method == name)], found["question"].nunique()
    cells = kept.groupby("budget")["lds"].agg(["mean", "std", "count"])
    cells = cells[cells["count"] == n]
    half = cells["std"] * t.ppf(0.975, max(n - 1, 1)) / n**0.5
    return pd.DataFrame(
        {"mean": cells["mean"], "low": cells["mean"] - half, "high": cells["mean"] + half}
    )


def markdown(found: pd.DataFrame) -> str:
    n = found["question"].nunique()
    parts = []
    for target, what in TARGETS.items():
        parts += [f"Mean held-out LDS of {what}, {n} questions, by evaluations\n"]
        parts += [*_table(found, target), ""]
    for target, what in TARGETS.items():
        parts.append(f"Paired over questions, {what}, against ContextCite's 64 evaluations:\n")
        for name in METHODS:
            if name != CONTEXTCITE:
                line = compared(found, (name, 32), (CONTEXTCITE, 64), target)
                parts += [f"- {name}, 32: {line}"] if line.n == n else []
        parts.append("")
    return "\n".join(parts)


def _table(found: pd.DataFrame, target: str) -> list[str]:
    budgets = sorted(int(b) for b in set(found.budget))
    lines = ["| | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---:|" * len(budgets)]
    for name in METHODS:
        means = curve(found, name, target)["mean"]
        cells = (f"{means[budget]:.3f}" if budget in means.index else "" for budget in budgets)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def figure(found: pd.DataFrame) -> str:
    """The curves as SVG."""
    curves = {name: curve(found, name, "answer") for name in DRAWN}
    n = found["question"].nunique()
    title = f"How well a plane predicts other subsets of sentences: mean of {n} questions"
    return drawn(curves, title, (CONTEXTCITE, 64))


# --- the run --------------------------------------------------------------------------------------


def run(
    model: Any,
    out: Path,
    asked: Sequence[Question],
    *,
    most: int = 128,
    part: tuple[int, int] = (1, 1),
    report: Callable[[str], None] = print,
) -> pd.DataFrame | None:
    """Measure (a part of) the questions; with all of them, fit, and write table and figure."""
    folder, frames = out / "values", []
    for number, question in enumerate(asked):
        if number % part[1] != part[0] - 1:
            continue
        plan, game = Plan(question.n_sentences, number, most), game_of(model, question)
        before = len(load(folder, game, question).masks)
        values = measure(folder, game, question, plan)
        report(f"{question.name}: {len(values.masks)} masks, {before} of them known before")
        if part[1] == 1:
            frames.append(lds_of(values, plan).assign(question=question.name, n=plan.n_players))
    return written(pd.concat(frames, ignore_index=True), out, report) if frames else None


def written(found: pd.DataFrame, out: Path, report: Callable[[str], None]) -> pd.DataFrame:
    """Writes lds.csv, lds.md and lds.svg."""
    found.to_csv(out / "lds.csv", index=False)
    text = markdown(found)
    (out / "lds.md").write_text(text, encoding="utf-8")
    (out / "lds.svg").write_text(figure(found), encoding="utf-8")
    report(text)
    return found


def _part(text: str) -> tuple[int, int]:
    one, of = map(int, text.split("/"))
    if not 1 <= one <= of:
        raise argparse.ArgumentTypeError(f"{text}: expected such as 1/2")
    return one, of


def main(arguments: Sequence[str] | None = None) -> None:
    import mechattr as ma

    parser = argparse.ArgumentParser(
        prog="python -m experiments.rag_audit.lds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of values and results")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--questions", type=int, default=10, help="so many")
    parser.add_argument(
        "--sentences", type=int, nargs=2, default=SENTENCES, help="fewest and most of a question"
    )
    parser.add_argument(
        "--most", type=int, choices=BUDGETS[3:], default=128, help="evaluations of the largest fit"
    )
    parser.add_argument("--part", type=_part, default=(1, 1), help="measure only, such as 1/2")
    options = parser.parse_args(arguments)
    run(
        ma.load_model(options.model),
        options.out,
        questions(options.questions, tuple(options.sentences)),
        most=options.most,
        part=options.part,
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
