"""The page: its routes, and the server that sends it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from glmtune.errors import GlmtuneError, ServerError
from glmtune.html.i18n import LANGUAGES
from glmtune.utils.network import is_loopback, listen
from glmtune.webui import (
    chat_tab,
    data_tab,
    evaluate_tab,
    export_tab,
    jobs_view,
    model_tab,
    runs_tab,
    status_strip,
    train_tab,
)
from glmtune.webui.context import STATE, Context
from glmtune.webui.guard import Guard
from glmtune.webui.jobs import Jobs
from glmtune.webui.rendering import LANGUAGE_COOKIE, redirect, render_error
from glmtune.webui.requests import read_form
from glmtune.webui.sessions import Sessions, require_password

_ROUTES = (*(model_tab, data_tab, train_tab, runs_tab, chat_tab, evaluate_tab, export_tab), jobs_view, status_strip)
_STYLES = (("glmtune.html", "templates/base.css"), ("glmtune.report", "templates/report.css"))
_OWN_STYLES = ("glmtune.webui", "static/app.css")
_YEAR_S = 365 * 24 * 3600


def make_context(roots: list[Path], lang: str, *, locked: bool = False) -> Context:
    """The settings of a server.

    Raises:
        ServerError: a root that is no folder, or one that cannot be written to.
    """
    for root in roots:
        if not root.is_dir():
            raise ServerError(f"--root {root}: no such folder.", "Give folders that exist.")
    resolved = [root.resolve() for root in roots]
    try:
        jobs = Jobs(resolved[0] / STATE / "jobs", resolved[0])
    except OSError as error:
        raise ServerError(
            f"{resolved[0]}: cannot be written to ({error.strerror}).",
            "The first --root must be a folder of yours; runs and jobs are kept there.",
        ) from None
    return Context(resolved, lang, jobs, locked)


def make_routes(context: Context) -> FastAPI:
    """The routes of the page, without the guard around them."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def answer_user_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, GlmtuneError)
        return render_error(request, context, error)

    app.add_exception_handler(GlmtuneError, answer_user_error)
    app.mount("/static/vendor", StaticFiles(packages=[("glmtune.webui", "static/vendor")]))

    @app.get("/static/app.css")
    async def send_styles() -> Response:
        return Response(load_styles(), media_type="text/css")

    @app.get("/static/{name}.js")
    async def send_script(name: str) -> Response:
        script = load_scripts().get(name)
        if script is None:
            return PlainTextResponse("no such script", 404)
        return Response(script, media_type="text/javascript")

    @app.get("/")
    async def open_first_tab(request: Request) -> Response:
        return redirect(request, "/train")

    @app.post("/language")
    async def choose_language(request: Request) -> Response:
        lang = (await read_form(request)).get("to")
        response = HTMLResponse("", headers={"HX-Refresh": "true"})
        if lang in LANGUAGES:
            path = request.scope.get("root_path", "") or "/"
            response.set_cookie(LANGUAGE_COOKIE, lang, max_age=_YEAR_S, path=path, samesite="lax", httponly=True)
        return response

    for module in _ROUTES:
        module.add_routes(app, context)
    return app


@cache
def load_styles() -> str:
    """The reports' style sheets and the page's own."""
    return "\n".join(files(place).joinpath(name).read_text("utf-8") for place, name in (*_STYLES, _OWN_STYLES))


@cache
def load_scripts() -> dict[str, str]:
    """The page's own scripts by name."""
    folder = files("glmtune.webui").joinpath("static")
    return {path.name[:-3]: path.read_text("utf-8") for path in folder.iterdir() if path.name.endswith(".js")}


def make_app(context: Context, *, password: str | None = None, **access: Any) -> ASGIApp:
    """The server's application.

    Args:
        context: see `make_context`.
        password: asked for on a login page; None: none.
        access: see `Guard`.
    """
    app: ASGIApp = make_routes(context)
    if password:
        app = Sessions(app, context, password)
    return Guard(app, context, **access)


def serve(roots: list[Path], *, host: str, port: int, lang: str, password: str | None, **access: Any) -> None:
    """Serve the page until it is interrupted. Jobs continue after that.

    Raises:
        ServerError: see `make_context`, `require_password` and `listen`.
    """
    require_password(host, password)
    context = make_context(roots, lang, locked=bool(password))
    with listen(host, port, "ui") as socket:
        app = make_app(context, password=password, is_local=is_loopback(host), **access)
        context.jobs.watch()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        print(f"glmtune ui: http://{host}:{socket.getsockname()[1]}  (Ctrl-C ends it; running jobs continue)", flush=True)
        uvicorn.Server(config).run(sockets=[socket])
