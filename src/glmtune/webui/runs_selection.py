"""The runs that a browser has selected: kept across pages, reloads and windows, and what is done with them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import GlmtuneError, RunError
from glmtune.run_dir import is_run
from glmtune.webui import drafts
from glmtune.webui.context import Context
from glmtune.webui.guard import owner_of
from glmtune.webui.paths import inside
from glmtune.webui.rendering import get_language, make_problem, redirect, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_files import delete_run
from glmtune.webui.texts import text

MAX_SELECTED = 500
_DRAFT = "selected-runs"
_lock = threading.Lock()


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the selection."""

    @app.post("/runs/select")
    async def select_runs(request: Request) -> Response:
        data = await read_form(request)
        lang = get_language(request, context)
        selected = await run_in_threadpool(change_selection, context, owner_of(request), data, lang)
        return render_part(request, context, "runs_selection", **describe_selection(context, selected))

    @app.post("/runs/unselect")
    async def unselect_all(request: Request) -> Response:
        await read_form(request)
        await run_in_threadpool(save_selection, context, owner_of(request), [])
        return _refresh_table(render_part(request, context, "runs_selection", **describe_selection(context, [])))

    @app.post("/runs/delete")
    async def delete_runs(request: Request) -> Response:
        data = await read_form(request)
        paths = read_runs(context, data, get_language(request, context))
        return await run_in_threadpool(_delete, request, context, paths, is_page=data.has("leave"))


def read_runs(context: Context, data: FormData, lang: str) -> list[Path]:
    """The runs that a request names.

    Raises:
        RunError: it names none.
        PathError: one lies outside of the roots.
    """
    paths = [inside(context.roots, path) for path in dict.fromkeys(data.get_all("run"))]
    if not paths:
        raise RunError(text("runs.choose_first", lang))
    return paths


def load_selection(context: Context, owner: str) -> list[str]:
    """Paths of the runs that a browser has selected, in the order of the clicks; those that are gone, or outside of the
    roots of today, are left out."""
    draft = drafts.load_draft(context, owner, _DRAFT) or FormData()
    return [
        path
        for path in draft.get_all("run")
        if is_run(path) and any(Path(path).is_relative_to(root) for root in context.roots)
    ]


def save_selection(context: Context, owner: str, paths: list[str]) -> None:
    """Keep a selection."""
    drafts.save_draft(context, owner, _DRAFT, FormData([("run", path) for path in paths]))


def change_selection(context: Context, owner: str, data: FormData, lang: str) -> list[str]:
    """Take a page's boxes over: `shown` are the runs on it, `run` those that are ticked. Runs of other pages stay.

    Raises:
        RunError: too many are selected.
        PathError: a path outside the roots.
    """
    shown, ticked = (
        {str(inside(context.roots, path)): None for path in data.get_all(name)} for name in ("shown", "run")
    )
    with _lock:
        before = load_selection(context, owner)
        others = [path for path in before if path not in shown or path in ticked]
        selected = list(dict.fromkeys([*others, *ticked]))
        if len(selected) > MAX_SELECTED:
            raise RunError(text("runs.select_limit", lang, limit=MAX_SELECTED))
        save_selection(context, owner, selected)
    return selected


def describe_selection(context: Context, selected: list[str]) -> dict[str, Any]:
    """Values of the template `runs_selection`."""
    return {"selected": [(context.shorten(path), path) for path in selected]}


def _delete(request: Request, context: Context, paths: list[Path], *, is_page: bool) -> Response:
    """Delete runs; one that cannot be deleted keeps no other.

    Args:
        request: that asks for it.
        context: the server's settings.
        paths: of the runs.
        is_page: it comes from the page of a run, which is left.
    """
    lang = get_language(request, context)
    problems: list[GlmtuneError] = []
    for path in paths:
        try:
            delete_run(path, roots=context.roots)
        except GlmtuneError as error:
            problems.append(error)
    if is_page:
        if problems:
            raise problems[0]
        return redirect(request, "/runs")
    values = {
        "line": text("runs.deleted", lang, count=len(paths) - len(problems)),
        "problems": [make_problem(error, lang) for error in problems],
        "stayed": text("runs.stayed", lang, count=len(problems)) if problems else "",
    }
    return _refresh_table(render_part(request, context, "runs_deleted", **values))


def _refresh_table(response: Response) -> Response:
    """Let the table be asked for again: other rows are there, or other boxes are ticked."""
    response.headers["HX-Trigger"] = "runs-changed"
    return response
