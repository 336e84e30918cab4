"""How the values of a JSON file are arranged, and the window through which it is read in blocks."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Literal

from glmtune.errors import DataError
from glmtune.utils.console import count_noun

_BLOCK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
# Deeper values parse in some versions of Python only, and later steps (printing, copying) recurse too.
_MAX_DEPTH = 200
# An error this close to the end of the block may be due to the end of the block: `\u12`, `tru`, `-Infinit`.
_ERROR_MARGIN = 16
_TOO_DEEP = "nested too deep"
_DECODER = json.JSONDecoder()
# Lines after a first line that is not a complete value, among which a complete one is looked for.
_LOOK_AHEAD_LINES = 50
_MESSAGE_ROLES = frozenset(
    (
        *("system", "user", "human", "assistant", "gpt", "chatgpt", "bot"),
        *("tool", "observation", "function", "function_call", "function_response"),
    )
)
# Columns of a row whose value is a list of objects, and columns that only a row has.
_LIST_COLUMNS = frozenset(
    (
        *("messages", "conversations", "conversation", "history", "chat", "dialog", "dialogue", "turns"),
        *("tools", "functions", "chosen", "rejected"),
    )
)
_ANSWER_COLUMNS = ("output", "response", "summary", "target", "answer", "completion", "text", "prompt", "instruction")


class JsonSyntaxError(Exception):
    """Invalid JSON, with the number of the line."""

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line = line
        self.problem = problem


@dataclass(frozen=True)
class JsonLayout:
    """The arrangement of the values of a file.

    Attributes:
        kind: `array` (one array or several), `lines` (a value per line), `values` (values over several lines one after
            the other), `wrapper` (an object with the list of rows in `key`), or `entries` (an object of rows by name).
        key: of the list of rows in a wrapper.
        unused: the other keys of a wrapper.
    """

    kind: Literal["array", "lines", "values", "wrapper", "entries"]
    key: str = ""
    unused: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """For the user; empty if there is nothing unusual."""
        if self.kind != "wrapper":
            return ""
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"one object; its rows are the list in {self.key!r}{unused}"


def detect_json_layout(stream: IO[str], name: str, columns: Collection[str] = ()) -> JsonLayout:
    """Detect the layout of a file.

    Args:
        stream: text, at its start, with universal newlines.
        name: of the file, for `file:line`.
        columns: that the user names; an object with one of them is a row.

    Raises:
        DataError: one object that holds columns instead of rows, or several lists of rows.
    """
    return detect_window_layout(TextWindow(stream), name, columns)


def detect_window_layout(window: TextWindow, name: str, columns: Collection[str] = ()) -> JsonLayout:
    """Detect the layout of a window at its start, without moving it."""
    first = window.peek()
    if first == "[":
        return JsonLayout("array")
    if first != "{":
        return JsonLayout("lines")
    line = window.peek_line()
    value = _parse_object(line)
    if value is None:
        if any(_parse_object(other) for other in window.peek_lines(_LOOK_AHEAD_LINES)):
            return JsonLayout("lines")  # only its first line is broken
        try:
            value, end = window.decode_value()
        except JsonSyntaxError:
            return JsonLayout("values")
        kind: Literal["lines", "values"] = "values"
    else:
        kind, end = "lines", window.position + len(line)
    wrapper = _detect_wrapper(value, f"{name}:{window.line}", columns) if window.is_last(end) else None
    return wrapper or JsonLayout(kind)


def holds_json_rows(stream: IO[str]) -> bool:
    """Whether a file that may be plain text holds JSON: most of its first lines, or a value of several lines."""
    window = TextWindow(stream)
    if window.peek() not in ("[", "{"):
        return False
    lines = [line for line in [window.peek_line(), *window.peek_lines(_LOOK_AHEAD_LINES)] if line.strip()]
    rows = sum(_is_row_value(_parse_line(line)) for line in lines)
    if 2 * rows > len(lines):
        return True
    try:
        value, _ = window.decode_value()
    except JsonSyntaxError:
        return False
    return _is_row_value(value)


def is_message(value: Any) -> bool:
    """Whether a value looks like a message of a conversation and not like a row."""
    if not isinstance(value, dict):
        return False
    role = value.get("role") if "content" in value or "tool_calls" in value or "parameters" in value else None
    if role is None and "value" in value:
        role = value.get("from")
    return isinstance(role, str) and role.lower() in _MESSAGE_ROLES


def is_message_list(value: Any) -> bool:
    """Whether a value is a conversation: a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and is_message(value[0])
    )


def parse_json(text: str) -> Any:
    """Parse JSON text to a value that later steps can use.

    Raises:
        ValueError: invalid JSON, nested too deep, or not valid Unicode; the message says which.
    """
    try:
        value = json.loads(text)
        problem = find_defect(value, text)
    except (ValueError, RecursionError) as error:
        problem = _describe_error(error, text)
    if problem:
        raise ValueError(problem)
    return value


class TextWindow:
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

    def peek_line(self) -> str:
        """The text from the position to the end of its line."""
        searched = self.position
        while True:
            end = self.text.find("\n", searched)
            if end >= 0:
                return self.text[self.position : end]
            length = len(self.text) - self.position
            if not self.read_more():
                return self.text[self.position :]
            searched = self.position + length

    def peek_lines(self, count: int) -> list[str]:
        """At most `count` lines after that of the position, as far as they are in the window with a block more."""
        self.peek_line()
        if self.text.count("\n", self.position) <= count:
            self.read_more()
        lines = self.text[self.position :].split("\n", count + 1)[1:]
        return lines[:count] if len(lines) > count or self.at_end else lines[:-1]

    def skip_line(self) -> None:
        """Move to the start of the next line."""
        line = self.peek_line()
        self.advance(min(self.position + len(line) + 1, len(self.text)))

    def is_last(self, end: int) -> bool:
        """Whether only spaces follow the index `end`."""
        length = end - self.position
        while True:
            space = _SPACE.match(self.text, self.position + length)
            assert space is not None
            if space.end() < len(self.text):
                return False
            if not self.read_more():
                return True

    def read_lines(self) -> Iterator[str]:
        """The lines from the position to the end of the stream."""
        *lines, last = self.text[self.position :].split("\n")
        yield from lines
        # The window may end inside a line; the rest of it follows in the stream.
        yield last + self.stream.readline()
        yield from iter(self.stream.readline, "")

    def decode_value(self) -> tuple[Any, int]:
        """The value at the position, and the index of its end.

        Raises:
            JsonSyntaxError: it is invalid.
        """
        while True:
            text, start = self.text, self.position
            try:
                value, end = _DECODER.raw_decode(text, start)
            except json.JSONDecodeError as error:
                may_be_cut = error.pos >= len(text) - _ERROR_MARGIN or error.msg.startswith("Unterminated string")
                if may_be_cut and not self.at_end:
                    self.read_more()
                    continue
                line = self.line + text.count("\n", start, error.pos)
                raise JsonSyntaxError(line, _describe_error(error, text[start : error.pos + 1])) from None
            except (ValueError, RecursionError) as error:
                raise JsonSyntaxError(self.line, _describe_error(error, "")) from None
            if end == len(text) and not self.at_end:  # a number may continue in the next block
                self.read_more()
                continue
            return value, end


def find_defect(value: Any, text: str, start: int = 0, end: int | None = None) -> str | None:
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


def _detect_wrapper(value: dict[str, Any], where: str, columns: Collection[str]) -> JsonLayout | None:
    """The layout of a file whose only value is this object; None if the object is a row.

    Raises:
        DataError: it holds columns, or several lists of rows.
    """
    hint = "Write one object per row: pandas does with to_json(FILE, orient='records', force_ascii=False)."
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        raise DataError(f"{where}: one object with names of columns and lists of cells, not rows.", hint)
    if any(isinstance(value.get(column), str) for column in _ANSWER_COLUMNS):
        return None
    if any(key in columns or key.lower() in _LIST_COLUMNS for key in value):
        return None
    lists = [key for key, item in value.items() if _is_row_list(item)]
    if len(lists) == 1:
        return JsonLayout("wrapper", lists[0], [key for key in value if key != lists[0]])
    if lists:
        names = ", ".join(f"{key!r} ({count_noun(len(value[key]), 'row')})" for key in lists[:8])
        raise DataError(
            f"{where}: one object with several lists of rows: {names}.", "Save the one to use in a file of its own."
        )
    if _is_columns(value):
        raise DataError(f"{where}: one object with a list for each column, not rows.", hint)
    rows = list(value.values())
    if len(rows) > 1 and all(isinstance(row, dict) and row and row.keys() == rows[0].keys() for row in rows):
        return JsonLayout("entries")
    return None


def _is_row_list(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if all(is_message_list(item) for item in value):
        return True
    return all(isinstance(item, dict) and item for item in value) and not is_message(value[0])


def _is_columns(value: dict[str, Any]) -> bool:
    """Whether an object has a list of cells for each column, as pandas' `to_json` and `to_dict` give it."""
    columns = list(value.values())
    if len(columns) < 2 or not all(isinstance(column, (list, dict)) for column in columns):
        return False
    if any(len(column) != len(columns[0]) for column in columns):
        return False
    if all(isinstance(column, dict) and column and all(key.isdigit() for key in column) for column in columns):
        return not any(isinstance(cell, dict) for column in columns for cell in column.values())
    return all(
        isinstance(column, list) and len(column) > 1 and not any(isinstance(cell, (dict, list)) for cell in column)
        for column in columns
    )


def _is_row_value(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) or is_message_list(item) for item in value)
    return isinstance(value, dict) and bool(value)


def _parse_line(line: str) -> Any:
    text = line.strip(" \t\r\n\ufeff")
    if text[:1] not in ("{", "["):
        return None
    try:
        return parse_json(text.rstrip(","))
    except ValueError:
        return None


def _parse_object(line: str) -> dict[str, Any] | None:
    """The object that a line holds completely; None for other lines, and for indented and empty objects."""
    value = _parse_line(line) if line[:1] in ("{", "\ufeff") else None
    return value if isinstance(value, dict) and value else None


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = (item for item in level if isinstance(item, (dict, list)))
        level = [inner for item in containers for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return False
    return True


def _describe_error(error: Exception, text: str) -> str:
    if "\0" in text:
        return "NUL bytes; the file may be damaged"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}" if "\n" not in text else error.msg
    return _TOO_DEEP if isinstance(error, RecursionError) else "a number with too many digits"
