"""Errors that say what came, what was expected, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechattrError(Exception):
    """Base of every error that this library raises on purpose.

    The command line prints these without a traceback; anything else is a bug.
    """


class InputError(MechattrError, ValueError):
    """The caller gave something that can't be used; the message says how to mend it."""


class UnknownNameError(InputError, KeyError):
    """A name that doesn't exist, with the near ones that do."""

    def __init__(self, what: str, name: object, known: Iterable[str]):
        known = [str(k) for k in known]
        near = difflib.get_close_matches(str(name), known, n=5, cutoff=0.5)
        if near:
            hint = f"Did you mean {', '.join(near)}?"
        else:
            shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            hint = f"Known: {shown}."
        super().__init__(f"Unknown {what} {name!r}. {hint}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class NotSupportedError(MechattrError, NotImplementedError):
    """This combination has no meaning or isn't possible; the message says what is."""


class NotFiniteError(MechattrError, ArithmeticError):
    """A model or a target returned NaN or infinity."""


class ConvergenceWarning(UserWarning):
    """A numerical rule stopped before its tolerance; the message says why and where."""
