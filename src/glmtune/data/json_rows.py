"""Read JSON rows one at a time: JSON lines, or the elements of an array of any size, in blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from glmtune.data.conversation import InvalidRow, RawRow, describe_type
from glmtune.errors import DataError

_BLOCK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
# Deeper values parse in some versions of Python only, and later steps (printing, copying) recurse too.
_MAX_DEPTH = 200
# An error this close to the end of the block may be due to the end of the block: `\u12`, `tru`, `-Infinit`.
_ERROR_MARGIN = 16
_TOO_DEEP = "nested too deep"
_DECODER = json.JSONDecoder()


def read_json_rows(stream: IO[str], name: str) -> Iterator[RawRow | InvalidRow]:
    """Read rows of JSON lines or of one JSON array; the first character decides.

    Args:
        stream: text, at its start, with universal newlines.
        name: of the file, for `file:line`.

    Raises:
        DataError: an invalid array; there is no place at which reading could continue.
    """
    window = _TextWindow(stream)
    rows = _read_array(window, name) if window.peek() == "[" else _read_lines(window, name)
    for where, value in rows:
        if type(value) is dict:
            yield RawRow(value, where)
        elif isinstance(value, InvalidRow):
            yield value
        else:
            yield InvalidRow(where, "not-an-object", f"not a JSON object but {describe_type(value)}")


def parse_json(text: str) -> Any:
    """Parse JSON text to a value that later steps can use.

    Raises:
        ValueError: invalid JSON, nested too deep, or not valid Unicode; the message says which.
    """
    try:
        value = json.loads(text)
        problem = _find_defect(value, text)
    except (ValueError, RecursionError) as error:
        problem = _describe_error(error, text)
    if problem:
        raise ValueError(problem)
    return value


class _TextWindow:
    """The part of a stream that is being parsed. `line` is the line number of `position`."""

    def __init__(self, stream: IO[str]):
        self.stream = stream
        self.text = ""
        self.position = 0
        self.line = 1
        self.at_end = False

    def read_more(self) -> bool:
        """Read at least as much as is still unparsed: the cost of a long element is then linear in its length."""
        rest = self.text[self.position :]
        block = self.stream.read(max(_BLOCK, len(rest)))
        self.text, self.position = rest + block, 0
        self.at_end = not block
        return not self.at_end

    def advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def peek(self) -> str:
        """The next character that is not a space; empty at the end of the stream."""
        while True:
            space = _SPACE.match(self.text, self.position)
            assert space is not None
            self.advance(space.end())
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.read_more():
                return ""

    def read_lines(self) -> Iterator[str]:
        """The lines from the position to the end of the stream."""
        *lines, last = self.text[self.position :].split("\n")
        yield from lines
        # The window may end inside a line; the rest of it follows in the stream.
        yield last + self.stream.readline()
        yield from iter(self.stream.readline, "")


def _read_lines(window: _TextWindow, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(window.read_lines(), start=window.line):
        text = line.strip(" \t\r\n\ufeff")
        if text:
            where = f"{name}:{number}"
            try:
                yield where, parse_json(text)
            except ValueError as error:
                yield where, InvalidRow(where, "broken-json", f"invalid JSON ({error})")


def _read_array(window: _TextWindow, name: str) -> Iterator[tuple[str, Any]]:
    window.advance(window.position + 1)
    while True:
        following = window.peek()
        if following == "]":
            break
        where = f"{name}:{window.line}"
        value, problem = _read_element(window, name)
        yield where, InvalidRow(where, "broken-json", f"invalid JSON ({problem})") if problem else value
        following = window.peek()
        if following == ",":
            window.advance(window.position + 1)
        elif following != "]":
            problem = "',' or ']' must follow a row" if following else "the array does not end"
            raise _make_array_error(name, window.line, problem)
    window.advance(window.position + 1)
    if window.peek():
        raise _make_array_error(name, window.line, "text after the end of the array")


def _read_element(window: _TextWindow, name: str) -> tuple[Any, str | None]:
    """The element at the window's position, and why it cannot be used although it can be parsed."""
    while True:
        text, start = window.text, window.position
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            may_be_cut = error.pos >= len(text) - _ERROR_MARGIN or error.msg.startswith("Unterminated string")
            if may_be_cut and not window.at_end:
                window.read_more()
                continue
            line = window.line + text.count("\n", start, error.pos)
            raise _make_array_error(name, line, _describe_error(error, text[start : error.pos + 1])) from None
        except (ValueError, RecursionError) as error:
            raise _make_array_error(name, window.line, _describe_error(error, "")) from None
        if end == len(text) and not window.at_end:  # a number may continue in the next block
            window.read_more()
            continue
        window.advance(end)
        return value, _find_defect(value, text, start, end)


def _make_array_error(name: str, line: int, problem: str) -> DataError:
    return DataError(
        f"{name}:{line}: invalid JSON ({problem}).",
        "Fix the array there, or save one object per line: then only the invalid line is skipped.",
    )


def _describe_error(error: Exception, text: str) -> str:
    if "\0" in text:
        return "NUL bytes; the file may be damaged"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}" if "\n" not in text else error.msg
    return _TOO_DEEP if isinstance(error, RecursionError) else "a number with too many digits"


def _find_defect(value: Any, text: str, start: int = 0, end: int | None = None) -> str | None:
    """A defect that the parser accepts and later steps do not. Counting characters first makes this nearly free."""
    stop = len(text) if end is None else end
    if text.count("[", start, stop) + text.count("{", start, stop) > _MAX_DEPTH and _is_too_deep(value):
        return _TOO_DEEP
    if text.find("\\ud", start, stop) >= 0 or text.find("\\uD", start, stop) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair, which is not a character"
    return None


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True
