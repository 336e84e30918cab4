"""Rows in the column layouts these communities use, as conversations."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config import nearest
from glmtune.data.rows import Row, read_rows
from glmtune.errors import ConfigError, DataError

Columns = dict[str, str]
"""Role of a column (`prompt`, `response`, `input`, `history`, `system`) to its name in the file."""

ROLES = ("prompt", "input", "response", "history", "system")
# The first layout whose prompt and response columns both stand in the first row is taken.
LAYOUTS: dict[str, Columns] = {
    "content/summary": {"prompt": "content", "response": "summary"},
    "prompt/response": {"prompt": "prompt", "response": "response", "history": "history", "system": "system"},
    "instruction/input/output": {
        "prompt": "instruction",
        "input": "input",
        "response": "output",
        "history": "history",
        "system": "system",
    },
}


@dataclass
class Conversation:
    """Messages that end with the answer to be learnt, and the row they came from."""

    messages: list[dict[str, Any]]
    where: str
    tools: list | None = None


@dataclass
class Source:
    """A read data file."""

    path: Path
    layout: str
    conversations: list[Conversation]
    broken: list[str] = field(default_factory=list)


def read_source(path: str | Path, columns: Columns | None = None) -> Source:
    """Read a data file.

    Args:
        path: a `.json` or `.jsonl` file.
        columns: names of the columns by role, where they are not the usual ones.

    Raises:
        DataError: the file cannot be read, no layout fits, or a row lacks a column or holds something else than text.
        ConfigError: `columns` names a role that does not exist.
    """
    found = read_rows(path)
    layout, names = _choose_layout(found.rows[0], columns or {})
    return Source(
        Path(path),
        layout,
        [_conversation(row, names) for row in found.rows],
        found.broken,
    )


def _choose_layout(first: Row, columns: Columns) -> tuple[str, Columns]:
    for role in columns:
        if role not in ROLES:
            raise ConfigError(f"data.columns: no role {role!r}.", nearest(role, list(ROLES)))
    for name, usual in LAYOUTS.items():
        merged = {**usual, **columns}
        if merged["prompt"] in first.values and merged["response"] in first.values:
            return (name if not columns else "/".join((merged["prompt"], merged["response"]))), merged
    known = "; ".join(LAYOUTS)
    raise DataError(
        f"{first.where}: no known columns (this row has {', '.join(map(repr, first.values)) or 'none'}).",
        f"Known: {known}. Others: name them in data.columns, e.g. --set data.columns.prompt=question.",
    )


def _conversation(row: Row, names: Columns) -> Conversation:
    messages: list[dict[str, Any]] = []
    if "system" in names and row.values.get(names["system"]):
        messages.append({"role": "system", "content": _text(row, names["system"])})
    if "history" in names and row.values.get(names["history"]):
        messages += _history(row, names["history"])
    question = _text(row, names["prompt"])
    if "input" in names and row.values.get(names["input"]):
        question = f"{question}\n{_text(row, names['input'])}"
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text(row, names["response"])})
    return Conversation(messages, row.where)


def _history(row: Row, column: str) -> list[dict[str, Any]]:
    turns = row.values[column]
    if not isinstance(turns, list):
        raise DataError(f"{row.where}: column {column!r} must be a list of [question, answer] pairs.")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise DataError(f"{row.where}: entry {number} of {column!r} is not a [question, answer] pair of texts.")
        messages.append({"role": "user", "content": turn[0]})
        # Only the row's own response is learnt: the rows of the earlier turns stand in the file by themselves.
        messages.append({"role": "assistant", "content": turn[1], "loss": False})
    return messages


def _text(row: Row, column: str) -> str:
    if column not in row.values:
        raise DataError(
            f"{row.where}: no column {column!r} (this row has {', '.join(map(repr, row.values)) or 'none'}).",
            "Mend the row, or name the columns in data.columns.",
        )
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} must be text, not {type(value).__name__}.", "Mend the row.")
    return value
