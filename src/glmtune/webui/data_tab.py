"""The tab `Data`: choose or upload rows, name their columns, check and repair them, see them as the model does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.config import RunConfig
from glmtune.data.column_formats import COLUMN_ROLES
from glmtune.data.histogram import make_bins
from glmtune.data.sources import read_columns
from glmtune.errors import ConfigError
from glmtune.html.plots import draw_histogram
from glmtune.webui import drafts, lists
from glmtune.webui.context import Context
from glmtune.webui.data_checks import DataCheck, DataChecks, group_findings
from glmtune.webui.data_rows import make_run, open_rows, read_page, render_row
from glmtune.webui.elements import make_figures
from glmtune.webui.error_texts import localize_message
from glmtune.webui.forms import Field, map_fields, parse_value, tree_of
from glmtune.webui.guard import owner_of
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.rendering import get_language, make_problem, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_form import DATA, TRAIN_DRAFT, WEIGHT
from glmtune.webui.texts import text

_DRAFT = "data"
_SETTINGS = (
    *("model.family", "data.format", "data.max_source_length", "data.max_target_length", "data.max_length"),
    *("data.overlength", "data.train_on", "data.preference", "data.prefix"),
)


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""
    checks = DataChecks()

    @app.get("/data")
    def show_data(request: Request) -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT) or FormData()
        return render_page(
            *(request, context, "data"),
            tab="data",
            data=draft,
            settings=[(item, draft.get(item.key) or _get_default(item)) for item in _list_settings()],
            models=lists.list_choices(context, "models"),
            datasets=lists.list_datasets(context),
            roles=COLUMN_ROLES,
        )

    @app.post("/data/rows")
    async def show_rows(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), _DRAFT, data)
        return await run_in_threadpool(_show_rows, request, context, checks, data)

    @app.post("/data/columns")
    async def show_columns(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_show_columns, request, context, data)

    @app.post("/data/row")
    async def show_row(request: Request) -> Response:
        data = await read_form(request)
        lang = get_language(request, context)
        number = data.get_number("row", 1, low=1)
        title = text("data.row_title", lang, row=number)
        run = await run_in_threadpool(parse_run, context, data)
        frame = await run_in_threadpool(render_row, run, number, data.has("ids"), title, lang)
        return render_part(request, context, "data_row", frame=frame, number=number, with_ids=data.has("ids"))

    @app.post("/data/check")
    async def start_check(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), _DRAFT, data)
        fix = inside(context.roots, data.get("fix")) if data.get("fix") else None
        run = await run_in_threadpool(parse_run, context, data)
        check = await run_in_threadpool(checks.start, run, context.shorten(data.get(DATA)), fix)
        return _render_check(request, context, check)

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


def parse_run(context: Context, data: FormData) -> RunConfig:
    """The config behind the fields of the tab.

    Raises:
        GlmtuneError: a path outside the roots, or a value that its key cannot take.
    """
    sent = {name for name, _ in data.pairs}
    tree = tree_of(
        {item.key: data.get(item.key) for item in _list_settings() if item.key in sent and item.kind != "flag"}
    )
    section = tree.setdefault("data", {})
    section["train"] = data_entries(context.roots, data.get(DATA))
    columns = _get_columns(data)
    if columns:
        section["columns"] = columns
    if data.get("model.path"):
        tree.setdefault("model", {})["path"] = model_or_path(context.roots, data.get("model.path"))
    return make_run(tree)


def make_train_draft(draft: FormData, data: FormData) -> FormData:
    """The training form with the rows, columns, limits and model of this tab in place of its own.

    Args:
        draft: fields of the training form.
        data: fields of this tab.
    """
    columns = _get_columns(data)
    given = {name for name, _ in data.pairs}
    fields = [(key, data.get(key)) for key in _SETTINGS if key in given]
    if data.get("model.path"):
        fields.append(("model.path", data.get("model.path")))
    # One a line; JSON strings are YAML, whatever is in a name.
    lines = "\n".join(f"{role}: {json.dumps(name, ensure_ascii=False)}" for role, name in columns.items())
    fields += [("data.columns", lines), (DATA, data.get(DATA)), (WEIGHT, "")]
    kept = draft.without(*(name for name, _ in fields))
    return FormData([*kept.pairs, *fields])


def _get_columns(data: FormData) -> dict[str, str]:
    """The columns that the menus name, by role."""
    return {role: data.get(f"column.{role}") for role in COLUMN_ROLES if data.get(f"column.{role}")}


def _show_rows(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    page = data.get_number("page", 1, low=1)
    run = parse_run(context, data)
    check = checks.get(data.get("check"))
    is_checked = check is not None and check.is_done and check.data == run.data
    numbers = frozenset(check.rows) if data.has("findings_only") and is_checked and check is not None else None
    rows, has_more = read_page(run, page, data.get("search"), numbers)
    lang = get_language(request, context)
    notes: list[str] = [text("data.check_first", lang)] if data.has("findings_only") and not is_checked else []
    for source in open_rows(run):
        notes.append(f"{source.name}: {source.format}")
        notes += [localize_message(note, lang) for note in source.notes]
    return render_part(request, context, "data_rows", rows=rows, page=page, has_more=has_more, notes=notes)


def _show_columns(request: Request, context: Context, data: FormData) -> Response:
    entry = data_entries(context.roots, data.get(DATA))
    names = read_columns(entry) if isinstance(entry, str) else []
    chosen = {role: data.get(f"column.{role}") for role in COLUMN_ROLES}
    return render_part(request, context, "data_columns", names=names, roles=COLUMN_ROLES, chosen=chosen)


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
    return render_part(
        *(request, context, "data_findings"),
        check=check,
        report=report,
        figures=_make_figures(check, lang),
        groups=group_findings(report, lang),
        chart=chart,
        fix_name=_suggest_fix(context, check),
        fix_result=check.fix_result,
    )


def _make_figures(check: DataCheck, lang: str) -> Any:
    report = check.report
    tokens = sum(length * count for length, count in report.total.counts.items())
    items = [
        ("data.rows", report.rows),
        ("data.conversations", report.conversations),
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


def _suggest_fix(context: Context, check: DataCheck) -> str:
    """A new file in the first root for the clean rows."""
    stem = Path(check.name.rpartition(":")[2]).name.partition(".")[0] or "rows"
    number, name = 2, f"{stem}-clean.jsonl"
    while (context.roots[0] / name).exists():
        name, number = f"{stem}-clean-{number}.jsonl", number + 1
    return name


def _list_settings() -> list[Field]:
    return [map_fields()[key] for key in _SETTINGS]


def _get_default(field: Field) -> Any:
    value = parse_value(field, "")
    return "" if value is None else value
