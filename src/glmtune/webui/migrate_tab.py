"""The tab `Migrate`: a script of an older trainer as a command and a config of glmtune."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.webui import drafts
from glmtune.webui.context import Context
from glmtune.webui.guard import owner_of
from glmtune.webui.migration import SUFFIXES, Migration, make_migrated_form, translate_script
from glmtune.webui.rendering import redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.run_form import TRAIN_DRAFT, list_form_pairs

_DRAFT = "migrate"


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/migrate")
    def show_migrate(request: Request) -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT) or FormData()
        return render_page(request, context, "migrate", tab="migrate", draft=draft, suffixes=",".join(SUFFIXES))

    @app.post("/migrate")
    async def migrate_script(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), _DRAFT, data)
        migration = await _translate(request, context, data)
        return render_part(request, context, "migrate_result", migration=migration)

    @app.post("/migrate/open")
    async def open_in_form(request: Request) -> Response:
        form = make_migrated_form(await _translate(request, context, await read_form(request)))
        fields = FormData(list_form_pairs(form))
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), TRAIN_DRAFT, fields)
        return redirect(request, "/train")


async def _translate(request: Request, context: Context, data: FormData) -> Migration:
    content, name, path = (data.get(key) for key in ("script", "script_name", "script_path"))
    return await translate_script(request, context, content, name, path if not content else "")
