"""The effects of one question's passages: every mask that the audit asks a game for, and what
follows from the values.

The game is :class:`mechattr.RemovalGame`: players are the passages (or their sentences), its prompt
axis the statements of the answer, so that one run of a mask gives the values of all statements.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from mechattr.audit.decisive import decisive, gain
from mechattr.audit.given import rows_given
from mechattr.audit.joint import minimal_groups
from mechattr.audit.plan import Plan
from mechattr.methods import attribute, designs
from mechattr.methods.designs import Design
from mechattr.methods.shapley import ExactShapley, Shapley
from mechattr.transformer.removal import RemovalGame, token_log_probs_of

Rows = Bool[np.ndarray, "mask player"]


class Known:
    """A game whose masks are evaluated once: asked again, a mask is free.

    besides: masks that the game was asked for by others, such as for Shapley values.
    """

    def __init__(self, game: RemovalGame):
        self.game = game
        self._found: dict[bytes, np.ndarray] = {}
        self.besides = 0

    @property
    def n_forwards(self) -> int:
        """Different masks so far, and what was spent besides: forward passes, had each been run by
        itself."""
        return len(self._found) + self.besides

    @property
    def masks(self) -> Rows:
        """All of them, in the order in which they were asked for."""
        rows = [np.frombuffer(key, bool) for key in self._found]
        return np.stack(rows)

    def tokens(self, masks: Rows) -> Float[np.ndarray, "mask token"]:
        """log p of each of the answer's tokens at each mask; what isn't known, in one call."""
        masks = np.atleast_2d(np.asarray(masks, bool))
        ask([(self, masks)])
        return np.stack([self._found[row.tobytes()] for row in masks])

    def unknown(self, masks: Rows) -> Rows:
        """Those that it hasn't been asked for, each once."""
        rows = {row.tobytes(): row for row in masks if row.tobytes() not in self._found}
        return np.stack(list(rows.values())) if rows else np.zeros((0, self.game.n_players), bool)

    def learn(self, masks: Rows, values: Float[np.ndarray, "mask token"]) -> None:
        self._found.update((row.tobytes(), own) for row, own in zip(masks, values, strict=True))

    def statements(self, tokens: Float[np.ndarray, "mask token"]) -> np.ndarray:
        """[mask, statement] the sums over each statement's tokens."""
        return tokens @ self.game.answer.members.T.astype(float)

    def __call__(self, masks: Rows) -> Float[np.ndarray, "mask statement"]:
        return self.statements(self.tokens(masks))


def ask(wanted: Sequence[tuple[Known, Rows]]) -> None:
    """Evaluate what isn't known yet of several games of one answer, in one run."""
    of: dict[Known, list[Rows]] = {}
    for known, masks in wanted:
        of.setdefault(known, []).append(masks)
    each = [(known, known.unknown(np.concatenate(masks))) for known, masks in of.items()]
    asked = [(known, masks) for known, masks in each if len(masks)]
    if asked:
        found = token_log_probs_of([(k.game, torch.from_numpy(masks)) for k, masks in asked])
        for (known, masks), values in zip(asked, found, strict=True):
            known.learn(masks, values.numpy())


@dataclass(frozen=True, eq=False)
class Effects:
    """What one operator shows of one question, in nats; n players, S statements, T answer tokens.

    full, none: [S] log p of each statement with all passages, and with none.
    necessity: [S, n] ``v(N) − v(N∖j)``. sufficiency: [S, n] ``v({j}) − v(∅)``.
    surrogate: [S, n] a plane's slopes through random masks; ci95: [S, n, 2]; lds: [S].
    groups: of each statement, redundant sets: players that are worth more together than the sum of
        their necessities, each with what it is worth, and [T] log p of the tokens without it; see
        ``joint.py``.
    tokens_full, tokens_none: [T] log p of each answer token. tokens_without, tokens_alone: [n, T]
        the same with each player left out, and with it alone.
    masks, values: every mask that was evaluated, [mask, n], and its values, [mask, S].
    shapley, shapley_stderr: [S, n], where asked for.
    """

    operator: str
    full: np.ndarray
    none: np.ndarray
    necessity: np.ndarray
    sufficiency: np.ndarray
    surrogate: np.ndarray
    ci95: np.ndarray
    lds: np.ndarray
    groups: list[list[dict[str, Any]]]
    tokens_full: np.ndarray
    tokens_none: np.ndarray
    tokens_without: np.ndarray
    tokens_alone: np.ndarray
    masks: np.ndarray
    values: np.ndarray
    shapley: np.ndarray | None = None
    shapley_stderr: np.ndarray | None = None

    def describe(self) -> dict[str, Any]:
        """As JSON; None where a number isn't defined; a mask is a text of 0 and 1."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found["masks"] = ["".join("01"[here] for here in row) for row in self.masks.astype(int)]
        return {k: _plain(v) for k, v in found.items() if v is not None}


def designed(n_players: int, plan: Plan, rng: np.random.Generator) -> Design:
    """The surrogate's masks."""
    fit = plan.fit(n_players)
    assert fit.samples is not None
    return designs.draw(fit.design, rng, n_players, fit.samples, fit.keep, fit.ends)


def effects(
    known: Known,
    plan: Plan,
    rng: np.random.Generator,
    design: Design,
    cited: Sequence[Collection[int]],
) -> Effects:
    """Every effect of one game's players on each statement.

    design: see :func:`designed`. cited: the players that each statement cites.
    Cost: 2n + 2 masks and the surrogate's rows, equal ones once, in one call; a few more where
    passages may be redundant, and where a cited one isn't necessary; ``plan.shapley``.
    """
    game = known.game
    n = game.n_players
    masks, fit = basic(n), plan.fit(n)
    tokens = known.tokens(np.concatenate([masks, design.masks]))
    values = known.statements(tokens)
    full, none = values[0], values[1]
    necessity = (full - values[2 : 2 + n]).T
    line = fit.of(design, values[len(masks) :], game.target_lengths)
    surrogate = line.values
    groups = _redundant(known, full - none, necessity, surrogate, plan)
    support = [
        _needed(tokens[: 2 + n, own], plan) | {j for group in groups[s] for j in group["players"]}
        for s, own in enumerate(game.answer.members.astype(bool))
    ]
    # To show that a citation is unused takes more than to show that one is used: a bound of its
    # effect while what carries the statement is there.
    doubted = [mine for mine, told in zip(support, cited, strict=True) if not mine.issuperset(told)]
    if doubted:
        known.tokens(rows_given(n, doubted, rng))
    shapley, stderr = _shapley(known, plan) if plan.shapley else (None, None)
    return Effects(
        operator=game.operator,
        full=full,
        none=none,
        necessity=necessity,
        sufficiency=(values[2 + n : 2 + 2 * n] - none).T,
        surrogate=surrogate,
        ci95=np.array(line.notes["ci95"], float),
        lds=np.array(line.notes["lds"], float),
        groups=groups,
        tokens_full=tokens[0],
        tokens_none=tokens[1],
        tokens_without=tokens[2 : 2 + n],
        tokens_alone=tokens[2 + n : 2 + 2 * n],
        masks=known.masks,
        values=known(known.masks),
        shapley=shapley,
        shapley_stderr=stderr,
    )


def basic(n: int) -> Rows:
    """N, ∅, each player left out, each player alone."""
    eye = np.eye(n, dtype=bool)
    return np.concatenate([[[True] * n, [False] * n], ~eye, eye])


def _redundant(
    known: Known,
    context: Float[np.ndarray, " statement"],
    necessity: Float[np.ndarray, "statement player"],
    surrogate: Float[np.ndarray, "statement player"],
    plan: Plan,
) -> list[list[dict[str, Any]]]:
    """Each statement's redundant sets: what a set is worth together beyond what its members are
    worth one by one is hidden from leave-one-out."""
    n = known.game.n_players
    full = known(np.ones((1, n), bool))[0]
    every = []
    for s in range(len(context)):
        alone = np.maximum(necessity[s], 0)

        def worth(sets: list[frozenset[int]], s: int = s) -> np.ndarray:
            masks = np.array([[j not in out for j in range(n)] for out in sets])
            return full[s] - known(masks)[:, s]

        def hidden(sets: list[frozenset[int]], alone: np.ndarray = alone) -> np.ndarray:
            return worth(sets) - np.array([alone[sorted(out)].sum() for out in sets])

        found: list[frozenset[int]] = []
        if context[s] > plan.tau:
            ranked = map(int, np.argsort(-surrogate[s], kind="stable"))
            open_ = [j for j in ranked if necessity[s, j] < plan.carried * context[s]]
            found = minimal_groups(hidden, open_, plan.hidden_threshold(context[s]))
        every.append([_group(known, group, float(worth([group])[0])) for group in found])
    return every


def _group(known: Known, group: frozenset[int], effect: float) -> dict[str, Any]:
    gone = np.array([j not in group for j in range(known.game.n_players)])
    without = known.tokens(gone)[0].tolist()
    return {"players": sorted(group), "effect": effect, "tokens_without": without}


def _needed(tokens: Float[np.ndarray, "mask token"], plan: Plan) -> set[int]:
    """The players that count for a statement by themselves; tokens: its own, at the first of
    :func:`basic`'s masks."""
    full, none, *without = tokens
    least = plan.threshold(gain(full, none))
    each = [min((full - gone).sum(), decisive(full, none, gone)) for gone in without]
    return {j for j, counted in enumerate(each) if counted > least}


def _shapley(known: Known, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Exact where the evaluations are enough for all subsets."""
    game = known.game
    before = game.evaluations
    every = 2**game.n_players <= plan.shapley
    method = ExactShapley() if every else Shapley()
    found = attribute(game, method, budget=plan.shapley, seed=plan.seed, progress=False)
    known.besides += (game.evaluations - before) // game.n_prompts
    errors = found.draw_stderr
    return found.values, np.zeros_like(found.values) if errors is None else errors


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
