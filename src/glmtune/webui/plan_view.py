"""The memory plan on the page, made by the command `glmtune plan`."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from starlette.requests import Request

from glmtune.html.builder import Html, el, join
from glmtune.utils.console import format_bytes
from glmtune.utils.io import write_text
from glmtune.webui.commands import run_command
from glmtune.webui.context import STATE
from glmtune.webui.elements import make_figures, make_note
from glmtune.webui.forms import as_yaml
from glmtune.webui.texts import text

CPU_DEVICE = "this machine's free memory"
"""Name of a plan's device without a GPU, see `training.plan.device`."""
_OTHER_GPU = re.compile(r"a GPU of (.+)")
"""Name of a plan's device for `--gpu-memory`, see `training.plan.device`."""
_TIMEOUT_S = 300
_MAX_PLANS = 64
_PLAN_SECONDS = 30.0
"""How long a plan stands: the free memory and the data that it was made from change."""
PART_COLOURS = {
    "weights": "#0a66ad",
    "adapter": "#00735a",
    "gradients": "#8a5a9e",
    "optimizer": "#c24e00",
    "activations": "#b8860b",
    "logits": "#d1479a",
    "files": "#475467",
    "own": "#98a2b3",
    "kept": "#d0d5dd",
}
_plans: OrderedDict[tuple[str, str], tuple[float, dict[str, Any]]] = OrderedDict()


async def make_plan(
    tree: dict[str, Any], memory: str, root: Path, lang: str, request: Request | None = None
) -> dict[str, Any]:
    """What `glmtune plan --json` says of a config. The last plans are kept for a while.

    A process of its own: a plan asks the GPU, and a process that asked it holds a part of its memory from then on.

    Args:
        tree: the config.
        memory: of the GPU, such as `12GB`; empty: of this machine's.
        root: the first root, in which the command runs.
        lang: of the page.
        request: the process ends when its client is gone.

    Raises:
        GlmtuneError: the error of the command, or it took too long.
    """
    config = as_yaml(tree)
    key = (config, memory)
    made, plan = _plans.pop(key, (0.0, {}))
    if not plan or time.monotonic() - made > _PLAN_SECONDS:
        scratch = root / STATE  # inside the roots, which limit the command's files
        scratch.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=scratch) as folder:  # of this call alone: several browsers plan at once
            path = Path(folder) / "plan.yaml"
            write_text(path, config)
            options = ["--gpu-memory", memory] if memory else []
            arguments = ["plan", str(path), "--json", *options]
            limits: dict[str, Any] = {"timeout_s": _TIMEOUT_S, "timeout_message": text("plan.slow", lang)}
            result = await run_command(arguments, root, request=request, **limits)
        if result.code:
            raise result.to_error()
        made, plan = time.monotonic(), json.loads(result.output)
    _plans[key] = (made, plan)
    while len(_plans) > _MAX_PLANS:
        _plans.popitem(last=False)
    return plan


def render_plan(plan: dict[str, Any], lang: str) -> Html:
    """The verdict, a bar of the parts, their sizes, and the change to make."""
    need, have = format_bytes(plan["bytes"]), format_bytes(plan["memory_bytes"])
    verdict = text(f"plan.{plan['verdict']}", lang, need=need, have=f"{have} ({describe_device(plan, lang)})")
    style = {"fits": "good", "tight": "warn"}.get(plan["verdict"], "bad")
    pieces = [el("p", el("span", verdict), class_=f"callout {style}")]
    pieces.append(_render_bar(plan, lang))
    pieces.append(_render_parts(plan, lang))
    if plan["gradient_checkpointing"]:
        layers = {"layers": plan["checkpointed_layers"], "all": plan["layers"]}
        pieces.append(make_note(text("plan.checkpointing", lang, **layers)))
    change = plan["change"]
    if change:
        key = "plan.change" if change["fits"] else "plan.no_change"
        settings = " ".join(change["settings"])
        pieces.append(make_note(text(key, lang, settings=settings, need=format_bytes(change["bytes"]))))
    return join(pieces)


def describe_device(plan: dict[str, Any], lang: str) -> str:
    """The device of a plan: this machine's GPU by its name, its CPU, or a card elsewhere."""
    if plan["device"] == CPU_DEVICE:
        return text("plan.this_machine", lang)
    return text("plan.chosen_card", lang) if _OTHER_GPU.fullmatch(plan["device"]) else str(plan["device"])


def render_work(plan: dict[str, Any], seconds: float | None, lang: str) -> Html:
    """Steps, tokens and, where a speed is known, the time.

    Args:
        plan: see `make_plan`.
        seconds: that the training takes; None: not known.
        lang: of the page.
    """
    if not plan["steps"]:
        return Html("")
    items = [("plan.steps", f"{plan['steps']:,}"), ("plan.tokens", f"{plan['tokens']:,}")]
    if seconds is not None:
        minutes = max(1, round(seconds / 60))
        items.append(("plan.time", text("plan.minutes", lang, minutes=f"{minutes:,}")))
    return make_figures((text(key, lang), value) for key, value in items)


def _render_bar(plan: dict[str, Any], lang: str) -> Html:
    """The parts side by side; the bar is as long as the memory, or as what is needed if that is more."""
    total = max(plan["bytes"], plan["memory_bytes"], 1)
    pieces = [
        el("span", style=f"width:{100 * size / total:.2f}%;background:{PART_COLOURS[name]}")
        for name, size in plan["parts"].items()
    ]
    label = f"{text('plan.head', lang)}: {format_bytes(plan['bytes'])} / {format_bytes(plan['memory_bytes'])}"
    return el("div", *pieces, class_="memory", role="img", aria_label=label)


def _render_parts(plan: dict[str, Any], lang: str) -> Html:
    rows = [
        el(
            "tr",
            el("th", _render_swatch(name), text(f"plan.part.{name}", lang), scope="row"),
            el("td", format_bytes(size), class_="number"),
        )
        for name, size in plan["parts"].items()
    ]
    return el("table", el("tbody", *rows))


def _render_swatch(part: str) -> Html:
    return el("span", class_="swatch", style=f"background:{PART_COLOURS[part]}")
