"""One player at a time, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mechattr.game import TableGame
from mechattr.methods import attribute, masks
from tests.games import table_game

# v(∅), v({0}), v({1}), v({0, 1})
AND = TableGame([0.0, 0.0, 0.0, 1.0])
OR = TableGame([0.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("game", "name", "expected"),
    [
        (AND, "leave_one_out", [1, 1]),
        (AND, "include_one", [0, 0]),
        (OR, "leave_one_out", [0, 0]),
        (OR, "include_one", [1, 1]),
        (AND, "exact_shapley", [0.5, 0.5]),
        (OR, "exact_shapley", [0.5, 0.5]),
    ],
)
def test_gates(game, name, expected):
    np.testing.assert_allclose(attribute(game, name, progress=False).values[0], expected)


def test_by_the_definition_and_whatever_the_chunks(monkeypatch):
    game = table_game(6, 3)
    table = game.table.numpy()
    full, singles = 2**6 - 1, 2 ** np.arange(6)
    monkeypatch.setattr(masks, "ENTRIES", 13)
    out = attribute(game, "leave_one_out", progress=False)
    np.testing.assert_allclose(out.values, table[:, [full]] - table[:, full - singles])
    into = attribute(game, "include_one", progress=False)
    np.testing.assert_allclose(into.values, table[:, singles] - table[:, [0]])
