"""The tab `Runs`: a table of all runs, several compared, and a page for each."""

from __future__ import annotations

import json
import os
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from glmtune.errors import RunError
from glmtune.html.builder import Html, el
from glmtune.html.plots import select_points
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page as render_report
from glmtune.utils.file_access import require_readable
from glmtune.webui.context import Context
from glmtune.webui.guard import owner_of
from glmtune.webui.paths import inside
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_files import (
    STATES,
    delete_run,
    find_differences,
    is_busy,
    list_checkpoints,
    read_notes,
    read_run,
    read_tags,
    require_run,
    write_notes,
    write_tags,
)
from glmtune.webui.runs_index import PAGE_RUNS, SORT_KEYS, RunQuery, find_page
from glmtune.webui.texts import text
from glmtune.webui.training_view import describe_charts, make_curves, read_samples

_LEFTOVER_SECONDS = 3600.0
_COMPARED_CURVES = ("loss", "eval_loss", "learning_rate", "tokens_per_second")


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/runs")
    def show_runs(request: Request) -> Response:
        query = parse_query(FormData(request.query_params.multi_items()))
        table = _table_values(context, query)
        if request.headers.get("hx-target") == "runs-table":
            return render_part(request, context, "runs_table", **table)
        return render_page(request, context, "runs", tab="runs", states=STATES, **table)

    @app.post("/runs/compare")
    async def compare_runs(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_compare, request, context, data)

    @app.post("/runs/delete")
    async def delete_runs(request: Request) -> Response:
        data = await read_form(request)
        paths = [inside(context.roots, path) for path in data.get_all("run")]
        if not paths:
            raise RunError(text("runs.choose_first", get_language(request, context)))
        for path in paths:
            await run_in_threadpool(delete_run, path, roots=context.roots)
        return redirect(request, "/runs")

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
    def download_weights(request: Request, path: str = "") -> Response:
        folder = inside(context.roots, path)
        return _send_zip(context, folder)


def parse_query(data: FormData) -> RunQuery:
    """The table that a browser asks for; what is not known is the default."""
    sort = data.get("sort")
    return RunQuery(
        data.get("search")[:200],
        data.get("state") if data.get("state") in STATES else "",
        sort if sort in SORT_KEYS else "ended",
        data.get("order") != "up",
        data.get_number("page", 1, low=1),
    )


def render_report_frame(folder: Path, lang: str) -> Html:
    """The report of a folder as it is now, in a frame that may run no script and reach no network.

    Raises:
        RunError: there is nothing to report on, or a file cannot be read.
    """
    # Made from the files, not read from report.html: what lies in a folder may have come from anywhere.
    page = render_report(read_contents(folder), lang)
    return el("iframe", srcdoc=page, sandbox="", title=f"report: {folder.name}", class_="frame")


def _table_values(context: Context, query: RunQuery) -> dict[str, Any]:
    rows, count = find_page(context, query)
    shared = {"search": query.search, "state": query.state}

    def link(sort: str = query.sort, page: int = 1) -> str:
        is_same = sort == query.sort and page == 1
        descends = not query.is_descending if is_same else (query.is_descending if page > 1 else sort != "name")
        if page > 1 or (page == 1 and sort == query.sort and query.page > 1):
            descends = query.is_descending
        return urlencode({**shared, "sort": sort, "order": "down" if descends else "up", "page": page})

    return {
        "rows": rows,
        "count": count,
        "query": query,
        "columns": SORT_KEYS,
        "link": link,
        "pages": max(1, -(-count // PAGE_RUNS)),
        "first": (query.page - 1) * PAGE_RUNS + 1,
    }


def _show_run(request: Request, context: Context, path: Path) -> Response:
    lang = get_language(request, context)
    run = require_run(path)
    facts = read_run(path)
    checkpoints = list_checkpoints(run)
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
        busy=is_busy(run),
        curves=json.dumps(make_curves(run.read_metrics(), facts.config)),
        charts=describe_charts(lang, facts.config),
        samples=read_samples(run),
        checkpoints=[(str(folder.relative_to(path)), str(folder)) for folder in checkpoints],
        config=require_readable(run.config).read_text("utf-8", errors="replace"),
        report=report,
        notes=read_notes(path),
        tags=" ".join(read_tags(path)),
    )


def _compare(request: Request, context: Context, data: FormData) -> Response:
    lang = get_language(request, context)
    paths = [inside(context.roots, path) for path in data.get_all("run")]
    names = [context.shorten(path) for path in paths]
    curve = data.get("curve") if data.get("curve") in _COMPARED_CURVES else "loss"
    curves = {}
    for name, path in zip(names, paths, strict=True):
        points = select_points(require_run(path).read_metrics(), curve)
        if points:
            curves[name] = [list(column) for column in zip(*points, strict=True)]
    changed = find_differences([read_run(path).config for path in paths]) if len(paths) > 1 else []
    return render_part(
        *(request, context, "runs_compare"),
        names=names,
        paths=[str(path) for path in paths],
        curve=curve,
        curve_names=_COMPARED_CURVES,
        curves=json.dumps({"curves": curves, "best": None}),
        has_points=bool(curves),
        differences=changed,
        charts={
            "groups": [{"title": text(f"runs.curve.{curve}", lang), "names": names}],
            "labels": {"step": text("curve.step", lang), "best": text("curve.best", lang)},
        },
    )


def _send_zip(context: Context, folder: Path) -> Response:
    """The files of an adapter or a checkpoint as a .zip, made on disk and removed once it is sent."""
    run = next((parent for parent in folder.parents if (parent / "config.yaml").is_file()), None)
    if run is None or folder not in list_checkpoints(require_run(run)):
        raise RunError(f"{folder}: not a result or a checkpoint of a run.", "Open the run and choose one there.")
    _remove_leftovers(context.state("files"))
    handle, name = tempfile.mkstemp(suffix=".zip", dir=context.state("files"))
    try:
        with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    archive.write(path, Path(folder.name) / path.relative_to(folder))
    except OSError as error:
        os.unlink(name)
        raise RunError(f"{name}: cannot be written ({error.strerror}).", "Make room on the disk.") from None
    return FileResponse(
        name,
        media_type="application/zip",
        filename=f"{run.name}-{folder.name}.zip",
        background=BackgroundTask(os.unlink, name),
    )


def _remove_leftovers(folder: Path) -> None:
    """Remove files that were made for a download which a killed server did not finish."""
    for path in folder.glob("*.zip"):
        try:
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()
        except OSError:  # sent and removed meanwhile
            continue
