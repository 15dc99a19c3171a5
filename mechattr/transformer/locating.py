"""From the name of a model to what it can be loaded from, or an error that says what is near it."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechattr.errors import InputError
from mechattr.transformer.zoo import ZOO, local_path

__all__ = ["Location", "is_official", "locate"]


@dataclass(frozen=True)
class Location:
    """Where a model is.

    Attributes:
        label: what to call it in results.
        source: a directory, or a name on the Hugging Face hub.
        revision: what pins its weights, or "unknown".
    """

    label: str
    source: str
    revision: str

    @property
    def is_local(self) -> bool:
        """Whether loading it touches no network."""
        return Path(self.source).is_dir()


def locate(name: str) -> Location:
    """Where the model `name` is: in the zoo, in a directory, or on the Hugging Face hub.

    Raises:
        InputError: nowhere; with near names and the hub's reason.
        ModelFetchError: a zoo model can't be fetched.
    """
    if name.lower() in ZOO:
        model = ZOO[name.lower()]
        return Location(model.name, str(local_path(model.name)), model.revision)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name} has no config.json: it is not a Hugging Face directory.")
        return Location(name, str(path), "unknown")
    if path.is_absolute() or name.startswith((".", "~")):
        raise InputError(f"There is no directory {name}.")
    return _locate_on_hub(name)


def is_official(source: str) -> bool:
    """Whether `HookedTransformer.from_pretrained` knows this name."""
    return source in getattr(_lens_names(), "OFFICIAL_MODEL_NAMES", [])


def _locate_on_hub(name: str) -> Location:
    # One quick question: transformers itself asks again and again, for minutes, without network.
    import huggingface_hub as hub

    official = _official_name(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", official):
        raise _nowhere(name, "that can't be a name on the Hugging Face hub")
    try:
        url = hub.hf_hub_url(official, "config.json")
        found = hub.get_hf_file_metadata(url, token=hub.get_token(), timeout=5)
    except Exception as reason:
        # Whatever went wrong (each release of the hub's client has its own errors): what was
        # downloaded before will do, and otherwise the reason is passed on.
        cached = hub.try_to_load_from_cache(official, "config.json")
        if isinstance(cached, str):
            snapshot = Path(cached).parent
            return Location(official, str(snapshot), snapshot.name)
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise _nowhere(name, f"the Hugging Face hub says: {first_line}") from reason
    return Location(official, official, found.commit_hash or "unknown")


def _official_name(name: str) -> str:
    for official, aliases in getattr(_lens_names(), "MODEL_ALIASES", {}).items():
        if name in aliases:
            return official
    return name


def _lens_names() -> Any:
    import transformer_lens

    return getattr(transformer_lens, "supported_models", None)


def _nowhere(name: str, reason: str) -> InputError:
    known = [*ZOO, *getattr(_lens_names(), "OFFICIAL_MODEL_NAMES", [])]
    near = [k for k in difflib.get_close_matches(name, known, n=5, cutoff=0.6) if k != name]
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return InputError(
        f"Can't load {name!r}: it is not in the zoo ({', '.join(ZOO)}), not a directory here, "
        f"and {reason}.{hint} Zoo models and local directories need no hub."
    )
