"""What lies under the roots: runs, checkpoints and data, found in one walk over their folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.data.files import CATALOG_FILE, ENCODED_FILES
from glmtune.run_dir import is_run

MAX_FOLDERS = 20_000
"""Folders of a root that are looked at; a root may be a whole disk."""
MAX_DEPTH = 4
"""Levels of folders below a root."""
_SKIPPED = ("node_modules", "__pycache__")
_RESULTS = ("adapter", "model", "checkpoints", "eval")
"""Folders in a run, see `RunDir`."""
_DATA = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz")
_OTHER_JSON = {"config.json", "config.yaml", "adapter_config.json", "metrics.json"}
"""A folder with one of these holds no data, whatever its files are called."""


@dataclass
class RootContents:
    """What was found, in the order of the walk: from the top down, by name.

    Attributes:
        runs: the newest first.
        models: folders of checkpoints, also of runs that trained all weights.
        data: files, and folders of encoded rows.
        catalogs: files `dataset_info.json`.
        cut_roots: those with more than `MAX_FOLDERS` folders, of which the others were not looked at.
    """

    runs: list[Path] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    data: list[Path] = field(default_factory=list)
    catalogs: list[Path] = field(default_factory=list)
    cut_roots: list[Path] = field(default_factory=list)


def walk_roots(roots: Iterable[Path]) -> RootContents:
    """Look through the folders under the roots once. Links are not followed, hidden folders and the results of runs
    left out."""
    contents = RootContents()
    visited: set[str] = set()  # a root may lie in another one
    for root in roots:
        for count, (folder, below, names) in enumerate(os.walk(root)):
            if count >= MAX_FOLDERS:
                contents.cut_roots.append(root)
                break
            if folder in visited:
                below.clear()
                continue
            visited.add(folder)
            _add_folder(contents, Path(folder), below, [name for name in names if not name.startswith(".")])
            _choose_folders(Path(folder), root, below, names)
    contents.runs.sort(key=_read_time, reverse=True)
    return contents


def find_runs(roots: Sequence[Path]) -> list[Path]:
    """All runs under the roots, the newest first."""
    return walk_roots(roots).runs


def _add_folder(contents: RootContents, folder: Path, below: Sequence[str], names: Sequence[str]) -> None:
    if "config.yaml" in names and is_run(folder):
        contents.runs.append(folder)
        if "model" in below and _holds_model(_list_names(folder / "model")):
            contents.models.append(folder / "model")
    if _holds_model(names) and folder.parent.name != "checkpoints":
        contents.models.append(folder)
    if CATALOG_FILE in names:
        contents.catalogs.append(folder / CATALOG_FILE)
    if set(names) >= set(ENCODED_FILES):
        contents.data.append(folder)
    elif not _OTHER_JSON.intersection(names):
        files = (name for name in sorted(names) if name.endswith(_DATA) and name != CATALOG_FILE)
        contents.data += [folder / name for name in files]


def _choose_folders(folder: Path, root: Path, below: list[str], names: Sequence[str]) -> None:
    """Leave in `below` the folders that are looked at next."""
    is_deep = len(folder.relative_to(root).parts) >= MAX_DEPTH
    # Not what runs hold: thousands of them would not be found.
    results = _RESULTS if "config.yaml" in names else ()
    subfolders = (name for name in below if not name.startswith(".") and name not in (*_SKIPPED, *results))
    below[:] = [] if is_deep else sorted(subfolders)


def _holds_model(names: Sequence[str]) -> bool:
    has_weights = any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names)
    return "config.json" in names and has_weights


def _list_names(folder: Path) -> list[str]:
    try:
        return [] if folder.is_symlink() else os.listdir(folder)
    except OSError:  # deleted since it was listed
        return []


def _read_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted since it was listed
        return 0.0
