"""The jobs of a tab: the one that is shown, and the others of late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request

from glmtune.webui.context import Context
from glmtune.webui.jobs_view import render_job
from glmtune.webui.rendering import format_moment, get_language
from glmtune.webui.texts import text

_LISTED = 10


def describe_jobs(request: Request, context: Context, kinds: Sequence[str]) -> dict[str, Any]:
    """Values of the template `job_list`: `panel`, the job at work, else the newest one; `jobs`, those of late; and
    `job_count`, the number of all."""
    jobs = [job for job in context.jobs.list() if job.kind in kinds]
    current = next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)
    lang = get_language(request, context)
    listed = [
        {
            "id": job.id,
            "kind": text("tab.export" if job.kind == "export" else f"evaluate.kind.{job.kind}", lang),
            "state": job.state,
            "name": Path(job.output or (job.arguments[1:] or [job.kind])[0]).name,
            "created": format_moment(job.created),
        }
        for job in jobs[:_LISTED]
    ]
    return {
        "panel": render_job(request, context, current) if current else "",
        "jobs": listed if len(jobs) > 1 else [],
        "job_count": len(jobs),
    }
