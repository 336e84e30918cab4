"""The tab `Evaluate`: eval, compare and forget as jobs, and what they found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import ConfigError
from glmtune.html.builder import Html
from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.job_panel import JobPanel
from glmtune.webui.paths import inside, model_or_path
from glmtune.webui.pick import Choices, choices, renewed, short, targets, this_tab
from glmtune.webui.results import Result, report_frame, results
from glmtune.webui.security import owner_of
from glmtune.webui.tables import CSS, number, quiet, show_table
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_KINDS = ("eval", "compare", "forget")
_COLUMNS = ("folder", "kind", "model", "rows", "bleu", "rouge", "loss", "verdict")
_BATCH = 8


@dataclass(frozen=True)
class EvaluationChoices:
    """What stands in the fields, in their order."""

    kind: str
    model: str | None
    others: list[str]
    data: str | None
    limit: float | None
    """0, or an emptied field: all rows."""
    tokens: float | None
    batch: float | None
    probe: bool
    output: str


def arguments(context: Context, asked: EvaluationChoices, lang: str) -> list[str]:
    """The command behind the fields, without `glmtune`.

    Raises:
        ConfigError: something that the command needs is missing.
        PathError: a path outside the roots.
    """
    if not asked.model:
        raise ConfigError("No model is chosen.", "Choose one of the list.")
    if asked.kind == "compare" and not asked.others:
        raise ConfigError("A comparison needs a second model.", "Choose what to compare with the first.")
    named = [asked.model, *(asked.others if asked.kind == "compare" else [])]
    words = [asked.kind, *(model_or_path(context.roots, each) for each in named)]
    words += ["--data", _data(context, asked)] if asked.kind != "forget" else []
    words += list(_numbers(asked))
    if asked.output.strip():
        words += ["--output", str(inside(context.roots, asked.output))]
    if asked.kind != "eval":
        words += ["--lang", lang]
    if asked.kind == "compare" and not asked.probe:
        words.append("--no-forget")
    return words


def _data(context: Context, asked: EvaluationChoices) -> str:
    if not asked.data:
        raise ConfigError("No rows are chosen.", "Choose a file of the list.")
    return str(inside(context.roots, asked.data))


def _numbers(asked: EvaluationChoices) -> Iterator[str]:
    given = {"--limit": asked.limit, "--batch-size": asked.batch}
    if asked.kind != "forget":  # the probe sets its own
        given["--max-new-tokens"] = asked.tokens
    for option, value in given.items():
        if value:
            yield from (option, str(int(value)))


def build(context: Context, words: Words, lang: gr.State) -> None:
    """Put the tab's components onto the page."""
    with gr.Row(equal_height=True):
        words.add(gr.Markdown(elem_classes="intro"), value="evaluate.intro")
        refresh = words.add(
            gr.Button(size="sm", scale=0, min_width=140, elem_id="evaluate-refresh"), value="evaluate.refresh"
        )
    fields = _fields(words)
    kind, model, others, data = fields[:4]
    start = words.add(gr.Button(variant="primary", elem_id="evaluate-start"), value="evaluate.start")
    panel = JobPanel(context, words, lang, _KINDS, "evaluate-job")
    words.add(gr.Markdown(), value="evaluate.results")
    table = gr.HTML(elem_id="evaluate-table", css_template=CSS)
    result = words.add(gr.Dropdown([], value=None, elem_id="evaluate-result"), label="evaluate.result")
    frame = gr.HTML(elem_id="evaluate-frame")

    def submit(*values: Any, request: gr.Request) -> None:
        *given, language = values
        asked = EvaluationChoices(*given)
        words_ = arguments(context, asked, language)
        output = str(inside(context.roots, asked.output)) if asked.output.strip() else ""
        context.jobs.submit(asked.kind, words_, output, owner_of(request))

    def reread(one: str | None, several: list[str], rows: str | None) -> list[Any]:
        found = targets(context)
        return [
            renewed(found, one, first=True),
            renewed(found, several),
            renewed(choices(context, "data"), rows, first=True),
        ]

    def found_anew(language: str) -> list[Any]:
        found = results(context)
        listed = [(_title(context, each, language), str(each.folder)) for each in found]
        return [result_table(context, found, language), _newest(listed)]

    start.click(shown(_with_request(submit)), [*fields, lang], None, show_progress="hidden")
    tab = this_tab()
    for event in (refresh.click, tab.select):
        event(reread, [model, others, data], [model, others, data], show_progress="hidden")
    for event in (refresh.click, tab.select, lang.change, panel.ended.change):
        event(found_anew, lang, [table, result], show_progress="hidden")
    # The newest result may lie in the folder that is open already, so the folder's name alone is no sign.
    for event in (result.change, panel.ended.change, lang.change):
        event(
            shown(lambda folder, language: open_result(context, folder, language)),
            *([result, lang], frame),
            show_progress="hidden",
        )
    kind.change(_visible, kind, [others, data, fields[5], fields[7]], show_progress="hidden")


def _with_request(submit: Any) -> Any:
    """Gradio looks for the request among the positional parameters, of which the fields are many."""

    def call(request: gr.Request, *values: Any) -> None:
        submit(*values, request=request)

    return call


def _fields(words: Words) -> list[Any]:
    """The fields of `Asked`, in its order."""
    kind = words.add(
        gr.Radio(value=_KINDS[0], elem_id="evaluate-kind"),
        label="evaluate.kind",
        choices={kind: f"evaluate.kind.{kind}" for kind in _KINDS},
    )
    with gr.Row():
        model = words.add(
            gr.Dropdown([], value=None, allow_custom_value=True, elem_id="evaluate-model"),
            label="evaluate.model",
            info="evaluate.model.info",
        )
        others = words.add(
            gr.Dropdown([], value=[], multiselect=True, visible=False, elem_id="evaluate-others"),
            label="evaluate.others",
        )
        data = words.add(
            gr.Dropdown([], value=None, allow_custom_value=True, elem_id="evaluate-data"),
            label="evaluate.data",
            info="evaluate.data.info",
        )
    with gr.Row():
        limit = words.add(
            gr.Number(0, minimum=0, precision=0, elem_id="evaluate-limit"),
            label="evaluate.limit",
            info="evaluate.limit.info",
        )
        tokens = words.add(
            gr.Number(0, minimum=0, precision=0, elem_id="evaluate-tokens"),
            label="evaluate.tokens",
            info="evaluate.tokens.info",
        )
        batch = words.add(gr.Number(_BATCH, minimum=1, precision=0), label="evaluate.batch")
        output = words.add(
            gr.Textbox("", elem_id="evaluate-output"), label="evaluate.output", info="evaluate.output.info"
        )
    probe = words.add(gr.Checkbox(True, visible=False), label="evaluate.probe")
    return [kind, model, others, data, limit, tokens, batch, probe, output]


def _visible(kind: str) -> list[Any]:
    """For others, data, longest reply and probe."""
    compares, has_rows = kind == "compare", kind != "forget"
    return [gr.update(visible=each) for each in (compares, has_rows, has_rows, compares)]


def _newest(listed: Choices) -> Any:
    return gr.update(choices=listed, value=listed[0][1] if listed else None)


def open_result(context: Context, folder: str | None, lang: str) -> Html:
    """The report of a result; nothing where none is chosen.

    Raises:
        PathError: outside of the roots.
        RunError: it is gone.
    """
    return report_frame(inside(context.roots, folder), lang) if folder else Html("")


def result_table(context: Context, found: list[Result], lang: str) -> Html:
    """All results, the newest first; a comparison has a row per model."""
    if not found:
        return quiet(text("evaluate.none", lang))
    head = [text(f"evaluate.column.{name}", lang) for name in _COLUMNS]
    return show_table(head, [row for each in found for row in _rows(context, each, lang)])


def _rows(context: Context, result: Result, lang: str) -> Iterator[list[object]]:
    start: list[object] = [_folder(context, result), text(f"evaluate.row.{result.kind}", lang)]
    if result.kind == "forgetting":
        loss = number(at(result.content, "loss", "tuned"))
        verdict = _verdict(result.content, lang)
        name = at(result.content, "tuned", "name")
        yield [*start, name or "–", at(result.content, "items"), "–", "–", loss, verdict]
        return
    is_comparison = result.kind == "comparison"
    models = result.content.get("models") or [] if is_comparison else [result.content]
    probes = result.content.get("forgetting") or []
    for place, metrics in enumerate(models):
        verdict = _verdict(probes[place], lang) if place < len(probes) else "–"
        yield [*start, *_scores(metrics), verdict]


def _scores(metrics: dict[str, Any]) -> list[object]:
    means = [number(at(metrics, "scores", name, "mean"), ".2f") for name in ("bleu4_characters", "rouge_l")]
    name = at(metrics, "model", "name") or "–"
    return [name, at(metrics, "data", "rows") or "–", *means, number(at(metrics, "loss"))]


def _verdict(probe: Any, lang: str) -> str:
    verdict = at(probe, "verdict")
    return text(f"evaluate.verdict.{verdict}", lang) if verdict in ("pass", "warn", "fail") else "–"


def _title(context: Context, result: Result, lang: str) -> str:
    return f"{_folder(context, result)} · {text(f'evaluate.row.{result.kind}', lang)}"


def _folder(context: Context, result: Result) -> str:
    return short(context, str(Path(result.folder)))


def at(tree: Any, *keys: str) -> Any:
    """A value in nested dicts; None where any of it is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
