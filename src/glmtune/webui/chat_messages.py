"""Messages of a conversation on the page: what a user's turn and a reply add, and how they are shown."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from markdown_it import MarkdownIt

from glmtune.errors import ConfigError
from glmtune.families import Reply
from glmtune.html.builder import Html, el
from glmtune.utils.documents import DocumentError, parse_json

Messages = list[dict[str, Any]]
"""Of the roles user, assistant and tool; a tool message is a call of the model, with its `observation` once known."""


def add_message(messages: Messages, content: str, is_result: bool) -> Messages:
    """The conversation with what the user sends.

    Args:
        messages: so far.
        content: a question, or what a tool returned.
        is_result: the latter.

    Raises:
        ConfigError: nothing was sent, or a result that no tool was called for.
    """
    if not content.strip():
        raise ConfigError("There is nothing to send.", "Write a message first.")
    if not is_result:
        return [*messages, {"role": "user", "content": content}]
    if not messages or messages[-1]["role"] != "tool" or "observation" in messages[-1]:
        raise ConfigError(
            "The model has not called a tool, so there is no result to give.", "Send it as a user's message."
        )
    return [*messages[:-1], {**messages[-1], "observation": content}]


def add_reply(messages: Messages, reply: Reply) -> Messages:
    """The conversation with the model's reply."""
    if not reply.tool_calls:
        return [*messages, {"role": "assistant", "content": reply.content}]
    calls = [{"role": "tool", "name": call.name, "parameters": call.arguments} for call in reply.tool_calls]
    return [*messages, *calls]


def remove_reply(messages: Messages) -> Messages:
    """The conversation without its last reply, to be answered again.

    Raises:
        ConfigError: there is none.
    """
    rest = list(messages)
    while rest and (rest[-1]["role"] == "assistant" or (rest[-1]["role"] == "tool" and "observation" not in rest[-1])):
        rest.pop()
    if not rest or len(rest) == len(messages):
        raise ConfigError("There is no reply to make again.", "Ask something first.")
    return rest


def read_tools(content: str) -> list[Any] | None:
    """The descriptions of tools that a user typed.

    Raises:
        ConfigError: not a JSON list.
    """
    if not content.strip():
        return None
    try:
        tools = parse_json(content)
    except DocumentError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"Tools{line}: {error.problem}.", "Give a JSON list.") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ConfigError("Tools: must be a JSON list of objects.", 'For example: [{"name": "weather", ...}]')
    return tools or None


def render_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages as the page shows them: `role` (user, assistant, tool), `text` as written, `html`, and `index`."""
    rows = []
    for index, message in enumerate(messages):
        for role, content in _split_message(message):
            html = render_markdown(content) if role == "assistant" else el("div", content)
            rows.append({"role": role, "text": content, "html": html, "index": index})
    return rows


def render_markdown(content: str) -> Html:
    """A reply's Markdown as markup. Raw HTML is text, and neither pictures nor links are made, so that no reply makes
    the browser ask anybody for anything."""
    # A lone surrogate, which no page can hold, becomes a mark.
    return Html(_markdown().render(content.encode("utf-8", "replace").decode("utf-8")))


@cache
def _markdown() -> MarkdownIt:
    rules = MarkdownIt("commonmark", {"html": False, "breaks": True})
    return rules.enable("table").disable(["image", "link", "autolink", "reference", "html_inline", "html_block"])


def _split_message(message: dict[str, Any]) -> list[tuple[str, str]]:
    if message["role"] != "tool":
        return [(message["role"], str(message["content"]))]
    call = f"→ {message['name']}({json.dumps(message['parameters'], ensure_ascii=False)})"
    observation = [("tool", f"← {message['observation']}")] if "observation" in message else []
    return [("tool", call), *observation]
