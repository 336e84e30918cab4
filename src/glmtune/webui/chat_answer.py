"""Answers in a conversation of the page: what each side has to answer, and the lines that the browser gets."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.families import Reply
from glmtune.generation.context_window import get_default_reply_length
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.webui.chat_messages import Messages, add_message, add_reply, read_tools, remove_reply, render_messages
from glmtune.webui.chat_store import Chat, change_chat
from glmtune.webui.chat_stream import stream_reply
from glmtune.webui.context import Context
from glmtune.webui.rendering import make_problem
from glmtune.webui.requests import FormData
from glmtune.webui.status_pages import log_fault
from glmtune.webui.texts import text

_DEFAULT = Sampling()
SETTINGS: dict[str, tuple[str, str]] = {
    "system": ("", "text"),
    "max_new_tokens": (str(_DEFAULT.max_new_tokens), "1"),
    "temperature": (str(_DEFAULT.temperature), "0.05"),
    "top_p": (str(_DEFAULT.top_p), "0.05"),
    "repetition_penalty": (str(_DEFAULT.repetition_penalty), "0.05"),
    "seed": ("-1", "1"),
    "tools": ("", "text"),
}
"""Default and step of the fields beside the messages; `text` is a text area."""
_RANGES = {
    "max_new_tokens": (1, 32_768),
    "temperature": (0, 5),
    "top_p": (0, 1),
    "repetition_penalty": (0.1, 5),
    "seed": (-1, 2**32 - 1),
}
"""Smallest and largest value of the fields that are numbers."""


@dataclass
class Turn:
    """One side's part of a request: messages to answer, and those that stand if it fails."""

    number: int
    target: str
    before: Messages
    messages: Messages
    dropped: int = 0
    """Number of messages that the model's context window had no room for."""


class ChatAnswer:
    """The answers of all sides to one request.

    Args:
        context: the server's settings.
        chat: the conversation, with the settings of the request.
        turns: see `make_turns`.
        lang: of the page.

    Raises:
        ConfigError: a setting that cannot be used.
    """

    def __init__(self, context: Context, chat: Chat, turns: list[Turn], lang: str):
        self._context = context
        self._chat = chat
        self._turns = turns
        self._lang = lang
        self._sampling, self._seed = parse_sampling(chat.settings)
        self._tools = read_tools(chat.settings["tools"])
        self.stop = threading.Event()
        """Ends the answers between two tokens once it is set."""

    async def stream_lines(self, request: Request, running: dict[str, ChatAnswer]) -> AsyncIterator[str]:
        """Answer one side after the other.

        Args:
            request: the answers end when its client is gone.
            running: the answers that are being given, by conversation; this one is in it meanwhile.

        Yields:
            Lines of JSON: `{"side": 0, "text": ...}` while it answers, `{"side": 0, "messages": [...]}` at its end,
            `{"side": 0, "error": ...}`, and `{"status": ...}`.
        """
        if self._chat.id in running:  # a request that came at the same time
            problem = str(make_problem(ConfigError(text("chat.busy", self._lang)), self._lang))
            yield "".join(json.dumps({"side": turn.number, "error": problem}) + "\n" for turn in self._turns)
            return
        running[self._chat.id] = self
        watcher = asyncio.ensure_future(_watch_client(request, self.stop))
        try:
            for turn in self._turns:
                async for event in iterate_in_threadpool(self._answer_turn(turn)):
                    yield json.dumps(event, ensure_ascii=False) + "\n"
        finally:
            self.stop.set()
            watcher.cancel()
            running.pop(self._chat.id, None)

    def _answer_turn(self, turn: Turn) -> Iterator[dict[str, Any]]:
        if self.stop.is_set():
            return
        name = self._context.shorten(turn.target)
        yield {"side": turn.number, "status": text("chat.answering", self._lang, name=name)}
        latest = ""
        try:
            with self._context.models.answering(turn.target) as loaded:
                start = time.monotonic()  # without the loading
                for piece in self._stream_turn(loaded, turn):
                    if isinstance(piece, str):
                        latest = piece
                        yield {"side": turn.number, "text": piece}
                    else:
                        yield self._finish_turn(turn, piece, loaded, time.monotonic() - start)
        except GlmtuneError as error:
            yield {"side": turn.number, "error": str(make_problem(error, self._lang))}
        except GeneratorExit:  # the browser is gone; what there was is kept
            if latest:
                self._keep_reply(turn, add_reply(turn.messages, Reply(latest)))
            raise
        except Exception as error:  # a bug of ours, or a GPU without room: the page is told, and not only cut off
            log_fault(error, f"reply of {name}")
            problem = GlmtuneError(f"The reply failed: {type(error).__name__}: {error}"[:600])
            yield {"side": turn.number, "error": str(make_problem(problem, self._lang))}

    def _stream_turn(self, loaded: LoadedModel, turn: Turn) -> Iterator[str | Reply]:
        sampling = self._sampling
        if sampling.max_new_tokens == _DEFAULT.max_new_tokens:
            sampling = replace(sampling, max_new_tokens=get_default_reply_length(loaded.model))

        def count_dropped(count: int) -> None:
            turn.dropped = count

        return stream_reply(
            *(loaded, turn.messages, sampling, self.stop),
            system=self._chat.settings["system"].strip(),
            tools=self._tools,
            seed=self._seed,
            on_drop=count_dropped,
        )

    def _finish_turn(self, turn: Turn, reply: Reply, loaded: LoadedModel, seconds: float) -> dict[str, Any]:
        messages = add_reply(turn.messages, reply)
        self._keep_reply(turn, messages)
        if self.stop.is_set():
            status = text("chat.stopped", self._lang)
        else:
            tokens = len(loaded.tokenizer(reply.content, add_special_tokens=False)["input_ids"])
            speed = f"{tokens / max(seconds, 1e-3):.1f}"
            status = text("chat.speed", self._lang, seconds=f"{seconds:.1f}", speed=speed)
        if turn.dropped:
            status = f"{status} · {text('chat.dropped', self._lang, count=turn.dropped)}"
        return {"side": turn.number, "messages": render_messages(messages), "status": status}

    def _keep_reply(self, turn: Turn, messages: Messages) -> None:
        """Write a side's messages into the conversation as it is on disk, with the settings of the request."""

        def change(latest: Chat) -> None:
            latest.sides[turn.number].messages = messages
            latest.settings = self._chat.settings

        change_chat(self._context, self._chat.id, change)


def make_turns(chat: Chat, data: FormData) -> list[Turn]:
    """What each side has to answer.

    Args:
        chat: the conversation.
        data: `action` is send, again (the last reply once more) or edit (the user's message `index`, replaced by
            `prompt`, with all that followed it); `is_result`: `prompt` is what a tool returned.

    Raises:
        ConfigError: nothing to send, to answer again or to edit.
    """
    turns = []
    for number, side in enumerate(chat.sides):
        action, messages = data.get("action", "send"), side.messages
        if action == "again":
            messages = remove_reply(messages)
        elif action == "edit":
            index = data.get_number("index", -1, low=-1)
            if not 0 <= index < len(messages) or messages[index]["role"] != "user":
                raise ConfigError("There is no such message to edit.", "Reload the page.")
            messages = add_message(messages[:index], data.get("prompt"), is_result=False)
        else:
            messages = add_message(messages, data.get("prompt"), data.has("is_result"))
        turns.append(Turn(number, side.target, side.messages, messages))
    return turns


def parse_sampling(settings: dict[str, str]) -> tuple[Sampling, int | None]:
    """How tokens are chosen, and the seed; negative or empty: none.

    Raises:
        ConfigError: not a number, or out of its range.
    """
    values: dict[str, float] = {}
    for name in _RANGES:
        try:
            values[name] = float(settings.get(name) or SETTINGS[name][0])
        except ValueError:
            raise ConfigError(f"{name}: {settings[name][:40]!r} is not a number.", "Correct it.") from None
        low, high = _RANGES[name]
        if not math.isfinite(values[name]) or not low <= values[name] <= high:
            raise ConfigError(f"{name}: must be between {low:,} and {high:,}.", "Correct it.")
    sampling = Sampling(
        int(values["max_new_tokens"]), values["temperature"], values["top_p"], values["repetition_penalty"]
    )
    return sampling, int(values["seed"]) if values["seed"] >= 0 else None


async def _watch_client(request: Request, stop: threading.Event) -> None:
    """End the reply when nobody waits for it any more."""
    while not stop.is_set():
        if await request.is_disconnected():
            stop.set()
        await asyncio.sleep(0.2)
