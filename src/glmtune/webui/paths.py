"""Paths that a page may name: inside the roots that the server was started with, symbolic links followed first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from glmtune.data.files import ENCODED_FILES, list_matches
from glmtune.run_dir import is_run
from glmtune.utils.documents import shorten_path, shorten_value
from glmtune.webui.errors import PathError

Kind = Literal["runs", "models", "data"]
_NAME_BYTES, _PATH_BYTES = 255, 4095
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_DEPTH = 4
_MOST = 200
MAX_FOLDERS = 20_000
_RESULTS = ("adapter", "model", "checkpoints", "eval")
"""Folders in a run, see `RunDir`."""
_DATA = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".gz")


def inside(roots: Sequence[Path], text: str) -> Path:
    """The path that a user named, with its symbolic links followed. A relative one begins at the first root.

    Raises:
        PathError: it is empty, or leads out of all roots.
    """
    named = text.strip()
    if not named:
        raise PathError("No path is given.", "Choose one, or type it.")
    try:
        path = (roots[0] / Path(named).expanduser()).resolve()
        os.fsencode(path)
    except (OSError, RuntimeError, ValueError):  # a loop of links, an unknown ~user, a NUL
        raise PathError(f"{shorten_value(named)}: not a path.", "Choose one, or type it again.") from None
    if any(len(os.fsencode(part)) > _NAME_BYTES for part in path.parts) or len(os.fsencode(path)) > _PATH_BYTES:
        raise PathError(f"{shorten_path(named)}: too long for a path.", "Choose one, or type it again.")
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise PathError(
            f"{named}: outside of the folders that this server may use ({', '.join(map(str, roots))}).",
            "Start it with another one: glmtune ui --root FOLDER",
        )
    return path


def model_or_path(roots: Sequence[Path], text: str) -> str:
    """A checkpoint as a command takes it: a path inside the roots, or a hub id where no such folder is there.

    Raises:
        PathError: see `inside`.
    """
    named = text.strip()
    # `org/name` is looked for on disk first by whoever loads it, so a folder of that name is a path here too.
    on_disk = any(os.path.lexists(start / named) for start in (roots[0], Path.cwd()))
    return named if _HUB_ID.fullmatch(named) and not on_disk else str(inside(roots, named))


def data_entries(roots: Sequence[Path], text: str) -> str | list[str]:
    """Data as a config names it: a path, pattern or hub id, or a list of them where there are several lines.

    Raises:
        PathError: see `inside`; also for what a pattern or a folder holds.
    """
    entries = [_data_entry(roots, line) for line in text.splitlines() if line.strip()]
    if not entries:
        raise PathError("No data is given.", "Choose a file, or upload one.")
    return entries[0] if len(entries) == 1 else entries


def _data_entry(roots: Sequence[Path], text: str) -> str:
    entry = model_or_path(roots, text)
    path = Path(entry)
    if any(mark in path.name for mark in "*?["):
        within: Iterable[Path] = list_matches(path.parent, path.name)
    else:
        within = path.iterdir() if path.is_dir() else ()
    for found in within:
        if found.is_symlink():
            inside(roots, str(found))
    return entry


def list_paths(roots: Iterable[Path], kind: Kind) -> list[str]:
    """Runs (newest first), checkpoint folders or data files under the roots, for a list to choose from.

    A few levels deep and a bounded number of folders: a root may be a whole disk. Links are not followed.
    """
    return [str(path) for path in find_paths(roots, kind).paths[:_MOST]]


@dataclass(frozen=True)
class FoundPaths:
    """What lies under the roots.

    Attributes:
        paths: all that were found; runs are sorted, the newest first.
        cut_roots: those with more than `MAX_FOLDERS` folders, of which the others were not looked at.
    """

    paths: list[Path]
    cut_roots: list[Path]


def find_paths(roots: Iterable[Path], kind: Kind) -> FoundPaths:
    """All paths of a kind, in a bounded number of folders of each root; see `list_paths`."""
    cut_roots: list[Path] = []
    paths = [path for root in roots for path in _FIND[kind](root, cut_roots)]
    if kind == "runs":
        paths.sort(key=_changed, reverse=True)
    return FoundPaths(paths, cut_roots)


def _runs(root: Path, cut_roots: list[Path]) -> Iterator[Path]:
    walk = walk_folders(root, without_results=True, cut_roots=cut_roots)
    return (folder for folder, names in walk if "config.yaml" in names and is_run(folder))


def _models(root: Path, cut_roots: list[Path]) -> Iterator[Path]:
    for folder, names in walk_folders(root, cut_roots=cut_roots):
        whole = any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names)
        if "config.json" in names and whole and folder.parent.name != "checkpoints":
            yield folder


def _data(root: Path, cut_roots: list[Path]) -> Iterator[Path]:
    for folder, names in walk_folders(root, cut_roots=cut_roots):
        if set(names) >= set(ENCODED_FILES):
            yield folder
        elif not {"config.json", "config.yaml", "adapter_config.json", "metrics.json"} & set(names):
            yield from (folder / name for name in sorted(names) if name.endswith(_DATA))


def find_runs(roots: Iterable[Path]) -> list[Path]:
    """All runs under the roots, the newest first."""
    return find_paths(roots, "runs").paths


_FIND = {"runs": _runs, "models": _models, "data": _data}


def walk_folders(
    root: Path, *, without_results: bool = False, cut_roots: list[Path] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files, from the top down, `MAX_FOLDERS` at most.

    Args:
        root: where it begins.
        without_results: not what a run holds, so that thousands of runs are found.
        cut_roots: gets `root` if there are more folders.
    """
    for count, (folder, below, names) in enumerate(os.walk(root)):
        if count >= MAX_FOLDERS:
            if cut_roots is not None:
                cut_roots.append(root)
            return
        path = Path(folder)
        deep = len(path.relative_to(root).parts) >= _DEPTH
        hidden = {name for name in below if name.startswith(".") or name in ("node_modules", "__pycache__")}
        if without_results and "config.yaml" in names:
            hidden |= set(_RESULTS)
        below[:] = [] if deep else sorted(set(below) - hidden)
        yield path, [name for name in names if not name.startswith(".")]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted since it was listed
        return 0.0
