"""Checks of what a record holds, used at every door: each says what came and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechattr.errors import InputError

KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    dict: "an object",
    list: "a list",
}


def short(value: Any, most: int = 60) -> str:
    """A value in an error message: one line, cut to a readable length."""
    # No need to write out a megabyte to show its beginning.
    shown = repr(value[: most + 1] if isinstance(value, str) else value)
    return shown if len(shown) <= most else shown[: most - 4] + " ..."


def kind(value: Any) -> str:
    """``"a list"``: what a value is, in the words of the file that it came from."""
    return KINDS.get(type(value), type(value).__name__)


def absent(value: Any) -> bool:
    """Whether a value stands for none: null, or the NaN that tables put there."""
    return value is None or (isinstance(value, float) and value != value)


def plain(value: Any) -> Any:
    """An array of any library, and its numbers, as Python's own lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value


def text_of(value: Any, what: str) -> str:
    """A text with something in it.

    Raises InputError for anything else, and for text that no encoding can write (half a surrogate
    pair).
    """
    if not isinstance(value, str):
        raise InputError(f"{what} is {kind(value)} ({short(value)}); expected a text.")
    if not value.strip():
        raise InputError(f"{what} is empty; expected a text.")
    return check_writable(value, what)


def check_writable(value: str, what: str) -> str:
    """The text itself, if it is whole Unicode."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has half a surrogate pair (\\u{ord(value[error.start]):04x}) at character "
            f"{error.start}: it isn't Unicode text. Was it cut in the middle of a letter?"
        ) from None
    return value


def name_of(value: Any, what: str) -> str:
    """An id: a text, or a whole number, which becomes its text."""
    value = plain(value)
    if isinstance(value, float) and value.is_integer():  # tables with gaps hold their integers so
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise InputError(f"{what} is {kind(value)} ({short(value)}); expected a text or a number.")
    return text_of(value, what)


def rows(value: Any, what: str, expected: str) -> list[Any]:
    """A list of entries, as a list or in columns ({"sid": [...], "pids": [...]}), which is how
    tables hold lists of objects."""
    value = plain(value)
    if isinstance(value, Mapping):
        columns = {key: plain(column) for key, column in value.items() if not absent(column)}
        lengths = {len(column) for column in columns.values() if isinstance(column, list)}
        if len(lengths) == 1 and all(isinstance(column, list) for column in columns.values()):
            return [
                dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise InputError(f"{what} is {kind(value)} ({short(value)}); expected {expected}.")
    return list(value)
