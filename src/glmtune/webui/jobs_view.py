"""A job on the page: its state, log and curves as they change, and the button that stops it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glmtune.run_dir import RunDir
from glmtune.utils.shell_words import join_words
from glmtune.webui.context import Context
from glmtune.webui.errors import JobError
from glmtune.webui.guard import owner_of
from glmtune.webui.job_view import describe_job, is_verdict
from glmtune.webui.jobs import Job
from glmtune.webui.rendering import get_language, render_markup, render_page, render_part, render_problem
from glmtune.webui.requests import read_form
from glmtune.webui.texts import text
from glmtune.webui.training_view import (
    TrainingView,
    describe_charts,
    list_remarks,
    make_curves,
    make_training_figures,
    read_samples,
    read_training,
)

_EVERY_S = 1.0
_LOG_LINES = 300
_MAX_STREAMED = 50


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of jobs."""

    @app.get("/jobs/live")
    async def stream_jobs(request: Request) -> Response:
        ids = list(dict.fromkeys(request.query_params.getlist("id")))[:_MAX_STREAMED]
        return StreamingResponse(
            _stream(request, context, ids),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # a proxy is not to collect it
        )

    @app.get("/jobs/{id}")
    def show_job(request: Request, id: str) -> Response:
        job = context.jobs.get(id)
        return render_page(request, context, "job", tab=_tab_of(job), panel=render_job(request, context, job))

    @app.get("/jobs/{id}/panel")
    def show_panel(request: Request, id: str) -> Response:
        return render_part(request, context, "markup", markup=render_job(request, context, context.jobs.get(id)))

    @app.post("/jobs/{id}/stop")
    async def stop_job(request: Request, id: str) -> Response:
        await read_form(request)
        job = await run_in_threadpool(context.jobs.stop, id)
        markup = await run_in_threadpool(render_job, request, context, job)
        return render_part(request, context, "markup", markup=markup)


def render_job(request: Request, context: Context, job: Job) -> Any:
    """The panel of a job: what `_make_parts` fills, with its first content."""
    lang = get_language(request, context)
    log = context.jobs.tail(job.id, _LOG_LINES)
    view = read_training(job, log) if job.kind == "train" else None
    parts = _make_parts(request, context, job, log, view)
    return render_markup(
        *(request, context, "job_panel"),
        job=job,
        parts=parts,
        name=Path(job.output).name if job.output else job.kind,
        command=join_words(["glmtune", *job.arguments]),
        curves=json.dumps(make_curves(view.entries, view.config)) if view else None,
        charts=describe_charts(lang, view.config if view else None),
        is_own=job.owner == owner_of(request),
    )


async def _stream(request: Request, context: Context, ids: list[str]) -> AsyncIterator[str]:
    """Messages of jobs until all have ended, only what changed: `job`, `kind` (`part`, `curves`, `progress`, `end`),
    `data`. One connection for all jobs that a browser shows: over HTTP/1.1 it has six for all its windows."""
    sent: dict[tuple[str, str], str] = {}
    while not await request.is_disconnected():
        for id in list(ids):
            is_alive, messages = await run_in_threadpool(_collect_messages, request, context, id)
            for key, (kind, data) in messages.items():
                line = json.dumps({"job": id, "kind": kind, "key": key, "data": data})
                if sent.get((id, key)) != line:
                    sent[id, key] = line
                    yield f"data: {line}\n\n"
            if not is_alive:
                ids.remove(id)
        if not ids:
            return
        await asyncio.sleep(_EVERY_S)


def _collect_messages(request: Request, context: Context, id: str) -> tuple[bool, dict[str, tuple[str, Any]]]:
    """Whether a job is alive, and its messages: by their key, kind and data."""
    try:
        job = context.jobs.get(id)
        log = context.jobs.tail(id, _LOG_LINES)
    except JobError:  # its file was removed; other jobs of the stream go on
        return False, {"end": ("end", {"state": ""})}
    view = read_training(job, log) if job.kind == "train" else None  # its files are read once for all messages
    messages: dict[str, tuple[str, Any]] = {
        name: ("part", {"id": f"job-{name}", "html": str(content)})
        for name, content in _make_parts(request, context, job, log, view).items()
    }
    progress: dict[str, Any] = {"state": job.state, "name": Path(job.output).name}
    if view is not None:
        messages["curves"] = ("curves", make_curves(view.entries, view.config))
        progress["percent"] = view.percent
    messages["progress"] = ("progress", progress)
    if not job.alive:
        messages["end"] = ("end", {"state": job.state})
    return job.alive, messages


def _make_parts(request: Request, context: Context, job: Job, log: str, view: TrainingView | None) -> dict[str, Any]:
    """Markup of the parts that change: `status`, `log` and, of a training, `samples`."""
    lang = get_language(request, context)
    if view is not None:
        values: dict[str, Any] = {
            "share": None if view.percent is None else view.percent / 100,
            "figures": make_training_figures(view, lang),
            "remarks": list_remarks(view, lang),
            "error": view.error,
        }
    else:
        values = describe_job(job, log, lang)
    if job.state == "failed" and not values["error"] and not is_verdict(job):
        path = context.shorten(context.jobs.find_log(job.id))
        values["remarks"] = [*values["remarks"], text("job.crashed", lang, code=job.exit_code, path=path)]
    problem = partial(render_problem, lang=lang, title="app.failed")
    status = render_markup(request, context, "job_status", job=job, problem=problem, **values)
    parts = {"status": status, "log": render_markup(request, context, "job_log", log=log)}
    if view is not None:
        parts["samples"] = render_markup(request, context, "samples", samples=read_samples(RunDir(job.output)))
    return parts


def _tab_of(job: Job) -> str:
    return {
        "train": "train",
        "export": "export",
        "eval": "evaluate",
        "compare": "evaluate",
        "forget": "evaluate",
        "score": "evaluate",
    }.get(job.kind, "model")
