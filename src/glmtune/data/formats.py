"""Detect the format of rows, and convert rows with a list of messages (ChatGLM3, ShareGPT, OpenAI) to conversations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from glmtune.config_parsing import suggest_key
from glmtune.data.column_formats import COLUMN_FORMATS, COLUMN_ROLES, TextFormat, rename_columns
from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, check_message_order, describe_type
from glmtune.data.message_keys import CONTENT_ROLES, FROM_VALUE, ROLE_CONTENT, VALUE_ROLES, MessageKeys
from glmtune.data.message_reader import MessageReader
from glmtune.data.preference_rows import make_preference_format
from glmtune.data.prompt_rows import list_question_formats
from glmtune.data.row_format import (
    SYSTEM_COLUMNS,
    TOOLS_COLUMNS,
    Columns,
    RowFormat,
    decode_json_text,
    get_optional_text,
    get_text,
    read_tools,
)
from glmtune.data.turn_formats import HistoryFormat, MossFormat, PromptMessagesFormat, TurnsFormat
from glmtune.data.unread_keys import refuse_learning_keys
from glmtune.errors import ConfigError

# LLaMA-Factory's settings for the keys and roles of a file, with our role for each.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "result",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *_ROLE_TAGS)

Preference = Literal["refuse", "chosen", "pairs", "labels", "prompts"]
"""What is done with preference rows: refuse them, train on their better answer, read both answers, or answers with a
label. `prompts`: rows of every kind are read as questions."""


@dataclass(frozen=True)
class FormatOptions:
    """Settings of the user for the format of a source; all optional."""

    columns: Columns = field(default_factory=dict)
    format: str | None = None
    tags: Columns = field(default_factory=dict)
    preference: Preference = "refuse"


def list_formats(options: FormatOptions) -> list[RowFormat]:
    """List the formats that a source may have, the most specific first.

    The first one is always that of preference rows: their columns are often those of another format and two more.

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
    formats = _select_formats(options)
    named = {role: (columns[role],) for role in ("system", "tools") if role in columns}
    messages = MessageFormat("OpenAI messages", (), "messages", ROLE_CONTENT, **named)
    keys = make_message_keys(options.tags) if options.tags else None
    uses_chosen = options.preference in ("chosen", "prompts")  # the better answer of a question is its reference
    reading = [uses_chosen, options.preference == "pairs", options.preference == "labels"]
    preference_format = make_preference_format(formats, columns, *reading, messages=messages, keys=keys)
    if options.preference == "prompts":  # a label belongs to an answer, which is not used
        preference_format = replace(preference_format, label=())
    return [preference_format, *formats]


def _select_formats(options: FormatOptions) -> list[RowFormat]:
    """The formats that the options allow, without that of preference rows."""
    columns, tags = options.columns, options.tags
    columns_of_pairs = [rename_columns(row_format, columns) for row_format in COLUMN_FORMATS]
    message_formats: list[RowFormat] = list(_make_message_formats(columns, tags))
    column_formats: list[RowFormat] = [
        *(PromptMessagesFormat(pair.prompt, pair.response, pair.name) for pair in columns_of_pairs),
        *columns_of_pairs,
        *(list_question_formats(columns_of_pairs) if options.preference == "prompts" else ()),
    ]
    text_formats: list[RowFormat] = [TextFormat(columns.get("text", "text"))]
    history = HistoryFormat(columns["history"]) if "history" in columns else HistoryFormat()
    formats = [*message_formats, MossFormat(), *column_formats, *text_formats, history]
    if options.format is not None:
        name = str(options.format)
        matches = [row_format for row_format in formats if name.lower() in row_format.formats]
        if not matches:
            names = sorted({name for row_format in formats for name in row_format.formats})
            raise ConfigError(f"data.format: unknown format {name!r}.", suggest_key(name, names))
        return matches
    if "messages" in columns or tags:
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
    """Convert a row of a known format to a conversation, check the order of its messages, and list what is not read.

    Raises:
        InvalidRowError: the row is invalid, or has an unread key that changes what is trained on.
    """
    conversation = row_format.parse_row(row)
    columns = row_format.list_unread_columns(row.values)
    message_keys = row_format.list_unread_message_keys(row.values)
    if columns or message_keys:
        refuse_learning_keys(row.values, columns, message_keys)
        conversation.unread_columns = tuple(columns)
        conversation.unread_message_keys = tuple(message_keys)
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
    keys: MessageKeys
    system: tuple[str, ...] = SYSTEM_COLUMNS
    tools: tuple[str, ...] = TOOLS_COLUMNS

    def matches(self, values: dict[str, Any]) -> bool:
        messages = decode_json_text(values.get(self.column))
        if not isinstance(messages, list) or not messages:
            return False
        return isinstance(messages[0], dict) and self.keys.role in messages[0]

    def get_columns(self) -> frozenset[str]:
        return frozenset((self.column, *self.system, *self.tools))

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        return self.keys.list_unread_keys(decode_json_text(values[self.column]))

    def parse_row(self, row: RawRow) -> Conversation:
        values = row.values
        messages = decode_json_text(values.get(self.column))
        if not isinstance(messages, list):
            if messages is None:
                get_text(values, self.column)  # raises: the column is missing or null
            raise InvalidRowError(
                "wrong-type", f"column {self.column!r} must be a list of messages, not {describe_type(messages)}"
            )
        system = get_optional_text(values, self.system)
        tools = read_tools(values, self.tools)
        reader = MessageReader(self.keys, tools)
        if system:
            reader.messages.append({"role": "system", "content": system})
        converted = reader.read_messages(messages)
        return Conversation(converted, row.where, reader.tools)


def _make_message_formats(columns: Columns, tags: Columns) -> Iterator[RowFormat]:
    """The message formats with the user's names."""
    message_columns = [columns["messages"]] if "messages" in columns else ["conversations", "messages", "conversation"]
    names = {role: (columns[role],) for role in ("system", "tools") if role in columns}
    for column in message_columns:
        if tags:
            keys = make_message_keys(tags)
            name = f"{column} ({keys.role}/{keys.content})"
            formats: tuple[str, ...] = ("sharegpt", "openai", "conversations", "chatglm3")
            yield MessageFormat(name, formats, column, keys, **names)
            continue
        name = "OpenAI messages" if column == "messages" else f"{column} (role/content)"
        yield MessageFormat(name, ("conversations", "chatglm3", "openai"), column, ROLE_CONTENT, **names)
        yield MessageFormat("ShareGPT (from/value)", ("sharegpt",), column, FROM_VALUE, **names)
        yield TurnsFormat(column, f"{column} (turns)", ("turns",), **names)


def make_message_keys(tags: Columns) -> MessageKeys:
    """The keys and roles that LLaMA-Factory's `tags` name."""
    role_key, content_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = VALUE_ROLES if role_key == "from" else CONTENT_ROLES
    roles = {**roles, **{tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}}
    return MessageKeys(role_key, content_key, roles)
