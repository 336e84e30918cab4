"""What is shown of a training: bar, numbers, curves. Read from its run folder and its log, so any page can show it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.html.builder import Html, el, join
from glmtune.html.pages import is_number
from glmtune.html.plots import LineChart, Series, draw_line_chart, select_points
from glmtune.run_dir import RunDir
from glmtune.utils.console import format_duration
from glmtune.utils.io import find_json_object
from glmtune.webui import html
from glmtune.webui.jobs import Job, memory_of
from glmtune.webui.texts import text

_ERROR = "Error: "


@dataclass(frozen=True)
class Watched:
    """A training as far as it is known."""

    job: Job
    there: bool
    """Whether its run folder exists."""
    step: int = 0
    total: int = 0
    """Steps in all; 0: not known yet."""
    eta: str = ""
    entries: list[dict[str, Any]] = field(default_factory=list)
    """Lines of metrics.jsonl."""
    last: dict[str, Any] = field(default_factory=dict)
    """The newest number of every kind."""
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """What the command said was wrong."""


def watch(job: Job, log: str) -> Watched:
    """Look at a training; its folder may be missing, or go while it is read."""
    run = RunDir(job.output)
    try:
        entries = run.read_metrics()
    except FileNotFoundError:
        entries = []
    last: dict[str, Any] = {}
    for entry in entries:
        last |= entry
    progress = find_json_object(run.progress) or {}  # not written yet, or gone
    step, total = int(progress.get("step") or 0), int(progress.get("max_steps") or 0)
    eta = format_duration(progress["eta_seconds"]) if progress.get("eta_seconds") is not None else ""
    summary = find_json_object(run.summary) or {}
    step = max(step, last.get("step", 0))
    return Watched(job, run.root.is_dir(), step, total, eta, entries, last, summary, _error(log))


def status(seen: Watched, lang: str) -> Html:
    """State, bar and numbers."""
    job = seen.job
    parts = [
        el("p", el("span", text(f"state.{job.state}", lang), class_=f"state {job.state}"), " ", Path(job.output).name),
        el("p", el("code", shlex.join(["glmtune", *job.arguments])), class_="note"),
    ]
    if seen.total:
        parts.append(html.bar(_share(seen), text("common.progress", lang)))
    parts.append(html.figures(_figures(seen, lang)))
    parts += [html.note(line) for line in _remarks(seen, lang)]
    if seen.error and job.state == "failed":
        parts.append(el("p", *_lines(seen.error), class_="problem", role="alert"))
    return el("div", *parts, role="status")


def curves(seen: Watched, lang: str) -> str:
    """Loss and evaluation loss over steps; empty before the first."""
    lines = [
        Series(text("train.loss", lang), select_points(seen.entries, "loss")),
        Series(text("train.eval_loss", lang), select_points(seen.entries, "eval_loss")),
    ]
    if not any(line.points for line in lines):
        return ""
    return draw_line_chart(LineChart(text("train.curves", lang), "", lines), is_wide=True, lang=lang)


def gpu_memory() -> str:
    """Memory in use and in all of every GPU; empty without one. The driver's own tool is asked, for this process is
    to hold nothing there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout
    except (subprocess.SubprocessError, OSError):  # a driver that does not answer
        return ""
    pairs = [line.split(",") for line in said.splitlines() if "," in line]
    return ", ".join(f"{float(used) / 1024:.1f} / {float(whole) / 1024:.1f} GiB" for used, whole in pairs)


def _share(seen: Watched) -> float:
    return 1.0 if seen.job.state == "finished" else seen.step / seen.total


def _figures(seen: Watched, lang: str) -> list[tuple[str, str]]:
    job, last = seen.job, seen.last
    items: list[tuple[str, str]] = []
    if seen.step:
        items.append(("train.step", f"{seen.step:,} / {seen.total:,}" if seen.total else f"{seen.step:,}"))
    if job.started is not None:
        items.append(("train.elapsed", format_duration((job.ended or time.time()) - job.started)))
    if job.state == "running" and seen.eta:
        items.append(("train.eta", seen.eta))
    for name, key, form in (
        ("train.loss", "loss", ".4f"),
        ("train.eval_loss", "eval_loss", ".4f"),
        ("train.rate", "learning_rate", ".2e"),
        ("train.speed", "tokens_per_second", ",.0f"),
    ):
        if is_number(last.get(key)):
            items.append((name, f"{last[key]:{form}}"))
    items += _memory(seen)
    return [(text(name, lang), value) for name, value in items]


def _memory(seen: Watched) -> list[tuple[str, str]]:
    if seen.job.state == "running":
        used = gpu_memory()
        return [("train.memory", html.size(memory_of(seen.job))), *([("train.gpu", used)] if used else [])]
    peak = seen.summary.get("peak_memory_bytes")
    return [("train.peak", html.size(peak))] if is_number(peak) else []


def _remarks(seen: Watched, lang: str) -> list[str]:
    job = seen.job
    if job.state == "running" and job.stops:
        return [text("train.stopping", lang)]
    if job.state == "running" and not seen.step:
        return [text("train.loading", lang)]
    if not job.alive and not seen.there:
        return [text("train.gone", lang, path=job.output)]
    return [text("train.folder", lang, path=job.output)]


def _error(log: str) -> str:
    """The last error with the hint under it."""
    _, found, said = log.rpartition(f"\n{_ERROR}") if f"\n{_ERROR}" in log else log.rpartition(_ERROR)
    return "\n".join(said.splitlines()[:2]) if found else ""


def _lines(said: str) -> list[Html]:
    return [join([line, el("br")]) for line in said.splitlines()]
