"""Where tests find what the repository may not contain, and small things that many tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from glmtune.errors import TrainingError

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


def find_asset(*parts: str) -> Path:
    """A published tokenizer or data file: from `GLMTUNE_ASSETS`, else `../shared`, else the test is skipped."""
    roots = [Path(p) for p in [os.environ.get("GLMTUNE_ASSETS", "")] if p] + [REPOSITORY.parent / "shared"]
    for root in roots:
        path = root.joinpath(*parts)
        if path.exists():
            return path
    pytest.skip(f"{'/'.join(parts)} is not in this repository; name the folder that holds it in GLMTUNE_ASSETS")


@pytest.fixture(scope="session")
def asset():
    return find_asset


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(family, layout="safetensors")`: the folder of a tiny random checkpoint, made once a session."""
    from tiny import make_tiny

    made: dict[tuple[str, str], Path] = {}

    def get(family: str, layout: str = "safetensors") -> Path:
        key = (family, layout)
        if key not in made:
            made[key] = make_tiny(family, tmp_path_factory.mktemp("tiny") / f"{family}-{layout}", layout=layout)
        return made[key]

    return get


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Encoded rows of a test stay with the test."""
    monkeypatch.setenv("GLMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def unplanned(request, monkeypatch):
    """Trainings of this process start without a memory plan, a third of what a tiny one takes; a run that cannot be
    planned is trained all the same. Those of other processes, and of tests about plans and `train`, are planned."""
    settle = sys.modules.get("glmtune.training.plan.apply")
    if settle and not request.module.__name__.startswith(("test_plan", "test_train")):
        monkeypatch.setattr(settle, "plan_for", no_plan)


def no_plan(*_):
    raise TrainingError("no plan in tests")


@pytest.fixture
def glmtune_command(monkeypatch, capsys):
    """`glmtune_command("train", "--model", ...)`: the command line, in this process."""
    from command import runner

    return runner(monkeypatch, capsys)


@pytest.fixture
def adgen_file(tmp_path):
    """`adgen_file(n)`: a JSON-lines file of synthetic advertisements."""
    import json

    from glmtune.demo.corpus import adgen_rows

    def write(count: int = 16, name: str = "train.json", seed: int = 1) -> Path:
        path = tmp_path / name
        lines = [json.dumps(row, ensure_ascii=False) for row in adgen_rows(count, seed=seed)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
