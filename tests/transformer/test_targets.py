"""Targets on hand-made logits against the formulas, per-prompt answers, sets, and bad input."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mechattr as ma
from mechattr.errors import InputError
from mechattr.transformer import targets
from mechattr.transformer.prompts import Prompts, token_id
from tests.oracles import assert_agree, patch_game, shared_model, some_masks
from tests.transformer.tiny import tiny_tokenizer

TEXTS = ["The cat sat on the mat", "The dog was", "When Mary went to the store"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))
    return Prompts.from_texts(model, TEXTS)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return lambda *texts: [token_id(tokenizer, text, len(tokenizer)) for text in texts]


ROWS = torch.tensor([2, 0, 1, 1])
"""The prompt of each row of the logits: not in order, and one of them twice."""


@pytest.fixture(scope="module")
def logits(tokenizer):
    """[row, vocabulary]"""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(len(ROWS), len(tokenizer), generator=generator, dtype=torch.float64)


def value_of(target, prompts, tokenizer, logits, clean=None):
    """As the engine calls it: only the columns that are asked for."""
    bound = target.bind(prompts, tokenizer, len(tokenizer))
    assert bound.positions.shape == (len(prompts), 1)
    assert bound.positions[:, 0].tolist() == list(prompts.target_positions)
    read = logits if bound.columns is None else logits.gather(1, bound.columns[ROWS])
    out = bound.value(read[:, None], ROWS, None if clean is None else clean[:, None])
    assert out.shape == ROWS.shape
    return out


def close(got, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def p_of(row):
    """Softmax, spelled out."""
    exponentials = [math.exp(x) for x in row.tolist()]
    return [e / sum(exponentials) for e in exponentials]


class TestOneAnswerForAll:
    def test_logit(self, prompts, tokenizer, logits, ids):
        (mary,) = ids(" Mary")
        got = value_of(targets.logit(" Mary"), prompts, tokenizer, logits)
        close(got, logits[:, mary])

    def test_logit_diff(self, prompts, tokenizer, logits, ids):
        mary, john = ids(" Mary", " John")
        got = value_of(targets.logit_diff(" Mary", " John"), prompts, tokenizer, logits)
        close(got, logits[:, mary] - logits[:, john])

    def test_log_prob(self, prompts, tokenizer, logits, ids):
        (mary,) = ids(" Mary")
        got = value_of(targets.log_prob(" Mary"), prompts, tokenizer, logits)
        close(got, [math.log(p_of(row)[mary]) for row in logits])

    def test_prob(self, prompts, tokenizer, logits, ids):
        (mary,) = ids(" Mary")
        got = value_of(targets.prob(" Mary"), prompts, tokenizer, logits)
        close(got, [p_of(row)[mary] for row in logits])

    def test_prob_diff(self, prompts, tokenizer, logits, ids):
        mary, john = ids(" Mary", " John")
        got = value_of(targets.prob_diff(" Mary", " John"), prompts, tokenizer, logits)
        close(got, [p_of(row)[mary] - p_of(row)[john] for row in logits])

    def test_loss(self, prompts, tokenizer, logits, ids):
        (mary,) = ids(" Mary")
        got = value_of(targets.loss(" Mary"), prompts, tokenizer, logits)
        close(got, [-math.log(p_of(row)[mary]) for row in logits])

    @pytest.mark.parametrize("kind", [np.int64, torch.tensor, int])
    def test_ids_as_answers(self, prompts, tokenizer, logits, ids, kind):
        mary, john = ids(" Mary", " John")
        target = targets.logit_diff(kind(mary), kind(john))
        got = value_of(target, prompts, tokenizer, logits)
        close(got, logits[:, mary] - logits[:, john])
        assert target.label == f"logit_diff({mary}, {john})"


PER_PROMPT = [" Mary", " John", " Tom"]
AGAINST = [" cat", " dog", " mat"]


class TestOneAnswerAPrompt:
    def test_logit_diff(self, prompts, tokenizer, logits, ids):
        right, wrong = ids(*PER_PROMPT), ids(*AGAINST)
        got = value_of(targets.logit_diff(PER_PROMPT, AGAINST), prompts, tokenizer, logits)
        close(
            got,
            [logits[row, right[p]] - logits[row, wrong[p]] for row, p in enumerate(ROWS.tolist())],
        )

    def test_one_side_may_be_common(self, prompts, tokenizer, logits, ids):
        right, (wrong,) = ids(*PER_PROMPT), ids(" cat")
        got = value_of(targets.prob_diff(PER_PROMPT, " cat"), prompts, tokenizer, logits)
        close(
            got,
            [
                p_of(logits[row])[right[p]] - p_of(logits[row])[wrong]
                for row, p in enumerate(ROWS.tolist())
            ],
        )

    @pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array])
    def test_ids(self, prompts, tokenizer, logits, ids, kind):
        right = ids(*PER_PROMPT)
        got = value_of(targets.log_prob(kind(right)), prompts, tokenizer, logits)
        close(got, [math.log(p_of(logits[r])[right[p]]) for r, p in enumerate(ROWS.tolist())])

    def test_a_column_of_a_data_set(self, prompts, tokenizer, logits):
        import datasets

        column = datasets.Dataset.from_dict({"answer": PER_PROMPT})["answer"]
        got = value_of(targets.logit(column), prompts, tokenizer, logits)
        close(got, value_of(targets.logit(PER_PROMPT), prompts, tokenizer, logits))


SETS = [[" Mary", " John", " Tom"], [" cat"], [" dog", " mat"]]
OTHERS = [[" on"], [" in", " of"], [" a", " the"]]


class TestSets:
    """Sets of different sizes, a set a prompt: padding must not count."""

    def test_logit_is_the_mean(self, prompts, tokenizer, logits, ids):
        sets = [ids(*one) for one in SETS]
        got = value_of(targets.logit(SETS), prompts, tokenizer, logits)
        close(got, [logits[r, sets[p]].mean() for r, p in enumerate(ROWS.tolist())])

    def test_logit_diff_is_the_difference_of_means(self, prompts, tokenizer, logits, ids):
        sets, others = ([ids(*one) for one in side] for side in (SETS, OTHERS))
        got = value_of(targets.logit_diff(SETS, OTHERS), prompts, tokenizer, logits)
        close(
            got,
            [
                logits[r, sets[p]].mean() - logits[r, others[p]].mean()
                for r, p in enumerate(ROWS.tolist())
            ],
        )

    def test_probabilities_are_summed(self, prompts, tokenizer, logits, ids):
        sets, others = ([ids(*one) for one in side] for side in (SETS, OTHERS))
        total = [
            [sum(p_of(logits[r])[i] for i in side[p]) for r, p in enumerate(ROWS.tolist())]
            for side in (sets, others)
        ]
        close(value_of(targets.prob(SETS), prompts, tokenizer, logits), total[0])
        close(
            value_of(targets.log_prob(SETS), prompts, tokenizer, logits),
            [math.log(t) for t in total[0]],
        )
        close(
            value_of(targets.loss(SETS), prompts, tokenizer, logits),
            [-math.log(t) for t in total[0]],
        )
        close(
            value_of(targets.prob_diff(SETS, OTHERS), prompts, tokenizer, logits),
            [a - b for a, b in zip(*total, strict=True)],
        )

    @pytest.mark.parametrize(
        "make",
        [
            targets.logit,
            targets.log_prob,
            targets.prob,
            targets.loss,
            lambda answer: targets.logit_diff(answer, OTHERS),
            lambda answer: targets.prob_diff(answer, OTHERS),
        ],
    )
    def test_gradients_are_finite_differences(self, prompts, tokenizer, logits, make):
        assert torch.autograd.gradcheck(
            lambda x: value_of(make(SETS), prompts, tokenizer, x), logits[:, :].requires_grad_()
        )
        logits.requires_grad_(False)


class TestReadOut:
    def test_only_logits_need_only_columns(self, prompts, tokenizer):
        size = len(tokenizer)
        bound = targets.logit_diff(SETS, OTHERS).bind(prompts, tokenizer, size)
        assert bound.columns is not None
        assert bound.columns.shape == (3, 5)
        assert bool((bound.columns >= 0).all())
        for target in (targets.prob(" cat"), targets.log_prob(" cat"), targets.kl()):
            assert target.bind(prompts, tokenizer, size).columns is None

    def test_only_kl_needs_the_clean_run(self, prompts, tokenizer):
        size = len(tokenizer)
        assert targets.kl().bind(prompts, tokenizer, size).needs_clean
        assert not targets.logit(" cat").bind(prompts, tokenizer, size).needs_clean

    def test_position(self, tokenizer):
        model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))
        prompts = Prompts.from_texts(model, TEXTS, target_position=[1, -1, 2])
        bound = targets.prob(" cat").bind(prompts, tokenizer, len(tokenizer))
        assert bound.positions.tolist() == [[1], [2], [2]]


class TestKL:
    def test_value(self, prompts, tokenizer, logits):
        clean = logits.flip(1)
        expected = [
            sum(p * math.log(p / q) for p, q in zip(p_of(c), p_of(row), strict=True))
            for c, row in zip(clean, logits, strict=True)
        ]
        close(value_of(targets.kl(), prompts, tokenizer, logits, clean), expected)
        assert min(expected) > 0

    def test_it_is_zero_when_nothing_changed(self, prompts, tokenizer, logits):
        got = value_of(targets.kl(), prompts, tokenizer, logits, logits)
        torch.testing.assert_close(got, torch.zeros_like(got), rtol=0, atol=1e-14)


class TestPromptLoss:
    def test_it_is_the_mean_over_the_prompts_own_next_tokens(self, prompts, tokenizer):
        bound = targets.loss().bind(prompts, tokenizer, len(tokenizer))
        n_read = bound.positions.shape[1]
        assert n_read == max(prompts.lengths) - 1
        generator = torch.Generator().manual_seed(1)
        every = torch.randn(
            3, max(prompts.lengths), len(tokenizer), generator=generator, dtype=torch.float64
        )
        read = torch.stack([every[p][bound.positions[p]] for p in ROWS.tolist()])
        got = bound.value(read, ROWS, None)
        expected = []
        for p in ROWS.tolist():
            row = prompts.tokens[p].tolist()
            terms = [-math.log(p_of(every[p, k])[row[k + 1]]) for k in range(len(row) - 1)]
            expected.append(sum(terms) / len(terms))
        close(got, expected)
        for p, length in enumerate(prompts.lengths):
            assert int(bound.positions[p].max()) == length - 2

    def test_a_prompt_of_one_token_has_none(self, tokenizer):
        model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))
        prompts = Prompts.from_texts(model, ["The", "The cat"])
        with pytest.raises(InputError, match="two tokens or more"):
            targets.loss().bind(prompts, tokenizer, len(tokenizer))


class TestSequence:
    """Σ log p of tokens of the prompt itself. ``TEXTS`` are 6, 3 and 6 tokens long."""

    @pytest.mark.parametrize(
        ("sequence", "positions"),
        [
            ([[2, 4, 5], [-1], [1, -2]], [[2, 4, 5], [2], [1, 4]]),
            ([-1, 1], [[1, 5], [1, 2], [1, 5]]),
            (range(1, 3), [[1, 2]] * 3),
            ([" on the", "was", "Mary went"], [[3, 4], [2], [1, 2]]),
            ([np.array([1, 2]), torch.tensor([1]), (3,)], [[1, 2], [1], [3]]),
        ],
    )
    def test_it_is_the_sum_over_its_tokens(self, prompts, tokenizer, sequence, positions):
        target = targets.sequence_log_prob(sequence)
        bound = target.bind(prompts, tokenizer, len(tokenizer))
        generator = torch.Generator().manual_seed(1)
        every = torch.randn(3, 6, len(tokenizer), generator=generator, dtype=torch.float64)
        read = torch.stack([every[p][bound.positions[p]] for p in ROWS.tolist()])
        want = []
        for p in ROWS.tolist():
            row = prompts.tokens[p].tolist()
            want.append(sum(math.log(p_of(every[p, k - 1])[row[k]]) for k in positions[p]))
        close(bound.value(read, ROWS, None), want)
        for p, own in enumerate(positions):
            assert sorted({k + 1 for k in bound.positions[p].tolist()}) == own
        ids = [
            [int(row[k]) for k in own] for row, own in zip(prompts.tokens, positions, strict=True)
        ]
        assert bound.facts == {"sequence_ids": ids}
        assert (bound.columns, bound.needs_clean) == (None, False)
        assert torch.autograd.gradcheck(
            lambda x: bound.value(x, ROWS, None), read.requires_grad_(True)
        )

    def test_a_text_is_found_where_it_comes_last(self, tokenizer):
        model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))
        prompts = Prompts.from_texts(model, "The cat sat on the cat")
        bound = targets.sequence_log_prob(" cat").bind(prompts, tokenizer, len(tokenizer))
        assert bound.positions.tolist() == [[4]]

    @pytest.mark.parametrize(
        ("sequence", "message"),
        [
            ("The cat", "Prompt 0: .*first token, 'The', which nothing predicts"),
            ([0], "Prompt 0: .*nothing predicts"),
            ([-3], "Prompt 1: .*first token, 'The'"),
            ([1, 3], "position 3 is outside prompt 1, which has 3 tokens"),
            ([[1], [1, -2], [1]], r"Prompt 1: its sequence \[1, -2\] is empty or names a position"),
            ([[1], [], [1]], r"Prompt 1: its sequence \[\] is empty"),
            ([[1], [True], [1]], r"Prompt 1: its sequence is \[True\]; expected text or positions"),
            ([[1], 2, [1]], "Prompt 1: its sequence is 2"),
            ([[1], [1]], r"one of these a prompt \(3\)"),
            ([], "expected a text"),
            (None, "The sequence is None"),
            (" drink", "has 0 occurrences of ' drink'"),
        ],
    )
    def test_what_is_wrong_is_said(self, prompts, tokenizer, sequence, message):
        with pytest.raises(InputError, match=message):
            targets.sequence_log_prob(sequence).bind(prompts, tokenizer, len(tokenizer))

    def test_the_whole_prompt_is_its_loss(self):
        model = shared_model("llama-bridge")
        whole = patch_game(model, ma.heads(), target=ma.targets.sequence_log_prob(range(1, 9)))
        loss = patch_game(model, ma.heads(), target=ma.targets.loss())
        masks = some_masks(whole.n_players)
        assert_agree(whole(masks), -8 * loss(masks))
        assert_agree(whole.gradient(masks), -8 * loss.gradient(masks))


class TestCustom:
    def test_a_function_of_the_logits(self, prompts, tokenizer, logits):
        def margin(logits):
            top = logits.topk(2).values
            return top[:, 0] - top[:, 1]

        target = targets.as_target(margin)
        assert target.label == "margin"
        close(value_of(target, prompts, tokenizer, logits), margin(logits))

    def test_a_function_of_the_prompt_too(self, prompts, tokenizer, logits, ids):
        right = torch.tensor(ids(*PER_PROMPT))
        target = targets.custom(lambda logits, prompt: logits[range(4), right[prompt]], "mine")
        assert target.label == "mine"
        close(value_of(target, prompts, tokenizer, logits), logits[range(4), right[ROWS]])

    def test_a_default_is_no_request_for_the_prompt(self, prompts, tokenizer, logits):
        target = targets.custom(lambda logits, scale=2.0: scale * logits[:, 0])
        close(value_of(target, prompts, tokenizer, logits), 2 * logits[:, 0])

    @pytest.mark.parametrize(
        ("function", "got"),
        [
            (lambda logits: logits.sum(), r"returned \(\)"),
            (lambda logits: logits[:, :1], r"returned \(4, 1\)"),
            (lambda logits: 0.5, "returned float"),
        ],
    )
    def test_it_must_return_one_value_a_row(self, prompts, tokenizer, logits, function, got):
        with pytest.raises(InputError, match=got + r"; expected one value a row, shape \(4,\)"):
            value_of(targets.custom(function), prompts, tokenizer, logits)

    def test_as_target(self):
        target = targets.logit(" cat")
        assert targets.as_target(target) is target
        with pytest.raises(InputError, match="The target is ' Mary'; expected one of"):
            targets.as_target(" Mary")  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"custom\(\) takes a function"):
            targets.custom(" Mary")  # type: ignore[arg-type]


class TestLabels:
    @pytest.mark.parametrize(
        ("target", "label"),
        [
            (targets.logit(" cat"), "logit(' cat')"),
            (targets.logit_diff(" cat", " dog"), "logit_diff(' cat', ' dog')"),
            (targets.log_prob(7), "log_prob(7)"),
            (targets.prob([" a", " b"]), "prob([' a', ' b'])"),
            (targets.prob([" a", " b", " c"]), "prob([' a', ' b', ...])"),
            (targets.logit(torch.tensor([5, 6])), "logit([5, 6])"),
            (targets.kl(), "KL(clean || run)"),
            (targets.loss(), "loss(prompt)"),
            (targets.loss(" cat"), "loss(' cat')"),
            (targets.sequence_log_prob(" cat sat"), "sequence_log_prob(' cat sat')"),
            (targets.sequence_log_prob([4, 5, 6]), "sequence_log_prob([4, 5, ...])"),
        ],
    )
    def test_label(self, target, label):
        assert target.label == label


class TestBadAnswers:
    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (targets.logit(" Maryland"), r"' Maryland' is 2 tokens, \[' Mary', 'land'\]"),
            (targets.logit("drink"), "With a leading space, ' drink', it is one token"),
            (targets.logit(["Mary", " cat"]), "Got 2 answers for 3 prompts"),
            (targets.logit_diff(" cat", [" dog"]), "Got 1 distractors for 3 prompts"),
            (targets.logit([[" cat"], [], [" dog"]]), "Prompt 1 has no answer: its set is empty"),
            (targets.logit([" cat", 3.5, " dog"]), "string or a token id; got 3.5"),
            (targets.logit([" cat", None, " dog"]), "string or a token id; got None"),
            (targets.logit(10_000), "outside the vocabulary"),
            (targets.logit(3.5), "The answer is 3.5; expected a string"),  # type: ignore[arg-type]
            (targets.logit({" cat", " dog", " mat"}), "a list of one a prompt"),  # type: ignore[arg-type]
            (
                targets.logit_diff(PER_PROMPT, [" cat", " John", " dog"]),
                "Prompt 1: answer and distractor are the same token, ' John'",
            ),
            (
                # The same set, though one side is padded to another prompt's size.
                targets.prob_diff([[" Mary"], [" cat"], [" on", " in"]], " cat"),
                "Prompt 1: answer and distractor are the same",
            ),
            (
                targets.prob([[" cat"], [" dog", " dog"], [" mat"]]),
                "Prompt 1: its set of answers names a token twice",
            ),
        ],
    )
    def test_it_is_refused_with_the_reason(self, prompts, tokenizer, target, message):
        with pytest.raises(InputError, match=message):
            target.bind(prompts, tokenizer, len(tokenizer))

    @pytest.mark.parametrize("make", [targets.logit_diff, targets.prob_diff])
    def test_a_difference_needs_two_sides(self, make):
        with pytest.raises(InputError, match="needs a distractor"):
            make(" cat", None)


def test_minus_a_target_is_its_negative():
    model = shared_model("llama-bridge")
    for target in (ma.targets.kl(), ma.targets.logit_diff(40, 20), ma.targets.loss()):
        plain = patch_game(model, ma.heads(), target=target)
        minus = patch_game(model, ma.heads(), target=-target)
        masks = some_masks(plain.n_players)
        assert_agree(minus(masks)[:, 0], -plain(masks)[:, 0])
        assert_agree(minus.gradient(masks)[:, 0], -plain.gradient(masks)[:, 0])
        assert minus.describe()["target"] == "−" + plain.describe()["target"]
        assert minus.target.needs_clean == plain.target.needs_clean
