"""The memory plan on the page: of the weights where a model is chosen, of the whole run beside its form."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.errors import GlmtuneError
from glmtune.html.builder import el
from glmtune.utils.io import write_text
from glmtune.webui import html
from glmtune.webui.context import Context
from glmtune.webui.errors import JobError, shown
from glmtune.webui.forms import as_yaml, checked
from glmtune.webui.texts import text
from glmtune.webui.train_form import Form, tree_from
from glmtune.webui.words import Words

_SECONDS, _WEIGHTS_SECONDS = 300, 60
_COLOURS = {
    "weights": "#1d5fd1",
    "adapter": "#0e9384",
    "gradients": "#7a5af8",
    "optimizer": "#dd2590",
    "activations": "#e04f16",
    "logits": "#ca8504",
    "files": "#475467",
    "own": "#98a2b3",
    "kept": "#d0d5dd",
}


def build_plan(context: Context, words: Words, lang: gr.State, form: Form) -> None:
    """Put the plan's button and what it shows onto the page. It runs as a command: reading the data may take long."""
    with gr.Row(elem_classes="ends"):
        gpu = words.add(gr.Textbox(scale=1, min_width=160, elem_id="plan-gpu"), label="plan.gpu", info="plan.gpu_info")
        look = words.add(gr.Button(scale=1, min_width=160, elem_id="plan-look"), value="plan.look")
    made = gr.HTML(elem_id="plan-result")

    @shown
    def plan(code: str, memory: str | None, *values: Any) -> str:
        tree = tree_from(context, *form.read(values))
        checked(tree)
        return plan_html(planned(context, tree, (memory or "").strip()), code)

    look.click(plan, [lang, gpu, *form.inputs], [made])
    gr.on([component.change for component in form.inputs], lambda: "", None, [made], show_progress="hidden")


def planned(context: Context, tree: dict[str, Any], memory: str) -> dict[str, Any]:
    """What `glmtune plan --json` says of a config.

    Raises:
        GlmtuneError: what the command says is wrong.
    """
    options = ["--gpu-memory", memory] if memory else []
    return _run(tree, options, context.roots[0], _SECONDS, context.lang)


def _run(tree: dict[str, Any], options: list[str], root: Path | None, seconds: int, lang: str) -> dict[str, Any]:
    """A process of its own: a plan asks the GPU, and whoever asks it holds a part of its memory from then on."""
    with tempfile.TemporaryDirectory() as folder:  # of this call alone: tabs and users plan at the same time
        config = Path(folder) / "plan.yaml"
        write_text(config, as_yaml(tree))
        command = [sys.executable, "-m", "glmtune", "plan", str(config), "--json", *options]
        try:
            done = subprocess.run(
                command, cwd=root, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise JobError(text("plan.slow", lang)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith("Error: ")), max(len(lines) - 2, 0))
        raise GlmtuneError("\n".join(lines[first:]).removeprefix("Error: ")[:600])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def weights_html(model: str, family: str | None, hub: str, lang: str) -> str:
    """The plan of the weights alone; nothing where it cannot be made, for the page has said why."""
    settings = {"path": model, "hub": hub, **({"family": family} if family else {})}
    try:
        shown_plan = plan_html(_run({"model": settings}, [], None, _WEIGHTS_SECONDS, lang), lang)
    except Exception:  # whatever it is: the page still shows what the model is
        return ""
    return html.note(text("plan.weights_alone", lang)) + shown_plan


def plan_html(plan: dict[str, Any], lang: str) -> str:
    """The verdict, a bar of the parts, their sizes, and the change to make."""
    need, have = html.size(plan["bytes"]), html.size(plan["memory_bytes"])
    verdict = text(f"plan.{plan['verdict']}", lang, need=need, have=f"{have} ({plan['device']})")
    pieces = [el("p", verdict, class_="note" if plan["verdict"] == "fits" else "problem", role="status")]
    pieces.append(_bar(plan, lang))
    pieces.append(html.figures((text(f"plan.part.{name}", lang), html.size(n)) for name, n in plan["parts"].items()))
    if plan["gradient_checkpointing"]:
        pieces.append(
            html.note(text("plan.checkpointing", lang, layers=plan["checkpointed_layers"], all=plan["layers"]))
        )
    change = plan["change"]
    if change:
        key = "plan.change" if change["fits"] else "plan.no_change"
        settings = " ".join(change["settings"])
        pieces.append(html.note(text(key, lang, settings=settings, need=html.size(change["bytes"]))))
    if plan["steps"]:
        pieces.append(html.note(text("plan.work", lang, steps=f"{plan['steps']:,}", tokens=f"{plan['tokens']:,}")))
    return html.join(pieces)


def _bar(plan: dict[str, Any], lang: str) -> html.Html:
    """The parts side by side; the bar is as long as the memory, or as what is needed if that is more."""
    whole = max(plan["bytes"], plan["memory_bytes"], 1)
    pieces = [
        el(
            "div",
            style=f"width:{100 * size / whole:.2f}%;background:{_COLOURS[name]};height:100%;float:left;border-radius:0",
            title=f"{text(f'plan.part.{name}', lang)}: {html.size(size)}",
        )
        for name, size in plan["parts"].items()
    ]
    named = f"{text('plan.head', lang)}: {html.size(plan['bytes'])} / {html.size(plan['memory_bytes'])}"
    return el("div", *pieces, class_="bar", role="img", aria_label=named)
