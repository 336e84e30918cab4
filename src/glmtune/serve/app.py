"""The routes of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from glmtune.serve.api_errors import ApiError
from glmtune.serve.chat_completions import complete_chat
from glmtune.serve.chat_page import make_page_response
from glmtune.serve.context import ServeContext
from glmtune.serve.http_messages import ClientDisconnectError, make_json_response
from glmtune.serve.legacy_api import LegacyBody, answer_prompt
from glmtune.serve.openai_schema import ChatCompletionBody, TextCompletionBody, TokenizeBody
from glmtune.serve.request_guard import CLIENT_CLOSED, AccessRules, RequestGuard
from glmtune.serve.text_completions import complete_text, tokenize

Handler = Callable[[Request, ServeContext], Coroutine[Any, Any, Response]]


def make_app(
    context: ServeContext,
    rules: AccessRules | None = None,
    *,
    cors_origins: list[str] | None = None,
    has_docs: bool = False,
    lang: str = "en",
) -> ASGIApp:
    """Build the server's application.

    Args:
        context: engine, models and limits.
        rules: who may ask.
        cors_origins: web pages of other hosts that may ask; none by default.
        has_docs: whether /docs describes the routes; that page loads its script from a public host.
        lang: that the chat page shows first.
    """
    rules = rules or AccessRules()

    @asynccontextmanager
    async def close_engine(_: FastAPI) -> AsyncIterator[None]:
        yield
        # All answers have been sent by now; what is left belongs to clients that were given up.
        await asyncio.to_thread(context.engine.close)
        context.close()

    app = FastAPI(
        title="glmtune serve",
        lifespan=close_engine,
        docs_url="/docs" if has_docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if has_docs else None,
        exception_handlers={
            HTTPException: _answer_http_error,
            ApiError: _answer_api_error,
            ClientDisconnectError: _answer_nobody,
            Exception: _answer_failure,
        },
    )
    bodies: dict[str, tuple[Handler, Any]] = {
        "/v1/chat/completions": (complete_chat, ChatCompletionBody),
        "/v1/completions": (complete_text, TextCompletionBody),
        "/tokenize": (tokenize, TokenizeBody),
        "/": (answer_prompt, LegacyBody),
    }
    for path, (handler, body) in bodies.items():
        schema = {"requestBody": {"content": {"application/json": {"schema": body.model_json_schema()}}}}
        app.add_api_route(
            path, _bind_context(handler, context), methods=["POST"], openapi_extra=schema, response_model=None
        )
    _add_information_routes(app, context, lang)

    guarded: ASGIApp = RequestGuard(app, context, rules)
    if cors_origins:
        # Outside the guard: a browser asks for permission without a key, and has to be able to read refusals.
        methods, headers = ["GET", "POST"], ["authorization", "content-type"]
        guarded = CORSMiddleware(guarded, cors_origins, allow_methods=methods, allow_headers=headers)
    return guarded


def _add_information_routes(app: FastAPI, context: ServeContext, lang: str) -> None:
    """Add the routes that are read with GET."""

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return make_json_response({"object": "list", "data": [_describe(model.name) for model in context.models]})

    @app.get("/v1/models/{name:path}")
    async def describe_model(name: str) -> JSONResponse:
        return make_json_response(_describe(context.find_model(name).name))

    @app.get("/health")
    async def report_health() -> JSONResponse:
        if context.is_draining:
            return JSONResponse({"status": "draining"}, 503)
        return make_json_response({"status": "ok"})

    @app.get("/metrics")
    async def report_metrics() -> PlainTextResponse:
        text = context.metrics.render(context.engine.stats())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def show_chat() -> Response:
        return make_page_response(lang)

    def _describe(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": context.created,
            "owned_by": "glmtune",
            "max_model_len": context.limits.context_window,
        }


def _bind_context(handler: Handler, context: ServeContext) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    async def handle(request: Request) -> Response:
        return await handler(request, context)

    handle.__name__ = handler.__name__
    handle.__doc__ = handler.__doc__
    return handle


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """404 and 405 of the router, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.url.path[:200]}"
    return ApiError(error.status_code, f"{route}: {error.detail}.", headers=dict(error.headers or {})).to_response()


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client left; the status is for the metrics."""
    return Response(status_code=CLIENT_CLOSED)


async def _answer_failure(request: Request, error: Exception) -> Response:
    """A bug of ours; the guard logs it."""
    return ApiError(500, "The server failed; its log says why.", code="internal_error").to_response()
