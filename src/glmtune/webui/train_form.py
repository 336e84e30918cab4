"""The form of a training: from components to the config that a command runs, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.run_dir import RunDir, default_root
from glmtune.utils.io import write_text
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.fields import build_field
from glmtune.webui.forms import (
    TOP,
    as_yaml,
    checked,
    fields,
    first,
    knobs,
    options_of,
    tree_of,
    unavailable,
    values_of,
)
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.pick import choices
from glmtune.webui.texts import text
from glmtune.webui.words import Words

_METHOD_SECTIONS = ("lora", "ptuning", "freeze")
_FOLDED_SECTIONS = ("model", "data", *_METHOD_SECTIONS, "generate", "replay", "forget", "training", "run")
"""Folded parts of the form; `run` holds the keys of no section."""
_SHORTHAND = {"model": "path", "data": "train", "replay": "data"}
_TRAINING_PATHS = (
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "accelerator_config",
)
"""Keys of TrainingArguments that may name a file."""


@dataclass
class Form:
    """The components by key; `more` takes keys that have none of their own."""

    components: dict[str, Any]
    more: Any
    groups: dict[str, gr.Row]
    """The rows of each method's own knobs."""

    @property
    def inputs(self) -> list[Any]:
        """All components, as `read` takes their values."""
        return [*self.components.values(), self.more]

    def read(self, values: tuple[Any, ...]) -> tuple[dict[str, Any], str]:
        """Values by key, and the further keys."""
        *given, more = values
        return dict(zip(self.components, given, strict=True)), more or ""


def build_form(context: Context, words: Words, lang: gr.State) -> Form:
    """Put the form onto the page: what every run needs, the usual knobs, the rest folded."""
    made = _build_top(context, words)
    if unavailable():
        note = gr.HTML(_method_note(context.lang))
        lang.change(_method_note, [lang], [note], show_progress="hidden")
    with gr.Row(elem_classes="knobs"):
        made |= {key: build_field(key, words, min_width=240) for key in first("")}
    groups = {}
    for method in _METHOD_SECTIONS:
        with gr.Row(visible=method == options_of("lora"), elem_classes="knobs") as groups[method]:
            made |= {key: build_field(key, words, min_width=170) for key in first(method)}
    with words.add(gr.Accordion(open=False, elem_id="train-all"), label="train.more"):
        for section in _FOLDED_SECTIONS:
            made |= _build_section(section, words)
        more = words.add(gr.Textbox(lines=2), label="train.other", info="train.other_info")
    form = Form(made, more, groups)
    made["method"].change(
        lambda method: [gr.update(visible=name == options_of(method)) for name in groups],
        [made["method"]],
        list(groups.values()),
        show_progress="hidden",
    )
    return form


def tree_from(context: Context, values: dict[str, Any], more: str) -> dict[str, Any]:
    """The config that a form describes, its paths inside the roots and made absolute.

    Raises:
        GlmtuneError: a path outside, or what the config cannot take.
    """
    own = options_of(values["method"])
    used = {
        key: value for key, value in values.items() if key.split(".")[0] not in _METHOD_SECTIONS or key.startswith(own)
    }
    train = used["data.train"]
    used["data.train"] = "\n".join(train) if isinstance(train, list) else train
    tree = tree_of(used, more)
    build_dataclass(RunConfig, tree, "form")  # of the right types, before its paths are looked at
    return _placed(context, tree)


def prepared(context: Context, tree: dict[str, Any]) -> tuple[Path, Path]:
    """Write the config of a new run.

    Returns:
        The config file and the run folder.

    Raises:
        GlmtuneError: the config cannot be run, or the run folder is in use.
    """
    run = checked(tree)
    output = run.output or str(_free(context, context.roots[0] / default_root(run.model.path, values_method(tree))))
    RunDir(output).require_new()
    config = context.state("configs") / f"{Path(output).name}.yaml"
    write_text(config, as_yaml({**tree, "output": output}))
    return config, Path(output)


def values_method(tree: dict[str, Any]) -> str:
    """The method as it was asked for: `qlora` stays itself."""
    return str(tree.get("method", "lora"))


def shown_values(form: Form, tree: dict[str, Any]) -> list[Any]:
    """Component values for a config that was read, in the order of `Form.inputs`.

    Keys without a component go to `more`.
    """
    values = values_of(tree)
    train = values["data.train"]
    values["data.train"] = train.splitlines()
    training = {key: value for key, value in (tree.get("training") or {}).items() if f"training.{key}" not in values}
    more = "\n".join(f"training.{key}={value}" for key, value in training.items())
    return [*(values[key] for key in form.components), more]


def _build_top(context: Context, words: Words) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row(elem_classes="knobs"):
        models, rows = choices(context, "models"), choices(context, "data")
        named: dict[str, Any] = {"allow_custom_value": True, "min_width": 260, "interactive": True}
        made["model.path"] = gr.Dropdown(models, value=None, elem_id="train-model", **named)
        made["data.train"] = gr.Dropdown(rows, value=[], multiselect=True, elem_id="train-data", **named)
        made["data.eval"] = gr.Dropdown(rows, value=None, elem_id="train-eval", **named)
    with gr.Row():
        method = next(field for field in fields() if field.key == "method")
        made["method"] = gr.Radio(list(method.choices), value=method.default, elem_id="train-method", scale=2)
        made["output"] = gr.Textbox(elem_id="train-output", scale=1, min_width=220)
    for key in TOP:
        words.add(made[key], label=f"name.{key}", info=f"help.{key}")
    return made


def _build_section(section: str, words: Words) -> dict[str, Any]:
    keys = [field.key for field in fields() if field.section == section and field.key not in (*TOP, *knobs())]
    if not keys:
        return {}
    with words.add(gr.Accordion(open=False), label=f"section.{section}"), gr.Row(elem_classes="knobs"):
        return {key: build_field(key, words, min_width=240) for key in keys}


def _method_note(lang: str) -> str:
    """Why some choices are greyed."""
    missing = unavailable()
    said = text(next(iter(missing.values())), lang, names=", ".join(missing))
    return f'<p class="note">{said}</p><style>{_GREYED}</style>'


_GREYED = '#train-method label:has(input[value="qlora"]) { opacity: .45; pointer-events: none; }'


def _placed(context: Context, tree: dict[str, Any]) -> dict[str, Any]:
    """Paths resolved, whether a field or one of the further keys named them."""
    if tree.get("reward"):
        raise PathError(
            "reward: this page does not run Python files.",
            "Start such a training by a command: glmtune train --stage grpo",
        )
    model, data, replay, training = (_section(tree, name) for name in ("model", "data", "replay", "training"))
    if model.get("path"):
        model["path"] = model_or_path(context.roots, str(model["path"]))
    for section, key in ((data, "train"), (data, "eval"), (replay, "data")):
        if section.get(key):
            section[key] = _entries(context, section[key])
    for holder, keys in ((tree, ("adapter", "output")), (training, _TRAINING_PATHS)):
        for key in keys:
            if isinstance(holder.get(key), str) and holder[key]:
                holder[key] = str(inside(context.roots, holder[key]))
    return {key: value for key, value in tree.items() if value != {}}


def _section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the tree, also where a bare string or nothing stands for it."""
    value = tree.get(name)
    tree[name] = {_SHORTHAND[name]: value} if isinstance(value, str) else dict(value or {})
    section: dict[str, Any] = tree[name]
    return section


def _entries(context: Context, given: Any) -> str | list[str]:
    lines = [str(entry) for entry in given] if isinstance(given, list) else [str(given)]
    return data_entries(context.roots, "\n".join(lines))


def _free(context: Context, folder: Path) -> Path:
    """The folder, or with the first number that no folder and no waiting job has."""
    taken = {job.output for job in context.jobs.list() if job.alive}
    number, free = 2, folder
    while free.exists() or str(free) in taken:
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free
