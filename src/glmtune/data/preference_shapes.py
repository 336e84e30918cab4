"""Ways to write a question and its two answers, as the columns and lists of messages that the other formats read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from glmtune.data.message_keys import CONTENT_ROLES, Message, MessageKeys, convert_to_role_content
from glmtune.data.row_format import decode_json_text

# Anthropic's files have whole conversations as text, or the question with the mark of the answer at its end.
_TRANSCRIPT_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):(?: |$)?")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}


def normalize_pair(
    values: dict[str, Any], questions: Iterable[str], answers: Iterable[str], keys: MessageKeys | None = None
) -> dict[str, Any]:
    """Rewrite the parts of a preference row that are written in a way of their own; all others stay as they are.

    - `input: {"messages": [...], "tools": [...]}` (OpenAI's preference files): as columns.
    - A question that is one message: as a list of it.
    - Messages with keys of their own, with `from` and `value`, with `role: human`, or `text` in place of `content`.
    - `\\n\\nHuman: ...\\n\\nAssistant: ...` (Anthropic's hh-rlhf), in the question or in the answers: as messages.

    Args:
        values: of the row.
        questions: names of columns that may hold the question.
        answers: names of columns with one of the two answers.
        keys: of messages, if they are not the usual ones.
    """
    role_keys = {"role", "from", keys.role if keys else "role"}
    values = _spread_input(values)
    changed: dict[str, Any] = {}
    is_transcript = False
    for name in (*questions, *answers):
        value = decode_json_text(values.get(name))
        if isinstance(value, str):
            text, value = value, split_transcript(value)
            is_transcript |= bool(value)
            if is_transcript and not value:
                changed[name] = text.strip()  # an answer, after "Assistant:" and a space
        elif isinstance(value, dict) and not role_keys.isdisjoint(value):
            value = [value]
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            changed[name] = [_convert_message(item, keys) for item in value]
    return {**values, **changed} if changed else values


def split_transcript(text: str) -> list[Message]:
    """The messages of a conversation written as `Human: ...` and `Assistant: ...`, without an empty answer at its end;
    empty for other texts."""
    parts = _TRANSCRIPT_MARK.split(text)
    if len(parts) < 5 or parts[0].strip():
        return []
    names, contents = parts[1::2], [content.strip() for content in parts[2::2]]
    messages = [
        {"role": _TRANSCRIPT_ROLES[name], "content": content} for name, content in zip(names, contents, strict=True)
    ]
    return messages[:-1] if names[-1] == "Assistant" and not contents[-1] else messages


def _spread_input(values: dict[str, Any]) -> dict[str, Any]:
    question = decode_json_text(values.get("input"))
    if not isinstance(question, dict) or not isinstance(question.get("messages"), list):
        return values
    rest = {name: value for name, value in values.items() if name != "input"}
    used = ("messages", "tools", "functions")
    others = {f"input.{name}": value for name, value in question.items() if name not in used}
    return {**rest, **{name: question[name] for name in used if name in question}, **others}


def _convert_message(message: Message, keys: MessageKeys | None) -> Message:
    if keys is not None and keys.role in message:
        name = message[keys.role]
        role = keys.roles.get(name, name) if isinstance(name, str) else name
        rest = {key: value for key, value in message.items() if key not in (keys.role, keys.content)}
        role = "observation" if role == "result" else role
        return {**rest, "role": role, "content": message.get(keys.content)}
    message = dict(convert_to_role_content(message))
    role = message.get("role")
    if isinstance(role, str) and role in _ROLES:
        message["role"] = _ROLES[role]
    if isinstance(message.get("text"), str) and "content" not in message:
        message["content"] = message.pop("text")
    return message


def read_question(messages: Any) -> list[Message]:
    """The messages of a column up to the last question: an answer after it is that of the row, given twice."""
    question = [convert_to_role_content(message) for message in decode_json_text(messages)]
    while len(question) > 1 and isinstance(question[-1], dict) and _is_answer(question[-1]):
        question.pop()
    return question


def _is_answer(message: Message) -> bool:
    """Whether it is the assistant's: text, or a call without its result."""
    role = message.get("role")
    is_call = role == "tool" and message.get("parameters") is not None and message.get("observation") is None
    return is_call or (isinstance(role, str) and CONTENT_ROLES.get(role) in ("assistant", "function_call"))
