"""Records from a file or from anything that gives mappings, one at a time.

A record that can't be used becomes a :class:`Problem` that says why, and the rest goes on.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mechattr.audit.answering import stated
from mechattr.audit.checks import absent, check_writable, kind, name_of, plain, rows, short, text_of
from mechattr.audit.records import Passage, Record
from mechattr.errors import InputError

NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "question": ("question", "user_input", "query"),
    "passages": ("passages", "retrieved_contexts", "contexts", "docs", "documents", "ctxs"),
    "answer": ("answer", "response", "output", "generated_answer"),
    "statements": ("statements",),
    "citations": ("citations",),
    "gold_pids": ("gold_pids",),
    "messages": ("messages",),
    "template": ("template",),
    "seed": ("seed",),
}
"""What a record has, and the names that it is read by."""

# Names that mean other things too: read only where none of the others is there.
_LAST = {"question": ("input",), "passages": ("context",)}

PASSAGE: dict[str, tuple[str, ...]] = {
    "pid": ("pid", "id", "doc_id"),
    "title": ("title",),
    "text": ("text", "content", "contents", "page_content"),
}
"""The same of a passage."""

# Keys that well-known files have beside these: no slips of the pen, though some look like it.
_ELSEWHERE = {
    "answers",
    "context",
    "qa_pairs",
    "question_id",
    "questions",
    "reference",
    "reference_answer",
}
_ELSEWHERE |= {"reference_contexts", "reference_context_ids", "retrieved_context_ids"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True)
class Problem:
    """A record that can't be used.

    line: where it stood, from 1 (of an iterable: the how-manieth). id: its own, where it has one
    that could be read. reason: what came, what was expected, how to mend it.
    """

    line: int
    id: str | None
    reason: str


class _Unusable(Exception):  # noqa: N818  it never leaves this file
    """Why a line is no mapping."""


def read(source: Any) -> Iterator[Record | Problem]:
    """The records of a source, in order, one in memory at a time.

    source: the path of a file with a JSON object a line (UTF-8), or any iterable of mappings, such
        as a split of ``datasets``, or of Records. Lines are counted from 1, blank ones too.
    A record is an object with what :data:`NAMES` lists: a question, passages (texts, or objects as
    in :data:`PASSAGE`), and mostly an answer. Without an id it gets the number of its line, and its
    passages without pids theirs. Other keys are left alone; one that looks like a slip for a known
    one is warned of, on the record.
    Raises InputError, at once, for a source that can't be opened or isn't of records at all.
    """
    if isinstance(source, (str, os.PathLike)):
        return _records(_parsed(_opened(Path(source))))
    if isinstance(source, Mapping):
        raise InputError(
            f"The source is one mapping, with {short(list(source))}; expected a path or an "
            f"iterable of records. Give one record as [record], of several splits one: "
            f'splits["test"].'
        )
    if hasattr(source, "columns") and hasattr(source, "to_dict"):
        raise InputError(
            f'The source is a {type(source).__name__}; give its rows: frame.to_dict("records").'
        )
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise InputError(
            f"The source is {type(source).__name__} ({short(source)}); expected a path, or an "
            f"iterable of mappings or of Records."
        )
    return _records(enumerate(source, 1))


# --- lines ----------------------------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(
            f"Can't open {str(path)!r}: {error.strerror or error}. Expected a file with a JSON "
            f"object a line."
        ) from error
    begins = file.peek(4)
    reason = ""
    if begins.startswith(b"\x1f\x8b"):
        reason = "is compressed. Unpack it first: gunzip"
    elif begins.startswith(_UTF16):
        reason = "is UTF-16 or UTF-32. Save it as UTF-8: iconv -f UTF-16 -t UTF-8"
    elif begins.startswith(b"PAR1"):
        reason = (
            "is a Parquet file. Give it by datasets.load_dataset or to_dict: expected JSONL, not"
        )
    if reason:
        file.close()
        raise InputError(f"{str(path)!r} {reason} {path.name}")
    return file


def _parsed(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The line number and the value of each line that isn't blank; an _Unusable says why none."""
    with file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield number, _value(line)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        return _Unusable(
            f"Not UTF-8: byte 0x{line[error.start]:02x} at place {error.start + 1} of the line, "
            f"after {short(line[max(0, error.start - 20) : error.start].decode('latin-1'))}. Save "
            f"the file as UTF-8: iconv -f WINDOWS-1252 -t UTF-8."
        )
    except json.JSONDecodeError as error:
        hint = " Expected one object on one line."
        if line.strip() in (b"[", b"{", b"[{"):
            hint = " Is the file one JSON document? Write an object a line: jq -c '.[]'."
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return _Unusable(
            f"Not JSON: {error.msg} at character {error.pos + 1}, {short(near)}.{hint}"
        )
    except (InputError, RecursionError, ValueError) as error:
        return _Unusable(f"Not JSON that can be read: {error}.")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise InputError(f"the key {twice!r} comes twice in one object; keep one")
    return made


# --- records --------------------------------------------------------------------------------------


def _records(values: Iterable[tuple[int, Any]]) -> Iterator[Record | Problem]:
    lines: dict[str, int] = {}  # where each id was
    for line, value in values:
        found = _record(line, value)
        if isinstance(found, Record):
            first = lines.setdefault(found.id, line)
            if first != line:
                found = Problem(
                    line,
                    found.id,
                    f"The id {found.id!r} was line {first}'s already (a record without an id has "
                    f"its line's number). Give each its own, or none.",
                )
        yield found


def _record(line: int, value: Any) -> Record | Problem:
    if isinstance(value, Record):
        return dataclasses.replace(value, line=line)
    if isinstance(value, _Unusable):
        return Problem(line, None, str(value))
    if not isinstance(value, Mapping):
        hint = ""
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value):
            hint = " Write each of its objects on a line of its own: jq -c '.[]'."
        return Problem(
            line, None, f"The record is {kind(value)} ({short(value)}); expected an object.{hint}"
        )
    own: str | None = None
    try:
        if not absent(value.get("id")):
            own = name_of(value["id"], "The id")
        return _made(line, own or str(line), value)
    except InputError as error:
        return Problem(line, own, str(error))


def _made(line: int, name: str, value: Mapping[str, Any]) -> Record:
    """The record of a mapping.

    Raises InputError for what can't be used.
    """
    warnings: list[str] = []
    known = {found for names in NAMES.values() for found in names}
    _slips(value, known - {"id", "docs"}, "", warnings)
    question = text_of(_field(value, "question", warnings), "The question")
    passages = tuple(
        _passage(i, entry, warnings)
        for i, entry in enumerate(_passages(_field(value, "passages", warnings)), 1)
    )
    answer = _answer(value, warnings)
    statements, citations = value.get("statements"), value.get("citations")
    if answer is None:
        for key, given in (("statements", statements), ("citations", citations)):
            if not absent(given):
                raise InputError(
                    f"There are {key} but no answer. Without an answer one is generated, and split "
                    f"by sentence: give the answer, or leave {key} out."
                )
    record = Record(
        id=name,
        question=question,
        passages=passages,
        stated=None,
        gold_pids=_gold(value.get("gold_pids")),
        messages=_messages(value.get("messages"), warnings),
        template=_template(value.get("template")),
        seed=_seed(value.get("seed")),
        line=line,
    )
    if answer is not None:  # once it is sure that the pids differ
        made = stated(answer, passages, statements, citations)
        record = dataclasses.replace(record, stated=made)
    if missing := [pid for pid in record.gold_pids if pid not in record.pids]:
        warnings.append(f"gold_pids has {', '.join(missing)}, which isn't among the passages.")
    return dataclasses.replace(record, warnings=tuple(warnings))


def _field(value: Mapping[str, Any], field: str, warnings: list[str]) -> Any:
    """What a record has of a field, under whichever of its names.

    Raises InputError where it has none, or two that differ.
    """
    found = _named(value, NAMES[field], f"The {field}", "the record")
    if found is None:
        found = _named(value, _LAST[field], f"The {field}", "the record")
    if found is None:
        near = f" {warnings[0]}" if warnings else ""
        raise InputError(
            f"No {field}: expected one of the keys {', '.join(NAMES[field])}; there are "
            f"{short(list(value), 120)}.{near}"
        )
    return found


def _named(value: Mapping[str, Any], names: Sequence[str], what: str, where: str) -> Any:
    given = {name: value[name] for name in names if not absent(value.get(name))}
    first = next(iter(given), None)
    if first is None:
        return None
    for name, other in given.items():
        if plain(other) != plain(given[first]):
            raise InputError(
                f"{what} comes twice, and differs, under {first!r} and {name!r}; keep one in "
                f"{where}."
            )
    return given[first]


def _answer(value: Mapping[str, Any], warnings: list[str]) -> str | None:
    """The answer, None for one to generate."""
    names = NAMES["answer"]
    both = not absent(value.get("output")) and not absent(value.get("answer"))
    if both and not absent(value.get("docs")) and value["output"] != value["answer"]:
        # ALCE's results: the model's answer is `output`, `answer` is the reference.
        names = tuple(name for name in names if name != "answer")
        warnings.append("With `docs`, `output` is read as the answer, `answer` as a reference.")
    found = _named(value, names, "The answer", "the record")
    if found == "":
        raise InputError("The answer is empty. To have one generated, leave it out, or give null.")
    return None if found is None else text_of(found, "The answer")


# --- passages -------------------------------------------------------------------------------------


def _passages(value: Any) -> list[Any]:
    return rows(value, "passages", "a list of texts, or of objects with a text")


def _passage(number: int, entry: Any, warnings: list[str]) -> Passage:
    what = f"Passage {number}"
    if hasattr(entry, "page_content"):  # the documents of a pipeline, before they were written down
        entry = {"page_content": entry.page_content, "id": getattr(entry, "id", None)}
    if isinstance(entry, str):
        return Passage(str(number), text_of(entry, what))
    if not isinstance(entry, Mapping):
        raise InputError(
            f"{what} is {kind(entry)} ({short(entry)}); expected a text, or an object with a text."
        )
    slips: list[str] = []
    _slips(entry, {"pid", "doc_id", "title", "text", "content", "page_content"}, what, slips)
    warnings += [slip for slip in slips if slip not in warnings]
    text = _named(entry, PASSAGE["text"], f"The text of passage {number}", "it")
    if text is None:
        near = f" {slips[0]}" if slips else ""
        raise InputError(
            f"{what} has no text: expected one of the keys {', '.join(PASSAGE['text'])}; there are "
            f"{short(list(entry), 120)}.{near}"
        )
    given = [entry[key] for key in PASSAGE["pid"] if not absent(entry.get(key))]
    pid = name_of(given[0], f"The pid of passage {number}") if given else str(number)
    title = "" if absent(entry.get("title")) else entry["title"]
    return Passage(pid, text_of(text, f"The text of passage {number}"), title)


# --- the rest -------------------------------------------------------------------------------------


def _gold(value: Any) -> tuple[str, ...]:
    value = plain(value)
    if absent(value):
        return ()
    if not isinstance(value, (list, tuple)):
        raise InputError(f"gold_pids is {kind(value)} ({short(value)}); expected a list of pids.")
    return tuple(dict.fromkeys(name_of(pid, "A pid in gold_pids") for pid in value))


def _messages(value: Any, warnings: list[str]) -> tuple[Mapping[str, str], ...] | None:
    if absent(value):
        return None
    expected = 'a list of {"role", "content"}, both texts'
    entries = rows(value, "messages", expected)
    if not entries:
        raise InputError(f"messages is empty; expected {expected}, or leave it out.")
    made = []
    for i, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping):
            raise InputError(f"Message {i} is {kind(entry)} ({short(entry)}); expected {expected}.")
        for key in ("role", "content"):
            if not isinstance(entry.get(key), str):
                came = kind(entry[key]) if key in entry else "missing"
                raise InputError(f"The {key} of message {i} is {came}; expected a text.")
            check_writable(entry[key], f"The {key} of message {i}")
        others = [k for k, v in entry.items() if k not in ("role", "content") and not absent(v)]
        if others:
            warnings.append(f"Message {i}: {', '.join(map(str, others))} isn't used.")
        made.append({"role": entry["role"], "content": entry["content"]})
    return tuple(made)


def _template(value: Any) -> str | None:
    if absent(value):
        return None
    text = text_of(value, "The template")
    if text.count("{passages}") != 1:
        raise InputError(
            f"The template has {{passages}} {text.count('{passages}')} times ({short(text)}); "
            f"expected it once, where the passages go."
        )
    return text


def _seed(value: Any) -> int | None:
    value = plain(value)
    if absent(value):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InputError(f"The seed is {short(value)}; expected a whole number from 0.")
    return value


def _slips(value: Mapping[str, Any], known: Iterable[str], where: str, found: list[str]) -> None:
    """A word on each unknown key that looks like a known one."""
    exact = {name for names in (*NAMES.values(), *PASSAGE.values()) for name in names}
    for key in value:
        if not isinstance(key, str) or key in exact or key in _ELSEWHERE or absent(value[key]):
            continue
        near = difflib.get_close_matches(key.lower().replace("-", "_"), sorted(known), 1, 0.8)
        if near:
            has = f"{where} has" if where else "There is"
            found.append(f"{has} the key {key!r}, which isn't read; did you mean {near[0]!r}?")
