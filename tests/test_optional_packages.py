"""Packages of the extras: every import goes through one helper, and what is missing is named with the line that
installs it."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest

from conftest import REPOSITORY
from glmtune.errors import ConfigError, GlmtuneError, ModelError
from glmtune.utils import installation, optional_packages
from glmtune.utils.optional_packages import EXTRAS, import_extra, require_extra

ROOT = REPOSITORY / "src" / "glmtune"
FILES = sorted(ROOT.rglob("*.py"))
# Modules whose names differ from those of their packages.
_MODULES = {"pyyaml": "yaml", "markdown-it-py": "markdown_it"}
# Of torch itself, and of packages that a dependency always brings.
_BROUGHT = {"click", "packaging", "PIL"}
# Whole packages behind a command that requires their extra first; a module that is imported when Triton is there.
_BEHIND_A_DOOR = {"webui": "ui", "serve": "serve"}
_TRITON = ROOT / "quantization" / "triton_kernels.py"


def _name_module(requirement):
    name = re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()
    return _MODULES.get(name, name.replace("-", "_"))


@cache
def _read_project():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in Python 3.11 and later")
    import tomllib

    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def _list_imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            yield name.partition(".")[0], node.lineno


def test_the_helper_knows_the_extras_of_the_project():
    extras = {
        name: lines for name, lines in _read_project()["optional-dependencies"].items() if name not in ("test", "docs")
    }
    assert {name: {_name_module(line) for line in lines} for name, lines in extras.items()} == {
        name: set(modules) for name, modules in EXTRAS.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_of_dependencies_or_go_through_the_helper(path):
    required = {_name_module(line) for line in _read_project()["dependencies"]}
    allowed = required | set(sys.stdlib_module_names) | _BROUGHT | {"glmtune", "tomllib"}
    door = _BEHIND_A_DOOR.get(path.relative_to(ROOT).parts[0])
    allowed |= set(EXTRAS[door]) | {"starlette", "pydantic"} if door else set()  # fastapi is built on them
    allowed |= {"triton"} if path == _TRITON else set()
    wrong = [f"{path}:{line}: {name}" for name, line in _list_imports(path) if name not in allowed]
    assert wrong == []


@pytest.mark.parametrize("package", _BEHIND_A_DOOR)
def test_a_package_behind_a_door_is_imported_after_its_extra_is_required(package):
    extra = _BEHIND_A_DOOR[package]
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in _BEHIND_A_DOOR:
            continue
        tree = ast.parse(path.read_text("utf-8"))
        found = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"glmtune.{package}.")
        ]
        required = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "require_extra"
            and isinstance(node.args[0], ast.Constant)
            and node.args[0].value == extra
        ]
        if found:
            assert required, path
            assert min(required) < min(found), path


def test_no_other_place_looks_for_packages():
    """`find_spec` and hints with a hand-written `pip install` belong to the helpers."""
    for path in FILES:
        text = path.read_text("utf-8")
        if path.parent.name == "utils" or path.parent.name == "doctor" or path.name == "_transformers_hook.py":
            continue
        assert not re.search(r"\bfind_spec\b", text), path
        assert not re.search(r"""["'{`]pip install|: pip install""", text), path


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_extra_is_named_with_the_line_that_installs_it(extra, monkeypatch):
    for module in EXTRAS[extra]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError) as error:
        require_extra(extra, "This", "or do without.", ModelError)
    assert str(error.value).startswith(f"This needs {EXTRAS[extra][0]}")
    assert error.value.hint.endswith(f'[{extra}]"; or do without.')
    for module in EXTRAS[extra]:
        with pytest.raises(ConfigError, match=f"{module} is not installed"):
            import_extra(f"{module}.part")


def test_an_incomplete_package_is_named_by_what_it_lacks(tmp_path, monkeypatch):
    (tmp_path / "gguf.py").write_text("import module_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    with pytest.raises(
        GlmtuneError, match=r"--format gguf needs gguf, which is not complete: .*module_that_is_not_there"
    ):
        import_extra("gguf", "--format gguf")


def test_an_error_of_a_native_library_keeps_its_type(tmp_path, monkeypatch):
    (tmp_path / "gguf.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gguf", raising=False)
    with pytest.raises(ImportError, match="libcudart"):
        import_extra("gguf")


def _make_python(tmp_path, monkeypatch, *programs):
    """A Python in an environment of its own, with these programs beside it, of which `python` may be on PATH."""
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    for name in programs:
        file = folder / (name + ".exe" if sys.platform == "win32" else name)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setattr(sys, "prefix", str(folder.parent))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.setattr(installation, "find_installation", lambda: object())
    return folder


@pytest.mark.parametrize(
    ("programs", "is_active", "has_pip", "expected"),
    [
        (["python", "pip"], True, True, 'pip install "glmtune[qlora]"'),
        (["python"], True, True, 'python -m pip install "glmtune[qlora]"'),
        (["python", "pip"], False, True, '{python} -m pip install "glmtune[qlora]"'),
        (["python", "uv"], True, False, 'uv pip install --python {python} "glmtune[qlora]"'),
    ],
)
def test_the_line_is_for_the_python_that_runs(programs, is_active, has_pip, expected, tmp_path, monkeypatch):
    folder = _make_python(tmp_path, monkeypatch, *programs)
    monkeypatch.setenv("PATH", str(folder) if is_active else "")
    monkeypatch.setattr(installation, "has_pip", lambda: has_pip)
    assert installation.format_install("glmtune[qlora]") == expected.format(python=folder / "python")


def test_the_line_of_a_source_tree_names_its_folder(tmp_path, monkeypatch):
    folder = _make_python(tmp_path, monkeypatch, "python", "pip")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(installation, "find_installation", lambda: None)
    assert installation.format_install("glmtune[ui]") == f'pip install "{REPOSITORY}[ui]"'
    assert installation.format_install("galore-torch") == "pip install galore-torch"


def test_the_line_can_be_pasted(tmp_path, monkeypatch):
    """Through a real shell: the words that pip gets."""
    if shutil.which("sh") is None:
        pytest.skip("there is no sh")
    import subprocess

    folder = _make_python(tmp_path / "with space 空", monkeypatch, "python")
    (folder / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    line = installation.format_install("glmtune[qlora]", "torch>=2.6")
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert found.stdout.split() == ["-m", "pip", "install", "glmtune[qlora]", "torch>=2.6"]


def test_a_module_that_cannot_be_looked_for_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert not optional_packages.is_installed("gguf")
    assert optional_packages.is_installed("json")
