"""The matrix has what pyproject.toml declares, its actions are pinned, Windows skips what cannot run there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY
from posix_only import find_reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read with tomli before Python 3.11")

FOLDER = REPOSITORY / ".github" / "workflows"
WORKFLOW = yaml.safe_load((FOLDER / "test.yml").read_text("utf-8"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]


def list_steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def test_every_declared_python_is_tested_on_every_system():
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    declared = [
        match[1]
        for line in PROJECT["classifiers"]
        if (match := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert matrix["python"] == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"
    assert {name.split("-")[0] for name in matrix["os"]} == {"ubuntu", "windows", "macos"}
    systems = {"POSIX :: Linux", "Microsoft :: Windows", "MacOS"}
    assert {
        line.removeprefix("Operating System :: ") for line in PROJECT["classifiers"] if "Operating" in line
    } == systems
    assert "exclude" not in matrix


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_workflows_ask_for_little(path):
    """Actions have a version, and a token may read the code and nothing else unless a job says more."""
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for step in list_steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@(v\d+(\.\d+)*|release/v\d+|[0-9a-f]{40})", step["uses"]), step["uses"]


def test_one_run_for_the_newest_state_of_a_branch():
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert WORKFLOW["jobs"]["test"]["strategy"]["fail-fast"] is False


SAMPLE = """
import os, signal, subprocess

def stop(process):
    os.killpg(process.pid, signal.SIGTERM)

def start(tmp_path):
    return subprocess.Popen(["sleep", "60"])

def test_direct():
    os.killpg(1, 2)

def test_by_a_function(tmp_path):
    stop(1)

def test_by_a_fixture(start):
    pass

def test_import():
    import resource

def test_permissions(tmp_path):
    tmp_path.chmod(0o500)

def test_link(tmp_path):
    (tmp_path / "a").symlink_to("b")

def test_plain(tmp_path):
    subprocess.run([os.fspath(tmp_path), "sleep"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        *(
            ("test_direct", "os.killpg"),
            ("test_by_a_function", "os.killpg"),
            ("test_by_a_fixture", "the program sleep"),
        ),
        *(("test_import", "resource"), ("test_permissions", "permissions of files"), ("test_plain", "")),
    ],
)
def test_what_windows_skips(name, reason):
    assert find_reason(SAMPLE, name, links=True) == reason


def test_links_are_tested_where_they_can_be_made():
    assert find_reason(SAMPLE, "test_link", links=True) == ""
    assert "symbolic links" in find_reason(SAMPLE, "test_link", links=False)


def test_windows_skips_few_tests():
    """The names above are no trap for tests that need nothing of the kind."""
    import ast

    reasons = {}
    count = 0
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        source = path.read_text("utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                count += 1
                if reason := find_reason(source, node.name, links=True):
                    reasons[f"{path.stem}.{node.name}"] = reason
    assert 5 < len(reasons) < count / 20, reasons
