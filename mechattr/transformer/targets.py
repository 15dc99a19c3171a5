"""Targets: what of the model's next-token prediction a game's value is.

A target says which positions it reads and, where it needs only some of the vocabulary, which
columns, so that the engine computes nothing else of the logits.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechattr.errors import InputError
from mechattr.transformer.prompts import Prompts, find, token_id

Answer = str | int | Sequence[Any] | Tensor
"""One answer for all prompts; a list of one a prompt; or a list of lists, a set a prompt."""


@dataclass(frozen=True)
class BoundTarget:
    """A target resolved against prompts: what to read and how to turn it into one value a row.

    positions: [prompt, read] positions whose logits are read; a prompt with fewer repeats its last.
    columns: [prompt, column] vocabulary ids to compute, or None for the whole vocabulary.
    value: (logits [row, read, column or vocabulary], prompt [row], clean) -> [row]; ``clean`` is
        the clean run's logits of the same rows, or None unless ``needs_clean``.
    facts: what provenance should say beyond the label.
    """

    label: str
    positions: Int[Tensor, "prompt read"]
    columns: Int[Tensor, "prompt column"] | None
    value: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    needs_clean: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target(ABC):
    """What is attributed. Use the functions of this module to make one."""

    @property
    @abstractmethod
    def label(self) -> str:
        """How figures and tables name it."""

    @abstractmethod
    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        """Resolve answers and positions against the prompts."""

    def __neg__(self) -> Target:
        """With the other sign: of a distance, how near. ACDC as published takes ``-kl()``."""
        return _Negative(self)


def logit(answer: Answer) -> Target:
    """The answer's logit, in logits (nats up to the softmax's constant)."""
    return _Tokens("logit", answer)


def logit_diff(answer: Answer, distractor: Answer) -> Target:
    """``logit(answer) − logit(distractor)``: the log odds between the two, in nats."""
    return _against("logit_diff", answer, distractor)


def log_prob(answer: Answer) -> Target:
    """``log p(answer)``, in nats."""
    return _Tokens("log_prob", answer)


def prob(answer: Answer) -> Target:
    """``p(answer)``."""
    return _Tokens("prob", answer)


def prob_diff(answer: Answer, distractor: Answer) -> Target:
    """``p(answer) − p(distractor)``; of sets, the difference of their total probabilities."""
    return _against("prob_diff", answer, distractor)


def _against(kind: str, answer: Answer, distractor: Answer) -> Target:
    if distractor is None:
        raise InputError(f"{kind} needs a distractor to set the answer against; got None.")
    return _Tokens(kind, answer, distractor)


def kl() -> Target:
    """``KL(p_clean ‖ p)`` of the next-token distributions, in nats; 0 when all are present.

    It measures a distance: a player whose presence keeps the prediction has a *negative* score.
    """
    return _KL()


def loss(answer: Answer | None = None) -> Target:
    """Cross-entropy, in nats: ``−log p(answer)``, or without an answer the mean over the clean
    prompt's own next tokens, whatever its target position. It falls when the prediction gets
    better."""
    return _Tokens("loss", answer) if answer is not None else _PromptLoss()


def sequence_log_prob(sequence: Any) -> Target:
    """``Σ_t log p(token t | what stands before it)``, in nats, of several tokens that are in the
    clean prompt itself (teacher forced), whatever its target position.

    sequence: a text of the prompt (its last occurrence: all tokens that hold a part of it) or its
        positions there, negative ones from the prompt's end; a list of texts, or of lists of
        positions, is one a prompt. The first token of a prompt, which nothing predicts, can't be
        among them.

    A run on another prompt (a counterfactual) is read at the same positions and for the same
    tokens. So they must not be a player's, whose absence would then change what comes before the
    next of them.
    """
    return _Sequence(sequence)


def custom(function: Callable[..., Tensor], label: str | None = None) -> Target:
    """Any differentiable function of the logits at the target position.

    function: ``f(logits [row, vocabulary])`` or ``f(logits, prompt [row])`` -> [row].
    """
    if not callable(function):
        raise InputError(f"custom() takes a function of the logits; got {function!r}.")
    return _Custom(function, label or str(getattr(function, "__name__", "custom")))


def as_target(target: Target | Callable[..., Tensor]) -> Target:
    """A Target as it is; a plain function of the logits as :func:`custom`."""
    if isinstance(target, Target):
        return target
    if callable(target):
        return custom(target)
    raise InputError(
        f"The target is {target!r}; expected one of mechattr.targets (logit_diff(...), "
        f"log_prob(...), ...) or a function of the logits."
    )


_COLUMNS_SUFFICE = {"logit", "logit_diff"}


class _Table:
    """A small table that moves to a device once: copying it inside a sweep would make the host
    wait for the device."""

    def __init__(self, values: Tensor):
        self._values = {values.device: values}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._values:
            self._values[device] = next(iter(self._values.values())).to(device)
        return self._values[device]


@dataclass(frozen=True)
class _Tokens(Target):
    kind: str
    answer: Any
    distractor: Any = None

    @property
    def label(self) -> str:
        if self.distractor is not None:
            return f"{self.kind}({_show(self.answer)}, {_show(self.distractor)})"
        return f"{self.kind}({_show(self.answer)})"

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        ids = _resolve(self.answer, prompts, tokenizer, d_vocab, "answer")
        others = None
        if self.distractor is not None:
            others = _resolve(self.distractor, prompts, tokenizer, d_vocab, "distractor")
            _check_differ(ids, others, tokenizer)
        sizes = [ids.shape[1], 0 if others is None else others.shape[1]]
        all_ids = ids if others is None else torch.cat([ids, others], dim=1)
        compact = self.kind in _COLUMNS_SUFFICE
        table = _Table(all_ids)

        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            chosen = table.on(logits.device)[prompt]
            scores = _token_scores(self.kind, logits[:, 0], chosen, compact)
            parts = torch.split(scores, sizes, dim=1)
            return _combine(self.kind, parts[0], chosen[:, : sizes[0]]) - (
                _combine(self.kind, parts[1], chosen[:, sizes[0] :]) if sizes[1] else 0.0
            )

        return BoundTarget(
            label=self.label,
            positions=torch.tensor(prompts.target_positions)[:, None],
            columns=all_ids.clamp(min=0) if compact else None,
            value=value,
            facts=_ids(ids, others),
        )


def _ids(answers: Tensor, distractors: Tensor | None) -> dict[str, Any]:
    facts = {"answer_ids": answers.tolist()}
    return facts if distractors is None else {**facts, "distractor_ids": distractors.tolist()}


def _token_scores(kind: str, logits: Tensor, chosen: Tensor, compact: bool) -> Tensor:
    if compact:
        return logits
    if kind in ("log_prob", "loss"):
        logits = logits.log_softmax(-1)
    elif kind in ("prob", "prob_diff"):
        logits = logits.softmax(-1)
    return logits.gather(1, chosen.clamp(min=0))


def _combine(kind: str, scores: Tensor, ids: Tensor) -> Tensor:
    """One score from a set of tokens: mean logit, or total probability; id -1 is padding."""
    real = ids >= 0
    if kind in ("prob", "prob_diff"):
        return torch.where(real, scores, 0).sum(1)
    if kind in ("log_prob", "loss"):
        total = torch.where(real, scores, -torch.inf).logsumexp(1)
        return -total if kind == "loss" else total
    return torch.where(real, scores, 0).sum(1) / real.sum(1)


@dataclass(frozen=True)
class _KL(Target):
    @property
    def label(self) -> str:
        return "KL(clean || run)"

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            assert clean is not None
            p, q = clean[:, 0].log_softmax(-1), logits[:, 0].log_softmax(-1)
            return (p.exp() * (p - q)).sum(-1)

        positions = torch.tensor(prompts.target_positions)[:, None]
        return BoundTarget(self.label, positions, None, value, needs_clean=True)


@dataclass(frozen=True)
class _Negative(Target):
    target: Target

    @property
    def label(self) -> str:
        return f"−{self.target.label}"

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        bound = self.target.bind(prompts, tokenizer, d_vocab)

        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            return -bound.value(logits, prompt, clean)

        return replace(bound, value=value, label=self.label)

    def __neg__(self) -> Target:
        return self.target


@dataclass(frozen=True)
class _PromptLoss(Target):
    @property
    def label(self) -> str:
        return "loss(prompt)"

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        if min(prompts.lengths) < 2:
            raise InputError(
                "loss() without an answer needs prompts of two tokens or more: it averages over "
                "each prompt's own next tokens. Give loss(answer)."
            )
        read = max(prompts.lengths) - 1
        positions = torch.stack(
            [torch.arange(read).clamp(max=n - 2) for n in prompts.lengths]
        )  # [prompt, read]
        real = torch.stack([torch.arange(read) < n - 1 for n in prompts.lengths])
        following = torch.stack(
            [row[at + 1] for row, at in zip(prompts.tokens, positions, strict=True)]
        )

        labels, counted = _Table(following), _Table(real)

        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            next_ids = labels.on(logits.device)[prompt]
            keep = counted.on(logits.device)[prompt]
            scores = logits.log_softmax(-1).gather(2, next_ids[..., None])[..., 0]
            return -torch.where(keep, scores, 0).sum(1) / keep.sum(1)

        return BoundTarget(self.label, positions, None, value)


@dataclass(frozen=True)
class _Sequence(Target):
    sequence: Any

    @property
    def label(self) -> str:
        return f"sequence_log_prob({_show(self.sequence)})"

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        places = [
            _places(given, labels, i)
            for i, (given, labels) in enumerate(
                zip(_one_each(self.sequence, len(prompts)), prompts.labels, strict=True)
            )
        ]
        width = max(len(one) for one in places)
        at = torch.tensor([one + one[-1:] * (width - len(one)) for one in places])
        real = torch.tensor([[k < len(one) for k in range(width)] for one in places])
        ids = torch.stack([row[of] for row, of in zip(prompts.tokens, at, strict=True)])
        wanted, counted = _Table(ids), _Table(real)

        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            own = wanted.on(logits.device)[prompt][..., None]  # [row, read, 1]
            scores = logits.gather(2, own)[..., 0] - logits.logsumexp(-1)
            return torch.where(counted.on(logits.device)[prompt], scores, 0).sum(1)

        facts = {
            "sequence_ids": [
                row[one].tolist() for row, one in zip(prompts.tokens, places, strict=True)
            ]
        }
        return BoundTarget(self.label, at - 1, None, value, facts=facts)


def _one_each(sequence: Any, n_prompts: int) -> list[Any]:
    """One sequence a prompt: a text, or positions."""
    given = _unwrapped(sequence)
    if isinstance(given, str) or (
        isinstance(given, (Sequence, range)) and given and isinstance(given[0], Integral)
    ):
        return [given] * n_prompts
    if not isinstance(given, Sequence) or len(given) != n_prompts:
        raise InputError(
            f"The sequence is {sequence!r}; expected a text of the prompt, its positions there, or "
            f"a list of one of these a prompt ({n_prompts})."
        )
    return [_unwrapped(one) for one in given]


def _places(given: Any, labels: tuple[str, ...], prompt: int) -> list[int]:
    """[token] positions of a sequence in a prompt, none of them 0."""
    if isinstance(given, str):
        found = list(find(labels, given, -1, prompt))
    elif not isinstance(given, Sequence) or not all(
        isinstance(p, Integral) and not isinstance(p, bool) for p in given
    ):
        raise InputError(f"Prompt {prompt}: its sequence is {given!r}; expected text or positions.")
    else:
        outside = [p for p in given if not -len(labels) <= p < len(labels)]
        if outside:
            raise InputError(
                f"The sequence's position {outside[0]} is outside prompt {prompt}, which has "
                f"{len(labels)} tokens."
            )
        found = sorted(int(p) % len(labels) for p in given)
    if not found or len(set(found)) < len(found):
        raise InputError(
            f"Prompt {prompt}: its sequence {given!r} is empty or names a position twice."
        )
    if found[0] == 0:
        raise InputError(
            f"Prompt {prompt}: its sequence {given!r} has the prompt's first token, "
            f"{labels[0]!r}, which nothing predicts. Leave it out, or prepend BOS."
        )
    return found


@dataclass(frozen=True)
class _Custom(Target):
    function: Callable[..., Tensor]
    name: str

    @property
    def label(self) -> str:
        return self.name

    def bind(self, prompts: Prompts, tokenizer: Any, d_vocab: int) -> BoundTarget:
        takes_prompt = _n_positional(self.function) >= 2

        def value(logits: Tensor, prompt: Tensor, clean: Tensor | None) -> Tensor:
            rows = logits[:, 0]
            out = self.function(rows, prompt) if takes_prompt else self.function(rows)
            if not isinstance(out, Tensor) or out.shape != rows.shape[:1]:
                got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
                raise InputError(
                    f"The target function {self.name!r} returned {got}; expected one value a "
                    f"row, shape ({len(rows)},), from logits {tuple(rows.shape)}."
                )
            # an argmax, a comparison or another precision is a fine target for patching
            return out.to(logits.dtype)

        positions = torch.tensor(prompts.target_positions)[:, None]
        return BoundTarget(self.label, positions, None, value)


def _n_positional(function: Callable[..., Any]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins without a signature
        return 1
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _resolve(
    answer: Any, prompts: Prompts, tokenizer: Any, d_vocab: int, what: str
) -> Int[Tensor, "prompt answer"]:
    """Ids [prompt, answer], padded with -1 where prompts have sets of different sizes."""
    answer = _unwrapped(answer)
    if isinstance(answer, (str, Integral)):
        each: list[Any] = [answer] * len(prompts)
    elif not isinstance(answer, Sequence):
        # A set has no order that could pair its members with the prompts.
        raise InputError(
            f"The {what} is {answer!r}; expected a string, a token id, or a list of one a prompt "
            f"(for a set of tokens a prompt, a list of lists)."
        )
    else:
        each = list(answer)
        if len(each) != len(prompts):
            raise InputError(
                f"Got {len(each)} {what}s for {len(prompts)} prompts; expected one for all, "
                f"or a list of one a prompt (for a set of tokens a prompt, a list of lists)."
            )
    each = [_unwrapped(a) for a in each]
    sets = [list(a) if isinstance(a, Iterable) and not isinstance(a, str) else [a] for a in each]
    ids = [[token_id(tokenizer, a, d_vocab) for a in one] for one in sets]
    for i, one in enumerate(ids):
        if not one:
            raise InputError(f"Prompt {i} has no {what}: its set is empty.")
        if len(set(one)) < len(one):
            raise InputError(
                f"Prompt {i}: its set of {what}s names a token twice, which would count twice: "
                f"{sets[i]!r}."
            )
    width = max(len(one) for one in ids)
    return torch.tensor([one + [-1] * (width - len(one)) for one in ids])


def _unwrapped(answer: Any) -> Any:
    """Tensors, arrays and data frame columns as plain lists or numbers."""
    return answer.tolist() if hasattr(answer, "tolist") else answer


def _check_differ(ids: Tensor, others: Tensor, tokenizer: Any) -> None:
    for i, (a, b) in enumerate(zip(ids.tolist(), others.tolist(), strict=True)):
        if set(a) - {-1} == set(b) - {-1}:
            raise InputError(
                f"Prompt {i}: answer and distractor are the same token, "
                f"{tokenizer.decode([a[0]])!r}; their difference is always 0."
            )


def _show(answer: Any) -> str:
    answer = _unwrapped(answer)
    if isinstance(answer, (str, Integral)):
        return repr(answer)
    shown = [repr(a) for a in list(answer)[:2]]
    return "[" + ", ".join(shown) + (", ..." if len(list(answer)) > 2 else "") + "]"
