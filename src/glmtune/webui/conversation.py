"""A conversation on the page: its messages, how they are shown, and a reply that comes in pieces and can be stopped."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from transformers import set_seed

from glmtune.errors import ConfigError
from glmtune.families import Reply
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.utils.documents import DocumentError, parse_json

Messages = list[dict[str, Any]]
"""Of the roles user, assistant and tool; a tool message is a call of the model, with its `observation` once known."""


class _Stopped(Exception):
    """Leaves `generate` between two tokens."""


def asked(messages: Messages, text: str, is_result: bool) -> Messages:
    """The conversation with what the user sends.

    Args:
        messages: so far.
        text: a question, or what a tool returned.
        is_result: the latter.

    Raises:
        ConfigError: nothing was sent, or a result that no tool was called for.
    """
    if not text.strip():
        raise ConfigError("There is nothing to send.", "Write a message first.")
    if not is_result:
        return [*messages, {"role": "user", "content": text}]
    if not messages or messages[-1]["role"] != "tool" or "observation" in messages[-1]:
        raise ConfigError(
            "The model has not called a tool, so there is no result to give.", "Send it as a user's message."
        )
    return [*messages[:-1], {**messages[-1], "observation": text}]


def answered(messages: Messages, reply: Reply) -> Messages:
    """The conversation with the model's reply."""
    if not reply.tool_calls:
        return [*messages, {"role": "assistant", "content": reply.content}]
    calls = [{"role": "tool", "name": call.name, "parameters": call.arguments} for call in reply.tool_calls]
    return [*messages, *calls]


def unanswered(messages: Messages) -> Messages:
    """The conversation without its last reply, to be answered anew.

    Raises:
        ConfigError: there is none.
    """
    kept = list(messages)
    while kept and (kept[-1]["role"] == "assistant" or (kept[-1]["role"] == "tool" and "observation" not in kept[-1])):
        kept.pop()
    if not kept or len(kept) == len(messages):
        raise ConfigError("There is no reply to make anew.", "Ask something first.")
    return kept


def shown(messages: Messages, piece: str | None = None) -> list[dict[str, str]]:
    """The messages as the page's chat takes them, with the reply so far. Every text is escaped: Gradio's chat reads
    markup, and would fetch a picture that a model names, even where Markdown is switched off."""
    rows = [row for message in messages for row in _shown(message)]
    if piece is not None:
        rows.append({"role": "assistant", "content": piece or "…"})
    return [{**row, "content": escape(row["content"], quote=False)} for row in rows]


def _shown(message: dict[str, Any]) -> list[dict[str, str]]:
    if message["role"] != "tool":
        return [{"role": message["role"], "content": message["content"]}]
    call = f"→ {message['name']}({json.dumps(message['parameters'], ensure_ascii=False)})"
    rows = [{"role": "assistant", "content": call}]
    if "observation" in message:
        rows.append({"role": "user", "content": f"← {message['observation']}"})
    return rows


def read_tools(text: str) -> list[Any] | None:
    """The descriptions of tools that a user typed.

    Raises:
        ConfigError: not a JSON list.
    """
    if not text.strip():
        return None
    try:
        tools = parse_json(text)
    except DocumentError as error:
        line = f", line {error.line}" if error.line else ""
        raise ConfigError(f"Tools{line}: {error.problem}.", "Give a JSON list.") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ConfigError("Tools: must be a JSON list of objects.", 'For example: [{"name": "weather", ...}]')
    return tools or None


def stream(
    opened: LoadedModel,
    messages: Messages,
    sampling: Sampling,
    stopped: threading.Event,
    *,
    system: str = "",
    tools: list[Any] | None = None,
    seed: int | None = None,
    on_drop: Callable[[int], None] | None = None,
) -> Iterator[str | Reply]:
    """Let the model answer in a thread of its own.

    Args:
        opened: the model.
        messages: the user's message, or a tool's result, last.
        sampling: how tokens are chosen.
        stopped: ends the reply between two tokens once it is set.
        system: the system message.
        tools: descriptions.
        seed: makes a sampled reply repeat.
        on_drop: see `generate_reply`.

    Yields:
        The text so far, again and again, then the reply; a stopped one holds what there was.
    """
    pieces: queue.Queue[str | Reply | Exception] = queue.Queue()
    left = threading.Event()

    def put(text: str) -> None:
        if stopped.is_set() or left.is_set():
            raise _Stopped
        pieces.put(text)

    def work() -> None:
        begun = [{"role": "system", "content": system}, *messages] if system else messages
        try:
            if seed is not None:
                set_seed(seed)
            pieces.put(
                generate_reply(
                    *(opened.model, opened.tokenizer, opened.family, begun),
                    tools=tools,
                    sampling=sampling,
                    on_text=put,
                    prefix=opened.prefix,
                    on_drop=on_drop,
                )
            )
        except Exception as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _pieces(pieces)
    finally:
        left.set()  # nobody listens any more if the page was closed
        thread.join()


def _pieces(pieces: queue.Queue[str | Reply | Exception]) -> Iterator[str | Reply]:
    text = ""
    while True:
        piece = pieces.get()
        if isinstance(piece, str):
            text += piece
            if pieces.empty():  # a page slower than the model is not sent every token
                yield text
        elif isinstance(piece, _Stopped):
            yield Reply(text)
            return
        elif isinstance(piece, Exception):
            raise piece
        else:
            yield piece
            return
