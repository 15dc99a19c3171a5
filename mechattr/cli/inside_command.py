"""``mechattr inside``: which tokens of a passage carry a statement, and which heads bring them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from mechattr.cli import audit_options as a
from mechattr.cli import inside_options as i
from mechattr.cli import options as o
from mechattr.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from mechattr.audit import Plan, Record
    from mechattr.audit.inside import Inside

OPERATORS = ("remove", "mask")
_LONGEST = 200
"""Characters of a passage above the results, which show all of it."""

OF_HEADS = {"activation_patching": "include_one"}
"""Names of the field that are a method between the two prompts that heads are patched between."""


@dataclass(frozen=True)
class Asked:
    """How tokens and heads are scored.

    tokens, heads: (name in the output, method), each.
    """

    tokens: list[tuple[str, str]]
    heads: list[tuple[str, str]]
    operator: Any
    unit: str
    off_topic: Any
    budget: int | None
    seed: int
    top: int
    out: Path | None


def inside(
    records: a.Records,
    question: i.Id = None,
    pid: i.Pid = None,
    sid: i.Sid = None,
    model: o.Model = "smollm2-135m",
    method: i.Tokens = "leave_one_out",
    heads: i.Heads = "attribution_patching",
    operator: i.Operator = "remove",
    unit: i.Unit = "token",
    budget: o.Budget = None,
    template: a.Template = None,
    off_topic: a.OffTopic = None,
    max_new_tokens: a.MaxNewTokens = 96,
    temperature: i.Temperature = 0.0,
    prepend_bos: o.PrependBos = None,
    seed: o.Seed = 0,
    device: o.Device = None,
    dtype: o.Dtype = None,
    hooked: o.Hooked = False,
    top: o.Top = 10,
    out: o.Out = None,
    html: o.Html = None,
) -> None:
    """Look inside a passage that an audit found used: which of its tokens carry a
    statement, and which heads bring them there?

    A token's score is what its presence in the prompt adds to the statement's log
    probability. A head's is what it brings over from the passage, held against an
    off-topic text of as many tokens in the passage's place.

    [bold]Passage p3 and the first statement of question q7[/bold]

      mechattr inside questions.jsonl --id q7 --pid p3 --sid s1 \\
        --model smollm2-135m --html inside.html

    [bold]Words by sampled Shapley values, heads by exact patching[/bold]

      mechattr inside questions.jsonl --id q7 --pid p3 --sid s1 --unit word \\
        --method shapley --budget 512 --heads activation_patching

    Left out, --id, --pid and --sid are the only one there is, or you are told which
    there are. Give --template and --prepend-bos as the audit had them.
    """
    from mechattr.audit.inside import find
    from mechattr.audit.offtopic import OffTopic
    from mechattr.audit.plan import Plan
    from mechattr.cli import parsing
    from mechattr.cli.running import Output, load, writable

    if operator not in OPERATORS:
        raise UnknownNameError("operator", operator, OPERATORS)
    texts = None if off_topic is None else OffTopic(parsing.paragraphs(off_topic))
    tokens, carriers = _methods(method), _methods(heads, OF_HEADS)
    saved = writable(out, ".safetensors")
    asked = Asked(tokens, carriers, operator, unit, texts, budget, seed, top, saved)
    _check(asked)
    page = writable(html, ".html")
    record = find(records, question)
    pid, sid = _passage(record, pid), _statement(record.stated, sid)
    plan = Plan(
        unit="passage" if pid in record.pids else "sentence",
        template=None if template is None else parsing.text_of(template),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    output = Output(page)
    loaded = load(output, model, device=device, dtype=dtype, hooked=hooked)
    _carry_out(output, asked, _looked(loaded, record, pid, sid, plan))


def command(records: Path, model: str, template: Path | None, plan: Plan) -> list[str]:
    """The words of a ``mechattr inside`` that sees the prompts and answers of an audit by this
    plan; --id, --pid and --sid are still to come."""
    words = ["mechattr", "inside", str(records), "--model", model]
    words += [] if template is None else ["--template", str(template)]
    if plan.prepend_bos is not None:
        words.append("--prepend-bos" if plan.prepend_bos else "--no-prepend-bos")
    usual = type(plan)()
    for name in ("max_new_tokens", "temperature", "seed"):
        if getattr(plan, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(plan, name))]
    return words


# --- what is asked --------------------------------------------------------------------------------


def _methods(text: str, also: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """``"leave_one_out,shapley"`` as names and methods."""
    from mechattr.methods import METHODS

    others = also or {}
    if text.strip() == "none":
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in METHODS and name not in others:
            raise UnknownNameError("method", name, [*others, *METHODS, "none"])
    return [(name, others.get(name, name)) for name in names]


def _check(asked: Asked) -> None:
    """What can be told before a model is loaded."""
    from mechattr.audit.drilling import UNITS
    from mechattr.methods import METHODS

    if not asked.tokens and not asked.heads:
        raise InputError("--method none and --heads none: nothing is left to do.")
    if asked.unit not in UNITS:
        raise UnknownNameError("unit", asked.unit, UNITS)
    for name, method in asked.tokens:
        if METHODS[method].method.needs_gradient and asked.operator != "mask":
            raise InputError(
                f"--method {name} needs gradients, and text that is cut out has none: give "
                f"--operator mask."
            )


def _passage(record: Record, pid: str | None) -> str:
    known = {passage.pid: passage.title or passage.text for passage in record.passages}
    whole, mark, _ = (pid or "").rpartition("#")
    if pid is not None and pid not in known and mark and whole in known:
        return pid  # a sentence of a passage: which there are is known when they are cut
    return _one("passage", "--pid", pid, known)


def _statement(stated: Any, sid: str | None) -> str | None:
    """The statement's sid; what was given, where the answer isn't written yet."""
    if stated is None:
        return sid
    known = {one.sid: stated.answer[one.start : one.end] for one in stated.statements}
    return _one("statement", "--sid", sid, known)


def _one(what: str, option: str, name: str | None, known: Mapping[str, str]) -> str:
    """A name out of those there are, each with the words that it goes by; None: the only one."""
    from mechattr.audit.checks import short

    if name is None:
        if len(known) == 1:
            return next(iter(known))
        listed = ", ".join(f"{key} ({short(text)})" for key, text in known.items())
        raise InputError(f"Which {what}? Give {option}. There are {listed}.")
    if name not in known:
        raise UnknownNameError(what, name, known)
    return name


def _looked(model: Any, record: Record, pid: str, sid: str | None, plan: Plan) -> Inside:
    import mechattr as ma

    look = ma.audit.inside(model, record, pid, sid, plan=plan)
    if look.statement is not None:
        return look
    stated = look.question.answer  # written just now
    sids = [one.sid for one in stated.statements]
    return dataclasses.replace(look, statement=sids.index(str(_statement(stated, None))))


# --- what is said ---------------------------------------------------------------------------------


def _carry_out(output: Any, asked: Asked, look: Inside) -> None:
    from mechattr.display.audit_terminal import one_line, with_name

    pid, sid, name = (str(one_line(x)) for x in (look.pid, look.sid, look.question.record.id))
    output.title = f"Inside passage {pid}, for statement {sid} of {name}"
    told = _told(look)
    output.introduction = " ".join(f"{label}: {text}" for label, text in told.items())
    for label, text in told.items():
        output.console.print(with_name(label, text))
    output.print("")
    with output:
        for method, run in asked.tokens:
            how = {"unit": asked.unit, "operator": asked.operator, "budget": asked.budget}
            scores = output.timed(partial(look.tokens, run, seed=asked.seed, **how))
            title = f"{asked.unit.capitalize()}s of {pid} by {method}"
            _show(output, asked, scores, title, _TOKENS[asked.operator], f"tokens-{method}")
        for method, run in asked.heads:
            output.say(f"Heads by {method} ...")
            how = {"off_topic": asked.off_topic, "seed": asked.seed}
            scores = output.timed(partial(look.heads, run, **how))
            title = f"Heads that bring {pid} into {sid}, by {method}"
            notes = _RETRIEVAL if run == "retrieval" else _HEADS
            _show(output, asked, scores, title, notes, f"heads-{method}")


_WORTH = "v(N) − v(∅) is what the whole passage is worth to the statement."
_TOKENS = {
    "remove": f"Absent parts are cut out of the passage; the other passages stay. {_WORTH}",
    "mask": f"Attention to absent parts is masked; the other passages stay. {_WORTH}",
}
_HEADS = (
    "v(N) is with the passage, v(∅) with an off-topic text of as many tokens in its place; a head "
    "is absent where it does what it did with that text."
)
_RETRIEVAL = (
    "How much of what the statement copies from the passage is copied while the head looks at it "
    "most: a retrieval head's share."
)


def _told(look: Inside) -> dict[str, str]:
    """What is looked into: names, and texts as the record has them."""
    stated = look.question.answer
    assert look.statement is not None
    one = stated.statements[look.statement]
    (passage,) = (text for text in look.question.texts if text["pid"] == look.pid)
    cited = "cited" if passage["of"] in one.cited else "not cited"
    title = f"{passage['title']}: " if passage["title"] else ""
    made = " (generated)" if look.question.generated else ""
    return {
        "Question": look.question.record.question,
        f"Statement {one.sid}{made}": stated.answer[one.start : one.end],
        f"Passage {look.pid} ({cited})": shorten(title + passage["text"], _LONGEST),
    }


def _show(output: Any, asked: Asked, scores: Any, title: str, notes: str, label: str) -> None:
    from mechattr.cli.running import labelled

    output.show(scores, title, top=asked.top, notes=notes)
    output.print(notes, style="dim")
    output.print("")
    if asked.out is not None:
        several = len(asked.tokens) + len(asked.heads) > 1
        output.save(scores, labelled(asked.out, label if several else None))
