"""Answers to requests that fail, for whoever asked: a page with a way back, lines for a script, JSON for a program.

What a person can correct is shown in place (422), an address that does not exist or takes no such request by a page of
its status. An exception is a fault of ours: the page has a number for it and the log to look at, the server's log has
the number and the traceback.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from functools import partial

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from glmtune.errors import GlmtuneError
from glmtune.webui.context import Context
from glmtune.webui.errors import JobError
from glmtune.webui.rendering import TABS, UNPROCESSABLE, get_language, make_problem, render_page
from glmtune.webui.texts import has_text, text

_LOG = logging.getLogger("glmtune.webui")
_FAULT = 500


def add_status_pages(app: FastAPI, context: Context) -> None:
    """Add what answers when a route raises an error, or there is no route."""
    app.add_exception_handler(GlmtuneError, partial(answer_user_error, context))
    app.add_exception_handler(HTTPException, partial(_answer_status, context))
    app.add_exception_handler(RequestValidationError, partial(_answer_invalid, context))
    app.add_exception_handler(Exception, partial(_answer_fault, context))


def log_fault(error: BaseException, place: str, has_traceback: bool = True) -> str:
    """Write an exception to the server's log.

    Args:
        error: a fault of ours.
        place: where it happened, for the log.
        has_traceback: False where the server writes that itself.

    Returns:
        The number under which it is found there.
    """
    number = secrets.token_hex(4)
    _LOG.error("Fault %s: %s: %s: %s", number, place, type(error).__name__, error, exc_info=has_traceback and error)
    return number


async def answer_user_error(context: Context, request: Request, error: Exception) -> Response:
    """What a user is told of an error that they can fix: a page, a part of one, or JSON for a program."""
    assert isinstance(error, GlmtuneError)
    if _wants_json(request):
        return JSONResponse({"error": {"message": error.message, "hint": error.hint}}, UNPROCESSABLE)
    lang = get_language(request, context)
    problem = make_problem(error, lang)
    if not _wants_page(request):
        return HTMLResponse(str(problem), UNPROCESSABLE)
    return _render(request, context, UNPROCESSABLE, text("app.problem_title", lang), problem=problem)


async def _answer_status(context: Context, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, context, error.status_code, headers=error.headers)


async def _answer_invalid(context: Context, request: Request, error: Exception) -> Response:
    return _answer(request, context, UNPROCESSABLE)


async def _answer_fault(context: Context, request: Request, error: Exception) -> Response:
    """The number of a fault. The exception goes on to the server, which logs its traceback."""
    number = log_fault(error, f"{request.method} {request.url.path}", has_traceback=False)
    lang = get_language(request, context)
    lines = [text("status.500.number", lang, number=number)]
    try:
        job = context.jobs.get(request.path_params.get("id", ""))
        lines.append(text("status.500.job", lang, path=context.shorten(context.jobs.find_log(job.id))))
    except (JobError, OSError):  # not about a job
        pass
    return _answer(request, context, _FAULT, lines)


def _answer(
    request: Request,
    context: Context,
    status: int,
    more: list[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    lang = get_language(request, context)
    key = f"status.{status}" if has_text(f"status.{status}") else "status.other"
    title = text(key, lang, status=status)
    lines = [text(f"{key}.hint", lang), *(more or [])]
    if _wants_json(request):
        return JSONResponse({"error": {"message": title, "hint": "\n".join(lines)}}, status, headers)
    if not _wants_page(request):
        return PlainTextResponse("\n".join([title, *lines]), status, headers)
    return _render(request, context, status, title, lines=lines, headers=headers)


def _render(
    request: Request,
    context: Context,
    status: int,
    title: str,
    problem: str = "",
    lines: list[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    first = path.strip("/").partition("/")[0]
    tab = first if first in TABS else "train"
    page = render_page(
        *(request, context, "error"), tab=tab, title=title, problem=problem, lines=lines or [], status=status
    )
    page.status_code = status
    page.headers.update(headers or {})
    return page


def _wants_page(request: Request) -> bool:
    return "hx-request" not in request.headers and "text/html" in request.headers.get("accept", "")


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted
