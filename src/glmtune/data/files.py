"""Data files: find them, detect their encoding, and read their rows with line numbers."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.data.json_rows import read_json_rows
from glmtune.errors import ConfigError, DataError, summarize_error

CATALOG_FILE = "dataset_info.json"
"""LLaMA-Factory's list of data sets; it is among the data files and is not one of them."""
ENCODED_FILES = ("rows.arrow", "dataset.json")
"""Files that `glmtune data tokenize` writes; the second looks like a data file."""
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
_KNOWN = f"Known: {', '.join(SUFFIXES)}, each also with .gz appended."
_BLOCK = 1 << 20
# Characters of three bytes and more in UTF-8.
_WIDE = re.compile("[\u0800-\U0010ffff]")


@dataclass(frozen=True)
class DataFile:
    """A data file as it was when it was opened."""

    path: Path
    suffix: str
    is_gzip: bool
    encoding: str
    stamp: tuple[int, int]
    """Size and modification time. They must not change: the rows would be from two versions of the file."""

    def read_rows(self) -> Iterator[RawRow | InvalidRow]:
        """Read all rows in order.

        Raises:
            DataError: the file changed since it was opened, an invalid JSON array, an invalid CSV record of several
                lines, a damaged file.
        """
        self.check_unchanged()
        readers = {".csv": _read_csv_file, ".parquet": _read_parquet_file, ".txt": _read_text_file}
        with _explain_read_errors(self.path):
            try:
                yield from readers.get(self.suffix, _read_json_file)(self)
            except (DataError, UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
                self.check_unchanged()  # a file that another program is writing looks like an invalid one
                if isinstance(error, UnicodeDecodeError):
                    raise _make_changed_error(self.path) from None
                raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Check size and modification time.

        Raises:
            DataError: they changed since the file was opened.
        """
        if _read_stamp(self.path) != self.stamp:
            raise _make_changed_error(self.path)

    def open_text(self, newline: str | None = None) -> IO[str]:
        """Open the decompressed and decoded file."""
        return io.TextIOWrapper(self.open_binary(), encoding=self.encoding, newline=newline)

    def open_binary(self) -> Any:
        """Open the decompressed file."""
        return gzip.open(self.path, "rb") if self.is_gzip else self.path.open("rb")

    def read_schema(self) -> dict[str, str] | None:
        """Names and types of the columns of a parquet file; None for other files."""
        if self.suffix != ".parquet":
            return None
        with _explain_read_errors(self.path), self.open_binary() as stream:
            fields = _open_parquet(self.path, stream).schema_arrow
            # The same text is `large_string` from one writer and `string` from another.
            return {field.name: str(field.type).replace("large_", "") for field in fields}


def find_files(path: str | os.PathLike[str]) -> list[Path]:
    """Find the data files at a path: a file, the files of a folder (recursively) or of a glob, sorted.

    Hidden files and folders and `dataset_info.json` are skipped. Links to folders are followed, each folder once. A
    file given by name or by a glob must have a known suffix.

    Raises:
        DataError: no such file, no data file in the folder, an unknown suffix, or encoded rows.
    """
    path = Path(path).expanduser()
    if _is_folder(path):
        files = sorted(_walk_folder(path))
        if not files:
            raise DataError(f"{path}: no data files in this folder.", _KNOWN)
    elif os.path.lexists(path):
        _parse_suffix(path)
        files = [path]
    elif is_glob(str(path)):
        files = _match_glob(path)
        if not files:
            raise DataError(f"{path}: matches no file.", "Quote the pattern, and check the folder it starts from.")
        for match in files:
            _parse_suffix(match)
    else:
        raise DataError(f"{path}: no such file.", "Check the path; it is relative to the current directory.")
    for file in files:
        if file.name == ENCODED_FILES[1] and is_encoded_folder(file.parent):
            raise DataError(f"{file.parent}: holds encoded rows; such a folder must be given alone, not in a list.")
    return files


def is_encoded_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `glmtune data tokenize`."""
    return all(Path(folder, name).is_file() for name in ENCODED_FILES)


def open_data_file(path: Path) -> DataFile:
    """Read through a file once to check it and to detect its text encoding.

    Raises:
        DataError: it cannot be read, is empty, a damaged gzip or parquet file, or text in neither UTF-8 nor GB18030.
    """
    suffix, is_gzip = _parse_suffix(path)
    with _explain_read_errors(path):
        stamp = _read_stamp(path)
        if not stamp[0]:
            raise DataError(f"{path}: empty.", "Give a file with rows.")
        encoding = "" if suffix == ".parquet" else _detect_encoding(path, is_gzip)
    return DataFile(path, suffix, is_gzip, encoding, stamp)


def has_data_suffix(name: str) -> bool:
    """Whether a name ends like that of a data file."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def is_glob(name: str) -> bool:
    """Whether a name has a wildcard."""
    return re.search(r"[*?\[]", name) is not None


def _match_glob(path: Path) -> list[Path]:
    start = next(i for i, part in enumerate(path.parts) if is_glob(part))
    base, pattern = Path(*path.parts[:start]), Path(*path.parts[start:])
    # pathlib's `**`, unlike that of the glob module, does not follow links to folders, which may form a cycle.
    matches = {match for match in base.glob(str(pattern)) if not _is_folder(match) and match.name != CATALOG_FILE}
    if not any(part.startswith(".") for part in pattern.parts):
        matches = {m for m in matches if not any(part.startswith(".") for part in m.relative_to(base).parts)}
    return sorted(matches)


def _parse_suffix(path: Path) -> tuple[str, bool]:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: not a supported type of data file.", _KNOWN)
    return suffix, name.endswith(".gz")


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # Path.is_dir of older Pythons raises on a link to itself


def _walk_folder(folder: Path) -> Iterator[Path]:
    visited = set()

    def raise_error(error: OSError) -> None:  # by default os.walk skips folders that it cannot read
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from None

    for parent, folders, files in os.walk(folder, onerror=raise_error, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:  # a link to a parent folder would never end
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if has_data_suffix(name) and not name.startswith(".") and name != CATALOG_FILE:
                yield Path(parent, name)


def _make_changed_error(path: Path) -> DataError:
    return DataError(
        f"{path}: the file changed while it was being read.", "Wait until it is written, then start again."
    )


def _read_stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return status.st_size, status.st_mtime_ns


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system and of gzip into errors that name the file."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise DataError(f"{path}: a damaged gzip file ({error}).", "Compress it again.") from None
    except (EOFError, zlib.error) as error:
        reason = str(error).rstrip(".") or "it ends early"
        raise DataError(f"{path}: a damaged gzip file ({reason}).", "Copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _detect_encoding(path: Path, is_gzip: bool) -> str:
    """`utf-8-sig` or `gb18030`, by decoding the whole file: the first invalid byte may be in the last line."""
    utf8 = _try_decoding(path, is_gzip, "utf-8-sig")
    if utf8.is_blank and utf8.error_line is None:
        raise DataError(f"{path}: empty.", "Give a file with rows.")
    if utf8.error_line is None:
        return "utf-8-sig"
    # Most bytes are valid GB18030. Text that begins as UTF-8 with Chinese characters is damaged UTF-8 instead.
    gb18030 = None if utf8.has_wide else _try_decoding(path, is_gzip, "gb18030")
    if gb18030 is not None and gb18030.error_line is None:
        return "gb18030"
    line = max(utf8.error_line, (gb18030.error_line or 0) if gb18030 else 0)
    problem = "neither UTF-8 nor GB18030 text" if gb18030 else "not UTF-8 text, unlike the lines before"
    raise DataError(f"{path}:{line}: {problem}.", "Save the file as UTF-8.")


@dataclass
class _DecodingResult:
    is_blank: bool = True
    has_wide: bool = False
    """Whether there are characters of three and more bytes before the first error."""
    error_line: int | None = None


def _try_decoding(path: Path, is_gzip: bool, encoding: str) -> _DecodingResult:
    result, line = _DecodingResult(), 1
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                valid = bytes(error.object[: error.start])
                result.has_wide = result.has_wide or _has_wide(valid.decode(encoding, "ignore"))
                result.error_line = line + valid.count(b"\n")
                return result
            result.is_blank = result.is_blank and not text.strip()
            result.has_wide = result.has_wide or _has_wide(text)
            line += block.count(b"\n")
            if not block:
                return result


def _has_wide(text: str) -> bool:
    # Two of them: GB18030 text may contain one by chance.
    first = None if text.isascii() else _WIDE.search(text)
    return first is not None and _WIDE.search(text, first.end()) is not None


def _read_json_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_text() as stream:
        yield from read_json_rows(stream, str(file.path))


def _read_text_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    """One row per line that is not blank."""
    with file.open_text() as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.path}:{number}"
            text = line.strip("\r\n\ufeff")
            if "\0" in text:
                yield InvalidRow(where, "broken-line", "NUL bytes in the line")
            elif text.strip():
                yield RawRow({"text": text}, where)


def _read_csv_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default of 128 KiB is less than a long document
    with file.open_text(newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] | None = None
        while True:
            first = reader.line_num + 1
            where = f"{file.path}:{first}"
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
            if any("\0" in cell for cell in cells):
                yield _make_invalid_record(where, first, reader.line_num, "NUL bytes in the line")
            elif header is None:
                header = [cell.strip().lstrip("\ufeff") for cell in cells]
            elif len(cells) != len(header):
                problem = f"invalid CSV ({len(cells)} fields, the header has {len(header)})"
                yield _make_invalid_record(where, first, reader.line_num, problem)
            else:
                yield RawRow(dict(zip(header, cells, strict=True)), where)


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


def _read_parquet_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_binary() as stream:
        number = 0
        parquet = _open_parquet(file.path, stream)
        import pyarrow  # after the check that it is installed

        try:
            for batch in parquet.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(values, f"{file.path}:row {number}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = summarize_error(error)[:160].rstrip(".")
            raise DataError(f"{file.path}:row {number + 1}: a damaged parquet file ({reason}).") from None


def _open_parquet(path: Path, stream: Any) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: pyarrow is not installed.", "Install it: pip install 'glmtune[hub]'") from None
    try:
        return pyarrow.parquet.ParquetFile(stream)
    except pyarrow.ArrowException as error:
        reason = summarize_error(error)[:160].rstrip(".")
        raise DataError(f"{path}: not a valid parquet file ({reason}).", "Copy or download it again.") from None
