"""Split the rows of checked files into clean rows and refused rows with the reasons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glmtune.data.check_kinds import ERROR, Finding
from glmtune.data.conversation import Conversation, InvalidRow, RawRow
from glmtune.data.files import DataFile, open_data_file
from glmtune.data.source_rows import FileRows
from glmtune.data.sources import DataSource
from glmtune.errors import ConfigError, DataError
from glmtune.utils.file_access import require_writable
from glmtune.utils.operating_system import rename_new

REFUSED_SUFFIX = ".refused.jsonl"
REMOVED_WARNINGS = ("duplicate", "contradicting-pair")
"""Kinds of warnings whose row is refused; an earlier one is kept."""


@dataclass
class FixResult:
    """The written files, and their numbers of rows."""

    clean: Path
    refused: Path
    clean_rows: int = 0
    refused_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a path is None if there was no such row, and so no file."""
        return {
            "clean": str(self.clean) if self.clean_rows else None,
            "clean_rows": self.clean_rows,
            "refused": str(self.refused) if self.refused_rows else None,
            "refused_rows": self.refused_rows,
        }


class FixWriter:
    """Writes rows while they are checked. The files have temporary names until all rows are written."""

    def __init__(self, output: Path):
        """Check the names of the files.

        Args:
            output: file for the clean rows; that for the refused rows is beside it.

        Raises:
            ConfigError: not a .jsonl name, or one of the two files exists.
        """
        if output.suffix != ".jsonl":
            raise ConfigError(f"--fix {output}: rows are written as JSON lines.", "Give a name that ends with .jsonl.")
        self.result = FixResult(output, output.with_suffix(REFUSED_SUFFIX))
        self._paths = (self.result.clean, self.result.refused)
        require_writable(output.parent)
        for path in self._paths:
            if os.path.lexists(path):
                raise ConfigError(f"{path}: exists; --fix does not overwrite files.", "Give another name, or move it.")
        if not output.parent.is_dir():
            raise ConfigError(f"{output.parent}: no such folder.", "Create it first.")
        self._temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._paths]
        self._streams: list[IO[str]] = []

    def __enter__(self) -> FixWriter:
        self._streams = [path.open("w", encoding="utf-8", newline="\n") for path in self._temporary]
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for stream in self._streams:
            stream.close()
        counts = (self.result.clean_rows, self.result.refused_rows)
        for temporary, path, count in zip(self._temporary, self._paths, counts, strict=True):
            if kind is None and count:
                _rename_new(temporary, path)
            else:
                temporary.unlink(missing_ok=True)

    def add_row(self, row: RawRow | InvalidRow, line: str | None, findings: list[Finding]) -> None:
        """Write a row to one of the files. Errors, duplicates and contradictions are refused.

        Args:
            row: as in its file.
            line: text of a line that could not be parsed.
            findings: of the row.
        """
        reasons = [finding for finding in findings if finding.severity == ERROR or finding.kind in REMOVED_WARNINGS]
        if not reasons and isinstance(row, RawRow):
            self._write_json(0, row.values)
            self.result.clean_rows += 1
            return
        refused: dict[str, Any] = {"where": row.where, "reasons": [f"{item.kind}: {item.message}" for item in reasons]}
        self._write_json(1, refused | ({"row": row.values} if isinstance(row, RawRow) else {"line": line}))
        self.result.refused_rows += 1

    def _write_json(self, index: int, value: dict[str, Any]) -> None:
        # default=str: parquet has values that JSON does not have (dates, decimals).
        self._streams[index].write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def scan_raw_rows(
    sources: Iterable[DataSource],
) -> Iterator[tuple[Conversation | InvalidRow, RawRow | InvalidRow, str | None]]:
    """Read rows as conversations and as in their file, with the text of invalid lines.

    Raises:
        DataError: hub data, or the reading cannot continue: the rest of the rows could not be written.
    """
    for source in sources:
        if not source.files:
            raise DataError(f"{source.name}: --fix writes the rows of files; this is hub data.", "Download it first.")
        files = [open_data_file(path, source.spec.columns.values()) for path in source.files]
        lines = _LineReader(files)
        for row, raw_row in zip(source.scan_rows(), FileRows(files).read_rows(), strict=True):
            yield row, raw_row, lines.read_line(raw_row.where) if isinstance(raw_row, InvalidRow) else None


class _LineReader:
    """Reads lines of text files by `file:line`, in the order of the files."""

    def __init__(self, files: list[DataFile]):
        self._files = {str(file.path): file for file in files}
        self._name = ""
        self._stream: Iterator[tuple[int, str]] = iter(())
        self._last_line = 0

    def read_line(self, where: str) -> str | None:
        """The text of a line; None if it was returned before (an array may be on one line), or there are no lines."""
        name, _, number = where.rpartition(":")
        if not number.isdigit() or name not in self._files:
            return None
        if name != self._name:
            self._name, self._last_line = name, 0
            self._stream = enumerate(self._files[name].open_text(), start=1)
        for line, text in self._stream if self._last_line < int(number) else ():
            self._last_line = line
            if line == int(number):
                return text.rstrip("\n")
        return None


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file unless another program has created the target."""
    try:
        rename_new(temporary, path)
    except FileExistsError:
        raise ConfigError(
            f"{path}: was created while the rows were checked; the new ones are in {temporary}."
        ) from None
