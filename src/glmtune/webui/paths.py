"""Paths that a page may name: inside the roots that the server was started with, symbolic links followed first."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from glmtune.data.files import list_matches
from glmtune.utils.documents import shorten_path, shorten_value
from glmtune.webui.errors import PathError

_NAME_BYTES, _PATH_BYTES = 255, 4095
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


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
