"""The page: its routes, and the server that sends it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from glmtune.errors import ServerError
from glmtune.html.i18n import LANGUAGES
from glmtune.serve.model_loading import ServeOptions, load_context
from glmtune.serve.run_server import GracefulServer
from glmtune.utils.network import listen
from glmtune.webui import (
    chat_tab,
    choices_view,
    data_tab,
    evaluate_tab,
    export_tab,
    jobs_view,
    migrate_tab,
    model_tab,
    pruning,
    runs_tab,
    status_strip,
    train_tab,
    uploads,
)
from glmtune.webui.api_mount import API_PATH, ApiMount, make_api
from glmtune.webui.context import STATE, Context
from glmtune.webui.guard import visitor_of
from glmtune.webui.jobs import Jobs
from glmtune.webui.page_rules import PageRules, RouteRule, require_password
from glmtune.webui.rendering import TABS, redirect
from glmtune.webui.requests import MAX_FORM_BYTES, read_form
from glmtune.webui.sessions import HEALTH_PATH, guard_page
from glmtune.webui.status_pages import add_status_pages
from glmtune.webui.webhooks import check_webhook, send_webhook

_ROUTES = (
    *(model_tab, data_tab, train_tab, runs_tab, chat_tab, evaluate_tab, export_tab, migrate_tab),
    jobs_view,
    status_strip,
    choices_view,
)
_STYLES = (("glmtune.html", "templates/base.css"), ("glmtune.report", "templates/report.css"))
_OWN_STYLES = ("glmtune.webui", "static/app.css")
_FORM_RULE = RouteRule("/train", MAX_FORM_BYTES)
PAGE_PATHS = frozenset(
    f"/{name}"
    for name in (
        *(*TABS, "jobs", "choices", "static", "strip", "health", "language", "uploads", "login", "logout", "api"),
    )
)
"""First parts of the page's own paths, which no root path may equal."""


def make_context(roots: list[Path], lang: str, *, locked: bool = False, webhook: str | None = None) -> Context:
    """The settings of a server.

    Args:
        roots: see `Context`.
        lang: of browsers that have chosen none.
        locked: whether the server asks for a password.
        webhook: address that gets a message when a job ends.

    Raises:
        ServerError: a root that is no folder, or one that cannot be written to.
    """
    for root in roots:
        if not root.is_dir():
            raise ServerError(f"--root {root}: no such folder.", "Give folders that exist.")
    resolved = [root.resolve() for root in roots]
    try:
        on_end = partial(send_webhook, check_webhook(webhook)) if webhook else None
        jobs = Jobs(resolved[0] / STATE / "jobs", resolved[0], on_end)
    except OSError as error:
        raise ServerError(
            f"{resolved[0]}: cannot be written to ({error.strerror}).",
            "The first --root must be a folder of yours; runs and jobs are kept there.",
        ) from None
    return Context(resolved, lang, jobs, locked)


def make_routes(context: Context) -> FastAPI:
    """The routes of the page, without the guard around them."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_status_pages(app, context)
    app.mount("/static/vendor", StaticFiles(packages=[("glmtune.webui", "static/vendor")]))

    @app.get("/static/app.css")
    async def send_styles() -> Response:
        return Response(load_styles(), media_type="text/css")

    @app.get("/static/{name}.js")
    async def send_script(name: str) -> Response:
        script = load_scripts().get(name)
        if script is None:
            raise HTTPException(404)
        return Response(script, media_type="text/javascript")

    @app.get("/")
    async def open_first_tab(request: Request) -> Response:
        return redirect(request, "/train")

    @app.get(HEALTH_PATH)
    async def report_health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.post("/language")
    async def choose_language(request: Request) -> Response:
        lang = (await read_form(request)).get("to")
        response = HTMLResponse("", headers={"HX-Refresh": "true"})
        if lang in LANGUAGES:
            response.raw_headers.append(visitor_of(request).format_language_cookie(lang))
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


def make_app(context: Context, rules: PageRules | None = None, *, password: str | None = None) -> ASGIApp:
    """The server's application: the routes with the guard and, with a password, the login around them.

    Args:
        context: see `make_context`.
        rules: whose requests are answered; None: those to this machine's own names.
        password: asked for on a login page; None: none.

    Raises:
        ServerError: the page's own folder cannot be written to.
    """
    app = make_routes(context)
    routes = (_FORM_RULE, uploads.add_routes(app, context))
    rules = replace(rules or PageRules(lang=context.lang), routes=routes)
    return guard_page(app, rules, context.state(), password, roots=context.roots)


def serve(
    roots: list[Path],
    rules: PageRules,
    *,
    host: str,
    port: int,
    password: str | None,
    webhook: str | None = None,
    served_model: str | None = None,
    api_key: str | None = None,
    stop_jobs: bool = False,
) -> None:
    """Serve the page until SIGTERM or Ctrl-C. Jobs continue after that.

    Args:
        roots: see `Context`.
        rules: whose requests are answered.
        host: address to listen on.
        port: 0: any that is free.
        password: None: nobody is asked for one.
        webhook: see `make_context`.
        served_model: a `RUN_OR_MODEL` that the API below `/api` answers with; None: no API.
        api_key: see `make_api`.
        stop_jobs: at the end, wait until what runs has saved a checkpoint and ended.

    Raises:
        ServerError: see `make_context`, `require_password`, `make_api` and `listen`.
    """
    require_password(host, password)
    context = make_context(roots, rules.lang, locked=bool(password), webhook=webhook)
    with listen(host, port, "ui") as socket, _open_api(served_model, host, api_key, rules) as api:
        page = make_app(context, rules, password=password)
        app = ApiMount(page, api, rules.root_path) if api is not None else page
        context.jobs.watch()
        pruning.start_pruning(context)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2, server_header=False)
        place = f"http://{host}:{socket.getsockname()[1]}{rules.root_path}"
        also = f"API: {place}{API_PATH}/v1; " if api is not None else ""
        jobs_end = "stop with a checkpoint" if stop_jobs else "continue"
        print(f"glmtune ui: {place}  ({also}Ctrl-C ends it; running jobs {jobs_end})", flush=True)
        with suppress(KeyboardInterrupt):
            GracefulServer(config).run(sockets=[socket])
        if stop_jobs:
            context.jobs.stop_running()


@contextmanager
def _open_api(target: str | None, host: str, api_key: str | None, rules: PageRules) -> Iterator[ASGIApp | None]:
    """The API with its model, which leaves memory at the end."""
    if target is None:
        yield None
        return
    context = load_context(ServeOptions(target))
    try:
        yield make_api(context, host, api_key, rules.lang, is_proxied=bool(rules.trusted_hosts))
    finally:
        context.engine.close()
        context.close()
