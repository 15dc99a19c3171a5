"""An audit in a terminal: what was audited, the rates with their intervals, where to look first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mechattr.display import audit_words as words
from mechattr.display.audit_data import well_formed

FIRST = 5
"""Statements named as the ones to look at first."""

PROBLEMS = 5
"""Bad records named; the page has them all."""

NARROW = 72
"""Letters of width below which bars and counts are left out."""

_WIDTH = 20
_OF = {"passages": "uncited passages"}
_ALARMING = ("unsupported", "cited but unused", "used but uncited")


def audit_summary(
    report: Mapping[str, Any],
    console: Console | None = None,
    *,
    inside: Sequence[str] | None = None,
) -> None:
    """Print the summary of an audit; readable without colours, and when piped.

    report: as :func:`mechattr.display.audit_page` takes it.
    inside: the words of a command that looks inside a passage; the passage to begin with is added.
    """
    console = Console() if console is None else console
    console.print(Text("RAG context-use audit", style="bold"))
    console.print(one_line(words.sentence(report)))
    facts = [
        Text.assemble((f"{name} ", "dim"), one_line(value)) for name, value in words.facts(report)
    ]
    named = sum(name in ("model", "operator") for name, _ in words.facts(report))
    for line in (*facts[:named], Text("   ").join(facts[named:])):
        console.print(line)
    rows: Sequence[Mapping[str, Any]] = report["summary"].get("rates") or []
    for of in dict.fromkeys(str(row["of"]) for row in rows):
        console.print()
        console.print(rates_table([row for row in rows if str(row["of"]) == of], console.width))
    if not rows:
        console.print(Text("No statement could be audited.", style="yellow"))
    _look_first(report, console)
    if inside is not None:
        _look_inside(report, inside, console)
    for note in report["summary"].get("notes") or []:
        console.print(Text.assemble(("Note: ", "dim"), one_line(note)))
    _problems(report.get("problems") or [], console)


def rates_table(rows: Sequence[Mapping[str, Any]], width: int = 80) -> Table:
    """The rates of one kind (statements, citations or passages), the most alarming first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    wide = width >= NARROW
    of = str(rows[0]["of"])
    table.add_column(_OF.get(of, of), overflow="fold")
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("95 %", justify="right", no_wrap=True)
    if wide:
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for row in sorted(rows, key=lambda row: words.rank(row["verdict"])):
        one = words.look(row["verdict"])
        name = Text.assemble((f"{one.sign:<2} ", "bold"), one_line(one.verdict))
        cells: list[Text] = [name, Text(words.share(row.get("rate"))), Text(_interval(row))]
        if wide:
            cells.append(Text(f"{int(row['count']):,}/{int(row['total']):,}"))
            cells.append(_bar(row.get("rate"), one))
        table.add_row(*cells)
    return table


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    if low is None or high is None or low != low or high != high:
        return "–"
    return f"{100 * low:.0f}–{100 * high:.0f}"


def _bar(rate: Any, one: words.Look) -> Text:
    if rate is None or rate != rate:
        return Text("")
    length = round(float(rate) * _WIDTH) or int(rate > 0)
    return Text("█" * length, style=one.strong[0])


def _look_inside(report: Mapping[str, Any], command: Sequence[str], console: Console) -> None:
    """A command for the used passage that matters most to the first such statement, the most
    alarming first."""
    lines = [
        (line, [passage for passage in line["passages"] if passage["used"]])
        for one in report["questions"]
        for line in one["statements"]
    ]
    lines = [(line, used) for line, used in lines if used]
    if not lines:
        return
    line, used = min(lines, key=lambda entry: words.rank(entry[0]["verdict"]))
    passage = max(used, key=lambda one: float(one["necessity"]))
    names = {"--id": line["id"], "--pid": passage["pid"], "--sid": line["sid"]}
    whole = [*command, *(str(word) for pair in names.items() for word in pair)]
    if not all(word.isprintable() for word in whole):
        return  # it couldn't be typed
    console.print()
    console.print(Text("Look inside a passage that was used: its tokens, and heads", style="dim"))
    console.print(Text(shlex.join(whole)), soft_wrap=True)


def _look_first(report: Mapping[str, Any], console: Console) -> None:
    """The most alarming statements, those whose verdict calls for somebody to look."""
    lines = [
        (words.rank(line["verdict"]), i, one, line)
        for i, one in enumerate(report["questions"])
        for line in one["statements"]
        if line["verdict"] in _ALARMING
    ]
    if not lines:
        return
    lines.sort(key=lambda entry: entry[:2])
    more = len(lines) - FIRST
    console.print()
    left = f" ({FIRST} of {len(lines):,})" if more > 0 else ""
    console.print(Text(f"Look first at{left}", style="dim"))
    for _, _, one, line in lines[:FIRST]:
        shown = words.look(line["verdict"])
        text = one_line(line.get("text") or one["answer"][line["start"] : line["end"]])
        head = f"{shown.sign} {one_line(one['id'])} {one_line(line['sid'])}: {shown.verdict}  "
        whole = Text.assemble((head, "bold"), text)
        whole.truncate(max(2 * console.width, 80), overflow="ellipsis")
        console.print(whole)


def _problems(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not found:
        return
    console.print()
    title = f"{words.count(len(found), 'record')} could not be used"
    console.print(Text(title, style="yellow"))
    for one in found[:PROBLEMS]:
        name = f" ({one_line(one['id'])})" if one.get("id") else ""
        console.print(one_line(f"line {one.get('line')}{name}: {one.get('reason')}"))
    if len(found) > PROBLEMS:
        console.print(one_line(f"and {len(found) - PROBLEMS:,} more"))


def with_name(name: str, text: str) -> Text:
    """A user's text behind its name, on one line that a terminal breaks."""
    return Text.assemble((f"{one_line(name)}: ", "dim"), one_line(text))


def one_line(value: Any) -> Text:
    """A user's text on one line, with nothing in it that a terminal would obey."""
    text = well_formed(str(value))
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return Text(" ".join(plain.split()))
