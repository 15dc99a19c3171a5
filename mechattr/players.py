"""Players: the ordered, named axis that everything is attributed to.

A player is anything that can be present or absent: a token, a head, an MLP, a neuron, a group
of them. This file knows only names and coordinates; what "absent" means is the game's business.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mechattr.errors import InputError, UnknownNameError

Coordinate = tuple[Any, ...]

RESERVED = ("prompt", "player", "score", "stderr", "draw_stderr")
"""Columns of an attribution's tables, which no coordinate may shadow."""


@dataclass(frozen=True, eq=False)
class Players:
    """An ordered axis of named players with coordinates.

    names: one unique name a player.
    coords: for each coordinate (``"kind"``, ``"layer"``, ``"head"``, ``"position"``, ...) one
        value a player, ``None`` where the player has no such coordinate. ``"kind"`` always exists.
    dims: the coordinates that span this axis as a grid, slowest first; empty when the players
        are of several kinds or have been grouped by hand.
    kind_dims: for players of several kinds, the grid of each kind that has one.
    """

    names: tuple[str, ...]
    coords: Mapping[str, Coordinate] = field(default_factory=dict)
    dims: tuple[str, ...] = ()
    kind_dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        coords = {key: tuple(values) for key, values in self.coords.items()}
        coords.setdefault("kind", ("player",) * len(self.names))
        object.__setattr__(self, "coords", coords)
        object.__setattr__(self, "dims", tuple(self.dims))
        grids = {kind: tuple(dims) for kind, dims in self.kind_dims.items()}
        object.__setattr__(self, "kind_dims", grids)
        self._check()

    def _check(self) -> None:
        if not self.names:
            raise InputError(
                "No players: the selection is empty. Select at least one, "
                "or leave the selection out to take all."
            )
        if len(set(self.names)) != len(self.names):
            seen: set[str] = set()
            twice = next(n for n in self.names if n in seen or seen.add(n))  # type: ignore[func-returns-value]
            raise InputError(f"Player names must be unique, but {twice!r} came twice.")
        for key, values in self.coords.items():
            if key in RESERVED:
                raise InputError(f"A coordinate can't be called {key!r}: tables use that name.")
            if len(values) != len(self.names):
                raise InputError(
                    f"Coordinate {key!r} has {len(values)} values for {len(self.names)} players."
                )
        for dim in (*self.dims, *(d for dims in self.kind_dims.values() for d in dims)):
            if dim not in self.coords:
                raise UnknownNameError("grid dimension", dim, self.coords)

    @classmethod
    def numbered(cls, n: int, prefix: str = "x") -> Players:
        """``n`` anonymous players ``x0, x1, ...`` (for games without structure)."""
        return cls(
            names=tuple(f"{prefix}{i}" for i in range(n)),
            coords={"index": tuple(range(n))},
            dims=("index",),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Players) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(str(k) for k in self.coords["kind"]))
        shown = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        return f"Players({len(self)} of kind {kinds}: {shown})"

    def index(self, name: str) -> int:
        """Position of a player on the axis; an unknown name lists the near ones."""
        try:
            return self._places[name]
        except (KeyError, TypeError):  # unknown, or nothing that could be a name
            raise UnknownNameError("player", name, self.names) from None

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def _place(self, index: Any) -> int:
        try:
            place = operator.index(index)
        except TypeError:
            raise InputError(f"Got {index!r} as a player; expected its name or index.") from None
        if not -len(self) <= place < len(self):
            raise InputError(f"There is no player {index}: this axis has {len(self)} players.")
        return place % len(self)

    def where(self, **coords: Any) -> np.ndarray:
        """Indices of the players whose coordinates match, e.g. ``where(layer=5, head=[1, 2])``.

        A value may be a scalar, a collection of values, or a predicate.
        """
        keep = np.ones(len(self), dtype=bool)
        for key, wanted in coords.items():
            if key not in self.coords:
                raise UnknownNameError("coordinate", key, self.coords)
            matches = _matcher(wanted)
            keep &= np.array([matches(value) for value in self.coords[key]], dtype=bool)
        return np.flatnonzero(keep)

    def take(self, indices: Sequence[int] | np.ndarray) -> Players:
        """The players at ``indices``, in that order."""
        chosen = [self._place(i) for i in indices]
        return Players(
            names=tuple(self.names[i] for i in chosen),
            coords={k: tuple(v[i] for i in chosen) for k, v in self.coords.items()},
            dims=self.dims,
            kind_dims=self.kind_dims,
        )

    def of_kind(self, kind: str) -> Players:
        """The players of one kind, on their own grid."""
        kinds = dict.fromkeys(str(k) for k in self.coords["kind"])
        if kind not in kinds:
            raise UnknownNameError("kind of player", kind, kinds)
        part = self.take(self.where(kind=kind))
        dims = self.dims if len(kinds) == 1 and self.dims else self.kind_dims.get(kind, ())
        return Players(part.names, part.coords, dims)

    def group(self, by: str | Sequence[str] | Mapping[str, Any]) -> Grouping:
        """Merge players. See :class:`Grouping`.

        by: one coordinate or several (``"layer"``: all players of a layer become one; every player
            must have them), or a mapping from the new name to the names, indices or coordinate
            selection of its members (``{"layer 5": {"layer": 5}, "names": ["L9H6", "L9H9"]}``);
            players in no group drop out of the game and stay present.
        """
        if isinstance(by, Mapping):
            return _group_by_mapping(self, by)
        keys = (by,) if isinstance(by, str) else tuple(by) if isinstance(by, Iterable) else ()
        if not keys or not all(isinstance(key, str) for key in keys):
            raise InputError(
                f"Got by={by!r}; expected a coordinate ({', '.join(self.coords)}), several, or a "
                f"mapping from new names to their members."
            )
        return _group_by_coords(self, keys)

    def __add__(self, other: Players) -> Players:
        return concatenate([self, other])


@dataclass(frozen=True)
class Grouping:
    """The merged axis and, for each old player, the index of its group (-1: in none)."""

    players: Players
    index: np.ndarray


def concatenate(parts: Sequence[Players]) -> Players:
    """Several axes one after the other. Names must stay unique. Parts of one kind keep their grid;
    parts of several keep one each, in ``kind_dims``."""
    if not parts:
        raise InputError("Nothing to concatenate: got no players.")
    keys = dict.fromkeys(key for part in parts for key in part.coords)
    coords = {
        key: tuple(value for part in parts for value in part.coords.get(key, (None,) * len(part)))
        for key in keys
    }
    grids: dict[str, tuple[str, ...]] = {}
    for part in parts:
        for kind in dict.fromkeys(str(k) for k in part.coords["kind"]):
            dims = part.of_kind(kind).dims
            # Two grids of one kind (heads with and without positions) are no grid.
            grids[kind] = dims if grids.get(kind, dims) == dims else ()
    names = tuple(name for part in parts for name in part.names)
    if len(grids) == 1:
        return Players(names, coords, next(iter(grids.values())))
    return Players(names, coords, kind_dims={kind: dims for kind, dims in grids.items() if dims})


def _matcher(wanted: Any) -> Callable[[Any], bool]:
    if callable(wanted):
        return lambda value: bool(value is not None and wanted(value))
    if isinstance(wanted, (list, tuple, set, frozenset, range, np.ndarray)):
        collection = frozenset(wanted.tolist() if isinstance(wanted, np.ndarray) else wanted)
        return lambda value: value in collection
    return lambda value: bool(value == wanted)


def _group_by_coords(players: Players, keys: tuple[str, ...]) -> Grouping:
    for key in keys:
        if key not in players.coords:
            raise UnknownNameError("coordinate", key, players.coords)
        without = [i for i, value in enumerate(players.coords[key]) if value is None]
        if without:
            raise InputError(
                f"{len(without)} of {len(players)} players ({players.names[without[0]]!r}, ...) "
                f"have no {key}, so that they can't be grouped by it. Group by a mapping, or "
                f"select the players that have one."
            )
    labels = list(zip(*(players.coords[key] for key in keys), strict=True))
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    kinds = dict.fromkeys(str(k) for k in players.coords["kind"])
    kind = next(iter(kinds)) if len(kinds) == 1 else "group"
    coords: dict[str, Coordinate] = {
        key: tuple(label[i] for label in order) for i, key in enumerate(keys)
    }
    if "kind" not in coords:
        coords["kind"] = (f"{kind} group",) * len(order)
    merged = Players(
        names=tuple(
            " ".join(f"{key} {value}" for key, value in zip(keys, label, strict=True))
            for label in order
        ),
        coords=coords,
        dims=keys,
    )
    return Grouping(merged, np.array([order[label] for label in labels]))


def _members(players: Players, chosen: Any) -> np.ndarray:
    if isinstance(chosen, Mapping):
        return players.where(**chosen)
    if isinstance(chosen, (str, int, np.integer)):
        chosen = [chosen]
    if not isinstance(chosen, Iterable):
        raise InputError(
            f"Got {chosen!r} as the members of a group; expected names, indices or a selection "
            f"by coordinates."
        )
    return np.array(
        [players.index(c) if isinstance(c, str) else players._place(c) for c in chosen], dtype=int
    )


def _group_by_mapping(players: Players, groups: Mapping[str, Any]) -> Grouping:
    index = np.full(len(players), -1)
    for g, (name, chosen) in enumerate(groups.items()):
        members = _members(players, chosen)
        if not len(members):
            raise InputError(f"Group {name!r} has no members: its selection {chosen!r} is empty.")
        if (taken := index[members]).max() >= 0:
            i = int(members[int(np.argmax(taken >= 0))])
            raise InputError(
                f"Player {players.names[i]!r} is in two groups, {list(groups)[index[i]]!r} and "
                f"{name!r}; groups must be disjoint."
            )
        index[members] = g
    coords: dict[str, Coordinate] = {"kind": ("group",) * len(groups), "group": tuple(groups)}
    return Grouping(Players(tuple(groups), coords, dims=("group",)), index)
