"""Row formats with a list of turns in one column: each turn is an object with a question and an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, describe_type
from glmtune.data.message_keys import ROLE_CONTENT, Message, convert_to_role_content, find_message_keys
from glmtune.data.message_reader import MessageReader
from glmtune.data.row_format import (
    SYSTEM_COLUMNS,
    TOOLS_COLUMNS,
    RowFormat,
    decode_json_text,
    get_optional_text,
    get_text,
    is_empty,
    read_tools,
)
from glmtune.data.turn_history import exclude_answers, find_turn_keys, list_unread_history_keys, parse_history

_MOSS_MARK = re.compile(r"^\s*<\|[A-Za-z ]+\|>:?\s?|\s*<eo[a-z]>\s*$")
_BOOKKEEPING_COLUMNS = frozenset(
    ("id", "idx", "index", "uid", "uuid", "conversation_id", "source", "dataset", "category", "type", "task", "lang")
)
_MOSS_TOOL_KEYS = ("Inner Thoughts", "Commands", "Tool Responses")


@dataclass(frozen=True)
class TurnsFormat(RowFormat):
    """A list of objects with a question and an answer each (Firefly, xtuner). Every answer is trained on."""

    cache_name = "Turns"

    column: str
    name: str
    formats: tuple[str, ...]
    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOLS_COLUMNS

    def matches(self, values: dict[str, Any]) -> bool:
        turns = decode_json_text(values.get(self.column))
        return isinstance(turns, list) and bool(turns) and find_turn_keys(turns[0]) is not None

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.column, *self.system, *self.tools))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        found: dict[str, None] = {}
        for turn in decode_json_text(values[self.column]):
            read = {*(find_turn_keys(turn) or ()), "system", "output_with_loss"}
            found.update((key, None) for key in turn.keys() - read if not is_empty(turn[key]))
        return sorted(found)

    def parse_row(self, row: RawRow) -> Conversation:
        turns = decode_json_text(row.values.get(self.column))
        if not isinstance(turns, list):
            if turns is None:
                get_text(row.values, self.column)  # raises: the column is missing or null
            problem = f"column {self.column!r} must be a list of turns, not {describe_type(turns)}"
            raise InvalidRowError("wrong-type", problem)
        messages: list[Message] = []
        if system := get_optional_text(row.values, self.system):
            messages.append({"role": "system", "content": system})
        for number, turn in enumerate(turns, start=1):
            messages += self._convert_turn(number, turn)
        return Conversation(messages, row.where, read_tools(row.values, self.tools))

    def _convert_turn(self, number: int, turn: Any) -> Iterator[Message]:
        keys = find_turn_keys(turn)
        if keys is None:
            names = ", ".join(map(repr, turn)) if isinstance(turn, dict) else describe_type(turn)
            problem = f"turn {number} of {self.column!r} has no question and answer (it has {names or 'nothing'})"
            raise InvalidRowError("bad-turn", problem)
        for key in keys:
            if not isinstance(turn[key], str):
                problem = f"turn {number} of {self.column!r}: {key} must be text, not {describe_type(turn[key])}"
                raise InvalidRowError("wrong-type", problem, "Fix the row.")
        if system := get_optional_text(turn, "system"):
            yield {"role": "system", "content": system}
        yield {"role": "user", "content": turn[keys[0]]}
        has_loss = turn.get("output_with_loss")  # xtuner's
        yield {"role": "assistant", "content": turn[keys[1]], **({} if has_loss in (None, True) else {"loss": False})}


@dataclass(frozen=True)
class MossFormat(RowFormat):
    """MOSS's rows: an object of turns by name (`turn_1`, `turn_2`), whose texts have marks around them."""

    cache_name = "Moss"

    column: str = "chat"
    name: str = "MOSS chat"
    formats: tuple[str, ...] = ("moss",)
    system: tuple[str, ...] = ("meta_instruction",)

    def matches(self, values: dict[str, Any]) -> bool:
        turns = decode_json_text(values.get(self.column))
        return isinstance(turns, dict) and any(re.fullmatch(r"turn_\d+", str(name)) for name in turns)

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.column, *self.system))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        turns = [turn for turn in decode_json_text(values[self.column]).values() if isinstance(turn, dict)]
        keys = {key for turn in turns for key in turn if not is_empty(turn[key])}
        return sorted(keys - {"Human", "MOSS", *_MOSS_TOOL_KEYS})

    def parse_row(self, row: RawRow) -> Conversation:
        turns = decode_json_text(row.values.get(self.column))
        if not isinstance(turns, dict):
            problem = f"column {self.column!r} must be an object of turns, not {describe_type(turns)}"
            raise InvalidRowError("wrong-type", problem)
        messages: list[Message] = []
        if system := get_optional_text(row.values, self.system):
            messages.append({"role": "system", "content": system.strip()})
        names = [name for name in turns if not is_empty(turns[name])]  # parquet has all names in every row
        for name in sorted(names, key=lambda name: int(re.sub(r"\D", "", name) or 0)):
            messages += self._convert_turn(name, turns[name])
        return Conversation(messages, row.where)

    def _convert_turn(self, name: str, turn: Any) -> Iterator[Message]:
        if not isinstance(turn, dict):
            raise InvalidRowError("bad-turn", f"{name} must be an object, not {describe_type(turn)}")
        for key in _MOSS_TOOL_KEYS:
            text = _strip_marks(get_optional_text(turn, key))
            if text and text != "None":
                problem = f"{name} has {key}: MOSS's own calls of tools have no equivalent here"
                raise InvalidRowError("bad-tool-call", problem, "Remove the row.")
        yield {"role": "user", "content": _strip_marks(get_text(turn, "Human"))}
        yield {"role": "assistant", "content": _strip_marks(get_text(turn, "MOSS"))}


@dataclass(frozen=True)
class PromptMessagesFormat(RowFormat):
    """A list of messages as the question, and the answer as text, a message or a list of messages in another column
    (TRL). Answers in the question are not trained on."""

    cache_name = "PromptMessages"

    prompt: str
    response: str
    name: str
    formats: tuple[str, ...] = ()
    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOLS_COLUMNS

    def matches(self, values: dict[str, Any]) -> bool:
        return self.response in values and find_message_keys(decode_json_text(values.get(self.prompt))) is not None

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.prompt, self.response, *self.system, *self.tools))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        return ROLE_CONTENT.list_unread_keys(self._join_messages(values))

    def parse_row(self, row: RawRow) -> Conversation:
        tools = read_tools(row.values, self.tools)
        joined = self._join_messages(row.values)
        reader = MessageReader(ROLE_CONTENT, tools)
        messages = reader.read_messages(joined)
        start = len(MessageReader(ROLE_CONTENT, tools).read_messages(joined[: self._count_prompt_messages(row.values)]))
        messages = [*exclude_answers(messages[:start]), *messages[start:]]
        if system := get_optional_text(row.values, self.system):
            messages.insert(0, {"role": "system", "content": system})
        return Conversation(messages, row.where, reader.tools)

    def _count_prompt_messages(self, values: dict[str, Any]) -> int:
        return len(decode_json_text(values[self.prompt]))

    def _join_messages(self, values: dict[str, Any]) -> list[Message]:
        answer = decode_json_text(values.get(self.response))
        if not isinstance(answer, (list, dict)):
            answer = {"role": "assistant", "content": get_text(values, self.response)}
        answers = answer if isinstance(answer, list) else [answer]
        return [convert_to_role_content(message) for message in (*decode_json_text(values[self.prompt]), *answers)]


@dataclass(frozen=True)
class HistoryFormat(RowFormat):
    """Rows with a history alone: a conversation of which every answer is trained on."""

    cache_name = "History"

    column: str = "history"
    name: str = "history"
    formats: tuple[str, ...] = ("history",)
    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOLS_COLUMNS

    def matches(self, values: dict[str, Any]) -> bool:
        turns = decode_json_text(values.get(self.column))
        known = self.get_columns() | _BOOKKEEPING_COLUMNS
        # Beside unknown columns, a history is only a part of the row.
        return isinstance(turns, list) and bool(turns) and values.keys() <= known

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.column, *self.system, *self.tools))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        return list_unread_history_keys(values.get(self.column))

    def parse_row(self, row: RawRow) -> Conversation:
        messages = parse_history(row.values.get(self.column), self.column)
        if system := get_optional_text(row.values, self.system):
            messages.insert(0, {"role": "system", "content": system})
        return Conversation(messages, row.where, read_tools(row.values, self.tools))


def _strip_marks(text: str) -> str:
    """The text without `<|Human|>:` before it and `<eoh>` after it."""
    return _MOSS_MARK.sub("", text).strip()
