"""The tab `Chat`: one model, or two side by side on the same message; votes, and conversations that are kept."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.families import Reply
from glmtune.generation.context_window import get_default_reply_length
from glmtune.generation.reply import Sampling
from glmtune.webui import lists
from glmtune.webui.chat_messages import Messages, add_message, add_reply, read_tools, remove_reply, render_messages
from glmtune.webui.chat_store import (
    Chat,
    Vote,
    add_vote,
    change_chat,
    count_votes,
    create_chat,
    delete_chat,
    list_chats,
    load_chat,
    make_rows,
    write_votes,
)
from glmtune.webui.chat_stream import stream_reply
from glmtune.webui.context import Context
from glmtune.webui.paths import model_or_path
from glmtune.webui.rendering import get_language, make_problem, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
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
class _Turn:
    """One side's part of a request: messages to answer, and those that stand if it fails."""

    number: int
    target: str
    before: Messages
    messages: Messages
    dropped: int = 0
    """Number of messages that the model's context window had no room for."""


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    stops: dict[str, threading.Event] = {}

    @app.get("/chat")
    def show_chat(request: Request, id: str = "", model: str = "", other: str = "") -> Response:
        chat = load_chat(context, id) if id else None
        return render_page(
            *(request, context, "chat"),
            tab="chat",
            chat=chat,
            sides=_describe_sides(context, chat) if chat else [],
            chats=list_chats(context),
            targets=lists.list_targets(context),
            model=context.shorten(chat.sides[0].target) if chat and chat.sides else model,
            other=context.shorten(chat.sides[1].target) if chat and len(chat.sides) > 1 else other,
            settings={name: (chat.settings if chat else {}).get(name, value) for name, (value, _) in SETTINGS.items()},
            steps={name: step for name, (_, step) in SETTINGS.items()},
            votes=count_votes(chat) if chat else {},
        )

    @app.post("/chat/new")
    async def open_chat(request: Request) -> Response:
        data = await read_form(request)
        names = [data.get("model"), *([data.get("other")] if data.get("other") else [])]
        if not names[0]:
            raise ConfigError(text("chat.no_model", get_language(request, context)))
        targets = [model_or_path(context.roots, name) for name in names]
        settings = {name: data.get(name, value) for name, (value, _) in SETTINGS.items()}
        chat = await run_in_threadpool(create_chat, context, targets, settings)
        return redirect(request, f"/chat?{urlencode({'id': chat.id})}")

    @app.post("/chat/{id}/send")
    async def send_message(request: Request, id: str) -> Response:
        data = await read_form(request)
        if id in stops:
            raise ConfigError(text("chat.busy", get_language(request, context)))
        chat = await run_in_threadpool(load_chat, context, id)
        chat.settings = {name: data.get(name, value) for name, (value, _) in SETTINGS.items()}
        turns = make_turns(chat, data)
        sampling, seed = parse_sampling(chat.settings)
        tools = read_tools(chat.settings["tools"])
        if id in stops:
            raise ConfigError(text("chat.busy", get_language(request, context)))
        events = _answer(request, context, chat, turns, sampling, seed, tools, stops)
        return StreamingResponse(events, media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})

    @app.post("/chat/{id}/stop")
    async def stop_reply(request: Request, id: str) -> Response:
        await read_form(request)
        if id in stops:
            stops[id].set()
        return Response(status_code=204)

    @app.post("/chat/{id}/vote")
    async def vote(request: Request, id: str) -> Response:
        data = await read_form(request)

        def change(chat: Chat) -> None:
            add_vote(chat, make_vote(chat, data.get("better")))

        chat = await run_in_threadpool(change_chat, context, id, change)
        return render_part(request, context, "chat_votes", chat=chat, votes=count_votes(chat))

    @app.post("/chat/votes")
    async def save_votes(request: Request) -> Response:
        await read_form(request)
        path, count = await run_in_threadpool(write_votes, context)
        lang = get_language(request, context)
        line = text("chat.votes_written", lang, path=context.shorten(path), count=count)
        return render_part(request, context, "markup", markup=line)

    @app.post("/chat/{id}/rename")
    async def rename_chat(request: Request, id: str) -> Response:
        data = await read_form(request)

        def change(chat: Chat) -> None:
            chat.name = data.get("name")[:60]

        await run_in_threadpool(change_chat, context, id, change)
        return redirect(request, f"/chat?{urlencode({'id': id})}")

    @app.post("/chat/{id}/delete")
    async def remove_chat(request: Request, id: str) -> Response:
        await read_form(request)
        await run_in_threadpool(delete_chat, context, id)
        return redirect(request, "/chat")

    @app.get("/chat/{id}/rows")
    def export_rows(id: str) -> Response:
        rows = make_rows(load_chat(context, id))
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        name = f'attachment; filename="chat-{id[:8]}.jsonl"'
        return PlainTextResponse(content, headers={"Content-Disposition": name})

    @app.get("/chat/{id}/messages")
    def read_messages(id: str) -> Response:
        return JSONResponse([render_messages(side.messages) for side in load_chat(context, id).sides])


def make_turns(chat: Chat, data: FormData) -> list[_Turn]:
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
        turns.append(_Turn(number, side.target, side.messages, messages))
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


def make_vote(chat: Chat, better: str) -> Vote:
    """A vote on the last replies of both sides.

    Raises:
        ConfigError: there are no two replies to the same messages.
    """
    messages = [side.messages for side in chat.sides]
    asked = [[message["content"] for message in each if message["role"] == "user"] for each in messages]
    has_replies = len(messages) == 2 and all(each and each[-1]["role"] == "assistant" for each in messages)
    if not has_replies or asked[0] != asked[1]:  # one side may have failed
        raise ConfigError("There are no two replies to compare.", "Ask two models side by side first.")
    # The first side's history stands for both; a row has one prompt.
    tools = read_tools(chat.settings.get("tools", ""))
    system = chat.settings.get("system", "").strip()
    prompt = [*([{"role": "system", "content": system}] if system else []), *messages[0][:-1]]
    replies = [str(each[-1]["content"]) for each in messages]
    number = {"first": 0, "second": 1}.get(better, -1)
    return Vote(prompt, replies, [side.target for side in chat.sides], number, tools)


async def _answer(
    request: Request,
    context: Context,
    chat: Chat,
    turns: list[_Turn],
    sampling: Sampling,
    seed: int | None,
    tools: list[Any] | None,
    stops: dict[str, threading.Event],
) -> AsyncIterator[str]:
    """Lines of JSON: `{"side": 0, "text": ...}` while it answers, `{"side": 0, "messages": [...]}` at its end,
    `{"side": 0, "error": ...}`, and `{"status": ...}`."""
    lang = get_language(request, context)
    if chat.id in stops:  # a request that came at the same time
        problem = str(make_problem(ConfigError(text("chat.busy", lang)), lang))
        yield "".join(json.dumps({"side": turn.number, "error": problem}) + "\n" for turn in turns)
        return
    stop = stops[chat.id] = threading.Event()
    watcher = asyncio.ensure_future(_watch_client(request, stop))
    try:
        for turn in turns:
            events = _answer_turn(context, chat, turn, sampling, seed, tools, stop, lang)
            async for event in iterate_in_threadpool(events):
                yield json.dumps(event, ensure_ascii=False) + "\n"
    finally:
        stop.set()
        watcher.cancel()
        stops.pop(chat.id, None)


async def _watch_client(request: Request, stop: threading.Event) -> None:
    """End the reply when nobody waits for it any more."""
    while not stop.is_set():
        if await request.is_disconnected():
            stop.set()
        await asyncio.sleep(0.2)


def _answer_turn(
    context: Context,
    chat: Chat,
    turn: _Turn,
    sampling: Sampling,
    seed: int | None,
    tools: list[Any] | None,
    stop: threading.Event,
    lang: str,
) -> Iterator[dict[str, Any]]:
    name = context.shorten(turn.target)
    if stop.is_set():
        return
    yield {"side": turn.number, "status": text("chat.answering", lang, name=name)}
    start, latest = time.monotonic(), ""

    def count_dropped(count: int) -> None:
        turn.dropped = count

    try:
        with context.models.answering(turn.target) as loaded:
            if sampling.max_new_tokens == _DEFAULT.max_new_tokens:
                sampling = replace(sampling, max_new_tokens=get_default_reply_length(loaded.model))
            start = time.monotonic()  # without the loading
            pieces = stream_reply(
                *(loaded, turn.messages, sampling, stop),
                system=chat.settings["system"].strip(),
                tools=tools,
                seed=seed,
                on_drop=count_dropped,
            )
            for piece in pieces:
                if isinstance(piece, str):
                    latest = piece
                    yield {"side": turn.number, "text": piece}
                else:
                    yield from _finish(context, chat, turn, piece, loaded, time.monotonic() - start, stop, lang)
    except GlmtuneError as error:
        yield {"side": turn.number, "error": str(make_problem(error, lang))}
    except GeneratorExit:  # the browser is gone; what there was is kept
        if latest:
            _keep_reply(context, chat, turn, add_reply(turn.messages, Reply(latest)))
        raise
    except Exception as error:  # a bug of ours, or a GPU without room: the page is told, and not only cut off
        problem = GlmtuneError(f"The reply failed: {type(error).__name__}: {error}"[:600])
        yield {"side": turn.number, "error": str(make_problem(problem, lang))}


def _finish(
    context: Context,
    chat: Chat,
    turn: _Turn,
    reply: Reply,
    loaded: Any,
    seconds: float,
    stop: threading.Event,
    lang: str,
) -> Iterator[dict[str, Any]]:
    messages = add_reply(turn.messages, reply)
    _keep_reply(context, chat, turn, messages)
    tokens = len(loaded.tokenizer(reply.content, add_special_tokens=False)["input_ids"])
    speed = f"{tokens / max(seconds, 1e-3):.1f}"
    key = "chat.stopped" if stop.is_set() else "chat.speed"
    status = text(key, lang, **({} if stop.is_set() else {"seconds": f"{seconds:.1f}", "speed": speed}))
    if turn.dropped:
        status = f"{status} · {text('chat.dropped', lang, count=turn.dropped)}"
    yield {"side": turn.number, "messages": render_messages(messages), "status": status}


def _keep_reply(context: Context, chat: Chat, turn: _Turn, messages: Messages) -> None:
    """Write a side's messages into the conversation as it is on disk, with the settings of the request."""

    def change(latest: Chat) -> None:
        latest.sides[turn.number].messages = messages
        latest.settings = chat.settings

    change_chat(context, chat.id, change)


def _describe_sides(context: Context, chat: Chat) -> list[dict[str, Any]]:
    return [
        {"name": context.shorten(side.target), "messages": render_messages(side.messages), "number": number}
        for number, side in enumerate(chat.sides)
    ]
