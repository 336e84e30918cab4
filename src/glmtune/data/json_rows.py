"""JSON rows one at a time: a line each, or the elements of an array of any size, read in blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from glmtune.data.conversation import Fault, Row, kind_of
from glmtune.errors import DataError

_BLOCK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
# Deeper rows parse in some Pythons only, and what walks them later (printing, copying) recurses too.
_DEEPEST = 200
# An error this close to the end of what was read may be the cut itself: `\u12`, `tru`, `-Infinit`.
_CUT = 16
_TOO_DEEP = "nested too deep"
_DECODER = json.JSONDecoder()


def read_json(stream: IO[str], name: str) -> Iterator[Row | Fault]:
    """Rows of JSON lines or of one array, told apart by the first character.

    Args:
        stream: text, at its start, with universal newlines.
        name: of the file, for `file:line`.

    Raises:
        DataError: a broken array; it has no borders at which reading could go on.
    """
    window = _Window(stream)
    rows = _array(window, name) if window.peek() == "[" else _lines(window, name)
    for where, value in rows:
        if type(value) is dict:
            yield Row(value, where)
        elif isinstance(value, Fault):
            yield value
        else:
            yield Fault(where, "not-an-object", f"not a JSON object but {kind_of(value)}")


def parse_json(text: str) -> Any:
    """A JSON value that later steps can use.

    Raises:
        ValueError: broken, nested too deep, or text that is none; the message says which.
    """
    try:
        value = json.loads(text)
        problem = _unusable(value, text)
    except (ValueError, RecursionError) as error:
        problem = _problem(error, text)
    if problem:
        raise ValueError(problem)
    return value


class _Window:
    """The part of a stream that is being parsed. `line` is the line at `position`."""

    def __init__(self, stream: IO[str]):
        self.stream = stream
        self.text = ""
        self.position = 0
        self.line = 1
        self.ended = False

    def more(self) -> bool:
        """Read on, at least as much as is still unparsed: a long element then costs its length, not its square."""
        rest = self.text[self.position :]
        block = self.stream.read(max(_BLOCK, len(rest)))
        self.text, self.position = rest + block, 0
        self.ended = not block
        return not self.ended

    def advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the stream."""
        while True:
            found = _SPACE.match(self.text, self.position)
            assert found is not None
            self.advance(found.end())
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""


def _lines(window: _Window, name: str) -> Iterator[tuple[str, Any]]:
    number = window.line
    for line in _text_lines(window):
        text = line.strip(" \t\r\n\ufeff")
        if text:
            where = f"{name}:{number}"
            try:
                yield where, parse_json(text)
            except ValueError as error:
                yield where, Fault(where, "broken-json", f"broken JSON ({error})")
        number += 1


def _text_lines(window: _Window) -> Iterator[str]:
    *whole, last = window.text[window.position :].split("\n")
    yield from whole
    # The window may end inside a line: the stream goes on with the rest of it.
    yield last + window.stream.readline()
    yield from iter(window.stream.readline, "")


def _array(window: _Window, name: str) -> Iterator[tuple[str, Any]]:
    window.advance(window.position + 1)
    while True:
        following = window.peek()
        if following == "]":
            break
        where = f"{name}:{window.line}"
        value, problem = _element(window, name)
        yield where, Fault(where, "broken-json", f"broken JSON ({problem})") if problem else value
        following = window.peek()
        if following == ",":
            window.advance(window.position + 1)
        elif following != "]":
            raise _broken(name, window.line, "',' or ']' must follow a row" if following else "the array does not end")
    window.advance(window.position + 1)
    if window.peek():
        raise _broken(name, window.line, "something follows after the array's end")


def _element(window: _Window, name: str) -> tuple[Any, str | None]:
    """The element at the window's position, and why it cannot be used although it parses."""
    while True:
        text, start = window.text, window.position
        try:
            value, end = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text) - _CUT or error.msg.startswith("Unterminated string")
            if cut and not window.ended:
                window.more()
                continue
            line = window.line + text.count("\n", start, error.pos)
            raise _broken(name, line, _problem(error, text[start : error.pos + 1])) from None
        except (ValueError, RecursionError) as error:
            raise _broken(name, window.line, _problem(error, "")) from None
        if end == len(text) and not window.ended:  # a number may go on
            window.more()
            continue
        window.advance(end)
        return value, _unusable(value, text, start, end)


def _broken(name: str, line: int, problem: str) -> DataError:
    return DataError(
        f"{name}:{line}: broken JSON ({problem}).",
        "Mend the array there, or save one object per line: then a broken line costs only itself.",
    )


def _problem(error: Exception, text: str) -> str:
    if "\0" in text:
        return "NUL bytes; the file may be damaged"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}" if "\n" not in text else error.msg
    return _TOO_DEEP if isinstance(error, RecursionError) else "a number with too many digits"


def _unusable(value: Any, text: str, start: int = 0, end: int | None = None) -> str | None:
    """What the parser lets pass and later steps cannot use. Counting characters first keeps this nearly free."""
    stop = len(text) if end is None else end
    if text.count("[", start, stop) + text.count("{", start, stop) > _DEEPEST and _too_deep(value):
        return _TOO_DEEP
    if text.find("\\ud", start, stop) >= 0 or text.find("\\uD", start, stop) >= 0:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair, which is no character"
    return None


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        containers = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True
