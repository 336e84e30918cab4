"""The tab `Evaluate`: eval, compare, forget and score as jobs, and all results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import ConfigError
from glmtune.utils.shell_words import join_words
from glmtune.webui import drafts, evaluations
from glmtune.webui.context import Context
from glmtune.webui.evaluations import PAGE_ROWS, SORT_KEYS, EvaluationQuery, find_result, find_rows
from glmtune.webui.guard import owner_of
from glmtune.webui.job_lists import describe_jobs
from glmtune.webui.jobs import Job
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_page import render_report_frame
from glmtune.webui.score_view import render_scores
from glmtune.webui.tables import MAX_PAGE, TableLinks

KINDS = ("eval", "compare", "forget", "score")
_DRAFT = "evaluate"


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    _add_form_routes(app, context)
    _add_result_routes(app, context)


def _add_form_routes(app: FastAPI, context: Context) -> None:
    @app.get("/evaluate")
    def show_evaluate(request: Request, model: str = "", kind: str = "", report: str = "") -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT) or FormData([("probe", "true")])
        kind = kind or draft.get("kind")
        return render_page(
            *(request, context, "evaluate"),
            tab="evaluate",
            kinds=KINDS,
            kind=kind if kind in KINDS else "eval",
            model=model or draft.get("model"),
            draft=draft,
            others=[*draft.get_all("other"), "", ""],
            report=report,
            result_kinds=evaluations.KINDS,
            **describe_jobs(request, context, KINDS),
        )

    @app.post("/evaluate/draft")
    async def keep_form(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), _DRAFT, data)
        return Response(status_code=204)

    @app.post("/evaluate/start")
    async def start_evaluation(request: Request) -> Response:
        data = await read_form(request)
        arguments = make_arguments(context, data, get_language(request, context))
        output = str(inside(context.roots, data.get("output"))) if data.get("output") else ""
        await run_in_threadpool(context.jobs.submit, arguments[0], arguments, output, owner_of(request))
        return redirect(request, f"/evaluate?kind={arguments[0]}")


def _add_result_routes(app: FastAPI, context: Context) -> None:
    @app.get("/evaluate/results")
    def show_results(request: Request) -> Response:
        query = parse_query(FormData(request.query_params.multi_items()))
        return render_part(request, context, "evaluate_results", **_describe_table(context, query))

    @app.get("/evaluate/job/{id}")
    def show_job_result(request: Request, id: str) -> Response:
        rows = list_job_rows(context, context.jobs.get(id))
        names = {row.folder: context.shorten(row.folder) for row in rows}
        return render_part(request, context, "evaluate_job", rows=rows, names=names)

    @app.get("/evaluate/report")
    def show_report(request: Request, folder: str = "") -> Response:
        lang, path = get_language(request, context), inside(context.roots, folder)
        markup = render_scores(path, lang) or render_report_frame(path, lang)
        return render_part(request, context, "evaluate_report", report=markup, name=context.shorten(path))


def parse_query(data: FormData) -> EvaluationQuery:
    """The table that a browser asks for; what is not known is the default."""
    kind, sort = data.get("kind"), data.get("sort")
    return EvaluationQuery(
        data.get("search")[:200],
        kind if kind in evaluations.KINDS else "",
        sort if sort in SORT_KEYS else "written",
        data.get("order") != "up",
        data.get_number("page", 1, low=1, high=MAX_PAGE),
    )


def list_job_rows(context: Context, job: Job) -> tuple[evaluations.EvaluationRow, ...]:
    """The rows of what a job has written; none before its end."""
    if job.alive or job.kind not in KINDS:
        return ()
    entry = find_result(context, join_words(["glmtune", *job.arguments]))
    return entry.rows if entry is not None else ()


def _describe_table(context: Context, query: EvaluationQuery) -> dict[str, Any]:
    """Values of the template `evaluate_results`."""
    rows, count = find_rows(context, query)
    last_page = max(1, -(-count // PAGE_ROWS))
    if query.page > last_page:  # results were deleted since the page was linked to
        query = replace(query, page=last_page)
        rows, count = find_rows(context, query)
    fields = {"search": query.search, "kind": query.kind}
    links = TableLinks(
        *(fields, query.sort, query.is_descending, query.page, count, PAGE_ROWS), frozenset({"model", "loss"})
    )
    names = {row.folder: context.shorten(row.folder) for row in rows}
    return {"rows": rows, "names": names, "links": links, "is_filtered": bool(query.search or query.kind)}


def make_arguments(context: Context, data: FormData, lang: str) -> list[str]:
    """The command behind the fields, without `glmtune`.

    Raises:
        ConfigError: something that the command needs is missing.
        PathError: a path outside the roots.
    """
    kind = data.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"{kind}: no such task.", f"One of: {', '.join(KINDS)}.")
    if not data.get("model"):
        raise ConfigError("No model is chosen.", "Choose one of the list.")
    others = data.get_all("other")
    if kind == "compare" and not others:
        raise ConfigError("A comparison needs a second model.", "Choose what to compare with the first.")
    names = [data.get("model"), *(others if kind == "compare" else [])]
    words = [kind, *(model_or_path(context.roots, name) for name in names)]
    if kind != "forget":
        if not data.get("data"):
            raise ConfigError("No rows are chosen.", "Choose a file of the list.")
        words += ["--data", str(data_entries(context.roots, data.get("data")))]
    words += list(_make_numbers(data, kind))
    if kind == "compare" and data.get("judge"):
        words += ["--judge", model_or_path(context.roots, data.get("judge"))]
    if data.get("output"):
        words += ["--output", str(inside(context.roots, data.get("output")))]
    if kind in ("compare", "forget"):
        words += ["--lang", lang]
    if kind == "compare" and not data.has("probe"):
        words.append("--no-forget")
    return words


def _make_numbers(data: FormData, kind: str) -> Iterator[str]:
    values = {
        "--limit": data.get_number("limit", 0),
        "--batch-size": data.get_number("batch", 8, low=1, high=4096),
    }
    if kind in ("eval", "compare"):  # the probe sets its own
        values["--max-new-tokens"] = data.get_number("tokens", 0, high=32_768)
    for option, value in values.items():
        if value:
            yield from (option, str(value))
