"""Rows of a question and its answer in columns, or of plain text, as conversations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmtune.data.conversation import BadRow, Conversation, Row, kind_of
from glmtune.data.json_rows import parse_json

Columns = Mapping[str, str]
"""Role of a column (one of `ROLES`) to its name in the file."""

ROLES = ("prompt", "input", "response", "history", "system", "text", "messages", "tools")


class Layout(ABC):
    """How the rows of a source are laid out."""

    name: str
    """As it is said to the user."""
    formats: tuple[str, ...]
    """What `data.format` may call it."""

    @abstractmethod
    def fits(self, values: dict[str, Any]) -> bool:
        """Whether a row looks like this layout; a row that does may still be faulty."""

    @abstractmethod
    def read(self, row: Row) -> Conversation:
        """The row as a conversation.

        Raises:
            BadRow: it cannot become one.
        """


@dataclass(frozen=True)
class PlainText(Layout):
    """Rows of text alone, for continued pre-training."""

    column: str = "text"
    name: str = "text"
    formats: tuple[str, ...] = ("text",)

    def fits(self, values: dict[str, Any]) -> bool:
        return self.column in values

    def read(self, row: Row) -> Conversation:
        text = column_text(row.values, self.column)
        if not text.strip():
            raise BadRow("no-answer", f"column {self.column!r} is empty")
        return Conversation([], row.where, text=text)


@dataclass(frozen=True)
class QuestionAnswer(Layout):
    """Rows of a question and its answer, with optional columns around them.

    Answers in the history carry `loss: False`: these files hold every earlier turn as a row of its own.
    """

    name: str
    formats: tuple[str, ...]
    prompt: str
    response: str
    input: str | None = None
    history: str | None = None
    system: str | None = None
    tools: str | None = "tools"

    def fits(self, values: dict[str, Any]) -> bool:
        return self.prompt in values and self.response in values

    def read(self, row: Row) -> Conversation:
        values = row.values
        messages: list[dict[str, Any]] = []
        if self.system and (system := optional_text(values, self.system)):
            messages.append({"role": "system", "content": system})
        if self.history:
            messages += _history(values.get(self.history), self.history)
        question = column_text(values, self.prompt)
        if self.input and (more := optional_text(values, self.input)):
            question = f"{question}\n{more}"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": column_text(values, self.response)})
        tools = read_tools(values.get(self.tools), self.tools) if self.tools else None
        return Conversation(messages, row.where, tools)


# The first that fits is taken. `history`, `system` and `input` are optional in every row.
QUESTION_ANSWER = (
    QuestionAnswer("content/summary", ("content/summary", "adgen"), "content", "summary"),
    QuestionAnswer("prompt/response", ("prompt/response",), "prompt", "response", history="history", system="system"),
    QuestionAnswer(
        "instruction/input/output",
        ("instruction/input/output", "alpaca"),
        prompt="instruction",
        response="output",
        input="input",
        history="history",
        system="system",
    ),
    QuestionAnswer("context/target", ("context/target",), "context", "target"),
)


def renamed(layout: QuestionAnswer, columns: Columns) -> QuestionAnswer:
    """The layout with columns of other names, and a name that says so."""
    named = {role: columns[role] for role in ROLES if role in columns and role not in ("text", "messages")}
    if not named:
        return layout
    merged = {**layout.__dict__, **named}
    if {"prompt", "input", "response"} & set(named):
        shown = [merged["prompt"], *([merged["input"]] if "input" in named else []), merged["response"]]
        merged["name"] = "/".join(shown)
    return QuestionAnswer(**merged)


def column_text(values: dict[str, Any], column: str) -> str:
    """The text in a column.

    Raises:
        BadRow: there is no such column, or something else than text in it.
    """
    value = values.get(column)
    if isinstance(value, str):
        return value
    if column not in values:
        raise BadRow(
            "missing-column",
            f"no column {column!r} (this row has {keys_of(values)})",
            "Mend the row, or name the columns in data.columns.",
        )
    if value is None:
        raise BadRow("null-content", f"column {column!r} is null", "Mend or remove the row.")
    raise BadRow("wrong-type", f"column {column!r} must be text, not {kind_of(value)}", "Mend the row.")


def optional_text(values: dict[str, Any], column: str) -> str:
    """The text in a column that a row may do without; empty where it does (no such column, or null).

    Raises:
        BadRow: something else than text in it, be it 0, false or an empty list.
    """
    return "" if values.get(column) is None else column_text(values, column)


def keys_of(values: dict[str, Any]) -> str:
    """A row's keys in a sentence."""
    shown = ", ".join(repr(key) for key in list(values)[:12])
    return f"{shown}, ..." if len(values) > 12 else shown or "none"


def from_json(value: Any) -> Any:
    """A list or object that a file holds as JSON text (CSV can do no other); anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def read_tools(value: Any, column: str) -> list[Any] | None:
    """A list of tools, or JSON text of one; the entries stay as they are. None where there are none.

    Raises:
        BadRow: neither.
    """
    tools = from_json(value)
    if tools is None or (isinstance(tools, str) and not tools.strip()):
        return None
    if not isinstance(tools, list):
        raise BadRow("wrong-type", f"column {column!r} must be a list of tools, not {kind_of(tools)}")
    return tools or None


def _history(value: Any, column: str) -> list[dict[str, Any]]:
    turns = from_json(value)
    if turns is None or turns == "":
        return []
    if not isinstance(turns, list):
        raise BadRow("bad-history", f"column {column!r} must be a list of [question, answer] pairs")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise BadRow("bad-history", f"entry {number} of {column!r} is not a [question, answer] pair of texts")
        messages.append({"role": "user", "content": turn[0]})
        messages.append({"role": "assistant", "content": turn[1], "loss": False})
    return messages
