"""The tab `Data`: choose or upload rows, name their columns, check them, see them as a table."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.data.column_formats import COLUMN_ROLES
from glmtune.data.histogram import make_bins
from glmtune.data.sources import read_columns
from glmtune.errors import ConfigError
from glmtune.html.plots import draw_histogram
from glmtune.utils.console import format_bytes
from glmtune.webui import data_edit_tab, drafts
from glmtune.webui.context import Context
from glmtune.webui.data_checks import MAX_FOUND_ROWS, DataCheck, DataChecks, group_findings
from glmtune.webui.data_edits import load_edits
from glmtune.webui.data_fix import read_changes
from glmtune.webui.data_form import (
    DATA_DRAFT,
    describe_data,
    get_default,
    list_settings,
    make_train_draft,
    open_form_rows,
    parse_run,
)
from glmtune.webui.data_rows import read_page
from glmtune.webui.elements import make_figures
from glmtune.webui.error_texts import localize_message
from glmtune.webui.guard import owner_of
from glmtune.webui.rendering import get_language, make_problem, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_form import TRAIN_DRAFT, make_entries, parse_datasets
from glmtune.webui.texts import text
from glmtune.webui.uploads import UploadLimits

_CHECKED_EVENT = {"HX-Trigger-After-Settle": "data-checked"}


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    checks = DataChecks()
    data_edit_tab.add_routes(app, context, checks)

    @app.get("/data")
    def show_data(request: Request) -> Response:
        draft = drafts.load_draft(context, owner_of(request), DATA_DRAFT) or FormData()
        limits = UploadLimits()
        return render_page(
            *(request, context, "data"),
            tab="data",
            data=draft,
            entries=parse_datasets(draft),
            settings=[(item, draft.get(item.key) or get_default(item)) for item in list_settings()],
            roles=COLUMN_ROLES,
            upload_limits={"size": format_bytes(limits.file_bytes), "files": f"{limits.files:,}"},
        )

    @app.post("/data/rows")
    async def show_rows(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), DATA_DRAFT, data)
        return await run_in_threadpool(_show_rows, request, context, checks, data)

    @app.post("/data/columns")
    async def show_columns(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_show_columns, request, context, data)

    @app.post("/data/check")
    async def start_check(request: Request) -> Response:
        data = await read_form(request)
        owner = owner_of(request)
        await run_in_threadpool(drafts.save_draft, context, owner, DATA_DRAFT, data)
        run = await run_in_threadpool(parse_run, context, data)
        edits = await run_in_threadpool(load_edits, context, owner)
        check = await run_in_threadpool(checks.start, run, describe_data(context, data), edits)
        return await run_in_threadpool(_render_check, request, context, check)

    @app.post("/data/train")
    async def take_to_train(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(parse_run, context, data)  # what cannot be read is said here
        owner = owner_of(request)
        draft = await run_in_threadpool(drafts.load_draft, context, owner, TRAIN_DRAFT) or FormData()
        await run_in_threadpool(drafts.save_draft, context, owner, TRAIN_DRAFT, make_train_draft(draft, data))
        return redirect(request, "/train")

    @app.get("/data/check/{id}")
    def show_check(request: Request, id: str) -> Response:
        check = checks.get(id)
        if check is None:
            raise ConfigError("This check is not kept any more.", "Start it again.")
        return _render_check(request, context, check)

    @app.post("/data/check/{id}/cancel")
    def cancel_check(request: Request, id: str) -> Response:
        check = checks.get(id)
        if check is not None:
            check.is_cancelled = True
        return render_part(request, context, "markup", markup="")


def _show_rows(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    lang = get_language(request, context)
    page = data.get_number("page", 1, low=1)
    run = parse_run(context, data)
    check = checks.get(data.get("check"))
    is_checked = check is not None and check.matches(run)
    kind = data.get("kind")
    asks_findings = data.has("findings_only") or bool(kind)
    numbers = check.find_rows(kind) if asks_findings and is_checked and check is not None else None
    sources, outdated = open_form_rows(run, load_edits(context, owner_of(request)))
    rows, has_more = read_page(sources, page, data.get("search"), numbers)
    notes: list[Any] = []
    for source in sources:
        notes += [f"{context.shorten(source.name)}: {source.format}"]
        notes += [localize_message(note, lang) for note in source.notes]
    notes += [text("data.edits_outdated", lang, name=context.shorten(source.name)) for source in outdated]
    if asks_findings and not is_checked:
        notes.insert(0, text("data.check_first", lang))
    elif asks_findings and check is not None and check.is_cut:
        notes.insert(0, text("data.findings_cut", lang, limit=f"{MAX_FOUND_ROWS:,}"))
    return render_part(
        *(request, context, "data_rows"),
        rows=rows,
        page=page,
        has_more=has_more,
        notes=notes,
        kind=kind if numbers is not None else "",
        found=check.rows if is_checked and check is not None else {},
    )


def _show_columns(request: Request, context: Context, data: FormData) -> Response:
    entries = make_entries(context, parse_datasets(data))
    paths = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    names = dict.fromkeys(name for path in paths if isinstance(path, str) for name in read_columns(path))
    chosen = {role: data.get(f"column.{role}") for role in COLUMN_ROLES}
    return render_part(request, context, "data_columns", names=list(names), roles=COLUMN_ROLES, chosen=chosen)


def _render_check(request: Request, context: Context, check: DataCheck) -> Response:
    lang = get_language(request, context)
    if not check.is_done:
        return render_part(request, context, "data_checking", check=check, report=check.report)
    if check.error is not None:
        return render_part(request, context, "markup", markup=make_problem(check.error, lang))
    report = check.report
    limit = check.model.rules.max_row_length if check.model else None
    bins = [(item.first, item.last, item.count) for item in make_bins(report.total, max_bins=30)]
    chart = draw_histogram(bins, text("data.lengths", lang), text(f"data.unit_{report.unit}", lang), limit)
    response = render_part(
        *(request, context, "data_findings"),
        check=check,
        report=report,
        figures=_make_figures(check, lang),
        groups=group_findings(check, lang),
        chart=chart,
        cut=f"{MAX_FOUND_ROWS:,}" if check.is_cut else "",
        fixes=[(fix, list(read_changes(fix, lang))) for fix in check.fixes],
    )
    response.headers.update(_CHECKED_EVENT)
    return response


def _make_figures(check: DataCheck, lang: str) -> Any:
    report = check.report
    tokens = sum(length * count for length, count in report.total.counts.items())
    items = [
        ("data.rows", report.rows),
        ("data.conversations", report.conversations),
        ("data.pairs", report.pair_lengths.pairs),
        ("data.texts", report.texts),
        ("data.tools", report.with_tools),
        ("data.unusable", report.unusable),
        ("data.answers", report.answers),
        ("data.p95", report.total.percentile(95)),
        ("data.longest", report.total.longest),
    ]
    if check.model is not None:
        items += [("data.tokens", tokens), ("data.targets", report.targets)]
    return make_figures((text(name, lang), f"{count:,}") for name, count in items if count)
