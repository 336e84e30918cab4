"""What a folder holds, read once: a report is made of whatever is there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError, RunError
from glmtune.run_dir import RunDir, is_run

Json = dict[str, Any]

COMPARISON, FORGETTING, METRICS, PREDICTIONS = (
    "comparison.json",
    "forgetting.json",
    "metrics.json",
    "predictions.jsonl",
)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder."""

    name: str
    metrics: Json
    predictions: list[Json]


@dataclass(frozen=True)
class Found:
    """What a report is made of. What the folder does not hold is empty or None."""

    kind: str
    """run, eval, comparison or forgetting."""
    folder: Path
    summary: Json = field(default_factory=dict)
    entries: list[Json] = field(default_factory=list)
    """The lines of a run's metrics.jsonl."""
    config: Json = field(default_factory=dict)
    config_text: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)
    comparisons: list[Json] = field(default_factory=list)
    forgetting: Json | None = None


def gather(folder: Path) -> Found:
    """Read a run, an evaluation, a comparison or a forgetting probe.

    Raises:
        RunError: the folder is none of these, or one of its files cannot be read.
    """
    if is_run(folder):
        return _run(folder)
    if (folder / COMPARISON).is_file():
        forgetting = _optional(folder / FORGETTING)
        return Found("comparison", folder, comparisons=[_read(folder / COMPARISON)], forgetting=forgetting)
    if (folder / METRICS).is_file():
        return Found("eval", folder, evaluations=[_evaluation(folder)])
    if (folder / FORGETTING).is_file():
        return Found("forgetting", folder, forgetting=_read(folder / FORGETTING))
    raise RunError(
        f"{folder}: nothing to report on; it is no run, evaluation, comparison or forgetting probe.",
        "Give a folder that glmtune train, eval, compare or forget has written.",
    )


def _run(folder: Path) -> Found:
    run = RunDir(folder)
    try:
        config = read_config_file(run.config)
    except ConfigError as error:
        raise RunError(error.message, "Restore the file, or remove it: it is the run's own copy.") from None
    inside = sorted(folder.glob("eval/*/"))
    return Found(
        "run",
        folder,
        summary=_optional(run.summary) or {},
        entries=[entry for entry in run.read_metrics() if isinstance(entry, dict)],
        config=config,
        config_text=run.config.read_text("utf-8-sig"),
        evaluations=[_evaluation(each) for each in inside if (each / METRICS).is_file()],
        comparisons=[_read(each / COMPARISON) for each in inside if (each / COMPARISON).is_file()],
        forgetting=_optional(folder / FORGETTING),
    )


def _evaluation(folder: Path) -> Evaluation:
    return Evaluation(folder.name, _read(folder / METRICS), _lines(folder / PREDICTIONS))


def _optional(path: Path) -> Json | None:
    return _read(path) if path.is_file() else None


def _read(path: Path) -> Json:
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        line = getattr(error, "lineno", 1)
        raise RunError(f"{path}:{line}: is not JSON ({error}).", "Run the command that wrote it once more.") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: must hold a JSON object.", "Run the command that wrote it once more.")
    return value


def _lines(path: Path) -> list[Json]:
    """The objects of a JSON-lines file; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text("utf-8").split("\n"):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def at(tree: Any, *keys: str) -> Any:
    """A value deep in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def below(tree: Any, *keys: str) -> Json:
    """As `at`, for a dict; empty where it is missing."""
    value = at(tree, *keys)
    return value if isinstance(value, dict) else {}


def several(tree: Any, *keys: str) -> list[Any]:
    """As `at`, for a list; empty where it is missing."""
    value = at(tree, *keys)
    return value if isinstance(value, list) else []
