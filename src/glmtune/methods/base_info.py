"""The file that says which base an adapter or a model was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from glmtune.errors import RunError
from glmtune.utils.documents import parse_json, read_document
from glmtune.utils.io import write_json

BASE_INFO_FILE = "glmtune.json"
"""File in the folder of an adapter that names its base."""


@dataclass
class BaseInfo:
    """The base of an adapter."""

    path: str
    fingerprint: str
    family: str


def write_base_info(folder: Path, base_info: BaseInfo) -> None:
    """Write the file into a folder."""
    write_json(folder / BASE_INFO_FILE, asdict(base_info))


def read_base_info(folder: Path) -> BaseInfo | None:
    """Read which base an adapter was trained on; None for adapters of other tools.

    Raises:
        RunError: the file is broken.
    """
    path = folder / BASE_INFO_FILE
    if not path.is_file():
        return None
    try:
        content = parse_json(read_document(path))
        return BaseInfo(*(str(content[field.name]) for field in fields(BaseInfo)))
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
    base_info = read_base_info(folder)
    if base_info and base_info.fingerprint != fingerprint:
        raise RunError(
            f"{folder}: was trained on a base with fingerprint {base_info.fingerprint} ({base_info.path}); "
            f"{base} has {fingerprint}.",
            "Give the right base with --base.",
        )
