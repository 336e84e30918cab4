"""Detect the format of rows, and convert rows with a list of messages (ChatGLM3, ShareGPT, OpenAI) to conversations.

The message formats differ in the names of keys and roles, and in how a tool call and its result are written: as one
message (ChatGLM3), as a call and a result one after the other (ShareGPT), or as a list of calls in an answer, followed
by the results (OpenAI). A `Conversation` has the first form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glmtune.config_parsing import suggest_key
from glmtune.data.column_formats import (
    COLUMN_FORMATS,
    COLUMN_ROLES,
    Columns,
    RowFormat,
    TextFormat,
    decode_json_text,
    get_optional_text,
    get_text,
    parse_tools,
    rename_columns,
)
from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, check_message_order, describe_type
from glmtune.errors import ConfigError

Message = dict[str, Any]

_ROLE_CONTENT = {
    **{role: role for role in ("system", "user", "assistant", "tool", "observation", "function_call")},
    "function": "tool",
}
_FROM_VALUE = {
    **{"system": "system", "human": "user", "user": "user", "function_call": "function_call"},
    **dict.fromkeys(("gpt", "assistant", "chatgpt"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "result"),
}
# LLaMA-Factory's settings for the keys and roles of a file, with our role for each.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "result",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *_ROLE_TAGS)


@dataclass(frozen=True)
class FormatOptions:
    """Settings of the user for the format of a source; all optional."""

    columns: Columns = field(default_factory=dict)
    format: str | None = None
    tags: Columns = field(default_factory=dict)


def list_formats(options: FormatOptions) -> list[RowFormat]:
    """List the formats that a source may have, the most specific first.

    Raises:
        ConfigError: an unknown column role, format or tag.
    """
    columns = options.columns
    for role, column in columns.items():
        if role not in COLUMN_ROLES:
            raise ConfigError(f"data.columns: unknown role {role!r}.", suggest_key(str(role), list(COLUMN_ROLES)))
        if not isinstance(column, str):
            raise ConfigError(f"data.columns.{role} must be the name of a column, not {column!r}.")
    for tag in options.tags:
        if tag not in TAGS:
            raise ConfigError(f"data tags: unknown tag {tag!r}.", suggest_key(str(tag), list(TAGS)))
    message_formats: list[RowFormat] = list(_make_message_formats(columns, options.tags))
    column_formats: list[RowFormat] = [rename_columns(row_format, columns) for row_format in COLUMN_FORMATS]
    text_formats: list[RowFormat] = [TextFormat(columns.get("text", "text"))]
    formats = [*message_formats, *column_formats, *text_formats]
    if options.format is not None:
        name = str(options.format)
        matches = [row_format for row_format in formats if name.lower() in row_format.formats]
        if not matches:
            names = sorted({name for row_format in formats for name in row_format.formats})
            raise ConfigError(f"data.format: unknown format {name!r}.", suggest_key(name, names))
        return matches
    if "messages" in columns or options.tags:
        return message_formats
    if "prompt" in columns or "response" in columns:
        return column_formats
    if "text" in columns:
        return text_formats
    return formats


def detect_format(formats: list[RowFormat], values: dict[str, Any]) -> RowFormat | None:
    """The first format that matches a row."""
    return next((row_format for row_format in formats if row_format.matches(values)), None)


def read_conversation(row_format: RowFormat, row: RawRow) -> Conversation:
    """Convert a row of a known format to a conversation, and check the order of its messages.

    Raises:
        InvalidRowError: the row is invalid.
    """
    conversation = row_format.parse_row(row)
    if conversation.text is None:
        check_message_order(conversation.messages)
    return conversation


@dataclass(frozen=True)
class MessageFormat(RowFormat):
    """A list of messages in one column."""

    cache_name = "Messages"

    name: str
    formats: tuple[str, ...]
    column: str
    role_key: str
    content_key: str
    roles: Mapping[str, str] = field(default_factory=dict)
    """Roles in the file to roles of a `Conversation`, `function_call` or `result` (of a call, or an observation)."""
    system: str = "system"
    tools: str = "tools"
    functions: str | None = None
    """Column of the tools in OpenAI's older files."""

    def matches(self, values: dict[str, Any]) -> bool:
        messages = decode_json_text(values.get(self.column))
        if not isinstance(messages, list) or not messages:
            return False
        return isinstance(messages[0], dict) and self.role_key in messages[0]

    def parse_row(self, row: RawRow) -> Conversation:
        values = row.values
        messages = decode_json_text(values.get(self.column))
        if not isinstance(messages, list):
            if messages is None:
                get_text(values, self.column)  # raises: the column is missing or null
            raise InvalidRowError(
                "wrong-type", f"column {self.column!r} must be a list of messages, not {describe_type(messages)}"
            )
        reader = _MessageReader(self)
        if system := get_optional_text(values, self.system):
            reader.messages.append({"role": "system", "content": system})
        for number, message in enumerate(messages, start=1):
            reader.add_message(number, message)

        converted = reader.finish()
        tools = parse_tools(values.get(self.tools), self.tools)
        functions = parse_tools(values.get(self.functions), self.functions) if self.functions else None
        if tools and functions:
            problem = f"columns {self.tools!r} and {self.functions!r} both list tools"
            raise InvalidRowError("two-tool-lists", problem, "Remove one of them.")
        return Conversation(converted, row.where, tools or functions)


def _make_message_formats(columns: Columns, tags: Columns) -> Iterator[MessageFormat]:
    """The message formats with the user's names."""
    message_columns = [columns["messages"]] if "messages" in columns else ["conversations", "messages"]
    role_columns = {role: columns[role] for role in ("system", "tools") if role in columns}
    functions = None if "tools" in columns else "functions"
    for column in message_columns:
        if tags:
            role_key, content_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
            roles = _FROM_VALUE if role_key == "from" else _ROLE_CONTENT
            roles = {**roles, **{tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}}
            name = f"{column} ({role_key}/{content_key})"
            formats: tuple[str, ...] = ("sharegpt", "openai", "conversations", "chatglm3")
            functions_column = None if role_key == "from" else functions
            yield MessageFormat(
                name, formats, column, role_key, content_key, roles, **role_columns, functions=functions_column
            )
            continue
        name = "OpenAI messages" if column == "messages" else f"{column} (role/content)"
        formats = ("conversations", "chatglm3", "openai")
        yield MessageFormat(
            name, formats, column, "role", "content", _ROLE_CONTENT, **role_columns, functions=functions
        )
        yield MessageFormat(
            "ShareGPT (from/value)", ("sharegpt",), column, "from", "value", _FROM_VALUE, **role_columns
        )


class _MessageReader:
    """Takes the messages of one row in order; `messages` holds the converted ones."""

    def __init__(self, row_format: MessageFormat):
        self.row_format = row_format
        self.messages: list[Message] = []
        self.pending_calls: list[tuple[Message, str | None]] = []
        """Calls whose result must follow, each with its id."""
        self.open_calls: list[Message] = []
        """ChatGLM3 calls without their result, which may follow or be left out."""
        self.has_result = False
        """Whether the result of one of them followed."""

    def add_message(self, number: int, message: Any) -> None:
        if not isinstance(message, dict):
            raise InvalidRowError("wrong-type", f"message {number} must be an object, not {describe_type(message)}")
        role = self._get_role(number, message)
        is_chatglm3_call = role == "tool" and (message.get("parameters") is not None or "observation" in message)
        is_result = role in ("tool", "observation", "result") and not is_chatglm3_call
        if self.pending_calls and is_result:
            self._add_result(number, message)
            return
        if self.pending_calls:
            name = self.pending_calls[0][0]["name"]
            raise InvalidRowError("bad-tool-call", f"the call of {name!r} has no result before message {number}")
        if self.open_calls and is_result:
            self.open_calls.pop(0)["observation"] = self._get_content(number, message)
            self.has_result = True
            return

        # No further result follows. All open calls may lack theirs; if only some do, it is not clear whose is missing.
        if self.open_calls and self.has_result:
            name = self.open_calls[0]["name"]
            raise InvalidRowError("bad-tool-call", f"the call of {name!r} has no result before message {number}")
        if not is_chatglm3_call:
            self.open_calls.clear()
        self.has_result = False

        if role == "function_call":
            self._add_calls(number, decode_json_text(message.get(self.row_format.content_key)), message)
        elif is_chatglm3_call:
            self._add_chatglm3_call(number, message)
        elif role == "tool":
            raise InvalidRowError(
                "bad-tool-call",
                f"message {number} is the result of a tool without a call before it",
                "A tool message has name, parameters and observation, or follows tool_calls.",
            )
        else:
            self._add_text(number, "observation" if role == "result" else role, message)

    def finish(self) -> list[Message]:
        """All messages. The last call may have no result: the call is what is trained on."""
        if len(self.pending_calls) > 1 or (self.pending_calls and self.pending_calls[0][0] is not self.messages[-1]):
            raise InvalidRowError("bad-tool-call", f"the call of {self.pending_calls[0][0]['name']!r} has no result")
        return self.messages

    def _get_role(self, number: int, message: Message) -> str:
        key, roles = self.row_format.role_key, self.row_format.roles
        name = message.get(key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is not None:
            return role
        if name is None:
            raise InvalidRowError("unknown-role", f"message {number} has no {key!r}")
        hint = suggest_key(str(name), list(roles))
        raise InvalidRowError("unknown-role", f"message {number}: unknown {key} {name!r}", hint)

    def _get_content(self, number: int, message: Message) -> str:
        key = self.row_format.content_key
        content = message.get(key)
        if isinstance(content, str):
            return content
        if isinstance(content, list):
            return "".join(_get_part_text(number, part) for part in content)
        if content is None:
            raise InvalidRowError("null-content", f"message {number} has no {key}", "Fix or remove the row.")
        problem = f"message {number}: {key} must be text, not {describe_type(content)}"
        raise InvalidRowError("wrong-type", problem, "Fix the row.")

    def _add_text(self, number: int, role: str, message: Message) -> None:
        calls = _get_tool_calls(number, message) if role == "assistant" else None
        if message.get(self.row_format.content_key) is not None or calls is None:
            text = self._get_content(number, message)
            if text or calls is None:
                self.messages.append({"role": role, "content": text, **_get_loss(number, message)})
                if isinstance(message.get("metadata"), str):
                    self.messages[-1]["metadata"] = message["metadata"]
        if calls is not None:
            self._add_calls(number, calls, message)

    def _add_calls(self, number: int, calls: Any, message: Message) -> None:
        calls = calls if isinstance(calls, list) else [calls]
        if not calls:
            raise InvalidRowError("bad-tool-call", f"message {number} calls no tool")
        for item in calls:
            if not isinstance(item, dict):
                raise InvalidRowError(
                    "bad-tool-call", f"message {number}: a tool call must be a JSON object with name, arguments"
                )
            function = item["function"] if isinstance(item.get("function"), dict) else item
            arguments = function.get("arguments", function.get("parameters"))
            call = _make_call(number, function.get("name"), arguments) | _get_loss(number, message)
            self.messages.append(call)
            self.pending_calls.append((call, item.get("id") if isinstance(item.get("id"), str) else None))

    def _add_result(self, number: int, message: Message) -> None:
        """Add a result to the call with its id, or without an id to the first call without a result."""
        call_id = message.get("tool_call_id")
        matches = [i for i, (_, pending) in enumerate(self.pending_calls) if pending is not None and pending == call_id]
        if call_id is not None and not matches and all(pending is not None for _, pending in self.pending_calls):
            raise InvalidRowError(
                "bad-tool-call", f"message {number} is the result of {call_id!r}, which was not called"
            )
        call, _ = self.pending_calls.pop(matches[0] if matches else 0)
        call["observation"] = self._get_content(number, message)

    def _add_chatglm3_call(self, number: int, message: Message) -> None:
        call = _make_call(number, message.get("name"), message.get("parameters"))
        observation = message.get("observation")
        if observation is None:
            observation = message.get(self.row_format.content_key)
        call |= _get_loss(number, message)
        self.messages.append(call)
        if observation is None:
            self.open_calls.append(call)
        else:
            call["observation"] = observation


def _get_tool_calls(number: int, message: Message) -> list[Any] | None:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise InvalidRowError(
            "bad-tool-call", f"message {number}: tool_calls must be a list, not {describe_type(calls)}"
        )
    if not calls and message.get("function_call") is not None:
        return [message["function_call"]]
    return calls or None


def _make_call(number: int, name: Any, arguments: Any) -> Message:
    if not isinstance(name, str) or not name:
        raise InvalidRowError("bad-tool-call", f"message {number}: the tool call has no name")
    # A call without arguments may have {}, an empty text, or nothing.
    parameters = {} if arguments is None or arguments == "" else decode_json_text(arguments)
    if not isinstance(parameters, dict):
        raise InvalidRowError("bad-tool-call", f"message {number}: the arguments of {name!r} are not a JSON object")
    return {"role": "tool", "name": name, "parameters": parameters}


def _get_part_text(number: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    name = part.get("type") if isinstance(part, dict) else describe_type(part)
    raise InvalidRowError("wrong-type", f"message {number}: content of type {name!r}; only text is supported")


def _get_loss(number: int, message: Message) -> dict[str, bool]:
    """The `loss` flag, if the message has one; OpenAI files have `weight: 0` for false."""
    loss = message.get("loss")
    if loss is None and message.get("weight") in (0, 1):
        loss = bool(message["weight"])
    if loss is None:
        return {}
    if not isinstance(loss, bool):
        raise InvalidRowError("wrong-type", f"message {number}: loss must be true or false, not {describe_type(loss)}")
    return {"loss": loss}
