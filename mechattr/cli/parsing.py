"""What is typed on the command line, as objects of the library. No model is loaded here."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import mechattr as ma
from mechattr.errors import InputError, UnknownNameError

ON_A_GAME = {
    "activation_patching": ("include_one", "source"),
    "causal_tracing": ("include_one", "source"),
    "ablation": ("leave_one_out", "clean"),
    "occlusion": ("leave_one_out", "clean"),
    "gradient_x_input": ("gradient_clean", "clean"),
}
"""Names of the field that are a method on a certain base: name -> (method, base)."""

METRICS = ("logit_diff", "logit", "log_prob", "prob", "kl", "loss")

PLAYERS = (
    "tokens",
    "heads",
    "mlps",
    "attention",
    "neurons",
    "residual_pre",
    "residual_mid",
    "residual_post",
    "queries",
    "keys",
    "values",
)
_SHORT = {"q": "queries", "k": "keys", "v": "values"}
_PLAYER = re.compile(r"(?P<name>\w+)(:(?P<first>\d+)(-(?P<last>\d+))?)?(@(?P<at>\w+))?")


def players(text: str, *, per_position: bool = False) -> list[tuple[str, Any]]:
    """``"heads,mlps@position,tokens+neurons:5"`` as named games' players.

    A comma begins another game, ``+`` adds to one; ``:5`` or ``:3-7`` choose layers;
    ``@position`` makes a player of each position, ``@all`` one of all positions.
    """
    games = []
    for game in text.split(","):
        parts = [_players_of(part.strip(), per_position) for part in game.split("+")]
        spec = parts[0]
        for part in parts[1:]:
            spec = spec + part
        games.append((game.strip(), spec))
    return games


def _players_of(text: str, per_position: bool) -> Any:
    match = _PLAYER.fullmatch(text)
    if match is None:
        raise InputError(
            f"--players {text!r} can't be read. Write a name, then :LAYER or :FIRST-LAST for some "
            f"layers only, then @position for a player a position: heads, neurons:5, "
            f"mlps:3-7@position."
        )
    name = _SHORT.get(match["name"], match["name"])
    if name not in PLAYERS:
        raise UnknownNameError("kind of player", match["name"], PLAYERS)
    if match["at"] not in (None, "position", "all"):
        raise UnknownNameError("suffix of --players", match["at"], ("position", "all"))
    first, last = match["first"], match["last"]
    layers = None if first is None else _layers(first, last, f"--players {text!r}")
    if name == "tokens":
        if layers is not None or match["at"] is not None:
            raise InputError("Tokens have positions already and no layers: write just tokens.")
        return ma.tokens()
    if name == "neurons" and layers is None:
        raise InputError(
            "Neurons of which layers? A model has tens of thousands: write neurons:5 or "
            "neurons:5-7."
        )
    at_each = match["at"] == "position" or (match["at"] is None and per_position)
    if name.startswith("residual_"):
        # All positions of a residual stream at once are all there is: positions are the default.
        stage = name.removeprefix("residual_")
        return ma.residual(stage, layers=layers, per_position=match["at"] != "all")
    return getattr(ma, name)(layers=layers, per_position=at_each)


def edges(layers: str | None, writers: str | None, readers: str | None) -> Any:
    """``--layers 20-29``, ``--writers head,mlp``, ``--readers q,logits`` as players."""
    chosen = None
    if layers is not None:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", layers.strip())
        if match is None:
            raise InputError(f"--layers {layers!r} can't be read; write 20-29, or 27 for one.")
        chosen = _layers(match[1], match[2], f"--layers {layers!r}")
    ends = [text and [name.strip() for name in text.split(",")] for text in (writers, readers)]
    return ma.edges(writers=ends[0], readers=ends[1], layers=chosen)


def _layers(first: str, last: str | None, where: str) -> list[int]:
    """``("3", "7")`` as the layers from 3 to 7."""
    layers = list(range(int(first), int(last or first) + 1))
    if not layers:
        raise InputError(f"{where}: layers {first}-{last} run backwards.")
    return layers


@dataclass(frozen=True)
class Run:
    """A method to run: its name in the output, its settings, the base it implies, and the name that
    was asked for."""

    name: str
    method: Any
    base: str
    asked: str = ""


def methods(
    text: str, base: str | None, steps: int | None = None, tolerance: float | None = None
) -> list[Run]:
    """``"shapley,activation_patching"`` as runs, with settings for those that have them."""
    runs = [_run(name.strip(), base) for name in text.split(",")]
    given: dict[str, Any] = {"steps": steps, "tolerance": tolerance}
    settings = {key: value for key, value in given.items() if value is not None}
    if len(settings) == 2:
        raise InputError(
            "--tolerance chooses the number of nodes itself, --steps fixes it: give one."
        )
    for key, value in settings.items():
        able = [name for name, entry in ma.METHODS.items() if hasattr(entry.method, key)]
        if not any(run.method in able for run in runs):
            raise InputError(
                f"--{key}: only {', '.join(able)} ha{'s' if len(able) == 1 else 've'} that; "
                f"--method is {text}."
            )
        runs = [
            replace(run, method=replace(ma.METHODS[run.method].method, **{key: value}))
            if run.method in able
            else run
            for run in runs
        ]
    return runs


def under_rules(runs: list[Run], rules: str | None) -> list[Run]:
    """Runs whose gradients flow under backward rules, by their name: ``--rules gim``."""
    if rules is None:
        return runs
    if rules not in ma.RULES:
        raise UnknownNameError("backward rules", rules, ma.RULES)
    out = []
    for run in runs:
        method = ma.METHODS[run.method].method if isinstance(run.method, str) else run.method
        if not method.needs_gradient or isinstance(method, ma.methods.Propagation):
            raise InputError(
                f"--rules {rules} changes gradients, and {run.name} "
                f"{'has rules of its own' if method.needs_gradient else 'takes none'}; it goes "
                f"with attribution_patching, saliency, integrated_gradients, eap, ..."
            )
        out.append(
            replace(run, name=f"{run.name}-{rules}", method=ma.methods.Propagation(rules, method))
        )
    return out


def with_settings(runs: list[Run], given: Sequence[str]) -> list[Run]:
    """``--set residual=0.3 --set heads=L5H3,L6H1``: settings for the methods that have them."""
    out = list(runs)
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise InputError(f"--set {text!r} can't be read; write --set NAME=VALUE.")
        able = [i for i, run in enumerate(out) if name in _settings(run)]
        if not able:
            known = sorted({key for run in out for key in _settings(run)})
            raise UnknownNameError(
                f"setting of {', '.join(run.name for run in out)}", name, known or ["none"]
            )
        for i in able:
            method = ma.METHODS[out[i].method].method if isinstance(out[i].method, str) else None
            method = out[i].method if method is None else method
            try:
                out[i] = replace(out[i], method=replace(method, **{name: _value(value)}))
            except TypeError as error:
                raise InputError(f"--set {text!r}: {error}.") from None
    return out


def _settings(run: Run) -> list[str]:
    method = ma.METHODS[run.method].method if isinstance(run.method, str) else run.method
    if isinstance(method, ma.methods.Propagation):
        return []  # its rules are its name, and --rules goes with any other method
    return [field.name for field in fields(method)]


def _value(text: str) -> Any:
    """A number, True, None or a list as Python writes it; ``L5H3,L6H1`` as a list of names; else
    the text itself."""
    bare = text.strip()
    try:
        return ast.literal_eval(bare)
    except (ValueError, SyntaxError):
        names = re.fullmatch(r"\w+(,\w+)+|L\d+H\d+", bare)
        return tuple(bare.split(",")) if names else text  # a text's first blank is part of it


def _run(name: str, base: str | None) -> Run:
    if base not in (None, "clean", "source"):
        raise UnknownNameError("base", base, ("clean", "source"))
    if name in ON_A_GAME:
        method, implied = ON_A_GAME[name]
        if base not in (None, implied):
            raise InputError(
                f"{name} is {method} on --base {implied}; with --base {base} ask for --method "
                f"{method}, under its own name."
            )
        return Run(name, method, implied, name)
    if name in ma.methods.ELSEWHERE:
        raise InputError(
            f"{name} is {ma.methods.ELSEWHERE[name]}, players that the command line doesn't have; "
            f"use it from Python."
        )
    if name not in ma.METHODS:
        raise UnknownNameError("method", name, [*ma.METHODS, *ON_A_GAME])
    return Run(name, name, base or "clean", name)


@dataclass(frozen=True)
class NoiseOptions:
    """--noise-at, --noise-scale and --draws; None where not given."""

    at: str | None = None
    scale: float | None = None
    draws: int | None = None

    @property
    def given(self) -> list[str]:
        """The options that were given, by name."""
        options = {"--noise-at": self.at, "--noise-scale": self.scale, "--draws": self.draws}
        return [name for name, value in options.items() if value is not None]


def source(
    text: str, mean_data: Path | None, seed: int, noise: NoiseOptions = NoiseOptions()
) -> Any:
    """``"counterfactual"``, ``"zero"``, ``"mean"``, ``"noise:3"``, ``"token: the"`` as a source."""
    name, colon, setting = text.partition(":")
    if noise.given and name != "noise":
        raise InputError(
            f"{' and '.join(noise.given)}: only --source noise has that; the source is {text}."
        )
    if mean_data is not None and not name.startswith("mean"):
        raise InputError(f"--mean-data is for --source mean; the source is {text}.")
    if colon and name not in ("noise", "token"):
        raise InputError(f"--source {text!r}: {name} takes no setting after a colon.")
    if name == "counterfactual":
        return ma.sources.Counterfactual()
    if name == "zero":
        return ma.sources.Zero()
    if name in ("mean", "mean_per_position"):
        if mean_data is None:
            raise InputError(
                "A mean source needs texts to average over: --mean-data FILE, one text a line."
            )
        return ma.sources.Mean(_lines(mean_data), per_position=name == "mean_per_position")
    if name == "noise":
        return _noise(setting, noise, seed)
    if name == "token":
        if not setting:
            raise InputError('--source token needs the token: --source "token: the".')
        return ma.sources.Token(setting)
    known = ("counterfactual", "zero", "mean", "mean_per_position", "noise", "token:STRING")
    raise UnknownNameError("source", text, known)


def _noise(setting: str, options: NoiseOptions, seed: int) -> Any:
    scale = options.scale
    if setting:
        if scale is not None:
            raise InputError(f"--source noise:{setting} has a scale: leave out --noise-scale.")
        try:
            scale = float(setting)
        except ValueError as error:
            raise InputError(
                f"--source 'noise:{setting}': write noise, or noise:3.0 ({error})."
            ) from None
    given = {"scale": scale, "draws": options.draws, "at": options.at}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return ma.sources.Noise(**settings, seed=seed)


def metric(kind: str | None, answers: list[str], distractors: list[str]) -> Any:
    """A target from --target, --versus and --metric; one answer for all prompts, or one each."""
    if kind is None:
        if not answers:
            raise InputError(
                'What is attributed? Give the answer, --target " Mary" (and --versus " John" for '
                "a logit difference), or --metric kl or --metric loss, which need none."
            )
        kind = "logit_diff" if distractors else "log_prob"
    if kind not in METRICS:
        raise UnknownNameError("metric", kind, METRICS)
    answer = answers[0] if len(answers) == 1 else answers
    if kind == "logit_diff":
        if not answers or not distractors:
            raise InputError("--metric logit_diff needs both --target and --versus.")
        distractor = distractors[0] if len(distractors) == 1 else distractors
        return ma.targets.logit_diff(answer, distractor)
    if distractors:
        raise InputError(f"--versus is for logit_diff; --metric is {kind}.")
    if kind == "kl":
        if answers:
            raise InputError("--metric kl compares whole distributions; leave out --target.")
        return ma.targets.kl()
    if kind == "loss":
        return ma.targets.loss(answer if answers else None)
    if not answers:
        raise InputError(f"--metric {kind} needs --target.")
    return getattr(ma.targets, kind)(answer)


@dataclass(frozen=True)
class Question:
    """The prompts with their answers, as texts; lists are empty where nothing was given."""

    clean: list[str]
    counterfactual: list[str]
    target: list[str]
    versus: list[str]


def read_pairs(path: Path) -> Question:
    """A JSONL file of ``{"clean": ..., "counterfactual": ..., "target": ..., "versus": ...}``."""
    columns: dict[str, list[str]] = {key: [] for key in Question.__dataclass_fields__}
    for number, line in enumerate(_lines(path), start=1):
        for key, value in _pair(line, f"{path}, prompt {number}").items():
            columns[key].append(value)
    count = len(columns["clean"])
    for key, values in columns.items():
        if values and len(values) != count:
            raise InputError(
                f"{path}: {len(values)} of {count} prompts have {key!r}; give it in all or none."
            )
    return Question(**columns)


def _pair(line: str, where: str) -> dict[str, str]:
    try:
        pair = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} isn't JSON: {error}. Expected one object a line.") from None
    if not isinstance(pair, dict) or "clean" not in pair:
        raise InputError(f'{where}: expected an object with "clean", got {line[:60]!r}.')
    for key, value in pair.items():
        if key not in Question.__dataclass_fields__:
            raise UnknownNameError(f"key in {where}", key, Question.__dataclass_fields__)
        if not isinstance(value, str):
            raise InputError(f"{where}: {key!r} is {value!r}; expected a string.")
    return pair


def text_of(path: Path) -> str:
    """What a file says."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Can't read {path}: {error}") from None


def paragraphs(path: Path) -> list[str]:
    """A file's texts, a blank line between two."""
    return [part.strip() for part in text_of(path).split("\n\n") if part.strip()]


def _lines(path: Path) -> list[str]:
    lines = [line for line in text_of(path).splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} has no lines.")
    return lines
