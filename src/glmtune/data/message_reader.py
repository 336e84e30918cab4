"""Read a list of messages (ChatGLM3, GLM-4, ShareGPT, OpenAI, LLaMA-Factory) as the messages of a `Conversation`.

The files differ in the names of keys and roles, and in how a tool call and its result are written: as one message
(ChatGLM3), as a call and a result one after the other (ShareGPT), as a list of calls in an answer, followed by the
results (OpenAI), or as the text of an answer, followed by the result (GLM-4). A `Conversation` has the first form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from glmtune.config_parsing import suggest_key
from glmtune.data.conversation import InvalidRowError, describe_type
from glmtune.data.message_keys import Message, MessageKeys
from glmtune.data.row_format import decode_json_text, is_empty, parse_tools
from glmtune.families import FAMILIES


class MessageReader:
    """Takes the messages of one row in order; `messages` holds the converted ones, `tools` those of system messages."""

    def __init__(self, keys: MessageKeys, tools: list[Any] | None = None):
        self.keys = keys
        self.messages: list[Message] = []
        self.tools = tools
        self.text_calls: dict[int, dict[str, Any]] = {}
        """Calls that are written as the text of an answer (GLM-4), by the number of the message."""
        self.pending_calls: list[tuple[Message, str | None]] = []
        """Calls whose result must follow, each with its id."""
        self.open_calls: list[Message] = []
        """ChatGLM3 calls without their result, which may follow or be left out."""
        self.has_result = False
        """Whether the result of one of the pending or open calls followed."""

    def read_messages(self, messages: Sequence[Any]) -> list[Message]:
        """Convert all messages of a row.

        Raises:
            InvalidRowError: one of them is invalid.
        """
        self._find_text_calls(messages)
        for number, message in enumerate(messages, start=1):
            self._add_message(number, message, messages[number] if number < len(messages) else None)
        # The last call may have no result: the call is what is trained on.
        pending = self.pending_calls
        if len(pending) > 1 or (pending and pending[0][0] is not self.messages[-1]):
            raise InvalidRowError("bad-tool-call", f"the call of {pending[0][0]['name']!r} has no result")
        return self.messages

    def _add_message(self, number: int, message: Any, following: Any) -> None:
        if not isinstance(message, dict):
            raise InvalidRowError("wrong-type", f"message {number} must be an object, not {describe_type(message)}")
        role = self._get_role(number, message)
        is_chatglm3_call = role == "tool" and (message.get("parameters") is not None or "observation" in message)
        is_result = role in ("tool", "observation", "result") and not is_chatglm3_call
        if self.pending_calls and is_result:
            self._add_result(number, message, self._is_result(following))
            return
        # Several calls in a row may be followed by their results in the same order.
        is_next_call = not self.has_result and (
            role == "function_call"
            or number in self.text_calls
            or (role == "assistant" and not message.get(self.keys.content) and _get_tool_calls(number, message))
        )
        if self.pending_calls and not is_next_call:
            name = self.pending_calls[0][0]["name"]
            raise InvalidRowError("bad-tool-call", f"the call of {name!r} has no result before message {number}")
        if self.open_calls and is_result:
            call = self.open_calls.pop(0)
            call["observation"] = self._get_content(number, message)
            call |= _get_observation_loss(number, message)
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
            self._add_calls(number, decode_json_text(message.get(self.keys.content)), message)
        elif is_chatglm3_call:
            self._add_chatglm3_call(number, message)
        elif role == "tool":
            raise InvalidRowError(
                "bad-tool-call",
                f"message {number} is the result of a tool without a call before it",
                "A tool message has name, parameters and observation, or follows tool_calls.",
            )
        elif role == "system":
            self._add_system(number, message)
        elif role == "assistant":
            self._add_answer(number, message)
        else:
            self._add_text(number, "observation" if role == "result" else role, message)

    def _find_text_calls(self, messages: Sequence[Any]) -> None:
        """Find the answers that are calls: their text is one, and results follow, or it ends the row and calls one of
        the listed tools."""
        first = messages[0] if messages and isinstance(messages[0], dict) else {}
        has_tools = self.tools is not None or any(first.get(key) for key in ("tools", "functions"))
        if not has_tools and not any(map(self._is_result, messages)):
            return
        leads_to_result = False
        for number in range(len(messages), 0, -1):
            message = messages[number - 1]
            if self._is_result(message):
                leads_to_result = True
                continue
            is_last = number == len(messages) and number > 1
            call = self._parse_text_call(message) if leads_to_result or is_last else None
            if call and (leads_to_result or call["name"] in self._list_tool_names(first)):
                self.text_calls[number] = call
            else:
                leads_to_result = False

    def _parse_text_call(self, message: Any) -> dict[str, Any] | None:
        if not isinstance(message, dict) or message.get("metadata") or message.get("tool_calls"):
            return None
        content, name = message.get(self.keys.content), message.get(self.keys.role)
        is_answer = isinstance(name, str) and self.keys.roles.get(name) == "assistant"
        return parse_call_text(content) if is_answer and isinstance(content, str) else None

    def _list_tool_names(self, first: Any) -> set[str]:
        """Names of the tools of the row and of its first message."""
        lists = [self.tools, *(decode_json_text(first.get(key)) for key in ("tools", "functions"))]
        tools = [tool for tools in lists if isinstance(tools, list) for tool in tools if isinstance(tool, dict)]
        functions = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]
        return {name for name in (function.get("name") for function in functions) if isinstance(name, str)}

    def _is_result(self, message: Any) -> bool:
        """Whether a message is the result of a call."""
        if not isinstance(message, dict):
            return False
        name = message.get(self.keys.role)
        role = self.keys.roles.get(name) if isinstance(name, str) else None
        is_call = message.get("parameters") is not None or "observation" in message
        return role in ("observation", "result") or (role == "tool" and not is_call)

    def _get_role(self, number: int, message: Message) -> str:
        key, roles = self.keys.role, self.keys.roles
        name = message.get(key)
        role = roles.get(name) if isinstance(name, str) else None
        if role is not None:
            return role
        if name is None:
            raise InvalidRowError("unknown-role", f"message {number} has no {key!r}")
        hint = suggest_key(str(name), list(roles))
        raise InvalidRowError("unknown-role", f"message {number}: unknown {key} {name!r}", hint)

    def _get_content(self, number: int, message: Message) -> str:
        key = self.keys.content
        content = message.get(key)
        if isinstance(content, str):
            return content
        if isinstance(content, list) and content and all(isinstance(part, str) for part in content):
            return "\n".join(content)
        if isinstance(content, list):
            return "".join(_get_part_text(number, part) for part in content)
        if content is None:
            raise InvalidRowError("null-content", f"message {number} has no {key}", "Fix or remove the row.")
        problem = f"message {number}: {key} must be text, not {describe_type(content)}"
        raise InvalidRowError("wrong-type", problem, "Fix the row.")

    def _add_text(self, number: int, role: str, message: Message) -> None:
        self.messages.append(
            {"role": role, "content": self._get_content(number, message), **_get_loss(number, message)}
        )

    def _add_system(self, number: int, message: Message) -> None:
        """Add a system message, with the tools that GLM-4's files list in it."""
        for key in ("tools", "functions"):
            tools = parse_tools(message.get(key), f"message {number}: {key}")
            if tools and self.tools and tools != self.tools:
                raise InvalidRowError("two-tool-lists", f"message {number} lists other tools than before it")
            self.tools = tools or self.tools
        is_list_only = self.tools is not None and is_empty(message.get(self.keys.content))
        if not is_list_only:
            self._add_text(number, "system", message)

    def _add_answer(self, number: int, message: Message) -> None:
        if number in self.text_calls:
            self._add_calls(number, self.text_calls[number], message)
            return
        content = message.get(self.keys.content)
        calls = _get_tool_calls(number, message)
        if isinstance(content, list):  # LLaMA-Factory's newer files have calls among the parts of the content
            parts = [decode_json_text(part.get("value")) for part in content if _is_call_part(part)]
            calls = parts or calls
            content = [part for part in content if not _is_call_part(part)] or None
            message = {**message, self.keys.content: content}
        metadata = message.get("metadata")
        if content is not None or calls is None:
            text = self._get_content(number, message)
            if text or calls is None:
                self.messages.append({"role": "assistant", "content": text, **_get_loss(number, message)})
                if isinstance(metadata, str):
                    self.messages[-1]["metadata"] = metadata
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

    def _add_result(self, number: int, message: Message, is_followed: bool) -> None:
        """Add a result to the call with its id, or without an id to the first call without a result."""
        call_id = message.get("tool_call_id")
        pending = self.pending_calls
        if call_id is None and len(pending) > 1 and not self.has_result and not is_followed:
            self._add_joint_result(number, message)
            return
        matches = [i for i, (_, pending_id) in enumerate(pending) if pending_id is not None and pending_id == call_id]
        if call_id is not None and not matches and all(pending_id is not None for _, pending_id in pending):
            raise InvalidRowError(
                "bad-tool-call", f"message {number} is the result of {call_id!r}, which was not called"
            )
        call, _ = pending.pop(matches[0] if matches else 0)
        call["observation"] = self._get_content(number, message)
        call |= _get_observation_loss(number, message)
        self.has_result = bool(pending)

    def _add_joint_result(self, number: int, message: Message) -> None:
        """One message with the results of several calls: a list with one for each."""
        content = message.get(self.keys.content)
        results = decode_json_text(content)
        count = len(self.pending_calls)
        if not isinstance(results, list) or len(results) != count:
            raise InvalidRowError(
                "bad-tool-call",
                f"message {number} is the only result of {count} calls, and not a list of {count} results",
                "Give a message with the result after the calls for each of them, in their order.",
            )
        loss = _get_observation_loss(number, message)
        for call, _ in self.pending_calls:
            call["observation"] = results.pop(0)
            call |= loss
        self.pending_calls.clear()

    def _add_chatglm3_call(self, number: int, message: Message) -> None:
        call = _make_call(number, message.get("name"), message.get("parameters"))
        observation = message.get("observation")
        if observation is None:
            observation = message.get(self.keys.content)
        call |= _get_loss(number, message)
        self.messages.append(call)
        if observation is None:
            self.open_calls.append(call)
        else:
            call["observation"] = observation


def parse_call_text(text: str) -> dict[str, Any] | None:
    """A tool call written as text: JSON with name and arguments, or as one of the generations writes it.

    Returns:
        `name` and `arguments`; None for any other text.
    """
    value = decode_json_text(text.strip())
    if isinstance(value, dict):
        arguments = decode_json_text(value.get("arguments", value.get("parameters")))
        is_call = value.keys() <= {"name", "arguments", "parameters"} and isinstance(arguments, dict)
        return {"name": value["name"], "arguments": arguments} if is_call and value.get("name") else None
    if not re.match(r"\s*[\w.-]+[ \t]*\n", text):
        return None
    for family in FAMILIES.values():
        calls = family.parse_reply(text).tool_calls
        if calls:
            return {"name": calls[0].name, "arguments": calls[0].arguments}
    return None


def _get_tool_calls(number: int, message: Message) -> list[Any] | None:
    calls = decode_json_text(message.get("tool_calls"))
    if calls is not None and not isinstance(calls, list):
        raise InvalidRowError(
            "bad-tool-call", f"message {number}: tool_calls must be a list, not {describe_type(calls)}"
        )
    if not calls and message.get("function_call") is not None:
        return [decode_json_text(message["function_call"])]
    return calls or None


def _make_call(number: int, name: Any, arguments: Any) -> Message:
    if not isinstance(name, str) or not name:
        raise InvalidRowError("bad-tool-call", f"message {number}: the tool call has no name")
    # A call without arguments may have {}, an empty text, or nothing.
    parameters = {} if arguments is None or arguments == "" else decode_json_text(arguments)
    if not isinstance(parameters, dict):
        raise InvalidRowError("bad-tool-call", f"message {number}: the arguments of {name!r} are not a JSON object")
    return {"role": "tool", "name": name, "parameters": parameters}


def _is_call_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("tool_call", "tool_calls")


def _get_part_text(number: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text":
        # LLaMA-Factory's newer files have `value`, OpenAI's `text`.
        text = part.get("text") if part.get("text") is not None else part.get("value")
        if isinstance(text, str):
            return text
    name = part.get("type") if isinstance(part, dict) else describe_type(part)
    raise InvalidRowError("wrong-type", f"message {number}: content of type {name!r}; only text is supported")


def _get_loss(number: int, message: Message) -> dict[str, bool]:
    """The `loss` flag, if the message has one; OpenAI files have `weight: 0` for false, LLaMA-Factory `loss_weight`."""
    found: dict[str, bool] = {}
    loss = message.get("loss")
    if loss is not None:
        if not isinstance(loss, bool):
            problem = f"message {number}: loss must be true or false, not {describe_type(loss)}"
            raise InvalidRowError("wrong-type", problem)
        found["loss"] = loss
    for key in ("loss_weight", "weight"):
        weight = message.get(key)
        if weight is None:
            continue
        if isinstance(weight, str) or weight not in (0, 1):
            problem = f"message {number}: {key} is {json.dumps(weight, default=str)}; a message is trained on or not"
            raise InvalidRowError("wrong-type", problem, "Give 1 or 0, or loss: true or false.")
        if found.setdefault("loss", bool(weight)) != bool(weight):
            raise InvalidRowError("two-losses", f"message {number}: {key} and another key contradict each other")
    return found


def _get_observation_loss(number: int, message: Message) -> dict[str, bool]:
    """The flag of a result. False is what happens anyway."""
    return {"observation_loss": True} if _get_loss(number, message).get("loss") else {}
