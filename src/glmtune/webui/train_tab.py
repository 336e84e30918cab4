"""The tab `train`: the form, the command it makes, and the trainings under way."""

from __future__ import annotations

import shlex
from typing import Any

import gradio as gr

from glmtune.config_parsing import read_config_file
from glmtune.errors import GlmtuneError
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.forms import as_yaml, checked
from glmtune.webui.paths import inside
from glmtune.webui.pick import choices, renewed, this_tab
from glmtune.webui.plan_panel import build_plan
from glmtune.webui.run_files import require_run
from glmtune.webui.security import owner_of
from glmtune.webui.selection import Chosen
from glmtune.webui.texts import text
from glmtune.webui.train_form import Form, build_form, prepared, shown_values, tree_from
from glmtune.webui.train_panel import TrainPanel
from glmtune.webui.words import Words

_QUIET: dict[str, Any] = {"show_progress": "hidden"}


def build(context: Context, words: Words, lang: gr.State, chosen: Chosen) -> None:
    """Put the tab's components onto the page."""
    words.add(gr.Markdown(), value="train.lead")
    form = build_form(context, words, lang)
    problem = gr.HTML(html.note(text("train.incomplete", context.lang)), elem_id="train-problem")
    with gr.Row():
        command = gr.Code(
            language="shell", interactive=False, elem_id="train-command", scale=1, min_width=280, lines=1, visible=False
        )
        words.add(command, label="train.command")
        config = gr.Code(
            language="yaml",
            interactive=False,
            elem_id="train-yaml",
            scale=1,
            min_width=280,
            lines=4,
            max_lines=20,
            visible=False,
        )
        words.add(config, label="train.yaml")
    build_plan(context, words, lang, form)
    start = words.add(gr.Button(variant="primary", elem_id="train-start"), value="train.start")
    panel = TrainPanel(context, words, lang)

    @shown
    def begin(request: gr.Request, *values: Any) -> str:
        file, output = prepared(context, tree_from(context, *form.read(values)))
        return context.jobs.submit("train", ["train", str(file)], str(output), owner_of(request)).id

    def show(code: str, *values: Any) -> list[Any]:
        return _preview(context, form, values, code)

    start.click(begin, form.inputs, [panel.selected], **_QUIET)
    changes = [component.change for component in form.inputs]
    gr.on(
        [lang.change, *changes],
        show,
        [lang, *form.inputs],
        [command, config, problem],
        trigger_mode="always_last",
        **_QUIET,
    )
    _earlier_runs(context, words, form, panel)
    _take_over(context, form, chosen)


def _preview(context: Context, form: Form, values: tuple[Any, ...], lang: str) -> list[Any]:
    """The command and its file, or what is wrong with the form."""
    given, more = form.read(values)
    if not (given["model.path"] and given["data.train"]):
        return [gr.update(visible=False), gr.update(visible=False), html.note(text("train.incomplete", lang))]
    try:
        tree = tree_from(context, given, more)
        checked(tree)
    except GlmtuneError as error:
        return [gr.update(visible=False), gr.update(visible=False), html.problem(error)]
    command = shlex.join(["glmtune", "train", "config.yaml"])
    return [gr.update(value=command, visible=True), gr.update(value=as_yaml(tree), visible=True), ""]


def _earlier_runs(context: Context, words: Words, form: Form, panel: TrainPanel) -> None:
    with (
        words.add(gr.Accordion(open=False, elem_id="train-earlier"), label="train.continue"),
        gr.Row(equal_height=True),
    ):
        run = gr.Dropdown(choices(context, "runs"), value=None, scale=2, min_width=260, elem_id="train-run")
        words.add(run, label="train.run")
        resume = words.add(gr.Button(min_width=160, elem_id="train-resume"), value="train.resume")
        repeat = words.add(gr.Button(min_width=160), value="train.repeat")

    @shown
    def go_on(named: str | None, request: gr.Request) -> str:
        output = str(require_run(inside(context.roots, named or "")).root)
        arguments = ["train", "--resume", "--output", output]
        return context.jobs.submit("train", arguments, output, owner_of(request)).id

    @shown
    def fill(named: str | None) -> list[Any]:
        tree = read_config_file(require_run(inside(context.roots, named or "")).config)
        return shown_values(form, {**tree, "output": ""})

    resume.click(go_on, [run], [panel.selected], **_QUIET)
    repeat.click(fill, [run], form.inputs, **_QUIET)
    this_tab().select(lambda now: renewed(choices(context, "runs"), now, first=True), [run], [run], **_QUIET)
    panel.ended.change(
        lambda path: gr.update(choices=choices(context, "runs"), value=path), [panel.ended], [run], **_QUIET
    )


def _take_over(context: Context, form: Form, chosen: Chosen) -> None:
    """What was looked at in the tabs before is what is trained with."""
    model, train, held = (form.components[key] for key in ("model.path", "data.train", "data.eval"))

    def renew(path: str | None, rows: list[str], evaluation: str | None) -> list[Any]:
        found = choices(context, "data")
        return [renewed(choices(context, "models"), path), renewed(found, rows or []), renewed(found, evaluation)]

    this_tab().select(renew, [model, train, held], [model, train, held], **_QUIET)
    chosen.model.change(lambda path: path or gr.skip(), [chosen.model], [model], **_QUIET)
    chosen.data.change(lambda path: [path] if path else gr.skip(), [chosen.data], [train], **_QUIET)
