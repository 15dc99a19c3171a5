"""ContextCite on a language model against its definition written out slowly.

One whole forward pass a prompt, logits of all positions; the log odds in float64 as published; the
Lasso by coordinate descent, standardised by hand. Nothing here is shared with what is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import mechattr as ma
from mechattr.methods import ContextCite
from tests.oracles import shared_model
from tests.transformer import tiny

ALPHA = 0.01
MASKS = 64


def log_probs(model: Any, parts: Sequence[str], mask: np.ndarray, answer: str) -> torch.Tensor:
    """[answer token] float64. parts: a text that stays, the players, a text that stays."""
    here = [parts[0], *(text for text, there in zip(parts[1:-1], mask, strict=True) if there)]
    ids = [i for text in (*here, parts[-1]) for i in encode(model, text)]
    expected = encode(model, answer)
    tokens = torch.tensor([ids + expected])
    with torch.no_grad():
        logits = model(tokens)
    assert logits.shape[:2] == tokens.shape
    logs = logits[0].double().log_softmax(-1)
    return torch.stack([logs[len(ids) - 1 + k, token] for k, token in enumerate(expected)])


def encode(model: Any, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def weights(masks: np.ndarray, y: np.ndarray, n_tokens: int) -> np.ndarray:
    """``w`` of ``min ‖y/T − b − z·w‖²/(2·rows) + α‖w‖₁``, back on masks of 0 and 1, times T."""
    y = y / n_tokens
    x = masks.astype(np.float64)
    spread = x.std(axis=0)
    z = (x - x.mean(axis=0)) / spread
    w, b, rows = np.zeros(x.shape[1]), 0.0, len(y)
    for _ in range(20_000):
        before = w.copy()
        b = float(np.mean(y - z @ w))
        for j in range(len(w)):
            rest = y - b - z @ w + z[:, j] * w[j]
            slope = float(z[:, j] @ rest) / rows
            w[j] = np.sign(slope) * max(abs(slope) - ALPHA, 0.0)  # z[:, j]² has mean 1
        if np.abs(w - before).max() < 1e-14:
            break
    residual = z.T @ (y - b - z @ w) / rows  # at the optimum ±α where w isn't 0, else within
    np.testing.assert_allclose(residual[w != 0], ALPHA * np.sign(w[w != 0]), atol=1e-10)
    assert (np.abs(residual[w == 0]) <= ALPHA + 1e-10).all()
    return w / spread * n_tokens


def log_odds(summed: np.ndarray) -> np.ndarray:
    """[row] of log p, summed over the tokens."""
    return np.array([lp - np.log(1 - np.exp(lp)) for lp in summed])


def check(
    model: Any,
    parts: Sequence[str],
    answer: str,
    statements: Sequence[tuple[int, int]],
    tokens: Sequence[slice],
    *,
    masks: int = MASKS,
    atol: float,
) -> np.ndarray:
    """Compare all statements' weights; returns the definition's, [statement, player].

    tokens: of each statement those of the answer's tokens that are its own.
    """
    n = len(parts) - 2
    pieces = [ma.Piece(f"s{i}", text, kind="sentence") for i, text in enumerate(parts[1:-1])]
    game = ma.RemovalGame(model, [parts[0], *pieces, parts[-1]], answer, statements=statements)
    found = ma.attribute(game, ContextCite(samples=masks), seed=7, progress=False)

    drawn = np.random.default_rng(7).random((masks, n)) < 0.5
    slow = torch.stack([log_probs(model, parts, mask, answer) for mask in drawn]).numpy()
    expected = np.stack(
        [weights(drawn, log_odds(slow[:, own].sum(1)), own.stop - own.start) for own in tokens]
    )
    assert found.provenance["notes"]["rows"] == masks
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=atol)
    return expected


PARTS = (
    "When",
    " Mary went to the store.",
    " John sat on the mat.",
    " Tom had a cat,",
    " Mary was good.",
    " Anna and Paul",
    " gave a book to Mark",
    " in the park.",
    " The war lasted",
    " from year 17",
    " to 32.",
    " Anna gave a",
)
ANSWER = " drink to Mary, and a book"


class TestOnSmallModels:
    @pytest.mark.parametrize("name", ["llama-bridge", *["gpt2-hooked"] * tiny.HAS_HOOKED])
    def test_every_statement_is_the_definition(self, name):
        model = shared_model(name)
        assert [model.tokenizer.decode(i) for i in encode(model, ANSWER)] == [
            " drink", " to", " Mary", ",", " and", " a", " book",
        ]  # fmt: skip
        statements = ((0, 9), (9, 15), (15, 26))
        tokens = (slice(0, 2), slice(2, 4), slice(4, 7))
        expected = check(model, PARTS, ANSWER, statements, tokens, atol=1e-8)
        assert (np.abs(expected).max(1) > 0.3).all()
        assert (expected == 0).any()  # and the penalty was at work

    def test_the_whole_answer_is_one_statement(self):
        model = shared_model("llama-bridge")
        expected = check(model, PARTS, ANSWER, ((0, 26),), (slice(0, 7),), atol=1e-8)
        assert np.abs(expected).max() > 0.3

    def test_the_odds_and_not_only_the_probability_count_where_p_is_high(self):
        """An answer that the model itself gives: log p − log(1 − p) is far from log p there."""
        model = shared_model("llama-bridge")
        ids = [i for text in PARTS for i in encode(model, text)]
        with torch.no_grad():
            likely = int(model(torch.tensor([ids]))[0, -1].argmax())
        answer = model.tokenizer.decode(likely)
        assert encode(model, answer) == [likely]
        expected = check(model, PARTS, answer, ((0, len(answer)),), (slice(0, 1),), atol=1e-8)
        drawn = np.random.default_rng(7).random((MASKS, 10)) < 0.5
        logs = np.array([float(log_probs(model, PARTS, mask, answer)) for mask in drawn])
        assert np.exp(logs).max() > 0.3
        assert np.abs(expected[0] - weights(drawn, logs, 1)).max() > 0.05


SENTENCES = (
    "<|im_start|>user\nAnswer the question using the passages.\n\n[1]",
    " The Orvane lantern was made by Pell Dorran.",
    " It was moved to the Brask museum after the flood.",
    "\n\n[2] The Brask museum keeps old lamps in its cellar.",
    " Visitors may enter on Sundays.",
    "\n\n[3] The Orvane clock stands in the town hall.",
    " The hall was painted blue.",
    "\n\nQuestion: Where is the Orvane lantern?<|im_end|>\n<|im_start|>assistant\n",
)


@pytest.mark.real
def test_on_a_real_model_to_four_digits():
    model = ma.load_model("smollm2-135m", device="cpu")
    answer = "It is in the cellar of the Brask museum."
    n_tokens = len(encode(model, answer))
    expected = check(
        model, SENTENCES, answer, ((0, len(answer)),), (slice(0, n_tokens),), masks=32, atol=1e-4
    )
    assert expected[0].argmax() == 2  # the cellar is in the third sentence
    assert expected[0, 2] > 2
