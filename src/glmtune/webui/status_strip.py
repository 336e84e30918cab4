"""The strip under the tabs: memory, who holds it, and the job at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from glmtune.webui.context import Context
from glmtune.webui.elements import describe_gpu_memory, measure_main_memory
from glmtune.webui.jobs import Job, memory_of
from glmtune.webui.rendering import render_part
from glmtune.webui.training_view import read_training


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the strip, and the button that frees the chat's models."""

    @app.get("/strip")
    def show_strip(request: Request) -> Response:
        return _render_strip(request, context)

    @app.post("/chat/free")
    def free_models(request: Request) -> Response:
        context.models.clear()
        return _render_strip(request, context)


def _render_strip(request: Request, context: Context) -> Response:
    jobs = context.jobs.list()
    job = next((job for job in jobs if job.state == "running"), None)
    return render_part(
        *(request, context, "strip"),
        gpu=describe_gpu_memory(),
        memory=measure_main_memory(),
        job=_describe_job(job) if job else None,
        waiting=sum(job.state == "queued" for job in jobs),
        models=[context.shorten(target) for target in context.models.list_targets()],
    )


def _describe_job(job: Job) -> dict[str, Any]:
    view = read_training(job) if job.kind == "train" else None
    return {
        "url": f"/train?job={job.id}" if view else f"/jobs/{job.id}",
        "kind": job.kind,
        "state": job.state,
        "name": Path(job.output).name if job.output else "",
        "percent": view.percent if view else None,
        "eta": view.eta if view else "",
        "memory": memory_of(job),
    }
