"""A run: records in, an :class:`Audit` out; what is finished is kept, bad records are reported."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechattr.audit.ledger import Ledger
from mechattr.audit.manifest import depends_on, described, prompted
from mechattr.audit.measuring import Measurer
from mechattr.audit.offtopic import OffTopic
from mechattr.audit.plan import Plan
from mechattr.audit.reading import Problem, read
from mechattr.audit.records import Record
from mechattr.audit.result import Audit
from mechattr.audit.verdicts import Entails
from mechattr.errors import InputError, NotFiniteError, NotSupportedError

REFUSED = (InputError, NotSupportedError, NotFiniteError)
"""What one record can be at fault for. Anything else stops the run, and the next goes on there."""


def run(
    model: Any,
    records: Any,
    *,
    plan: Plan | None = None,
    out: str | Path | None = None,
    off_topic: Iterable[Any] | None = None,
    entails: Entails | None = None,
    fresh: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Audit:
    """Audit which passages each statement of each answer relied on.

    model: a HookedTransformer or TransformerBridge, or a name for ``ma.load_model``.
    records: a path to JSONL, a ``datasets`` source, or mappings; see ``mechattr.audit.reading``.
    plan, settings: a :class:`Plan`, or its fields by name: ``operators=("remove", "mask")``.
    out: a file for the lines, one a statement. Beside it ``X.measured.jsonl`` keeps what is
        finished, so that the same call goes on after an interruption, and ``X.manifest.json`` says
        what was run. None: in memory only.
    off_topic: texts, or (title, text), that have nothing to do with any question, for the null and
        for operator "replace"; None: those that come with the library.
    entails: ``(premise, statement) -> bool``; turns "cited and used" into "supported" where the
        cited passages that are used entail the statement.
    fresh: overwrite what an earlier run measured.

    Cost, a question of n passages: 2n + 2 masks, the surrogate's rows (equal ones once), two to
    four a swap, in runs that share their beginnings; all statements of an answer together.
    Raises InputError for a source that can't be opened, or that holds no record at all. Records
    that can't be used are in ``Audit.problems``, with line and reason.
    """
    chosen = _plan(plan, settings)
    source = _source(records)
    usable = [isinstance(entry, Record) for entry in read(source)]
    if not usable:
        raise InputError("There is no record: the source is empty.")
    files = Files.of(out)  # what is wrong with it is said before the model is loaded
    told = described(records, len(usable))
    loaded = _loaded(model)
    texts = OffTopic() if off_topic is None else OffTopic(off_topic)
    measurer = Measurer(loaded, chosen, texts, chosen.n_swaps(sum(usable)))
    facts = depends_on(loaded, chosen, texts, measurer.swaps)
    ledger = Ledger(files.measured if files else None, facts, fresh=fresh)
    questions, problems, prompts = _measured(read(source), measurer, ledger, len(usable), progress)
    audit = Audit.of(questions, problems, chosen, facts, entails, {**told, **prompts})
    if files:
        files.write(audit)
    return audit


@dataclass(frozen=True)
class Files:
    """What a run leaves: lines, manifest, measurements."""

    lines: Path
    manifest: Path
    measured: Path

    @classmethod
    def of(cls, out: str | Path | None) -> Files | None:
        if out is None:
            return None
        path = Path(out)
        if path.is_dir():
            raise InputError(f"out is a directory, {path}; expected a file, such as audit.jsonl.")
        stem = path.with_suffix("") if path.suffix == ".jsonl" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, Path(f"{stem}.manifest.json"), Path(f"{stem}.measured.jsonl"))

    def write(self, audit: Audit) -> None:
        """Lines and manifest, each as a whole or not at all."""
        audit.save(self.lines)
        audit.save_manifest(self.manifest)


def _measured(
    entries: Iterable[Record | Problem],
    measurer: Measurer,
    ledger: Ledger,
    n_records: int,
    progress: bool,
) -> tuple[list[dict[str, Any]], list[Problem], dict[str, int]]:
    """The measured questions, the problems, and what the prompts of the former were made of."""
    from tqdm.auto import tqdm

    questions: list[dict[str, Any]] = []
    problems: list[Problem] = []
    prompts: Counter[str] = Counter(own_template=0, messages=0, generated=0)
    bar = tqdm(total=n_records, desc="audit", unit="question", disable=not progress, leave=False)
    with bar:
        for entry in entries:
            found = entry if isinstance(entry, Problem) else _one(entry, measurer, ledger)
            if isinstance(entry, Record) and not isinstance(found, Problem):
                questions.append(found)
                prompts.update(prompted(entry))
            elif isinstance(found, Problem):
                problems.append(found)
            bar.update()
    return questions, problems, dict(prompts)


def _one(record: Record, measurer: Measurer, ledger: Ledger) -> dict[str, Any] | Problem:
    known = ledger.get(record.digest)
    if known is not None:
        return {**known, "line": record.line}
    try:
        measured = measurer.measure(record)
    except REFUSED as error:
        return Problem(record.line or 0, record.id, str(error))
    return ledger.put(measured)


def _source(records: Any) -> Any:
    """What can be read twice: once to count, once to measure."""
    if isinstance(records, (str, os.PathLike)):
        return records
    read(records)  # refuses what isn't of records; takes nothing from it
    return list(records) if isinstance(records, Iterator) else records


def _plan(plan: Plan | None, settings: Mapping[str, Any]) -> Plan:
    fields = [field.name for field in dataclasses.fields(Plan)]
    unknown = [name for name in settings if name not in fields]
    if unknown:
        from mechattr.errors import UnknownNameError

        raise UnknownNameError("setting of an audit", unknown[0], fields)
    return dataclasses.replace(plan or Plan(), **settings)


def _loaded(model: Any) -> Any:
    if not isinstance(model, str):
        return model
    from mechattr.transformer.loading import load_model

    return load_model(model)
