"""Limits on an audit's rates, for CI: ``cited-but-unused>0.1``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from mechattr.audit import verdicts
from mechattr.audit.result import Audit
from mechattr.errors import InputError, UnknownNameError

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"(?:(\w+):)?([a-z-]+)\s*(>=|<=|>|<)\s*([0-9.]+%?)")
_OF = {
    "statements": verdicts.STATEMENTS,
    "citations": verdicts.CITATIONS,
    "passages": verdicts.PASSAGES,
}
SHORT = {"parametric-memory": verdicts.MEMORY, "memory": verdicts.MEMORY}
PROBLEMS = "problems"


@dataclass(frozen=True)
class Limit:
    """A rate that an audit must not have.

    text: as it was given. of: statements, citations (a cited passage each, where its sentences
    play too) or passages; "" for problems.
    verdict: one of those, or "problems": the share of records that couldn't be used.
    """

    text: str
    of: str
    verdict: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """``[of:]verdict>number``; the verdict with hyphens, the number a share or a percentage.

        Without ``of``, verdicts on citations ("cited ...", "supported") are of citations, the
        others of statements. Raises InputError with the form and the names.
        """
        found = _FORM.fullmatch(text.strip().lower())
        if found is None:
            raise InputError(
                f"Can't read the limit {text!r}; expected such as cited-but-unused>0.1, "
                f"statements:unsupported>=5% or problems>0."
            )
        of, name, sign, number = found.groups()
        try:
            percent = number.endswith("%")
            bound = float(number.rstrip("%")) / (100 if percent else 1)
        except ValueError as error:
            raise InputError(f"{number!r} in the limit {text!r} isn't a number.") from error
        if name == PROBLEMS and of is None:
            return cls(text, "", PROBLEMS, sign, bound)
        if of is not None and of not in _OF:
            raise UnknownNameError("kind of rate", of, _OF)
        verdict = SHORT.get(name, name.replace("-", " "))
        of = of or ("citations" if verdict in verdicts.CITATIONS[:3] else "statements")
        if verdict not in _OF[of]:
            raise UnknownNameError(
                f"verdict on {of}", name, [v.replace(" ", "-") for v in _OF[of]] + [PROBLEMS]
            )
        return cls(text, of, verdict, sign, bound)

    def broken(self, audit: Audit) -> str | None:
        """What to say where an audit's rate is beyond the limit; None where it isn't."""
        rate, total = self._rate(audit)
        if rate is None or not _SIGNS[self.sign](rate, self.bound):
            return None
        what = f"{self.verdict} ({self.of})" if self.of else "records with problems"
        return f"{what}: {rate:.3g} of {total}, which is {self.sign} {self.bound:g}"

    def _rate(self, audit: Audit) -> tuple[float | None, int]:
        if self.verdict == PROBLEMS:
            total = len(audit.problems) + len(audit.questions)
            return len(audit.problems) / total, total
        for row in audit.rates:
            if row["of"] == self.of and row["verdict"] == self.verdict:
                return row["rate"], row["total"]
        return None, 0
