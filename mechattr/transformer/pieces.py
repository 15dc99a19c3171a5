"""A prompt in pieces: what is always there, and what can be absent.

Each piece is tokenised by itself, and a prompt's tokens are those of its present pieces, one after
the other. So a piece has the same tokens under every mask, prompts share their beginnings, and the
answer's tokens are always the same. The tokenizer, given the whole text, may do otherwise where two
pieces meet (" and" + "roid" is one token to it); :meth:`Layout.as_whole` says where it does. Byte
level tokenizers seldom do where a blank or a line break begins a piece rather than ends one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
import torch

from mechattr.errors import InputError
from mechattr.players import Players
from mechattr.transformer.prompts import encode, labels_of

_GUARDS = ("\n", "|", "=", "a")
"""What stands before a text that is tokenised as if inside another; the first that doesn't merge
with it is used."""


@dataclass(frozen=True)
class Piece:
    """Text that can be absent: a player.

    name: unique among the players.
    text: what is there when it is present, with whatever separates it from its neighbours.
    replacement: for operator "replace", what is there when it is absent: a text, or token ids (so
        that it can be cut to the text's own number of tokens).
    kind, coords: the player's coordinates, such as the passage that a sentence is of.
    """

    name: str
    text: str
    replacement: str | Sequence[int] | None = None
    kind: str = "passage"
    coords: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Layout:
    """A prompt's pieces as tokens.

    parts: the texts and players in order, as they were given.
    tokens: of each part, int64 arrays; none is empty.
    replacements: of each player, the text and tokens that stand in its place; None without.
    bos: the BOS token before it all that the tokenizer adds, or none.
    """

    parts: tuple[str | Piece, ...]
    tokens: tuple[np.ndarray, ...]
    replacements: tuple[tuple[str, np.ndarray] | None, ...]
    players: Players
    bos: np.ndarray

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        pieces: Iterable[str | Piece],
        d_vocab: int,
        prepend_bos: bool | None = None,
    ) -> Layout:
        """Tokenise pieces.

        prepend_bos: None is the tokenizer's own default; BOS is always there, whatever is absent.
        Raises InputError for no players, names that come twice, a piece without tokens.
        """
        parts = _joined(pieces)
        tokens = [_ids(tokenizer, _text(part), inside=i > 0) for i, part in enumerate(parts)]
        others = [
            _replacement(tokenizer, part, inside=i > 0)
            for i, part in enumerate(parts)
            if isinstance(part, Piece)
        ]
        check_vocabulary([*tokens, *(other[1] for other in others if other)], d_vocab)
        players = _players(
            [(part, len(ids)) for part, ids in zip(parts, tokens, strict=True) if not _fixed(part)]
        )
        bos = _bos_to_add(tokenizer, _text(parts[0]), prepend_bos)
        return cls(tuple(parts), tuple(tokens), tuple(others), players, bos)

    @property
    def player(self) -> list[int]:
        """Of each part the player that it is, or -1: always there."""
        numbers = iter(range(len(self.players)))
        return [-1 if _fixed(part) else next(numbers) for part in self.parts]

    @property
    def full(self) -> np.ndarray:
        """[position] the tokens with every player present."""
        return np.concatenate([self.bos, *self.tokens])

    @property
    def owner(self) -> np.ndarray:
        """[position] the player of each position of the full prompt, -1 for none."""
        lengths = [len(ids) for ids in (self.bos, *self.tokens)]
        return np.repeat([-1, *self.player], lengths)

    def spans(self, tokenizer: Any, name: str) -> tuple[tuple[int, int], ...]:
        """The characters, (start, end), of each of a player's tokens in its text. Blanks may be
        left out of them; tokens that make one character together have it each."""
        part = self._part(name)
        return tokenised(tokenizer, _text(self.parts[part]), inside=part > 0)[1]

    def text(self, name: str) -> str:
        """A player's text."""
        return _text(self.parts[self._part(name)])

    def _part(self, name: str) -> int:
        return self.player.index(self.players.index(name))

    def within(self, cuts: Mapping[str, Sequence[tuple[Piece, int]]]) -> Layout:
        """The same tokens with other players: what some of these are cut into. The rest are always
        there. New players have no replacements.

        cuts: of a player's name, in order, what it is cut into, each with its number of tokens.
        Raises InputError for cuts that don't have a player's tokens, all and once.
        """
        chosen = {self.players.index(name): cut for name, cut in cuts.items()}
        parts: list[str | Piece] = []
        tokens: list[np.ndarray] = []
        for part, ids, player in zip(self.parts, self.tokens, self.player, strict=True):
            if player not in chosen:
                parts.append(_text(part))
                tokens.append(ids)
                continue
            sizes = [n_tokens for _, n_tokens in chosen[player]]
            if min(sizes, default=0) < 1 or sum(sizes) != len(ids):
                raise InputError(
                    f"Piece {self.players.names[player]!r} has {len(ids)} tokens; it can't be cut "
                    f"into pieces of {sizes}."
                )
            parts += [piece for piece, _ in chosen[player]]
            tokens += np.split(ids, np.cumsum(sizes)[:-1])
        found = [
            (part, len(ids)) for part, ids in zip(parts, tokens, strict=True) if not _fixed(part)
        ]
        others = (None,) * len(found)
        return Layout(tuple(parts), tuple(tokens), others, _players(found), self.bos)

    def prompt(self, present: np.ndarray, *, replace: bool) -> np.ndarray:
        """[position] the tokens with some players absent: cut out, or replaced.

        present: [player] bool.
        """
        return np.concatenate([self.bos, *(ids for _, ids in self._there(present, replace))])

    def as_whole(
        self, tokenizer: Any, present: np.ndarray, answer: tuple[str, np.ndarray], *, replace: bool
    ) -> bool:
        """Whether the tokenizer makes the same tokens of such a prompt and the answer, given them
        as one text.

        present: [player] bool. answer: its text and its tokens.
        """
        there = [*self._there(present, replace), answer]
        whole = plain_ids(tokenizer, "".join(text for text, _ in there))
        return whole == np.concatenate([ids for _, ids in there]).tolist()

    def _there(self, present: np.ndarray, replace: bool) -> list[tuple[str, np.ndarray]]:
        """The texts and tokens of a prompt, part by part."""
        there = []
        for part, ids, player in zip(self.parts, self.tokens, self.player, strict=True):
            if player < 0 or present[player]:
                there.append((_text(part), ids))
            elif replace:
                other = self.replacements[player]
                assert other is not None
                there.append(other)
        return there

    def digest(self) -> str:
        """A hash of the tokens, names and replacements, for provenance."""
        h = hashlib.sha256(repr((self.player, self.players.names)).encode())
        others = [np.zeros(0) if other is None else other[1] for other in self.replacements]
        for ids in (self.bos, *self.tokens, *others):
            h.update(ids.astype("<i8").tobytes() + b"|")
        return h.hexdigest()[:16]


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text and nothing else."""
    return [token for token, _ in plain_spans(tokenizer, text)]


def plain_spans(tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int] | None]]:
    """Token ids of a text and nothing else, each with its characters, where the tokenizer tells."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    asked = {"return_offsets_mapping": True} if fast else {}
    found = tokenizer(text, add_special_tokens=False, **asked)
    spans = found["offset_mapping"] if fast else [None] * len(found["input_ids"])
    pairs = [(int(i), span) for i, span in zip(found["input_ids"], spans, strict=True)]
    bos = tokenizer.bos_token_id
    # Some tokenizers prepend BOS whatever they are told.
    added = bos is not None and pairs[:1] and pairs[0][0] == bos
    return pairs[1:] if added and not text.startswith(tokenizer.bos_token) else pairs


def inner_spans(tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int] | None]]:
    """:func:`plain_spans` of a text that comes after another. SentencePiece tokenizers, and others
    with a prefix space, would put a blank before it that isn't there."""
    if not _adds_blank(tokenizer):
        return plain_spans(tokenizer, text)
    for guard in _GUARDS:
        alone = plain_ids(tokenizer, guard)
        both = plain_spans(tokenizer, guard + text)
        if [token for token, _ in both[: len(alone)]] == alone:
            rest = both[len(alone) :]
            return [(i, span and (span[0] - len(guard), span[1] - len(guard))) for i, span in rest]
    raise InputError(
        f"The tokenizer ({type(tokenizer).__name__}) adds a blank before a text, and {text[:40]!r} "
        f"can't be tokenised without: it merges with whatever comes before. Begin it with a space "
        f"or a line break."
    )


def tokenised(
    tokenizer: Any, text: str, *, inside: bool
) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
    """A text's token ids, int64, and the characters, (start, end), of each.

    inside: as if after another text.
    """
    found = inner_spans(tokenizer, text) if inside else plain_spans(tokenizer, text)
    tokens = np.array([token for token, _ in found], dtype=np.int64)
    if all(span is not None for _, span in found):
        return tokens, tuple((a, b) for _, span in found if span for a, b in [span])
    return tokens, spans_by_length(tokenizer, tokens)


def spans_by_length(tokenizer: Any, tokens: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Each token's characters, from how long its text is."""
    ends = np.cumsum([len(label) for label in labels_of(tokenizer, torch.as_tensor(tokens))])
    return tuple(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))


def _adds_blank(tokenizer: Any) -> bool:
    first = tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, "a"))[:1]
    return bool(first) and str(first[0]).startswith(("▁", "Ġ"))


def _ids(tokenizer: Any, text: str, *, inside: bool) -> np.ndarray:
    return tokenised(tokenizer, text, inside=inside)[0]


def _joined(pieces: Iterable[str | Piece]) -> list[str | Piece]:
    """The parts in order, texts that follow each other as one, empty texts left out."""
    if isinstance(pieces, (str, Piece)) or not isinstance(pieces, Iterable):
        raise InputError(
            f"pieces is {type(pieces).__name__}; expected a list of texts that are always there "
            f"and of Piece(name, text), in order."
        )
    parts: list[str | Piece] = []
    for part in pieces:
        if not isinstance(part, (str, Piece)) or not isinstance(_text(part), str):
            raise InputError(
                f"A piece is {part!r}; expected a text that is always there, or Piece(name, text) "
                f"for a player."
            )
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        elif part != "":
            parts.append(part)
    if not any(isinstance(part, Piece) for part in parts):
        raise InputError(
            "No players: pieces has only texts that are always there. Give what may be absent as "
            "Piece(name, text)."
        )
    return parts


def _fixed(part: str | Piece) -> bool:
    return isinstance(part, str)


def _text(part: str | Piece) -> str:
    return part if isinstance(part, str) else part.text


def _bos_to_add(tokenizer: Any, text: str, prepend_bos: bool | None) -> np.ndarray:
    """The BOS tokens that come before the first text; one that is written in it isn't among
    them."""
    bos = tokenizer.bos_token_id
    if bos is None and prepend_bos is not True:
        return np.zeros(0, np.int64)
    asked = _leading(encode(tokenizer, text, prepend_bos).tolist(), bos)
    return np.full(asked - _leading(plain_ids(tokenizer, text), bos), bos, dtype=np.int64)


def _leading(ids: Sequence[int], token: int) -> int:
    return next((i for i, found in enumerate(ids) if found != token), len(ids))


def _replacement(tokenizer: Any, piece: Piece, *, inside: bool) -> tuple[str, np.ndarray] | None:
    other = piece.replacement
    if other is None:
        return None
    if isinstance(other, str):
        return other, _ids(tokenizer, other, inside=inside)
    ids = token_array(other, f"The replacement of piece {piece.name!r}")
    return str(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)), ids


def token_array(ids: Any, what: str) -> np.ndarray:
    """Token ids that a caller gave."""
    listed = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(listed, Sequence) or not all(_is_id(token) for token in listed):
        raise InputError(f"{what} must be a text or token ids; got {ids!r}.")
    return np.array(listed, dtype=np.int64)


def _is_id(token: Any) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool) and int(token) >= 0


def check_vocabulary(tokens: Sequence[np.ndarray], d_vocab: int) -> None:
    largest = max((int(ids.max()) for ids in tokens if len(ids)), default=0)
    if largest >= d_vocab:
        raise InputError(
            f"There is a token id {largest}; the model's vocabulary is {d_vocab}. Was the "
            f"tokenizer extended without the model?"
        )


def _players(found: Sequence[tuple[Any, int]]) -> Players:
    """The axis, of pieces and their numbers of tokens. A name that comes twice, ``Players`` says.

    Its coordinates: kind, index, n_tokens, and whatever the pieces have of their own.
    """
    for piece, n_tokens in found:
        if not n_tokens:
            raise InputError(
                f"Piece {piece.name!r} has no tokens (its text is {piece.text!r}), so that nothing "
                f"can be absent. Leave it out."
            )
        if taken := {"kind", "index", "n_tokens"} & set(piece.coords):
            raise InputError(
                f"Piece {piece.name!r} can't have a coordinate {min(taken)!r} of its own."
            )
    own = dict.fromkeys(key for piece, _ in found for key in piece.coords)
    coords = {key: tuple(piece.coords.get(key) for piece, _ in found) for key in own}
    coords["kind"] = tuple(piece.kind for piece, _ in found)
    coords["index"] = tuple(range(len(found)))
    coords["n_tokens"] = tuple(n_tokens for _, n_tokens in found)
    dims = ("index",) if len(set(coords["kind"])) == 1 else ()
    return Players(tuple(piece.name for piece, _ in found), coords, dims)
