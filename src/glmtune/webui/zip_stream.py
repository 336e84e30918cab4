"""A folder as a .zip that is sent while it is made: its length is known before, so that a browser shows how much of it
has come. Files are stored, not compressed: weights do not get smaller."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from glmtune.errors import RunError
from glmtune.utils.file_access import require_readable

_BLOCK_BYTES = 2**20
_LOCAL_HEADER, _CENTRAL_HEADER, _END = 30, 46, 22
_ZIP64_END = 56 + 20
"""The record of the end for large archives, and what says where it is."""
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class ZipEntry:
    """A file of the archive."""

    path: Path
    name: str
    """In the archive."""
    size: int

    @property
    def is_large(self) -> bool:
        """Whether its sizes take 64 bits."""
        return self.size > zipfile.ZIP64_LIMIT


def list_entries(folder: Path) -> list[ZipEntry]:
    """The files of a folder, those behind links left out.

    Raises:
        RunError: a file cannot be read.
        FileAccessError: a file is outside of the folders that this process is limited to.
    """
    entries = []
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve()):
                with require_readable(path).open("rb"):  # before the answer begins
                    name = str(Path(folder.name) / path.relative_to(folder)).encode("utf-8", "replace").decode()
                entries.append(ZipEntry(path, name, path.stat().st_size))
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror}).", "Look at its permissions.") from None
    return entries


def compute_length(entries: list[ZipEntry]) -> int:
    """Bytes of the archive."""
    offset = central = 0
    for entry in entries:
        name = len(entry.name.encode())
        # In front of the file, its name and, for 64 bits, both sizes; behind it the sum and both sizes again.
        extra = 20 if entry.is_large else 0
        descriptor = 24 if entry.is_large else 16
        wide_numbers = (2 if entry.is_large else 0) + (1 if offset > zipfile.ZIP64_LIMIT else 0)
        central += _CENTRAL_HEADER + name + (4 + 8 * wide_numbers if wide_numbers else 0)
        offset += _LOCAL_HEADER + name + extra + entry.size + descriptor
    is_wide = len(entries) > zipfile.ZIP_FILECOUNT_LIMIT or max(offset, central) > zipfile.ZIP64_LIMIT
    return offset + central + _END + (_ZIP64_END if is_wide else 0)


def stream_zip(entries: list[ZipEntry]) -> Iterator[bytes]:
    """The archive in parts.

    Raises:
        RunError: a file has another size than it had; what was sent is incomplete, which the browser notices.
    """
    buffer = _Buffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for entry in entries:
            info = zipfile.ZipInfo(entry.name, _TIME)
            info.external_attr = 0o644 << 16
            left = entry.size
            source = require_readable(entry.path)
            with source.open("rb") as file, archive.open(info, "w", force_zip64=entry.is_large) as target:
                while block := file.read(min(_BLOCK_BYTES, left)):
                    left -= len(block)
                    target.write(block)
                    yield buffer.take_bytes()
                if left or file.read(1):
                    raise RunError(f"{entry.path}: changed while it was sent.", "Download it again.")
            yield buffer.take_bytes()
    yield buffer.take_bytes()


class _Buffer:
    """What an archive is written to: no file that could be sought in."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take_bytes(self) -> bytes:
        """What was written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)
