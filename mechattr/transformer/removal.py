"""RemovalGame: pieces of a prompt's text × the statements of an answer.

game = ma.RemovalGame(
    model,
    ["Notes:", ma.Piece("a", "\\n..."), ma.Piece("b", "\\n..."), "\\nQuestion: ...\\nAnswer:"],
    answer=" The cat sat on the mat.",
)
ma.attribute(game, "shapley")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechattr.errors import InputError, NotSupportedError, UnknownNameError
from mechattr.game import Game
from mechattr.transformer.checks import tokenizer_hash
from mechattr.transformer.gates import Gates, check_gates
from mechattr.transformer.memory import in_pieces, plan
from mechattr.transformer.model import face_of
from mechattr.transformer.pieces import Layout, Piece
from mechattr.transformer.prompts import tokenizer_of
from mechattr.transformer.scoring import CHUNK, Continuations, Scorer
from mechattr.transformer.statements import Answer

Operator = Literal["remove", "mask", "replace"]
OPERATORS = ("remove", "mask", "replace")


class RemovalGame(Game):
    """A game on a prompt's text: an absent player isn't in the prompt.

    ``v(m)[s] = Σ_{t in statement s} log p(t | the prompt with the players of m, the answer before
    t)``, in nats: the answer is teacher-forced, and its statements are this game's prompt axis, so
    that one run of a mask gives the values of all.

    model: a HookedTransformer or TransformerBridge.
    pieces: in order, texts that are always there and :class:`Piece` for each player; or the layout
        of another game, such as one whose players were cut up (``Layout.within``).
    answer: its text (with the space or line break that it begins with), or its token ids.
    statements: (start, end) characters of the answer, each; None: the whole answer.
    operator: what absence is.
        ``"remove"``: cut out; what comes after moves up.
        ``"mask"``: attention to it masked for all that comes after; positions stay. Defined between
        present and absent too (a key at mask value m has m times its weight), so that this
        operator has gradients. The last text must be always there: the answer is predicted from it.
        ``"replace"``: the piece's ``replacement`` in its place.
    between_players: of operator "mask", whether the players, and texts between them, don't see an
        absent player either. False: only what comes after the last player doesn't, which in a
        prompt is the question and the answer. That asks where something is read rather than where
        it was written, and costs little: but for its end, the prompt is run once.
    prepend_bos: None is the tokenizer's own default; True and False force it. BOS is no player. A
        layout has it in it, or not.

    Every piece, and the answer, is tokenised by itself: see ``mechattr.transformer.pieces``, and
    :meth:`as_whole` for whether the tokenizer would do the same with the whole.

    Cost of a call: what prompts of the call have in common at their beginnings is run once, equal
    prompts once (``tokens_run``, ``rows_run`` count). Give masks together rather than one by one.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: Any,
        pieces: Iterable[str | Piece] | Layout,
        answer: str | Sequence[int],
        *,
        statements: Iterable[Sequence[int]] | None = None,
        operator: Operator = "remove",
        prepend_bos: bool | None = None,
        between_players: bool = True,
    ):
        if operator not in OPERATORS:
            raise UnknownNameError("operator", operator, OPERATORS)
        if operator != "mask" and not between_players:
            raise InputError(f'between_players is of operator "mask"; this one is {operator!r}.')
        self.face = face_of(model)
        self.operator: Operator = operator
        self.prepend_bos = prepend_bos
        tokenizer = tokenizer_of(model)
        if not isinstance(pieces, Layout):
            pieces = Layout.of(tokenizer, pieces, self.face.d_vocab, prepend_bos)
        self.layout = pieces
        self.players = self.layout.players
        self.answer = Answer.of(tokenizer, answer, statements, self.face.d_vocab)
        self._check_layout()
        self.between_players = between_players
        # Positions before it see every player.
        self._first = 0 if between_players else int(np.flatnonzero(self.layout.owner >= 0)[-1]) + 1
        whole = np.ones(self.n_players, dtype=bool)
        self._check_length(len(self.layout.full), whole)
        self._longest = len(self.layout.full) + len(self.answer.tokens) - 1
        if operator == "replace":
            self._longest = self._longest_replaced()
        tokens = torch.as_tensor(self.layout.full)
        self.face.check(tokens)
        if operator == "mask":
            check_gates(self.face, tokens)
        budget = plan(self.face, self._longest, least=min(self._longest, CHUNK))
        self.scorer = Scorer(self.face, budget, self.answer.tokens)
        self.rows_run = 0

    # --- what it says of itself -------------------------------------------------------------------

    @property
    def prompt_labels(self) -> tuple[str, ...]:
        return self.answer.statement_texts

    @property
    def target_lengths(self) -> Int[np.ndarray, " prompt"]:
        """How many tokens each statement's value sums over."""
        return self.answer.members.sum(1)

    @property
    def tokens_run(self) -> int:
        """(prompt, position) pairs that went through the model: what was shared counts once."""
        return self.scorer.tokens_run

    def describe(self) -> dict[str, Any]:
        from mechattr.transformer.loading import revision_of

        tokenizer = tokenizer_of(self.face.model)
        return {
            "game": "RemovalGame",
            "target": "sum of log p over a statement's tokens, the answer teacher-forced",
            "operator": self.operator,
            **({"between_players": self.between_players} if self.operator == "mask" else {}),
            "model": self.face.name,
            "model_class": type(self.face.model).__name__,
            "model_revision": revision_of(self.face.model),
            "dtype": str(self.face.dtype).removeprefix("torch."),
            "device": str(self.face.device),
            "tokenizer": f"{type(tokenizer).__name__} {tokenizer_hash(tokenizer)}",
            "players": repr(self.players),
            "pieces": self.layout.digest(),
            "begins_with_bos": bool(len(self.layout.bos)),
            "tokenised": "piece by piece",
            "same_as_whole": bool(self.as_whole(np.ones((1, self.n_players)))[0]),
            "n_tokens": len(self.layout.full),
            "n_answer_tokens": len(self.answer.tokens),
            "answer": self.answer.text,
            "statements": [list(span) for span in self.answer.statements],
        }

    def as_whole(self, masks: Any) -> Bool[np.ndarray, " mask"]:
        """Whether the tokenizer, given each mask's prompt and answer as one text, makes the same
        tokens of it as this game, which tokenises them piece by piece. No model is run."""
        masks = self._hard(self.check_masks(masks))
        tokenizer = tokenizer_of(self.face.model)
        present = np.ones_like(masks) if self.operator == "mask" else masks
        answer = (self.answer.text, self.answer.tokens)
        replace = self.operator == "replace"
        return np.array(
            [self.layout.as_whole(tokenizer, row, answer, replace=replace) for row in present]
        )

    def prompt_tokens(self, mask: Any) -> Int[Tensor, " position"]:
        """The tokens of one mask's prompt, without the answer. With operator "mask" they are those
        of all."""
        (present,) = self._hard(self.check_masks(mask))
        return torch.as_tensor(self._prompt(present))

    def _not_finite_hint(self) -> str:
        half = self.face.dtype in (torch.float16, torch.bfloat16)
        return "The model is in half precision: try float32." if half else "Check the model."

    # --- what it computes -------------------------------------------------------------------------

    def token_log_probs(self, masks: Any) -> Float[Tensor, "mask token"]:
        """``log p`` of each of the answer's tokens at each mask, float64 on the CPU.

        Their texts are ``game.answer.labels``, their characters ``game.answer.spans``.
        Cost and errors: as a call's; counted as one evaluation a mask.
        """
        masks = self.check_masks(masks)
        self.evaluations += len(masks)
        values = self._token_values(masks)
        self._checked(self._by_statement(values), "value")
        return values

    def _values(self, masks: Tensor) -> Tensor:
        return self._by_statement(self._token_values(masks))

    def _by_statement(self, values: Float[Tensor, "mask token"]) -> Float[Tensor, "mask statement"]:
        return values @ torch.as_tensor(self.answer.members).to(values).T

    def _token_values(self, masks: Tensor) -> Float[Tensor, "mask token"]:
        if not len(masks):
            return torch.zeros(0, len(self.answer.tokens), dtype=torch.float64)
        rows, row_of = self._rows(masks)
        return self._run(rows, len(masks))[row_of]

    @torch.inference_mode(False)
    def _run(self, rows: Continuations, n_masks: int) -> Float[Tensor, "row token"]:
        done = 0

        def tick(finished: int) -> None:
            nonlocal done
            done += finished
            self.rows_run += finished
            self.report(n_masks * done / len(rows.tokens))

        self.scorer.ticks = tick
        with self.face.quiet():
            return self.scorer.run(rows).to("cpu", torch.float64)

    def _rows(self, masks: Tensor) -> tuple[Continuations, np.ndarray]:
        """What to run, equal prompts once; and which of it each mask is."""
        if self.operator == "mask":
            return self._gated(masks)
        return self._continued(self._prompts(masks))

    def _prompts(self, masks: Tensor) -> list[Int[np.ndarray, " position"]]:
        """Each mask's, none too long."""
        prompts = []
        for present in self._hard(masks):
            prompts.append(self._prompt(present))
            self._check_length(len(prompts[-1]), present)
        return prompts

    def _continued(self, prompts: Sequence[np.ndarray]) -> tuple[Continuations, np.ndarray]:
        """Prompts followed by the answer, equal ones once; and which of the rows each is."""
        first = {prompt.tobytes(): prompt for prompt in prompts}
        place = {key: i for i, key in enumerate(first)}
        tokens = [np.concatenate([prompt, self.answer.tokens[:-1]]) for prompt in first.values()]
        # The answer's first token is read at the prompt's last position: shared up to there.
        rows = Continuations(tokens, [prompt[:-1] for prompt in first.values()])
        return rows, np.array([place[prompt.tobytes()] for prompt in prompts])

    def _gated(self, masks: Tensor) -> tuple[Continuations, np.ndarray]:
        """Rows of operator "mask": the same tokens; what may differ is who sees them."""
        wide = torch.promote_types(self.face.dtype, torch.float32)
        every = masks.detach().cpu().to(wide).numpy()
        levels = _levels(every)
        # As bytes: column by column is slower, and takes more memory.
        texts = levels.view(np.dtype((np.void, levels.shape[1] * levels.itemsize)))[:, 0]
        _, first, row_of = np.unique(texts, return_index=True, return_inverse=True)
        rows = every[first]
        full = self.layout.full
        tokens = np.concatenate([full, self.answer.tokens[:-1]])
        owner = np.concatenate([self.layout.owner, np.full(len(tokens) - len(full), -1)])
        # Two rows begin alike up to where a player ends that they don't both see alike.
        cells = np.zeros((len(rows), len(tokens)), np.uint32)
        ends = np.flatnonzero((owner[:-1] >= 0) & (owner[1:] != owner[:-1]))
        cells[:, ends + 1] = 1 + levels[first[:, None], owner[ends]]
        if self._first:
            cells[:, : self._first] = 0
            cells[:, self._first] = 1 + np.arange(len(rows))
        values, owners = (torch.as_tensor(part, device=self.face.device) for part in (rows, owner))
        gates = Gates(values, owners, self._first)
        heads = list(cells[:, : len(full) - 1])
        return Continuations([tokens] * len(rows), heads, gates), row_of.reshape(-1)

    def _gradient(self, masks: Tensor) -> Tensor:
        return self._value_and_gradient(masks)[1]

    @torch.inference_mode(False)
    def _value_and_gradient(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Each mask's own run, a backward pass a statement."""
        if self.operator != "mask":
            raise NotSupportedError(
                f"A piece of text is there or not: operator {self.operator!r} has no gradient. Use "
                f'leave_one_out, shapley or another perturbation method, or operator="mask", '
                f"whose attention weights can be in between."
            )
        rows, row_of = self._gated(masks)
        assert rows.gates is not None
        gates, first = rows.gates, self._first
        if self.face.dtype == torch.float16 and not bool(gates.values.all()):
            raise NotSupportedError(
                "In float16 the gradient at mask value 0 comes out as 0: a weight small enough for "
                "nobody to notice is none at all. Load the model in bfloat16 or float32."
            )
        most = self.scorer.budget.graph_tokens // (self._longest - first)

        def piece(part: slice) -> tuple[Tensor, Tensor]:
            leaf = gates.values[part].clone().requires_grad_(True)
            own = Gates(leaf, gates.owner, first)
            some = Continuations(rows.tokens[part], rows.heads[part], own)
            with torch.enable_grad():
                values = self._by_statement(self.scorer.graph(some, first, before))
                slopes = [
                    torch.autograd.grad(values[:, s].sum(), leaf, retain_graph=True)[0]
                    for s in range(self.n_prompts)
                ]
            self.rows_run += len(values)
            return values.detach(), torch.stack(slopes, dim=1)

        with self.face.quiet():
            before = self.scorer.beginning(rows, first)
            pieces = list(in_pieces(piece, len(rows.tokens), max(1, most), self.face.device))
        values, slopes = (torch.cat(part) for part in zip(*pieces, strict=True))
        index = torch.as_tensor(row_of, device=values.device)
        return values[index], slopes[index]

    def _hard(self, masks: Tensor) -> Bool[np.ndarray, "mask player"]:
        """Masks of players that are there or not."""
        here = masks.detach().to("cpu", torch.float64).numpy()
        between = here[(here != 0) & (here != 1)]
        if len(between):
            raise InputError(
                f"A mask holds {between[0]:g}, but a piece of text is there (1) or not (0): "
                f'operator {self.operator!r} has nothing in between. Only operator="mask" has.'
            )
        return here.astype(bool)

    def _prompt(self, present: np.ndarray) -> Int[np.ndarray, " position"]:
        if self.operator == "mask":
            return self.layout.full
        return self.layout.prompt(present, replace=self.operator == "replace")

    # --- checks -----------------------------------------------------------------------------------

    def _check_layout(self) -> None:
        owner = self.layout.owner
        if self.operator == "mask" and owner[-1] >= 0:
            raise InputError(
                f'With operator "mask" the prompt must end in text that is always there, since the '
                f"answer's first token is predicted from it; it ends in piece "
                f"{self.players.names[owner[-1]]!r}. Add a text, say a line break, after it."
            )
        if self.operator == "remove" and (owner >= 0).all():
            raise InputError(
                "With every piece absent nothing is left for the answer to follow. Add a text that "
                "is always there, or prepend_bos=True."
            )
        if self.operator == "replace":
            for name, other in zip(self.players.names, self.layout.replacements, strict=True):
                if other is None or not len(other[1]):
                    raise InputError(
                        f"Piece {name!r} has no replacement, or one without tokens; operator "
                        f'"replace" needs one for each: Piece(name, text, replacement=...).'
                    )

    def _longest_replaced(self) -> int:
        """Tokens of the longest prompt and answer that some mask makes."""
        spare = 0
        for n_tokens, other in zip(
            self.players.coords["n_tokens"], self.layout.replacements, strict=True
        ):
            assert other is not None
            spare += max(0, len(other[1]) - int(n_tokens))
        return min(self._longest + spare, self.face.n_ctx)

    def _check_length(self, n_prompt: int, present: np.ndarray) -> None:
        n_tokens = n_prompt + len(self.answer.tokens) - 1  # its last token is predicted, not read
        if n_tokens <= self.face.n_ctx:
            return
        longest = int(np.argmax(self.players.coords["n_tokens"]))
        absent = [n for n, here in zip(self.players.names, present, strict=True) if not here]
        which = f"without {', '.join(absent[:4])}" if absent else "with every piece"
        raise InputError(
            f"The prompt {which} has {n_prompt} tokens, {n_tokens} with the answer; the model's "
            f"context is {self.face.n_ctx}. The longest piece, {self.players.names[longest]!r}, "
            f"has {self.players.coords['n_tokens'][longest]}. Shorten it or leave pieces out."
        )


def _levels(values: Float[np.ndarray, "row player"]) -> Int[np.ndarray, "row player"]:
    """Whole numbers in the place of values, in the same order; in few bytes, and such that rows
    are in the order of their bytes."""
    if bool(((values == 0) | (values == 1)).all()):
        return values.astype(np.uint8, order="C")
    return np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(">u4")


def token_log_probs_of(
    asked: Sequence[tuple[RemovalGame, Any]],
) -> list[Float[Tensor, "mask token"]]:
    """Each game's ``token_log_probs`` of its masks, in one run: what prompts of different games
    have in common at their beginnings is run once too, and equal prompts.

    asked: games of one answer on one model, such as a prompt with other texts in some places; with
        the masks of each. Of operator "mask", each game is run by itself.
    Counted as one evaluation a mask; ``tokens_run`` and ``rows_run`` are the first game's.
    Raises InputError where the answers or the models differ.
    """
    games = [game for game, _ in asked]
    if any(game.operator == "mask" for game in games) or len(games) < 2:
        return [game.token_log_probs(masks) for game, masks in asked]
    runner = games[0]
    for game in games[1:]:
        if game.face.model is not runner.face.model:
            raise InputError("The games are of different models; ask each by itself.")
        if not np.array_equal(game.answer.tokens, runner.answer.tokens):
            raise InputError(
                f"The games have different answers, {runner.answer.text!r} and "
                f"{game.answer.text!r}; ask each by itself."
            )
    masks = [game.check_masks(some) for game, some in asked]
    prompts = [game._prompts(some) for game, some in zip(games, masks, strict=True)]
    rows, row_of = runner._continued([prompt for own in prompts for prompt in own])
    values = runner._run(rows, sum(map(len, masks)))[row_of]
    found = list(values.split([len(own) for own in prompts]))
    for game, own in zip(games, found, strict=True):
        game.evaluations += len(own)
        game._checked(game._by_statement(own), "value")
    return found
