"""The strip under the tabs: memory, who holds it, and the job at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from glmtune.utils.console import format_bytes
from glmtune.webui.context import Context
from glmtune.webui.elements import measure_main_memory
from glmtune.webui.gpu_memory import describe_gpu_memory, read_gpus
from glmtune.webui.guard import owner_of
from glmtune.webui.jobs import Job, memory_of
from glmtune.webui.memory_holders import Holder, free_holders, list_holders
from glmtune.webui.rendering import get_language, render_part
from glmtune.webui.texts import text
from glmtune.webui.training_view import read_training


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the strip, and the button that frees what is the page's own."""

    @app.get("/strip")
    def show_strip(request: Request) -> Response:
        return _render_strip(request, context)

    @app.post("/strip/free")
    def free_memory(request: Request) -> Response:
        freed, kept = free_holders(context)
        lang = get_language(request, context)
        lines = [text("strip.freed", lang, names=", ".join(holder.name for holder in freed))] if freed else []
        lines += [text(f"strip.kept.{holder.kind}", lang, name=holder.name, pid=holder.pid or "") for holder in kept]
        return _render_strip(request, context, lines or [text("strip.nothing", lang)])


def _render_strip(request: Request, context: Context, lines: list[str] | None = None) -> Response:
    jobs = context.jobs.list()
    job = next((job for job in jobs if job.state == "running"), None)
    ended = max((job for job in jobs if job.ended), key=lambda job: job.ended or 0, default=None)
    holders = list_holders(context)
    owner = owner_of(request)
    return render_part(
        *(request, context, "strip"),
        gpu=describe_gpu_memory(),
        has_gpu=bool(read_gpus()),
        memory=measure_main_memory(),
        job=_describe_job(job, owner) if job else None,
        ended=_describe_job(ended, owner) if ended else None,
        waiting=sum(job.state == "queued" for job in jobs),
        holders=[(holder, _describe_gpu_bytes(holder)) for holder in holders],
        ours=[holder.name for holder in holders if holder.is_ours],
        lines=lines,
    )


def _describe_gpu_bytes(holder: Holder) -> str:
    return "?" if holder.gpu_bytes is None else format_bytes(holder.gpu_bytes) if holder.gpu_bytes else ""


def _describe_job(job: Job, owner: str) -> dict[str, Any]:
    view = read_training(job) if job.kind == "train" and job.alive else None
    return {
        "id": job.id,
        "url": f"/train?job={job.id}" if job.kind == "train" else f"/jobs/{job.id}",
        "kind": job.kind,
        "state": job.state,
        "name": Path(job.output).name if job.output else "",
        "percent": view.percent if view else None,
        "eta": view.eta if view else "",
        "memory": memory_of(job),
        "is_own": job.owner == owner,
    }
