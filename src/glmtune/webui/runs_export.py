"""Several runs exported as queued jobs, with one choice of form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import GlmtuneError
from glmtune.export.export_request import BITS, LAYOUTS
from glmtune.webui.context import Context
from glmtune.webui.export_tab import ExportChoices, parse_choices, submit_export
from glmtune.webui.guard import owner_of
from glmtune.webui.jobs import Job
from glmtune.webui.rendering import get_language, make_problem, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.runs_selection import read_runs


@dataclass(frozen=True)
class QueuedExport:
    """What became of the export of a run: a job, or a problem."""

    name: str
    job: Job | None = None
    problem: Markup | None = None


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes."""

    @app.post("/runs/export")
    async def choose_form(request: Request) -> Response:
        data = await read_form(request)
        paths = read_runs(context, data, get_language(request, context))
        names = [(context.shorten(path), str(path)) for path in paths]
        values = {"layouts": LAYOUTS, "bits": BITS, "choices": ExportChoices("")}
        return render_part(request, context, "runs_export", runs=names, **values)

    @app.post("/runs/export/start")
    async def start_exports(request: Request) -> Response:
        data = await read_form(request)
        paths = read_runs(context, data, get_language(request, context))
        results = await run_in_threadpool(_queue_exports, request, context, paths, data)
        return render_part(request, context, "runs_exported", results=results)


def _queue_exports(request: Request, context: Context, paths: list[Path], data: FormData) -> list[QueuedExport]:
    """Queue an export for each run; one that cannot be done keeps no other."""
    lang, results = get_language(request, context), []
    for path in paths:
        name = context.shorten(path)
        try:
            choices = parse_choices(FormData([*data.without("model", "output").pairs, ("model", str(path))]))
            results.append(QueuedExport(name, submit_export(context, choices, owner_of(request))))
        except GlmtuneError as error:
            results.append(QueuedExport(name, problem=make_problem(error, lang)))
    return results
