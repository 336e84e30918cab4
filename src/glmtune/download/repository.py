"""Files of a repository on a model hub, with the sizes and sums that the hub publishes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.utils.io import find_json_object, write_json

RECORD_FILE = "glmtune-fetch.json"
"""The list of files that a download leaves in its folder: repository, revision, sizes, sums."""

_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class FileSum:
    """A checksum of a file."""

    kind: str
    """`sha256`, or `git-sha1`: git's name of a small file, the SHA-1 of `blob SIZE\\0` and its bytes."""
    digits: str
    """Lower-case hexadecimal."""


@dataclass(frozen=True)
class RepositoryFile:
    """A file as the hub lists it."""

    path: str
    """Inside the repository, with `/`."""
    size: int | None = None
    sum: FileSum | None = None


@dataclass
class Repository:
    """A list of files, and where it comes from."""

    hub: str
    id: str
    """`org/name`; empty if it is not known."""
    revision: str
    """A commit where the hub has them, else a branch or tag."""
    files: dict[str, RepositoryFile] = field(default_factory=dict)
    """By path."""
    mirror: str = ""
    """Address of the server in place of the hub's own; empty for that."""


def read_record(folder: Path) -> Repository | None:
    """Read the list that a download left in `folder`; None without a readable one."""
    content = find_json_object(folder / RECORD_FILE)
    if content is None or not isinstance(content.get("files"), dict):
        return None
    hub, name, revision = (content.get(key) for key in ("hub", "repository", "revision"))
    if not all(isinstance(text, str) for text in (hub, name, revision)):
        return None
    mirror = content.get("mirror")
    repository = Repository(str(hub), str(name), str(revision), mirror=mirror if isinstance(mirror, str) else "")
    for path, entry in content["files"].items():
        sha256, size = (entry.get("sha256"), entry.get("size")) if isinstance(entry, dict) else (None, None)
        if isinstance(sha256, str):
            is_size = isinstance(size, int) and not isinstance(size, bool)
            repository.files[path] = RepositoryFile(path, size if is_size else None, FileSum("sha256", sha256.lower()))
    return repository


def write_record(folder: Path, repository: Repository) -> None:
    """Write the list of downloaded files into `folder`.

    Args:
        folder: of the checkpoint.
        repository: its files with their SHA-256, which is what was read back, not what the hub says.
    """
    files: dict[str, Any] = {
        path: {"size": file.size, "sha256": file.sum.digits}
        for path, file in sorted(repository.files.items())
        if file.sum is not None
    }
    source = {"hub": repository.hub, "repository": repository.id, "revision": repository.revision}
    mirror = {"mirror": repository.mirror} if repository.mirror else {}
    write_json(folder / RECORD_FILE, source | mirror | {"files": files})


def start_sum(kind: str, size: int) -> Any:
    """A hash object for a `FileSum`.

    Args:
        kind: `sha256` or `git-sha1`.
        size: of the file in bytes, which is part of git's sum.
    """
    return hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def hash_file(path: Path, kind: str = "sha256", on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """The sum of a file, read once from its start.

    Args:
        path: of the file.
        kind: of the sum.
        on_bytes: called with the number of bytes after each block.
    """
    digest = start_sum(kind, path.stat().st_size)
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()
