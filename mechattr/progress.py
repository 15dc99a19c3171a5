"""A bar over masks, with rate and time left, shown once the work has taken a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY = 1.0
"""Seconds of work before anything is shown."""

INTERVAL = 0.1
"""Seconds between two drawings of the bar."""


class Progress:
    """One draw's part of the bar.

    ``at(done, total)`` is the method's word on finished masks; ``within(masks)`` the game's, on
    those of the call under way.
    """

    def __init__(self, show: Callable[[float, int], None]):
        self._show = show
        self._done = 0
        self._total = 0

    def at(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._show(float(done), total)

    def within(self, masks: float) -> None:
        self._show(self._done + masks, self._total)


class ProgressBar:
    """The bar of a whole piece of work, such as an attribution; draws come one after the other."""

    def __init__(self, bar: Any, n_draws: int):
        self._bar = bar
        self._n_draws = n_draws

    def of_draw(self, draw: int) -> Progress:
        def show(done: float, total: int) -> None:
            if self._bar is None:
                return
            self._bar.total = total * self._n_draws or None
            # Never backwards or past its end: a method's total may grow, a game may over-report.
            done = min(done, total) if total else done
            self._bar.update(max(int(draw * total + done) - self._bar.n, 0))

        return Progress(show)


@contextmanager
def progress_bar(label: str, n_draws: int, show: bool) -> Iterator[ProgressBar]:
    """A bar on stderr (a widget in a notebook); nothing at all, not even an import, if hidden."""
    if not show:
        yield ProgressBar(None, n_draws)
        return
    from tqdm.auto import tqdm

    bar = tqdm(
        desc=label,
        unit=" masks",
        delay=DELAY,
        mininterval=INTERVAL,
        miniters=1,  # or tqdm would learn to wait from a first large step
        leave=False,
    )
    with bar:
        yield ProgressBar(bar, n_draws)
