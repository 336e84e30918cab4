"""A checked file as two: the rows to train on, and those that were refused with the reasons."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glmtune.data.check import ERROR, Finding
from glmtune.data.conversation import Conversation, Fault, Row
from glmtune.data.files import DataFile, open_file
from glmtune.data.sources import FileRows, Source
from glmtune.errors import ConfigError, DataError

REFUSED = ".refused.jsonl"


def refused(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that keep a row out: every error, and its being a double of an earlier row."""
    return [finding for finding in findings if finding.severity == ERROR or finding.kind == "duplicate"]


@dataclass
class Fixed:
    """Where the rows went, and how many."""

    clean: Path
    refused: Path
    clean_rows: int = 0
    refused_rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a path is None where there was no such row, and so no file."""
        return {
            "clean": str(self.clean) if self.clean_rows else None,
            "clean_rows": self.clean_rows,
            "refused": str(self.refused) if self.refused_rows else None,
            "refused_rows": self.refused_rows,
        }


class Fix:
    """Writes rows while they are checked; the files get their names when all is written."""

    def __init__(self, out: Path):
        """Raises:
        ConfigError: not a .jsonl name, or one of the two files exists.
        """
        if out.suffix != ".jsonl":
            raise ConfigError(f"--fix {out}: rows are written as JSON lines.", "Give a name that ends with .jsonl.")
        self.fixed = Fixed(out, out.with_suffix(REFUSED))
        for path in (self.fixed.clean, self.fixed.refused):
            if os.path.lexists(path):
                raise ConfigError(f"{path}: exists; --fix overwrites nothing.", "Give another name, or move it away.")
        if not out.parent.is_dir():
            raise ConfigError(f"{out.parent}: no such folder.", "Make it first.")
        self._temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._paths()]
        self._streams: list[IO[str]] = []

    def __enter__(self) -> Fix:
        self._streams = [path.open("w", encoding="utf-8") for path in self._temporary]
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for stream in self._streams:
            stream.close()
        counts = (self.fixed.clean_rows, self.fixed.refused_rows)
        for temporary, path, count in zip(self._temporary, self._paths(), counts, strict=True):
            if kind is None and count:
                _rename(temporary, path)
            else:
                temporary.unlink(missing_ok=True)

    def add(self, row: Row | Fault, raw: str | None, findings: list[Finding]) -> None:
        """Write a row to the file it belongs to.

        Args:
            row: as its file holds it.
            raw: the text of the line, for a line that could not be parsed.
            findings: of the row.
        """
        reasons = refused(findings)
        if not reasons and isinstance(row, Row):
            self._write(0, row.values)
            self.fixed.clean_rows += 1
            return
        kept: dict[str, Any] = {"where": row.where, "reasons": [f"{item.kind}: {item.message}" for item in reasons]}
        self._write(1, kept | ({"row": row.values} if isinstance(row, Row) else {"line": raw}))
        self.fixed.refused_rows += 1

    def _paths(self) -> tuple[Path, Path]:
        return self.fixed.clean, self.fixed.refused

    def _write(self, index: int, value: dict[str, Any]) -> None:
        # Parquet has values that JSON has not (dates, decimals); as text they are at least kept.
        self._streams[index].write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def read_with_rows(sources: Iterable[Source]) -> Iterator[tuple[Conversation | Fault, Row | Fault, str | None]]:
    """Each row as a conversation or fault, as it stands in its file, and the text of a line that is no row.

    Raises:
        DataError: hub data, or what ends the reading: the rest of the rows could not be written anywhere.
    """
    for source in sources:
        if not source.files:
            raise DataError(f"{source.name}: --fix writes the rows of files; this is hub data.", "Download it first.")
        files = [open_file(path) for path in source.files]
        lines = _Lines(files)
        for read, row in zip(source.scan(), FileRows(files).rows(), strict=True):
            yield read, row, lines.text(row.where) if isinstance(row, Fault) else None


class _Lines:
    """Lines of text files by `file:line`, asked for in the order of the files."""

    def __init__(self, files: list[DataFile]):
        self._files = {str(file.path): file for file in files}
        self._name = ""
        self._stream: Iterator[tuple[int, str]] = iter(())
        self._last: tuple[int, str | None] = (0, None)

    def text(self, where: str) -> str | None:
        """The line; None where it was given before (a whole array can stand on one) or there are no lines."""
        name, _, number = where.rpartition(":")
        if not number.isdigit() or name not in self._files:
            return None
        if name != self._name:
            self._name, self._last = name, (0, None)
            self._stream = enumerate(self._files[name].text(), start=1)
        for line, text in self._stream if self._last[0] < int(number) else ():
            self._last = (line, text.rstrip("\n"))
            if line == int(number):
                return self._last[1]
        return None


def _rename(temporary: Path, path: Path) -> None:
    """Give a file its name unless another program took it meanwhile."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise ConfigError(f"{path}: appeared while the rows were checked; the new ones are in {temporary}.") from None
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return
    temporary.unlink()
