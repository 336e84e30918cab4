"""Evaluations that were done before and need not be done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glmtune.utils.io import find_json_object

_FILES = ("predictions.jsonl", "generated_predictions.txt", "metrics.json")
"""metrics.json last: it says that the folder is whole."""


def is_same_evaluation(folders: Iterable[Path], settings: dict[str, Any]) -> Path | None:
    """The first folder with a finished evaluation of the same model on the same rows, with the same settings.

    Args:
        folders: where to look.
        settings: from `evaluate.settings_of`.
    """
    wanted = _select_decisive(settings)
    return next((folder for folder in folders if _read_settings(folder) == wanted), None)


def copy_evaluation(source: Path, target: Path) -> None:
    """Take a finished evaluation over."""
    target.mkdir(parents=True, exist_ok=True)
    for name in _FILES:
        shutil.copyfile(source / name, target / name)


def _read_settings(folder: Path) -> dict[str, Any] | None:
    if not all((folder / name).is_file() for name in _FILES) or (folder / "predictions.partial.jsonl").exists():
        return None
    settings = (find_json_object(folder / "metrics.json") or {}).get("settings")
    return _select_decisive(settings) if isinstance(settings, dict) else None


def _select_decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """All but where the data lies: its digest says what it is."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return {key: value for key, value in plain.items() if key != "data"}
