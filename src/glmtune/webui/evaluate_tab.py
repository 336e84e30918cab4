"""The tab `Evaluate`: eval, compare and forget as jobs, and their results."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import ConfigError
from glmtune.webui import drafts, lists
from glmtune.webui.context import Context
from glmtune.webui.evaluations import list_evaluations, make_rows
from glmtune.webui.guard import owner_of
from glmtune.webui.jobs_view import render_job
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.rendering import get_language, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.runs_tab import render_report_frame

KINDS = ("eval", "compare", "forget")
_DRAFT = "evaluate"
_MAX_ROWS = 200


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/evaluate")
    def show_evaluate(request: Request, model: str = "", kind: str = "") -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT) or FormData([("probe", "true")])
        kind = kind or draft.get("kind")
        job = next((job for job in context.jobs.list() if job.kind in KINDS), None)
        found = lists.RootLists(context)
        return render_page(
            *(request, context, "evaluate"),
            tab="evaluate",
            kinds=KINDS,
            kind=kind if kind in KINDS else "eval",
            model=model or draft.get("model"),
            draft=draft,
            others=[*draft.get_all("other"), "", ""],
            targets=found.targets,
            datasets=found.datasets,
            list_notes=found.describe_limits(get_language(request, context)),
            panel=render_job(request, context, job) if job else "",
        )

    @app.get("/evaluate/results")
    def show_results(request: Request) -> Response:
        rows = [row for entry in list_evaluations(context) for row in make_rows(entry)][:_MAX_ROWS]
        names = {row.folder: context.shorten(row.folder) for row in rows}
        return render_part(request, context, "evaluate_results", rows=rows, names=names)

    @app.get("/evaluate/report")
    def show_report(request: Request, folder: str = "") -> Response:
        lang = get_language(request, context)
        frame = render_report_frame(inside(context.roots, folder), lang)
        return render_part(request, context, "markup", markup=frame)

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
    if data.get("output"):
        words += ["--output", str(inside(context.roots, data.get("output")))]
    if kind != "eval":
        words += ["--lang", lang]
    if kind == "compare" and not data.has("probe"):
        words.append("--no-forget")
    return words


def _make_numbers(data: FormData, kind: str) -> Iterator[str]:
    values = {
        "--limit": data.get_number("limit", 0),
        "--batch-size": data.get_number("batch", 8, low=1, high=4096),
    }
    if kind != "forget":  # the probe sets its own
        values["--max-new-tokens"] = data.get_number("tokens", 0, high=32_768)
    for option, value in values.items():
        if value:
            yield from (option, str(value))
