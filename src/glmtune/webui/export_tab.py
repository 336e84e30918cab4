"""The tab `Export`: merge, bits and layout; what cannot be written is greyed, with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.export.export_request import BITS, LAYOUTS, ExportRequest, estimate_bytes, open_source, require_possible
from glmtune.export.folder import require_free_folder
from glmtune.models.loading import DTYPES
from glmtune.webui.context import Context
from glmtune.webui.errors import as_html, shown
from glmtune.webui.job_panel import JobPanel
from glmtune.webui.paths import inside, model_or_path
from glmtune.webui.pick import renewed, targets, this_tab
from glmtune.webui.security import owner_of
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_DEFAULT = ExportRequest()
_GGUF_TYPES = {16: "f16", 8: "q8_0", 4: "q4_0"}


@dataclass(frozen=True)
class ExportChoices:
    """What stands in the fields, in their order."""

    model: str | None
    layout: str
    bits: int
    adapter_only: bool
    dtype: str
    """Empty: the checkpoint's own."""
    max_shard_size: str
    output: str

    def target(self, context: Context) -> str:
        """What is exported, as a command takes it.

        Raises:
            ConfigError: nothing is chosen.
            PathError: it lies outside of the roots.
        """
        if not self.model:
            raise ConfigError("Nothing to export is chosen.", "Choose a run or a model.")
        return model_or_path(context.roots, self.model)

    def request(self) -> ExportRequest:
        """The form, as the export takes it. A GGUF file is one file, and its bits are a number format."""
        if self.layout == "gguf":
            kind = None if self.adapter_only else _GGUF_TYPES[self.bits]
            return ExportRequest(self.layout, adapter_only=self.adapter_only, dtype=self.dtype or None, gguf_type=kind)
        return ExportRequest(self.layout, self.bits, self.adapter_only, self.max_shard_size.strip(), self.dtype or None)


def arguments(context: Context, asked: ExportChoices) -> list[str]:
    """The command behind the fields, without `glmtune`.

    Raises:
        ConfigError: nothing is chosen.
        PathError: a path outside the roots.
    """
    request = asked.request()
    words = ["export", asked.target(context), str(inside(context.roots, asked.output))]
    words += ["--format", request.layout, "--max-shard-size", request.max_shard_size]
    form = ["--type", request.gguf_type] if request.gguf_type else ["--bits", str(request.bits)]
    words += ["--adapter-only"] if request.adapter_only else form
    return [*words, "--dtype", request.dtype] if request.dtype else words


def suggested_output(context: Context, asked: ExportChoices) -> str:
    """A new folder in the first root, named after what will be in it."""
    path = Path(asked.model or "")
    # A run is nearly always called `run` or by its time; with its parent's name it is told apart.
    name = re.sub(r"[^\w.-]+", "-", "-".join([*path.parts[-2:-1], path.name])).strip("-.") or "model"
    form = "adapter" if asked.adapter_only else f"{asked.bits}bit"
    start = f"exports/{name}-{asked.layout}-{form}"
    names = (start if number == 1 else f"{start}-{number}" for number in count(1))
    return next(each for each in names if not (context.roots[0] / each).exists())


def needed(context: Context, asked: ExportChoices) -> int | None:
    """Bytes of disk that the export takes at its largest; None for an adapter alone. Reads no weight.

    Raises:
        GlmtuneError: why it cannot be done.
    """
    out = inside(context.roots, asked.output)
    require_free_folder(out)
    source = open_source(asked.target(context), None, None, "huggingface")
    request = asked.request()
    require_possible(source, request, out)
    return None if request.adapter_only else estimate_bytes(source, request)


def build(context: Context, words: Words, lang: gr.State) -> None:
    """Put the tab's components onto the page."""
    words.add(gr.Markdown(elem_classes="intro"), value="export.intro")
    fields, refresh = _fields(words)
    model, output = fields[0], fields[-1]
    verdict = gr.HTML(elem_id="export-verdict")
    start = words.add(gr.Button(variant="primary", interactive=False, elem_id="export-start"), value="export.start")
    panel = JobPanel(context, words, lang, ("export",), "export-job")

    def check(*values: Any) -> list[Any]:
        *given, language = values
        asked = ExportChoices(*given)
        if not asked.model:
            return [_note(text("export.choose", language)), gr.update(interactive=False)]
        try:
            size = needed(context, asked)
        except GlmtuneError as error:
            return [f'<p class="problem">{as_html(error)}</p>', gr.update(interactive=False)]
        said = text("export.possible.adapter", language)
        if size is not None:
            said = text("export.possible", language, size=f"{size / 1e6:,.0f}")
        return [_note(said), gr.update(interactive=True)]

    def submit(*values: Any, request: gr.Request) -> Any:
        *given, _ = values
        asked = ExportChoices(*given)
        needed(context, asked)  # what was true when the button was drawn may have changed
        output = str(inside(context.roots, asked.output))
        context.jobs.submit("export", arguments(context, asked), output, owner_of(request))
        return gr.update(interactive=False)

    def reread(one: str | None) -> Any:
        return renewed(targets(context), one, first=True)

    def suggest(*values: Any) -> str:
        return suggested_output(context, ExportChoices(*values))

    def suggest_next(*values: Any) -> str:
        asked = ExportChoices(*values)
        written = bool(asked.output.strip()) and inside(context.roots, asked.output).exists()
        return suggested_output(context, asked) if written else asked.output

    checked = {"inputs": [*fields, lang], "outputs": [verdict, start], "show_progress": "hidden"}
    for event in (refresh.click, this_tab().select):
        event(reread, model, model, show_progress="hidden").then(check, **checked)
    for field in fields[:4]:
        field.change(suggest, fields, output, show_progress="hidden")
    panel.ended.change(shown(suggest_next), fields, output, show_progress="hidden")
    for event in (*(field.change for field in fields), lang.change, panel.ended.change):
        event(check, **checked, trigger_mode="always_last")
    start.click(shown(_with_request(submit)), [*fields, lang], start, show_progress="hidden")


def _with_request(submit: Any) -> Any:
    """Gradio looks for the request among the positional parameters, of which the fields are many."""

    def call(request: gr.Request, *values: Any) -> Any:
        return submit(*values, request=request)

    return call


def _fields(words: Words) -> tuple[list[Any], gr.Button]:
    """The fields of `Asked`, in its order, and the button that reads the list anew."""
    with gr.Row():
        model = words.add(
            gr.Dropdown([], value=None, allow_custom_value=True, elem_id="export-model", scale=4),
            label="export.model",
            info="export.model.info",
        )
        refresh = words.add(
            gr.Button(size="sm", scale=0, min_width=140, elem_id="export-refresh"), value="export.refresh"
        )
    with gr.Row():
        layout = words.add(
            gr.Radio(value=_DEFAULT.layout, elem_id="export-format"),
            label="export.format",
            choices={name: f"export.format.{name}" for name in LAYOUTS},
        )
        bits = words.add(
            gr.Radio(value=_DEFAULT.bits, elem_id="export-bits"),
            label="export.bits",
            choices={number: f"export.bits.{number}" for number in BITS},
        )
        adapter = words.add(
            gr.Checkbox(_DEFAULT.adapter_only, elem_id="export-adapter"),
            label="export.adapter",
            info="export.adapter.info",
        )
    output = words.add(gr.Textbox("", elem_id="export-output"), label="export.output", info="export.output.info")
    with gr.Row():
        dtype = words.add(
            gr.Dropdown(["", *DTYPES], value=""),
            label="export.dtype",
            choices={name: f"export.dtype.{name or 'own'}" for name in ("", *DTYPES)},
        )
        shard = words.add(gr.Textbox(_DEFAULT.max_shard_size), label="export.shard")
    return [model, layout, bits, adapter, dtype, shard, output], refresh


def _note(line: str) -> str:
    return f'<p class="note">{escape(line)}</p>'
