"""The plan of the house, kept: imports run one way, generations are told apart in two rooms, files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "src" / "glmtune"
FILES = sorted(ROOT.rglob("*.py"))
# Rooms from the ground up; a room may import from lower floors and, without circles, from its own.
FLOORS = [
    {"errors", "config", "config_parsing", "run_dir", "hub", "utils", "html", "_transformers_hook"},
    {"families"},
    {"models", "quantization"},
    {"methods", "data"},
    {"training", "generation"},
    {"evaluation", "export", "bench"},
    {"report", "migrate"},
    {"webui", "demo"},
    {"cli", "__main__"},
]
# Resolved when they are called, so that `import glmtune` stays cheap; they are the package's own front door.
LAZY = {"_transformers_hook", "__init__"}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Rooms that a file imports, imports inside functions and for type checkers included."""
    rooms = set()
    package = ["glmtune", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" if module == "glmtune" else module for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("glmtune.")}
    return rooms


def _floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_is_in_the_plan():
    planned = set().union(*FLOORS) | {"__init__"}
    assert {_room(path) for path in FILES} <= planned


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    room = _room(path)
    if room in LAZY:
        return
    for other in _imports(path):
        assert _floor(other) <= _floor(room), f"{path}: {room} imports {other}, which stands above it"


def test_siblings_do_not_import_each_other_in_a_circle():
    edges = {}
    for path in FILES:
        if _room(path) not in LAZY:
            edges.setdefault(_room(path), set()).update(_imports(path) - {_room(path)})

    def reaches(start, goal, seen):
        for following in edges.get(start, set()) - seen:
            if following == goal or reaches(following, goal, seen | {following}):
                return True
        return False

    circles = [room for room in edges if reaches(room, room, set())]
    assert circles == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_generations_are_told_apart_in_their_own_rooms(path):
    if _room(path) in ("families", "models"):
        return
    names = {"chatglm", "chatglm2", "chatglm3", "glm4", "glm"}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.If, ast.IfExp)):
            constants = {n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)}
            assert not constants & names, f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text("utf-8").splitlines()) <= 450


def test_the_linter_sees_a_wrong_arrow(tmp_path, monkeypatch):
    """The check above must be able to fail."""
    wrong = ROOT / "families" / "nonexistent.py"
    monkeypatch.setattr(Path, "read_text", lambda self, *args: "from glmtune.training.run import train\n")
    with pytest.raises(AssertionError, match="families imports training"):
        test_imports_run_down(wrong)
