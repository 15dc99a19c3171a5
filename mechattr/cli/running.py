"""What the commands that attribute something do: check, load, run with a clock, print, save,
report."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.text import Text

from mechattr.errors import InputError


class Output:
    """Where results go. As a context it writes the report at its end, also of an interrupted run:
    what was finished is kept.

    html: where the report goes, or None.
    """

    def __init__(
        self, html: Path | None = None, title: str = "Attribution report", introduction: str = ""
    ):
        self.console = Console(highlight=False)
        self.errors = Console(stderr=True, highlight=False)
        self.html = html
        self.title = title
        self.introduction = introduction
        self.items: list[tuple[Any, ...]] = []
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self.items:
            done = len(self.items)
            self.say(f"Stopped early; {done} finished result{'s' if done > 1 else ''} kept.")
        if self.html is not None and self.items:
            self.report(self.html)

    def say(self, text: str) -> None:
        """A line on standard error: news, not results."""
        self.errors.print(Text(text, style="dim"), soft_wrap=True)

    def print(self, text: str, style: str = "") -> None:
        """A line of result."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def attribute(self, game: Any, method: Any, **how: Any) -> Any:
        """``mechattr.attribute`` under a clock."""
        import mechattr as ma

        return self.timed(lambda: ma.attribute(game, method, **how))

    def timed(self, work: Callable[[], Any]) -> Any:
        """A result, under the clock that :meth:`show` tells."""
        start = time.perf_counter()
        scores = work()
        self.seconds = time.perf_counter() - start
        return scores

    def show(self, scores: Any, title: str, *, top: int, notes: str = "", curves: Any = ()) -> None:
        """Print a result and keep it for the report."""
        from mechattr.display import terminal

        self.items.append((title, scores, notes, tuple(curves)))
        terminal.show(scores, console=self.console, top=top, title=title)
        spent = scores.provenance.get("evaluations")
        masks = "" if spent is None else f", {spent:,} evaluations"
        self.print(f"{self.seconds:.1f} s{masks}", style="dim")
        self.print("")

    def save(self, scores: Any, path: Path) -> None:
        """Save scores, and say where."""
        scores.save(path)
        self.say(f"Saved {path}")

    def report(self, path: Path) -> None:
        """Write everything shown so far as one HTML file."""
        from mechattr.display import report

        written = report(self.items, path, title=self.title, introduction=self.introduction)
        self.say(f"Report: {written}")


def writable(path: Path | None, suffix: str) -> Path | None:
    """Checked before the work, so that hours of it aren't lost to a typing mistake."""
    if path is None:
        return None
    if path.suffix != suffix:
        raise InputError(f"Got the file name {path.name!r}; expected one ending in {suffix}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Can't write to {path.parent}: {error}") from None
    return path


def labelled(path: Path, label: str | None) -> Path:
    """``scores.safetensors`` of several runs is ``scores-heads-shapley.safetensors``."""
    if label is None:
        return path
    return path.with_name(f"{path.stem}-{re.sub(r'[^A-Za-z0-9_.]+', '-', label)}{path.suffix}")


def folder(path: Path) -> Path:
    """A folder for several files, made before the work."""
    if path.suffix in (".safetensors", ".json", ".html", ".csv"):
        raise InputError(f"Got the file name {path.name!r}; expected a folder for several files.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Can't make the folder {path}: {error}") from None
    return path


def load(output: Output, name: str, **how: Any) -> Any:
    """``mechattr.load_model``, saying what takes so long."""
    output.say(f"Loading {name} ...")
    # The import of torch and transformers takes most of the time: it is after the word.
    import mechattr as ma

    return ma.load_model(name, **how)
