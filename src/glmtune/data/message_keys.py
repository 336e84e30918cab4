"""The keys and roles of messages in files: which are known, and which of them are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glmtune.data.row_format import is_empty

Message = dict[str, Any]

CONTENT_ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool", "observation", "function_call")},
    **{"function": "tool", "tool_call": "function_call", "tool_response": "observation"},  # the last two: ms-swift
}
"""Roles of messages with `role` and `content`."""
VALUE_ROLES = {
    **{"system": "system", "human": "user", "user": "user"},
    **{"function_call": "function_call", "tool_call": "function_call", "tool_response": "result"},
    **dict.fromkeys(("gpt", "assistant", "chatgpt"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "result"),
}
"""Roles of messages with `from` and `value`."""

_LOSS_KEYS = frozenset(("loss", "loss_weight", "weight"))
_CALL_KEYS = frozenset(("name", "parameters", "observation", "tool_call_id"))
# What is read of a message besides its role and content, by role.
_READ_KEYS = {
    "system": _LOSS_KEYS | {"tools", "functions"},
    "user": _LOSS_KEYS,
    "assistant": _LOSS_KEYS | {"tool_calls", "function_call", "metadata"},
    "function_call": _LOSS_KEYS,
    **dict.fromkeys(("tool", "observation", "result"), _LOSS_KEYS | _CALL_KEYS),
}


@dataclass(frozen=True)
class MessageKeys:
    """How messages are written: the keys of role and content, and the roles.

    Attributes:
        role: key of the role.
        content: key of the text.
        roles: roles in the file to roles of a `Conversation`, `function_call` or `result` (of a call).
    """

    role: str
    content: str
    roles: Mapping[str, str] = field(default_factory=dict)

    def list_unread_keys(self, messages: Sequence[Any]) -> list[str]:
        """The keys that hold something and are not read, without repetition."""
        found: dict[str, None] = {}
        for message in messages:
            if len(message) == 2 and self.role in message and self.content in message:  # nearly all messages
                continue
            name = message.get(self.role)
            read = _READ_KEYS.get(self.roles.get(name, "") if isinstance(name, str) else "", _LOSS_KEYS)
            for key in message.keys() - read - {self.role, self.content}:
                if not is_empty(message[key]):
                    found[key] = None
        return sorted(found)


ROLE_CONTENT = MessageKeys("role", "content", CONTENT_ROLES)
FROM_VALUE = MessageKeys("from", "value", VALUE_ROLES)


def find_message_keys(messages: Any) -> MessageKeys | None:
    """The usual keys that the first of some messages has; None if the value is not a list of messages."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        return None
    return next((keys for keys in (ROLE_CONTENT, FROM_VALUE) if keys.role in messages[0]), None)


def convert_to_role_content(message: Any) -> Any:
    """A message with `role` and `content`; one that has others than `from` and `value` is returned unchanged."""
    if not isinstance(message, dict) or "from" not in message or "role" in message:
        return message
    name = message["from"]
    role = VALUE_ROLES.get(name, name) if isinstance(name, str) else name
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    return {"role": "observation" if role == "result" else role, "content": message.get("value"), **rest}
