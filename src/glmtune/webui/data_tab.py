"""The tab `data`: choose or upload rows, check them, see them as the model does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.config import RunConfig
from glmtune.errors import DataError
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.data_check import check_rows, data_run, row_frame
from glmtune.webui.errors import shown
from glmtune.webui.fields import build_field
from glmtune.webui.forms import tree_of
from glmtune.webui.paths import data_entries, model_or_path
from glmtune.webui.pick import choices, renewed, this_tab
from glmtune.webui.selection import Chosen
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_SETTINGS = (
    "model.family",
    "data.format",
    "data.columns",
    "data.max_source_length",
    "data.max_target_length",
    "data.max_length",
    "data.overlength",
    "data.train_on",
    "data.preference",
    "data.prefix",
)
_SUFFIXES = [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz"]


def build(context: Context, words: Words, lang: gr.State, chosen: Chosen) -> None:
    """Put the tab's components onto the page."""
    words.add(gr.Markdown(), value="data.lead")
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            file = gr.Dropdown(choices(context, "data"), value=None, allow_custom_value=True, elem_id="data-file")
            words.add(file, label="data.file", info="data.file_info")
            model = gr.Dropdown(choices(context, "models"), value=None, allow_custom_value=True, elem_id="data-model")
            words.add(model, label="data.model")
        upload = gr.File(file_types=_SUFFIXES, file_count="single", height=170, scale=1, min_width=220)
        words.add(upload, label="data.upload")
    with words.add(gr.Accordion(open=False), label="data.limits"), gr.Row(elem_classes="knobs"):
        settings = [build_field(key, words, min_width=220) for key in _SETTINGS]
    with gr.Row():
        check = words.add(gr.Button(variant="primary", elem_id="data-check"), value="data.check")
        cancel = words.add(gr.Button(), value="data.cancel")
    findings = gr.HTML(elem_id="data-findings")
    with gr.Row(elem_classes="ends"):
        row = words.add(gr.Number(1, precision=0, minimum=1, min_width=120), label="data.row")
        ids = words.add(gr.Checkbox(False, min_width=160), label="data.ids")
        previous = words.add(gr.Button(min_width=100), value="data.previous")
        show = words.add(gr.Button(variant="primary", min_width=140, elem_id="data-show"), value="data.preview")
        following = words.add(gr.Button(min_width=100), value="data.next")
    frame = gr.HTML(elem_id="data-row")

    def run_of(named: str | None, tokenizer: str | None, values: tuple[Any, ...]) -> RunConfig:
        tree = tree_of(dict(zip(_SETTINGS, values, strict=True)))
        tree.setdefault("data", {})["train"] = data_entries(context.roots, named or "")
        if tokenizer:
            tree.setdefault("model", {})["path"] = model_or_path(context.roots, tokenizer)
        return data_run(tree)

    @shown
    def look(code: str, named: str | None, tokenizer: str | None, *values: Any) -> Iterator[tuple[str, Any]]:
        run = run_of(named, tokenizer, values)
        for said, last in check_rows(run, code):
            told = html.note(text("data.taken", code)) if last else ""
            yield said + told, named if last else gr.skip()

    @shown
    def show_row(
        number: float | None, spelt: bool, code: str, named: str | None, tokenizer: str | None, *values: Any
    ) -> str:
        return row_frame(run_of(named, tokenizer, values), max(1, int(number or 1)), spelt, code)

    @shown
    def take(uploaded: str | None) -> Any:
        return gr.skip() if uploaded is None else _kept(context, Path(uploaded))

    def renew(now: str | None, tokenizer: str | None) -> list[Any]:
        return [renewed(choices(context, "data"), now), renewed(choices(context, "models"), tokenizer)]

    source = [lang, file, model, *settings]
    place = [row, ids, *source]
    checking = check.click(look, source, [findings, chosen.data], show_progress="minimal")
    cancel.click(None, cancels=[checking])
    show.click(show_row, place, [frame])
    for button, step in ((previous, -1), (following, 1)):
        moved = button.click(_moved(step), [row], [row], show_progress="hidden")
        moved.then(show_row, place, [frame])
    upload.upload(take, [upload], [file])
    this_tab().select(renew, [file, model], [file, model], show_progress="hidden")
    chosen.model.change(lambda path: path or gr.skip(), [chosen.model], [model])


def _moved(step: int) -> Any:
    def move(number: float | None) -> int:
        return max(1, int(number or 1) + step)

    return move


def _kept(context: Context, uploaded: Path) -> Any:
    """An uploaded file, moved to where the lists find it; one of the same name is not replaced.

    Raises:
        DataError: it is gone, or there is no room.
    """
    folder = context.roots[0] / "uploads"
    try:
        folder.mkdir(exist_ok=True)
        kept = _free(folder / uploaded.name)
        shutil.move(uploaded, kept)
    except OSError as error:
        raise DataError(
            f"{uploaded.name}: cannot be kept ({error.strerror}).", "Free some space, then upload again."
        ) from None
    return gr.update(choices=choices(context, "data"), value=str(kept))


def _free(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free, number = path.with_name(f"{path.stem}-{number}{path.suffix}"), number + 1
    return free
