"""A task: prompts with counterfactuals, what is measured on them, and whether a model can do it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechattr.errors import InputError, NotFiniteError
from mechattr.transformer import targets
from mechattr.transformer.prompts import Prompts, token_id, tokenizer_of

if TYPE_CHECKING:
    import datasets

Tokens = tuple[str | int, ...]
"""A set of next tokens, as text or as ids."""

MEASURES = {"logit_diff": targets.logit_diff, "prob_diff": targets.prob_diff}


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Prompts with counterfactuals, and the answers that are set against the distractors.

    prompts: clean prompts and their counterfactuals, of equal token lengths.
    measure: what the target is: "logit_diff" of single answers, "prob_diff" of sets.
    answers, distractors: a set of next tokens a prompt; right and wrong ones of the clean prompt.
    columns: the data set's columns, one entry a prompt.
    seed, counterfactual_kind: what reproduces the task, with its size and the tokenizer.
    form: which form of the task this tokenizer allowed, in words; empty where there is only one.
    """

    name: str
    prompts: Prompts
    measure: str
    answers: tuple[Tokens, ...]
    distractors: tuple[Tokens, ...]
    columns: Mapping[str, Sequence[Any]]
    seed: int
    counterfactual_kind: str
    form: str = ""

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise InputError(f"measure is {self.measure!r}; expected one of {list(MEASURES)}.")
        lengths = {"answers": len(self.answers), "distractors": len(self.distractors)}
        lengths |= {f"column {name!r}": len(column) for name, column in self.columns.items()}
        for what, n in lengths.items():
            if n != len(self.prompts):
                raise InputError(f"{what}: {n} entries for {len(self.prompts)} prompts.")

    @cached_property
    def target(self) -> targets.Target:
        """What a game on this task measures."""
        return MEASURES[self.measure](_plain(self.answers), _plain(self.distractors))

    @cached_property
    def dataset(self) -> datasets.Dataset:
        """One row a prompt, as a Hugging Face data set."""
        import datasets

        return datasets.Dataset.from_dict(
            {name: list(column) for name, column in self.columns.items()},
            info=datasets.DatasetInfo(description=self._description()),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Task:
        """Some of the prompts, as a Task: ``task[:32]`` and ``task[32:]`` share none."""
        chosen = [index] if isinstance(index, int) else index
        picked = list(range(len(self))[chosen]) if isinstance(chosen, slice) else list(chosen)
        return replace(
            self,
            prompts=self.prompts[picked],
            answers=tuple(self.answers[i] for i in picked),
            distractors=tuple(self.distractors[i] for i in picked),
            columns={name: [column[i] for i in picked] for name, column in self.columns.items()},
        )

    def __repr__(self) -> str:
        example = f"  {self.prompts.texts[0]!r} -> {_show(self.answers[0])}"
        against = f", not {_show(self.distractors[0])}"
        return f"Task({self._description()}):\n{example}{against}"

    def _description(self) -> str:
        form = f"; {self.form}" if self.form else ""
        return (
            f"{self.name}, {len(self)} prompts, counterfactual {self.counterfactual_kind!r}, "
            f"{self.measure}, seed {self.seed}{form}"
        )

    def check(self, model: Any, *, batch_size: int = 16, progress: bool = True) -> TaskCheck:
        """Whether the model does the task: run it before anything is attributed.

        The model itself is run on the clean and on the counterfactual prompts, in batches of equal
        length: no padding, nothing of the engine. Cost: 2·⌈size / batch_size⌉ forward passes, or
        a few more where lengths differ.
        Raises NotFiniteError, naming the prompt, when the model returns NaN or infinity.
        """
        tokenizer, d_vocab = tokenizer_of(model), int(model.cfg.d_vocab)
        answers, distractors = _plain(self.answers), _plain(self.distractors)
        measured = (self.target, targets.log_prob(answers), targets.log_prob(distractors))
        bound = [target.bind(self.prompts, tokenizer, d_vocab) for target in measured]
        n = len(self.prompts)
        values = torch.full((2, n, len(bound)), torch.nan, dtype=torch.float64)
        top = torch.zeros(2, n, dtype=torch.long)
        for side, batch in _batches(self.prompts, batch_size, f"check {self.name}", progress):
            logits = _logits(model, self.prompts, side, batch)
            prompt = torch.tensor(batch)
            top[side, prompt] = logits.argmax(-1)
            for k, target in enumerate(bound):
                values[side, prompt, k] = _value(target, logits, prompt)
        right = [{token_id(tokenizer, a, d_vocab) for a in one} for one in self.answers]
        log_odds = values[..., 1] - values[..., 2]
        paired = self.prompts.counterfactual is not None
        return TaskCheck(
            task=self._description(),
            model=str(getattr(model.cfg, "model_name", None) or type(model).__name__),
            measure=self.measure,
            values=values[0, :, 0],
            logit_diff=log_odds[0],
            top=torch.tensor([int(t) in ids for t, ids in zip(top[0], right, strict=True)]),
            counterfactual_values=values[1, :, 0] if paired else None,
            counterfactual_logit_diff=log_odds[1] if paired else None,
        )


@dataclass(frozen=True, eq=False, repr=False)
class TaskCheck:
    """How well a model does a task; all tensors have one entry a prompt.

    values, counterfactual_values: the task's target on the clean and counterfactual prompts.
    logit_diff, counterfactual_logit_diff: log odds of answers against distractors,
        ``log p(answers) − log p(distractors)``; of single tokens their logit difference. In nats.
    top: whether the most likely next token of the clean prompt is an answer.
    """

    task: str
    model: str
    measure: str
    values: Float[Tensor, " prompt"]
    logit_diff: Float[Tensor, " prompt"]
    top: Bool[Tensor, " prompt"]
    counterfactual_values: Float[Tensor, " prompt"] | None
    counterfactual_logit_diff: Float[Tensor, " prompt"] | None

    @property
    def correct(self) -> Bool[Tensor, " prompt"]:
        """Whether the answers are more likely than the distractors; a tie is not."""
        return self.logit_diff > 0

    @property
    def accuracy(self) -> float:
        """Share of the prompts that are ``correct``; a guess has 0.5."""
        return float(self.correct.double().mean())

    @property
    def top_accuracy(self) -> float:
        """Share of the prompts whose most likely next token of all is an answer."""
        return float(self.top.double().mean())

    @property
    def mean_logit_diff(self) -> tuple[float, float]:
        """Mean and standard error over the clean prompts."""
        return mean_and_error(self.logit_diff)

    def __repr__(self) -> str:
        n, right, top = len(self.values), int(self.correct.sum()), int(self.top.sum())
        lines = [
            f"{self.task}, on {self.model}:",
            f"  answer beats distractor   {right} of {n} ({right / n:.1%})",
            f"  answer is the top token   {top} of {n} ({top / n:.1%})",
            _line("logit difference", self.logit_diff, self.counterfactual_logit_diff),
        ]
        if self.measure != "logit_diff":
            lines.append(_line(self.measure, self.values, self.counterfactual_values))
        return "\n".join(lines)


def mean_and_error(values: Float[Tensor, " prompt"]) -> tuple[float, float]:
    """Mean over prompts and its standard error, s/√n; the error of one prompt is NaN."""
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    return float(values.mean()), error


def _line(name: str, clean: Tensor, other: Tensor | None) -> str:
    def show(values: Tensor) -> str:
        mean, error = mean_and_error(values)
        return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"

    against = "" if other is None else f", counterfactual {show(other)}"
    return f"  {name:<25} clean {show(clean)}{against}"


def _plain(sets: tuple[Tokens, ...]) -> list[Any]:
    """Sets as targets take them: single answers plain, so that labels stay readable."""
    if all(len(one) == 1 for one in sets):
        return [one[0] for one in sets]
    return [list(one) for one in sets]


def _show(tokens: Tokens) -> str:
    if len(tokens) <= 3:
        return " | ".join(map(repr, tokens))
    return f"{tokens[0]!r} | ... | {tokens[-1]!r}"


def _batches(
    prompts: Prompts, batch_size: int, what: str, progress: bool
) -> Iterator[tuple[int, list[int]]]:
    """Prompts of equal length together: (0 for clean or 1 for counterfactual, their indices)."""
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; expected 1 or more.")
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(prompts.lengths):
        by_length[length].append(i)
    sides = (0,) if prompts.counterfactual is None else (0, 1)
    batches = [
        (side, same[start : start + batch_size])
        for side in sides
        for same in by_length.values()
        for start in range(0, len(same), batch_size)
    ]
    # Nothing is shown of a run that takes less than a second.
    yield from tqdm(batches, desc=what, unit="batch", disable=not progress, delay=1, leave=False)


@torch.no_grad()
def _logits(
    model: Any, prompts: Prompts, side: int, batch: list[int]
) -> Float[Tensor, "row vocabulary"]:
    """Logits at each prompt's target position, on the CPU in float32 or better."""
    rows = (prompts.tokens, prompts.counterfactual or ())[side]
    tokens = torch.stack([rows[i] for i in batch]).to(model.W_U.device)
    logits = model(tokens, return_type="logits")
    at = torch.tensor([prompts.target_positions[i] for i in batch], device=logits.device)
    logits = logits[torch.arange(len(batch), device=logits.device), at].cpu()
    for i, row in zip(batch, logits, strict=True):
        if not bool(row.isfinite().all()):
            labels = (prompts.labels, prompts.counterfactual_labels or ())[side][i]
            raise NotFiniteError(
                f"The model returned NaN or infinity on {('clean', 'counterfactual')[side]} "
                f"prompt {i}, at position {prompts.target_positions[i]}: {''.join(labels)!r}"
            )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _value(target: targets.BoundTarget, logits: Tensor, prompt: Tensor) -> Tensor:
    if target.columns is not None:
        logits = logits.gather(1, target.columns[prompt])
    return target.value(logits[:, None], prompt, None).double()
