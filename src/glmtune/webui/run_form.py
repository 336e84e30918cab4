"""The form of a training: from fields of the page to the config that a command runs, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.errors import ConfigError
from glmtune.html.pages import is_number
from glmtune.run_dir import RunDir, default_root
from glmtune.utils.io import write_text
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.forms import as_yaml, check_tree, fields, get_method_section, tree_of, values_of
from glmtune.webui.paths import data_entries, inside, model_or_path
from glmtune.webui.requests import FormData, Pairs

METHOD_SECTIONS = ("lora", "ptuning", "freeze")
_SHORTHAND = {"model": "path", "data": "train", "replay": "data"}
_TRAINING_PATHS = (
    *("output_dir", "logging_dir", "resume_from_checkpoint"),
    *("deepspeed", "fsdp_config", "accelerator_config"),
)
"""Keys of TrainingArguments that may name a file."""
TRAIN_DRAFT = "train"
"""Name of the form among the drafts."""
DATA, WEIGHT, MORE = "data.train", "weight", "more"
"""Names of the form's fields that are no keys: one `weight` beside each `data.train`, and further keys, a line each."""


@dataclass
class RunForm:
    """The fields of the form as text, as the page shows them.

    Attributes:
        values: by key of the config; flags are booleans.
        datasets: entry and weight (empty: 1) of each data set to train on.
        more: further keys, a line each.
    """

    values: dict[str, Any]
    datasets: list[tuple[str, str]] = field(default_factory=list)
    more: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether there is a model and data."""
        return bool(self.values["model.path"]) and any(entry for entry, _ in self.datasets)


def make_empty_form() -> RunForm:
    """The form with all defaults."""
    return make_form({})


def parse_form(data: FormData) -> RunForm:
    """The form that a browser sent. Keys that it lacks have their defaults; a box that is not ticked is not sent, so
    the names of all boxes come in `flags`."""
    form = make_empty_form()
    boxes = set(data.get_all("flags"))
    sent = {name for name, _ in data.pairs}
    for item in fields():
        if item.kind == "flag" and item.key in boxes:
            form.values[item.key] = data.has(item.key)
        elif item.kind != "flag" and item.key in sent:
            form.values[item.key] = data.get(item.key)
    form.datasets = parse_datasets(data)
    form.more = data.get(MORE)
    return form


def list_form_pairs(form: RunForm) -> Pairs:
    """What a browser would send of a form: the other way of `parse_form`."""
    flags = {item.key for item in fields() if item.kind == "flag"}
    pairs = [(key, str(value)) for key, value in form.values.items() if key not in flags and key != DATA]
    pairs += [("flags", key) for key in sorted(flags)]
    pairs += [(key, "true") for key in sorted(flags) if form.values[key] in (True, "true")]
    for entry, weight in form.datasets:
        pairs += [(DATA, entry), (WEIGHT, weight)]
    return [*pairs, (MORE, form.more)]


def parse_datasets(data: FormData) -> list[tuple[str, str]]:
    """Entry and weight (empty: 1) of each data set in a form; a weight follows its data set."""
    datasets: list[tuple[str, str]] = []
    for name, value in data.pairs:
        if name == DATA:
            datasets += [(line.strip(), "") for line in value.splitlines()]
        elif name == WEIGHT and datasets:
            datasets[-1] = (datasets[-1][0], value.strip())
    return [(entry, weight) for entry, weight in datasets if entry]


def make_entries(context: Context, datasets: list[tuple[str, str]]) -> list[Any]:
    """What `data.train` holds for some data sets, their paths inside the roots.

    Raises:
        GlmtuneError: a path outside, or a weight that is no number.
    """
    return [_resolve_entries(context, _make_entry(entry, weight)) for entry, weight in datasets]


def make_form(tree: Mapping[str, Any]) -> RunForm:
    """The form of a config that was read. Keys of the trainer without a field go to `more`.

    Raises:
        ConfigError: a key that the config does not have, or a value of a wrong type.
    """
    build_dataclass(RunConfig, dict(tree), "config")
    tree = {**tree, **{name: _open_section(dict(tree), name) for name in _SHORTHAND if name in tree}}
    values = values_of(tree)
    entries = (tree.get("data") or {}).get("train")
    values[DATA] = ""
    training = {key: value for key, value in (tree.get("training") or {}).items() if f"training.{key}" not in values}
    more = "\n".join(f"training.{key}={value}" for key, value in training.items())
    datasets = [_describe_entry(entry) for entry in (entries if isinstance(entries, list) else [entries]) if entry]
    return RunForm(values, datasets, more)


def make_tree(context: Context, form: RunForm) -> dict[str, Any]:
    """The config that a form describes, its paths inside the roots and absolute.

    Raises:
        GlmtuneError: a path outside, or what the config cannot take.
    """
    own = get_method_section(str(form.values["method"]))
    used = {
        key: value
        for key, value in form.values.items()
        if key.split(".")[0] not in METHOD_SECTIONS or key.startswith(f"{own}.")
    }
    tree = tree_of(used, form.more)
    entries = [_make_entry(entry, weight) for entry, weight in form.datasets]
    if entries:
        # One path alone is what a file would hold.
        alone = entries[0] if len(entries) == 1 and isinstance(entries[0], str) else entries
        _open_section(tree, "data")["train"] = alone
    build_dataclass(RunConfig, tree, "form")  # of the right types, before its paths are looked at
    return _resolve_paths(context, tree)


def write_config(context: Context, tree: dict[str, Any]) -> tuple[Path, Path]:
    """Write the config of a new run.

    Returns:
        The config file and the run folder.

    Raises:
        GlmtuneError: the config cannot be run, or the run folder is in use.
    """
    run = check_tree(tree)
    method = str(tree.get("method", "lora"))  # as it was chosen: `qlora` stays itself
    output = run.output or str(_find_free(context, context.roots[0] / default_root(run.model.path, method)))
    RunDir(output).require_new()
    config = context.state("configs") / f"{Path(output).name}.yaml"
    write_text(config, as_yaml({**tree, "output": output}))
    return config, Path(output)


def _describe_entry(entry: Any) -> tuple[str, str]:
    """Entry and weight. The form has no place for further keys of an entry.

    Raises:
        ConfigError: it has some.
    """
    if isinstance(entry, Mapping):
        others = [str(key) for key in entry if key not in ("path", "weight")]
        if others:
            raise ConfigError(
                f"data.train: {entry.get('path')} has {', '.join(others)}, for which the form has no field.",
                "Start this training by a command: glmtune train FILE.yaml",
            )
        weight = entry.get("weight")
        return str(entry.get("path", "")), "" if weight is None else f"{weight:g}" if is_number(weight) else str(weight)
    return str(entry), ""


def _make_entry(entry: str, weight: str) -> str | dict[str, Any]:
    if not weight or weight == "1":
        return entry
    try:
        return {"path": entry, "weight": float(weight)}
    except ValueError:
        raise ConfigError(f"{entry}: the share {weight!r} is not a number.", "1, 0.5 (half) or 2 (twice).") from None


def _resolve_paths(context: Context, tree: dict[str, Any]) -> dict[str, Any]:
    """Make paths absolute, whether a field or one of the further keys names them."""
    model, data, replay, training = (_open_section(tree, name) for name in ("model", "data", "replay", "training"))
    if model.get("path"):
        model["path"] = model_or_path(context.roots, str(model["path"]))
    for section, key in ((data, "train"), (data, "eval"), (replay, "data")):
        if section.get(key):
            section[key] = _resolve_entries(context, section[key])
    if tree.get("reward"):
        tree["reward"] = _resolve_rewards(context, tree["reward"])
    for holder, keys in ((tree, ("adapter", "output")), (training, _TRAINING_PATHS)):
        for key in keys:
            if isinstance(holder.get(key), str) and holder[key]:
                holder[key] = str(inside(context.roots, holder[key]))
    return {key: value for key, value in tree.items() if value != {}}


def _resolve_rewards(context: Context, reward: Any) -> Any:
    """Reward models inside the roots; whoever uses the page may not run Python files on this machine.

    Raises:
        PathError: a Python file, or a folder outside the roots.
    """
    if isinstance(reward, list):
        return [_resolve_rewards(context, entry) for entry in reward]
    if ".py" in str(reward):
        raise PathError(
            f"reward {reward}: this page does not run Python files.",
            "Start this training by a command: glmtune train --stage grpo --reward FILE.py:FUNCTION",
        )
    return str(inside(context.roots, str(reward)))


def _open_section(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the tree, also where a bare string or nothing stands for it."""
    value = tree.get(name)
    tree[name] = {_SHORTHAND[name]: value} if isinstance(value, str) else dict(value or {})
    section: dict[str, Any] = tree[name]
    return section


def _resolve_entries(context: Context, entries: Any) -> Any:
    if isinstance(entries, list):
        return [_resolve_entries(context, entry) for entry in entries]
    if isinstance(entries, Mapping):
        return {**entries, "path": data_entries(context.roots, str(entries.get("path", "")))}
    return data_entries(context.roots, str(entries))


def _find_free(context: Context, folder: Path) -> Path:
    """The folder, or with the first number that no folder and no waiting job has."""
    taken = {job.output for job in context.jobs.list() if job.alive}
    number, free = 2, folder
    while free.exists() or str(free) in taken:
        free, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return free
