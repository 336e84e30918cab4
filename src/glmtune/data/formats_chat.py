"""Rows that are lists of messages (ChatGLM3, ShareGPT, OpenAI), as conversations.

All of them are read by one set of rules. They differ in the names of keys and roles, and in how a tool's call and its
result are written: as one message (ChatGLM3), as a call and a result one after the other (ShareGPT), or as a list of
calls beside an answer, with results that follow (OpenAI). A `Conversation` has the first form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from glmtune.config_parsing import nearest
from glmtune.data.conversation import BadRow, Conversation, Row, kind_of
from glmtune.data.formats_columns import Columns, Layout, column_text, from_json, optional_text, read_tools
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
# LLaMA-Factory's names for the keys and roles of a file, with the role that each means here.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "result",
    "function_tag": "function_call",
    "system_tag": "system",
}
TAGS = ("role_tag", "content_tag", *_ROLE_TAGS)


@dataclass(frozen=True)
class Messages(Layout):
    """A list of messages in one column."""

    name: str
    formats: tuple[str, ...]
    column: str
    role_key: str
    content_key: str
    roles: Mapping[str, str] = field(default_factory=dict)
    """A role in the file to one of `conversation.ROLES`, `function_call` or `result` (of a call, or an observation)."""
    system: str = "system"
    tools: str = "tools"
    functions: str | None = None
    """What OpenAI's older files call the tools."""

    def fits(self, values: dict[str, Any]) -> bool:
        messages = from_json(values.get(self.column))
        return isinstance(messages, list) and bool(messages) and _has(messages[0], self.role_key)

    def read(self, row: Row) -> Conversation:
        values = row.values
        messages = from_json(values.get(self.column))
        if not isinstance(messages, list):
            if messages is None:
                column_text(values, self.column)  # says whether the column is missing or null
            raise BadRow("wrong-type", f"column {self.column!r} must be a list of messages, not {kind_of(messages)}")
        reader = _Reader(self)
        if system := optional_text(values, self.system):
            reader.done.append({"role": "system", "content": system})
        for number, message in enumerate(messages, start=1):
            reader.add(number, message)
        return Conversation(reader.end(), row.where, self._tools(values))

    def _tools(self, values: dict[str, Any]) -> list[Any] | None:
        tools = read_tools(values.get(self.tools), self.tools)
        functions = read_tools(values.get(self.functions), self.functions) if self.functions else None
        if tools and functions:
            said = f"columns {self.tools!r} and {self.functions!r} both list tools"
            raise BadRow("two-tool-lists", said, "Leave one of them out.")
        return tools or functions


def message_layouts(columns: Columns, tags: Columns) -> Iterator[Messages]:
    """The layouts with messages, renamed as the user says."""
    places = [columns["messages"]] if "messages" in columns else ["conversations", "messages"]
    around = {role: columns[role] for role in ("system", "tools") if role in columns}
    older = None if "tools" in columns else "functions"
    for place in places:
        if tags:
            yield _tagged(place, tags, around, older)
            continue
        name = "OpenAI messages" if place == "messages" else f"{place} (role/content)"
        formats = ("conversations", "chatglm3", "openai")
        yield Messages(name, formats, place, "role", "content", _ROLE_CONTENT, **around, functions=older)
        yield Messages("ShareGPT (from/value)", ("sharegpt",), place, "from", "value", _FROM_VALUE, **around)


def check_tags(tags: Columns) -> None:
    """Raises:
    ConfigError: a tag that does not exist.
    """
    for tag in tags:
        if tag not in TAGS:
            raise ConfigError(f"data tags: no tag {tag!r}.", nearest(str(tag), list(TAGS)))


def _tagged(place: str, tags: Columns, around: dict[str, str], older: str | None) -> Messages:
    role_key, content_key = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    usual, older = (_FROM_VALUE, None) if role_key == "from" else (_ROLE_CONTENT, older)
    named = {tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}
    name = f"{place} ({role_key}/{content_key})"
    formats = ("sharegpt", "openai", "conversations", "chatglm3")
    return Messages(name, formats, place, role_key, content_key, {**usual, **named}, **around, functions=older)


def _has(message: Any, key: str) -> bool:
    return isinstance(message, dict) and key in message


class _Reader:
    """Takes the messages of one row in order; `done` holds what they have become so far."""

    def __init__(self, layout: Messages):
        self.layout = layout
        self.done: list[Message] = []
        self.waiting: list[tuple[Message, str | None]] = []
        """Calls without a result so far, each with its id."""
        self.unanswered: list[Message] = []
        """ChatGLM3's calls that do not hold their result; it may follow, or be left out."""
        self.answered = False
        """Whether one of their results did follow."""

    def add(self, number: int, message: Any) -> None:
        if not isinstance(message, dict):
            raise BadRow("wrong-type", f"message {number} must be an object, not {kind_of(message)}")
        role = self._role(number, message)
        whole_call = role == "tool" and (message.get("parameters") is not None or "observation" in message)
        if self.waiting and role in ("tool", "observation", "result") and not whole_call:
            self._result(number, message)
            return
        if self.waiting:
            name = self.waiting[0][0]["name"]
            raise BadRow("bad-tool-call", f"the call of {name!r} has no result before message {number}")
        if self.unanswered and role in ("tool", "observation", "result") and not whole_call:
            self.unanswered.pop(0)["observation"] = self._text_of(number, message)
            self.answered = True
            return
        self._close(number, whole_call)
        if role == "function_call":
            self._calls(number, from_json(message.get(self.layout.content_key)), message)
        elif whole_call:
            self._whole_call(number, message)
        elif role == "tool":
            raise BadRow(
                "bad-tool-call",
                f"message {number} is a tool's result without a call before it",
                "A tool message has name, parameters and observation, or follows tool_calls.",
            )
        else:
            self._text(number, "observation" if role == "result" else role, message)

    def end(self) -> list[Message]:
        """All messages. Calls at the end may have no result: the call is what is learnt."""
        if len(self.waiting) > 1 or (self.waiting and self.waiting[0][0] is not self.done[-1]):
            raise BadRow("bad-tool-call", f"the call of {self.waiting[0][0]['name']!r} has no result")
        return self.done

    def _close(self, number: int, goes_on: bool) -> None:
        """No result follows. All calls in a row may lack theirs; if one has it, whose it is must be clear."""
        if self.unanswered and self.answered:
            name = self.unanswered[0]["name"]
            raise BadRow("bad-tool-call", f"the call of {name!r} has no result before message {number}")
        if not goes_on:
            self.unanswered.clear()
        self.answered = False

    def _role(self, number: int, message: Message) -> str:
        key = self.layout.role_key
        role = message.get(key)
        known = self.layout.roles.get(role) if isinstance(role, str) else None
        if known is not None:
            return known
        if role is None:
            raise BadRow("unknown-role", f"message {number} has no {key!r}")
        raise BadRow(
            "unknown-role", f"message {number}: unknown {key} {role!r}", nearest(str(role), list(self.layout.roles))
        )

    def _text(self, number: int, role: str, message: Message) -> None:
        content = message.get(self.layout.content_key)
        calls = _tool_calls(number, message) if role == "assistant" else None
        if content is not None or calls is None:
            text = _content(number, content, self.layout.content_key)
            if text or calls is None:
                self.done.append({"role": role, "content": text, **_loss(number, message)})
                if isinstance(message.get("metadata"), str):
                    self.done[-1]["metadata"] = message["metadata"]
        if calls is not None:
            self._calls(number, calls, message)

    def _calls(self, number: int, calls: Any, message: Message) -> None:
        calls = calls if isinstance(calls, list) else [calls]
        if not calls:
            raise BadRow("bad-tool-call", f"message {number} calls no tool")
        for call in calls:
            if not isinstance(call, dict):
                raise BadRow(
                    "bad-tool-call", f"message {number}: a tool call must be a JSON object with name, arguments"
                )
            function = call["function"] if isinstance(call.get("function"), dict) else call
            arguments = function.get("arguments", function.get("parameters"))
            made = _tool(number, function.get("name"), arguments) | _loss(number, message)
            self.done.append(made)
            self.waiting.append((made, call.get("id") if isinstance(call.get("id"), str) else None))

    def _result(self, number: int, message: Message) -> None:
        """The result of the call that its id names, else of the first call that has none."""
        named = message.get("tool_call_id")
        found = [i for i, (_, call) in enumerate(self.waiting) if call is not None and call == named]
        if named is not None and not found and all(call is not None for _, call in self.waiting):
            raise BadRow("bad-tool-call", f"message {number} is the result of {named!r}, which was not called")
        call, _ = self.waiting.pop(found[0] if found else 0)
        call["observation"] = self._text_of(number, message)

    def _text_of(self, number: int, message: Message) -> str:
        key = self.layout.content_key
        return _content(number, message.get(key), key)

    def _whole_call(self, number: int, message: Message) -> None:
        call = _tool(number, message.get("name"), message.get("parameters"))
        observation = message.get("observation")
        if observation is None:
            observation = message.get(self.layout.content_key)
        call |= _loss(number, message)
        self.done.append(call)
        if observation is None:
            self.unanswered.append(call)
        else:
            call["observation"] = observation


def _tool_calls(number: int, message: Message) -> list[Any] | None:
    calls = message.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise BadRow("bad-tool-call", f"message {number}: tool_calls must be a list, not {kind_of(calls)}")
    if not calls and message.get("function_call") is not None:
        return [message["function_call"]]
    return calls or None


def _tool(number: int, name: Any, arguments: Any) -> Message:
    if not isinstance(name, str) or not name:
        raise BadRow("bad-tool-call", f"message {number}: the tool call has no name")
    # A call without arguments is written as {}, as an empty text, or not at all.
    parameters = {} if arguments is None or arguments == "" else from_json(arguments)
    if not isinstance(parameters, dict):
        raise BadRow("bad-tool-call", f"message {number}: the arguments of {name!r} are no JSON object")
    return {"role": "tool", "name": name, "parameters": parameters}


def _content(number: int, content: Any, key: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(number, part) for part in content)
    if content is None:
        raise BadRow("null-content", f"message {number} has no {key}", "Mend or remove the row.")
    raise BadRow("wrong-type", f"message {number}: {key} must be text, not {kind_of(content)}", "Mend the row.")


def _part(number: int, part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    named = part.get("type") if isinstance(part, dict) else kind_of(part)
    raise BadRow("wrong-type", f"message {number}: a part of its content is {named!r}; only text can be learnt")


def _loss(number: int, message: Message) -> dict[str, bool]:
    """The `loss` flag, where the message has one; OpenAI files write `weight: 0` for false."""
    loss = message.get("loss")
    if loss is None and message.get("weight") in (0, 1):
        loss = bool(message["weight"])
    if loss is None:
        return {}
    if not isinstance(loss, bool):
        raise BadRow("wrong-type", f"message {number}: loss must be true or false, not {kind_of(loss)}")
    return {"loss": loss}
