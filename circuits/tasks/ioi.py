"""Indirect object identification: "Mary and John went to the store, John gave a drink to" Mary.

The task and its counterfactuals are those of Wang et al. 2022, "Interpretability in the Wild: a
Circuit for Indirect Object Identification in GPT-2 small" (arXiv:2211.00593); the sentences are
our own. A sentence names the indirect object (IO) and the subject (S1) in either order, then the
subject again (S2); the next token is the indirect object.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuits.tasks import words
from circuits.tasks.base import Task
from circuits.tasks.sampling import balanced, digits, generator
from mechattr.errors import InputError, UnknownNameError
from mechattr.transformer.prompts import Prompts, tokenizer_of

TEMPLATES = (
    "When {A} and {B} went to the {place}, {S} gave a {object} to",
    "Then, {A} and {B} walked into the {place}, and {S} handed a {object} to",
    "After {A} and {B} arrived at the {place}, {S} passed a {object} to",
    "While {A} and {B} were working at the {place}, {S} gave a {object} to",
    "Last week {A} and {B} met at the {place}, and {S} offered a {object} to",
    "Yesterday {A} and {B} were sitting in the {place}. {S} showed a {object} to",
    "One day, {A} and {B} had a long talk at the {place}. In the end, {S} gave a {object} to",
    "In the morning {A} and {B} had an argument at the {place}, and afterwards {S} said to",
    "The other day, {A} and {B} got lost near the {place}, so {S} gave the {object} to",
    "Before {A} and {B} said goodbye at the {place}, {S} gave a {object} to",
    "As {A} and {B} waited outside the {place}, {S} lent a {object} to",
    "At the {place}, {A} and {B} were talking quietly. {S} slid a {object} over to",
)
"""{A} and {B} are the two people, {S} is the one of them who acts."""

NAMES = words.listed("""
    Mary John Tom Anna Paul Alice Mark Sarah James Robert Michael David Daniel Kevin Brian Jason
    Scott Adam Peter Andrew Simon Steven Jack Sam Ben Luke Max Emma Lisa Laura Karen Susan Linda
    Kate Jane Helen Julia Rachel Rebecca Amy Emily Claire Lucy Ruth Diana Maria Sophie Charlie
    George Henry William Thomas Richard Charles Edward Joseph Matthew Anthony Patrick Frank Eric
    Ryan Alex Victor Martin Arthur Jennifer Jessica Michelle Elizabeth Margaret Nancy
    Victoria
""")
PLACES = words.listed("""
    store park school station garden office library market hospital restaurant beach museum house
    hotel church kitchen zoo bakery theater
""")
# All begin with a consonant sound: they follow "a".
OBJECTS = words.listed("""
    drink book ring computer basketball necklace snack bone letter map ticket key flower gift pen
    coin cake hat watch ball note toy lamp bag picture
""")

Names = tuple[str, str, str]
"""The names that fill {A}, {B} and {S}."""


def _swap_subject(clean: Names, io: str, subject: str, other: Sequence[str]) -> Names:
    return clean[0], clean[1], io


def _random_subject(clean: Names, io: str, subject: str, other: Sequence[str]) -> Names:
    return clean[0], clean[1], other[0]


def _random_names(clean: Names, io: str, subject: str, other: Sequence[str]) -> Names:
    a, b, s = ({io: other[0], subject: other[1]}[name] for name in clean)
    return a, b, s


def _abc(clean: Names, io: str, subject: str, other: Sequence[str]) -> Names:
    return other[0], other[1], other[2]


def _flip_order(clean: Names, io: str, subject: str, other: Sequence[str]) -> Names:
    return clean[1], clean[0], clean[2]


@dataclass(frozen=True)
class _Kind:
    """How a counterfactual fills the template, and how many other names it takes."""

    n_other: int
    names: Callable[[Names, str, str, Sequence[str]], Names]


COUNTERFACTUALS = {
    "swap_subject": _Kind(0, _swap_subject),
    "random_subject": _Kind(1, _random_subject),
    "random_names": _Kind(2, _random_names),
    "abc": _Kind(3, _abc),
    "flip_order": _Kind(0, _flip_order),
}


def ioi(
    model: Any,
    *,
    size: int = 64,
    seed: int = 0,
    counterfactual: str = "swap_subject",
    templates: Sequence[str] | None = None,
    prepend_bos: bool | None = None,
) -> Task:
    """Indirect object identification; the target is ``logit(IO) − logit(S)``.

    model: whose tokenizer decides which names, places and objects are used: those of one token.
    size: number of distinct prompts, in equal shares of all templates in both name orders.
    seed: the clean prompts depend on it, but not on the kind of counterfactual.
    counterfactual: what the second prompt of a pair changes; token lengths are always equal.
        "swap_subject":   S2 is the indirect object: the answer becomes the other name.
        "random_subject": S2 is a third name: neither of the two is the better answer.
        "random_names":   IO and S are other names, in the same roles.
        "abc":            three different other names (the reference set of Wang et al.).
        "flip_order":     IO and S1 change places: the answer stays.
    templates: sentences to use instead of ``TEMPLATES``, with the fields {A}, {B}, {S} and, as
        wanted, {place} and {object}; one template gives prompts of one length.
    prepend_bos: as in ``Prompts.from_pairs``.

    ``dataset`` has one row a prompt: clean, counterfactual, answer, distractor, template, order
    ("ABBA": IO before S1, "BABA": S1 before IO), io, subject, place, object ("" where the template
    has none), and the positions of IO, S1, S2 and the end in the clean prompt's tokens.

    SmolLM2-135M-Instruct (size 64, seed 0) is right on 63, with the answer as its top token on 60;
    the target is 5.08 ± 0.30 on the clean prompts and −4.96 ± 0.25 on "swap_subject".

    Raises InputError when the tokenizer has too few suitable words, or ``size`` distinct prompts
    don't exist.
    """
    if counterfactual not in COUNTERFACTUALS:
        raise UnknownNameError("counterfactual kind", counterfactual, COUNTERFACTUALS)
    kind = COUNTERFACTUALS[counterfactual]
    chosen = _checked(TEMPLATES if templates is None else templates)
    tokenizer = tokenizer_of(model)
    pools = _pools(tokenizer, chosen, kind, counterfactual)
    rows = _draw(chosen, pools, size, seed)
    other_names = generator(seed, stream=1)
    for row in rows:
        row["counterfactual"] = _render(row, _altered(row, kind, list(pools["name"]), other_names))
    prompts = Prompts.from_pairs(
        model,
        [row["clean"] for row in rows],
        [row["counterfactual"] for row in rows],
        prepend_bos=prepend_bos,
    )
    _locate(rows, prompts, pools["name"])

    def tokens(role: str) -> tuple[tuple[str | int], ...]:
        ids = ((row[role], pools["name"][row[role]]) for row in rows)
        return tuple((words.as_answer(tokenizer, f" {name}", token),) for name, token in ids)

    return Task(
        name="ioi",
        prompts=prompts,
        measure="logit_diff",
        answers=tokens("io"),
        distractors=tokens("subject"),
        columns={name: [row[name] for row in rows] for name in _COLUMNS},
        seed=seed,
        counterfactual_kind=counterfactual,
    )


def demo_pair() -> tuple[str, str, str, str]:
    """(clean, counterfactual, answer, distractor): the one pair of the documentation."""
    fill = {"A": "Mary", "B": "John", "place": "store", "object": "drink"}
    clean, counterfactual = (TEMPLATES[0].format(S=name, **fill) for name in ("John", "Mary"))
    return clean, counterfactual, " Mary", " John"


_COLUMNS = (
    *("clean", "counterfactual", "answer", "distractor", "template", "order"),
    *("io", "subject", "place", "object"),
    *("position_io", "position_s1", "position_s2", "position_end"),
)


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]


def _checked(templates: Sequence[str]) -> list[str]:
    if isinstance(templates, str):
        templates = [templates]
    if not templates:
        raise InputError("templates is empty; give at least one, or None for all of ours.")
    if len(set(templates)) < len(templates):
        raise InputError("templates holds the same sentence twice; give each once.")
    for template in templates:
        fields = _fields(template)
        people = [field for field in fields if field in ("A", "B", "S")]
        unknown = set(fields) - {"A", "B", "S", "place", "object"}
        blanks = all(f" {{{field}}}" in template for field in fields)
        if people != ["A", "B", "S"] or unknown or not blanks or template != template.rstrip():
            raise InputError(
                f"The template {template!r} can't be used. A template names {{A}}, {{B}} and {{S}} "
                f"once each in this order, may use {{place}} and {{object}}, has a blank before "
                f"every field (so that each is one token) and no blank at its end."
            )
    return list(templates)


def _pools(
    tokenizer: Any, templates: Sequence[str], kind: _Kind, counterfactual: str
) -> dict[str, dict[str, int]]:
    """Words of one token and their ids, for each field that the templates use."""
    used = {field for template in templates for field in _fields(template)}
    pools = {"name": words.single(tokenizer, NAMES)}
    why = f"the counterfactual {counterfactual!r}"
    words.need(pools["name"], NAMES, "names", 2 + kind.n_other, why)
    for field, pool in (("place", PLACES), ("object", OBJECTS)):
        if field in used:
            pools[field] = words.single(tokenizer, pool)
            words.need(pools[field], pool, f"{field}s", 1, "the task")
    return pools


def _draw(
    templates: Sequence[str], pools: dict[str, dict[str, int]], size: int, seed: int
) -> list[dict[str, Any]]:
    """Distinct sentences, balanced over templates and name orders."""
    groups = [(template, order) for template in templates for order in ("ABBA", "BABA")]
    names = list(pools["name"])
    # A template without a field has one choice for it: nothing.
    fillings = {
        template: [
            list(pools[field]) if field in _fields(template) else [""]
            for field in ("place", "object")
        ]
        for template in templates
    }
    bases = [[len(names), len(names) - 1, *map(len, fillings[template])] for template, _ in groups]
    rows = []
    for group, index in balanced(generator(seed), size, list(map(math.prod, bases)), "sentences"):
        template, order = groups[group]
        first, second, place, thing = digits(index, bases[group])
        io = names[first]
        subject = [name for name in names if name != io][second]
        row = {
            "template": template,
            "order": order,
            "io": io,
            "subject": subject,
            "place": fillings[template][0][place],
            "object": fillings[template][1][thing],
            "answer": f" {io}",
            "distractor": f" {subject}",
        }
        row["clean"] = _render(row, _clean_names(row))
        rows.append(row)
    return rows


def _clean_names(row: dict[str, Any]) -> Names:
    io, subject = row["io"], row["subject"]
    return (io, subject, subject) if row["order"] == "ABBA" else (subject, io, subject)


def _altered(row: dict[str, Any], kind: _Kind, names: list[str], rng: np.random.Generator) -> Names:
    io, subject = row["io"], row["subject"]
    free = [name for name in names if name not in (io, subject)]
    other = [free[i] for i in rng.choice(len(free), size=kind.n_other, replace=False)]
    return kind.names(_clean_names(row), io, subject, other)


def _render(row: dict[str, Any], names: Names) -> str:
    fill = dict(zip("ABS", names, strict=True))
    return row["template"].format(**fill, place=row["place"], object=row["object"])


def _locate(rows: list[dict[str, Any]], prompts: Prompts, ids: dict[str, int]) -> None:
    """Write the positions of the names into the rows, and make sure that they are as meant."""
    for i, (row, tokens) in enumerate(zip(rows, prompts.tokens, strict=True)):
        io = words.positions(tokens, ids[row["io"]])
        subject = words.positions(tokens, ids[row["subject"]])
        if len(io) != 1 or len(subject) != 2:
            raise InputError(
                f"Prompt {i}: {row['io']!r} should be one token of the prompt once and "
                f"{row['subject']!r} twice; found {len(io)} and {len(subject)} in "
                f"{'|'.join(prompts.labels[i])}"
            )
        row |= {"position_io": io[0], "position_s1": subject[0], "position_s2": subject[1]}
        row["position_end"] = prompts.target_positions[i]
