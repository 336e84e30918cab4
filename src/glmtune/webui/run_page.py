"""The page of a run: curves, results, checkpoints, notes, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glmtune.errors import RunError
from glmtune.html.builder import Html, el
from glmtune.html.pages import is_number
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page as render_report
from glmtune.utils.console import format_bytes, format_duration
from glmtune.utils.file_access import require_readable
from glmtune.webui.context import Context
from glmtune.webui.elements import make_figures
from glmtune.webui.evaluations import list_run_evaluations
from glmtune.webui.guard import owner_of
from glmtune.webui.paths import inside
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import read_form
from glmtune.webui.run_files import (
    RunFacts,
    is_busy,
    list_checkpoints,
    read_notes,
    read_run,
    read_tags,
    require_run,
    write_notes,
    write_tags,
)
from glmtune.webui.texts import text
from glmtune.webui.training_view import describe_charts, make_curves, read_samples
from glmtune.webui.zip_stream import compute_length, list_entries, stream_zip

_FIGURES = (
    ("loss", ".4f"),
    ("eval_loss", ".4f"),
    ("eval_reward", ".3f"),
    ("reward", ".3f"),
    ("eval_accuracy", ".1%"),
    ("accuracy", ".1%"),
    ("eval_margin", ".3f"),
    ("kl", ".3f"),
    ("completion_length", ",.0f"),
)
"""Last numbers of metrics.jsonl that are shown, where a run has them; of both, that of the evaluation."""


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the page."""

    @app.get("/runs/show")
    def show_run(request: Request, path: str = "") -> Response:
        return _show_run(request, context, inside(context.roots, path))

    @app.post("/runs/notes")
    async def save_notes(request: Request) -> Response:
        data = await read_form(request)
        path = inside(context.roots, data.get("run"))
        notes = next((value for name, value in data.pairs if name == "notes"), "")
        await run_in_threadpool(write_notes, path, notes)
        await run_in_threadpool(write_tags, path, data.get("tags"))
        lang = get_language(request, context)
        return render_part(request, context, "markup", markup=text("runs.saved", lang))

    @app.post("/runs/resume")
    async def resume_run(request: Request) -> Response:
        data = await read_form(request)
        output = str(require_run(inside(context.roots, data.get("run"))).root)
        arguments = ["train", "--resume", "--output", output]
        job = await run_in_threadpool(context.jobs.submit, "train", arguments, output, owner_of(request))
        return redirect(request, f"/train?job={job.id}#job")

    @app.get("/runs/download")
    def download_weights(path: str = "") -> Response:
        return _send_zip(inside(context.roots, path))


def render_report_frame(folder: Path, lang: str) -> Html:
    """The report of a folder as it is now, in a frame that may run no script and reach no network.

    Raises:
        RunError: there is nothing to report on, or a file cannot be read.
    """
    # Made from the files, not read from report.html: what lies in a folder may have come from anywhere.
    page = render_report(read_contents(folder), lang)
    return el("iframe", srcdoc=page, sandbox="", title=f"report: {folder.name}", class_="frame")


def describe_figures(facts: RunFacts, lang: str) -> Html:
    """The numbers of a run: steps, time, losses, and rewards of preference tuning and reinforcement learning."""
    summary, last = facts.summary, facts.last
    items: list[tuple[str, str]] = []
    if is_number(steps := summary.get("steps", last.get("step"))):
        items.append(("step", f"{steps:,.0f}"))
    if is_number(seconds := summary.get("seconds")):
        items.append(("seconds", format_duration(seconds)))
    for name, form in _FIGURES:
        if is_number(last.get(name)) and not is_number(last.get(f"eval_{name}") if name != "loss" else None):
            items.append((name, f"{last[name]:{form}}"))
    if is_number(first := summary.get("first_reward")):
        items.append(("first_reward", f"{first:.3f}"))
    if is_number(speed := summary.get("tokens_per_second", last.get("tokens_per_second"))):
        items.append(("speed", f"{speed:,.0f}"))
    if is_number(peak := summary.get("peak_memory_bytes")):
        items.append(("peak", format_bytes(peak)))
    return make_figures((text(f"runs.figure.{name}", lang), value) for name, value in items)


def _show_run(request: Request, context: Context, path: Path) -> Response:
    lang = get_language(request, context)
    run = require_run(path)
    facts = read_run(path)
    try:
        report: Html | None = render_report_frame(path, lang)
    except RunError:
        report = None
    return render_page(
        *(request, context, "run"),
        tab="runs",
        title=context.shorten(path),
        path=str(path),
        facts=facts,
        stage=str(facts.config.get("stage") or "sft"),
        figures=describe_figures(facts, lang),
        busy=is_busy(run),
        curves=json.dumps(make_curves(run.read_metrics(), facts.config)),
        charts=describe_charts(lang, facts.config),
        samples=read_samples(run),
        checkpoints=[(str(folder.relative_to(path)), str(folder)) for folder in list_checkpoints(run)],
        results=_list_results(path),
        config=require_readable(run.config).read_text("utf-8", errors="replace"),
        report=report,
        notes=read_notes(path),
        tags=" ".join(read_tags(path)),
    )


def _list_results(path: Path) -> list[tuple[str, Any]]:
    """Rows of what was evaluated in the run, with the names of their folders in it."""
    rows = [row for entry in list_run_evaluations(path) for row in entry.rows]
    return [(str(row.folder.relative_to(path)) if row.folder != path else path.name, row) for row in rows]


def _send_zip(folder: Path) -> Response:
    """The files of an adapter or a checkpoint as a .zip."""
    run = next((parent for parent in folder.parents if (parent / "config.yaml").is_file()), None)
    if run is None or folder not in list_checkpoints(require_run(run)):
        raise RunError(f"{folder}: not a result or a checkpoint of a run.", "Open the run and choose one there.")
    entries = list_entries(folder)
    name = f"{run.name}-{folder.name}.zip"
    headers = {
        "Content-Length": str(compute_length(entries)),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, errors='replace')}",
    }
    return StreamingResponse(stream_zip(entries), media_type="application/zip", headers=headers)
