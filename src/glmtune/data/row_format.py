"""Base class of row formats, and the values of columns that all of them read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, describe_type
from glmtune.data.json_rows import parse_json

Columns = Mapping[str, str]
"""Names of columns in the file, by role (one of `column_formats.COLUMN_ROLES`)."""

SYSTEM_COLUMNS = ("system", "system_prompt")
TOOLS_COLUMNS = ("tools", "functions")


class RowFormat(ABC):
    """Format of the rows of a source."""

    name: str
    """For messages."""
    formats: tuple[str, ...]
    """Its values of `data.format`."""
    cache_name: ClassVar[str]
    """Name of the class in the keys of encoded caches; it must never change, nor may the names of the fields."""

    @abstractmethod
    def matches(self, values: dict[str, Any]) -> bool:
        """Whether a row looks like this format; it may still be invalid."""

    @abstractmethod
    def parse_row(self, row: RawRow) -> Conversation:
        """Convert a row to a conversation.

        Raises:
            InvalidRowError: the row is invalid.
        """

    @abstractmethod
    def get_columns(self) -> frozenset[str]:
        """The columns that `parse_row` reads."""

    def list_unread_columns(self, values: dict[str, Any]) -> list[str]:
        """The columns of a row that hold something and are not read."""
        columns = self._read_columns
        if values.keys() <= columns:
            return []
        return [name for name in values if name not in columns and not is_empty(values[name])]

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        """The keys of the messages of a valid row that hold something and are not read, without repetition."""
        return []

    @cached_property
    def _read_columns(self) -> frozenset[str]:
        return self.get_columns()

    @property
    def cache_key(self) -> str:
        """The format in the keys of encoded caches."""
        return self.cache_name + repr(self).removeprefix(type(self).__name__)


def is_empty(value: Any) -> bool:
    """Whether a value is the same as none: null, an empty text, list or object."""
    # Not `in`: values of parquet files may be arrays, which compare element by element.
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def get_text(values: dict[str, Any], column: str) -> str:
    """The text in a column.

    Raises:
        InvalidRowError: there is no such column, or it does not hold text.
    """
    value = values.get(column)
    if isinstance(value, str):
        return value
    if column not in values:
        raise InvalidRowError(
            "missing-column",
            f"no column {column!r} (this row has {list_keys(values)})",
            "Fix the row, or name the columns in data.columns.",
        )
    if value is None:
        raise InvalidRowError("null-content", f"column {column!r} is null", "Fix or remove the row.")
    raise InvalidRowError("wrong-type", f"column {column!r} must be text, not {describe_type(value)}", "Fix the row.")


def get_optional_text(values: dict[str, Any], columns: str | Iterable[str]) -> str:
    """The text in an optional column with one of several names; empty if there is no such column, or null.

    Raises:
        InvalidRowError: it holds something else, be it 0, false or an empty list, or two of the columns hold text.
    """
    found = ""
    first = ""
    for column in (columns,) if isinstance(columns, str) else columns:
        text = "" if values.get(column) is None else get_text(values, column)
        if text and found and text != found:
            problem = f"columns {first!r} and {column!r} both have text for the same place"
            raise InvalidRowError("two-columns", problem, "Remove one of them, or name the right one in data.columns.")
        if text and not found:
            found, first = text, column
    return found


def list_keys(values: dict[str, Any]) -> str:
    """The keys of a row, for messages."""
    names = ", ".join(repr(key) for key in list(values)[:12])
    return f"{names}, ..." if len(values) > 12 else names or "none"


def decode_json_text(value: Any) -> Any:
    """Parse a list or object given as JSON text (as in CSV files); return anything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def parse_tools(value: Any, where: str) -> list[Any] | None:
    """A list of tools, given as a list or as JSON text; None if there are none.

    Args:
        value: of a column or of a key.
        where: names the place, for the error: "column 'tools'".

    Raises:
        InvalidRowError: another type.
    """
    tools = decode_json_text(value)
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list):
        raise InvalidRowError("wrong-type", f"{where} must be a list of tools, not {describe_type(tools)}")
    return tools or None


def read_tools(values: dict[str, Any], columns: Iterable[str], other: list[Any] | None = None) -> list[Any] | None:
    """The tools of a row.

    Args:
        values: of the row.
        columns: names that the column may have.
        other: tools from another place of the row.

    Raises:
        InvalidRowError: another type, or several lists that differ.
    """
    found, place = other, "a system message"
    for column in columns:
        tools = parse_tools(values.get(column), f"column {column!r}")
        if tools and found and tools != found:
            problem = f"{place} and column {column!r} both list tools"
            if place != "a system message":
                problem = f"columns {place} and {column!r} both list tools"
            raise InvalidRowError("two-tool-lists", problem, "Remove one of them.")
        if tools and not found:
            found, place = tools, repr(column)
    return found
