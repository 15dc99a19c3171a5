"""Attention to a player's positions masked, wholly or in part, for all that comes after them.

A key of a player with mask value m is worth m times its weight: ``log m`` is added to its score
before the softmax, so that at 0 it isn't there and the other weights sum to 1. Positions stay what
they are. Within a player all see each other; nobody else sees the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechattr.errors import NotSupportedError
from mechattr.transformer.model import Edit, Face
from mechattr.transformer.ragged import Places

_LEAST = 1e-30
"""What 0 is taken for where a gradient is asked for: a weight nobody notices, of finite slope."""


@dataclass(frozen=True, eq=False)
class Gates:
    """Mask values of rows of one prompt.

    values: [row, player], in float32 at least.
    owner: [position] the player of each, -1 for none.
    first: queries at positions before it see everybody.
    """

    values: Float[Tensor, "row player"]
    owner: Int[Tensor, " position"]
    first: int = 0

    def take(self, rows: Tensor) -> Gates:
        return Gates(self.values[rows], self.owner, self.first)

    def edits(self, layers: int, places: Places, first: int, last: int) -> list[list[Edit]]:
        """Of each layer, the edits that close the gates for queries at cells [first, last)."""
        weight = self._weights(places.positions(first, last), places.positions(0, last))
        if not weight.requires_grad and bool((weight == 1).all()):
            return [[] for _ in range(layers)]
        bias = weight.log()[:, None]  # the same for all heads

        def close(scores: Tensor) -> Tensor:
            return scores + bias.to(scores.dtype)

        return [[(f"blocks.{layer}.attn.hook_attn_scores", close)] for layer in range(layers)]

    def _weights(
        self, queries: Int[Tensor, "row query"], keys: Int[Tensor, "row key"]
    ) -> Float[Tensor, "row query key"]:
        # what lies before a row's beginning or after its end is nobody's, and seen by nobody
        owner = torch.cat([self.owner, self.owner.new_full((1,), -1)])
        end = len(self.owner)
        of_query, of_key = (
            owner[torch.where((at < 0) | (at > end), end, at)] for at in (queries, keys)
        )
        values = self.values
        if values.requires_grad:
            values = values + _LEAST * (values == 0)
        # the last column is nobody's: always there
        values = torch.cat([values, values.new_ones(len(values), 1)], dim=1)
        share = values.gather(1, torch.where(of_key < 0, values.shape[1] - 1, of_key))
        seen = of_query[:, :, None] == of_key[:, None]
        if self.first:
            seen = seen | (queries < self.first)[:, :, None]
        return torch.where(seen, share.new_ones(()), share[:, None])


def check_gates(face: Face, tokens: Int[Tensor, " position"]) -> None:
    """Once a model: what is masked at the scores gets no weight. Some attention never looks at its
    hook points, and then masking would do nothing."""
    if face.known("gates"):
        return
    row = tokens[None, :8].to(face.device)
    gates = Gates(torch.zeros(1, 1, device=face.device), torch.full_like(row[0], -1))
    gates.owner[0] = 0
    seen: list[bool] = []

    def look(pattern: Tensor) -> None:
        seen.append(not bool(pattern[..., 1:, 0].any()))

    with torch.no_grad(), face.quiet():
        face.prepare(row)
        resid, _ = face.embed(row)
        for layer, edits in enumerate(
            gates.edits(face.n_layers, Places.of([0], face.device), 0, row.shape[1])
        ):
            edits.append((f"blocks.{layer}.attn.hook_pattern", look))
            resid, _ = face.run_block(layer, resid, 0, None, edits)
    if len(seen) < face.n_layers or not all(seen):
        raise NotSupportedError(
            f"{face.name}'s attention doesn't heed what is masked at hook_attn_scores (its kernel "
            f'may not be the eager one), so that operator "mask" can\'t be had. Load it with '
            f'attn_implementation="eager", or use operator="remove".'
        )
    face.learn("gates")
