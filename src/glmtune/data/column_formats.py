"""Row formats with a question and its answer in columns, and plain text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, describe_type
from glmtune.data.json_rows import parse_json

Columns = Mapping[str, str]
"""Names of columns in the file, by role (one of `COLUMN_ROLES`)."""

COLUMN_ROLES = ("prompt", "input", "response", "history", "system", "text", "messages", "tools")


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

    @property
    def cache_key(self) -> str:
        """The format in the keys of encoded caches."""
        return self.cache_name + repr(self).removeprefix(type(self).__name__)


@dataclass(frozen=True)
class TextFormat(RowFormat):
    """Rows of plain text, for continued pre-training."""

    cache_name = "PlainText"

    column: str = "text"
    name: str = "text"
    formats: tuple[str, ...] = ("text",)

    def matches(self, values: dict[str, Any]) -> bool:
        return self.column in values

    def parse_row(self, row: RawRow) -> Conversation:
        text = get_text(row.values, self.column)
        if not text.strip():
            raise InvalidRowError("no-answer", f"column {self.column!r} is empty")
        return Conversation([], row.where, text=text)


@dataclass(frozen=True)
class ColumnFormat(RowFormat):
    """Rows of a question and its answer, with optional further columns.

    Answers in the history have `loss: False`: in these files every earlier turn is also a row of its own.
    """

    cache_name = "QuestionAnswer"

    name: str
    formats: tuple[str, ...]
    prompt: str
    response: str
    input: str | None = None
    history: str | None = None
    system: str | None = None
    tools: str | None = "tools"

    def matches(self, values: dict[str, Any]) -> bool:
        return self.prompt in values and self.response in values

    def parse_row(self, row: RawRow) -> Conversation:
        values = row.values
        messages: list[dict[str, Any]] = []
        if self.system and (system := get_optional_text(values, self.system)):
            messages.append({"role": "system", "content": system})
        if self.history:
            messages += _parse_history(values.get(self.history), self.history)
        question = get_text(values, self.prompt)
        if self.input and (text := get_optional_text(values, self.input)):
            question = f"{question}\n{text}"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": get_text(values, self.response)})
        tools = parse_tools(values.get(self.tools), self.tools) if self.tools else None
        return Conversation(messages, row.where, tools)


# The first one that matches is used. `history`, `system` and `input` are optional in every row.
COLUMN_FORMATS = (
    ColumnFormat("content/summary", ("content/summary", "adgen"), "content", "summary"),
    ColumnFormat("prompt/response", ("prompt/response",), "prompt", "response", history="history", system="system"),
    ColumnFormat(
        "instruction/input/output",
        ("instruction/input/output", "alpaca"),
        prompt="instruction",
        response="output",
        input="input",
        history="history",
        system="system",
    ),
    ColumnFormat("context/target", ("context/target",), "context", "target"),
)


def rename_columns(row_format: ColumnFormat, columns: Columns) -> ColumnFormat:
    """The format with other column names, which its own name lists."""
    role_columns = {
        role: columns[role] for role in COLUMN_ROLES if role in columns and role not in ("text", "messages")
    }
    if not role_columns:
        return row_format
    merged = {**row_format.__dict__, **role_columns}
    if {"prompt", "input", "response"} & set(role_columns):
        names = [merged["prompt"], *([merged["input"]] if "input" in role_columns else []), merged["response"]]
        merged["name"] = "/".join(names)
    return ColumnFormat(**merged)


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


def get_optional_text(values: dict[str, Any], column: str) -> str:
    """The text in an optional column; empty if there is no such column, or null.

    Raises:
        InvalidRowError: it holds something else, be it 0, false or an empty list.
    """
    return "" if values.get(column) is None else get_text(values, column)


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


def parse_tools(value: Any, column: str) -> list[Any] | None:
    """A list of tools, given as a list or as JSON text; None if there are none.

    Raises:
        InvalidRowError: another type.
    """
    tools = decode_json_text(value)
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list):
        raise InvalidRowError("wrong-type", f"column {column!r} must be a list of tools, not {describe_type(tools)}")
    return tools or None


def _parse_history(value: Any, column: str) -> list[dict[str, Any]]:
    turns = decode_json_text(value)
    if turns is None or turns == "":
        return []
    if not isinstance(turns, list):
        raise InvalidRowError("bad-history", f"column {column!r} must be a list of [question, answer] pairs")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise InvalidRowError(
                "bad-history", f"entry {number} of {column!r} is not a [question, answer] pair of texts"
            )
        messages.append({"role": "user", "content": turn[0]})
        messages.append({"role": "assistant", "content": turn[1], "loss": False})
    return messages
