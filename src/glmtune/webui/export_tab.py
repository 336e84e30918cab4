"""The tab `Export`: merge, bits and layout; what cannot be written is said before anything starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.export.export_request import BITS, LAYOUTS, ExportRequest, estimate_bytes, open_source, require_possible
from glmtune.export.folder import require_free_folder
from glmtune.models.loading import DTYPES
from glmtune.utils.console import format_bytes
from glmtune.webui import drafts
from glmtune.webui.context import Context
from glmtune.webui.guard import owner_of
from glmtune.webui.job_lists import describe_jobs
from glmtune.webui.jobs import Job
from glmtune.webui.paths import inside, model_or_path
from glmtune.webui.rendering import get_language, make_problem, redirect, render_page, render_part
from glmtune.webui.requests import FormData, read_form
from glmtune.webui.texts import text

_DRAFT = "export"
_DEFAULT = ExportRequest()
_GGUF_TYPES = {16: "f16", 8: "q8_0", 4: "q4_0"}


@dataclass(frozen=True)
class ExportChoices:
    """The fields of the tab.

    Attributes:
        model: that is exported.
        layout: of the folder.
        bits: of the weights.
        adapter_only: the adapter alone, not merged.
        dtype: empty: the checkpoint's own.
        max_shard_size: of a weight file.
        output: folder; empty: a new one.
    """

    model: str
    layout: str = _DEFAULT.layout
    bits: int = _DEFAULT.bits
    adapter_only: bool = False
    dtype: str = ""
    max_shard_size: str = _DEFAULT.max_shard_size
    output: str = ""

    def find_target(self, context: Context) -> str:
        """What is exported, as a command takes it.

        Raises:
            ConfigError: nothing is chosen.
            PathError: it lies outside of the roots.
        """
        if not self.model:
            raise ConfigError("Nothing to export is chosen.", "Choose a run or a model.")
        return model_or_path(context.roots, self.model)

    def make_request(self) -> ExportRequest:
        """The fields, as the export takes them. A GGUF file is one file, and its bits are a number format."""
        if self.layout == "gguf":
            kind = None if self.adapter_only else _GGUF_TYPES[self.bits]
            return ExportRequest(self.layout, adapter_only=self.adapter_only, dtype=self.dtype or None, gguf_type=kind)
        return ExportRequest(self.layout, self.bits, self.adapter_only, self.max_shard_size.strip(), self.dtype or None)


def add_routes(app: FastAPI, context: Context) -> None:
    """Add the routes of the tab."""

    @app.get("/export")
    def show_export(request: Request, model: str = "") -> Response:
        draft = drafts.load_draft(context, owner_of(request), _DRAFT)
        try:
            choices = parse_choices(draft or FormData())
        except ConfigError:  # of another version, say: the tab opens all the same
            choices = ExportChoices("")
        return render_page(
            *(request, context, "export"),
            tab="export",
            choices=replace(choices, model=model, output="") if model else choices,
            layouts=LAYOUTS,
            bits=BITS,
            dtypes=tuple(DTYPES),
            **describe_jobs(request, context, ("export",)),
        )

    @app.post("/export/check")
    async def check_export(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(drafts.save_draft, context, owner_of(request), _DRAFT, data)
        return await run_in_threadpool(_check, request, context, data)

    @app.post("/export/start")
    async def start_export(request: Request) -> Response:
        data = await read_form(request)
        await run_in_threadpool(submit_export, context, parse_choices(data), owner_of(request))
        return redirect(request, "/export")


def submit_export(context: Context, choices: ExportChoices, owner: str) -> Job:
    """Queue an export, to a new folder where none is given.

    Raises:
        GlmtuneError: why it cannot be done.
    """
    choices = complete_choices(context, choices)
    estimate_size(context, choices)  # what was true when the button was drawn may differ
    output = str(inside(context.roots, choices.output))
    return context.jobs.submit("export", make_arguments(context, choices), output, owner)


def parse_choices(data: FormData) -> ExportChoices:
    """The fields that a browser sent.

    Raises:
        ConfigError: a value that no field has.
    """
    layout, bits, dtype = data.get("layout", _DEFAULT.layout), data.get_number("bits", 16), data.get("dtype")
    if layout not in LAYOUTS or bits not in BITS or dtype not in ("", *DTYPES):
        raise ConfigError("The form has a value that is not offered.", "Reload the page.")
    shard = data.get("max_shard_size") or _DEFAULT.max_shard_size
    return ExportChoices(data.get("model"), layout, bits, data.has("adapter_only"), dtype, shard, data.get("output"))


def complete_choices(context: Context, choices: ExportChoices) -> ExportChoices:
    """The choices with a new folder where none is given."""
    if choices.output:
        return choices
    return replace(choices, output=suggest_output(context, choices))


def make_arguments(context: Context, choices: ExportChoices) -> list[str]:
    """The command behind the fields, without `glmtune`.

    Raises:
        ConfigError: nothing is chosen.
        PathError: a path outside the roots.
    """
    request = choices.make_request()
    words = ["export", choices.find_target(context), str(inside(context.roots, choices.output))]
    words += ["--format", request.layout, "--max-shard-size", request.max_shard_size]
    form = ["--type", request.gguf_type] if request.gguf_type else ["--bits", str(request.bits)]
    words += ["--adapter-only"] if request.adapter_only else form
    return [*words, "--dtype", request.dtype] if request.dtype else words


def suggest_output(context: Context, choices: ExportChoices) -> str:
    """A new folder in the first root, named after what will be in it."""
    path = Path(choices.model or "")
    # A run is nearly always called `run` or by its time; its parent's name makes it clear.
    name = re.sub(r"[^\w.-]+", "-", "-".join([*path.parts[-2:-1], path.name])).strip("-.") or "model"
    form = "adapter" if choices.adapter_only else f"{choices.bits}bit"
    start = f"exports/{name}-{choices.layout}-{form}"
    names = (start if number == 1 else f"{start}-{number}" for number in count(1))
    taken = {job.output for job in context.jobs.list() if job.alive}  # not there yet
    folders = ((name, context.roots[0] / name) for name in names)
    return next(name for name, folder in folders if not folder.exists() and str(folder.resolve()) not in taken)


def estimate_size(context: Context, choices: ExportChoices) -> int | None:
    """Bytes of disk that the export takes at its largest; None for an adapter alone. Reads no weight.

    Raises:
        GlmtuneError: why it cannot be done.
    """
    output = inside(context.roots, choices.output)
    require_free_folder(output)
    source = open_source(choices.find_target(context), None, None, "huggingface")
    request = choices.make_request()
    require_possible(source, request, output)
    return None if request.adapter_only else estimate_bytes(source, request)


def _check(request: Request, context: Context, data: FormData) -> Response:
    lang = get_language(request, context)
    try:
        choices = parse_choices(data)
        if not choices.model:
            return render_part(request, context, "export_verdict", problem=None, line=text("export.choose", lang))
        choices = complete_choices(context, choices)
        size = estimate_size(context, choices)
    except GlmtuneError as error:
        return render_part(request, context, "export_verdict", problem=make_problem(error, lang), line="")
    line = text("export.possible.adapter", lang)
    if size is not None:
        line = text("export.possible", lang, size=format_bytes(size))
    return render_part(
        request, context, "export_verdict", problem=None, line=line, output=choices.output, is_possible=True
    )
