"""The study of designs on sentences: its masks, folds, averages and what it keeps on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechattr.ranks import spearman

if not (Path(__file__).parents[2] / "experiments").is_dir():
    pytest.skip("experiments/ runs from a checkout only", allow_module_level=True)

from experiments.rag_audit import lds, lds_measuring
from experiments.rag_audit.lds_measuring import Plan, Values
from experiments.rag_audit.lds_questions import questions
from tests.oracles import shared_model


def made_up(plan: Plan, n_statements: int = 2) -> Values:
    """Three sentences matter, two of them together; the statements weigh them differently."""
    rng = np.random.default_rng(plan.seed)
    w = np.zeros((plan.n_players, n_statements))
    w[:3] = rng.uniform(2, 5, (3, n_statements))
    w[3:] = 0.2 * rng.normal(size=w[3:].shape)
    masks = plan.masks()
    return Values(masks, masks @ w + 2 * masks[:, :1] * masks[:, 1:2] - 30, [11, 7])


class TestQuestions:
    def test_as_many_sentences_and_passages_as_stated(self):
        asked = questions(24, (12, 20))
        assert len(asked) == len({q.name for q in asked}) == 24
        assert all(12 <= q.n_sentences <= 20 for q in asked)
        assert len({q.n_sentences for q in asked}) >= 6
        assert {q.n_sentences for q in questions()} == {12, 13, 14}
        assert Counter(len(q.passages) for q in asked).keys() <= {5, 6}
        assert all(len(q.statements) in (2, 3) for q in asked)
        texts = [text for q in asked for p in q.passages for text in (*p, *q.statements)]
        assert not any(mark in text for text in texts for mark in "{}~")

    def test_they_are_always_the_same_and_all_different(self):
        assert questions() == questions()
        assert questions(4) == questions()[:4]
        assert len({(q.answer, q.passages) for q in questions(24)}) == 24

    def test_statements_are_characters_of_the_answer(self):
        for q in questions():
            assert "".join(q.answer[a:b] for a, b in q.spans) == q.answer
            assert [q.answer[a:b].strip() for a, b in q.spans] == list(q.statements)


class TestMasks:
    @pytest.mark.parametrize("most", [64, 128, 256])
    def test_no_fit_sees_the_masks_that_judge_it(self, most):
        plan = Plan(14, 3, most)
        values = made_up(plan)
        for fold in range(plan.blocks):
            case = lds.Case(plan, values, fold)
            for budget in plan.budgets:
                judges = {row.tobytes() for row in case.judges(budget)}
                assert len(case.judges(budget)) == (64 if budget == most > 64 else 128)
                design = case.random(budget)
                assert design.masks.shape == (budget, 14)
                shared = sum(row.tobytes() in judges for row in design.masks)
                assert shared <= 0.1 * budget  # only what is drawn twice of 2^14
        case = lds.Case(plan, values, 0)
        for designed, least in ((case.with_leave_one_outs, 16), (case.with_both_singles, 30)):
            assert designed(least - 1) is None
            with_singles = designed(least)
            assert with_singles is not None
            assert with_singles.masks.shape == (least, 14)
            assert len(np.unique(with_singles.masks, axis=0)) == least
            sizes = np.sort(with_singles.masks.sum(1))
            assert sizes[0] == 0
            assert sizes[-1] == 14

    def test_blocks_are_disjoint_rows(self):
        plan = Plan(20, 0, 256)
        case = lds.Case(plan, made_up(plan), 2)
        used = np.concatenate([case.random(256).masks, case.judges(256)])
        assert len(used) == 320
        assert len(np.unique(used, axis=0)) >= 319

    def test_a_question_has_at_most_448(self):
        for number, question in enumerate(questions()):
            assert len(Plan(question.n_sentences, number, 128).masks()) <= 448

    def test_a_longer_plan_has_the_shorter_ones_masks(self):
        short, long = (
            {row.tobytes() for row in Plan(13, 1, most).masks()} for most in (64, 256)
        )  # fmt: skip
        assert short <= long


@pytest.fixture(scope="module")
def scored() -> pd.DataFrame:
    plan = Plan(12, 0, 64)
    return lds.lds_of(made_up(plan), plan)


class TestScores:
    def test_lds_is_the_rank_correlation_over_the_judges(self):
        plan = Plan(12, 0, 64)
        values = made_up(plan)
        case = lds.Case(plan, values, 1)
        fit, designed = lds.METHODS[lds.DEFAULT]
        found = list(lds._scores(fit, designed, 32, [case]))
        design = plan.hadamard(32, 1)
        v = values(design.masks)
        expected: list[float] = []
        for column in (v.sum(1), v[:, 0], v[:, 1]):
            w = fit.of(design, column[:, None]).values[0]
            truth = values(case.judges(32))
            which = {0: truth.sum(1), 1: truth[:, 0], 2: truth[:, 1]}[len(expected)]
            expected.append(spearman(case.judges(32) @ w, which))
        assert 0.5 < expected[0] < 0.999
        assert found == [
            ("answer", pytest.approx(expected[0])),
            ("statement", pytest.approx(np.mean(expected[1:]))),
        ]

    def test_all_methods_and_budgets(self, scored):
        assert set(scored.method) == set(lds.METHODS)
        answer = scored[scored.target == "answer"].set_index(["method", "budget"])["lds"]
        assert answer[lds.DEFAULT, 64] > answer[lds.DEFAULT, 8]
        assert answer.max() < 1
        assert (lds.LEAVE_ONE_OUTS, 16) in answer.index
        assert (lds.LEAVE_ONE_OUTS, 8) not in answer.index
        assert (lds.BOTH, 16) not in answer.index

    def test_differences_are_paired(self):
        ours, theirs = np.array([0.9, 0.5, 0.7, 0.8]), np.array([0.85, 0.46, 0.64, 0.75])
        found = lds.difference(ours, theirs)
        assert found.mean == pytest.approx(0.05)
        assert 0.03 < found.student[0] < found.bootstrap[0] < 0.05 < found.bootstrap[1] < 0.07
        assert found.at_least == 1
        assert found.n == 4

    def test_curve_leaves_out_what_some_question_lacks(self):
        rows: list[dict[str, Any]] = []
        for question, budgets in (("a", (8, 64)), ("b", (16, 64)), ("c", (8, 16, 64))):
            rows += [{"question": question, "budget": b, "lds": b / 256} for b in budgets]
        found = pd.DataFrame(rows).assign(method=lds.DEFAULT, target="answer")
        found.loc[found.question == "a", "lds"] += 0.1
        shown = lds.curve(found, lds.DEFAULT, "answer")
        assert list(shown.index) == [64]
        assert shown.loc[64, "mean"] == pytest.approx(0.25 + 0.1 / 3)
        # Student's t for two degrees of freedom is 4.3027
        half = 4.3027 * np.std([0.35, 0.25, 0.25], ddof=1) / 3**0.5
        assert shown.loc[64, "high"] - shown.loc[64, "mean"] == pytest.approx(half, rel=1e-4)

    def test_what_is_written(self, scored, tmp_path):
        rng = np.random.default_rng(0)
        frames = [
            scored.assign(question=q, n=12, lds=scored.lds - 0.05 * rng.random(len(scored)))
            for q in "abc"
        ]
        said: list[str] = []
        lds.written(pd.concat(frames), tmp_path, said.append)
        text = (tmp_path / "lds.md").read_text(encoding="utf-8")
        assert said == [text]
        assert text.count(f"- {lds.DEFAULT}, 32: ") == 2
        assert len(pd.read_csv(tmp_path / "lds.csv")) > 100
        svg = (tmp_path / "lds.svg").read_text(encoding="utf-8")
        assert svg.count("<polyline") == 4
        assert "nan" not in svg


class TestKeeping:
    def test_values_are_measured_once(self, tmp_path, monkeypatch):
        game, calls = toy_game(monkeypatch)
        question = questions(1)[0]
        plan = Plan(game.n_players, 0, 64)
        first = lds_measuring.measure(tmp_path, game, question, plan)
        assert len(calls) == 1
        again = lds_measuring.measure(tmp_path, game, question, plan)
        assert len(calls) == 1
        np.testing.assert_array_equal(again(plan.random()), first(plan.random()))
        longer = Plan(game.n_players, 0, 256)
        more = lds_measuring.measure(tmp_path, game, question, longer)
        assert len(calls) == 2
        assert calls[1] == len(longer.masks()) - len(plan.masks())
        np.testing.assert_allclose(more.values, game._values(torch.from_numpy(more.masks)))
        assert not list(tmp_path.glob("*.part"))

    def test_another_models_values_are_not_taken(self, tmp_path, monkeypatch):
        game, calls = toy_game(monkeypatch)
        question = questions(1)[0]
        plan = Plan(game.n_players, 0, 64)
        lds_measuring.measure(tmp_path, game, question, plan)
        said = {**game.describe(), "model": "another"}
        monkeypatch.setattr(game, "describe", lambda: said)
        lds_measuring.measure(tmp_path, game, question, plan)
        assert len(calls) == 2


def toy_game(monkeypatch: Any) -> tuple[Any, list[int]]:
    """A game of a tiny model whose values are made up; and how many masks each call had."""
    import mechattr as ma

    players = [ma.Piece(str(i), " Mary") for i in range(12)]
    pieces: list[str | ma.Piece] = ["When", *players, " was"]
    game = ma.RemovalGame(shared_model("llama-bridge"), pieces, " good", statements=[(0, 5)])
    calls: list[int] = []
    w = torch.arange(12.0).double()

    def values(masks: torch.Tensor) -> torch.Tensor:
        calls.append(len(masks))
        return (masks.double() @ w)[:, None] - 80

    monkeypatch.setattr(game, "_values", values)
    return game, calls
