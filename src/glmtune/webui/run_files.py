"""What the tab `Runs` reads from run folders, and the two things it changes: notes, and whole runs deleted."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError, RunError
from glmtune.run_dir import RunDir, is_run
from glmtune.utils.documents import DocumentError, read_document
from glmtune.utils.io import find_json_object, is_locked, write_json, write_text
from glmtune.utils.operating_system import replace_path

NOTES, TAGS = "notes.md", "tags.json"
STATES = ("running", "finished", "stopped", "interrupted", "new", "unreadable")
_MAX_TAGS, _MAX_TAG = 20, 40
_NOTES_MOST = 100_000


@dataclass(frozen=True)
class RunFacts:
    """A run as the list shows it; a number that is not known is None."""

    path: Path
    state: str
    """One of `STATES`."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    """The newest number of every kind in metrics.jsonl."""


def require_run(path: Path) -> RunDir:
    """Raises:
    RunError: the folder is no run, or is gone.
    """
    if not is_run(path):
        raise RunError(f"{path}: there is no run (any more).", "Refresh the list and choose another one.")
    return RunDir(path)


def read_run(path: Path) -> RunFacts:
    """What is known about a run.

    Raises:
        RunError: it is gone, or its config cannot be read.
    """
    run = require_run(path)
    try:
        config = read_config_file(run.config)
    except ConfigError as error:
        raise RunError(error.message, error.hint) from None
    summary = _summary(run)
    last: dict[str, Any] = {}
    try:
        for entry in run.read_metrics():
            last |= entry
    except OSError as error:
        raise RunError(f"{run.metrics}: cannot be read ({error.strerror}).", "Look at its permissions.") from None
    return RunFacts(path, _state(run, summary), config, summary, last)


def _summary(run: RunDir) -> dict[str, Any]:
    return find_json_object(run.summary) or {}  # none: a run that has not begun, or broke off


def _state(run: RunDir, summary: dict[str, Any]) -> str:
    state = str(summary.get("state", "new"))
    if state not in STATES:  # damaged, or of another version
        return "unreadable"
    if state != "running" or is_busy(run):
        return state
    return "interrupted"  # ended from outside, so it could not write it down


def is_busy(run: RunDir) -> bool:
    """Whether a process is training in the folder."""
    return is_locked(run.root)


def find_differences(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[Any]]]:
    """The dotted keys in which configs differ, with the value of each; None where one lacks the key."""
    flat = [_flat(config) for config in configs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = [(key, [each.get(key) for each in flat]) for key in keys]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_notes(path: Path) -> str:
    """The user's notes about a run; empty where there are none.

    Raises:
        RunError: the run is gone, or the file is not text.
    """
    notes = require_run(path).root / NOTES
    if not notes.is_file():
        return ""
    try:
        return read_document(notes)
    except DocumentError as error:
        raise RunError(error.describe(notes), "Save it as UTF-8, or remove it.") from None


def write_notes(path: Path, text: str) -> None:
    """Keep the user's notes in the run.

    Raises:
        RunError: the run is gone, the notes are too long, or the file leads elsewhere.
    """
    notes = require_run(path).root / NOTES
    if len(text) > _NOTES_MOST:
        raise RunError(f"{notes}: {len(text):,} characters are too many.", f"Keep notes under {_NOTES_MOST:,}.")
    write_text(notes, text)


def write_tags(path: Path, tags: str) -> None:
    """Keep words about a run in it, by which it is found.

    Args:
        path: the run.
        tags: words with commas or spaces between them.

    Raises:
        RunError: the run is gone, or there are too many tags, or one is too long.
    """
    words = list(dict.fromkeys(word for word in re.split(r"[,，;；\s]+", tags) if word))
    if len(words) > _MAX_TAGS or any(len(word) > _MAX_TAG for word in words):
        raise RunError(
            f"A run has at most {_MAX_TAGS} tags of {_MAX_TAG} characters.",
            "Remove or shorten some; notes may be long.",
        )
    write_json(require_run(path).root / TAGS, {"tags": words})


def read_tags(path: Path) -> tuple[str, ...]:
    """Words about a run; none where the file is missing or damaged."""
    tags = (find_json_object(path / TAGS) or {}).get("tags")
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()


def list_checkpoints(run: RunDir) -> list[Path]:
    """Folders of the run with weights: its result, then its checkpoints, the newest first."""
    results = [folder for folder in (run.adapter, run.model) if folder.is_dir()]
    return [*results, *run.checkpoints_newest_first()]


def delete_run(path: Path, *, roots: Sequence[Path]) -> None:
    """Delete a run with all that is in it.

    Args:
        path: the run.
        roots: folders that are never deleted, though they might look like runs.

    Raises:
        RunError: it is gone, a process trains in it, it holds a root, or it cannot be deleted.
    """
    run = require_run(path)
    if any(root.resolve().is_relative_to(path.resolve()) for root in roots):
        raise RunError(f"{path}: the server works in this folder.", "Delete it by hand, if you mean it.")
    if is_busy(run):
        raise RunError(f"{path}: a training runs in it.", "Stop it first.")
    doomed = path.with_name(f".{path.name}.deleted")
    try:
        # In one step, so that a run half gone is never taken for a whole one.
        replace_path(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise RunError(f"{path}: cannot be deleted ({error.strerror}).", "Delete it by hand.") from None
