"""Data files as rows: which files are meant, how they are encoded, and every row with its line."""

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

from glmtune.data.conversation import Fault, Row
from glmtune.data.json_rows import read_json
from glmtune.errors import ConfigError, DataError

CATALOG = "dataset_info.json"
"""LLaMA-Factory's list of data sets; it lies among the data and is none."""
ENCODED = ("rows.arrow", "dataset.json")
"""What `glmtune data tokenize` writes; the second would be read as rows."""
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
_KNOWN = f"Known: {', '.join(SUFFIXES)}, each also with .gz behind."
_BLOCK = 1 << 20
_WIDE = re.compile("[\u0800-\U0010ffff]")


@dataclass(frozen=True)
class DataFile:
    """A data file as it was when it was opened."""

    path: Path
    suffix: str
    zipped: bool
    encoding: str
    stamp: tuple[int, int]
    """Size and time of change: a file that another program writes meanwhile would give rows of two versions."""

    def rows(self) -> Iterator[Row | Fault]:
        """Rows from the first to the last; unusable lines in between as faults.

        Raises:
            DataError: the file changed since it was opened, a broken JSON array, a CSV record that is broken and longer
                than its line, a damaged file.
        """
        self.check_unchanged()
        readers = {".csv": _csv_rows, ".parquet": _parquet_rows, ".txt": _text_rows}
        with _named_errors(self.path):
            try:
                yield from readers.get(self.suffix, _json_rows)(self)
            except (DataError, UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
                self.check_unchanged()  # a file cut short by another program reads like a broken one
                if isinstance(error, UnicodeDecodeError):
                    raise _changed(self.path) from None
                raise
        self.check_unchanged()

    def check_unchanged(self) -> None:
        """Raises:
        DataError: size or time of change are not what they were.
        """
        if _stamp(self.path) != self.stamp:
            raise _changed(self.path)

    def text(self, newline: str | None = None) -> IO[str]:
        """The decoded file."""
        return io.TextIOWrapper(self.binary(), encoding=self.encoding, newline=newline)

    def binary(self) -> Any:
        """The file's bytes, unpacked."""
        return gzip.open(self.path, "rb") if self.zipped else self.path.open("rb")

    def schema(self) -> dict[str, str] | None:
        """Names and types of a parquet file's columns; None for other files."""
        if self.suffix != ".parquet":
            return None
        with _named_errors(self.path), self.binary() as stream:
            fields = _parquet(self.path, stream).schema_arrow
            # The same text is `large_string` from one writer and `string` from another.
            return {field.name: str(field.type).replace("large_", "") for field in fields}


def find_files(path: str | os.PathLike[str]) -> list[Path]:
    """The data files that a path names: itself, a folder's (recursively) or a glob's, sorted.

    Hidden files and folders, and `dataset_info.json`, are passed over. Links to folders are followed, each folder
    once. A file named by itself or by a glob must have a known suffix.

    Raises:
        DataError: nothing there, no data file in the folder, an unknown suffix, or encoded rows.
    """
    path = Path(path).expanduser()
    found = _named_by(path)
    for file in found:
        if file.name == ENCODED[1] and holds_encoded(file.parent):
            raise DataError(f"{file.parent}: holds encoded rows; such a folder is given alone, not in a list.")
    return found


def holds_encoded(folder: Path) -> bool:
    """Whether a folder was written by `glmtune data tokenize`."""
    return all((folder / name).is_file() for name in ENCODED)


def _named_by(path: Path) -> list[Path]:
    if _is_folder(path):
        found = sorted(_walk(path))
        if not found:
            raise DataError(f"{path}: no data files in this folder.", _KNOWN)
        return found
    if os.path.lexists(path):
        _suffix(path)
        return [path]
    if is_glob(str(path)):
        files = _matches(path)
        if not files:
            raise DataError(f"{path}: matches no file.", "Quote the pattern, and check the folder it starts from.")
        for match in files:
            _suffix(match)
        return files
    raise DataError(f"{path}: no such file.", "Check the path; it is taken from the current directory.")


def open_file(path: Path) -> DataFile:
    """Look through a file once: is it whole, not empty, and how is its text encoded?

    Raises:
        DataError: it cannot be read, is empty, a damaged gzip or parquet, or text in neither UTF-8 nor GB18030.
    """
    suffix, zipped = _suffix(path)
    with _named_errors(path):
        stamp = _stamp(path)
        if not stamp[0]:
            raise DataError(f"{path}: empty.", "Give a file with rows.")
        encoding = "" if suffix == ".parquet" else _encoding(path, zipped)
    return DataFile(path, suffix, zipped, encoding, stamp)


def has_data_suffix(name: str) -> bool:
    """Whether a name ends like a data file."""
    return name.lower().removesuffix(".gz").endswith(SUFFIXES)


def is_glob(name: str) -> bool:
    """Whether a name holds a wildcard."""
    return re.search(r"[*?\[]", name) is not None


def _matches(path: Path) -> list[Path]:
    start = next(i for i, part in enumerate(path.parts) if is_glob(part))
    base, pattern = Path(*path.parts[:start]), Path(*path.parts[start:])
    # pathlib's `**`, unlike the glob module's, does not follow links to folders, which may lead back up.
    found = {match for match in base.glob(str(pattern)) if not _is_folder(match) and match.name != CATALOG}
    if not any(part.startswith(".") for part in pattern.parts):
        found = {m for m in found if not any(part.startswith(".") for part in m.relative_to(base).parts)}
    return sorted(found)


def _suffix(path: Path) -> tuple[str, bool]:
    name = path.name.lower()
    zipped = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: not a kind of data file that can be read.", _KNOWN)
    return suffix, zipped


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # unlike Path.is_dir in older Pythons, never raises on a link that leads to itself


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()

    def refuse(error: OSError) -> None:  # os.walk would pass over what it may not open
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}).") from None

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link back up would never end
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if has_data_suffix(name) and not name.startswith(".") and name != CATALOG:
                yield Path(place, name)


def _changed(path: Path) -> DataError:
    return DataError(
        f"{path}: the file changed while it was being read.", "Wait until it is written, then start again."
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    return status.st_size, status.st_mtime_ns


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What the operating system and gzip say, as errors that name the file."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise DataError(f"{path}: a damaged gzip file ({error}).", "Pack it again.") from None
    except (EOFError, zlib.error) as error:
        reason = str(error).rstrip(".") or "it ends early"
        raise DataError(f"{path}: a damaged gzip file ({reason}).", "Copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None


def _encoding(path: Path, zipped: bool) -> str:
    """`utf-8-sig` or `gb18030`, by decoding the whole file.

    A wrong guess must not depend on how much was looked at: what is UTF-8 up to its last line may not be.
    """
    utf8 = _decode_all(path, zipped, "utf-8-sig")
    if utf8.blank and utf8.failed_at is None:
        raise DataError(f"{path}: empty.", "Give a file with rows.")
    if utf8.failed_at is None:
        return "utf-8-sig"
    # GB18030 accepts much of what is not meant so. Text that began as UTF-8 with Chinese in it is damaged UTF-8.
    chinese = None if utf8.wide else _decode_all(path, zipped, "gb18030")
    if chinese is not None and chinese.failed_at is None:
        return "gb18030"
    line = max(utf8.failed_at, (chinese.failed_at or 0) if chinese else 0)
    kinds = "neither UTF-8 nor GB18030 text" if chinese else "not UTF-8 text, as the lines before are"
    raise DataError(f"{path}:{line}: {kinds}.", "Save the file as UTF-8.")


@dataclass
class _Decoded:
    blank: bool = True
    wide: bool = False
    """Characters of three bytes and more in UTF-8 came before any failure."""
    failed_at: int | None = None


def _decode_all(path: Path, zipped: bool, encoding: str) -> _Decoded:
    found, line = _Decoded(), 1
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    with gzip.open(path, "rb") if zipped else path.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                good = bytes(error.object[: error.start])
                found.wide = found.wide or _has_wide(good.decode(encoding, "ignore"))
                found.failed_at = line + good.count(b"\n")
                return found
            found.blank = found.blank and not text.strip()
            found.wide = found.wide or _has_wide(text)
            line += block.count(b"\n")
            if not block:
                return found


def _has_wide(text: str) -> bool:
    """Two such characters: one may come about by chance in GB18030 text."""
    first = None if text.isascii() else _WIDE.search(text)
    return first is not None and _WIDE.search(text, first.end()) is not None


def _json_rows(file: DataFile) -> Iterator[Row | Fault]:
    with file.text() as stream:
        yield from read_json(stream, str(file.path))


def _text_rows(file: DataFile) -> Iterator[Row | Fault]:
    """One row per line that is not blank: a paragraph, a document or a sentence, as the user laid them out."""
    with file.text() as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{file.path}:{number}"
            text = line.strip("\r\n\ufeff")
            if "\0" in text:
                yield Fault(where, "broken-line", "NUL bytes in the line")
            elif text.strip():
                yield Row({"text": text}, where)


def _csv_rows(file: DataFile) -> Iterator[Row | Fault]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 128 KiB, is less than a long document
    with file.text(newline="") as stream:
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
                    raise _open_quote(where, first, reader.line_num) from None
                yield _broken_csv(where, first, reader.line_num, f"broken CSV ({error})")
                continue
            if not any(cell.strip() for cell in cells):
                continue
            if any("\0" in cell for cell in cells):
                yield _broken_csv(where, first, reader.line_num, "NUL bytes in the line")
            elif header is None:
                header = [cell.strip().lstrip("\ufeff") for cell in cells]
            elif len(cells) != len(header):
                problem = f"broken CSV ({len(cells)} fields, the header has {len(header)})"
                yield _broken_csv(where, first, reader.line_num, problem)
            else:
                yield Row(dict(zip(header, cells, strict=True)), where)


def _open_quote(where: str, first: int, last: int) -> DataError:
    lines = f"lines {first} to {last}: " if last > first else ""
    return DataError(
        f"{where}: {lines}a quotation mark is opened and never closed.",
        'Close it, or write "" for a quotation mark that is part of a quoted text.',
    )


def _broken_csv(where: str, first: int, last: int, problem: str) -> Fault:
    """A fault if the record costs its line only.

    Raises:
        DataError: it is longer: a stray quotation mark may have made good lines part of it.
    """
    if last == first:
        return Fault(where, "broken-csv", problem)
    raise DataError(
        f"{where}: lines {first} to {last}: {problem}.",
        "They are read as one row: a quotation mark may be missing, or one too many.",
    )


def _parquet_rows(file: DataFile) -> Iterator[Row | Fault]:
    with file.binary() as stream:
        number = 0
        opened = _parquet(file.path, stream)
        try:
            for batch in opened.iter_batches(batch_size=256):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{file.path}:row {number}")
        except (_arrow_error(), OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file.path}:row {number + 1}: a damaged parquet file ({_brief(error)}).") from None


def _parquet(path: Path, stream: Any) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: pyarrow is not installed.", "Install it: pip install 'glmtune[hub]'") from None
    try:
        return pyarrow.parquet.ParquetFile(stream)
    except _arrow_error() as error:
        raise DataError(f"{path}: not a whole parquet file ({_brief(error)}).", "Copy or download it again.") from None


def _arrow_error() -> type[Exception]:
    import pyarrow

    return pyarrow.ArrowException


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160].rstrip(".")
