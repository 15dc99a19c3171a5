"""What an audit was: enough to run it again, and to tell two runs apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.transformer.checks import tokenizer_hash
from mechattr.transformer.loading import revision_of
from mechattr.transformer.model import face_of
from mechattr.transformer.prompts import tokenizer_of

VERSION = 1
"""Of what is measured. A change of it makes earlier measurements another run's."""

_JUDGING = ("strong", "alpha", "control", "explained", "memory")
"""Settings that the verdicts alone depend on: measurements are kept when they change."""

_PACKAGES = ("mechattr", "torch", "transformer-lens", "transformers", "numpy")


def depends_on(model: Any, plan: Plan, off_topic: OffTopic, swaps: int) -> dict[str, Any]:
    """What the measurements depend on besides the records."""
    face = face_of(model)
    tokenizer = tokenizer_of(model)
    template = getattr(tokenizer, "chat_template", None)
    settings = {k: v for k, v in plan.describe().items() if k not in _JUDGING}
    return {
        "audit": VERSION,
        "model": face.name,
        "model_class": type(model).__name__,
        "model_revision": revision_of(model),
        "dtype": str(face.dtype).removeprefix("torch."),
        "tokenizer": f"{type(tokenizer).__name__} {tokenizer_hash(tokenizer)}",
        "chat_template": None if template is None else _digest(str(template)),
        "off_topic": _digest(repr(off_topic.texts)),
        "swaps": swaps,
        "settings": settings,
    }


def versions() -> dict[str, str]:
    """Of what the numbers were computed with."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
