"""How many evaluations does a design need to predict what a subset of the sentences is worth?

    python -m experiments.rag_audit.lds --out lds

Questions of 12 to 20 sentences (``lds_questions``), SmolLM2-135M-Instruct, the answer given. Each
design and fit has so many evaluations of v, and is judged by the held-out LDS: the rank correlation
of its plane with v over 128 other masks, each sentence present with chance ½. That of log p and of
the log odds ContextCite fits is the same, since ranks don't change. A design's draws and the folds
of a question are averaged; intervals are over questions. All questions go up to 64 evaluations,
the first eight (one a topic) up to 256.

Values are kept in DIR/values and not measured again; kill it and start it again as you like, or
measure parts at once (``--part 1/2``, ``--part 2/2``) and then run it without.
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
from experiments.rag_audit.lds_measuring import BLOCK, DRAWS, Plan, Values, game_of, load, measure
from experiments.rag_audit.lds_questions import Question, questions
from mechattr.methods import ContextCite, Surrogate
from mechattr.methods.designs import Design
from mechattr.ranks import spearman

SHORT, LONG, N_LONG = 64, 256, 8
"""Evaluations of the largest fit, and how many questions have the larger."""

CONTEXTCITE = "ContextCite (i.i.d., Lasso 0.01 of the log odds)"
DEFAULT = "Hadamard, ARD (the default)"


@dataclass(frozen=True)
class Case:
    """A question's values, and the fold that is fitted."""

    plan: Plan
    values: Values
    fold: int

    @property
    def judges(self) -> np.ndarray:
        """[128, player] masks that no fit of this fold sees."""
        return np.concatenate([self._block(1), self._block(2)])

    def random(self, budget: int) -> Design:
        """I.i.d. masks of the blocks that don't judge."""
        blocks = [self._block(-k) for k in range(max(1, budget // BLOCK))]
        return Design(np.concatenate(blocks)[:budget], np.arange(budget))

    def hadamard(self, budget: int) -> Design:
        return self.plan.hadamard(budget, self.fold % DRAWS.get(budget, 1))

    def with_leave_one_outs(self, budget: int) -> Design | None:
        """N, ∅ and the leave-one-outs among the evaluations; the rest from a Hadamard design."""
        singles = self.plan.leave_one_out()
        left = budget - len(singles)
        whole = self.hadamard(budget)
        if left < 4:
            return None
        return Design(whole.masks[:left], whole.units[:left], whole.given).with_known(singles)

    def knowing_singles(self, budget: int) -> Design:
        """The default design, leave-one-outs and include-ones known from elsewhere."""
        singles = self.plan.leave_one_out()
        return self.hadamard(budget).with_known(np.concatenate([singles, ~singles]))

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
    "leave-one-outs among them, rest Hadamard, ARD": (Surrogate(), Case.with_leave_one_outs),
    "leave-one-outs and include-ones known besides, ARD": (Surrogate(), Case.knowing_singles),
}
"""A fit, and the masks that it has. ContextCite's have neither N nor ∅: it doesn't use them."""

DRAWN = (CONTEXTCITE, "i.i.d., ARD", DEFAULT, "leave-one-outs among them, rest Hadamard, ARD")
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
        for target, found in _scores(replace(method, resamples=2, folds=0), designed, budget, cases)
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
        truth, _ = _targets(case.values, case.judges)
        every = [
            _correlation(case.judges @ w, v) for w, v in zip(fitted[key], truth.T, strict=True)
        ]
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


def curve(found: pd.DataFrame, name: str, target: str, most: int) -> pd.DataFrame:
    """[budget] mean, low, high (95 %, Student's, over questions) of the questions that go up to
    ``most`` evaluations; without budgets that are too small for one of them."""
    from scipy.stats import t

    kept = found[(found.target == target) & (found.most >= most) & (found.budget <= most)]
    n = kept["question"].nunique()
    cells = kept[kept.method == name].groupby("budget")["lds"].agg(["mean", "std", "count"])
    cells = cells[cells["count"] == n]
    half = cells["std"] * t.ppf(0.975, max(n - 1, 1)) / n**0.5
    return pd.DataFrame(
        {"mean": cells["mean"], "low": cells["mean"] - half, "high": cells["mean"] + half}
    )


def markdown(found: pd.DataFrame) -> str:
    parts = []
    for target, what in TARGETS.items():
        for most in sorted(set(found.most)):
            n = found[found.most >= most]["question"].nunique()
            parts += [f"Mean held-out LDS of {what}, {n} questions, by evaluations\n"]
            parts += [*_table(found, target, most), ""]
    for target, what in TARGETS.items():
        parts.append(f"Paired over questions, {what}, against ContextCite's 64 evaluations:\n")
        for name in METHODS:
            if name != CONTEXTCITE:
                line = compared(found, (name, 32), (CONTEXTCITE, 64), target)
                parts += [f"- {name}, 32: {line}"] if line.n > 1 else []
        parts.append("")
    return "\n".join(parts)


def _table(found: pd.DataFrame, target: str, most: int) -> list[str]:
    budgets = sorted(int(b) for b in set(found.budget) if b <= most)
    lines = ["| | " + " | ".join(map(str, budgets)) + " |", "|---|" + "---:|" * len(budgets)]
    for name in METHODS:
        means = curve(found, name, target, most)["mean"]
        cells = (f"{means[budget]:.3f}" if budget in means.index else "" for budget in budgets)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def figures(found: pd.DataFrame) -> dict[int, str]:
    """The curves as SVG, for each length of plan."""
    pages = {}
    for most in sorted(set(found.most)):
        n = found[found.most >= most]["question"].nunique()
        curves = {name: curve(found, name, "answer", most) for name in DRAWN}
        title = f"How well a plane predicts other subsets of sentences: mean of {n} questions"
        pages[most] = drawn(curves, title, (CONTEXTCITE, 64))
    return pages


# --- the run --------------------------------------------------------------------------------------


def plans(asked: Sequence[Question], n_long: int) -> list[Plan]:
    return [
        Plan(question.n_sentences, number, LONG if number < n_long else SHORT)
        for number, question in enumerate(asked)
    ]


def run(
    model: Any,
    out: Path,
    asked: Sequence[Question],
    *,
    n_long: int = N_LONG,
    part: tuple[int, int] = (1, 1),
    report: Callable[[str], None] = print,
) -> pd.DataFrame | None:
    """Measure (a part of) the questions; with all of them, fit, and write table and figure."""
    folder = out / "values"
    for number, (question, plan) in enumerate(zip(asked, plans(asked, n_long), strict=True)):
        if number % part[1] == part[0] - 1:
            before = len(load(folder, game := game_of(model, question), question).masks)
            values = measure(folder, game, question, plan)
            report(f"{question.name}: {len(values.masks)} masks, {before} of them known before")
    if part[1] > 1:
        return None
    frames = []
    for question, plan in zip(asked, plans(asked, n_long), strict=True):
        frame = lds_of(load(folder, game_of(model, question), question), plan)
        frames.append(frame.assign(question=question.name, n=plan.n_players, most=plan.most))
    return written(pd.concat(frames, ignore_index=True), out, report)


def written(found: pd.DataFrame, out: Path, report: Callable[[str], None]) -> pd.DataFrame:
    found.to_csv(out / "lds.csv", index=False)
    text = markdown(found)
    (out / "lds.md").write_text(text, encoding="utf-8")
    for most, page in figures(found).items():
        (out / f"lds_{most}.svg").write_text(page, encoding="utf-8")
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
    parser.add_argument("--questions", type=int, default=24, help="at most so many")
    parser.add_argument("--long", type=int, default=N_LONG, help="of them up to 256 evaluations")
    parser.add_argument("--part", type=_part, default=(1, 1), help="measure only, such as 1/2")
    options = parser.parse_args(arguments)
    run(
        ma.load_model(options.model),
        options.out,
        questions(options.questions),
        n_long=options.long,
        part=options.part,
        report=partial(print, flush=True),
    )


if __name__ == "__main__":
    main()
