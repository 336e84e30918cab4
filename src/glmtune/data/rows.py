"""Rows of a JSON file, each with the line it stands on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.errors import DataError


@dataclass
class Row:
    """A parsed row and where it stands."""

    values: dict[str, Any]
    where: str
    """`file:line`"""


@dataclass
class RowFile:
    """All rows of a file, and the lines that are no rows."""

    rows: list[Row] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """A sentence per line that was left out, beginning with its `file:line`."""


def read_rows(path: str | Path) -> RowFile:
    """Read a JSON array or JSON lines (`.json` or `.jsonl`, told apart by the first character).

    A line of JSON lines that cannot be parsed is left out and listed; the others stay. A broken array has no such
    borders, so it is refused whole.

    Raises:
        DataError: no such file, not UTF-8, empty, a broken array, or no line that is a row.
    """
    path = Path(path)
    text = _read_text(path)
    start = text.lstrip()[:1]
    found = RowFile()
    if not start:
        raise DataError(f"{path}: empty.", "Give one JSON object per line, or a JSON array of objects.")
    parts = _array(path, text) if start == "[" else _lines(path, text, found)
    for line, value in parts:
        where = f"{path}:{line}"
        if isinstance(value, dict):
            found.rows.append(Row(value, where))
        else:
            found.broken.append(f"{where}: not a JSON object but {_kind(value)}")
    if not found.rows:
        first = f" The first: {found.broken[0]}." if found.broken else ""
        raise DataError(f"{path}: no usable rows.{first}", "Give one JSON object per line, or a JSON array of objects.")
    return found


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a file of rows.", "Give a .json or .jsonl file.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.", "Check the path; it is taken from the current directory.") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text.", "Save the file as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None


def _lines(path: Path, text: str, found: RowFile) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            found.broken.append(f"{path}:{number}: broken JSON ({_problem(error)})")


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Elements one by one, so that each is known by its line."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    try:
        while text[position : position + 1] != "]":
            line += text.count("\n", counted, position)
            counted = position
            value, position = decoder.raw_decode(text, position)
            yield line, value
            position = _skip_space(text, position)
            if text[position : position + 1] == ",":
                position = _skip_space(text, position + 1)
            elif text[position : position + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, position)
    except (json.JSONDecodeError, RecursionError) as error:
        at = text.count("\n", 0, error.pos) + 1 if isinstance(error, json.JSONDecodeError) else line
        raise DataError(
            f"{path}:{at}: broken JSON ({_problem(error)}).",
            "Mend the array there, or save one object per line: then a broken line costs only itself.",
        ) from None


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _problem(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
