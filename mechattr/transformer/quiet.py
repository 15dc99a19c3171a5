"""Keeps third-party chatter about loading away from the user."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers shows neither progress bars nor messages below an error.

    For loading what lies on the disk: a download's progress should be seen.
    """
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as hf_logging

    verbosity = hf_logging.get_verbosity()
    bars = not are_progress_bars_disabled()
    try:
        hf_logging.set_verbosity_error()
        hf_logging.disable_progress_bar()
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_transformer_lens() -> Iterator[None]:
    """Inside, TransformerLens is silent about the end of HookedTransformer and below an error."""
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer", category=DeprecationWarning)
        try:
            # TransformerLens warns on the root logger; errors still show.
            logging.root.setLevel(max(level, logging.ERROR))
            yield
        finally:
            logging.root.setLevel(level)
