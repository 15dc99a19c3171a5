"""The strongest players as rows of text, for HTML and for terminals alike."""

from __future__ import annotations

from dataclasses import dataclass

from mechattr.attribution import Attribution
from mechattr.display import scale, words
from mechattr.display.tokens import player_and_token

_ERRORS = {"stderr": "± over prompts", "draw_stderr": "± over draws"}


@dataclass(frozen=True)
class Row:
    """One player. token: "" where it has none or its name says it; errors: one a column."""

    name: str
    token: str
    score: float
    errors: tuple[str, ...]


@dataclass(frozen=True)
class Ranking:
    """Rows, strongest first, with their headings.

    end: the largest magnitude, for bars. zeros: players that score exactly 0 and are left out.
    """

    rows: tuple[Row, ...]
    units: str
    error_names: tuple[str, ...]
    end: float
    zeros: int

    @property
    def note(self) -> str:
        """What the rows don't show, or nothing."""
        if not self.zeros:
            return ""
        return f"{self.zeros:,} other player{'s score' if self.zeros > 1 else ' scores'} exactly 0"

    @property
    def has_tokens(self) -> bool:
        return any(row.token for row in self.rows)


def ranking(attribution: Attribution, k: int = 10, prompt: int | None = None) -> Ranking:
    """The ``k`` strongest players of one prompt, or of the mean over prompts."""
    frame = attribution.top(k, prompt=prompt).dropna(subset=["score"])
    columns = [column for column in _ERRORS if column in frame]
    rows = []
    for row in frame.to_dict("records"):
        name, token = player_and_token(str(row["player"]), str(row.get("token") or ""))
        errors = tuple(words.number(row[c], sign=False, digits=2) for c in columns)
        rows.append(Row(name, token, float(row["score"]), errors))
    zeros = 0
    if any(row.score == 0 for row in rows) and any(row.score != 0 for row in rows):
        # No-ops score exactly 0: a table that has come to them says how many, and ends.
        rows = [row for row in rows if row.score != 0]
        scores = attribution.mean if prompt is None else attribution.values[prompt]
        zeros = int((scores == 0).sum())
    return Ranking(
        rows=tuple(rows),
        units=words.units(attribution),
        error_names=tuple(_ERRORS[c] for c in columns),
        end=scale.limit([row.score for row in rows]),
        zeros=zeros,
    )
