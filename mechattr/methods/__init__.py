"""Methods: what turns a game into scores. They see nothing but ``Game``.

``METHODS`` names them as the field does; to add one, write the class and its line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mechattr.methods.base import Estimate, Method, Run, attribute
from mechattr.methods.gradient import Gradient, IntegratedGradients, Saliency
from mechattr.methods.perturbation import IncludeOne, LeaveOneOut
from mechattr.methods.shapley import ExactShapley, Shapley


@dataclass(frozen=True)
class Entry:
    """A method under a name, and what a listing says of it."""

    method: Method
    summary: str

    @property
    def formula(self) -> str:
        return self.method.formula

    @property
    def cost(self) -> str:
        """Masks evaluated for n players, v(N) and v(∅) included."""
        return self.method.cost


METHODS: Mapping[str, Entry] = MappingProxyType(
    {
        "leave_one_out": Entry(LeaveOneOut(), "lost when one player is removed: ablation"),
        "include_one": Entry(IncludeOne(), "restored by one player alone: activation patching"),
        "shapley": Entry(Shapley(), "mean marginal contribution over sampled orders of arrival"),
        "exact_shapley": Entry(ExactShapley(), "the same over all subsets, for at most 16 players"),
        "attribution_patching": Entry(Gradient("base"), "patching to first order"),
        "gradient_clean": Entry(Gradient("clean"), "the mask gradient on the clean run"),
        "gradient_source": Entry(Gradient("source"), "the mask gradient on the source run"),
        "clean_corrupted": Entry(Gradient("mean"), "mean of the gradients on both runs"),
        "saliency": Entry(Saliency(), "sensitivity to a player's raw values; no source, no sign"),
        "integrated_gradients": Entry(IntegratedGradients(), "the gradient from source to clean"),
    }
)
"""Every method by its name in the field, with its default settings."""

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "activation_patching": "include_one on a game with base='source'",
        "causal_tracing": "include_one on a game with base='source' and a noise source",
        "ablation": "leave_one_out on a game with base='clean'",
        "occlusion": "leave_one_out on a game over tokens",
        "gradient_x_input": "gradient_clean on a game with a zero source",
    }
)
"""Names of the field that are a method on a certain game."""

__all__ = [
    "ELSEWHERE",
    "METHODS",
    "Entry",
    "Estimate",
    "ExactShapley",
    "Gradient",
    "IncludeOne",
    "IntegratedGradients",
    "LeaveOneOut",
    "Method",
    "Run",
    "Saliency",
    "Shapley",
    "attribute",
]
