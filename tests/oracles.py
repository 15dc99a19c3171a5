"""Slow references that know nothing of the engine: the whole prompt, with hooks, for every mask.

What a player is comes from its coordinates (kind, layer, head, position) and TransformerLens' hook
names; what it is replaced by comes from ``run_with_cache`` on the whole, unpadded prompt; the
target is read off the model's own logits. Of the library it uses what a caller gives to it
(prompts, sources by their settings), never what it makes of that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mechattr as ma
from tests.transformer import tiny

HOOKS = {
    "token": "hook_embed",
    "head": "blocks.{}.attn.hook_z",
    "query": "blocks.{}.attn.hook_q",
    "key": "blocks.{}.attn.hook_k",
    "value": "blocks.{}.attn.hook_v",
    "attention": "blocks.{}.hook_attn_out",
    "mlp": "blocks.{}.hook_mlp_out",
    "neuron": "blocks.{}.mlp.hook_post",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
}
"""TransformerLens' hook point of each kind of player."""

PAIR = (40, 20)
"""The two token ids whose logits the tests' default target compares."""


@dataclass(frozen=True)
class Address:
    """Where a player lives: a hook point, and there one unit or all, one position or all."""

    hook: str
    unit: int | None = None
    position: int | None = None

    def lies_in(self, value: Tensor) -> bool:
        """Whether the prompt is long enough to have this position."""
        return self.position is None or self.position < value.shape[1]

    def select(self) -> tuple[Any, ...]:
        """The index of this address in a hook's value [mask, position, (unit, ...)]."""
        at = slice(None) if self.position is None else self.position
        return (slice(None), at) if self.unit is None else (slice(None), at, self.unit)


def addresses(players: Any) -> list[list[Address]]:
    """The addresses of ungrouped players, from their coordinates only."""
    out = []
    for i in range(len(players)):
        coords = {key: values[i] for key, values in players.coords.items()}
        hook = HOOKS[coords["kind"]].format(coords.get("layer"))
        units = [coords[k] for k in ("head", "kv_head", "neuron") if coords.get(k) is not None]
        out.append([Address(hook, units[0] if units else None, coords.get("position"))])
    return out


def is_bridge(model: Any) -> bool:
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


Values = Mapping[str, Tensor]
"""A hook point's name -> its value, [1, position, ...] (position 1: the same at each)."""


def recorded(
    model: Any, tokens: Tensor, hooks: Iterable[str], added: Tensor | None = None
) -> dict[str, Tensor]:
    """The hook points' values on a prompt, ``added`` being added to its token embeddings."""
    edits: list[Any] = []
    if added is not None:
        edits.append(("hook_embed", lambda value, hook: value + added))
    names = set(hooks)
    with torch.no_grad(), model.hooks(fwd_hooks=edits):
        _, cache = model.run_with_cache(tokens[None], names_filter=lambda name: name in names)
    return {name: cache[name].clone() for name in names}


def mean_values(
    model: Any, data: Sequence[Tensor], hooks: Iterable[str], per_position: int | None = None
) -> dict[str, Tensor]:
    """Hook points' means over a data set: over every token, or at each of so many positions."""
    runs = [recorded(model, tokens, hooks) for tokens in data]
    out = {}
    for name in runs[0]:
        if per_position is None:
            out[name] = torch.cat([run[name][0] for run in runs]).mean(0)[None, None]
            continue
        at = [
            torch.stack([run[name][0, p] for run in runs if run[name].shape[1] > p]).mean(0)
            for p in range(per_position)
        ]
        out[name] = torch.stack(at)[None]
    return out


HookEdit = tuple[str, Callable[..., Tensor | None]]
"""A hook point's name and what is done to its value."""


@dataclass
class Oracle:
    """``v(mask)`` of one prompt by hooks on the whole prompt, a row of a batch for each mask.

    members: each player's addresses.
    tokens: the prompt that is run: the clean one, or on base "source" the source's.
    goal: what an activation moves to at weight 1. base "clean": its source; "source": its clean.
    origin: for value sources on base "source": what it moves from (then ``tokens`` are clean).
    read: the target from the whole prompt's logits, [position, vocabulary] -> number.
    """

    model: Any
    members: Sequence[Sequence[Address]]
    tokens: Tensor
    goal: Values
    base: str
    read: Callable[[Tensor], Tensor]
    origin: Values | None = None
    added: Tensor | None = None
    seen: dict[str, Tensor] | None = None

    def __call__(self, mask: Tensor) -> float:
        return float(self.many(mask[None]))

    def many(self, masks: Tensor) -> Tensor:
        """[mask] values at masks [mask, player]."""
        with torch.no_grad():
            return torch.stack([self.read(logits) for logits in self.logits(masks)]).double()

    def sensitivity(self, mask: Tensor) -> Tensor:
        """``‖∂v/∂x‖₂`` over the values that each player holds, by autograd on them: [player]."""
        self.seen = {}
        try:
            with torch.enable_grad():
                value = self.read(self.logits(mask[None])[0])
                names, held = list(self.seen), list(self.seen.values())
            found = torch.autograd.grad(value, held, materialize_grads=True)
            slopes = dict(zip(names, found, strict=True))
        finally:
            self.seen = None
        squares = torch.zeros(len(self.members), dtype=torch.float64)
        for player, owned in enumerate(self.members):
            for address in owned:
                if address.lies_in(slopes[address.hook]):
                    slope = slopes[address.hook][address.select()]
                    squares[player] += slope.square().sum()
        return squares.sqrt()

    def logits(self, masks: Tensor) -> Tensor:
        edits: list[Any] = []
        if self.added is not None:
            edits.append(("hook_embed", lambda value, hook: value + self.added))
        with self.model.hooks(fwd_hooks=edits + self.edits(masks)):
            return self.model(self.tokens.expand(len(masks), -1))

    def edits(self, masks: Tensor) -> list[HookEdit]:
        """One hook per hook point that has players."""
        weights = 1 - masks.double() if self.base == "clean" else masks.double()
        by_hook: dict[str, list[tuple[Address, Tensor]]] = {}
        for weight, owned in zip(weights.T, self.members, strict=True):
            for address in owned:
                by_hook.setdefault(address.hook, []).append((address, weight))
        out: list[HookEdit] = []
        late: list[HookEdit] = []
        for hook, chosen in by_hook.items():
            if hook.endswith("hook_resid_mid") and is_bridge(self.model):
                # After any patch of attn_out itself, which the stream's middle contains.
                late += self._bridge_mid(hook, chosen)
            else:
                out.append((hook, self._edit(hook, chosen)))
        return out + late

    def _edit(self, name: str, chosen: Sequence[tuple[Address, Tensor]]) -> Callable[..., Tensor]:
        def edit(value: Tensor, hook: Any) -> Tensor:
            out = value.clone()
            for address, weight in chosen:
                if not address.lies_in(value) or (self.origin is None and not weight.any()):
                    continue
                at = address.select()
                live = value[at]
                if self.origin is not None:
                    live = self._fixed(self.origin, name, value)[at]
                share = weight.to(live).reshape(-1, *[1] * (live.ndim - 1))
                out[at] = live + share * (self._fixed(self.goal, name, value)[at] - live)
            return out if self.seen is None else self._watched(name, out)

        return edit

    def _watched(self, name: str, value: Tensor) -> Tensor:
        value = value if value.requires_grad else value.detach().requires_grad_(True)
        assert self.seen is not None
        self.seen[name] = value
        return value

    def _fixed(self, values: Values, name: str, like: Tensor) -> Tensor:
        fixed = values[name]
        fixed = fixed[:, : like.shape[1]] if fixed.shape[1] > 1 else fixed
        return fixed.expand_as(like)

    def _bridge_mid(self, name: str, chosen: Sequence[tuple[Address, Tensor]]) -> list[HookEdit]:
        """On a TransformerBridge, hook_resid_mid is only the MLP's input: what changes the stream
        there is the attention's output."""
        stream: list[Tensor] = []
        prefix = name.removesuffix("hook_resid_mid")
        edit = self._edit(name, chosen)

        def see(value: Tensor, hook: Any) -> None:
            stream[:] = [value]

        def change(value: Tensor, hook: Any) -> Tensor:
            return edit(stream[0] + value, hook) - stream[0]

        return [(prefix + "hook_resid_pre", see), (prefix + "hook_attn_out", change)]


# --- what a target is, from the whole prompt's logits --------------------------------------------


def logit_diff(at: int, answer: int, distractor: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[at, answer] - logits[at, distractor]


def prob(at: int, answer: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[at].exp()[answer] / logits[at].exp().sum()


def log_prob(at: int, answer: int) -> Callable[[Tensor], Tensor]:
    return lambda logits: logits[at, answer] - logits[at].exp().sum().log()


def sequence_log_prob(tokens: Tensor, positions: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Of the tokens at some positions of the prompt, each read before it."""
    own = [log_prob(p % len(tokens) - 1, int(tokens[p])) for p in positions]
    return lambda logits: torch.stack([read(logits) for read in own]).sum()


def prompt_loss(tokens: Tensor) -> Callable[[Tensor], Tensor]:
    def read(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:])

    return read


def kl(at: int, clean_logits: Tensor) -> Callable[[Tensor], Tensor]:
    """KL(clean ‖ run)."""

    def read(logits: Tensor) -> Tensor:
        p, q = clean_logits[at].softmax(-1), logits[at].softmax(-1)
        return (p * (p / q).log()).sum()

    return read


# --- the reference of a PatchGame -----------------------------------------------------------------


def reference(
    game: Any,
    prompt: int = 0,
    *,
    read: Callable[[Tensor], Tensor] | None = None,
    members: Sequence[Sequence[Address]] | None = None,
    model: Any = None,
) -> Oracle:
    """The oracle of one prompt of a PatchGame, from what the game was given and nothing it made.

    read: what the target is; by default the logit difference of ``PAIR``.
    members: the addresses of players that were grouped or selected.
    model: another model with the same function, instead of the game's own.
    """
    model = game.face.model if model is None else model
    prompts, source = game.prompts, game.source
    members = addresses(game.players) if members is None else members
    read = logit_diff(prompts.target_positions[prompt], *PAIR) if read is None else read
    hooks = {address.hook for owned in members for address in owned}
    clean = prompts.tokens[prompt]
    clean_values = recorded(model, clean, hooks)
    kind = type(source).__name__
    if kind in ("Zero", "Mean"):
        fixed = _fixed_values(model, source, clean_values, clean)
        if game.base == "clean":
            return Oracle(model, members, clean, fixed, "clean", read)
        return Oracle(model, members, clean, clean_values, "source", read, origin=fixed)
    other, added = _source_run(game, prompt, clean)
    if game.base == "source":
        return Oracle(model, members, other, clean_values, "source", read, added=added)
    return Oracle(model, members, clean, recorded(model, other, hooks, added), "clean", read)


def _fixed_values(model: Any, source: Any, clean: Values, tokens: Tensor) -> dict[str, Tensor]:
    if type(source).__name__ == "Zero":
        return {name: torch.zeros_like(value) for name, value in clean.items()}
    length = len(tokens) if source.per_position else None
    return mean_values(model, source.data.tokens, clean, length)


def _source_run(game: Any, prompt: int, clean: Tensor) -> tuple[Tensor, Tensor | None]:
    source = game.source
    kind = type(source).__name__
    if kind == "Counterfactual":
        return game.prompts.counterfactual[prompt], None
    if kind == "Token":
        other = torch.full_like(clean, source.token)
        bos = game.face.model.tokenizer.bos_token_id
        return torch.where((torch.arange(len(clean)) == 0) & (clean == bos), clean, other), None
    assert kind == "Noise"
    assert source.draws == 1
    # the noise itself is the source's own affair (test_sources.py); here only where it goes
    run = source.bind(game.face.model, game.prompts, (), game._record)
    return run.tokens[prompt], run.added[prompt]


# --- small games to try it on ---------------------------------------------------------------------

CLASSES = ("hooked", "bridge") if tiny.HAS_HOOKED else ("bridge",)
MODELS = tuple(f"{family}-{cls}" for family in tiny.FAMILIES for cls in CLASSES)

CLEAN = (3, 4, 13, 9, 14, 22, 7, 30, 11)
OTHER = (3, 4, 13, 10, 14, 25, 7, 30, 11)
"""A pair of prompts that part at position 3 and again at 5; the first three tokens are shared."""

DATA = ((5, 6, 7, 8, 20, 30, 31, 2, 40, 41, 12), (9, 3, 4, 15, 12, 13, 50, 33, 34))
"""A data set to take means over, of texts as long as the prompts or longer."""


@functools.cache
def shared_model(name: str) -> Any:
    """A tiny model, such as "llama-bridge", shared between tests: to be left as it was found."""
    family, _, cls = name.partition("-")
    return {"hooked": tiny.tiny_hooked, "bridge": tiny.tiny_bridge}[cls](family)


def ids(*rows: Sequence[int]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


def pair(model: Any, *, target_position: int = -1) -> Any:
    """``CLEAN`` and ``OTHER`` as Prompts."""
    return ma.Prompts.from_tokens(model, ids(CLEAN), ids(OTHER), target_position=target_position)


def data(model: Any) -> Any:
    return ma.Prompts.from_tokens(model, ids(*DATA))


def patch_game(
    model: Any,
    players: Any,
    *,
    source: Any = None,
    base: Any = "clean",
    target: Any = None,
    prompts: Any = None,
) -> Any:
    """A PatchGame on ``pair(model)``, counterfactual, for the logit difference of ``PAIR``."""
    return ma.PatchGame(
        model,
        pair(model) if prompts is None else prompts,
        players,
        ma.targets.logit_diff(*PAIR) if target is None else target,
        source=ma.sources.Counterfactual() if source is None else source,
        base=base,
    )


def some_masks(n: int, seed: int = 0, each: int = 2) -> Tensor:
    """All present, all absent, and a few each of one-out, one-in, random and soft masks."""
    generator = torch.Generator().manual_seed(seed)
    eye = torch.eye(n, dtype=torch.float64)
    one = eye[torch.randint(n, (2 * each,), generator=generator)]
    return torch.cat(
        [
            torch.ones(1, n, dtype=torch.float64),
            torch.zeros(1, n, dtype=torch.float64),
            1 - one[:each],
            one[each:],
            (torch.rand(each, n, generator=generator) < 0.5).double(),
            torch.rand(each, n, generator=generator, dtype=torch.float64),
        ]
    )


def assert_agree(got: Tensor, want: Tensor, tolerance: float = 1e-9, least: float = 1e-3) -> None:
    """Equal to the tolerance, and not because nothing happens: the values spread by ``least``."""
    assert got.shape == want.shape
    assert float(want.max() - want.min()) > least, f"the reference hardly varies: {want}"
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
