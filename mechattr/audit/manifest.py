"""What an audit was: enough to run it again, and to tell two runs apart."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.records import Record
from mechattr.transformer.checks import tokenizer_hash
from mechattr.transformer.loading import revision_of
from mechattr.transformer.model import face_of
from mechattr.transformer.prompts import tokenizer_of

VERSION = 2
"""Of what is measured. A change of it makes earlier measurements another run's."""

_JUDGING = ("strong", "alpha", "control", "memory")
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


def described(source: Any, n_records: int) -> dict[str, Any]:
    """Where the records are from: told, and nothing that the measurements depend on, so that a run
    goes on when there are more records in its file.

    source: as the run was given it. n_records: those in it, usable or not.
    Returns name, n_records, and the sha256 of a file's bytes; None of what isn't a file.
    """
    is_file = isinstance(source, (str, os.PathLike))
    return {
        "name": os.fspath(source) if is_file else _named(source),
        "sha256": _file_digest(Path(source)) if is_file else None,
        "n_records": n_records,
    }


def prompted(record: Record) -> dict[str, int]:
    """1 for what the record's prompt was made of, and where its answer is from; to be summed over
    a run."""
    return {
        "own_template": int(record.template is not None),
        "messages": int(record.messages is not None),
        "generated": int(record.stated is None),
    }


def _named(source: Any) -> str:
    """Of what isn't a file: its type, and what a ``datasets.Dataset`` says of itself."""
    found = [type(source).__name__]
    if (info := getattr(source, "info", None)) is not None:
        told = getattr(info, "dataset_name", None), getattr(source, "split", None)
        found += [str(part) for part in told if part is not None]
    return " ".join(found)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
