"""Repair rows: one function for each kind of finding that has an obvious repair, over a row as it is in its file.

A repair never guesses what a person meant to write: it leaves out what is empty or unreadable, joins what is split, and
renames what is misspelt. Whoever applies one reads the result again, and checks it.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from glmtune.data.check_kinds import is_blank, remove_special_tokens
from glmtune.data.message_keys import Message, MessageKeys, find_message_keys
from glmtune.data.mojibake import find_mojibake, repair_mojibake
from glmtune.data.row_format import decode_json_text
from glmtune.data.turn_history import find_turn_keys

Values = dict[str, Any]
TRIM = "trim"
"""Name of the repair without a finding: white space and invisible characters at the ends of texts."""
MAX_LITERAL = 200_000
"""Maximum number of characters of a line that is read as a Python literal."""

_INVISIBLE = "\ufeff\u200b\u2060\u00ad"
"""Byte order mark, zero-width space, word joiner, soft hyphen: no text begins or ends with them on purpose."""
_ROLE_NAMES = {
    "user": ("user", "human", "usr", "customer", "client", "question", "q", "用户", "问", "人类"),
    "assistant": (
        "assistant",
        "gpt",
        "bot",
        "ai",
        "model",
        "chatgpt",
        "chatglm",
        "answer",
        "a",
        "助手",
        "答",
        "机器人",
    ),
    "system": ("system", "sys", "系统"),
    "observation": ("observation", "tool_result", "tool_output", "function_result"),
}
_MIN_NAME_SIMILARITY = 0.75


@dataclass(frozen=True)
class RepairScope:
    """What repairs need to know of a source.

    Attributes:
        columns: that hold texts.
        keys: of messages, if they are not the usual ones.
    """

    columns: frozenset[str] = frozenset()
    keys: MessageKeys | None = None

    def find_keys(self, messages: Any) -> MessageKeys | None:
        """The keys of a list of messages; None for any other value."""
        is_own = self.keys is not None and isinstance(messages, list) and messages and isinstance(messages[0], dict)
        if is_own and self.keys is not None and self.keys.role in messages[0]:
            return self.keys
        return find_message_keys(messages)


Repair = Callable[[Values, RepairScope], Values]
"""Makes the repaired row; the same values where there is nothing that it can repair."""
_Change = Callable[[list[Message], MessageKeys], list[Message]]


def remove_replacement_characters(values: Values, scope: RepairScope) -> Values:
    """Remove U+FFFD from all texts."""
    return _map_texts(values, lambda text: text.replace("\ufffd", ""))


def decode_texts_again(values: Values, scope: RepairScope) -> Values:
    """Reverse a wrong decoding, where that gives text without loss."""
    return _map_texts(values, lambda text: repair_mojibake(text) if find_mojibake(text) is not None else text)


def remove_tokens(values: Values, scope: RepairScope) -> Values:
    """Remove special tokens that are typed in texts."""
    return _map_texts(values, remove_special_tokens)


def trim_texts(values: Values, scope: RepairScope) -> Values:
    """Remove white space and invisible characters at both ends of texts."""
    return _map_texts(values, _trim)


def drop_empty_turns(values: Values, scope: RepairScope) -> Values:
    """Leave out the turns whose question or answer is empty; of a row of one turn there would be nothing left."""
    return _drop_empty_pairs(_map_messages(values, scope, _drop_empty_messages), scope)


def join_messages(values: Values, scope: RepairScope) -> Values:
    """Join messages of the same role that follow each other, by a line break."""
    return _map_messages(values, scope, _join_messages)


def drop_first_answers(values: Values, scope: RepairScope) -> Values:
    """Leave out what the assistant says before the first question."""
    return _map_messages(values, scope, _drop_first_answers)


def drop_unanswered_end(values: Values, scope: RepairScope) -> Values:
    """Leave out the messages after the last answer."""
    return _map_messages(values, scope, _drop_unanswered_end)


def rename_roles(values: Values, scope: RepairScope) -> Values:
    """Write known names of roles in place of other and misspelt ones."""
    return _map_messages(values, scope, _rename_roles)


def join_system_messages(values: Values, scope: RepairScope) -> Values:
    """Join later system messages with the first, at the start of the row."""
    return _map_messages(values, scope, _join_system_messages)


def convert_numbers(values: Values, scope: RepairScope) -> Values:
    """Write numbers in the place of texts as texts."""
    columns = {name: _convert_number(value) if name in scope.columns else value for name, value in values.items()}
    return _map_messages(columns, scope, _convert_numbers)


REPAIRS: dict[str, Repair] = {
    "mojibake": decode_texts_again,
    "replacement-character": remove_replacement_characters,
    "special-token": remove_tokens,
    "wrong-type": convert_numbers,
    "unknown-role": rename_roles,
    "null-content": drop_empty_turns,
    "empty-answer": drop_empty_turns,
    "empty-question": drop_empty_turns,
    "role-order": join_system_messages,
    "assistant-first": drop_first_answers,
    "no-final-answer": drop_unanswered_end,
    "same-role-twice": join_messages,
}
"""Repairs by the kind of finding, in the order in which they are applied."""
LINE_REPAIRS = ("broken-json",)
"""Kinds of findings whose line is read anew by `parse_literal`."""
REPAIRABLE = (*LINE_REPAIRS, *REPAIRS)
"""All kinds with a repair."""


def parse_literal(line: str | None) -> Values | None:
    """Read a line that is no JSON but a Python literal, or has a comma too many: `{'a': 'b', "c": true,}`.

    Returns:
        The object; None for anything else.
    """
    if not line or len(line) > MAX_LITERAL or "\\/" in line or "\\u" in line:  # escapes that Python reads otherwise
        return None
    try:
        value = _evaluate(ast.parse(line.strip(" \t\r\n\ufeff,"), mode="eval").body)
        json.dumps(value).encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


def _evaluate(node: ast.expr) -> Any:
    """The value of a literal with JSON's names among Python's."""
    names = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.Dict):
        keys = [_evaluate(key) if key is not None else None for key in node.keys]
        if len(set(map(str, keys))) < len(keys) or not all(isinstance(key, str) for key in keys):
            raise ValueError("keys that are no texts, or twice the same")
        return dict(zip(keys, map(_evaluate, node.values), strict=True))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluate(item) for item in node.elts]
    value = ast.literal_eval(node)
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError("a value that JSON does not have")
    return value


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_texts(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_texts(item, change) for key, item in value.items()}
    return value


def _map_messages(values: Values, scope: RepairScope, change: _Change) -> Values:
    """Change every list of messages in a row, also one that is JSON text."""
    changed = {}
    for name, value in values.items():
        messages = decode_json_text(value)
        keys = scope.find_keys(messages)
        if keys is None or not all(isinstance(message, dict) for message in messages):
            changed[name] = value
            continue
        result = change([dict(message) for message in messages], keys)
        changed[name] = json.dumps(result, ensure_ascii=False) if isinstance(value, str) else result
        if result == messages:
            changed[name] = value
    return changed


def _trim(text: str) -> str:
    start, end = 0, len(text)
    while start < end and (text[start].isspace() or text[start] in _INVISIBLE):
        start += 1
    while end > start and (text[end - 1].isspace() or text[end - 1] in _INVISIBLE):
        end -= 1
    return text[start:end]


def _get_role(message: Message, keys: MessageKeys) -> str:
    name = message.get(keys.role)
    role = keys.roles.get(name, "") if isinstance(name, str) else ""
    is_call = role == "tool" and (message.get("parameters") is not None or "observation" in message)
    return "function_call" if is_call else "observation" if role in ("tool", "result") else role


def _has_call(message: Message) -> bool:
    return any(message.get(key) for key in ("tool_calls", "function_call", "metadata", "parameters"))


def _is_empty_message(message: Message, keys: MessageKeys) -> bool:
    content = message.get(keys.content)
    return (content is None or (isinstance(content, str) and is_blank(content))) and not _has_call(message)


def _split_turns(messages: list[Message], keys: MessageKeys) -> Iterator[list[Message]]:
    """What comes before the first question, and each question with all that follows it."""
    turn: list[Message] = []
    for message in messages:
        if _get_role(message, keys) == "user" and any(_get_role(m, keys) not in ("user", "system") for m in turn):
            yield turn
            turn = []
        turn.append(message)
    yield turn


def _drop_empty_messages(messages: list[Message], keys: MessageKeys) -> list[Message]:
    remaining: list[Message] = []
    has_turn = False
    for turn in _split_turns(messages, keys):
        is_empty = any(
            _get_role(message, keys) in ("user", "assistant")
            and message.get("loss", True) is not False
            and _is_empty_message(message, keys)
            for message in turn
        )
        system = [m for m in turn if _get_role(m, keys) == "system" and not _is_empty_message(m, keys)]
        remaining += system if is_empty else turn
        has_turn = has_turn or not is_empty
    return remaining if has_turn else messages


def _drop_empty_pairs(values: Values, scope: RepairScope) -> Values:
    """The same for turns that are pairs, or objects with a question and an answer."""
    changed = {}
    for name, value in values.items():
        turns = decode_json_text(value)
        remaining = [turn for turn in turns if not _is_empty_pair(turn)] if isinstance(turns, list) else []
        is_changed = remaining and len(remaining) < len(turns)
        # As it was written: a list, or JSON text.
        changed[name] = (
            (json.dumps(remaining, ensure_ascii=False) if isinstance(value, str) else remaining)
            if is_changed
            else value
        )
    return changed


def _is_empty_pair(turn: Any) -> bool:
    keys = find_turn_keys(turn)
    texts = [turn[key] for key in keys] if keys else turn
    is_pair = (
        isinstance(texts, list) and len(texts) == 2 and all(text is None or isinstance(text, str) for text in texts)
    )
    return is_pair and any(text is None or is_blank(text) for text in texts)


def _join_messages(messages: list[Message], keys: MessageKeys) -> list[Message]:
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else {}
        texts = (before.get(keys.content), message.get(keys.content))
        others = [{key: m[key] for key in m if key not in (keys.role, keys.content)} for m in (before, message)]
        roles = {_get_role(before, keys), _get_role(message, keys)}
        is_same = roles in ({"user"}, {"assistant"}) and others[0] == others[1]
        if is_same and all(isinstance(text, str) for text in texts) and not _has_call(message):
            before[keys.content] = "\n".join(text for text in texts if isinstance(text, str) and not is_blank(text))
        else:
            joined.append(message)
    return joined


def _drop_first_answers(messages: list[Message], keys: MessageKeys) -> list[Message]:
    roles = [_get_role(message, keys) for message in messages]
    if "user" not in roles:
        return messages
    first = roles.index("user")
    return [message for i, message in enumerate(messages) if i >= first or roles[i] == "system"]


def _drop_unanswered_end(messages: list[Message], keys: MessageKeys) -> list[Message]:
    answers = [i for i, m in enumerate(messages) if _get_role(m, keys) in ("assistant", "function_call")]
    return messages[: answers[-1] + 1] if answers else messages


def _rename_roles(messages: list[Message], keys: MessageKeys) -> list[Message]:
    for message in messages:
        name = message.get(keys.role)
        if isinstance(name, str) and name not in keys.roles:
            message[keys.role] = _find_role_name(name, keys)
    return messages


def _find_role_name(name: str, keys: MessageKeys) -> str:
    """The known name of a role that was meant; the name itself where that is not clear."""
    folded = name.strip(" \t\r\n:：<>|").casefold()
    if folded in keys.roles:
        return folded
    for role, names in _ROLE_NAMES.items():
        usual = next((known for known, meant in keys.roles.items() if meant == role), None)
        if usual is not None and folded in names:
            return usual
    close = difflib.get_close_matches(folded, list(keys.roles), 1, _MIN_NAME_SIMILARITY)
    return close[0] if close else name


def _join_system_messages(messages: list[Message], keys: MessageKeys) -> list[Message]:
    system = [message for message in messages if _get_role(message, keys) == "system"]
    texts = [message.get(keys.content) for message in system]
    if not system or not all(isinstance(text, str) for text in texts):
        return messages
    first = {**system[0], keys.content: "\n".join(str(text) for text in texts)}
    return [first, *(message for message in messages if _get_role(message, keys) != "system")]


def _convert_numbers(messages: list[Message], keys: MessageKeys) -> list[Message]:
    return [
        {**message, keys.content: _convert_number(message[keys.content])} if keys.content in message else message
        for message in messages
    ]


def _convert_number(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
