"""Which module imports which: no circle, and only downward in the picture of CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parent.parent
FRONT, EXT = TREE / "src" / "harken", TREE / "ext" / "harken"

pytestmark = pytest.mark.skipif(
    not TREE.joinpath("CONTRIBUTING.md").is_file(), reason="the tree is not beside the tests"
)


def modules() -> dict[str, Path]:
    found = {}
    for path in FRONT.rglob("*.py"):
        parts = path.relative_to(FRONT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "harken"] = path
    return found | {path.stem: path for path in EXT.glob("*.pyx")}


def names(name: str, path: Path) -> list[str]:
    """What the module's own level imports of harken: not what functions import when they are called, nor types."""
    if path.suffix == ".pyx":
        text = path.read_text("utf-8")
        found = re.findall(r"^from (?:harken\.|\.)([\w.]+) c?import", text, re.MULTILINE)
        return found + re.findall(r"^c?import harken\.([\w.]+)", text, re.MULTILINE)
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part != "harken"]
    found = []
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + ([node.module] if node.module else [])
            found += [".".join([*base, alias.name]) for alias in node.names]
    return found


def imports() -> dict[str, set[str]]:
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        graph[name] = set()
        for other in names(name, path):
            found = other if other in known else other.rpartition(".")[0]
            if found in known and found != name:
                graph[name].add(found)
    return graph


def test_imports_go_downward_in_the_picture() -> None:
    text = TREE.joinpath("CONTRIBUTING.md").read_text("utf-8")
    picture = text.split("## Rooms", 1)[1].split("```")[1]
    level = {name: n for n, line in enumerate(picture.strip().splitlines()[1:]) for name in line.split()}
    graph = imports()
    assert set(level) == set(graph)
    assert sum(map(len, graph.values())) > 50
    upward = [(name, other) for name, others in graph.items() for other in others if level[other] <= level[name]]
    assert upward == []
