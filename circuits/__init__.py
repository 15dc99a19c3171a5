"""Circuits: tasks with known answers, and (on top of mechattr's games) their discovery.

task = circuits.tasks.ioi(model, size=64, seed=0)      # .prompts, .target, .dataset
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuits import tasks

__all__ = ["tasks"]


def __getattr__(name: str) -> Any:
    # Loaded at first use: torch need not be imported to ask for help on the command line.
    if name in __all__:
        return importlib.import_module(f"circuits.{name}")
    raise AttributeError(f"module 'circuits' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
