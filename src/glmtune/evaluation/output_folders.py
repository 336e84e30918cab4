"""Folders of results: never a model's, never one that holds something else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from glmtune.errors import RunError
from glmtune.utils.io import LOCK_FILE, explain_write_errors

_HINT = "Choose another --output, or remove the folder."
_SETTINGS = ("config.json", "adapter_config.json")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def require_no_model(folder: Path) -> None:
    """Require that a folder to write results to is no model or adapter, and not directly inside one.

    Raises:
        RunError: it is.
    """
    for place in (folder, folder.parent):
        names = [path.name for path in _list_entries(place)]
        if any(name in names for name in _SETTINGS) and any(name.endswith(_WEIGHTS) for name in names):
            raise RunError(
                f"{folder}: {'holds a model' if place == folder else f'is inside the model {place}'}; "
                "results are never written there.",
                "Choose another folder.",
            )


def require_result_folder(folder: Path, own_files: Iterable[str], what: str) -> None:
    """Require that a folder is new or empty, or holds an earlier result of the same kind.

    Args:
        folder: to write to.
        own_files: names or patterns, one of which every result of this kind has, finished or not.
        what: the kind, for the message: "an evaluation".

    Raises:
        RunError: it is a file, holds a model or something else, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a file, not a folder.", "Choose another --output.")
    require_no_model(folder)
    entries = [path for path in _list_entries(folder) if path.name != LOCK_FILE]
    if entries and not any(next(folder.glob(pattern), None) for pattern in own_files):
        raise RunError(f"{folder}: not empty; {what} is never written over something else.", _HINT)
    _require_writable(folder)


def _require_writable(folder: Path) -> None:
    """Find out before hours of work whether files can be made in a folder, which need not be there yet."""
    place = next((each for each in (folder, *folder.absolute().parents) if each.is_dir()), Path("/"))
    with explain_write_errors(folder), tempfile.TemporaryFile(dir=place):
        pass


def _list_entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
