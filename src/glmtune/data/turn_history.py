"""Turns of a question and an answer, as columns of earlier turns and lists of turns hold them."""

from __future__ import annotations

from typing import Any

from glmtune.data.conversation import InvalidRowError
from glmtune.data.message_keys import Message, find_message_keys
from glmtune.data.message_reader import MessageReader
from glmtune.data.row_format import decode_json_text, is_empty

TURN_KEYS = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("human", "gpt"),
    ("input", "output"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("q", "a"),
    ("Human", "MOSS"),
)
"""Keys of the question and the answer in a turn that is an object."""


def find_turn_keys(turn: Any) -> tuple[str, str] | None:
    """The keys of question and answer of a turn; None if it is not an object with a known pair."""
    if not isinstance(turn, dict):
        return None
    return next((keys for keys in TURN_KEYS if keys[0] in turn and keys[1] in turn), None)


def parse_history(value: Any, column: str) -> list[Message]:
    """Parse earlier turns: pairs, objects with a question and an answer, one flat list of both in turn, or messages.

    Args:
        value: of the column, which may be JSON text.
        column: its name, for errors.

    Returns:
        Messages without loss flags, apart from those of the file.

    Raises:
        InvalidRowError: another form.
    """
    turns = decode_json_text(value)
    if turns is None or turns == "":
        return []
    if not isinstance(turns, list):
        raise InvalidRowError("bad-history", f"column {column!r} must be a list of [question, answer] pairs")
    keys = find_message_keys(turns)
    if keys is not None:
        return MessageReader(keys).read_messages(turns)
    if turns and all(isinstance(turn, str) for turn in turns):
        if len(turns) % 2:
            problem = f"column {column!r} has {len(turns)} texts, not a question and an answer in turn"
            raise InvalidRowError("bad-history", problem)
        turns = [list(pair) for pair in zip(turns[::2], turns[1::2], strict=True)]
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        turn_keys = find_turn_keys(turn)
        if turn_keys is not None:
            turn = [turn[key] for key in turn_keys]
        texts = [_convert_number(part) for part in turn] if isinstance(turn, list) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise InvalidRowError(
                "bad-history", f"entry {number} of {column!r} is not a [question, answer] pair of texts"
            )
        messages.append({"role": "user", "content": texts[0]})
        messages.append({"role": "assistant", "content": texts[1]})
    return messages


def list_unread_history_keys(value: Any) -> list[str]:
    """The keys in a valid column of earlier turns that hold something and are not read, without repetition."""
    turns = decode_json_text(value)
    if not isinstance(turns, list):
        return []
    keys = find_message_keys(turns)
    if keys is not None:
        return keys.list_unread_keys(turns)
    found: dict[str, None] = {}
    for turn in turns:
        read = find_turn_keys(turn)
        if read is not None and len(turn) > len(read):
            found.update((key, None) for key in turn if key not in read and not is_empty(turn[key]))
    return sorted(found)


def exclude_answers(messages: list[Message]) -> list[Message]:
    """The messages with `loss: False` on every answer and call that has no flag of its own."""
    return [{"loss": False, **m} if m["role"] in ("assistant", "tool") else m for m in messages]


def _convert_number(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else value
