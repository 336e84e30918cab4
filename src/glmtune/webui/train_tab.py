"""The tab `Train`: the form in steps, beside it whether it fits and the start; below, the training as it runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.config_parsing import read_config_file
from glmtune.errors import GlmtuneError
from glmtune.html.pages import is_number
from glmtune.utils.installation import format_install
from glmtune.utils.io import find_json_object
from glmtune.utils.shell_words import join_words
from glmtune.webui import drafts
from glmtune.webui.context import Context
from glmtune.webui.forms import (
    as_yaml,
    check_tree,
    find_unavailable_choices,
    get_method_section,
    list_first_keys,
    map_fields,
)
from glmtune.webui.gpu_memory import read_gpus
from glmtune.webui.guard import owner_of
from glmtune.webui.jobs import Job
from glmtune.webui.jobs_view import render_job
from glmtune.webui.lists import RootLists
from glmtune.webui.migration import make_migrated_form, translate_script
from glmtune.webui.paths import inside
from glmtune.webui.plan_view import make_plan, render_plan, render_work
from glmtune.webui.presets import CARDS, GOALS, apply_settings, fit_goal
from glmtune.webui.rendering import get_language, make_problem, redirect, render_markup, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.root_walk import find_runs
from glmtune.webui.run_files import require_run
from glmtune.webui.run_form import (
    METHOD_SECTIONS,
    TRAIN_DRAFT,
    RunForm,
    make_empty_form,
    make_form,
    make_tree,
    parse_form,
    write_config,
)

_MAX_TRAININGS = 30
_MAX_COMPARED = 50
_TOP = ("model.path", "data.train", "data.eval", "method", "stage", "output")
"""Keys with places of their own on the form."""


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/train")
    def show_train(request: Request, job: str = "") -> Response:
        draft = drafts.load_draft(context, owner_of(request), TRAIN_DRAFT)
        form = parse_form(draft) if draft else make_empty_form()
        shown = find_training(context, job)
        jobs = list_trainings(context)
        trainings = jobs[:_MAX_TRAININGS] + [each for each in jobs[_MAX_TRAININGS:] if shown and each.id == shown.id]
        memory = draft.get("gpu_memory") if draft else ""
        return render_page(
            *(request, context, "train"),
            tab="train",
            form=render_form(request, context, form, memory),
            trainings=[(context.shorten(each.output), each) for each in trainings],
            job=shown,
            panel=_render_panel(request, context, shown) if shown else "",
            runs=RootLists(context).find_runs().choices,
            saved=drafts.list_saved(context),
            **{"saved_name": "", "rival": None, "problem": None},
        )

    @app.post("/train/check")
    async def check_form(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), TRAIN_DRAFT, data)
        return await run_in_threadpool(_render_card, request, context, parse_form(data))

    @app.post("/train/plan")
    async def plan_training(request: Request) -> Response:
        data = await read_form(request)
        lang = get_language(request, context)
        form = parse_form(data)
        if not form.is_complete:
            return render_part(request, context, "markup", markup="")
        tree = await run_in_threadpool(make_tree, context, form)
        plan = await make_plan(tree, data.get("gpu_memory"), context.roots[0], lang, request)
        seconds = await run_in_threadpool(estimate_seconds, context, tree, plan)
        change = plan["change"] if plan["change"] and plan["change"]["fits"] else None
        return render_part(
            *(request, context, "train_plan"),
            plan=render_plan(plan, lang),
            work=render_work(plan, seconds, lang),
            settings="\n".join(change["settings"]) if change else "",
        )

    @app.post("/train/form")
    async def change_form(request: Request) -> Response:
        data = await read_form(request)
        lines: list[str] = []
        notes: list[str] = []
        if data.get("action") == "import":
            migration = await translate_script(request, context, data.get("import_text"), data.get("import_name"))
            form, notes = await run_in_threadpool(make_migrated_form, migration), migration.notes
        elif data.get("action") == "preset":
            goal, memory = data.get("preset"), data.get("gpu_memory")
            form, lines = await fit_goal(request, context, parse_form(data), goal, memory)
        else:
            form = await run_in_threadpool(change_settings, context, data)
        markup = await run_in_threadpool(
            partial(render_form, request, context, form, data.get("gpu_memory"), lines, notes)
        )
        return render_part(request, context, "markup", markup=markup)

    @app.post("/train/settings")
    @app.post("/train/settings/{action}")
    async def change_saved_settings(request: Request, action: str = "save") -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_change_saved, request, context, action, data)

    @app.post("/train/start")
    async def start_training(request: Request) -> Response:
        data = await read_form(request)
        return await run_in_threadpool(_start, request, context, data)


def render_form(
    request: Request,
    context: Context,
    form: RunForm,
    memory: str = "",
    goal_lines: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Any:
    """The form with its values, and the card beside it.

    Args:
        request: that asks for it.
        context: the server's settings.
        form: its values.
        memory: of the GPU that plans are made for; empty: this machine.
        goal_lines: what a preset has chosen, and why.
        notes: of an import: what was translated, what differs, what has no effect.
    """
    by_key = map_fields()
    shared = list_first_keys("")
    method_keys = {name: [by_key[key] for key in list_first_keys(name)] for name in METHOD_SECTIONS}
    used = {*_TOP, *shared, *(field.key for group in method_keys.values() for field in group)}
    # Parts in the order of the config; `run` holds the keys of no section.
    sections = sorted(dict.fromkeys(item.section for item in by_key.values()), key=lambda name: name == "run")
    rare = [item for item in by_key.values() if item.key not in used]
    folded = {name: [item for item in rare if item.section == name] for name in sections}
    return render_markup(
        *(request, context, "train_form"),
        form=form,
        known=by_key,
        shared=[by_key[key] for key in shared],
        method_keys=method_keys,
        own_section=get_method_section(str(form.values["method"])),
        folded={name: items for name, items in folded.items() if items},
        unavailable=find_unavailable_choices(),
        install_command=format_install("glmtune[qlora]"),
        goals=list(GOALS),
        goal_lines=goal_lines,
        notes=notes,
        cards=CARDS,
        memory=memory,
        gpus=read_gpus(),
    )


def change_settings(context: Context, data: FormData) -> RunForm:
    """The form after a button that changes many fields: saved settings, those of a run, a proposed change.

    Raises:
        GlmtuneError: they cannot be read.
    """
    action = data.get("action")
    form = parse_form(data)
    if action == "load":
        return parse_form(drafts.load_settings(context, data.get("saved")))
    if action == "repeat":
        run = require_run(inside(context.roots, data.get("run")))
        return make_form({**read_config_file(run.config), "output": ""})
    if action == "apply":
        return apply_settings(form, data.get("proposed").splitlines())
    return form


def estimate_seconds(context: Context, tree: dict[str, Any], plan: dict[str, Any]) -> float | None:
    """Time of a training from the speed of the newest run of the same model and method here; None without one."""
    for path in find_runs(context.roots)[:_MAX_COMPARED]:
        summary = find_json_object(path / "summary.json") or {}
        speed = summary.get("tokens_per_second")
        if not is_number(speed) or speed <= 0:
            continue
        try:
            config = read_config_file(path / "config.yaml")
        except GlmtuneError:
            continue
        model = config.get("model")
        same_model = (model.get("path") if isinstance(model, dict) else model) == tree["model"]["path"]
        if plan["tokens"] and same_model and config.get("method", "lora") == tree.get("method", "lora"):
            return float(plan["tokens"]) / speed
    return None


def list_trainings(context: Context) -> list[Job]:
    """Jobs that are trainings, the newest first."""
    return [job for job in context.jobs.list() if job.kind == "train"]


def find_training(context: Context, id: str) -> Job | None:
    """The job of this id; without one that which is running, else the newest."""
    jobs = list_trainings(context)
    chosen = next((job for job in jobs if job.id == id), None)
    return chosen or next((job for job in jobs if job.state == "running"), jobs[0] if jobs else None)


def _change_saved(request: Request, context: Context, action: str, data: FormData) -> Response:
    """Save, rename or delete settings: the list after it, with what was saved, the question whether to replace the
    settings of the same name, or what is wrong."""
    name, problem, rival = "", None, None
    try:
        if action == "save":
            name, fields = data.get("settings_name"), data.without("settings_name", "overwrite")
            rival = drafts.save_settings(context, name, fields, may_replace=data.has("overwrite"))
        elif action == "rename":
            name = data.get("new_name")
            drafts.rename_settings(context, data.get("saved"), name)
        elif action == "delete":
            drafts.delete_settings(context, data.get("saved"))
    except GlmtuneError as error:
        name, problem = "", make_problem(error, get_language(request, context))
    values = {"saved_name": "" if rival else name, "rival": rival, "problem": problem}
    return render_part(request, context, "train_saved", saved=drafts.list_saved(context), **values)


def _render_panel(request: Request, context: Context, job: Job) -> Any:
    """The panel of a training; an error in its place where its run lies outside of the roots, as they are now."""
    try:
        return render_job(request, context, job)
    except GlmtuneError as error:
        return make_problem(error, get_language(request, context))


def _start(request: Request, context: Context, data: FormData) -> Response:
    file, output = write_config(context, make_tree(context, parse_form(data)))
    job = context.jobs.submit("train", ["train", str(file)], str(output), owner_of(request))
    return redirect(request, f"/train?job={job.id}#job")


def _render_card(request: Request, context: Context, form: RunForm) -> Response:
    """The command and its file, or what is wrong with the form."""
    if not form.is_complete:
        return render_part(request, context, "train_card", problem=None, config=None, command="", is_complete=False)
    lang = get_language(request, context)
    try:
        tree = make_tree(context, form)
        check_tree(tree)
    except GlmtuneError as error:
        problem = make_problem(error, lang)
        return render_part(request, context, "train_card", problem=problem, config=None, command="", is_complete=True)
    command = join_words(["glmtune", "train", "config.yaml"])
    return render_part(
        *(request, context, "train_card"), problem=None, config=as_yaml(tree), command=command, is_complete=True
    )
