"""The tab `Chat`: one model, or two side by side on the same message; votes, and conversations that are kept."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from glmtune.errors import ConfigError
from glmtune.webui import lists
from glmtune.webui.chat_answer import SETTINGS, ChatAnswer, make_turns
from glmtune.webui.chat_messages import read_tools, render_messages
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
from glmtune.webui.context import Context
from glmtune.webui.paths import model_or_path
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import read_form
from glmtune.webui.texts import text


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    _add_answer_routes(app, context)
    _add_vote_routes(app, context)
    _add_conversation_routes(app, context)

    @app.get("/chat")
    def show_chat(request: Request, id: str = "", model: str = "", other: str = "") -> Response:
        chat = load_chat(context, id) if id else None
        found = lists.RootLists(context)
        return render_page(
            *(request, context, "chat"),
            tab="chat",
            chat=chat,
            sides=_describe_sides(context, chat) if chat else [],
            chats=list_chats(context),
            targets=found.targets,
            list_notes=found.describe_limits(get_language(request, context)),
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


def _add_answer_routes(app: FastAPI, context: Context) -> None:
    running: dict[str, ChatAnswer] = {}

    @app.post("/chat/{id}/send")
    async def send_message(request: Request, id: str) -> Response:
        data = await read_form(request)
        if id in running:
            raise ConfigError(text("chat.busy", get_language(request, context)))
        chat = await run_in_threadpool(load_chat, context, id)
        chat.settings = {name: data.get(name, value) for name, (value, _) in SETTINGS.items()}
        answer = ChatAnswer(context, chat, make_turns(chat, data), get_language(request, context))
        if id in running:
            raise ConfigError(text("chat.busy", get_language(request, context)))
        lines = answer.stream_lines(request, running)
        return StreamingResponse(lines, media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"})

    @app.post("/chat/{id}/stop")
    async def stop_reply(request: Request, id: str) -> Response:
        await read_form(request)
        if id in running:
            running[id].stop.set()
        return Response(status_code=204)


def _add_vote_routes(app: FastAPI, context: Context) -> None:
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


def _add_conversation_routes(app: FastAPI, context: Context) -> None:
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


def _describe_sides(context: Context, chat: Chat) -> list[dict[str, Any]]:
    return [
        {"name": context.shorten(side.target), "messages": render_messages(side.messages), "number": number}
        for number, side in enumerate(chat.sides)
    ]
