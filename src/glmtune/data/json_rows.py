"""Read JSON rows one at a time: JSON lines, or the elements of an array of any size, in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from glmtune.data.conversation import InvalidRow, RawRow, describe_type
from glmtune.data.json_layout import (
    JsonLayout,
    JsonSyntaxError,
    TextWindow,
    detect_window_layout,
    find_defect,
    is_message,
    is_message_list,
    parse_json,
)
from glmtune.errors import DataError

__all__ = ["parse_json", "read_json_rows"]

Values = Iterator[tuple[str, Any]]
"""Values with their `file:line`; an `InvalidRow` in place of each that cannot be used."""


def read_json_rows(stream: IO[str], name: str, layout: JsonLayout | None = None) -> Iterator[RawRow | InvalidRow]:
    """Read the rows of a JSON file of any layout.

    A list of messages is a row with the list as its only column; each object of another list is a row.

    Args:
        stream: text, at its start, with universal newlines.
        name: of the file, for `file:line`.
        layout: of the file; detected when None.

    Raises:
        DataError: an invalid array; there is no place at which reading could continue.
    """
    window = TextWindow(stream)
    kind = layout or detect_window_layout(window, name)
    window.peek()
    try:
        for where, value in _read_values_of_layout(window, name, kind):
            yield from _split_value(where, value)
    except JsonSyntaxError as error:
        raise _make_array_error(name, error) from None


def _read_values_of_layout(window: TextWindow, name: str, layout: JsonLayout) -> Values:
    if layout.kind == "array":
        return _read_arrays(window, name)
    if layout.kind == "values":
        return _read_values(window, name)
    if layout.kind in ("wrapper", "entries"):
        return _read_wrapped_rows(window, name, layout.key)
    return _read_lines(window, name)


def _split_value(where: str, value: Any) -> Iterator[RawRow | InvalidRow]:
    if isinstance(value, InvalidRow):
        yield value
    elif type(value) is dict:
        yield RawRow(value, where)
    elif is_message_list(value):
        yield RawRow({"messages" if "role" in value[0] else "conversations": value}, where)
    elif isinstance(value, list) and value and all(type(item) is dict for item in value):
        for item in value:
            yield RawRow(item, where)
    else:
        yield InvalidRow(where, "not-an-object", f"not a JSON object but {describe_type(value)}")


def _read_lines(window: TextWindow, name: str) -> Values:
    for number, line in enumerate(window.read_lines(), start=window.line):
        text = line.strip(" \t\r\n\ufeff")
        if not text:
            continue
        where = f"{name}:{number}"
        try:
            value = parse_json(text)
        except ValueError as error:
            value = _parse_with_comma(text) or InvalidRow(where, "broken-json", f"invalid JSON ({error})")
        yield where, value


def _parse_with_comma(text: str) -> Any:
    """An object with a comma after it: the lines of an array without its brackets."""
    if not text.endswith("},"):
        return None
    try:
        return parse_json(text[:-1])
    except ValueError:
        return None


def _read_values(window: TextWindow, name: str) -> Values:
    """Values of several lines each, one after the other. After an invalid one, the next line with `{` at its start."""
    while window.peek():
        first_line = window.line
        where = f"{name}:{first_line}"
        try:
            value, problem = _read_element(window)
        except JsonSyntaxError as error:
            place = f", line {error.line}" if error.line != first_line else ""
            yield where, InvalidRow(where, "broken-json", f"invalid JSON ({error.problem}{place})")
            window.skip_line()
            while window.peek_line()[:1] != "{" and window.peek():
                window.skip_line()
            continue
        yield where, InvalidRow(where, "broken-json", f"invalid JSON ({problem})") if problem else value
        if window.peek() == ",":
            window.advance(window.position + 1)


def _read_arrays(window: TextWindow, name: str) -> Values:
    """The elements of an array, and of further arrays after it: one on each line, or each over several lines."""
    while True:
        first_line = window.line
        yield from _read_array(window, name)
        last_line = window.line
        following = window.peek()
        if not following:
            return
        if following != "[":
            raise JsonSyntaxError(window.line, "text after the end of the array")
        if first_line == last_line < window.line:
            yield from _read_lines(window, name)
            return


def _read_array(window: TextWindow, name: str) -> Values:
    """The elements of an array; the whole array if they are the messages of a conversation."""
    elements = _read_elements(window, name)
    first = next(elements, None)
    if first is None:
        return
    if not is_message(first[1]):
        yield first
        yield from elements
        return
    messages = [first[1], *(value for _, value in elements)]
    invalid = next((value for value in messages if isinstance(value, InvalidRow)), None)
    yield first[0], invalid or messages


def _read_elements(window: TextWindow, name: str) -> Values:
    window.advance(window.position + 1)
    while True:
        following = window.peek()
        if following == "]":
            break
        where = f"{name}:{window.line}"
        value, problem = _read_element(window)
        yield where, InvalidRow(where, "broken-json", f"invalid JSON ({problem})") if problem else value
        following = window.peek()
        if following == ",":
            window.advance(window.position + 1)
        elif following != "]":
            problem = "',' or ']' must follow a row" if following else "the array does not end"
            raise JsonSyntaxError(window.line, problem)
    window.advance(window.position + 1)


def _read_wrapped_rows(window: TextWindow, name: str, key: str) -> Values:
    """The rows in the list `key` of an object; with an empty key, its values."""
    window.advance(window.position + 1)
    while window.peek() not in ("}", ""):
        current, _ = _read_element(window)
        if window.peek() != ":":
            raise JsonSyntaxError(window.line, "':' must follow a key")
        window.advance(window.position + 1)
        following = window.peek()
        where = f"{name}:{window.line}"
        if current == key and following == "[":
            yield from _read_array(window, name)
        else:
            value, problem = _read_element(window)
            if not key:
                yield where, InvalidRow(where, "broken-json", f"invalid JSON ({problem})") if problem else value
        if window.peek() == ",":
            window.advance(window.position + 1)


def _read_element(window: TextWindow) -> tuple[Any, str | None]:
    """The value at the window's position, and why it cannot be used although it can be parsed."""
    value, end = window.decode_value()
    problem = find_defect(value, window.text, window.position, end)
    window.advance(end)
    return value, problem


def _make_array_error(name: str, error: JsonSyntaxError) -> DataError:
    return DataError(
        f"{name}:{error.line}: invalid JSON ({error.problem}).",
        "Fix the array there, or save one object per line: then only the invalid line is skipped.",
    )
