"""Messages and tools of OpenAI's API as the conversation that a family encodes.

The reader of data files does it, so that a conversation has the same ids here as in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from glmtune.data.conversation import InvalidRowError
from glmtune.data.message_reader import ROLE_CONTENT, MessageReader
from glmtune.families import Message
from glmtune.serve.api_errors import ApiError
from glmtune.serve.openai_schema import ChatCompletionBody
from glmtune.utils.streams import replace_undecodable

_RESULT_KEYS = frozenset(("tool_call_id", "name", "parameters", "observation"))
# What is read of a message besides role and content. `metadata`, `observation` and `tools` are the ChatGLM's own.
_READ_KEYS = {
    "system": frozenset(("tools",)),
    "user": frozenset(),
    "assistant": frozenset(("tool_calls", "function_call", "metadata")),
    "tool": _RESULT_KEYS,
    "function": _RESULT_KEYS,
    "observation": frozenset(("name", "tool_call_id")),
}
_ROLE_NAMES = {"developer": "system"}
# Keys of replies and of OpenAI's messages that no prompt has room for.
_UNUSED_KEYS = frozenset(("name", "refusal", "annotations", "audio", "reasoning_content", "reasoning", "id"))


@dataclass
class ChatPrompt:
    """A conversation as a family takes it.

    Attributes:
        messages: see `Family.encode_prompt`.
        tools: shown to the model; None if there are none.
        tool_names: that the model may call.
        must_call: whether the reply has to be a call.
        call_name: the tool that it must call, if there is one alone; the prompt ends with it.
        is_legacy_call: the request has `functions`; its reply has `function_call` in place of `tool_calls`.
        unused: keys without effect.
    """

    messages: Sequence[Message]
    tools: list[dict[str, Any]] | None = None
    tool_names: list[str] = field(default_factory=list)
    must_call: bool = False
    call_name: str | None = None
    is_legacy_call: bool = False
    unused: list[str] = field(default_factory=list)


def read_chat_prompt(body: ChatCompletionBody) -> ChatPrompt:
    """Convert messages, tools and the choice of a tool.

    Raises:
        ApiError: something in them is invalid or not supported.
    """
    is_legacy = body.functions is not None
    if is_legacy and body.tools is not None:
        raise ApiError(400, "Give tools or functions, not both.", param="functions")
    tools = body.functions if is_legacy else body.tools
    prompt = read_messages(body.messages, tools)
    prompt.is_legacy_call = is_legacy
    prompt.tool_names = _read_tool_names(prompt.tools or [], "functions" if is_legacy else "tools")
    choice_key = "function_call" if is_legacy or body.function_call is not None else "tool_choice"
    choice = body.function_call if choice_key == "function_call" else body.tool_choice
    _apply_choice(prompt, choice, choice_key)
    if prompt.call_name is None and any(_is_strict(tool) for tool in prompt.tools or []):
        prompt.unused.append("tools.function.strict")
    return prompt


def read_messages(messages: Sequence[Any], tools: list[dict[str, Any]] | None = None) -> ChatPrompt:
    """Convert messages, the last of which is to be answered.

    Raises:
        ApiError: one of them is invalid or not supported.
    """
    unused: dict[str, None] = {}
    cleaned = [_clean_message(number, message, unused) for number, message in enumerate(messages)]
    reader = MessageReader(ROLE_CONTENT, list(tools) if tools else None)
    try:
        converted = reader.read_messages(cleaned)
    except InvalidRowError as error:
        hint = f" {error.hint}" if error.hint else ""
        raise ApiError(400, f"{error.message}.{hint}", code="invalid_value", param="messages") from None
    last = converted[-1] if converted else {"role": "nothing"}
    if last["role"] == "assistant" or (last["role"] == "tool" and "observation" not in last):
        raise ApiError(
            400,
            "The last message is the assistant's, so there is nothing to answer. End with a message of the user or the "
            "result of a tool.",
            code="invalid_value",
            param="messages",
        )
    return ChatPrompt(converted, reader.tools, unused=list(unused))


def _clean_message(number: int, message: Any, unused: dict[str, None]) -> dict[str, Any]:
    """A message without empty keys and those without effect; the names of the latter are added to `unused`."""
    place = f"messages[{number}]"
    if not isinstance(message, dict):
        raise ApiError(400, f"{place} must be an object.", code="invalid_type", param=place)
    role = message.get("role")
    role = _ROLE_NAMES.get(role, role) if isinstance(role, str) else None
    if role not in _READ_KEYS:
        known = ", ".join((*_READ_KEYS, *_ROLE_NAMES))
        shown = json.dumps(message.get("role"), ensure_ascii=False)[:80]
        raise ApiError(
            400, f"{place}.role: {shown} is not one of {known}.", code="invalid_value", param=f"{place}.role"
        )
    cleaned: dict[str, Any] = {"role": role, "content": _read_content(message.get("content"), place)}
    for key, value in message.items():
        if key in ("role", "content") or value in (None, "", []):
            continue
        if key in _READ_KEYS[role]:
            cleaned[key] = value
        elif key in _UNUSED_KEYS:
            unused[f"messages.{key}"] = None
        else:
            raise ApiError(
                400, f"{place}: unknown key {key[:80]!r}.", code="unknown_parameter", param=f"{place}.{key[:80]}"
            )
    if cleaned["content"] is None and role != "assistant" and "parameters" not in cleaned:
        raise ApiError(400, f"{place}.content is missing.", code="missing_required_parameter", param=f"{place}.content")
    if cleaned["content"] is None and not cleaned.keys() & {"tool_calls", "function_call"}:
        cleaned["content"] = "" if role == "assistant" else None
    return cleaned


def _read_content(content: Any, place: str) -> str | None:
    """The text of a message: a text, or a list of text parts."""
    if content is None or isinstance(content, str):
        return replace_undecodable(content) if content else content
    if not isinstance(content, list):
        raise ApiError(
            400, f"{place}.content must be text or a list of parts.", code="invalid_type", param=f"{place}.content"
        )
    texts = []
    for i, part in enumerate(content):
        where = f"{place}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if isinstance(part, dict) and kind in ("text", "refusal") else None
        if not isinstance(text, str):
            shown = json.dumps(kind, ensure_ascii=False)[:80]
            problem = (
                "its text must be text" if kind in ("text", "refusal") else f"parts of type {shown} are not supported"
            )
            raise ApiError(400, f"{where}: {problem}; this model reads text only.", code="invalid_value", param=where)
        texts.append(replace_undecodable(text))
    return "".join(texts)


def _read_tool_names(tools: list[Any], key: str) -> list[str]:
    """The names of tools: objects of type `function`, or functions alone as in ChatGLM3's own form."""
    names = []
    for i, tool in enumerate(tools):
        place = f"{key}[{i}]"
        if not isinstance(tool, dict):
            raise ApiError(400, f"{place} must be an object.", code="invalid_type", param=place)
        if tool.get("type", "function") != "function":
            shown = json.dumps(tool["type"], ensure_ascii=False)[:80]
            raise ApiError(400, f"{place}.type: {shown} is not supported; give function.", param=f"{place}.type")
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name.strip() or "\n" in name:
            raise ApiError(
                400, f"{place}: the function has no name, or not in one line.", param=f"{place}.function.name"
            )
        if name in names:
            raise ApiError(400, f"{place}: {name[:80]!r} is there twice.", param=f"{place}.function.name")
        names.append(name)
    return names


def _is_strict(tool: Any) -> bool:
    function = tool.get("function", tool)
    return bool(isinstance(function, dict) and function.get("strict"))


def _apply_choice(prompt: ChatPrompt, choice: Any, key: str) -> None:
    """Set what the model may call, from `tool_choice` or the older `function_call`."""
    if choice in (None, "auto"):
        return
    if choice == "none":
        prompt.tools, prompt.tool_names = None, []
        return
    if not prompt.tool_names:
        raise ApiError(400, f"{key} needs tools.", param=key)
    prompt.must_call = True
    if choice == "required":
        prompt.call_name = prompt.tool_names[0] if len(prompt.tool_names) == 1 else None
        return
    function = choice if key == "function_call" else choice.get("function")
    is_known_kind = key == "function_call" or choice.get("type") == "function"
    name = function.get("name") if isinstance(function, dict) else None
    if not is_known_kind or not isinstance(name, str):
        raise ApiError(400, f"{key} must be none, auto, required or the name of a function.", param=key)
    if name not in prompt.tool_names:
        raise ApiError(400, f"{key}: there is no tool {name[:80]!r} among the tools.", param=key)
    prompt.call_name = name
