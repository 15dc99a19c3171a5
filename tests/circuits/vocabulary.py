"""Models for the tests of tasks: tiny tokenizers that know the tasks' words."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

from circuits.tasks.greater_than import NOUNS, TEMPLATE
from circuits.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from tests.transformer.tiny import tiny_tokenizer

TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
ONE_DIGIT = tuple("0123456789")


def task_tokenizer(
    *,
    names: tuple[str, ...] = NAMES[:6],
    places: tuple[str, ...] = PLACES[:3],
    objects: tuple[str, ...] = OBJECTS[:3],
    nouns: tuple[str, ...] = NOUNS[:5],
    numbers: tuple[str, ...] = (),
    bos: bool = False,
) -> Any:
    """Every word of the templates is one token, of the pools only those asked for."""
    sentences = re.sub(r"\{.*?\}", "", " ".join((*TEMPLATES, TEMPLATE)))
    words = [f" {word}" for word in re.findall(r"[A-Za-z]+", sentences)]
    starts = [sentence.split()[0].strip(",") for sentence in (*TEMPLATES, TEMPLATE)]
    pools = [f" {word}" for word in (*names, *places, *objects, *nouns)]
    return tiny_tokenizer([*starts, *words, *pools, *numbers], bos=bos)


def stub(tokenizer: Any = None) -> Any:
    """What tokenising needs of a model."""
    tokenizer = tokenizer or task_tokenizer()
    return SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(tokenizer)))


def rows_of(task: Any) -> list[dict[str, Any]]:
    """A task's columns, row by row."""
    rows = zip(*task.columns.values(), strict=True)
    return [dict(zip(task.columns, row, strict=True)) for row in rows]
