"""What is shown of a job that is no training: state, time, progress."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from glmtune.utils.console import format_bytes, format_duration
from glmtune.webui.elements import make_figures
from glmtune.webui.jobs import Job
from glmtune.webui.texts import text
from glmtune.webui.training_view import find_error

_COUNT = re.compile(r"^(?:\S+ )+?(\d+)/(\d+)\b.*ETA", re.MULTILINE)
_VERDICT_FAIL = 3
"""Exit code of a forgetting probe whose verdict is fail."""


def describe_job(job: Job, log: str, lang: str) -> dict[str, Any]:
    """Values of the template `job_status` for a job."""
    is_verdict = job.kind == "forget" and job.exit_code == _VERDICT_FAIL
    remarks = [text("job.verdict", lang)] if is_verdict else []
    if job.state == "running" and job.kind == "export":
        remarks.append(text("job.written", lang, size=_describe_written(Path(job.output))))
    count = _find_count(log) if job.state == "running" else None
    items = []
    if job.started is not None:
        items.append((text("train.elapsed", lang), format_duration((job.ended or time.time()) - job.started)))
    if count:
        items.append((text("train.step", lang), f"{count[0]:,} / {count[1]:,}"))
    return {
        "share": min(1.0, count[0] / count[1]) if count and count[1] else None,
        "figures": make_figures(items),
        "remarks": remarks,
        "error": "" if is_verdict else find_error(log),
    }


def _find_count(log: str) -> tuple[int, int] | None:
    counts = _COUNT.findall(log)
    return (int(counts[-1][0]), int(counts[-1][1])) if counts else None


def _describe_written(output: Path) -> str:
    """Bytes in the temporary folder that an export writes to."""
    total = 0
    for path in output.with_name(f".{output.name}.tmp").rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed since it was listed
            continue
    return format_bytes(total)
