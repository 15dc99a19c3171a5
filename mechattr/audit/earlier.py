"""Earlier statements of an answer as players: what a statement takes from what was said before it.

A statement is scored with all that comes before it in place. A fact that the first statement has
taken from a passage, the second can take from the first: so a passage may carry a statement only
through an earlier one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from mechattr.audit.asking import Known
from mechattr.audit.question import Question
from mechattr.transformer.pieces import Piece
from mechattr.transformer.removal import RemovalGame


def earlier_effects(question: Question) -> tuple[list[dict[str, Any]], list[Known]]:
    """Of each statement but the first, what the earlier ones do, in nats, all passages present.

    - context_effect_without: the context effect with no earlier statement in place: what the
      passages do by themselves;
    - statements: of each earlier one, necessity ``v(N) − v(N∖r)`` and sufficiency
      ``v(all passages, r) − v(all passages)``.

    An absent statement is cut out, whatever the audit's operator is for passages, and the blanks
    before it with it. What is the first then begins as the answer does: after a chat template
    mostly with no blank, which few models begin their turn with.
    Returns them with the games that were asked. Cost: at most 2r + 3 masks for r earlier
    statements; each statement is a game of its own, and by itself another one where it has other
    tokens then.
    """
    found, spent = [], []
    for s in range(1, len(question.answer.statements)):
        told = _Told(question, s)
        found.append(_of(question, told, s))
        spent += told.games
    return found, spent


def _of(question: Question, told: _Told, s: int) -> dict[str, Any]:
    every = frozenset(range(s))
    sets = [(every, True), (frozenset[int](), True), (frozenset[int](), False)]
    sets += [(every - {r}, True) for r in range(s)]
    sets += [(frozenset({r}), True) for r in range(s)]
    values = told(sets)
    full, alone, nothing = values[:3]
    without, only = values[3 : 3 + s], values[3 + s :]
    return {
        "sid": question.answer.statements[s].sid,
        "context_effect_without": float(alone - nothing),
        "statements": [
            {
                "sid": question.answer.statements[r].sid,
                "necessity": float(full - without[r]),
                "sufficiency": float(only[r] - alone),
            }
            for r in range(s)
        ],
    }


class _Told:
    """What a statement is worth behind some of the earlier ones.

    after: the game of the statement as it follows another one; behind the passages each earlier
        statement is a player, or two: as it follows another, and as the first.
    alone: the game without earlier ones.
    """

    def __init__(self, question: Question, s: int):
        answer, spans = question.scored()
        opening = answer[: len(answer) - len(answer.lstrip())]
        # Each with the blanks before it, and with what comes after it that is no statement's.
        starts = [0, *(len(answer[:start].rstrip()) for start, _ in spans[1 : s + 1])]
        texts = [answer[starts[r] : starts[r + 1]] for r in range(s)]
        own = answer[starts[s] : spans[s][1]]
        first = opening + own.lstrip()
        length = spans[s][1] - spans[s][0]
        self.n_passages = len(question.players)
        players: list[Piece] = []
        self._places: list[tuple[int, int]] = []  # of each: as it follows another, as the first
        for r, text in enumerate(texts):
            forms = dict.fromkeys([text, opening + text.lstrip()])
            place = self.n_passages + len(players)
            self._places.append((place, place + len(forms) - 1))
            players += [
                Piece(f"earlier statement {r}, form {i}", form, None, "statement")
                for i, form in enumerate(forms)
            ]
        self.after = _game(question, players, own, length)
        self.alone = self.after if first == own else _game(question, [], first, length)

    @property
    def games(self) -> list[Known]:
        return list(dict.fromkeys([self.after, self.alone]))

    def __call__(self, sets: Sequence[tuple[Collection[int], bool]]) -> np.ndarray:
        """[set] nats. sets: which earlier statements are there, and whether the passages are."""
        values = np.zeros(len(sets))
        asked = [self.after if earlier else self.alone for earlier, _ in sets]
        for known in self.games:
            mine = [i for i, game in enumerate(asked) if game is known]
            masks = np.stack([self._mask(known, *sets[i]) for i in mine])
            values[mine] = known(masks)[:, 0]
        return values

    def _mask(self, known: Known, earlier: Collection[int], passages: bool) -> np.ndarray:
        mask = np.zeros(known.game.n_players, bool)
        mask[: self.n_passages] = passages
        for r in earlier:
            follows, first = self._places[r]
            mask[first if r == min(earlier) else follows] = True
        return mask


def _game(question: Question, players: Sequence[Piece], text: str, length: int) -> Known:
    """A statement's game: the last ``length`` characters of a text."""
    span = (len(text) - length, len(text))
    pieces = [*question.pieces, *players]
    return Known(
        RemovalGame(
            question.model, pieces, text, statements=[span], prepend_bos=question.prepend_bos
        )
    )
