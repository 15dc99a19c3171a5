"""Log-probabilities of one answer after many prompts that share their beginnings.

What prompts share is run once, and its keys and values are kept until all that goes on from it has
been run. Only the answer's rows are unembedded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mechattr.transformer.gates import Gates
from mechattr.transformer.memory import Budget, in_pieces
from mechattr.transformer.model import Edit, Face, Past
from mechattr.transformer.ragged import Places, can_be_ragged, run_block_at
from mechattr.transformer.trie import END, ROOT, Round, Span, Terms, make_rounds

CHUNK = 1024
"""The most positions that go through a block at once: attention scores grow with this times the
length of the prompt, not with its square."""

_AGAIN: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
"""How blocks are run again: nothing in them is drawn at random."""


@dataclass(frozen=True, eq=False)
class Continuations:
    """Prompts that one answer follows.

    tokens: of each row the prompt and the answer but its last token, int64 [position].
    heads: of each row what :func:`make_rounds` compares: nothing that the answer is read at.
    gates: mask values of all rows' players, where some attention is masked.
    """

    tokens: list[np.ndarray]
    heads: list[np.ndarray]
    gates: Gates | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.tokens]

    def padded(self, rows: Sequence[int], stop: int) -> Int[np.ndarray, "row position"]:
        """Tokens up to ``stop``. Attention is causal: what pads doesn't matter."""
        out = np.zeros((len(rows), stop), np.int64)
        for i, row in enumerate(rows):
            own = self.tokens[row][:stop]
            out[i, : len(own)] = own
        return out


class Kept:
    """Keys and values of a round's kept cells, each cell once, in all layers."""

    def __init__(self, face: Face, plan: Round):
        self.face = face
        self._size = plan.kept
        self._past: list[Past] = []
        self._cells: dict[int, np.ndarray] = {ROOT: np.zeros(0, np.int64)}
        used = 0
        for span in (span for step in plan.steps for span in step if span.node != END):
            own = np.arange(used, used := used + span.window)
            self._cells[span.node] = np.concatenate([self._cells[span.on], own])

    def before(self, spans: Sequence[Span], cells: int) -> list[Past | None]:
        """Of each layer what spans go on from, padded on the left to so many cells."""
        if not cells:
            return [None] * self.face.n_layers
        index = np.zeros((len(spans), cells), np.int64)
        for i, span in enumerate(spans):
            index[i, cells - span.start :] = self._cells[span.on]
        at = torch.as_tensor(index, device=self.face.device)
        axis = self.face.past_axis
        return [(keys[at].movedim(1, axis), vals[at].movedim(1, axis)) for keys, vals in self._past]

    def put(self, spans: Sequence[Span], layers: Sequence[Past | None]) -> None:
        """Keep what spans' windows have made, which come after what they went on from."""
        before = max(span.start for span in spans)
        row = np.repeat(np.arange(len(spans)), [span.window for span in spans])
        cell = np.concatenate([before + np.arange(span.window) for span in spans])
        own = np.concatenate([self._cells[span.node][span.start :] for span in spans])
        index, *at = (torch.as_tensor(i, device=self.face.device) for i in (own, row, cell))
        for i, layer in enumerate(layers):
            assert layer is not None
            made = [part.movedim(self.face.past_axis, 1)[at[0], at[1]] for part in layer]
            if i == len(self._past):
                size = (self._size, *made[0].shape[1:])
                self._past.append((made[0].new_zeros(size), made[1].new_zeros(size)))
            for mine, part in zip(self._past[i], made, strict=True):
                mine[index] = part


@dataclass(eq=False)
class Scorer:
    """Runs rows of prompts with one answer.

    answer: int64 [token].
    ticks: called with the number of rows just finished.
    chunk: positions in one block call at most.
    tokens_run: (row, position) pairs that went through all blocks so far, padding included.
    """

    face: Face
    budget: Budget
    answer: np.ndarray
    ticks: Callable[[int], None] = lambda rows: None
    chunk: int = CHUNK
    tokens_run: int = 0

    @torch.no_grad()
    def run(self, rows: Continuations) -> Float[Tensor, "row token"]:
        """Each row's log-probabilities of the answer's tokens, in float32 at least."""
        wide = torch.promote_types(self.face.dtype, torch.float32)
        out = torch.empty(len(rows.tokens), len(self.answer), dtype=wide, device=self.face.device)
        self._prepare(rows)
        for plan in make_rounds(rows.heads, rows.lengths, self._terms(rows)):
            kept = Kept(self.face, plan)
            for step in plan.steps:
                self._step(rows, step, kept, out)
        return out

    @torch.no_grad()
    def beginning(self, rows: Continuations, stop: int) -> list[Past | None]:
        """Keys and values of the first row's positions before ``stop``, none of them masked."""
        self._prepare(rows)
        nothing: list[Past | None] = [None] * self.face.n_layers
        if not stop:
            return nothing
        one = Continuations(rows.tokens[:1], rows.heads[:1])
        return self._climb(one, [Span(0, 0, stop, ROOT, node=ROOT)], nothing)[1]

    def graph(
        self, rows: Continuations, start: int, before: Sequence[Past | None]
    ) -> Float[Tensor, "row token"]:
        """The same from ``start`` on, with the graph kept, for gradients by what is in the gates;
        nothing else is shared.

        before: what :meth:`beginning` says of all rows before ``start``.

        Of prompts so long that a graph would go over the budget, it keeps only what each block was
        given, and the backward pass runs the block again.
        """
        spans = [Span(row, start, length, ROOT) for row, length in enumerate(rows.lengths)]
        layers = [past and _repeated(past, len(spans)) for past in before]
        long = max(rows.lengths) - start > self.budget.graph_tokens
        resid, _ = self._climb(rows, spans, layers, again=long)
        return self._read(resid, spans)

    def _prepare(self, rows: Continuations) -> None:
        longest = max(rows.tokens, key=len)
        self.face.prepare(torch.as_tensor(longest, device=self.face.device)[None])

    def _terms(self, rows: Continuations) -> Terms:
        shape = self.face.shape
        # a base run keeps some five streams a layer; of these the two that groups of heads share
        most = self.budget.ground_tokens * 5 * shape.n_heads // (2 * shape.n_key_value_heads)
        some = torch.as_tensor(max(rows.tokens, key=len))
        ragged = can_be_ragged(self.face, some)
        return Terms(self.budget.overhead, most, ragged, self.face.n_ctx)

    def _step(self, rows: Continuations, step: Sequence[Span], kept: Kept, out: Tensor) -> None:
        def piece(part: slice) -> int:
            spans = step[part]
            before = kept.before(spans, max(span.start for span in spans))
            resid, layers = self._climb(rows, spans, before)
            if spans[0].node != END:
                kept.put(spans, layers)
                return 0
            which = torch.as_tensor([span.row for span in spans], device=out.device)
            out[which] = self._read(resid, spans)
            return len(spans)

        for finished in in_pieces(piece, len(step), self._at_once(step), self.face.device):
            if finished:
                self.ticks(finished)

    def _at_once(self, step: Sequence[Span]) -> int:
        """As many spans as may go through a block together: their tokens, their copies of what is
        kept, and the keys and values of all layers where they go up chunk by chunk."""
        window = max(span.window for span in step)
        cells = window + max(span.start for span in step)
        chunk = min(window, self.chunk)
        most = min(self.budget.call_tokens // chunk, 8 * self.budget.call_tokens // cells)
        if window > self.chunk:
            most = min(most, self.budget.ground_tokens // cells)
        return max(1, most)

    def _climb(
        self,
        rows: Continuations,
        spans: Sequence[Span],
        layers: list[Past | None],
        *,
        again: bool = False,
    ) -> tuple[Float[Tensor, "row position d_model"], list[Past | None]]:
        """Spans up the layers: their last residual streams, and keys and values of all their cells
        where they are to be kept.

        again: whether blocks are run again in the backward pass rather than kept.
        """
        face, which = self.face, [span.row for span in spans]
        places = Places.of([span.start for span in spans], face.device)
        window = max(span.window for span in spans)
        resid = self._embedded(rows, spans, places, window)
        gates = rows.gates
        if gates is not None:
            gates = gates.take(torch.as_tensor(which, device=face.device))
        run = partial(checkpoint, run_block_at, **_AGAIN) if again else run_block_at
        outs = []
        for start in range(0, window, self.chunk):
            stop = min(start + self.chunk, window)
            first, last = places.before + start, places.before + stop
            keep = spans[0].node != END or stop < window
            edits: list[list[Edit]] = [[] for _ in layers]
            if gates is not None:
                edits = gates.edits(face.n_layers, places, first, last)
            out = resid[:, start:stop]
            for i in range(face.n_layers):
                out, made = run(face, i, out, places, first, layers[i], edits[i], keep=keep)
                layers[i] = made  # of no use above
            outs.append(out)
        self.tokens_run += len(spans) * window
        return torch.cat(outs, dim=1), layers

    def _embedded(
        self, rows: Continuations, spans: Sequence[Span], places: Places, window: int
    ) -> Float[Tensor, "row position d_model"]:
        """Spans' embeddings. Positions count from a prompt's beginning, and so it is embedded."""
        tokens = rows.padded([span.row for span in spans], max(span.stop for span in spans))
        whole, _ = self.face.embed(torch.as_tensor(tokens, device=self.face.device))
        at = places.positions(places.before, places.before + window).clamp(max=tokens.shape[1] - 1)
        return whole.gather(1, at[..., None].expand(-1, -1, whole.shape[-1]))

    def _read(self, resid: Tensor, spans: Sequence[Span]) -> Float[Tensor, "row token"]:
        """Log-probabilities from the last residual streams at the spans' last positions."""
        n_tokens = len(self.answer)
        ends = np.array([span.window for span in spans])
        at = ends[:, None] - n_tokens + np.arange(n_tokens)
        index = torch.as_tensor(at, device=resid.device)[..., None]
        read = resid.gather(1, index.expand(-1, -1, resid.shape[-1])).flatten(0, 1)
        wanted = torch.as_tensor(self.answer, device=resid.device).repeat(len(spans))

        def piece(part: slice) -> Tensor:
            logits = self.face.logits(read[part][:, None], None)[:, 0]
            own = logits.gather(1, wanted[part][:, None])[:, 0]
            return own - logits.logsumexp(-1)

        size = self.budget.read_rows
        found = list(in_pieces(piece, len(read), size, self.face.device))
        return torch.cat(found).unflatten(0, (len(spans), n_tokens))


def _repeated(past: Past, rows: int) -> Past:
    """One row's keys and values for several."""
    keys, values = (part.expand(rows, *part.shape[1:]) for part in past)
    return keys, values
