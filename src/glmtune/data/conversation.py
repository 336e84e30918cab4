"""Conversations and rows: what the readers of data files produce, and errors of rows that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glmtune.errors import DataError

LEFT_OUT = "left-out"
"""Kind of rows that a user leaves out."""
SKIPPED_KINDS = frozenset({"broken-json", "broken-csv", "broken-line", "not-an-object", "same-answers", LEFT_OUT})
"""Kinds of invalid lines that are skipped. Every other kind, except `WORSE_ANSWER`, stops the reading."""
WORSE_ANSWER = "worse-answer"
"""Kind of rows with a worse answer alone (`label: false`), which `data.preference: chosen` leaves out."""
PREFERENCE_HINT = "To train on both answers: --stage dpo; on the better answers alone: --set data.preference=chosen"
"""What to do with preference rows."""


@dataclass
class Conversation:
    """One row of a data set.

    Attributes:
        messages: dicts with `role` (system, user, assistant, tool or observation), `content` (text) and an optional
            `loss` (without it, assistant and tool messages are trained on, and no others). A `tool` message is a call
            with its result: `name`, `parameters` (a dict), `observation` (any JSON value; absent if the conversation
            ends with the call), an optional `loss` of the call and `observation_loss` of the result; it has no
            `content`.
        where: `file:line`, or `file:row N` where rows have no lines.
        tools: the tools the assistant may call, as in the file.
        text: a plain-text row, trained on completely; `messages` is empty then.
        number: of the row in its source, from 0; from `sources.sample_sources`, over all sources. A repeated row (by a
            weight or a sample) keeps its number; different rows have different numbers.
        keeps_question_start: whether an over-long last question loses its end, as in the official code for files with a
            column of questions. In a conversation it loses its start.
        unread_columns: columns of the row that hold something and are not read.
        unread_message_keys: such keys of its messages.
        rejected: of a pair, the same conversation with the worse answer.
        margin: of a pair, how much better the better answer is.
        is_desirable: of an answer with a label, whether it is good.
        is_better_answer: whether it is a preference row, of which the better answer alone is read.
        reference: of a row that is read as a question, its answer, or what it has in column `reference`.
        columns: all columns of such a row but `reference`, as in the file.
    """

    messages: list[dict[str, Any]]
    where: str
    tools: list[Any] | None = None
    text: str | None = None
    number: int = 0
    keeps_question_start: bool = False
    unread_columns: tuple[str, ...] = ()
    unread_message_keys: tuple[str, ...] = ()
    rejected: Conversation | None = None
    margin: float = 0.0
    is_desirable: bool | None = None
    is_better_answer: bool = False
    reference: Any = None
    columns: dict[str, Any] | None = None


@dataclass(slots=True)
class RawRow:
    """A parsed row of a file; `where` is its `file:line`."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class InvalidRow:
    """A row that cannot become a conversation.

    Attributes:
        where: `file:line`.
        kind: a short slug.
        message: what is wrong, without a period at the end.
        hint: how to fix it.
    """

    where: str
    kind: str
    message: str
    hint: str | None = None

    @property
    def is_skipped(self) -> bool:
        """Whether the line is skipped and listed; otherwise it is an error."""
        return self.kind in SKIPPED_KINDS or self.kind == WORSE_ANSWER

    def to_error(self) -> DataError:
        """The error to raise for this row."""
        return DataError(f"{self.where}: {self.message}.", self.hint)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class InvalidRowError(Exception):
    """Raised by code that does not know the file and line of a row; becomes an `InvalidRow`."""

    def __init__(self, kind: str, message: str, hint: str | None = None):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint

    def to_invalid_row(self, where: str) -> InvalidRow:
        """The same with the `file:line` of the row."""
        return InvalidRow(where, self.kind, self.message, self.hint)


def check_message_order(messages: Sequence[dict[str, Any]]) -> None:
    """Check what all generations require of a conversation.

    Raises:
        InvalidRowError: no message, a system message that is not the first, or no answer.
    """
    if not messages:
        raise InvalidRowError("no-messages", "the conversation has no messages")
    for number, message in enumerate(messages):
        if message["role"] == "system" and number:
            raise InvalidRowError(
                "role-order",
                f"message {number + 1} is a system message; only the first message may be one",
                "Join the system messages, or change the role of the later one to user.",
            )
    if not any(message["role"] in ("assistant", "tool") for message in messages):
        raise InvalidRowError("no-answer", "no answer of the assistant to train on", "Fix or remove the row.")


def describe_type(value: Any) -> str:
    """The type of a JSON value in words: "text", "a list", "an object"."""
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value)) or ("a number" if isinstance(value, (int, float)) else type(value).__name__)
