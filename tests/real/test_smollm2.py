"""The foundation on the default model: a real language model, as a user would run it.

Figures that an issue or DESIGN states are checked here; the oracle is one forward pass with hooks a
patch, on the model itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import mechattr as ma
from circuits import tasks

pytestmark = pytest.mark.real

CLEAN = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"


@pytest.fixture(scope="module")
def model() -> Any:
    return ma.load_model("smollm2-135m", device="cpu")


@pytest.fixture(scope="module")
def prompts(model: Any) -> ma.Prompts:
    return ma.Prompts.from_pairs(model, [CLEAN], [OTHER])


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


TARGET = ma.targets.logit_diff(" Mary", " John")


def one_hook(model: Any, prompts: ma.Prompts, name: str, at: tuple[int, ...]) -> float:
    """The denoising patch of one site, by TransformerLens' own hooks on the whole prompt."""
    assert prompts.counterfactual is not None
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts.tokens[0][None], names_filter=lambda n: n == name)

        def patch(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[(0, *at)] = cache[name][(0, *at)]
            return value

        logits = model.run_with_hooks(prompts.counterfactual[0][None], fwd_hooks=[(name, patch)])
    answer, distractor = (model.tokenizer(w).input_ids[0] for w in (" Mary", " John"))
    return float(logits[0, -1, answer] - logits[0, -1, distractor])


def test_the_block_of_the_design_runs_as_written(model: Any, tmp_path: Any) -> None:
    prompts = ma.Prompts.from_pairs(model, clean=[CLEAN], counterfactual=[OTHER])
    target = ma.targets.logit_diff(" Mary", " John")
    game = ma.PatchGame(
        model,
        prompts,
        ma.heads(per_position=True),
        target,
        source=ma.sources.Counterfactual(),
        base="source",
    )
    scores = ma.attribute(game, "include_one")
    assert scores.grid().dims == ("prompt", "layer", "head", "position")
    assert scores.grid().shape == (1, 30, 9, 14)
    assert scores.top(1)["player"][0] == "L23H3@13"
    scores.plot()
    saved = scores.save(tmp_path / "heads.safetensors")
    assert np.array_equal(ma.Attribution.load(saved).values, scores.values)
    # v(N) and v(∅) of DESIGN
    assert scores.full[0] == pytest.approx(6.12, abs=0.01)
    assert scores.empty[0] == pytest.approx(-5.49, abs=0.01)
    # the shared prefix is free
    shared = np.array(game.players.coords["position"]) < 9
    assert not scores.values[:, shared].any()
    assert game.rows_run < 0.4 * game.n_players

    tokens = ma.PatchGame(model, prompts, ma.tokens(), target, source=ma.sources.Counterfactual())
    ig = ma.attribute(tokens, ma.methods.IntegratedGradients(steps=16))
    assert abs(ig.gap[0]) < 0.01 * abs(ig.full[0] - ig.empty[0])
    ma.attribute(tokens, "shapley", budget=512, seed=0)
    curve = ma.faithfulness.deletion(tokens, scores)
    assert curve.values[0, 0] == pytest.approx(6.12, abs=0.01)
    check_against_hooks(model, prompts, game, scores)


def check_against_hooks(
    model: Any, prompts: ma.Prompts, game: ma.PatchGame, scores: ma.Attribution
) -> None:
    rng = np.random.default_rng(0)
    strongest = np.argsort(-np.abs(scores.values[0]))[:8]
    sample = np.concatenate([strongest, rng.choice(game.n_players, 10, replace=False)])
    for i in sample:
        layer, position, head = (
            game.players.coords[key][i] for key in ("layer", "position", "head")
        )
        name = f"blocks.{layer}.attn.hook_z"
        expected = one_hook(model, prompts, name, (position, head)) - scores.empty[0]
        assert scores.values[0, i] == pytest.approx(expected, abs=1e-4)


def test_32_prompts_of_different_lengths_get_what_each_gets_alone(model: Any) -> None:
    task = tasks.ioi(model, size=32, seed=1)
    assert len(set(task.prompts.lengths)) > 1
    source = ma.sources.Counterfactual()
    together = ma.PatchGame(
        model, task.prompts, ma.heads(layers=range(21, 26)), task.target, source=source
    )
    exact = ma.attribute(together, "leave_one_out")
    slopes = ma.attribute(together, "attribution_patching")
    assert np.abs(exact.values).max() > 0.5
    for i in (0, 7, 31):
        one = task[i : i + 1]
        alone = ma.PatchGame(
            model, one.prompts, ma.heads(layers=range(21, 26)), one.target, source=source
        )
        assert ma.attribute(alone, "leave_one_out").values[0] == pytest.approx(
            exact.values[i], abs=1e-4
        )
        assert ma.attribute(alone, "attribution_patching").values[0] == pytest.approx(
            slopes.values[i], abs=1e-4
        )


def test_a_zero_baseline_is_settled_by_the_adaptive_rule_or_said_not_to_be(
    model: Any, prompts: ma.Prompts
) -> None:
    game = ma.PatchGame(model, prompts, ma.tokens(), TARGET, source=ma.sources.Zero())
    fixed = ma.attribute(game, ma.methods.IntegratedGradients(steps=16))
    assert abs(fixed.gap[0]) > 0.2  # singular at zero: DESIGN's figures are 0.3 to 2.6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ma.ConvergenceWarning)
        adaptive = ma.attribute(game, ma.methods.IntegratedGradients(tolerance=0.01, max_nodes=150))
    notes = adaptive.provenance["notes"]
    # It doesn't settle here, and says so and where: thirty norms in a row blow the slope up at 0.
    assert not notes["settled"]
    assert "of the error lies in t = 0 to" in notes["reason"]
    # Where the path is smooth it settles.
    other = ma.PatchGame(model, prompts, ma.tokens(), TARGET, source=ma.sources.Counterfactual())
    settled = ma.attribute(other, ma.methods.IntegratedGradients(tolerance=1e-3))
    assert settled.provenance["notes"]["settled"]
    assert abs(settled.gap[0]) < 1e-3 * abs(settled.full[0] - settled.empty[0])


def test_causal_tracing_has_standard_errors(model: Any, prompts: ma.Prompts) -> None:
    source = ma.sources.Noise(draws=3, at=" Mary")
    game = ma.PatchGame(
        model, prompts, ma.residual("post", layers=[3, 20]), TARGET, source=source, base="source"
    )
    scores = ma.attribute(game, "include_one")
    assert scores.draw_stderr is not None
    assert (scores.draw_stderr >= 0).all()
    assert scores.draw_stderr.max() > 0
    assert np.abs(scores.values).max() > 0.1


def test_bfloat16_agrees_with_float32(prompts: ma.Prompts) -> None:
    half = ma.load_model("smollm2-135m", device="cpu", dtype="bfloat16")
    game = ma.PatchGame(
        half, prompts, ma.heads(layers=range(20, 26)), TARGET, source=ma.sources.Counterfactual()
    )
    scores = ma.attribute(game, "leave_one_out")
    assert scores.provenance["dtype"] == "bfloat16"
    assert scores.full[0] == pytest.approx(6.12, abs=0.3)
    assert scores.top(1)["player"][0] == "L23H3"
