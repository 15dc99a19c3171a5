"""What a statement owes to one passage (or one set of passages) alone, seen token by token.

A log probability of a whole statement is a sum in which the help of many passages looks like that
of one: each passage of the same kind teaches a little of a statement's form, and one of two that
say the same still does something that the other doesn't. Token by token they differ: what tells a
fact is what makes its tokens likely, and without it these are lost.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

HALF = 0.5
"""Of what the context does for a token: losing so much of it with one passage, it depends on it."""

Tokens = Float[np.ndarray, " token"]


def gain(full: Tokens, none: Tokens) -> float:
    """``Σ max(0, c_t)``, nats, over a statement's tokens: what the context does for those that it
    makes likelier; ``c_t`` is log p with all passages less that with none."""
    return float(np.maximum(full - none, 0).sum())


def decisive(full: Tokens, none: Tokens, without: Tokens) -> float:
    """``Σ N_t``, nats, over the tokens that the context makes likelier, ``c_t > 0``, and of which
    at least half depends on the passage, ``N_t ≥ c_t / 2``; ``N_t`` is log p with all passages
    less that without it.

    More than ``c_t`` where the other passages mislead. 0 for each of two copies; of the two
    together it is what they are worth.
    """
    context, own = full - none, full - without
    return float(own[(context > 0) & (own >= HALF * context)].sum())
