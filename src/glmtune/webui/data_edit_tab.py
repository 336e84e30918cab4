"""Of the tab `Data`: a row as the model sees it, changing it by hand, and writing repaired rows to new files."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.data.check_fix import LocatedRow, locate_row
from glmtune.data.check_kinds import describe_kind
from glmtune.data.check_rows import find_row_problems
from glmtune.data.conversation import InvalidRow, RawRow
from glmtune.data.row_edits import format_row
from glmtune.data.sources import DataSource
from glmtune.errors import ConfigError, DataError, GlmtuneError
from glmtune.webui import drafts
from glmtune.webui.context import Context
from glmtune.webui.data_checks import DataChecks
from glmtune.webui.data_edits import MAX_ROW_CHARACTERS, EditBook, list_edited_rows, load_edits, parse_change
from glmtune.webui.data_fix import list_choices, parse_plan
from glmtune.webui.data_form import DATA_DRAFT, describe_data, open_form_rows, parse_run, replace_datasets
from glmtune.webui.data_outputs import prepare_outputs, suggest_outputs
from glmtune.webui.data_rows import load_model_checker, open_rows, render_row
from glmtune.webui.guard import owner_of
from glmtune.webui.rendering import get_language, redirect, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_form import parse_datasets
from glmtune.webui.status_pages import answer_user_error
from glmtune.webui.texts import text

_EDITED_EVENT = {"HX-Trigger-After-Settle": "data-edited"}


def add_routes(app: FastAPI, context: Context, checks: DataChecks) -> None:
    """Add the routes.

    Args:
        app: that gets them.
        context: the server's settings.
        checks: those of the tab.
    """

    @app.post("/data/row")
    async def show_row(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_show_row, request, context, data)

    @app.post("/data/edit")
    async def edit_row(request: Request) -> Response:
        data = await read_form(request)
        try:
            return await run_in_threadpool(_edit_row, request, context, checks, data)
        except GlmtuneError as error:
            # Beside what was typed, not in its place.
            response = await answer_user_error(context, request, error)
            response.headers.update({"HX-Retarget": "#edit-problem", "HX-Reswap": "innerHTML"})
            return response

    @app.post("/data/edits/drop")
    async def drop_edits(request: Request) -> Response:
        data = await read_form(request)
        run = await run_in_threadpool(parse_run, context, data)
        sources = await run_in_threadpool(open_rows, run)
        await run_in_threadpool(load_edits(context, owner_of(request)).drop_all, sources)
        response = await run_in_threadpool(_render_panel, request, context, checks, data)
        response.headers.update(_EDITED_EVENT)
        return response

    @app.post("/data/repair")
    async def show_repair(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_render_panel, request, context, checks, data)

    @app.post("/data/fix")
    async def start_fix(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_start_fix, request, context, checks, data)

    @app.post("/data/use")
    async def use_fixed_rows(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_use_fixed_rows, request, context, checks, data)


def _show_row(request: Request, context: Context, data: FormData) -> Response:
    run = parse_run(context, data)
    sources, _ = open_form_rows(run, load_edits(context, owner_of(request)))
    return _render_row(request, context, data, sources)


def _locate(data: FormData, sources: list[DataSource]) -> LocatedRow:
    number = data.get_number("row", 1, low=1)
    located = locate_row(sources, number)
    if located is None:
        raise DataError(f"There is no row {number}.", "Choose one of the table.")
    return located


def _render_row(request: Request, context: Context, data: FormData, sources: list[DataSource]) -> Response:
    lang = get_language(request, context)
    number = data.get_number("row", 1, low=1)
    with_ids = data.has("ids")
    located = _locate(data, sources)
    checker = load_model_checker(parse_run(context, data))
    raw_row = located.raw_row
    content = format_row(raw_row.values) if isinstance(raw_row, RawRow) else located.line or ""
    problems = [
        (describe_kind(problem.kind, lang), problem.message) for problem in find_row_problems(located.row, checker)
    ]
    return render_part(
        *(request, context, "data_row"),
        frame=render_row(located, checker, with_ids, text("data.row_title", lang, row=number), lang),
        has_tokens=not isinstance(located.row, InvalidRow),
        number=number,
        where=located.row.where,
        with_ids=with_ids,
        problems=problems,
        content=content if len(content) <= MAX_ROW_CHARACTERS else None,
        max_characters=f"{MAX_ROW_CHARACTERS:,}",
        is_editable=bool(located.source.files),
        is_edited=located.number in located.source.edits,
        is_left_out=located.source.edits.get(located.number, {}) is None,
    )


def _edit_row(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    """Keep a changed row, leave it out, or forget the change. What was found in it before is not shown any more."""
    edits = load_edits(context, owner_of(request))
    sources, _ = open_form_rows(parse_run(context, data), edits)
    located = _locate(data, sources)
    if not located.source.files:
        raise DataError(f"{located.source.name}: hub data cannot be changed here.", "Download it first.")
    _apply_action(edits, located, data)
    check = checks.get(data.get("check"))
    if check is not None:
        check.edited.add(data.get_number("row", 1, low=1))
    response = _render_row(request, context, data, sources)
    response.headers.update(_EDITED_EVENT)
    return response


def _apply_action(edits: EditBook, located: LocatedRow, data: FormData) -> None:
    action = data.get("action")
    if action == "undo":
        edits.drop_row(located.source, located.number)
    elif action == "leave_out":
        edits.set_row(located.source, located.number, None)
    elif action == "keep":
        values = parse_change(data.get("edited"), located.source, located.row.where)
        edits.set_row(located.source, located.number, values)
    else:
        raise ConfigError(f"{action}: no such action.", "Reload the page.")


def _render_panel(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    """What can be done about the findings, the rows that were changed, and the new files; empty without either."""
    lang = get_language(request, context)
    if not parse_datasets(data):
        return render_part(request, context, "markup", markup="")
    run = parse_run(context, data)
    sources, _ = open_form_rows(run, load_edits(context, owner_of(request)))
    check = checks.get(data.get("check"))
    check = check if check is not None and check.matches(run) and not check.fixes else None
    edited = list_edited_rows(sources)
    if check is None and not edited:
        return render_part(request, context, "markup", markup="")
    outputs = zip(sources, suggest_outputs(context, sources), strict=True)
    return render_part(
        *(request, context, "data_repair"),
        choices=list_choices(check, lang),
        edited=edited,
        outputs=[(context.shorten(source.name), name) for source, name in outputs],
        is_hub=any(not source.files for source in sources),
    )


def _start_fix(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    owner = owner_of(request)
    run = parse_run(context, data)
    plan = parse_plan(data)
    edits = load_edits(context, owner)
    sources, _ = open_form_rows(run, edits)
    hub = next((source for source in sources if not source.files), None)
    if hub is not None:
        raise DataError(f"{hub.name}: --fix writes the rows of files; this is hub data.", "Download it first.")
    outputs = prepare_outputs(context, sources, data.get_all("fix"))
    check = checks.start(run, describe_data(context, data), edits, outputs, plan)
    return render_part(request, context, "data_checking", check=check, report=check.report)


def _use_fixed_rows(request: Request, context: Context, checks: DataChecks, data: FormData) -> Response:
    """Choose the new files in place of the old ones, with the same shares."""
    check = checks.get(data.get("check"))
    if check is None or not check.entries:
        raise ConfigError("This check is not kept any more.", "Choose the new files by name.")
    run = parse_run(context, data)
    if not check.matches(run):
        raise ConfigError("The data were chosen anew.", "Choose the new files by name.")
    entries = [context.shorten(entry) for entry in check.entries]
    drafts.save_draft(context, owner_of(request), DATA_DRAFT, replace_datasets(data, entries))
    return redirect(request, "/data")
