"""Row formats with a question and its answer in columns, and plain text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from glmtune.data.conversation import Conversation, InvalidRowError, RawRow
from glmtune.data.row_format import (
    SYSTEM_COLUMNS,
    TOOLS_COLUMNS,
    Columns,
    RowFormat,
    get_optional_text,
    get_text,
    read_tools,
)
from glmtune.data.turn_history import exclude_answers, list_unread_history_keys, parse_history

COLUMN_ROLES = (
    *("prompt", "input", "response", "history", "system", "text", "messages", "tools"),
    *("chosen", "rejected", "label", "margin"),
)
_INPUT_COLUMNS = ("input",)
_HISTORY_COLUMNS = ("history",)


@dataclass(frozen=True)
class TextFormat(RowFormat):
    """Rows of plain text, for continued pre-training."""

    cache_name = "PlainText"

    column: str = "text"
    name: str = "text"
    formats: tuple[str, ...] = ("text",)

    def matches(self, values: dict[str, Any]) -> bool:
        return self.column in values

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.column,))

    def parse_row(self, row: RawRow) -> Conversation:
        text = get_text(row.values, self.column)
        if not text.strip():
            raise InvalidRowError("no-answer", f"column {self.column!r} is empty")
        return Conversation([], row.where, text=text)


@dataclass(frozen=True)
class ColumnFormat(RowFormat):
    """Rows of a question and its answer, with optional further columns, of which each may have one of several names.

    Answers in the history have `loss: False`: in these files every earlier turn is also a row of its own.
    """

    cache_name = "QuestionAnswer"

    name: str
    formats: tuple[str, ...]
    prompt: str
    response: str
    input: tuple[str, ...] = ()
    history: tuple[str, ...] = _HISTORY_COLUMNS
    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOLS_COLUMNS

    def matches(self, values: dict[str, Any]) -> bool:
        return self.prompt in values and self.response in values

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.prompt, self.response, *self.input, *self.history, *self.system, *self.tools))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        keys = (key for column in self.history for key in list_unread_history_keys(values.get(column)))
        return sorted(set(keys))

    def parse_row(self, row: RawRow) -> Conversation:
        values = row.values
        messages: list[dict[str, Any]] = []
        system = get_optional_text(values, self.system)
        for column in self.history:
            messages += exclude_answers(parse_history(values.get(column), column))
        if system:
            messages.insert(0, {"role": "system", "content": system})
        question = get_text(values, self.prompt)
        if self.input and (text := get_optional_text(values, self.input)):
            question = f"{question}\n{text}" if question.strip() else text
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": self._get_answer(values)})
        return Conversation(messages, row.where, read_tools(values, self.tools), keeps_question_start=True)

    def _get_answer(self, values: dict[str, Any]) -> str:
        answer = values.get(self.response)
        if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], str):
            return answer[0]
        return get_text(values, self.response)


def _make_format(prompt: str, response: str, input: tuple[str, ...] = (), alias: str = "") -> ColumnFormat:
    name = "/".join((prompt, *input[:1], response))
    return ColumnFormat(name, (name, alias) if alias else (name,), prompt, response, input)


# The first one that matches is used. All other columns are optional in every row.
COLUMN_FORMATS = (
    _make_format("content", "summary", alias="adgen"),
    _make_format("prompt", "response"),
    _make_format("instruction", "output", _INPUT_COLUMNS, "alpaca"),
    _make_format("context", "target"),
    _make_format("instruction", "response", (*_INPUT_COLUMNS, "context")),
    _make_format("instruction", "answer", _INPUT_COLUMNS),
    _make_format("query", "response"),
    _make_format("question", "answer"),
    _make_format("prompt", "completion"),
    _make_format("prompt", "output"),
    _make_format("prompt", "answer"),
    _make_format("question", "response"),
    _make_format("question", "output"),
    _make_format("query", "answer"),
    _make_format("input", "output"),
)
ANSWER_COLUMNS = tuple(dict.fromkeys(row_format.response for row_format in COLUMN_FORMATS))
"""Usual names of the answer's column."""


def rename_columns(row_format: ColumnFormat, columns: Columns) -> ColumnFormat:
    """The format with other column names, which its own name lists. Other columns keep their usual names."""
    roles = [role for role in ("prompt", "input", "response", "history", "system", "tools") if role in columns]
    if not roles:
        return row_format
    merged = {item.name: getattr(row_format, item.name) for item in fields(row_format)}
    for role in roles:
        merged[role] = columns[role] if role in ("prompt", "response") else (columns[role],)
    taken = {merged["prompt"], merged["response"]}
    if {"prompt", "response"} & set(roles):
        merged["input"] = merged["input"] or tuple(name for name in _INPUT_COLUMNS if name not in taken)
    if {"prompt", "input", "response"} & set(roles):
        names = [merged["prompt"], *(merged["input"] if "input" in roles else ()), merged["response"]]
        merged["name"] = "/".join(names)
    for role in ("input", "history", "system", "tools"):
        if role not in roles:
            merged[role] = tuple(name for name in merged[role] if name not in columns.values())
    return ColumnFormat(**merged)
