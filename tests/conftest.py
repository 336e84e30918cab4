"""Assets outside the repository, and fixtures that many tests share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from glmtune.errors import TrainingError

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


def pytest_collection_modifyitems(items):
    if os.name == "nt":
        from posix_only import skip_on_windows

        skip_on_windows(items)


def find_asset(*parts: str) -> Path:
    """Return a published tokenizer or data file from `GLMTUNE_ASSETS` or `../shared`, or skip the test."""
    roots = [Path(p) for p in [os.environ.get("GLMTUNE_ASSETS", "")] if p] + [REPOSITORY.parent / "shared"]
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists():
            return path
    pytest.skip(f"{'/'.join(parts)} is not in this repository; set GLMTUNE_ASSETS to the folder that contains it")


@pytest.fixture(scope="session")
def asset():
    return find_asset


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(family, layout="safetensors")`: the folder of a tiny random checkpoint, written once per session."""
    from tiny import make_tiny

    folders: dict[tuple[str, str], Path] = {}

    def get(family: str, layout: str = "safetensors") -> Path:
        key = (family, layout)
        if key not in folders:
            folders[key] = make_tiny(family, tmp_path_factory.mktemp("tiny") / f"{family}-{layout}", layout=layout)
        return folders[key]

    return get


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Give every test its own cache of encoded rows."""
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def no_file_limit():
    """A page limits the process to its roots; the next test is free of it."""
    yield
    if "glmtune.utils.file_access" in sys.modules:
        sys.modules["glmtune.utils.file_access"].set_file_limit(None)


@pytest.fixture(autouse=True)
def skip_memory_plan(request, monkeypatch):
    """Train without a memory plan in this process: it takes a third of a tiny training's time, and a run without a plan
    is trained too. Other processes, the tests of plans, and those marked as complete runs make plans."""
    plan_module = sys.modules.get("glmtune.training.plan.apply")
    makes_plan = request.module.__name__.startswith("test_plan") or request.node.get_closest_marker("complete_run")
    if plan_module and not makes_plan:
        monkeypatch.setattr(plan_module, "plan_run", raise_no_plan)


@pytest.fixture(autouse=True)
def skip_pictures(request, monkeypatch):
    """Write empty PNG files in this process: drawing takes as long as a tiny training. Other processes draw, and so do
    the tests of pictures and those marked as complete runs."""
    is_about_pictures = request.module.__name__.startswith(("test_report", "test_bench", "test_check"))
    draws = is_about_pictures or request.node.get_closest_marker("complete_run")
    if "glmtune.html.plots" in sys.modules and not draws:
        draw_nothing(monkeypatch.setattr)


def draw_nothing(setattr):
    """Replace drawing by empty PNG files, with this function to set attributes."""
    from glmtune.html import plots
    from glmtune.utils.io import open_atomic

    def write_empty_picture(_, path):
        with open_atomic(path) as temporary:
            temporary.write_bytes(b"\x89PNG\r\n\x1a\n")
        return path

    setattr(plots, "_make_figure", lambda rows, columns, _: (None, [MagicMock()] * rows * columns))
    setattr(plots, "save_figure", write_empty_picture)


@pytest.fixture(autouse=True, scope="module")
def keep_libraries_out_of_collections():
    """Take what is in memory between two files out of garbage collections: a training collects once, and looking at all
    objects of the libraries takes as long as its steps."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # libraries report objects that are left at the end of the process


def raise_no_plan(*_):
    raise TrainingError("no plan in tests")


@pytest.fixture
def glmtune_command(monkeypatch, capsys):
    """`glmtune_command("train", "--model", ...)`: the command line, in this process."""
    from command import make_runner

    return make_runner(monkeypatch, capsys)


@pytest.fixture
def adgen_file(tmp_path):
    """`adgen_file(n)`: a JSON-lines file of synthetic advertisements."""
    import json

    from demo_corpus.corpus import make_adgen_rows

    def write(count: int = 16, name: str = "train.json", seed: int = 1) -> Path:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in make_adgen_rows(count, seed=seed)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
