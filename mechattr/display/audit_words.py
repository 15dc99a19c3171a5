"""What the pictures of an audit share: each verdict's sign, colours and sentence, and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mechattr.display.words import number


@dataclass(frozen=True)
class Look:
    """How a verdict is shown.

    sign: one or two letters that tell it without its colour; short: where there's no room.
    sentence: what it says, for people; rule: when it is given, with {alpha}, {test}, {memory},
    {part}.
    strong, tint: colours on light and on dark paper; text stands on a tint in the paper's own ink.
    """

    verdict: str
    sign: str
    short: str
    sentence: str
    rule: str
    strong: tuple[str, str]
    tint: tuple[str, str]

    @property
    def slug(self) -> str:
        """The class of the page's elements that have its colours."""
        known = self.verdict if self.verdict in _BY_NAME else "inconclusive"
        return "v-" + known.replace(" ", "-")


_USED = (
    "its necessity and what is owed to it are above h, the former above chance ({test} ≤ {alpha})"
)

LOOKS = (
    Look(
        "unsupported", "×", "unsupported",
        "Nothing that was given explains the statement: no passage accounts for what they do "
        "for it together, and the model wouldn't say it by itself either.",
        "not helped by its context, and without passages its mean log p a token is below {memory}",
        ("#b3202a", "#ff8d8d"), ("#fbd5d5", "#571d20"),
    ),
    Look(
        "cited but unused", "!", "cited, unused",
        "It cites a passage that it doesn't depend on: without that passage it is as likely.",
        "cited; what is owed to it, and the upper bound of its effect while the used passages are "
        "there, are below h; that nothing was found isn't enough. Of a statement: another passage "
        "is used, and no cited one",
        ("#984900", "#ffb060"), ("#fde3c4", "#54330d"),
    ),
    Look(
        "used but uncited", "+", "used, uncited",
        "It depends on a passage that it doesn't cite.",
        f"a passage that isn't cited is used: {_USED}",
        ("#7b3fb0", "#c9a4f5"), ("#eadcf8", "#3c2a58"),
    ),
    Look(
        "not distinguishable from parametric memory", "~", "memory?",
        "The passages hardly help it, and it is likely without them: the model may simply know it.",
        "not helped by its context, and without passages its mean log p a token is {memory} or "
        "more",
        ("#6e5c38", "#d3bf95"), ("#f0e7d3", "#3f3724"),
    ),
    Look(
        "inconclusive", "?", "inconclusive",
        "The evidence doesn't decide between used and unused.",
        "of a cited passage: none of the other rules applies. Of a statement: passages would help "
        "it, were their effects above chance",
        ("#5c6370", "#a9b0bc"), ("#e6e8ec", "#343a43"),
    ),
    Look(
        "redundant support", "=", "redundant",
        "Passages carry it together, but no single one is needed: several say the same.",
        "in a set that is worth more together than its members one by one, by τ and {part} of C at "
        "least, and more than chance. Of a statement: no passage is used by itself",
        ("#1f66b0", "#86bbff"), ("#d6e7f9", "#1b3454"),
    ),
    Look(
        "cited and used", "✓", "cited, used",
        "It depends on the passage that it cites.",
        f"a cited passage is used: {_USED}",
        ("#3c6e15", "#9fd76c"), ("#e0f0cd", "#2d401a"),
    ),
    Look(
        "supported", "✓✓", "supported",
        "It depends on the passage that it cites, and that passage says so.",
        "cited and used, and the entailment check says that the passage entails it",
        ("#00694f", "#4fd1a5"), ("#c8ecdf", "#113e32"),
    ),
    Look(
        "not used", "·", "not used",
        "Of a passage only: it isn't cited, and nothing shows that it was used.",
        "neither cited nor used; no claim that it does nothing",
        ("#5f6672", "#a0a7b3"), ("#f4f5f7", "#23272e"),
    ),
)  # fmt: skip
"""Every verdict, the most alarming first."""

_BY_NAME = {look.verdict: look for look in LOOKS}

OPERATORS = {
    "remove": "an absent passage's text is removed and the prompt rebuilt",
    "mask": "attention to an absent passage is masked, every position kept",
    "replace": "an absent passage is replaced by an off-topic one of matched length",
}
"""What "absent" means; an operator of another name is told by its name."""


def look(verdict: Any) -> Look:
    """A verdict's look; one that isn't known is shown by its name, as inconclusive."""
    name = str(verdict)
    if name in _BY_NAME:
        return _BY_NAME[name]
    plain = _BY_NAME["inconclusive"]
    return Look(name, "?", name, "", "", plain.strong, plain.tint)


def rank(verdict: Any) -> int:
    """0 for the most alarming."""
    names = list(_BY_NAME)
    return names.index(str(verdict)) if str(verdict) in _BY_NAME else len(names)


def settings(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """The thresholds of a run."""
    rules: Mapping[str, Any] = report["summary"]["rules"]
    return rules


def threshold(report: Mapping[str, Any], name: str) -> str:
    """``"0.693 nats (×2)"``."""
    value = float(settings(report)[name])
    return f"{value:.3g} nats ({times(value)})"


def rule(shown: Look, report: Mapping[str, Any]) -> str:
    """When a verdict is given, with the run's thresholds; :func:`terms` says what h is."""
    told = settings(report)
    return shown.rule.format(
        alpha=f"{float(told['alpha']):g}",
        test=told["control"],
        memory=f"{float(told['memory']):.3g}".replace("-", "−"),
        part=f"{100 * float(told['part']):g} %",
    )


def terms(report: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Words of the rules."""
    told = settings(report)
    return (
        (
            "h",
            f"what an effect must be above to count: τ = {threshold(report, 'tau')}, or "
            f"{100 * float(told['share']):g} % of the gain where that is more.",
        ),
        (
            "gain",
            "what the passages do for the words (tokens) that they help: more than C where some "
            "mislead.",
        ),
        (
            "owed to a passage alone",
            "the sum of its necessities for those words of which at least half of the passages' "
            "help is lost without it. What merely resembles does a little for every word.",
        ),
        (
            "helped by its context",
            "what is owed to used passages and redundant sets adds up to "
            f"{100 * float(told['carried']):g} % of the gain.",
        ),
    )


def operator_text(name: Any) -> str:
    """``"mask: attention to an absent passage is masked, every position kept"``."""
    said = OPERATORS.get(str(name))
    return f"{name}: {said}" if said else str(name)


def times(nats: float) -> str:
    """How many times as likely: ``"×7.4"`` for 2 nats. The page's script says the same."""
    if not math.isfinite(nats):
        return "–"
    if abs(nats) >= math.log(1e6):
        power = str(round(nats / math.log(10))).replace("-", "−")
        return "×10" + power.translate(str.maketrans("0123456789−", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    value = math.exp(nats)
    if value < 0.01:
        return f"×1/{_two(1 / value)}"
    return f"×{_two(value)}"


def _two(value: float) -> str:
    """Two digits that count: ``"7.4"``, ``"0.14"``, ``"12,000"``."""
    place = math.floor(math.log10(value))
    if place >= 1:
        return f"{round(value, 1 - place):,.0f}"
    return f"{value:.{1 - place}f}".rstrip("0").rstrip(".")


def share(value: Any) -> str:
    """``"12.3 %"``."""
    known = value is not None and math.isfinite(value)
    return f"{100 * value:.1f} %" if known else "–"


def count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: Any) -> str:
    """``"3 min 20 s"``."""
    if seconds is None or not math.isfinite(float(seconds)):
        return "–"
    whole = round(float(seconds))
    if whole < 60:
        return f"{number(float(seconds), sign=False, digits=2)} s"
    hours, rest = divmod(whole, 3600)
    parts = [f"{hours} h"] if hours else []
    parts.append(f"{rest // 60} min")
    if not hours and rest % 60:
        parts.append(f"{rest % 60} s")
    return " ".join(parts)


def sentence(report: Mapping[str, Any]) -> str:
    """What was audited, in one sentence."""
    summary = report["summary"]
    statements = count(int(summary["n_statements"]), "statement")
    questions = count(int(summary["n_questions"]), "answer")
    passages = summary.get("n_passages")
    among = f" against {count(int(passages), 'retrieved passage')}" if passages else ""
    return (
        f"{statements} of {questions} audited{among}: how likely is each statement to the model "
        f"with all passages, without each one, and without any?"
    )


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and short values, to stand below the sentence."""
    summary, manifest = report["summary"], report.get("manifest") or {}
    found: list[tuple[str, str]] = []
    if manifest.get("model"):
        model = str(manifest["model"])
        revision = manifest.get("model_revision") or manifest.get("revision")
        known = revision and revision != "unknown"
        found.append(("model", f"{model} @ {revision}" if known else model))
    found.append(("operator", operator_text(summary.get("operator", "–"))))
    found.append(("questions", f"{int(summary['n_questions']):,}"))
    found.append(("statements", f"{int(summary['n_statements']):,}"))
    for key, name in (("n_passages", "passages"), ("n_forwards", "forward passes")):
        if summary.get(key) is not None:
            found.append((name, f"{int(summary[key]):,}"))
    if summary.get("seconds") is not None:
        found.append(("time", duration(summary["seconds"])))
    found.append(("threshold τ", threshold(report, "tau")))
    found.append(("level α", f"{float(settings(report)['alpha']):g}"))
    return found


def css() -> str:
    """The verdicts' colours as variables of classes: ``--strong`` and ``--tint``."""
    lines = []
    for one in LOOKS:
        (strong, dark_strong), (tint, dark_tint) = one.strong, one.tint
        lines.append(
            f".ma-audit .{one.slug} {{ --strong: {strong}; --tint: {tint}; }}\n"
            f"@supports (color: light-dark(#000, #fff)) {{ .ma-audit .{one.slug} {{ "
            f"--strong: light-dark({strong}, {dark_strong}); "
            f"--tint: light-dark({tint}, {dark_tint}); }} }}"
        )
    return "\n".join(lines)
