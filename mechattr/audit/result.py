"""What an audit found: lines, one a statement; rates over the run; where to see it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechattr.audit import verdicts
from mechattr.audit.counting import passage_verdicts
from mechattr.audit.judging import judge, null_of
from mechattr.audit.manifest import versions
from mechattr.audit.plan import Plan
from mechattr.audit.reading import Problem
from mechattr.audit.statistics import cluster_rates
from mechattr.audit.verdicts import Entails
from mechattr.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_RULES = ("tau", "strong", "share", "part", "carried", "memory", "alpha", "control")
"""Settings that the report's legend tells."""

DRAWS = 2000
"""Of the bootstrap over questions."""


@dataclass(frozen=True, eq=False)
class Audit:
    """The result of a run.

    lines: one a statement, as they are written out.
    questions: what was measured of each, in the order of the records; see ``measuring.py``.
    problems: records that couldn't be used, with line and reason.
    plan: the settings. facts: what the measurements depend on besides the records.
    source: where the records are from; see ``manifest.described``.
    """

    lines: list[dict[str, Any]]
    questions: list[dict[str, Any]]
    problems: list[Problem]
    plan: Plan
    facts: Mapping[str, Any]
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        questions: list[dict[str, Any]],
        problems: list[Problem],
        plan: Plan,
        facts: Mapping[str, Any],
        entails: Entails | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Audit:
        """Judge what was measured."""
        lines = judge(questions, plan, entails)
        return cls(lines, questions, problems, plan, facts, source or {})

    # --- as data ----------------------------------------------------------------------------------

    def to_frame(self, of: str = "passages") -> pd.DataFrame:
        """A table: a row for each passage of each statement, or (``of="statements"``) one for each
        statement; without what is told of single tokens."""
        import pandas as pd

        if of not in ("passages", "statements"):
            raise InputError(f"to_frame is of 'passages' or 'statements'; got {of!r}.")
        left_out = {"passages", "operators", "warnings", "earlier", "tokens"}
        no_cells = {"ci95", "token_necessity", "token_sufficiency"}
        rows = []
        for line in self.lines:
            own = {k: v for k, v in line.items() if k not in left_out}
            if of == "statements":
                rows.append(own)
                continue
            own["statement_verdict"] = own.pop("verdict")
            for passage in line["passages"]:
                low, high = passage["ci95"]
                told = {k: v for k, v in passage.items() if k not in no_cells}
                rows.append({**own, **told, "ci95_low": low, "ci95_high": high})
        return pd.DataFrame(rows)

    @cached_property
    def rates(self) -> list[dict[str, Any]]:
        """How often each verdict was given: of statements, of citations, of uncited passages; with
        a 95 % interval from a bootstrap of whole questions. A statement's passages count once each,
        where their sentences play too; see ``counting.py``."""
        pairs = [
            (line["id"], *found)
            for line in self.lines
            for found in passage_verdicts(line["passages"])
        ]
        items = {
            "statements": [(line["verdict"], line["id"]) for line in self.lines],
            "citations": [(verdict, name) for name, cited, verdict in pairs if cited],
            "passages": [(verdict, name) for name, cited, verdict in pairs if not cited],
        }
        every = {
            "statements": verdicts.STATEMENTS,
            "citations": verdicts.CITATIONS,
            "passages": verdicts.PASSAGES,
        }
        return [
            {"of": of, **_rate(rate)}
            for of, found in items.items()
            for rate in cluster_rates(
                [label for label, _ in found],
                [cluster for _, cluster in found],
                DRAWS,
                self.plan.seed,
                every=every[of],
            )
        ]

    def summary(self) -> pd.DataFrame:
        """The rates as a table; ``print(audit)`` and ``audit.report`` say more."""
        import pandas as pd

        return pd.DataFrame(self.rates)

    @property
    def manifest(self) -> dict[str, Any]:
        """What was run, on what, with which versions."""
        return {
            **self.facts,
            "source": dict(self.source),
            "judging": self.plan.describe(),
            "n_records": len(self.questions) + len(self.problems),
            "n_questions": len(self.questions),
            "n_statements": len(self.lines),
            "n_forwards": sum(q["n_forwards"] for q in self.questions),
            "tokens_run": sum(q["tokens_run"] for q in self.questions),
            "seconds": round(sum(q["seconds"] for q in self.questions), 1),
            "problems": [asdict(problem) for problem in self.problems],
            "versions": versions(),
        }

    @cached_property
    def report(self) -> dict[str, Any]:
        """What the page, the terminal and the figure are drawn from."""
        by_id: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            by_id.setdefault(line["id"], []).append(line)
        return {
            "questions": [_shown(q, by_id.get(q["id"], [])) for q in self.questions],
            "summary": self._overall(),
            "manifest": self.manifest,
            "problems": [asdict(problem) for problem in self.problems],
        }

    def _overall(self) -> dict[str, Any]:
        return {
            "n_questions": len(self.questions),
            "n_statements": len(self.lines),
            "n_passages": sum(len({p["of"] for p in q["passages"]}) for q in self.questions),
            "n_forwards": sum(q["n_forwards"] for q in self.questions),
            "seconds": sum(q["seconds"] for q in self.questions),
            "operator": self.plan.operators[0],
            "rules": {name: getattr(self.plan, name) for name in _RULES},
            "rates": self.rates,
            "null": self._null(),
            "disagreement": self._disagreement(),
            "notes": self._notes(),
        }

    def _null(self) -> dict[str, Any]:
        pool = null_of(self.questions, 0, self.plan) if self.questions else None
        return {
            "kind": self.plan.null,
            "n": 0 if pool is None else pool.n,
            "bands": [] if pool is None else pool.describe(),
        }

    def _disagreement(self) -> dict[str, Any] | None:
        if len(self.plan.operators) < 2:
            return None
        differ = [
            line
            for line in self.lines
            if any(other["verdict"] != line["verdict"] for other in line["operators"].values())
        ]
        return {
            "operators": list(self.plan.operators),
            "statements": len(differ),
            "of": len(self.lines),
        }

    def _notes(self) -> list[str]:
        found = []
        smallest = min((band["n"] for band in self._null()["bands"]), default=0)
        if self.plan.null == "per passage":
            own = [len(q["effects"][0]["swaps"]) // len(q["passages"]) for q in self.questions]
            smallest = min(own, default=0)
        if 0 < smallest < round(1 / self.plan.alpha) - 1:
            found.append(
                f"The null has only {smallest} effects, so that no p can reach {self.plan.alpha}: "
                f"nothing can be called used. Raise swaps."
            )
        return found

    # --- as a picture -----------------------------------------------------------------------------

    def plot(self) -> Any:
        """The rates with their intervals, as a figure."""
        from mechattr.display.audit_figures import audit_plot

        return audit_plot(self.report)

    def to_html(self, path: str | Path) -> Path:
        """Write the whole run as one page that works offline."""
        from mechattr.display.audit_report import audit_page

        return audit_page(self.report, path)

    def __repr__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from mechattr.display.audit_terminal import audit_summary

        written = StringIO()
        audit_summary(self.report, Console(file=written, width=100, no_color=True))
        return written.getvalue().rstrip()

    def _repr_html_(self) -> str:
        from mechattr.display.audit_report import AuditView

        return AuditView(self.report).html

    # --- as files ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the lines as JSONL, as a whole or not at all."""
        text = "".join(_written(line) + "\n" for line in self.lines)
        return _replace(Path(path), text)

    def save_manifest(self, path: str | Path) -> Path:
        """Write the manifest as JSON."""
        return _replace(Path(path), _written(self.manifest, indent=2) + "\n")


def _rate(rate: Any) -> dict[str, Any]:
    numbers = {"rate": rate.rate, "low": rate.low, "high": rate.high}
    plain = {k: None if np.isnan(v) else float(v) for k, v in numbers.items()}
    return {"verdict": rate.label, "count": rate.count, "total": rate.total, **plain}


def _shown(question: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A question as the report takes it."""
    first = question["effects"][0]
    tokens = [
        {**token, "logp_full": full, "logp_none": none}
        for token, full, none in zip(
            question["tokens"], first["tokens_full"], first["tokens_none"], strict=True
        )
    ]
    kept = ("id", "question", "answer", "generated", "gold_pids", "warnings", "passages")
    return {
        **{key: question[key] for key in kept},
        "tokens": tokens,
        "statements": list(lines),
        "citations": [
            verdict
            for line in lines
            for cited, verdict in passage_verdicts(line["passages"])
            if cited
        ],
        "highlights": question.get("highlights", []),
    }


def _written(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def _replace(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
    return path
