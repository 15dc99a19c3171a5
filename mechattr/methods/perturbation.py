"""Perturbation one player at a time: exact, one evaluation a player."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mechattr.game import Game
from mechattr.methods import masks
from mechattr.methods.base import ENDS, Estimate, Method, Run


@dataclass(frozen=True)
class LeaveOneOut(Method):
    """``φ_i = v(N) − v(N∖i)``: what is lost when only player ``i`` is removed.

    Occlusion for tokens; noising or ablation for components. Two players that can stand in for
    each other both score 0: use Shapley where that matters.
    Cost: n evaluations. Zeiler & Fergus, 2014; Wang et al., 2022 (ablation of heads).
    """

    formula: ClassVar[str] = "v(N) − v(N∖i)"
    cost: ClassVar[str] = "n + 2"

    def least(self, n_players: int) -> int:
        return n_players + ENDS

    def estimate(self, game: Game, run: Run) -> Estimate:
        n = game.n_players
        values = np.empty((game.n_prompts, n))
        run.progress(0, n)
        for players, rows in masks.one_out(n):
            values[:, players.start : players.stop] = (run.full - game(rows)).T.numpy()
            run.progress(players.stop, n)
        return Estimate(values)


@dataclass(frozen=True)
class IncludeOne(Method):
    """``φ_i = v({i}) − v(∅)``: what player ``i`` restores alone.

    On a game with base "source" this is activation patching (denoising), with Gaussian noise as
    the source causal tracing. A player that needs another one to act scores 0.
    Cost: n evaluations. Vig et al., 2020; Meng et al., 2022.
    """

    formula: ClassVar[str] = "v({i}) − v(∅)"
    cost: ClassVar[str] = "n + 2"

    def least(self, n_players: int) -> int:
        return n_players + ENDS

    def estimate(self, game: Game, run: Run) -> Estimate:
        n = game.n_players
        values = np.empty((game.n_prompts, n))
        run.progress(0, n)
        for players, rows in masks.one_in(n):
            values[:, players.start : players.stop] = (game(rows) - run.empty).T.numpy()
            run.progress(players.stop, n)
        return Estimate(values)
