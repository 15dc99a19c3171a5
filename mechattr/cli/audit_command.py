"""``mechattr audit``: which passages did each answer really rely on?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from mechattr.cli import audit_options as a
from mechattr.cli import options as o
from mechattr.errors import InputError, UnknownNameError

MORE = ("strong", "part", "carried", "memory", "temperature")
"""Settings for --set."""

BROKEN = 3
"""Exit code where a limit of --fail-on is broken."""


def audit(
    records: a.Records,
    model: o.Model = "smollm2-135m",
    out: a.Out = Path("audit.jsonl"),
    html: o.Html = None,
    operator: a.Operators = "remove",
    unit: a.Unit = "passage",
    template: a.Template = None,
    surrogate: a.Surrogate = "surrogate",
    samples: a.Samples = None,
    shapley: a.Shapley = 0,
    earlier: a.Earlier = False,
    tokens: a.Tokens = None,
    max_new_tokens: a.MaxNewTokens = 96,
    null: a.Null = "pooled",
    swaps: a.Swaps = None,
    off_topic: a.OffTopic = None,
    alpha: a.Alpha = 0.05,
    control: a.Control = "p",
    tau: a.Tau = None,
    share: a.Share = 0.1,
    rules: a.Rules = None,
    entails: a.Entails = None,
    prepend_bos: o.PrependBos = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.Dtype = None,
    hooked: o.Hooked = False,
    fresh: a.Fresh = False,
    fail_on: a.FailOn = None,
) -> None:
    """Audit retrieval-augmented answers: which passages did each statement rely on,
    whatever it cites?

    One line a statement, with necessity, sufficiency and a surrogate's weight of
    every passage, p and q against off-topic passages, and a verdict.

    [bold]Audit a file, with a report[/bold]

      mechattr audit questions.jsonl --model smollm2-135m \\
        --out audit.jsonl --html audit.html

    [bold]Two notions of absence, tokens highlighted[/bold]

      mechattr audit questions.jsonl --operator remove,mask \\
        --tokens integrated_gradients --html audit.html

    [bold]In CI[/bold]

      mechattr audit questions.jsonl --fail-on "cited-but-unused>0.1"

    The same command goes on where an interrupted run stopped.
    """
    from mechattr.audit.failing import Limit
    from mechattr.audit.plan import Plan
    from mechattr.audit.running import run
    from mechattr.cli import inside_command, parsing
    from mechattr.cli.running import Output, load, writable
    from mechattr.display.audit_terminal import audit_summary

    limits = [Limit.parse(text) for text in fail_on or []]
    settings = dict(
        operators=tuple(part.strip() for part in operator.split(",") if part.strip()),
        unit=unit,
        template=None if template is None else parsing.text_of(template),
        surrogate=surrogate,
        samples=samples,
        shapley=shapley,
        earlier=earlier,
        tokens=tokens,
        max_new_tokens=max_new_tokens,
        null=null,
        swaps=swaps,
        alpha=alpha,
        control=control,
        share=share,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    settings |= _rules(rules or []) | ({} if tau is None else {"tau": tau})
    plan = Plan(**settings)  # type: ignore[arg-type]
    texts = None if off_topic is None else parsing.paragraphs(off_topic)
    judge = None if entails is None else _function(entails)
    page, lines = writable(html, ".html"), writable(out, ".jsonl")
    if not records.is_file():
        raise InputError(f"There is no file {records}; expected JSONL, one question a line.")
    output = Output()
    loaded = load(output, model, device=device, dtype=dtype, hooked=hooked)
    found = run(loaded, records, plan=plan, out=lines, off_topic=texts, entails=judge, fresh=fresh)
    audit_summary(
        found.report,
        output.console,
        inside=inside_command.command(records, model, template, plan),
    )
    output.say(f"Lines: {lines}")
    if page is not None:
        output.say(f"Report: {found.to_html(page)}")
    if not found.questions:
        first = found.problems[0]
        raise InputError(
            f"None of the {len(found.problems)} records could be used. Line {first.line}: "
            f"{first.reason}"
        )
    broken = [text for limit in limits if (text := limit.broken(found)) is not None]
    for text in broken:
        output.errors.print(f"--fail-on: {text}", style="red")
    if broken:
        raise typer.Exit(BROKEN)


def _rules(given: list[str]) -> dict[str, float]:
    """``--set part=0.2``: what has no option of its own."""
    found: dict[str, float] = {}
    for text in given:
        name, _, value = (part.strip() for part in text.partition("="))
        if name not in MORE:
            raise UnknownNameError("setting of an audit", name, MORE)
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"--set {text!r} can't be read; write --set NAME=NUMBER.") from None
    return found


def _function(name: str) -> Any:
    """``module:function``, imported."""
    import importlib
    import sys

    module, _, attribute = name.partition(":")
    if "" not in sys.path:  # the installed command doesn't look where it is called
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"Can't import {name!r} ({error}); expected module:function, such as "
            f"my_checks:entails, from where Python finds it."
        ) from error
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}; expected a function.")
    return found
