"""An answer of the model's own, for questions that come without one.

Token by token on the blocks of a :class:`~mechattr.transformer.model.Face`, with kept keys and
values: the very computation that scores the answer afterwards, for both model classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechattr.errors import InputError, NotFiniteError
from mechattr.transformer.model import Face, Past, face_of
from mechattr.transformer.prompts import tokenizer_of
from mechattr.transformer.scoring import CHUNK

_UNDECODED = "\ufffd"
"""What a tokenizer shows for a character of which it has only some bytes."""

_CONTEXT = 16
"""Tokens of the prompt that the answer's text is decoded with: a SentencePiece tokenizer shows the
blank before a word only where something comes before."""


@dataclass(frozen=True, eq=False)
class Generated:
    """What the model wrote.

    tokens: int64 [token] on the CPU, without the one that it stopped at.
    text: theirs, exactly as it follows the prompt: with the blank that it begins with, if any.
    ended: whether the model stopped by itself, rather than at ``max_new_tokens`` or the end of its
        context.
    """

    tokens: Int[Tensor, " token"]
    text: str
    ended: bool


@torch.inference_mode(False)
@torch.no_grad()
def generate(
    model: Any,
    prompt_tokens: Int[Tensor, " position"] | Int[np.ndarray, " position"] | Sequence[int],
    *,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    seed: int = 0,
    stop_ids: Iterable[int] | None = None,
) -> Generated:
    """The model's continuation of a prompt.

    model: a HookedTransformer or TransformerBridge, or its Face.
    prompt_tokens: token ids, with BOS and chat markup where the model expects them.
    max_new_tokens: at most; fewer where the model's context ends.
    temperature: 0 takes the most likely token each time (the first of equals); above, tokens are
        drawn from ``softmax(logits / temperature)`` by a generator of its own, on the CPU from
        float64: a seed gives the same draws on every device.
    stop_ids: tokens that end the answer and aren't part of it; None: :func:`end_tokens`.

    An answer that is cut within a character of several tokens ends before that character.

    Cost: the prompt once (a bridge's twice: it is asked for its masks and rotations first), then
    one position a token. The model, its hooks and flags, and PyTorch's random state stay as they
    were. Raises InputError for an empty or too long prompt and bad settings, NotFiniteError where
    logits are NaN.
    """
    face = face_of(model)
    prompt = _checked_prompt(face, prompt_tokens)
    _check_settings(max_new_tokens, temperature)
    tokenizer = tokenizer_of(face.model)
    stops = end_tokens(face.model) if stop_ids is None else frozenset(int(i) for i in stop_ids)
    # The last token is written and not read.
    room = min(int(max_new_tokens), face.n_ctx - len(prompt) + 1)
    made: list[int] = []
    ended = False
    with face.quiet():
        face.check(prompt)
        writer = _Writer(face, prompt, room)
        choose = _Chooser(float(temperature), seed)
        while len(made) < room:
            token = choose(writer.logits())
            if token in stops:
                ended = True
                break
            made.append(token)
            writer.append(token)
    text = _text_after(tokenizer, prompt, made)
    while not ended and made and text.endswith(_UNDECODED):
        made.pop()
        text = _text_after(tokenizer, prompt, made)
    return Generated(torch.tensor(made, dtype=torch.long), text, ended)


class _Writer:
    """A growing text's next logits; what was read stays as keys and values."""

    def __init__(self, face: Face, prompt: Tensor, room: int):
        self.face = face
        # Room for what is to come; which tokens hold it doesn't matter, attention is causal.
        self.row = torch.cat([prompt, prompt[-1:].expand(room)]).to(face.device)[None]
        self.n = len(prompt)
        self._read = 0
        self._past: list[Past | None] = [None] * face.n_layers
        face.prepare(self.row[:, : self.n + room - 1])

    def append(self, token: int) -> None:
        self.row[0, self.n] = token
        self.n += 1

    def logits(self) -> Float[Tensor, " vocab"]:
        """Of the token that comes next."""
        # A position may be embedded by where it is: so the text is, from its beginning.
        embedded, _ = self.face.embed(self.row[:, : self.n])
        last = embedded
        while self._read < self.n:
            start, stop = self._read, min(self._read + CHUNK, self.n)
            last = embedded[:, start:stop]
            for i in range(self.face.n_layers):
                last, self._past[i] = self.face.run_block(i, last, start, self._past[i], keep=True)
            self._read = stop
        return self.face.logits(last[:, -1:], None)[0, 0]


class _Chooser:
    def __init__(self, temperature: float, seed: int):
        self.temperature = temperature
        self.generator = torch.Generator().manual_seed(int(seed))

    def __call__(self, logits: Float[Tensor, " vocab"]) -> int:
        if bool(logits.isnan().any()):
            raise NotFiniteError(
                "The model's logits are NaN while generating. In half precision try float32, else "
                "check the model."
            )
        if not self.temperature:
            return int(logits.argmax())
        chances = (logits.to("cpu", torch.float64) / self.temperature).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self.generator))


def end_tokens(model: Any) -> frozenset[int]:
    """Tokens that end an answer: EOS, what the model's own generation settings stop at, and what
    the chat template puts after an assistant's words (``<|im_end|>``, ``<|eot_id|>``, ...)."""
    tokenizer = tokenizer_of(model)
    found: list[Any] = [getattr(tokenizer, "eos_token_id", None)]
    settings = getattr(getattr(model, "original_model", None), "generation_config", None)
    stops = getattr(settings, "eos_token_id", None)
    found += list(stops) if isinstance(stops, (list, tuple)) else [stops]
    found.append(_end_of_turn(tokenizer))
    return frozenset(int(token) for token in found if token is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token right after an assistant's words in the chat template, if there is one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    words = "words"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # noqa: BLE001  jinja's own, or whatever a template raises: it can't tell us
        return None
    _, found, after = text.rpartition(words)
    ids = tokenizer(after.lstrip(), add_special_tokens=False).input_ids if found else []
    special = {int(i) for i in getattr(tokenizer, "added_tokens_decoder", {})}
    special |= {int(i) for i in tokenizer.all_special_ids}
    return int(ids[0]) if len(ids) and int(ids[0]) in special else None


def _text_after(tokenizer: Any, prompt: Tensor, tokens: list[int]) -> str:
    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    before = prompt[-_CONTEXT:].tolist()
    head, both = decode(before), decode(before + tokens)
    return both[len(head) :] if both.startswith(head) else decode(tokens)


def _checked_prompt(face: Face, tokens: Any) -> Int[Tensor, " position"]:
    row = torch.as_tensor(tokens).detach().cpu()
    if row.ndim != 1 or row.is_floating_point() or row.dtype == torch.bool or not len(row):
        raise InputError(
            f"prompt_tokens is {row.dtype} of shape {tuple(row.shape)}; expected whole numbers "
            f"[position], at least one."
        )
    row = row.long()
    outside = row[(row < 0) | (row >= face.d_vocab)].tolist()
    if outside:
        raise InputError(
            f"Token id {outside[0]} is outside the model's vocabulary of {face.d_vocab}."
        )
    if len(row) > face.n_ctx:
        raise InputError(
            f"The prompt has {len(row)} tokens; the model's context is {face.n_ctx}. Shorten it."
        )
    return row


def _check_settings(max_new_tokens: Any, temperature: Any) -> None:
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, Integral)
        or max_new_tokens < 1
    ):
        raise InputError(f"max_new_tokens is {max_new_tokens!r}; expected 1 or more.")
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, Real)
        or not 0 <= float(temperature) < float("inf")
    ):
        raise InputError(f"temperature is {temperature!r}; expected 0 (greedy) or more.")
