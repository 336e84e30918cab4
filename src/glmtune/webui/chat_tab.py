"""The tab `Chat`: one model, or two side by side on the same message; votes, and conversations that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from glmtune.errors import ConfigError
from glmtune.webui.chat_answer import SETTINGS, ChatAnswer, make_turns
from glmtune.webui.chat_messages import render_messages
from glmtune.webui.chat_store import (
    MAX_NAME,
    PAGE_CHATS,
    Chat,
    add_vote,
    change_chat,
    create_chat,
    delete_chat,
    list_chats,
    load_chat,
    make_rows,
)
from glmtune.webui.chat_votes import (
    count_votes,
    make_vote,
    read_comparison,
    update_comparison,
    write_votes,
)
from glmtune.webui.context import Context
from glmtune.webui.paths import model_or_path
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import read_form
from glmtune.webui.texts import text


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    _add_page_routes(app, context)
    _add_answer_routes(app, context)
    _add_vote_routes(app, context)
    _add_conversation_routes(app, context)


def _add_page_routes(app: FastAPI, context: Context) -> None:
    @app.get("/chat")
    def show_chat(request: Request, id: str = "", model: str = "", other: str = "") -> Response:
        chat = load_chat(context, id) if id else None
        return render_page(
            *(request, context, "chat"),
            tab="chat",
            chat=chat,
            sides=_describe_sides(context, chat) if chat else [],
            model=context.shorten(chat.sides[0].target) if chat and chat.sides else model,
            other=context.shorten(chat.sides[1].target) if chat and len(chat.sides) > 1 else other,
            settings={name: (chat.settings if chat else {}).get(name, value) for name, (value, _) in SETTINGS.items()},
            steps={name: step for name, (_, step) in SETTINGS.items()},
            **_describe_list(context, current=id),
            **(_describe_votes(context, chat) if chat else {}),
        )

    @app.get("/chat/list")
    def show_list(request: Request, search: str = "", page: int = 1, id: str = "") -> Response:
        values = _describe_list(context, search[:200], min(max(page, 1), 10**6), current=id)
        return render_part(request, context, "chat_list", **values)

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
        await run_in_threadpool(update_comparison, context, chat)
        values = await run_in_threadpool(_describe_votes, context, chat)
        return render_part(request, context, "chat_votes", chat=chat, **values)

    @app.post("/chat/votes")
    async def save_votes(request: Request) -> Response:
        await read_form(request)
        written = await run_in_threadpool(write_votes, context)
        lang = get_language(request, context)
        lines = [text("chat.votes_written", lang, path=context.shorten(written.path), count=written.rows)]
        if written.later_rows:
            lines.append(text("chat.votes_later", lang, count=written.later_rows))
        if written.ties:
            lines.append(text("chat.votes_ties", lang, count=written.ties))
        return render_part(request, context, "markup", markup=" ".join(lines))


def _add_conversation_routes(app: FastAPI, context: Context) -> None:
    @app.post("/chat/{id}/rename")
    async def rename_chat(request: Request, id: str) -> Response:
        data = await read_form(request)

        def change(chat: Chat) -> None:
            name = " ".join(data.get("name").split())
            if len(name) > MAX_NAME:
                raise ConfigError(text("chat.name_long", get_language(request, context), limit=MAX_NAME))
            chat.name, chat.is_named = name, bool(name)  # without one it is called after its first question again

        await run_in_threadpool(change_chat, context, id, change)
        return redirect(request, f"/chat?{urlencode({'id': id})}")

    @app.post("/chat/{id}/delete")
    async def remove_chat(request: Request, id: str) -> Response:
        await read_form(request)
        try:
            chat: Chat | None = await run_in_threadpool(load_chat, context, id)
        except ConfigError:  # damaged, or deleted in another window
            chat = None
        await run_in_threadpool(delete_chat, context, id)
        if chat is not None and chat.votes:
            await run_in_threadpool(update_comparison, context, chat)
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


def _describe_list(context: Context, search: str = "", page: int = 1, *, current: str) -> dict[str, Any]:
    """Values of the template `chat_list`."""
    chats, count = list_chats(context, search, page)
    return {
        "chats": chats,
        "models": {chat.id: " · ".join(Path(side.target).name for side in chat.sides) for chat in chats},
        "count": count,
        "search": search,
        "page": page,
        "page_size": PAGE_CHATS,
        "pages": max(1, -(-count // PAGE_CHATS)),
        "current": current,
    }


def _describe_votes(context: Context, chat: Chat) -> dict[str, Any]:
    """Values of the template `chat_votes`: the votes of this conversation, and the comparison that they are part of."""
    if len(chat.sides) != 2:
        return {"votes": {}}
    folder, comparison = read_comparison(context, chat) or ("", None)
    return {
        "votes": count_votes(chat),
        "comparison": comparison,
        "comparison_folder": str(folder),
        "has_other_history": any(vote.other_messages is not None for vote in chat.votes),
    }
