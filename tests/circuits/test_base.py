"""Task and TaskCheck: target, data set, subsets, and the check against direct forward passes."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

import circuits
from circuits.tasks import TASKS, Task
from mechattr.errors import InputError, NotFiniteError
from mechattr.transformer.prompts import token_id
from tests.circuits.vocabulary import ONE_DIGIT, TWO_DIGITS, stub, task_tokenizer
from tests.transformer.tiny import HAS_HOOKED, tiny_bridge, tiny_hooked

MAKERS = [tiny_hooked, tiny_bridge] if HAS_HOOKED else [tiny_bridge]


def tiny(maker=MAKERS[0], numbers=TWO_DIGITS, family="gpt2"):
    return maker(family, tokenizer=task_tokenizer(numbers=numbers))


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_every_task_is_reached_by_name():
    assert TASKS["ioi"] is circuits.tasks.ioi
    assert TASKS["greater_than"] is circuits.tasks.greater_than
    for name, make in TASKS.items():
        task = make(stub(task_tokenizer(numbers=ONE_DIGIT)), size=3)
        assert task.name == name
        assert len(task) == len(task.prompts) == 3


def test_the_functions_stay_functions_when_their_files_are_imported():
    import circuits.tasks.greater_than
    import circuits.tasks.ioi

    assert callable(circuits.tasks.ioi)
    assert callable(circuits.tasks.greater_than)


def test_importing_circuits_is_light():
    code = (
        "import sys, circuits; assert 'torch' not in sys.modules; "
        "circuits.tasks; assert not {'datasets', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="nothing"):
        circuits.nothing  # noqa: B018
    assert "tasks" in dir(circuits)


def test_data_set(model):
    task = circuits.tasks.ioi(model, size=5, seed=2)
    assert task.dataset.num_rows == 5
    assert task.dataset.column_names == list(task.columns)
    assert list(task.dataset["clean"]) == list(task.prompts.texts)
    assert "5 prompts" in task.dataset.info.description
    assert "seed 2" in task.dataset.info.description
    assert task.dataset is task.dataset


def test_data_set_holds_sets(model):
    dataset = circuits.tasks.greater_than(model, size=4).dataset
    assert all(len(row["answer"]) + len(row["distractor"]) == 100 for row in dataset)


def test_subsets_are_tasks_of_their_own(model):
    task = circuits.tasks.ioi(model, size=10)
    first, rest = task[:4], task[4:]
    assert (len(first), len(rest), len(task[3]), len(task[[7, 1]])) == (4, 6, 1, 2)
    assert not set(first.columns["clean"]) & set(rest.columns["clean"])
    assert task[[7, 1]].prompts.texts == (task.prompts.texts[7], task.prompts.texts[1])
    assert task[[7, 1]].answers == (task.answers[7], task.answers[1])
    whole, part = task.check(model), rest.check(model)
    torch.testing.assert_close(part.values, whole.values[4:])
    with pytest.raises(InputError, match="empty"):
        task[10:]


def test_repr_says_what_the_task_is(model):
    text = repr(circuits.tasks.greater_than(model, size=4, seed=7))
    for part in (
        "greater_than",
        "4 prompts",
        "'01'",
        "prob_diff",
        "seed 7",
        "two digits",
        "lasted",
    ):
        assert part in text
    task = circuits.tasks.ioi(model, size=4)
    assert f"-> {task.answers[0][0]!r}, not {task.distractors[0][0]!r}" in repr(task)


def test_fields_must_fit(model):
    task = circuits.tasks.ioi(model, size=4)
    settings = {f: getattr(task, f) for f in Task.__dataclass_fields__}
    with pytest.raises(InputError, match="answers: 3 entries for 4 prompts"):
        Task(**{**settings, "answers": task.answers[:3]})
    with pytest.raises(InputError, match="'clean'"):
        Task(**{**settings, "columns": {"clean": ["one"]}})
    with pytest.raises(InputError, match="logit_diff"):
        Task(**{**settings, "measure": "logits"})


def logits_one_by_one(model, rows):
    with torch.no_grad():
        return [model(row[None], return_type="logits")[0, -1] for row in rows]


@pytest.mark.parametrize("maker", MAKERS)
def test_check_of_ioi_is_the_models_own_logits(maker):
    model = tiny(maker, family="llama")
    task = circuits.tasks.ioi(model, size=20)
    assert len(set(task.prompts.lengths)) > 1
    check = task.check(model, batch_size=3)
    size = model.cfg.d_vocab
    for rows, values in (
        (task.prompts.tokens, check.values),
        (task.prompts.counterfactual, check.counterfactual_values),
    ):
        expected = [
            float(logits[token_id(model.tokenizer, a, size)])
            - float(logits[token_id(model.tokenizer, d, size)])
            for logits, (a,), (d,) in zip(
                logits_one_by_one(model, rows), task.answers, task.distractors, strict=True
            )
        ]
        assert any(abs(e) > 0.1 for e in expected)
        torch.testing.assert_close(
            values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
        )
    torch.testing.assert_close(check.logit_diff, check.values, rtol=0, atol=1e-9)
    assert check.accuracy == sum(v > 0 for v in check.values.tolist()) / 20


def test_check_of_sets(model):
    task = circuits.tasks.greater_than(model, size=12)
    check = task.check(model)
    size = model.cfg.d_vocab
    every = logits_one_by_one(model, task.prompts.tokens)
    for i, logits in enumerate(every):
        p = logits.softmax(-1)
        right, wrong = (
            [token_id(model.tokenizer, t, size) for t in sets[i]]
            for sets in (task.answers, task.distractors)
        )
        assert float(check.values[i]) == pytest.approx(float(p[right].sum() - p[wrong].sum()))
        odds = math.log(p[right].sum()) - math.log(p[wrong].sum())
        assert float(check.logit_diff[i]) == pytest.approx(odds)
        assert bool(check.top[i]) == (int(logits.argmax()) in right)
        assert bool(check.correct[i]) == (float(check.values[i]) > 0)


def test_check_counts_and_errors(model):
    task = circuits.tasks.ioi(model, size=9)
    check = task.check(model, progress=False)
    mean, error = check.mean_logit_diff
    assert mean == pytest.approx(float(check.logit_diff.mean()))
    assert error == pytest.approx(float(check.logit_diff.std(unbiased=True)) / 3)
    assert check.top_accuracy == float(check.top.double().mean())
    assert math.isnan(task[:1].check(model).mean_logit_diff[1])


def test_check_repr(model):
    text = repr(circuits.tasks.ioi(model, size=4).check(model))
    for part in ("of 4 (", "answer beats distractor", "top token", "logit difference", "±"):
        assert part in text
    assert "prob_diff" not in text
    assert "prob_diff" in repr(circuits.tasks.greater_than(model, size=4).check(model))
    assert "nan" not in repr(circuits.tasks.ioi(model, size=1).check(model))


def test_check_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    circuits.tasks.ioi(model, size=3).check(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_check_names_the_prompt_that_is_not_finite(model):
    task = circuits.tasks.ioi(model, size=6)
    assert task.prompts.counterfactual is not None
    broken = task.prompts.counterfactual[2]

    class Broken:
        tokenizer, cfg, W_U = model.tokenizer, model.cfg, model.W_U

        def __call__(self, tokens, return_type):
            logits = model(tokens, return_type=return_type)
            for row, values in zip(tokens, logits, strict=True):
                if torch.equal(row, broken):
                    values[:] = torch.nan
            return logits

    with pytest.raises(NotFiniteError) as error:
        task.check(Broken())
    message = str(error.value)
    assert "counterfactual prompt 2, at position" in message
    assert repr(task.columns["counterfactual"][2]) in message


def test_bad_batch_size(model):
    with pytest.raises(InputError, match="batch_size is 0"):
        circuits.tasks.ioi(model, size=2).check(model, batch_size=0)
