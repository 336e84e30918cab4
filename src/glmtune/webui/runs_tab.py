"""The tab `Runs`: what was trained, curves over each other, settings compared, reports, notes, deletion."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import RunError
from glmtune.html.builder import Html, el
from glmtune.html.plots import LineChart, Series, draw_line_chart, select_points
from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.paths import inside, listed
from glmtune.webui.pick import choices, renewed, short, this_tab
from glmtune.webui.results import report_frame
from glmtune.webui.run_files import (
    NOTES,
    RunFacts,
    delete_run,
    differences,
    read_notes,
    read_run,
    require_run,
    write_notes,
)
from glmtune.webui.tables import CSS, number, quiet, show_table
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_CURVES = ("loss", "eval_loss", "learning_rate", "tokens_per_second")
_COLUMNS = ("name", "state", "family", "method", "steps", "loss", "eval_loss", "speed", "time", "ended")
_OVERLAID = 12
"""Runs in one drawing; more cannot be told apart."""


def build(context: Context, words: Words, lang: gr.State) -> None:
    """Put the tab's components onto the page."""
    with gr.Row(equal_height=True):
        words.add(gr.Markdown(elem_classes="intro"), value="runs.intro")
        refresh = words.add(gr.Button(size="sm", scale=0, min_width=140, elem_id="runs-refresh"), value="runs.refresh")
    overview = gr.HTML(elem_id="runs-list", css_template=CSS)
    chosen, curve, drawing, table = _comparison(words)
    one = _one_run(context, words, lang)

    def reread(language: str, several: list[str], single: str | None) -> list[Any]:
        found = choices(context, "runs")
        compared = renewed(found, several)
        if not compared.get("value", several):  # the newest two are what one wants to see
            compared = gr.update(choices=found, value=[path for _, path in found[:2]])
        return [run_table(context, language), compared, renewed(found, single, first=True)]

    def draw(language: str, several: list[str], key: str) -> list[Any]:
        runs = [inside(context.roots, path) for path in several[:_OVERLAID]]
        return [curves(context, runs, key, language), difference_table(context, runs, language)]

    for event in (refresh.click, this_tab().select, lang.change, one.deleted.change):
        event(shown(reread), [lang, chosen, one.run], [overview, chosen, one.run], show_progress="hidden")
    for event in (chosen.change, curve.change, lang.change, refresh.click):
        event(shown(draw), [lang, chosen, curve], [drawing, table], show_progress="hidden")


def _comparison(words: Words) -> tuple[gr.Dropdown, gr.Radio, gr.HTML, gr.HTML]:
    words.add(gr.Markdown(), value="runs.compare")
    with gr.Row():
        chosen = words.add(
            gr.Dropdown([], value=[], multiselect=True, elem_id="runs-chosen", scale=2),
            label="runs.chosen",
            info="runs.chosen.info",
        )
        curve = words.add(
            gr.Radio(value=_CURVES[0], elem_id="runs-curve", scale=2),
            label="runs.curve",
            choices={key: f"runs.curve.{key}" for key in _CURVES},
        )
    return (
        chosen,
        curve,
        gr.HTML(elem_id="runs-curves", css_template=CSS),
        gr.HTML(css_template=CSS, elem_id="runs-diff"),
    )


class _OneRun:
    """The fields about a single run."""

    def __init__(self, run: gr.Dropdown, deleted: gr.State):
        self.run = run
        self.deleted = deleted
        """The run deleted last."""


def _one_run(context: Context, words: Words, lang: gr.State) -> _OneRun:
    words.add(gr.Markdown(), value="runs.one")
    with gr.Row():
        run = words.add(gr.Dropdown([], value=None, elem_id="runs-run", scale=3), label="runs.run")
        report = words.add(gr.Button(size="sm", scale=0, min_width=140, elem_id="runs-report"), value="runs.report")
    frame = gr.HTML(elem_id="runs-frame")
    notes = words.add(
        gr.Textbox("", lines=3, max_lines=20, elem_id="runs-notes"), label="runs.notes", info="runs.notes.info"
    )
    with gr.Row():
        save = words.add(gr.Button(elem_id="runs-save"), value="runs.save")
        delete = words.add(gr.Button(variant="stop", elem_id="runs-delete"), value="runs.delete")

    def chosen(path: str | None) -> Path:
        if not path:
            raise RunError("No run is chosen.", "Choose one of the list.")
        return inside(context.roots, path)

    def open_report(path: str | None, language: str) -> Html:
        return report_frame(require_run(chosen(path)).root, language)

    def show_notes(path: str | None) -> list[str]:
        if not path:
            return ["", ""]
        inside(context.roots, str(Path(path) / NOTES))  # a link may lead out
        return [read_notes(chosen(path)), ""]

    def save_notes(path: str | None, said: str, language: str) -> None:
        write_notes(chosen(path), said)
        gr.Info(text("runs.saved", language), title="")

    report.click(shown(open_report), [run, lang], frame, show_progress="hidden")
    run.change(shown(show_notes), run, [notes, frame], show_progress="hidden")
    save.click(shown(save_notes), [run, notes, lang], None, show_progress="hidden")
    return _OneRun(run, _deletion(context, words, lang, run, delete, chosen))


def _deletion(
    context: Context, words: Words, lang: gr.State, run: gr.Dropdown, delete: gr.Button, chosen: Any
) -> gr.State:
    """Ask before deleting. Returns what holds the run deleted last."""
    deleted, doomed = gr.State(""), gr.State("")
    with gr.Group(visible=False, elem_id="runs-sure") as question:
        said = gr.HTML(padding=True)
        with gr.Row():
            really = words.add(gr.Button(variant="stop", elem_id="runs-really"), value="runs.really")
            keep = words.add(gr.Button(elem_id="runs-keep"), value="runs.keep")

    def ask(path: str | None, language: str) -> list[Any]:
        folder = require_run(chosen(path)).root
        asked = el("p", text("runs.sure", language, path=short(context, str(folder))))
        return [gr.update(visible=True), asked, path]

    def go(path: str, language: str) -> list[Any]:
        delete_run(chosen(path), roots=context.roots)
        gr.Info(escape(text("runs.deleted", language, path=short(context, path))), title="")
        return [gr.update(visible=False), path]

    delete.click(shown(ask), [run, lang], [question, said, doomed], show_progress="hidden")
    # What was asked about is deleted, whatever the list shows by then.
    really.click(shown(go), [doomed, lang], [question, deleted], show_progress="hidden")
    keep.click(lambda: gr.update(visible=False), None, question, show_progress="hidden")
    run.change(lambda: gr.update(visible=False), None, question, show_progress="hidden")
    return deleted


def run_table(context: Context, lang: str) -> Html:
    """All runs, the newest first."""
    paths = [Path(path) for path in listed(context.roots, "runs")]
    if not paths:
        return quiet(text("runs.none", lang))
    return show_table([text(f"runs.{name}", lang) for name in _COLUMNS], [_row(context, path, lang) for path in paths])


def _row(context: Context, path: Path, lang: str) -> list[object]:
    name = short(context, str(path))
    try:
        facts = read_run(path)
    except RunError:  # deleted since it was listed, or not ours to read; the others are shown all the same
        return [name, text("runs.state.unreadable", lang), *["–"] * (len(_COLUMNS) - 2)]
    summary, last = facts.summary, facts.last
    return [
        name,
        el("span", text(f"runs.state.{facts.state}", lang), class_=f"state {facts.state}"),
        _model_of(facts),
        facts.config.get("method", "–"),
        summary.get("steps", last.get("step", "–")),
        number(last.get("loss")),
        number(last.get("eval_loss")),
        number(summary.get("tokens_per_second", last.get("tokens_per_second")), ",.0f"),
        number(summary.get("seconds"), ",.0f"),
        str(summary.get("finished_at", "–"))[:16].replace("T", " "),
    ]


def _model_of(facts: RunFacts) -> str:
    model = facts.config.get("model")
    path = model.get("path") if isinstance(model, dict) else model
    return Path(str(path)).name if path else "–"


def curves(context: Context, runs: list[Path], key: str, lang: str) -> Html:
    """One number of several runs over their steps.

    Raises:
        RunError: one of them is gone.
    """
    drawn = [Series(short(context, str(run)), select_points(require_run(run).read_metrics(), key)) for run in runs]
    if not any(curve.points for curve in drawn):
        return quiet(text("runs.no_points", lang))
    unit = text(f"runs.curve.{key}", lang)
    return Html(draw_line_chart(LineChart(unit, "", drawn), is_wide=True, lang=lang))


def difference_table(context: Context, runs: list[Path], lang: str) -> Html:
    """The settings in which runs differ.

    Raises:
        RunError: one of them is gone, or its config cannot be read.
    """
    if len(runs) < 2:
        return quiet(text("runs.two", lang))
    rows = differences([read_run(run).config for run in runs])
    if not rows:
        return quiet(text("runs.same", lang))
    head = [text("runs.key", lang), *(short(context, str(run)) for run in runs)]
    return show_table(head, [[key, *map(_value, values)] for key, values in rows])


def _value(value: Any) -> str:
    return "–" if value is None else str(value)
