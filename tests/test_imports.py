"""The arrows of the house: who may import whom, and what an import may not cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("mechattr", "circuits", "experiments")

# What each room of mechattr may import of mechattr, at the top of a file or anywhere inside.
ALLOWED = {
    "errors": set(),
    "progress": set(),
    "ranks": set(),
    "players": {"errors"},
    "game": {"errors", "players"},
    "attribution": {"errors", "players"},
    "methods": {"errors", "players", "game", "attribution", "progress", "ranks"},
    "faithfulness": {"errors", "players", "game", "attribution", "progress", "ranks"},
    "comparing": {"errors", "players", "game", "attribution", "faithfulness", "progress", "ranks"},
    "transformer": {"errors", "players", "game"},
    # brings methods, transformer and pictures together, as the command line does
    "readings": {"errors", "players", "attribution", "methods", "transformer", "display"},
    # brings methods and transformer together for one question
    "audit": {"errors", "players", "game", "attribution", "methods", "progress", "transformer"},
    "training": {"errors", "players", "game"},
    "display": {"errors", "players", "game", "attribution", "faithfulness", "comparing"},
}
# What it may import inside functions only.
LAZILY = {
    "attribution": {"display"},
    "faithfulness": {"display"},
    "comparing": {"display", "methods"},
    "audit": {"display"},
}
TOP_FLOOR = {"cli", "__main__", "__init__"}

Import = tuple[str, bool]  # the module's full name; whether inside a function


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import statement of a file; ``from package import name`` counts as package.name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{start}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, id(node) in inside


def room(name: str) -> str:
    """``mechattr.methods.base.Run`` -> ``methods``; ``mechattr`` alone -> ``__init__``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def faults() -> Iterator[str]:
    for path in files():
        module = module_of(path)
        for name, lazy in imports(path):
            fault = fault_of(module, name, lazy)
            if fault:
                yield f"{path.relative_to(ROOT)} imports {name}: {fault}"


def fault_of(module: str, name: str, lazy: bool) -> str:
    """Why ``module`` may not import ``name``, "" if it may."""
    here, there = module.split(".")[0], name.split(".")[0]
    if there not in ROOMS:
        return ""
    if here == "mechattr" and room(module) in TOP_FLOOR:
        return ""
    if ROOMS.index(there) > ROOMS.index(here):
        return f"arrows run mechattr ← circuits ← experiments, not from {here} up to {there}"
    if here != "mechattr" or there != "mechattr":
        return ""
    mine, other = room(module), room(name)
    if other == mine or other in ALLOWED.get(mine, set()):
        return ""
    if other in LAZILY.get(mine, set()):
        return "" if lazy else "only inside a function"
    return f"{mine} may import {', '.join(sorted(ALLOWED.get(mine, set()))) or 'nothing'}"


def test_arrows_run_one_way():
    assert not list(faults())


def test_every_room_has_its_arrows():
    rooms = {room(module_of(path)) for path in files() if path.is_relative_to(ROOT / "mechattr")}
    assert rooms - TOP_FLOOR <= set(ALLOWED), "a new room: say in ALLOWED what it may import"


@pytest.mark.parametrize(
    ("module", "name", "lazy", "fine"),
    [
        ("mechattr.methods.shapley", "mechattr.game.Game", False, True),
        ("mechattr.methods.shapley", "mechattr.transformer.patching.PatchGame", True, False),
        ("mechattr.transformer.patching", "mechattr.methods.Shapley", False, False),
        ("mechattr.transformer.patching", "mechattr.game.Game", False, True),
        ("mechattr.game", "mechattr.attribution.Attribution", False, False),
        ("mechattr.attribution", "mechattr.display.plot", True, True),
        ("mechattr.attribution", "mechattr.display.plot", False, False),
        ("mechattr.players", "mechattr", False, False),
        ("mechattr.display.views", "circuits.circuit.Circuit", True, False),
        ("mechattr.cli", "circuits.tasks.ioi", True, True),
        ("circuits.discovery", "mechattr.attribute", False, True),
        ("circuits.discovery", "experiments.benchmarks", False, False),
        ("experiments.benchmarks.patching", "circuits.tasks.ioi", False, True),
    ],
)
def test_the_rule_itself(module, name, lazy, fine):
    assert (fault_of(module, name, lazy) == "") is fine


def test_relative_imports_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "mechattr" / "methods" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..transformer import engine\ndef f():\n    from . import base\n")
    assert list(imports(path)) == [
        ("mechattr.transformer.engine", False),
        ("mechattr.methods.base", True),
    ]


HEAVY = ("transformers", "transformer_lens", "plotly", "pandas", "xarray", "datasets", "sklearn")


@pytest.mark.parametrize("module", ["mechattr", "mechattr.methods, mechattr.faithfulness"])
def test_importing_costs_no_heavy_package(module):
    code = (
        f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules], end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]"
