"""Inside a used passage: which of its tokens carry a statement, and which heads bring them there.

game = drilling.token_game(model, pieces, answer, statements, "p3")       # for ma.attribute
drilling.highlights(model, pieces, answer, statements)                    # of all passages
drilling.heads_that_carry(model, pieces, answer, (0, 31), "p3", off_topic)
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from mechattr.attribution import Attribution
from mechattr.errors import InputError, UnknownNameError
from mechattr.methods import IntegratedGradients, attribute
from mechattr.methods.base import Method
from mechattr.methods.readings import Retrieval
from mechattr.transformer import sources, targets
from mechattr.transformer.graph import heads
from mechattr.transformer.grounds import Base
from mechattr.transformer.memory import OutOfMemoryError
from mechattr.transformer.patching import PatchGame
from mechattr.transformer.pieces import Layout, Piece, tokenised
from mechattr.transformer.prompts import Prompts, tokenizer_of
from mechattr.transformer.removal import Operator, RemovalGame
from mechattr.transformer.statements import Answer

Pieces = Iterable[str | Piece]
Spans = Sequence[tuple[int, int]]
UNITS = ("token", "word", "sentence")
HIGHLIGHTS = IntegratedGradients(steps=8)
"""What :func:`highlights` takes by default. The gradient on the clean run alone is flat where an
answer is sure, and often misses what is copied."""


# --- which tokens ---------------------------------------------------------------------------------


def token_game(
    model: Any,
    pieces: Pieces,
    answer: str | Sequence[int],
    statements: Iterable[Sequence[int]] | None,
    pid: str | Sequence[str] | None,
    operator: Operator = "remove",
    *,
    unit: str = "token",
    prepend_bos: bool | None = None,
    between_players: bool = True,
) -> RemovalGame:
    """A game whose players are what one passage is made of; the other passages are always there.

    pieces, answer, statements, prepend_bos, between_players: as :class:`RemovalGame` takes them.
    pid: the passage's piece by its name; several, or None for every piece.
    operator: ``"remove"`` or ``"mask"``; only the latter has gradients.
    unit: ``"token"`` (those that make one character together are one player), ``"word"`` or
        ``"sentence"``.

    The prompt's tokens are the very ones it has with the passage whole. Players are named
    ``"p3:7: built"``; their coordinates ``passage``, ``start`` and ``end`` are the piece and
    characters of its text, ``text`` what stands there, with the blanks before it.
    """
    if unit not in UNITS:
        raise UnknownNameError("unit", unit, UNITS)
    tokenizer = tokenizer_of(model)
    whole = Layout.of(tokenizer, pieces, int(model.cfg.d_vocab), prepend_bos)
    names = [pid] if isinstance(pid, str) else whole.players.names if pid is None else pid
    cuts = {name: _cut(tokenizer, whole, name, unit) for name in names}
    return RemovalGame(
        model,
        whole.within(cuts),
        answer,
        statements=statements,
        operator=operator,
        prepend_bos=prepend_bos,
        between_players=between_players,
    )


def _cut(tokenizer: Any, layout: Layout, name: str, unit: str) -> list[tuple[Piece, int]]:
    """What a piece is cut into, each with its number of tokens."""
    text = layout.text(name)
    ends = _rising([end for _, end in layout.spans(tokenizer, name)], len(text))
    number = _numbers(text, ends, unit)
    first = [k for k, one in enumerate(number) if not k or one != number[k - 1]]
    cut = []
    for i, (start, stop) in enumerate(zip(first, [*first[1:], len(ends)], strict=True)):
        span = (ends[start - 1] if start else 0, ends[stop - 1])
        own = text[slice(*span)]
        coords = {"passage": name, "start": span[0], "end": span[1], "text": own}
        cut.append((Piece(f"{name}:{i}:{own}", own, None, unit, coords), stop - start))
    return cut


def _rising(ends: Sequence[int], length: int) -> list[int]:
    """Where each token ends, so that what lies between is the whole text."""
    found = np.maximum.accumulate(np.minimum(ends, length)).tolist()
    found[-1] = length
    return found


def _numbers(text: str, ends: Sequence[int], unit: str) -> list[int]:
    """[token] which unit each token is of: the one with its first letter that isn't blank. Blanks
    go with what comes after them."""
    if unit == "token":
        return np.unique(ends, return_inverse=True)[1].tolist()
    stops = _word_ends(text) if unit == "word" else _sentence_ends(text)
    numbers: list[int] = []
    for start, end in zip([0, *ends], ends, strict=False):
        own = text[start:end]
        letter = start + len(own) - len(own.lstrip()) if own.strip() else start
        # A token without a character of its own is of the one before.
        at = bisect_right(stops, letter) if end > start or not numbers else numbers[-1]
        numbers.append(min(at, max(0, len(stops) - 1)))
    return numbers


def _word_ends(text: str) -> list[int]:
    return [word.end() for word in re.finditer(r"\S+", text)]


def _sentence_ends(text: str) -> list[int]:
    from mechattr.audit.sentences import sentences

    return [end for _, end in sentences(text)]


def highlights(
    model: Any,
    pieces: Pieces,
    answer: str | Sequence[int],
    statements: Iterable[Sequence[int]] | None = None,
    *,
    method: str | Method = HIGHLIGHTS,
    operator: Operator = "mask",
    unit: str = "token",
    texts: Mapping[str, str] | None = None,
    prepend_bos: bool | None = None,
    between_players: bool | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """What each statement takes from each passage, token by token, all passages at once.

    method: any of ``ma.METHODS`` that the operator allows. The default's scores sum to about what
        the statement has of all passages, ``v(N) − v(∅)``.
    between_players: None: False with operator "mask", which says where the question and the answer
        look, and runs only what comes after the passages again and again.
    texts: of pieces that hold more than a passage's own text (its number and title), that text:
        characters are counted in it, and tokens outside it are left out.
    settings: of :func:`mechattr.attribute` (``seed``, ``budget``).

    Returns a list of ``{"pid", "statement" (its number), "method", "tokens": [{"text", "start",
    "end", "score"}]}``, statement by statement; scores in nats, positive where a token speaks for
    the statement. Where memory doesn't suffice, tokens are empty and ``"note"`` says so.
    """
    if between_players is None:
        between_players = operator != "mask"
    game = token_game(
        model,
        pieces,
        answer,
        statements,
        None,
        operator,
        unit=unit,
        prepend_bos=prepend_bos,
        between_players=between_players,
    )
    name = method if isinstance(method, str) else method.name
    note, values = None, None
    try:
        values = attribute(game, method, progress=False, **settings).values
    except OutOfMemoryError as error:
        note = f"No highlights: {error}"
    coords = game.players.coords
    found = []
    for statement in range(game.n_prompts):
        for pid in dict.fromkeys(coords["passage"]):
            entry: dict[str, Any] = {"pid": pid, "statement": statement, "method": name}
            entry["tokens"] = []
            if values is None:
                entry["note"] = note
            else:
                which = game.players.where(passage=pid)
                offset = _offset(game, which, pid, texts)
                entry["tokens"] = _scored(game, which, values[statement], offset)
            found.append(entry)
    return found


def _offset(
    game: RemovalGame, which: np.ndarray, pid: str, texts: Mapping[str, str] | None
) -> tuple[int, int]:
    """Where, in its piece, a passage's own text starts and ends."""
    whole = "".join(game.players.coords["text"][i] for i in which)
    if texts is None or pid not in texts:
        return 0, len(whole)
    start = whole.rfind(texts[pid])
    if start < 0:
        raise InputError(
            f"The text of passage {pid!r} isn't in its piece: {texts[pid][:40]!r} in "
            f"{whole[:60]!r}."
        )
    return start, start + len(texts[pid])


def _scored(
    game: RemovalGame, which: np.ndarray, scores: np.ndarray, own: tuple[int, int]
) -> list[dict[str, Any]]:
    """Players as characters of the passage's own text."""
    first, last = own
    tokens = []
    for i in which:
        start, end, text = (game.players.coords[key][i] for key in ("start", "end", "text"))
        cut = max(start, first), min(end, last)
        if cut[0] >= cut[1]:
            continue
        shown = text[cut[0] - start : cut[1] - start]
        place = {"text": shown, "start": cut[0] - first, "end": cut[1] - first}
        tokens.append({**place, "score": float(scores[i])})
    return tokens


# --- which heads ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Swap:
    """A passage and an off-topic text of as many tokens in its place, before the same statement.

    prompts: clean, with the answer, and counterfactual.
    passage: the positions of the passage.
    statement: the positions of the statement's tokens.
    """

    prompts: Prompts
    passage: list[int]
    statement: list[int]

    @classmethod
    def of(
        cls,
        model: Any,
        pieces: Pieces,
        answer: str | Sequence[int],
        statement: Sequence[int] | None,
        pid: str,
        replacement: str | Sequence[int],
        *,
        prepend_bos: bool | None = None,
    ) -> Swap:
        """Statement and replacement as :func:`heads_that_carry` takes them."""
        tokenizer, d_vocab = tokenizer_of(model), int(model.cfg.d_vocab)
        layout = Layout.of(tokenizer, pieces, d_vocab, prepend_bos)
        spans = None if statement is None else [statement]
        found = Answer.of(tokenizer, answer, spans, d_vocab)
        passage = np.flatnonzero(layout.owner == layout.players.index(pid))
        other = layout.full.copy()
        other[passage] = _fitted(tokenizer, replacement, len(passage), pid)
        rows = [np.concatenate([prompt, found.tokens]) for prompt in (layout.full, other)]
        prompts = Prompts.from_tokens(model, rows[:1], rows[1:])
        own = len(layout.full) + np.flatnonzero(found.members[0])
        return cls(prompts, passage.tolist(), own.tolist())

    def needle(self) -> list[int]:
        """The passage's tokens that the statement copies: runs that both have, the longest first,
        in the same order."""
        tokens = self.prompts.tokens[0].tolist()
        first, second = ([tokens[p] for p in part] for part in (self.passage, self.statement))
        blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
        found = [self.passage[b.a + k] for b in blocks for k in range(b.size)]
        if not found:
            raise InputError(
                "The passage and the statement have no token in common, so that nothing is copied "
                "that a retrieval head could be seen to look at."
            )
        return found


def _fitted(tokenizer: Any, other: str | Sequence[int], n_tokens: int, pid: str) -> np.ndarray:
    """The first tokens of a replacement."""
    text = isinstance(other, str)
    ids = tokenised(tokenizer, str(other), inside=True)[0] if text else np.array(other, np.int64)
    if len(ids) < n_tokens:
        raise InputError(
            f"Passage {pid!r} has {n_tokens} tokens, what is to stand in its place {len(ids)}; "
            f"patching needs as many. Give a longer text: its first {n_tokens} tokens are taken."
        )
    return ids[:n_tokens]


def heads_game(model: Any, swap: Swap, *, base: Base = "clean") -> PatchGame:
    """Heads as players: present as with the passage, absent as with the other text in its place.

    The target is ``log p`` of the statement. On it, masks without some heads say what is lost with
    them; the empty one, what is lost with the passage.
    """
    target = targets.sequence_log_prob(swap.statement)
    source = sources.Counterfactual()
    return PatchGame(model, swap.prompts, heads(), target, source=source, base=base)


def heads_that_carry(
    model: Any,
    pieces: Pieces,
    answer: str | Sequence[int],
    statement: Sequence[int] | None,
    pid: str,
    replacement: str | Sequence[int],
    *,
    method: str | Method = "attribution_patching",
    base: Base | None = None,
    prepend_bos: bool | None = None,
) -> Attribution:
    """Which heads bring a passage into a statement.

    statement: (start, end) characters of the answer; None for all of it.
    pid: the passage's piece by its name.
    replacement: an off-topic text, or token ids: as many of its first tokens as the passage has
        stand in the passage's place in the counterfactual prompt. The answer is teacher-forced in
        both.
    method: any of ``ma.METHODS``; or ``"retrieval"``, how much of what the statement copies from
        the passage is copied with each head looking at it most (a reading: the replacement has no
        part in it).
    base: the run that is edited; None: the counterfactual's for ``include_one`` (activation
        patching), else the clean one.

    Cost: two forward passes, and the method's own. Scores in nats; of retrieval, a share.
    """
    swap = Swap.of(model, pieces, answer, statement, pid, replacement, prepend_bos=prepend_bos)
    name = method if isinstance(method, str) else method.name
    if base is None:
        base = "source" if name == "include_one" else "clean"
    if name == "retrieval":
        own = method if isinstance(method, Retrieval) else Retrieval()
        needle = own.needle if len(own.needle) else swap.needle()
        copied = swap.statement if own.answer is None else own.answer
        method = dataclasses.replace(own, needle=needle, answer=copied)
    return attribute(heads_game(model, swap, base=base), method, progress=False)
