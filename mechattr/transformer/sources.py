"""Sources: what an absent player is replaced by.

Two kinds. A *run* source is another input to the model (the counterfactual prompt, noised
embeddings, a prompt of one fixed token): an absent activation takes the value that it has in that
run. A *value* source is a number for each activation, whatever the prompt (zero, a mean).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechattr.errors import InputError
from mechattr.transformer.prompts import Prompts, token_id, tokenizer_of
from mechattr.transformer.sites import Site

Recorded = tuple[list[int], dict[Site, Tensor]]
"""Some prompts' lengths and, per site, their values [prompt, position, unit, width], padded."""

Recorder = Callable[[Prompts, Sequence[Site]], Iterator[Recorded]]
"""Runs prompts, some at a time, and yields what it recorded at sites."""


class Source(ABC):
    """What an absent player becomes. Settings only; resolved by :meth:`bind`."""

    draws: int = 1

    @property
    @abstractmethod
    def label(self) -> str:
        """For provenance and figures."""

    @abstractmethod
    def bind(self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder) -> Any:
        """A :class:`RunSource` or a :class:`ValueSource` for these prompts and sites."""

    def split(self) -> Sequence[Source]:
        """The sources of single draws."""
        return (self,)

    def summary(self) -> dict[str, Any]:
        """Provenance, JSON-able."""
        return {"source": self.label}


@dataclass(frozen=True, eq=False)
class RunSource:
    """Another input: token ids a prompt, and what is added to their embeddings ([position,
    d_model], or None)."""

    tokens: tuple[Tensor, ...]
    added: tuple[Tensor, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class ValueSource:
    """A value a site, [1, position or 1, unit, width]; None is zero.

    facts: what provenance should say of it.
    """

    values: Mapping[Site, Tensor | None]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Zero(Source):
    """Zero: zero ablation for components; for tokens a zero embedding (at which RMSNorm and
    LayerNorm are singular: see IntegratedGradients)."""

    @property
    def label(self) -> str:
        return "zero"

    def bind(
        self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder
    ) -> ValueSource:
        return ValueSource(dict.fromkeys(sites))


@dataclass(frozen=True)
class Mean(Source):
    """The mean over a data set: mean ablation.

    data: texts, Prompts, or a ``datasets.Dataset`` with its ``column``.
    per_position: the mean at each position instead of over all of them. The data must then be as
        long as the prompts, and should be of the same template.
    """

    data: Any = None
    per_position: bool = False
    column: str = "text"

    @property
    def label(self) -> str:
        return "mean per position" if self.per_position else "mean"

    def bind(
        self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder
    ) -> ValueSource:
        data = self._prompts(model, prompts)
        longest = max(prompts.lengths)
        if self.per_position and max(data.lengths) < longest:
            raise InputError(
                f"A positional mean needs data as long as the prompts: the longest text has "
                f"{max(data.lengths)} tokens, a prompt {longest}. Give longer texts, or "
                f"Mean(..., per_position=False)."
            )
        facts = {"source_data": data.digest(), "source_data_size": len(data)}
        return ValueSource(_means(record(data, sites), longest, self.per_position), facts)

    def _prompts(self, model: Any, prompts: Prompts) -> Prompts:
        data = self.data
        expected = "a list of texts, Prompts, or a datasets.Dataset (Mean(data, column=...))"
        if data is None:
            raise InputError(
                f"A mean source needs a data set to average over: Mean(texts), {expected}."
            )
        if isinstance(data, Prompts):
            return data
        if isinstance(data, Mapping):
            raise InputError(f"The mean's data has parts {', '.join(data)}; give one of them.")
        if getattr(data, "column_names", None):
            if self.column not in data.column_names:
                raise InputError(
                    f"The mean's data has no column {self.column!r}; it has "
                    f"{', '.join(data.column_names)}. Give Mean(data, column=...)."
                )
            data = data[self.column]
        if not isinstance(data, Iterable):
            raise InputError(f"The mean's data is {data!r}; expected {expected}.")
        rows = [data] if isinstance(data, str) else data
        texts: list[Any] = [
            row.get(self.column) if isinstance(row, Mapping) else row for row in rows
        ]
        if not texts:
            raise InputError(f"The mean's data is empty; expected {expected}.")
        return Prompts.from_texts(model, texts, prepend_bos=prompts.prepend_bos)


def _means(
    batches: Iterator[Recorded], longest: int, per_position: bool
) -> dict[Site, Tensor | None]:
    """Running means, so that no data set is held: [1, position or 1, unit, width] a site. Every
    token counts once, so that long texts don't count less."""
    totals: dict[Site, Tensor] = {}
    count = torch.zeros(longest if per_position else 1, dtype=torch.int64)
    dtype = torch.float32
    for lengths, values in batches:
        real = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
        count = _add(count, real.sum(0)[:longest] if per_position else real.sum()[None])
        for site, value in values.items():
            dtype = value.dtype
            wide = torch.promote_types(dtype, torch.float32)  # half precision can't even count
            keep = real.to(value.device)[..., None, None]
            part = torch.where(keep, value.to(wide), 0).sum(0)  # [position, unit, width]
            part = part[:longest] if per_position else part.sum(0, keepdim=True)
            size = (len(count), *part.shape[1:])
            before = totals.get(site)
            totals[site] = _add(part.new_zeros(size) if before is None else before, part)
    return {
        site: (total / count.to(total.device)[:, None, None]).to(dtype)[None]
        for site, total in totals.items()
    }


def _add(total: Tensor, part: Tensor) -> Tensor:
    """The sum, where a batch of short texts has fewer positions."""
    total[: len(part)] += part
    return total


@dataclass(frozen=True)
class Counterfactual(Source):
    """The counterfactual prompt's run: interchange (resample) ablation."""

    @property
    def label(self) -> str:
        return "counterfactual"

    def bind(
        self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder
    ) -> RunSource:
        if prompts.counterfactual is None:
            raise InputError(
                "A counterfactual source needs counterfactual prompts, and these have none: "
                "Prompts.from_pairs(model, clean, counterfactual), or another source."
            )
        return RunSource(prompts.counterfactual)


@dataclass(frozen=True)
class Token(Source):
    """A run in which every token is one fixed token (a BOS in front stays)."""

    token: str | int

    @property
    def label(self) -> str:
        return f"token {self.token!r}"

    def bind(
        self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder
    ) -> RunSource:
        d_vocab = int(model.W_U.shape[-1])
        fixed = token_id(tokenizer_of(model), self.token, d_vocab, "source token")
        rows = []
        bos = tokenizer_of(model).bos_token_id
        for tokens in prompts.tokens:
            row = torch.full_like(tokens, fixed)
            if bos is not None and int(tokens[0]) == bos:
                row[0] = tokens[0]
            rows.append(row)
        return RunSource(tuple(rows))


@dataclass(frozen=True)
class Noise(Source):
    """A run with Gaussian noise on the tokens' embeddings, averaged over draws: causal tracing.

    scale: σ in units of the standard deviation of the prompt's token embeddings (Meng et al. 2022
        use 3, and the deviation over all prompts).
    draws: how many independent noise draws ``v`` averages over.
    at: where the noise goes: None for every position, a text (its first occurrence in each
        prompt), or per prompt a sequence of positions.

    The noise of a prompt depends on the seed, the draw and the prompt's own tokens only, so that a
    prompt in a batch gets the noise that it gets alone.
    """

    scale: float = 3.0
    draws: int = 10
    seed: int = 0
    at: str | Sequence[Sequence[int]] | None = None
    first: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or self.draws < 1 or not self.scale > 0:
            raise InputError(
                f"Noise needs draws >= 1 and scale > 0, draws a whole number; got "
                f"draws={self.draws!r}, scale={self.scale!r}."
            )

    @property
    def label(self) -> str:
        return f"noise ({self.scale:g} σ, {self.draws} draw{'s' if self.draws > 1 else ''})"

    def split(self) -> Sequence[Source]:
        if self.draws == 1:
            return (self,)
        return tuple(
            Noise(self.scale, 1, self.seed, self.at, self.first + k) for k in range(self.draws)
        )

    def bind(
        self, model: Any, prompts: Prompts, sites: Sequence[Site], record: Recorder
    ) -> RunSource:
        embed = Site("embed", 0, "hook_embed", 1)
        embedded = [
            row[:n, 0]  # [position, d_model]
            for lengths, values in record(prompts, [embed])
            for row, n in zip(values[embed], lengths, strict=True)
        ]
        spans = self._spans(prompts)
        return RunSource(
            prompts.tokens,
            tuple(
                self._draw(tokens, row, span)
                for tokens, row, span in zip(prompts.tokens, embedded, spans, strict=True)
            ),
        )

    def _draw(self, tokens: Tensor, like: Tensor, span: Sequence[int]) -> Tensor:
        sigma = self.scale * like.double().std().item()
        key = zlib.crc32(tokens.numpy().tobytes())
        mixed = (self.seed * 1_000_003 + self.first) * 4_294_967_311 + key
        generator = torch.Generator().manual_seed(mixed % 2**63)
        noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
        keep = torch.zeros(len(noise), 1, dtype=torch.float64)
        keep[list(span)] = 1
        return (noise * keep * sigma).to(like)

    def _spans(self, prompts: Prompts) -> Sequence[Sequence[int]]:
        if self.at is None:
            return [range(n) for n in prompts.lengths]
        if isinstance(self.at, str):
            return prompts.span(self.at)
        if len(self.at) != len(prompts):
            raise InputError(
                f"Noise(at=...) has positions for {len(self.at)} prompts; there are {len(prompts)}."
            )
        for i, (span, n) in enumerate(zip(self.at, prompts.lengths, strict=True)):
            if any(not 0 <= p < n for p in span):
                raise InputError(
                    f"Noise(at=...): prompt {i} has positions 0 to {n - 1}; got {list(span)}."
                )
        return self.at

    def summary(self) -> dict[str, Any]:
        at = self.at if self.at is None or isinstance(self.at, str) else [list(s) for s in self.at]
        return {"source": self.label, "source_seed": self.seed, "source_at": at}
