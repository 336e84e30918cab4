"""What is shown of a job that is no training: state, time, progress."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from glmtune.html.i18n import has_text
from glmtune.utils.console import format_bytes, format_duration
from glmtune.webui.elements import make_figures
from glmtune.webui.jobs import Job
from glmtune.webui.texts import text
from glmtune.webui.training_view import find_error

_COUNT = re.compile(r"^((?:\S+ )*?\S+) (\d+)/(\d+)\b.*ETA", re.MULTILINE)
_MODEL = re.compile(r"^\[(\d+)/(\d+)\] (\S.*)$", re.MULTILINE)
_BYTES = re.compile(r"^\S+ ([\d.,]+) (\w+) of ([\d.,]+) (\w+), (\S+ \w+/s)  ETA", re.MULTILINE)
_ETA = re.compile(r"  ETA (\S.*)$", re.MULTILINE)
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_VERDICT_FAIL = 3
"""Exit code of a forgetting probe whose verdict is fail."""


def is_verdict(job: Job) -> bool:
    """Whether a job failed as a probe fails: with a result."""
    return job.kind == "forget" and job.exit_code == _VERDICT_FAIL


def describe_job(job: Job, log: str, lang: str) -> dict[str, Any]:
    """Values of the template `job_status` for a job."""
    remarks = [text("job.verdict", lang)] if is_verdict(job) else []
    if job.state == "running" and job.kind == "export":
        remarks.append(text("job.written", lang, size=_describe_written(Path(job.output))))
    latest = log if job.state == "running" else ""
    items = []
    if job.started is not None:
        items.append((text("train.elapsed", lang), format_duration((job.ended or time.time()) - job.started)))
    share, is_counting = None, False
    for model in [*_MODEL.finditer(latest)][-1:]:
        items.append((text("job.model", lang, number=model[1], total=model[2]), model[3]))
        latest = latest[model.end() :]  # what was counted before was another model's
    for title, done, total in _COUNT.findall(latest)[-1:]:
        items.append((_describe_phase(title, lang), f"{int(done):,} / {int(total):,}"))
        share = min(1.0, int(done) / int(total)) if int(total) else None
        is_counting = int(done) < int(total)
    for size, unit, total, total_unit, rate in _BYTES.findall(latest)[-1:]:
        items += [(text("job.bytes", lang), f"{size} {unit} / {total} {total_unit}"), (text("job.rate", lang), rate)]
        share, is_counting = _divide_sizes(size, unit, total, total_unit), True
    times = _ETA.findall(latest)
    if times and is_counting:  # after the last item of a part, nothing is known about the next one
        items.append((text("train.eta", lang), times[-1]))
    return {
        "share": share,
        "figures": make_figures(items),
        "remarks": remarks,
        "error": "" if is_verdict(job) else find_error(log),
    }


def _describe_phase(title: str, lang: str) -> str:
    """What a progress bar counts, in the page's language where it is known."""
    if title.startswith("probe of "):
        return text("job.phase.probe", lang)
    key = f"job.phase.{title.partition(',')[0]}"
    return text(key, lang) if has_text(f"ui.{key}") else title


def _divide_sizes(done: str, unit: str, total: str, total_unit: str) -> float | None:
    """The share of a size in another; None where a unit is not known."""
    sizes = [
        float(number.replace(",", "")) * _UNITS.get(name, 0) for number, name in ((done, unit), (total, total_unit))
    ]
    return min(1.0, sizes[0] / sizes[1]) if sizes[1] else None


def _describe_written(output: Path) -> str:
    """Bytes in the temporary folder that an export writes to."""
    total = 0
    for path in output.with_name(f".{output.name}.tmp").rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed since it was listed
            continue
    return format_bytes(total)
