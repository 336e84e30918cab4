"""The structure of the packages: imports run one way and without circles, differences between generations are in two
packages, and no class or module name is used twice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "src" / "glmtune"
FILES = sorted(ROOT.rglob("*.py"))
# Packages and top modules from the ground up; each may import lower layers and, without circles, its own layer.
LAYERS = [
    {
        "errors",
        "config",
        "config_parsing",
        "config_checks",
        "config_ranges",
        "run_dir",
        "hub",
        "utils",
        "html",
        "download",
        "_transformers_hook",
        "__version__",
    },
    {"families"},
    {"models", "quantization"},
    {"methods", "data"},
    {"training", "generation"},
    {"preference", "evaluation", "export", "bench", "auto_classes", "verification"},
    {"report", "migrate", "serve", "doctor"},
    {"webui", "demo"},
    {"cli", "__main__"},
]
# They import when they are called, so that `import glmtune` stays cheap.
LAZY = {"_transformers_hook", "__init__"}


def _package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _list_imports(path: Path) -> set[str]:
    """Packages that a file imports, including imports inside functions and for type checkers."""
    packages = set()
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
        packages |= {name.split(".")[1] for name in names if name.startswith("glmtune.")}
    return packages


def _layer(package: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if package in names)


def test_every_package_has_a_layer():
    planned = set().union(*LAYERS) | {"__init__"}
    assert {_package(path) for path in FILES} <= planned


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down(path):
    package = _package(path)
    if package in LAZY:
        return
    for other in _list_imports(path):
        assert _layer(other) <= _layer(package), f"{path}: {package} imports {other}, which is in a higher layer"


def test_packages_do_not_import_each_other_in_a_circle():
    edges = {}
    for path in FILES:
        if _package(path) not in LAZY:
            edges.setdefault(_package(path), set()).update(_list_imports(path) - {_package(path)})

    def reaches(start, goal, seen):
        for following in edges.get(start, set()) - seen:
            if following == goal or reaches(following, goal, seen | {following}):
                return True
        return False

    circles = [package for package in edges if reaches(package, package, set())]
    assert circles == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_generations_are_told_apart_in_families_and_models_only(path):
    if _package(path) in ("families", "models"):
        return
    names = {"chatglm", "chatglm2", "chatglm3", "glm4", "glm"}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, (ast.If, ast.IfExp)):
            constants = {n.value for n in ast.walk(node.test) if isinstance(n, ast.Constant)}
            assert not constants & names, f"{path}:{node.lineno}"


def test_every_class_has_a_name_of_its_own():
    places = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_every_module_has_a_name_of_its_own():
    places = {}
    for path in FILES:
        if path.stem != "__init__" and _package(path) != "webui":
            places.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_a_wrong_import_is_seen(tmp_path, monkeypatch):
    """The check above must be able to fail."""
    wrong = ROOT / "families" / "nonexistent.py"
    monkeypatch.setattr(Path, "read_text", lambda self, *args: "from glmtune.training.run import train\n")
    with pytest.raises(AssertionError, match="families imports training"):
        test_imports_run_down(wrong)
