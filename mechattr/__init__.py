"""mechattr: attribute a transformer's behaviour to its tokens, its components, or its data.

Everything that is attributed is a *player* of a *game* ``v(masks)``; see ``mechattr.game``.

    import mechattr as ma

    model = ma.load_model("smollm2-135m")
    prompts = ma.Prompts.from_pairs(model, clean=[...], counterfactual=[...])
    game = ma.PatchGame(model, prompts, ma.heads(), ma.targets.logit_diff(" Mary", " John"),
                        source=ma.sources.Counterfactual())
    ma.attribute(game, "attribution_patching").plot()

Names are imported when first used, so that ``import mechattr`` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    "mechattr.attribution": ("Attribution",),
    "mechattr.comparing": ("Comparison", "compare"),
    "mechattr.errors": (
        "ConvergenceWarning",
        "InputError",
        "MechattrError",
        "NotFiniteError",
        "NotSupportedError",
        "UnknownNameError",
    ),
    "mechattr.game": ("FunctionGame", "Game", "TableGame"),
    "mechattr.methods": ("METHODS", "attribute"),
    "mechattr.players": ("Players",),
    "mechattr.transformer.backward": ("backward_rules",),
    "mechattr.transformer.edges": ("edges", "paths"),
    "mechattr.transformer.graph": (
        "attention",
        "heads",
        "hook",
        "keys",
        "mlps",
        "neurons",
        "queries",
        "residual",
        "tokens",
        "values",
    ),
    "mechattr.transformer.loading": ("load_model",),
    "mechattr.transformer.patching": ("PatchGame",),
    "mechattr.transformer.pieces": ("Piece",),
    "mechattr.transformer.prompts": ("Prompts",),
    "mechattr.transformer.removal": ("RemovalGame",),
    "mechattr.transformer.rules": ("RULES", "Rules"),
}
_MODULES = {
    "audit": "mechattr.audit",
    "display": "mechattr.display",
    "faithfulness": "mechattr.faithfulness",
    "methods": "mechattr.methods",
    "readings": "mechattr.readings",
    "sources": "mechattr.transformer.sources",
    "targets": "mechattr.transformer.targets",
}
_NAMES = {name: module for module, names in _WHERE.items() for name in names}

if TYPE_CHECKING:
    from mechattr import audit, display, faithfulness, methods, readings
    from mechattr.attribution import Attribution
    from mechattr.comparing import Comparison, compare
    from mechattr.errors import (
        ConvergenceWarning,
        InputError,
        MechattrError,
        NotFiniteError,
        NotSupportedError,
        UnknownNameError,
    )
    from mechattr.game import FunctionGame, Game, TableGame
    from mechattr.methods import METHODS, attribute
    from mechattr.players import Players
    from mechattr.transformer import sources, targets
    from mechattr.transformer.backward import backward_rules
    from mechattr.transformer.edges import edges, paths
    from mechattr.transformer.graph import (
        attention,
        heads,
        hook,
        keys,
        mlps,
        neurons,
        queries,
        residual,
        tokens,
        values,
    )
    from mechattr.transformer.loading import load_model
    from mechattr.transformer.patching import PatchGame
    from mechattr.transformer.pieces import Piece
    from mechattr.transformer.prompts import Prompts
    from mechattr.transformer.removal import RemovalGame
    from mechattr.transformer.rules import RULES, Rules

__all__ = [
    "METHODS",
    "RULES",
    "Attribution",
    "Comparison",
    "ConvergenceWarning",
    "FunctionGame",
    "Game",
    "InputError",
    "MechattrError",
    "NotFiniteError",
    "NotSupportedError",
    "PatchGame",
    "Piece",
    "Players",
    "Prompts",
    "RemovalGame",
    "Rules",
    "TableGame",
    "UnknownNameError",
    "attention",
    "attribute",
    "audit",
    "backward_rules",
    "compare",
    "display",
    "edges",
    "faithfulness",
    "heads",
    "hook",
    "keys",
    "load_model",
    "methods",
    "mlps",
    "neurons",
    "paths",
    "queries",
    "readings",
    "residual",
    "sources",
    "targets",
    "tokens",
    "values",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    if name == "__version__":
        from importlib.metadata import version

        return version("mechattr")
    raise AttributeError(f"module 'mechattr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
