"""Read rows from CSV, TSV, parquet and Arrow files."""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.errors import DataError, summarize_error

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
"""Delimiters of columns with their names for messages."""
# Half of a character at the end of a file that is cut, see `DataFile.open_text`.
CUT_CHARACTER = re.compile("[\udc80-\udcff]")
_SAMPLE_LINES = 200
_SAMPLE_CHARACTERS = 1 << 18
# The first line with which Excel names the delimiter.
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')


def detect_delimiter(stream: IO[str], default: str) -> str:
    """Detect the delimiter of a CSV file by its first lines: all records should have as many fields as the header.

    Args:
        stream: text, at its start.
        default: of the file's suffix; also of a file with one column.
    """
    lines = list(itertools.islice(iter(lambda: stream.readline(_SAMPLE_CHARACTERS), ""), _SAMPLE_LINES))
    match = _SEPARATOR_LINE.fullmatch(lines[0].lstrip("\ufeff")) if lines else None
    if match:
        return match.group(1)
    scores = {}
    for delimiter in (default, *(other for other in DELIMITERS if other != default)):
        _raise_field_limit()
        try:
            records = [cells for cells in csv.reader(lines, delimiter=delimiter) if any(map(str.strip, cells))]
        except csv.Error:
            continue
        if records and len(records[0]) > 1:
            same = sum(len(cells) == len(records[0]) for cells in records)
            scores[delimiter] = (same / len(records), len(records[0]))
    return max(scores, key=lambda delimiter: scores[delimiter], default=default)


def read_csv_rows(stream: IO[str], name: str, delimiter: str) -> Iterator[RawRow | InvalidRow]:
    """Read the records after the header.

    Args:
        stream: text, at its start, without conversion of line ends.
        name: of the file, for `file:line`.
        delimiter: of columns.

    Raises:
        DataError: an invalid record of several lines.
    """
    _raise_field_limit()
    reader = csv.reader(stream, strict=True, delimiter=delimiter)
    header: list[str] | None = None
    while True:
        first = reader.line_num + 1
        where = f"{name}:{first}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                lines = f"lines {first} to {reader.line_num}: " if reader.line_num > first else ""
                raise DataError(
                    f"{where}: {lines}a quotation mark is opened and never closed.",
                    'Close it, or write "" for a quotation mark inside a quoted text.',
                ) from None
            yield _make_invalid_record(where, first, reader.line_num, f"invalid CSV ({error})")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None and _SEPARATOR_LINE.fullmatch(delimiter.join(cells).lstrip("\ufeff")):
            continue
        if any("\0" in cell for cell in cells):
            yield _make_invalid_record(where, first, reader.line_num, "NUL bytes in the line")
        elif header is None:
            header = [cell.strip().lstrip("\ufeff") for cell in cells]
        elif len(cells) != len(header):
            problem = f"invalid CSV ({len(cells)} fields, the header has {len(header)})"
            yield _make_invalid_record(where, first, reader.line_num, problem)
        elif CUT_CHARACTER.search(cells[-1]):
            yield InvalidRow(where, "broken-csv", "the file ends in the middle of a character")
        else:
            yield RawRow(dict(zip(header, cells, strict=True)), where)


def read_parquet_rows(path: Path, stream: Any) -> Iterator[RawRow | InvalidRow]:
    """Read a parquet file in batches.

    Raises:
        DataError: it is damaged.
    """
    parquet = _open_parquet(path, stream)
    yield from _read_batches(path, parquet.iter_batches(batch_size=256), "parquet")


def read_arrow_rows(path: Path, stream: Any) -> Iterator[RawRow | InvalidRow]:
    """Read an Arrow file, as `datasets` writes it (a stream) or in the file format.

    Raises:
        DataError: it is damaged.
    """
    reader = _open_arrow(path, stream)
    batches = (
        reader if not hasattr(reader, "num_record_batches") else map(reader.get_batch, range(reader.num_record_batches))
    )
    parts = (part for batch in batches for part in _slice_batch(batch))
    yield from _read_batches(path, parts, "Arrow")


def read_table_schema(path: Path, stream: Any, suffix: str) -> dict[str, str]:
    """Names and types of the columns of a parquet or Arrow file."""
    schema = _open_arrow(path, stream).schema if suffix == ".arrow" else _open_parquet(path, stream).schema_arrow
    # The same text is `large_string` from one writer and `string` from another.
    return {field.name: str(field.type).replace("large_", "") for field in schema}


def _raise_field_limit() -> None:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is less than a long document


def _make_invalid_record(where: str, first: int, last: int, problem: str) -> InvalidRow:
    """An invalid row for an invalid record of one line.

    Raises:
        DataError: a record of several lines: a missing quotation mark may have made valid lines part of it.
    """
    if last == first:
        return InvalidRow(where, "broken-csv", problem)
    raise DataError(
        f"{where}: lines {first} to {last}: {problem}.",
        "They are read as one row: a quotation mark may be missing, or there is one too many.",
    )


def _read_batches(path: Path, batches: Iterator[Any], kind: str) -> Iterator[RawRow]:
    import pyarrow  # after the check that it is installed

    number = 0
    try:
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield RawRow(values, f"{path}:row {number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = summarize_error(error)[:160].rstrip(".")
        raise DataError(f"{path}:row {number + 1}: a damaged {kind} file ({reason}).") from None


def _slice_batch(batch: Any, size: int = 256) -> Iterator[Any]:
    return (batch.slice(start, size) for start in range(0, batch.num_rows, size))


def _open_parquet(path: Path, stream: Any) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(stream)
    except pyarrow.ArrowException as error:
        reason = summarize_error(error)[:160].rstrip(".")
        raise DataError(f"{path}: not a valid parquet file ({reason}).", "Copy or download it again.") from None


def _open_arrow(path: Path, stream: Any) -> Any:
    import pyarrow

    try:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        return pyarrow.ipc.open_file(stream) if is_file else pyarrow.ipc.open_stream(stream)
    except (pyarrow.ArrowException, OSError) as error:
        reason = summarize_error(error)[:160].rstrip(".")
        raise DataError(f"{path}: not a valid Arrow file ({reason}).", "Copy or download it again.") from None
