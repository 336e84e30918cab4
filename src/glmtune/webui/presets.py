"""Settings by goal (a quick try, the usual, a careful training), adapted to a card by its memory plan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from glmtune.config import TRAINING_DEFAULTS
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.utils.console import format_bytes
from glmtune.webui.context import Context
from glmtune.webui.error_texts import localize_message
from glmtune.webui.forms import check_tree, map_fields
from glmtune.webui.plan_view import CPU_DEVICE, describe_device, make_plan
from glmtune.webui.rendering import get_language
from glmtune.webui.run_form import RunForm, make_empty_form, make_tree
from glmtune.webui.texts import text

GOALS: dict[str, dict[str, Any]] = {
    "quick": {
        "training.max_steps": "60",
        "training.learning_rate": "",
        "training.per_device_train_batch_size": "1",
        "training.gradient_accumulation_steps": "8",
        "data.max_source_length": "256",
        "data.max_target_length": "256",
        "training.eval_strategy": "no",
    },
    "usual": {},
    "careful": {
        "training.num_train_epochs": "3",
        "training.max_steps": "-1",
        "training.eval_strategy": "steps",
        "training.load_best_model_at_end": True,
        "data.eval_fraction": "0.05",
        "generate.rows": "16",
    },
}
"""Values of the form by goal; `usual` is all defaults."""
CARDS = ("6GB", "8GB", "12GB", "16GB", "24GB", "40GB", "48GB", "80GB")
"""Sizes of GPU memory that a plan can be made for."""
_DECIDED = (
    *("training", "lora", "ptuning", "freeze", "generate", "data.eval_fraction", "data.packing"),
    *("data.max_length", "data.max_source_length", "data.max_target_length"),
    *("model.quantization", "model.head_quantization", "model.embedding_on_host"),
)
"""Keys and sections that a goal decides; all others stay as they are."""
_ROOMY = 0.7
"""Share of the memory above which a larger micro-batch is not tried."""
_BATCH, _ACCUMULATION = "training.per_device_train_batch_size", "training.gradient_accumulation_steps"


def apply_goal(form: RunForm, goal: str) -> RunForm:
    """The defaults with the values of a goal; model, data and method stay. LoRA starts from a base in 16 bits:
    whether it has to be quantized is up to the plan.

    Raises:
        ConfigError: there is no such goal.
    """
    if goal not in GOALS:
        raise ConfigError(f"{goal}: no such preset.", f"One of: {', '.join(GOALS)}.")
    defaults = make_empty_form().values
    values = {key: defaults[key] if _is_decided(key) else value for key, value in form.values.items()}
    if values["method"] == "qlora":
        values["method"] = "lora"
    elif values["method"] != "lora":
        values["model.quantization"] = form.values["model.quantization"]
    goal_keys = {key for settings in GOALS.values() for key in settings}
    more = [line for line in form.more.splitlines() if line.partition("=")[0].strip() not in goal_keys]
    settings = (f"{key}={_format_value(value)}" for key, value in GOALS[goal].items())
    return apply_settings(replace(form, values=values, more="\n".join(more)), settings)


def apply_settings(form: RunForm, settings: Iterable[str]) -> RunForm:
    """The form with settings as `--set` takes them; keys without a field go to the further keys, where they replace
    one that is there."""
    values, more = dict(form.values), form.more.splitlines()
    for setting in settings:
        key, _, value = (part.strip() for part in setting.partition("="))
        if key in values:
            values[key] = value == "true" if map_fields()[key].kind == "flag" else value
        elif key:
            more = [*(line for line in more if line.partition("=")[0].strip() != key), f"{key}={value}"]
    if values["method"] == "lora" and values["model.quantization"] == "nf4":
        values |= {"method": "qlora", "model.quantization": ""}  # the same, by the name that a user knows
    return replace(form, values=values, more="\n".join(line for line in more if line.strip()))


async def fit_goal(
    request: Request, context: Context, form: RunForm, goal: str, memory: str
) -> tuple[RunForm, list[str]]:
    """The settings of a goal for a card: with the cheapest change of the memory plan where they do not fit, and with
    all rows of an optimizer step in one micro-batch where there is room for it without checkpointing.

    Args:
        request: whose client waits for it.
        context: the server's settings.
        form: as it is.
        goal: a name of `GOALS`.
        memory: of the card, such as `12GB`; empty: of this machine's.

    Returns:
        The form, and sentences about what was chosen and why.
    """
    lang = get_language(request, context)
    chosen = apply_goal(form, goal)
    name = text(f"preset.{goal}", lang)
    if not chosen.is_complete:
        return chosen, [text("preset.incomplete", lang, goal=name)]
    try:
        plan = await _plan(request, context, chosen, memory)
        if plan["verdict"] == "fits" and plan["bytes"] < _ROOMY * plan["memory_bytes"]:
            wide = _widen_batch(chosen)
            wide_plan = await _plan(request, context, wide, memory)
            if wide_plan["verdict"] == "fits" and not wide_plan["gradient_checkpointing"]:
                chosen, plan = wide, wide_plan
    except GlmtuneError as error:
        return chosen, [text("preset.no_plan", lang, goal=name), localize_message(error.message, lang)]
    card = text("preset.card", lang, device=describe_device(plan, lang), memory=format_bytes(plan["memory_bytes"]))
    lines = [f"{name} · {card}"]
    if not memory and plan["device"] == CPU_DEVICE:
        lines.append(text("preset.no_gpu", lang))
    change = plan["change"]
    need = format_bytes(plan["bytes"])
    if change and change["fits"]:
        chosen = apply_settings(chosen, change["settings"])
        lines.append(text("preset.changed", lang, need=need, settings=", ".join(change["settings"])))
        need = format_bytes(change["bytes"])
    elif plan["verdict"] != "fits":
        smallest = format_bytes(min(change["bytes"], plan["bytes"])) if change else need
        return chosen, [*lines, text("preset.too_large", lang, need=need, smallest=smallest)]
    return chosen, [*lines, _describe_choice(chosen, plan, need, lang)]


async def _plan(request: Request, context: Context, form: RunForm, memory: str) -> dict[str, Any]:
    lang = get_language(request, context)
    tree = await run_in_threadpool(make_tree, context, form)
    await run_in_threadpool(check_tree, tree)
    return await make_plan(tree, memory, context.roots[0], lang, request)


def _widen_batch(form: RunForm) -> RunForm:
    """The same rows for each optimizer step, in one micro-batch."""
    sizes = [
        int(form.values[key] or TRAINING_DEFAULTS[key.removeprefix("training.")]) for key in (_BATCH, _ACCUMULATION)
    ]
    return apply_settings(form, (f"{_BATCH}={sizes[0] * sizes[1]}", f"{_ACCUMULATION}=1"))


def _describe_choice(form: RunForm, plan: dict[str, Any], need: str, lang: str) -> str:
    """Method, precision, batch and checkpointing, with the memory that they need."""
    is_checkpointed = plan["gradient_checkpointing"] or form.values["training.gradient_checkpointing"] == "true"
    values = {
        "method": form.values["method"],
        "precision": plan["precision"],
        "batch": form.values[_BATCH],
        "accumulation": form.values[_ACCUMULATION],
        "need": need,
    }
    return text("preset.checkpointed" if is_checkpointed else "preset.chosen", lang, **values)


def _is_decided(key: str) -> bool:
    return key in _DECIDED or key.split(".")[0] in _DECIDED


def _format_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
