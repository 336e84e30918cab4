"""What a row becomes, whatever file and format it came from, and what is said of a row that cannot become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.errors import DataError

ROLES = ("system", "user", "assistant", "tool", "observation")
LEFT_OUT = frozenset({"broken-json", "broken-csv", "broken-line", "not-an-object"})
"""Faults that cost their line only: nothing of a row can be read there. All others stop the reading."""


@dataclass
class Conversation:
    """One row.

    Attributes:
        messages: dicts with `role` (one of `ROLES`), `content` (text) and an optional `loss` (false: not learnt).
            A `tool` message is a call with its result: `name`, `parameters` (a dict), `observation` (any JSON; absent
            when the conversation ends with the call) and an optional `loss`; it has no `content`.
        where: `file:line`, or `file:row N` where rows have no lines.
        tools: the tools the assistant may call, as the file gives them.
        text: a plain-text row, every token of which is learnt; `messages` is empty then.
        number: the row's number in its source, from 0; from `sources.weighted`, over all sources. A row that is taken
            again, because of a weight or a sample, has its number again; two rows never share one.
    """

    messages: list[dict[str, Any]]
    where: str
    tools: list[Any] | None = None
    text: str | None = None
    number: int = 0


@dataclass(slots=True)
class Row:
    """A parsed row of a file; `where` is its `file:line`."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Fault:
    """A row that is no conversation. `kind` is a short slug; `message` has no closing period."""

    where: str
    kind: str
    message: str
    hint: str | None = None

    @property
    def left_out(self) -> bool:
        """Whether the line is left out and listed rather than an error."""
        return self.kind in LEFT_OUT

    def error(self) -> DataError:
        """The fault as an error for the user."""
        return DataError(f"{self.where}: {self.message}.", self.hint)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class BadRow(Exception):
    """Raised inside the readers, which do not know where the row stands; becomes a `Fault`."""

    def __init__(self, kind: str, message: str, hint: str | None = None):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def at(self, where: str) -> Fault:
        """The fault of the row at `where`."""
        return Fault(where, self.kind, self.message, self.hint)


def check_order(messages: Sequence[dict[str, Any]]) -> None:
    """What every generation asks of a conversation; the rest is the family's to check.

    Raises:
        BadRow: no message, a system message that is not the first, or nobody answers.
    """
    if not messages:
        raise BadRow("no-messages", "the conversation has no messages")
    answered = False
    for number, message in enumerate(messages):
        role = message["role"]
        if role == "system" and number:
            raise BadRow(
                "role-order",
                f"message {number + 1} is a system message; only the first may be one",
                "Join the system messages, or make the later one the user's.",
            )
        answered = answered or role in ("assistant", "tool")
    if not answered:
        raise BadRow("no-answer", "no assistant's answer to learn", "Mend or remove the row.")


def kind_of(value: Any) -> str:
    """A JSON value's type in the user's words."""
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value)) or ("a number" if isinstance(value, (int, float)) else type(value).__name__)
