"""Columns and keys of messages that are present and not read: counted and named, or refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from glmtune.data.conversation import Conversation, InvalidRowError

_MEDIA_KEYS = frozenset(
    ("image", "images", "video", "videos", "audio", "audios", "pixel_values", "image_url", "image_urls")
)
_LOSS_KEYS = frozenset(("loss", "loss_weight", "loss_mask", "loss_scale", "mask", "train", "trainable", "train_detail"))
_RANKING_KEYS = frozenset(("ranking", "rankings", "rejected", "chosen", "kto_tag"))
# In a message, these have another effect by the role of the message, which a message of another role does not have.
_CALL_KEYS = frozenset(("tools", "functions", "tool_calls", "function_call"))
_MAX_KEYS = 12
# Sources have at most so many keys counted: a file of one object per name would otherwise fill the memory.
_MAX_COUNTED = 1000


@dataclass
class UnreadKeys:
    """Columns and keys of messages that were present and not read in the rows of a source.

    Attributes:
        columns: number of rows by column.
        message_keys: number of rows by key.
        where: `file:line` of the first such row.
        row: its number in the source, from 1.
    """

    columns: Counter[str] = field(default_factory=Counter)
    message_keys: Counter[str] = field(default_factory=Counter)
    where: str = ""
    row: int = 0

    def add_row(self, conversation: Conversation, row: int = 1) -> None:
        """Count the keys of a row; `row` is its number."""
        if not conversation.unread_columns and not conversation.unread_message_keys:
            return
        if not self.where:
            self.where, self.row = conversation.where, row
        for counter, keys in (
            (self.columns, conversation.unread_columns),
            (self.message_keys, conversation.unread_message_keys),
        ):
            counter.update(key for key in keys if key in counter or len(counter) < _MAX_COUNTED)

    def describe(self) -> str:
        """All keys with their numbers of rows; empty if there are none."""
        columns, keys = _list_counts(self.columns), _list_counts(self.message_keys)
        parts = [*([columns] if columns else []), *([f"in messages: {keys}"] if keys else [])]
        return f"not used: {'; '.join(parts)}" if parts else ""


def describe_unread_keys(conversation: Conversation) -> str:
    """The keys of one row that are not read; empty if there are none."""
    unread = UnreadKeys()
    unread.add_row(conversation)
    columns, keys = ", ".join(unread.columns), ", ".join(unread.message_keys)
    parts = [*([columns] if columns else []), *([f"in messages: {keys}"] if keys else [])]
    return f"not used: {'; '.join(parts)}" if parts else ""


def refuse_learning_keys(values: dict[str, Any], columns: list[str], message_keys: list[str]) -> None:
    """Refuse a row with unread keys that would change what is trained on.

    Args:
        values: of the row.
        columns: its unread columns.
        message_keys: unread keys of its messages.

    Raises:
        InvalidRowError: there is such a key.
    """
    for column in columns:
        # `loss: true` and a weight of 1 are what happens anyway.
        if column in _LOSS_KEYS and values[column] is not True and values[column] != 1:
            raise _make_error(f"column {column!r}", "losses are given per message", "Give messages with loss: false.")
        _refuse_media_and_ranking(f"column {column!r}", column)
    for key in message_keys:
        if key in _LOSS_KEYS:
            raise _make_error(
                f"key {key!r} of a message", "a message has loss: true or false", f"Rename {key} to loss."
            )
        if key in _CALL_KEYS:
            place = "the row or its system message" if key in ("tools", "functions") else "messages of the assistant"
            raise _make_error(f"key {key!r} of a message", f"{key} belongs to {place}", "Move it there.")
        _refuse_media_and_ranking(f"key {key!r} of a message", key)


def _refuse_media_and_ranking(place: str, key: str) -> None:
    if key in _MEDIA_KEYS:
        raise _make_error(place, "only text is trained on", "Remove it from the rows that do not need it.")
    if key in _RANKING_KEYS:
        raise _make_error(place, "answers are not ranked", "Remove it, or the row.")


def _make_error(place: str, reason: str, hint: str) -> InvalidRowError:
    problem = f"{place} changes what is trained on and is not supported: {reason}"
    return InvalidRowError("key-not-supported", problem, hint)


def _list_counts(counter: Counter[str]) -> str:
    names = [f"{key} ({count:,})" for key, count in counter.most_common(_MAX_KEYS)]
    more = [f"{len(counter) - _MAX_KEYS} more"] if len(counter) > _MAX_KEYS else []
    return ", ".join([*names, *more])
