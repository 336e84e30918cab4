"""The note beside whatever was trained: which base it belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from glmtune.errors import RunError
from glmtune.utils.io import write_json

NOTE = "glmtune.json"
"""Lies beside an adapter and says which base it was trained on."""


@dataclass
class BaseInfo:
    """The base of an adapter."""

    path: str
    fingerprint: str
    family: str


def write_base_info(folder: Path, note: BaseInfo) -> None:
    """Put the note into a folder."""
    write_json(folder / NOTE, asdict(note))


def read_base_info(folder: Path) -> BaseInfo | None:
    """What the adapter says of its base; None for adapters that others made.

    Raises:
        RunError: the note is broken.
    """
    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return BaseInfo(*(str(said[field.name]) for field in fields(BaseInfo)))
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}: broken, so it does not say which base this is for.",
            "Copy the file again; or remove it, and the base is not checked.",
        ) from None


def require_same_base(folder: Path, fingerprint: str, base: Path) -> None:
    """Refuse an adapter whose base was another one.

    Raises:
        RunError: names both fingerprints.
    """
    note = read_base_info(folder)
    if note and note.fingerprint != fingerprint:
        raise RunError(
            f"{folder}: was trained on a base with fingerprint {note.fingerprint} ({note.path}); "
            f"{base} has {fingerprint}.",
            "Give the right base with --base.",
        )
