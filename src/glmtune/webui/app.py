"""The page: its tabs, its language, and the server that sends it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Read when Gradio is imported and by every hub client after it.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import fastapi
import gradio as gr
import uvicorn

from glmtune.errors import ServerError
from glmtune.html.i18n import LANGUAGES
from glmtune.utils.network import is_loopback, listen
from glmtune.webui import chat_tab, data_tab, evaluate_tab, export_tab, model_tab, runs_tab, train_tab
from glmtune.webui.context import STATE, Context
from glmtune.webui.jobs import Jobs
from glmtune.webui.security import MAX_UPLOAD, Guard, login, require_password
from glmtune.webui.selection import Chosen
from glmtune.webui.style import CSS, theme
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_TABS: dict[str, Any] = {
    "model": model_tab.build,
    "data": data_tab.build,
    "train": train_tab.build,
    "runs": runs_tab.build,
    "chat": chat_tab.build,
    "evaluate": evaluate_tab.build,
    "export": export_tab.build,
}
_WITH_CHOSEN = ("model", "data", "train")
"""Tabs that hand on what was chosen in one of them to the others."""


def make_context(roots: list[Path], lang: str, *, locked: bool = False) -> Context:
    """The settings of a server.

    Raises:
        ServerError: a root that is no folder, or one that cannot be written to.
    """
    for root in roots:
        if not root.is_dir():
            raise ServerError(f"--root {root}: no such folder.", "Give folders that are there.")
    resolved = [root.resolve() for root in roots]
    try:
        jobs = Jobs(resolved[0] / STATE / "jobs", resolved[0], anyone_stops=locked)
    except OSError as error:
        raise ServerError(
            f"{resolved[0]}: cannot be written to ({error.strerror}).",
            "The first --root must be a folder of yours; runs and jobs are kept there.",
        ) from None
    return Context(resolved, lang, jobs, locked)


def build(context: Context) -> gr.Blocks:
    """The page with all its tabs."""
    words = Words(context.lang)
    with gr.Blocks(title="glmtune", analytics_enabled=False, fill_width=True) as page:
        lang = gr.State(context.lang)
        # Not a secret; a fixed key lets a restarted server read what the browser kept.
        kept = gr.BrowserState(context.lang, storage_key="glmtune-language", secret="glmtune")
        with gr.Row(elem_id="head"):
            with gr.Column(scale=5, min_width=260):
                words.add(gr.HTML(elem_id="title"), value="app.heading")
            with gr.Column(scale=0, min_width=230):
                choice = gr.Radio(
                    [(name, code) for code, name in LANGUAGES.items()],
                    value=context.lang,
                    elem_id="language",
                    interactive=True,
                )
                words.add(choice, label="app.language")
        chosen = Chosen(gr.State(""), gr.State(""))
        with gr.Tabs(elem_id="tabs"):
            for name, build_tab in _TABS.items():
                with words.add(gr.Tab(text(f"tab.{name}", context.lang), id=name), label=f"tab.{name}"):
                    build_tab(context, words, lang, *([chosen] if name in _WITH_CHOSEN else []))

        def switch(code: str) -> list[Any]:
            code = code if code in LANGUAGES else context.lang
            return [code, code, gr.update(value=code), *words.switch(code)]

        event: dict[str, Any] = {"outputs": [lang, kept, choice, *words.components], "show_progress": "hidden"}
        choice.input(switch, [choice], **event)
        page.load(switch, [kept], **event)
    for event_function in page.fns.values():
        event_function.api_visibility = "private"  # for the page alone: no documented programming interface
    return page


def make_app(context: Context, *, password: str | None = None, local: bool = True) -> Guard:
    """The server's application.

    Args:
        context: see `make_context`.
        password: asked for on a login page; None: none.
        local: whether only this machine's own names are answered.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(context.state("files"))
    inner = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(context).queue(default_concurrency_limit=8, api_open=False),
        path="/",
        footer_links=[],
        run_history=False,
        auth=login(password) if password else None,
        auth_message=text("app.login", context.lang) if password else None,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
    )
    return Guard(inner, local=local)


def serve(roots: list[Path], *, host: str, port: int, lang: str, password: str | None) -> None:
    """Serve the page until it is interrupted. Jobs go on after that.

    Raises:
        ServerError: see `make_context`, `require_password` and `listen`.
    """
    require_password(host, password)
    context = make_context(roots, lang, locked=bool(password))
    with listen(host, port, "ui") as socket:
        app = make_app(context, password=password, local=is_loopback(host))
        context.jobs.watch()
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        print(f"glmtune ui: http://{host}:{socket.getsockname()[1]}  (Ctrl-C ends it; running jobs go on)", flush=True)
        uvicorn.Server(config).run(sockets=[socket])
