"""Rows that a user changed by hand and has not written yet: kept by the server for each browser, file by file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.data.row_edits import parse_edited_row
from glmtune.data.sources import DataSource
from glmtune.errors import DataError, GlmtuneError
from glmtune.utils.io import find_json_object, write_json
from glmtune.webui.context import Context
from glmtune.webui.drafts import locate_draft

MAX_EDITS = 1_000
"""Changed rows of one data set."""
MAX_ROW_CHARACTERS = 500_000
"""Of a row that is edited on the page."""
MAX_BYTES = 20_000_000
"""Of all changed rows of a browser."""
_FORM = "data-edits"


@dataclass
class EditBook:
    """The changed rows of a browser.

    Attributes:
        path: of the file that keeps them.
        files: by data set, what its files were like and the changed rows.
    """

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apply(self, sources: Iterable[DataSource]) -> list[DataSource]:
        """Lay the changed rows over those of sources.

        Returns:
            The sources whose files have changed since, so that their changed rows are not used.
        """
        outdated = []
        for source in sources:
            entries = self.files.get(_make_key(source), {})
            rows = entries.get("rows") or {}
            if rows and entries.get("stamp") != _read_stamp(source):
                outdated.append(source)
            elif rows:
                source.edits = _parse_rows(rows)
        return outdated

    def set_row(self, source: DataSource, number: int, values: dict[str, Any] | None) -> None:
        """Keep a changed row; None: it is left out.

        Raises:
            DataError: too many are kept.
        """
        entries = self.files.setdefault(_make_key(source), {})
        stamp = _read_stamp(source)
        if entries.get("stamp") != stamp:
            entries.update(stamp=stamp, rows={})
        if str(number) not in entries["rows"] and len(entries["rows"]) >= MAX_EDITS:
            raise DataError(
                f"{source.name}: {MAX_EDITS:,} rows are changed and not written yet.", "Write them to a new file first."
            )
        size = self.path.stat().st_size if self.path.exists() else 0
        if size + len(json.dumps(values)) > MAX_BYTES:
            raise DataError(
                f"More than {MAX_BYTES:,} bytes of rows are changed and not written yet.",
                "Write them to a new file, and undo the changes.",
            )
        entries["rows"][str(number)] = values
        self._write(source)

    def drop_row(self, source: DataSource, number: int) -> None:
        """Forget the change of a row."""
        self.files.get(_make_key(source), {}).get("rows", {}).pop(str(number), None)
        self._write(source)

    def drop_all(self, sources: Iterable[DataSource]) -> None:
        """Forget the changes of all rows of some sources."""
        for source in sources:
            self.files.pop(_make_key(source), None)
            self._write(source)

    def _write(self, source: DataSource) -> None:
        write_json(self.path, {"files": self.files})
        source.edits = _parse_rows(self.files.get(_make_key(source), {}).get("rows") or {})


def load_edits(context: Context, owner: str) -> EditBook:
    """The changed rows of a browser."""
    path = locate_draft(context, owner, _FORM)
    files = (find_json_object(path) or {}).get("files")
    entries = (
        {str(key): value for key, value in files.items() if isinstance(value, dict)} if isinstance(files, dict) else {}
    )
    return EditBook(path, entries)


def parse_change(text: str, source: DataSource, where: str) -> dict[str, Any]:
    """The row that a user typed, if training can read it.

    Raises:
        GlmtuneError: it is no row, or none that can be used.
    """
    values = parse_edited_row(text)
    row = source.convert_row(RawRow(deepcopy(values), where))
    if isinstance(row, InvalidRow):
        raise GlmtuneError(f"{row.message}.", row.hint)
    return values


def _make_key(source: DataSource) -> str:
    return json.dumps([str(path) for path in source.files] or [source.name])


def _read_stamp(source: DataSource) -> list[list[Any]]:
    """Changes whenever one of the files does."""
    stamps = []
    for path in source.files:
        status = os.stat(path)
        stamps.append([str(path), status.st_size, status.st_mtime_ns])
    return stamps


def _parse_rows(rows: Mapping[str, Any]) -> dict[int, dict[str, Any] | None]:
    return {
        int(number): values
        for number, values in rows.items()
        if number.isdigit() and (values is None or isinstance(values, dict))
    }


def list_edited_rows(sources: Sequence[DataSource]) -> list[tuple[int, DataSource, bool]]:
    """Changed rows by their number over all sources: the number in the source, the source, whether it is left out."""
    return [(number, source, source.edits[number] is None) for source in sources for number in sorted(source.edits)]
