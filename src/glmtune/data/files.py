"""Data files: find them, detect what they hold and their encoding, and read their rows with line numbers."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.data.json_layout import JsonLayout, detect_json_layout, holds_json_rows
from glmtune.data.json_rows import read_json_rows
from glmtune.data.saved_datasets import find_saved_dataset, require_texts
from glmtune.data.table_rows import (
    CUT_CHARACTER,
    DELIMITERS,
    detect_delimiter,
    read_arrow_rows,
    read_csv_rows,
    read_parquet_rows,
    read_table_schema,
)
from glmtune.data.text_encoding import detect_encoding
from glmtune.errors import DataError
from glmtune.utils.file_access import require_readable

CATALOG_FILE = "dataset_info.json"
"""LLaMA-Factory's list of data sets; it is among the data files and is not one of them."""
ENCODED_FILES = ("rows.arrow", "dataset.json")
"""Files that `glmtune data tokenize` writes; the second looks like a data file."""
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_KNOWN = f"Known: {', '.join(SUFFIXES)}, each also with .gz appended."
_TABLES = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
_UNPACK = "Unpack it, and give the files in it."
# What other types of files are, by their suffix, or by their first bytes whatever their name is.
_OTHER_SUFFIXES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".et"), ("a workbook", "Save its sheet as CSV in UTF-8.")),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".zst"), ("an archive", _UNPACK)),
    **dict.fromkeys((".docx", ".doc", ".pdf"), ("a document", "Save its text as .txt, or its rows as .jsonl.")),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".bin"), ("a Python pickle", "Save the rows as JSON lines.")),
}
_OTHER_STARTS = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "Unpack it, or save the sheet as CSV in UTF-8."),
    b"\xd0\xcf\x11\xe0": ("an Office document", "Save its sheet as CSV in UTF-8."),
    **dict.fromkeys(
        (b"7z\xbc\xaf", b"Rar!", b"\xfd7zXZ", b"BZh9", b"\x28\xb5\x2f\xfd"), ("a compressed file", _UNPACK)
    ),
    b"SQLite format 3": ("an SQLite database", "Save the rows as JSON lines."),
    b"%PDF": ("a PDF document", "Save its text as .txt, or its rows as .jsonl."),
    b"version https://git-lfs": ("a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull"),
}
_WEB_PAGE = ("a web page, not a data file", "Download the file itself (its raw form).")


@dataclass(frozen=True)
class DataFile:
    """A data file as it was when it was opened.

    Attributes:
        path: of the file.
        suffix: of the kind of its content, which may differ from that of its name: `.json` for JSON in a `.txt` file.
        is_gzip: whether it is compressed.
        encoding: name of a codec; empty for tables.
        stamp: size and modification time. They must not change: the rows would be from two versions of the file.
        layout: of JSON.
        delimiter: of CSV.
        notes: for the user, on what is unusual.
    """

    path: Path
    suffix: str
    is_gzip: bool
    encoding: str
    stamp: tuple[int, int]
    layout: JsonLayout | None = None
    delimiter: str = ","
    notes: list[str] = field(default_factory=list)

    def read_rows(self) -> Iterator[RawRow | InvalidRow]:
        """Read all rows in order.

        Raises:
            DataError: the file changed since it was opened, an invalid JSON array, an invalid CSV record of several
                lines, a damaged file.
        """
        self.check_unchanged()
        with _explain_read_errors(self.path):
            try:
                yield from _READERS[self.suffix](self)
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
        """Open the decompressed and decoded file. Of a last character that is cut, the bytes become surrogates."""
        return io.TextIOWrapper(self.open_binary(), encoding=self.encoding, errors="surrogateescape", newline=newline)

    def open_binary(self) -> Any:
        """Open the decompressed file."""
        path = require_readable(self.path)
        return gzip.open(path, "rb") if self.is_gzip else path.open("rb")

    def read_schema(self) -> dict[str, str] | None:
        """Names and types of the columns of a table; None for other files."""
        if self.encoding:
            return None
        with _explain_read_errors(self.path), self.open_binary() as stream:
            return read_table_schema(self.path, stream, self.suffix)


def find_files(path: str | os.PathLike[str]) -> list[Path]:
    """Find the data files at a path: a file, the files of a folder (recursively) or of a glob, sorted.

    Hidden files and folders and `dataset_info.json` are skipped. Of a data set saved by `datasets`, its Arrow files are
    found. Links to folders are followed, each folder once. A
    file given by name or by a glob must have a known suffix.

    Raises:
        DataError: no such file, no data file in the folder, an unknown suffix, or encoded rows.
        FileAccessError: a file or folder that this process may not read.
    """
    path = Path(path).expanduser()
    if not is_glob(str(path)) or os.path.lexists(path):
        require_readable(path)
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
        require_readable(file)
        if file.name == ENCODED_FILES[1] and is_encoded_folder(file.parent):
            raise DataError(f"{file.parent}: holds encoded rows; such a folder must be given alone, not in a list.")
    return files


def is_encoded_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `glmtune data tokenize`."""
    return all(Path(folder, name).is_file() for name in ENCODED_FILES)


def open_data_file(path: Path, columns: Collection[str] = ()) -> DataFile:
    """Read through a file once to check it, and to detect its text encoding and what it holds.

    Args:
        path: of the file.
        columns: that the user names: an object with one of them is a row.

    Raises:
        DataError: it cannot be read, is empty, damaged, of an unsupported type, or text in an unknown encoding.
        FileAccessError: this process may not read it.
    """
    require_readable(path)
    suffix, is_gzip = _parse_suffix(path)
    with _explain_read_errors(path):
        stamp = _read_stamp(path)
        if not stamp[0]:
            raise DataError(f"{path}: empty.", "Give a file with rows.")
        if not is_gzip:
            with path.open("rb") as stream:
                is_gzip = stream.read(3) == b"\x1f\x8b\x08"
        suffix = _detect_type(path, is_gzip) or suffix
        file = DataFile(path, suffix, is_gzip, "", stamp)
        if suffix in _TABLES.values():
            require_texts(file.read_schema() or {}, path)
            return file
        encoding, notes = detect_encoding(str(path), file.open_binary)
        return _detect_content(DataFile(path, suffix, is_gzip, encoding, stamp, notes=notes), columns)


def has_data_suffix(name: str) -> bool:
    """Whether a name ends like that of a data file."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def is_glob(name: str) -> bool:
    """Whether a name has a wildcard."""
    return re.search(r"[*?\[]", name) is not None


def _match_glob(path: Path) -> list[Path]:
    start = next(i for i, part in enumerate(path.parts) if is_glob(part))
    base, parts = Path(*path.parts[:start]), path.parts[start:]
    matches = {base}
    for part in parts:
        folders = [match for match in matches if _is_folder(match)]
        matches = {match for folder in folders for match in list_matches(folder, part)}
    matches = {match for match in matches if os.path.lexists(match) and not _is_folder(match)}
    matches = {match for match in matches if match.name != CATALOG_FILE}
    if not any(part.startswith(".") for part in parts):
        matches = {m for m in matches if not any(part.startswith(".") for part in m.relative_to(base).parts)}
    return sorted(matches)


def list_matches(folder: Path, part: str) -> Iterable[Path]:
    """What a part of a pattern matches in a folder.

    Raises:
        FileAccessError: this process may not read the folder, to which a link may have led.
    """
    require_readable(folder)
    if not is_glob(part):
        return [folder / part]
    if part != "**":
        part = re.sub(r"\*\*+", "*", part)  # as shells do; pathlib refuses it before Python 3.13
    # pathlib's `**`, unlike that of the glob module, does not follow links to folders, which may form a cycle.
    return folder.glob(part)


def _parse_suffix(path: Path) -> tuple[str, bool]:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        kind, hint = _OTHER_SUFFIXES.get(suffix, ("", _KNOWN))
        raise DataError(f"{path}: not a supported type of data file{f' ({kind})' if kind else ''}.", hint)
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
        saved = find_saved_dataset(Path(parent))
        if saved is not None:
            folders.clear()
            yield from saved
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:  # before they are listed: one may be a link
            require_readable(Path(parent, name))
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


def _detect_type(path: Path, is_gzip: bool) -> str | None:
    """The suffix of a table, by the first bytes; None for text.

    Raises:
        DataError: a type that is not supported.
    """
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as stream:
        start = stream.read(64)
    for magic, suffix in _TABLES.items():
        if start.startswith(magic):
            return suffix
    other = next((what for magic, what in _OTHER_STARTS.items() if start.startswith(magic)), None)
    if re.match(rb"(?i)\s*<(!doctype\s+)?html", start):
        other = _WEB_PAGE
    if other is not None:
        raise DataError(f"{path}: {other[0]}.", other[1])
    return None


def _detect_content(file: DataFile, columns: Collection[str]) -> DataFile:
    """Look at the first rows of a text file: JSON whatever its suffix, the layout of JSON, the delimiter of CSV."""
    notes = list(file.notes)
    suffix = ".json" if file.suffix == ".jsonl" else file.suffix
    if suffix != ".json":
        with file.open_text() as stream:
            if holds_json_rows(stream):
                suffix = ".json"
                notes.append(f"{file.path}: holds JSON; it is read as rows")
    if suffix == ".json":
        with file.open_text() as stream:
            layout = detect_json_layout(stream, str(file.path), columns)
        notes += [f"{file.path}: {layout.note}"] if layout.note else []
        return replace(file, suffix=suffix, layout=layout, notes=notes)
    if suffix == ".txt":
        return file
    default = "\t" if suffix == ".tsv" else ","
    with file.open_text(newline="") as stream:
        delimiter = detect_delimiter(stream, default)
    if delimiter != default:
        notes.append(f"{file.path}: columns are separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    return replace(file, suffix=".csv", delimiter=delimiter, notes=notes)


def _read_json_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_text() as stream:
        yield from read_json_rows(stream, str(file.path), file.layout)


def _read_text_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    """One row per line that is not blank."""
    with file.open_text() as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.path}:{number}"
            text = line.strip("\r\n\ufeff")
            if "\0" in text:
                yield InvalidRow(where, "broken-line", "NUL bytes in the line")
            elif CUT_CHARACTER.search(text):
                yield InvalidRow(where, "broken-line", "the file ends in the middle of a character")
            elif text.strip():
                yield RawRow({"text": text}, where)


def _read_csv_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_text(newline="") as stream:
        yield from read_csv_rows(stream, str(file.path), file.delimiter)


def _read_parquet_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_binary() as stream:
        yield from read_parquet_rows(file.path, stream)


def _read_arrow_file(file: DataFile) -> Iterator[RawRow | InvalidRow]:
    with file.open_binary() as stream:
        yield from read_arrow_rows(file.path, stream)


_READERS: dict[str, Callable[[DataFile], Iterator[RawRow | InvalidRow]]] = {
    ".json": _read_json_file,
    ".csv": _read_csv_file,
    ".txt": _read_text_file,
    ".parquet": _read_parquet_file,
    ".arrow": _read_arrow_file,
}
