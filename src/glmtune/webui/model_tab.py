"""The tab `model`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from glmtune.families import detect_family, get_family
from glmtune.hub import resolve_checkpoint
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.errors import shown
from glmtune.webui.fields import build_field
from glmtune.webui.machine_panel import build_machine_panel
from glmtune.webui.paths import model_or_path
from glmtune.webui.pick import choices, renewed, this_tab
from glmtune.webui.plan_panel import weights_html
from glmtune.webui.selection import Chosen
from glmtune.webui.texts import text
from glmtune.webui.words import Words

if TYPE_CHECKING:
    from glmtune.models.checkpoints import Checkpoint


def build(context: Context, words: Words, lang: gr.State, chosen: Chosen) -> None:
    """Put the tab's components onto the page."""
    words.add(gr.Markdown(), value="model.lead")
    with gr.Row(elem_classes="knobs"):
        path = gr.Dropdown(choices(context, "models"), value=None, allow_custom_value=True, scale=3, min_width=260)
        words.add(path, label="name.model.path")
        family = build_field("model.family", words, scale=1, min_width=160)
        hub = build_field("model.hub", words, scale=1, min_width=200)
    with gr.Row():
        look = words.add(gr.Button(variant="primary"), value="model.look")
        refresh = words.add(gr.Button(), value="common.refresh")
    facts = gr.HTML(elem_id="model-facts")
    room = gr.HTML(elem_id="model-room")
    build_machine_panel(context, words, lang, path)

    @shown
    def describe(named: str | None, generation: str | None, site: str, code: str) -> tuple[str, str, str]:
        model = model_or_path(context.roots, named or "")
        told = html.note(text("model.taken", code))
        return facts_of(model, generation or None, site, code) + told, "", model

    @shown
    def weigh(code: str, model: str, generation: str | None, site: str) -> str:
        return weights_html(model, generation or None, site, code)

    def renew(now: str | None) -> Any:
        return renewed(choices(context, "models"), now, first=True)

    looked = look.click(describe, [path, family, hub, lang], [facts, room, chosen.model])
    looked.success(weigh, [lang, chosen.model, family, hub], [room])  # takes seconds; the facts are there by then
    refresh.click(renew, [path], [path])
    this_tab().select(renew, [path], [path], show_progress="hidden")


def facts_of(model: str, family: str | None, hub: str, lang: str) -> str:
    """A table of what a checkpoint is. A hub id whose weights are not here yet is told by its config alone.

    Raises:
        ModelError: it cannot be loaded as it is.
    """
    if not Path(model).is_dir():
        known = get_family(family) if family else detect_family(model, hub)
        folder = resolve_checkpoint(model, hub, "config")
        rows = [(text("model.family", lang), known.title), (text("model.folder", lang), str(folder))]
        return html.facts(rows) + html.note(text("model.not_here", lang))
    from glmtune.models.checkpoints import inspect_checkpoint

    return html.facts(_rows(inspect_checkpoint(model, family=family, hub=hub), lang))


def _rows(base: Checkpoint, lang: str) -> list[tuple[str, str]]:
    family = base.known_family
    weights = sum(prod(shape) for shape in base.native_shapes.values())
    config = base.config
    shape = text(
        "model.shape_of",
        lang,
        layers=config.num_hidden_layers,
        width=f"{config.hidden_size:,}",
        words=f"{config.vocab_size:,}",
    )
    return [
        (text("model.family", lang), family.title if family else text("model.undecided", lang)),
        (text("model.folder", lang), str(base.folder)),
        (text("model.size", lang), f"{weights:,}"),
        (text("model.bytes", lang), html.size(_bytes(base.folder))),
        (text("model.precision", lang), _precision(base, lang)),
        (text("model.shape", lang), shape),
        (text("model.fingerprint", lang), base.fingerprint),
    ]


def _precision(base: Checkpoint, lang: str) -> str:
    if base.packed_bits:
        return text("model.packed", lang, bits=base.packed_bits)
    if base.stored_quantization:
        return text("model.stored", lang, kind=base.stored_quantization)
    return str(base.inventory.dtype).removeprefix("torch.")


def _bytes(folder: Path) -> int:
    """Of the weight files; repositories that hold them twice have them as safetensors."""
    found = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in found)
