"""The tab `Runs`: a table of all runs, and several compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.html.plots import select_points
from glmtune.webui import run_page, runs_export, runs_selection
from glmtune.webui.choices_view import describe_cut
from glmtune.webui.context import Context
from glmtune.webui.guard import owner_of
from glmtune.webui.paths import inside
from glmtune.webui.rendering import get_language, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_files import STATES, find_differences, read_run, require_run
from glmtune.webui.runs_index import PAGE_RUNS, SORT_KEYS, RunQuery, find_page
from glmtune.webui.runs_selection import describe_selection, load_selection
from glmtune.webui.tables import MAX_PAGE, TableLinks
from glmtune.webui.texts import text

_COMPARED_CURVES = ("loss", "eval_loss", "learning_rate", "tokens_per_second", "reward", "accuracy")
_ASCENDING_FIRST = frozenset({"name", "state", "model", "method", "loss", "eval_loss"})


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    for module in (run_page, runs_selection, runs_export):
        module.add_routes(app, context)

    @app.get("/runs")
    def show_runs(request: Request) -> Response:
        query = parse_query(FormData(request.query_params.multi_items()))
        selected = load_selection(context, owner_of(request))
        table = _describe_table(context, query, selected, get_language(request, context))
        if request.headers.get("hx-target") == "runs-table":
            return render_part(request, context, "runs_table", **table)
        return render_page(
            *(request, context, "runs"), tab="runs", states=STATES, **table, **describe_selection(context, selected)
        )

    @app.post("/runs/compare")
    async def compare_runs(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_compare, request, context, data)


def parse_query(data: FormData) -> RunQuery:
    """The table that a browser asks for; what is not known is the default."""
    sort = data.get("sort")
    return RunQuery(
        data.get("search")[:200],
        data.get("state") if data.get("state") in STATES else "",
        sort if sort in SORT_KEYS else "ended",
        data.get("order") != "up",
        data.get_number("page", 1, low=1, high=MAX_PAGE),
    )


def _describe_table(context: Context, query: RunQuery, selected: list[str], lang: str) -> dict[str, Any]:
    """Values of the template `runs_table`."""
    page = find_page(context, query)
    last_page = max(1, -(-page.count // PAGE_RUNS))
    if query.page > last_page:  # runs were deleted since the page was linked to
        query = replace(query, page=last_page)
        page = find_page(context, query)
    fields = {"search": query.search, "state": query.state}
    links = TableLinks(*(fields, query.sort, query.is_descending, query.page, page.count, PAGE_RUNS), _ASCENDING_FIRST)
    return {
        "rows": page.rows,
        "query": query,
        "columns": SORT_KEYS,
        "links": links,
        "ticked": frozenset(selected),
        "limits": describe_cut(page.cut_roots, lang),
    }


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
