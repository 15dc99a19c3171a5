"""The axis: names, coordinates, selections, groups, concatenations."""

from __future__ import annotations

import time

import numpy as np
import pytest

from mechattr.errors import InputError, UnknownNameError
from mechattr.players import Players, concatenate


def heads(layers=(0, 1), n_heads: int = 3, positions=None) -> Players:
    index = [
        (layer, head, position)
        for layer in layers
        for head in range(n_heads)
        for position in (positions or [None])
    ]
    coords = {
        "kind": ("head",) * len(index),
        "layer": tuple(i[0] for i in index),
        "head": tuple(i[1] for i in index),
    }
    names = [f"L{layer}H{head}" for layer, head, _ in index]
    if positions:
        coords["position"] = tuple(i[2] for i in index)
        names = [f"{name}@{i[2]}" for name, i in zip(names, index, strict=True)]
    return Players(tuple(names), coords, ("layer", "head") + ("position",) * bool(positions))


def tokens(n: int = 4) -> Players:
    names = tuple(f"tok{i}" for i in range(n))
    return Players(names, {"kind": ("token",) * n, "position": tuple(range(n))}, ("position",))


class TestAxis:
    def test_index_and_order(self):
        players = heads()
        assert len(players) == 6
        assert list(players)[:3] == ["L0H0", "L0H1", "L0H2"]
        assert players.index("L1H2") == 5

    def test_unknown_name_offers_the_near_ones(self):
        with pytest.raises(UnknownNameError, match=r"Unknown player 'L1H9'. Did you mean .*L1H2"):
            heads().index("L1H9")

    def test_what_is_no_name_is_unknown_too(self):
        with pytest.raises(UnknownNameError, match=r"Unknown player \['L1H2'\]"):
            heads().index(["L1H2"])  # type: ignore[arg-type]

    def test_names_are_looked_up_and_not_searched(self):
        players = Players.numbered(50_000)
        start = time.perf_counter()
        assert [players.index(name) for name in players] == list(range(50_000))
        assert time.perf_counter() - start < 2  # a search takes many seconds

    def test_empty_selection(self):
        with pytest.raises(InputError, match="the selection is empty"):
            Players(())

    def test_double_name(self):
        with pytest.raises(InputError, match="unique, but 'a' came twice"):
            Players(("a", "b", "a"))

    def test_coordinate_of_wrong_length(self):
        with pytest.raises(InputError, match="'layer' has 1 values for 2 players"):
            Players(("a", "b"), {"layer": (0,)})

    def test_reserved_coordinate(self):
        with pytest.raises(InputError, match="can't be called 'score'"):
            Players(("a",), {"score": (0,)})

    def test_grid_dimension_must_be_a_coordinate(self):
        with pytest.raises(UnknownNameError, match=r"'leyer'. Did you mean layer"):
            Players(("a",), {"layer": (0,)}, ("leyer",))

    def test_equality_is_of_names(self):
        assert heads() == heads()
        assert hash(heads()) == hash(heads())
        assert heads() != tokens()

    def test_repr(self):
        assert repr(heads()) == "Players(6 of kind head: L0H0, L0H1, L0H2, ...)"


class TestWhere:
    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({"layer": 1}, [3, 4, 5]),
            ({"layer": 1, "head": [0, 2]}, [3, 5]),
            ({"head": lambda h: h > 1}, [2, 5]),
            ({"layer": np.array([0]), "head": range(2)}, [0, 1]),
            ({"layer": 7}, []),
            ({"kind": "head"}, [0, 1, 2, 3, 4, 5]),
        ],
    )
    def test_selects(self, wanted, found):
        assert heads().where(**wanted).tolist() == found

    def test_predicates_are_not_asked_about_nothing(self):
        both = concatenate([heads(), tokens()])
        assert both.where(layer=lambda layer: layer < 5).tolist() == list(range(6))

    def test_unknown_coordinate(self):
        with pytest.raises(UnknownNameError, match=r"'layers'. Did you mean layer"):
            heads().where(layers=1)

    def test_take_keeps_order_and_grid(self):
        players = heads().take([5, 0])
        assert players.names == ("L1H2", "L0H0")
        assert players.coords["layer"] == (1, 0)
        assert players.dims == ("layer", "head")

    def test_take_outside(self):
        with pytest.raises(InputError, match="no player 6: this axis has 6"):
            heads().take([6])


class TestGroup:
    def test_by_coordinate(self):
        grouping = heads().group("layer")
        assert grouping.players.names == ("layer 0", "layer 1")
        assert grouping.players.coords["kind"] == ("head group",) * 2
        assert grouping.players.dims == ("layer",)
        assert grouping.index.tolist() == [0, 0, 0, 1, 1, 1]

    def test_by_several(self):
        grouping = heads(positions=[0, 1]).group(["layer", "position"])
        assert grouping.players.dims == ("layer", "position")
        assert grouping.index.tolist() == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]

    def test_by_mapping_of_names_indices_and_coordinates(self):
        groups = {"first": "L0H0", "second layer": {"layer": 1}, "two": [1, "L0H2"]}
        grouping = heads().group(groups)
        assert grouping.players.names == ("first", "second layer", "two")
        assert grouping.index.tolist() == [0, 2, 2, 1, 1, 1]

    def test_players_in_no_group(self):
        assert heads().group({"one": [4]}).index.tolist() == [-1, -1, -1, -1, 0, -1]

    @pytest.mark.parametrize(
        ("by", "message"),
        [
            ({"a": {"layer": 9}}, "Group 'a' has no members"),
            ({"a": [0, 1], "b": [1]}, "'L0H1' is in two groups, 'a' and 'b'"),
            ({"a": [17]}, "no player 17"),
            ({"a": ["L9H9"]}, "Unknown player 'L9H9'"),
            ("layr", "Unknown coordinate 'layr'. Did you mean layer"),
            ({"a": [None]}, "Got None as a player; expected its name or index"),
            ({"a": 1.5}, "Got 1.5 as the members of a group"),
            (3, r"Got by=3; expected a coordinate \(kind, layer, head\)"),
            ([1, 2], r"Got by=\[1, 2\]; expected a coordinate"),
            ((), r"Got by=\(\); expected a coordinate"),
        ],
    )
    def test_what_it_refuses(self, by, message):
        with pytest.raises(InputError, match=message):
            heads().group(by)

    def test_players_without_the_coordinate_are_not_grouped_under_nothing(self):
        both = concatenate([tokens(), heads()])
        with pytest.raises(InputError, match=r"4 of 10 players \('tok0', ...\) have no layer"):
            both.group("layer")


class TestConcatenate:
    def test_coordinates_that_a_part_lacks_are_none(self):
        both = tokens() + heads()
        assert len(both) == 10
        assert both.coords["layer"] == (None,) * 4 + (0, 0, 0, 1, 1, 1)
        assert both.dims == ()

    def test_each_kind_keeps_its_own_grid_in_its_own_order(self):
        # "position" comes first among all coordinates, but last on the heads' grid.
        both = tokens() + heads(positions=[0, 1])
        assert both.kind_dims == {"token": ("position",), "head": ("layer", "head", "position")}
        assert both.of_kind("head").dims == ("layer", "head", "position")
        assert both.of_kind("token").names == tokens().names

    def test_one_kind_on_one_grid_stays_a_grid(self):
        assert (heads([0]) + heads([3, 5])).dims == ("layer", "head")

    def test_one_kind_on_two_grids_is_none(self):
        assert (heads([0]) + heads([3], positions=[0])).dims == ()

    def test_it_is_associative(self):
        a, b, c = tokens(), heads([0]), heads([1])
        assert ((a + b) + c).kind_dims == (a + (b + c)).kind_dims
        assert ((a + b) + c).of_kind("head").dims == ("layer", "head")

    def test_names_must_stay_unique(self):
        with pytest.raises(InputError, match="'L0H0' came twice"):
            concatenate([heads(), heads()])

    def test_nothing(self):
        with pytest.raises(InputError, match="Nothing to concatenate"):
            concatenate([])

    def test_unknown_kind(self):
        with pytest.raises(UnknownNameError, match=r"'heads'. Did you mean head"):
            (tokens() + heads()).of_kind("heads")
