"""The form of a run, made from the config dataclasses: which fields there are, and what their values mean."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from glmtune.config import TRAINING_DEFAULTS, RunConfig
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass, drop_secrets, parse_number, set_key, suggest_key
from glmtune.errors import ConfigError
from glmtune.training.best_metric import check_best_metric
from glmtune.training.training_keys import TRAINING_KEY_USES
from glmtune.utils.documents import DocumentError, parse_yaml
from glmtune.utils.optional_packages import is_installed, require_extra

Kind = Literal["text", "integer", "number", "flag", "choice", "list", "lines", "mapping"]

# Keys of TrainingArguments that have no default of ours but belong on a form.
_FREE_TRAINING: dict[str, Any] = {"max_steps": -1, "learning_rate": None}
_FIRST = {
    "": (
        "training.num_train_epochs",
        "training.max_steps",
        "training.learning_rate",
        "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
        "data.max_source_length",
        "data.max_target_length",
    ),
    "lora": ("lora.rank", "lora.alpha", "lora.dropout", "lora.targets"),
    "ptuning": ("ptuning.num_virtual_tokens", "ptuning.prefix_projection", "ptuning.dropout"),
    "freeze": ("freeze.trainable_layers",),
}
"""Keys that most runs change, shared ones and by method; all others are folded."""


@dataclass(frozen=True)
class Field:
    """A key of the config with what a form needs to know of it."""

    key: str
    kind: Kind
    default: Any
    choices: tuple[Any, ...] = ()
    optional: bool = False
    """Whether it may be left empty."""

    @property
    def section(self) -> str:
        """The part of the config that it belongs to; `run` where it belongs to none."""
        return self.key.split(".")[0] if "." in self.key else "run"


@cache
def map_fields() -> Mapping[str, Field]:
    """All fields by key, in the order of the dataclasses; reading the types takes 3 ms."""
    training = (_training_field(*item) for item in _training_defaults().items())
    return MappingProxyType({field.key: field for field in (*_fields(RunConfig, ""), *training)})


def fields() -> list[Field]:
    """All fields in the order of the dataclasses."""
    return list(map_fields().values())


def list_first_keys(section: str) -> tuple[str, ...]:
    """Keys that most runs change: of a method's own section, or the shared ones for an empty name."""
    return _FIRST[section]


def get_method_section(method: str) -> str:
    """The section that holds a method's own options."""
    return "lora" if method == "qlora" else method


def find_unavailable_choices() -> dict[str, str]:
    """Choices that this machine cannot do, and the text that says why."""
    if not is_installed("bitsandbytes"):
        return dict.fromkeys(("qlora", "nf4", "int8"), "train.no_bitsandbytes")
    return {}


def format_value(field: Field, value: Any) -> Any:
    """A config's value as the form shows it."""
    if value is None:
        return ""
    if field.kind == "list":
        return ", ".join(map(str, value))
    if field.kind == "lines":
        return "\n".join(map(_line, value)) if isinstance(value, list) else value
    if field.kind == "mapping":
        return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).strip() if value else ""
    return str(value) if field.optional and field.kind in ("integer", "number") else value


def parse_value(field: Field, shown: Any) -> Any:
    """What a field of the form holds, as the config takes it.

    Raises:
        ConfigError: text that is not what the key takes.
    """
    if field.kind in ("list", "lines"):
        items = [item.strip() for item in str(shown or "").split("," if field.kind == "list" else "\n")]
        return _entries(field, [item for item in items if item])
    if field.kind == "mapping":
        return _mapping(field.key, str(shown or ""))
    if shown is None or shown == "":
        return None if field.optional else field.default
    if field.kind in ("integer", "number"):
        return _number(field, shown)
    return shown


def tree_of(values: Mapping[str, Any], more: str = "") -> dict[str, Any]:
    """What a form says, as a config file would: only what differs from the defaults.

    Args:
        values: of the form's fields, by key.
        more: further keys, a line each: `training.weight_decay=0.1`.

    Raises:
        ConfigError: a value that its key cannot take.
    """
    tree: dict[str, Any] = {}
    for key, shown in values.items():
        field = map_fields()[key]
        value = parse_value(field, shown)
        if value != field.default or key == "method":
            _put(tree, key, value)
    for line in more.splitlines():
        if line.strip():
            set_key(tree, line.strip())
    return tree


def values_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the form's fields by key, for a config that was read: the other way of `tree_of`."""
    shown = {}
    for field in fields():
        node: Any = tree
        for part in field.key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        shown[field.key] = format_value(field, field.default if node is None else node)
    return shown


def check_tree(tree: Mapping[str, Any]) -> RunConfig:
    """The run that a tree describes.

    Raises:
        ConfigError: an unknown key, a wrong value, no model, no data, or a method that this machine cannot do.
    """
    run: RunConfig = build_dataclass(RunConfig, tree, "form")
    check_config(run)
    if run.model.quantization in find_unavailable_choices():
        require_extra("qlora", run.model.quantization)
    _check_training(run.training)
    check_best_metric(run)
    return run


def as_yaml(tree: Mapping[str, Any]) -> str:
    """A tree as a config file, without access tokens and passwords."""
    public = {key: drop_secrets(value) if key == "training" else value for key, value in tree.items()}
    return yaml.safe_dump(public, allow_unicode=True, sort_keys=False)


def _check_training(training: Mapping[str, Any]) -> None:
    """A misspelt key is told here; loading torch to have it told takes a user's patience."""
    from transformers import TrainingArguments

    known = [item.name for item in dataclasses.fields(TrainingArguments)]
    for key in training:
        if key not in known:
            raise ConfigError(f"form: unknown key training.{key}.", suggest_key(key, known))
        use = TRAINING_KEY_USES[key]
        if use.status == "refused" and not use.accepts(training[key]):
            raise ConfigError(f"form: training.{key} is not supported: {use.reason}.", f"Remove training.{key}.")


def _fields(kind: Any, prefix: str) -> list[Field]:
    found: list[Field] = []
    hints = get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint, key = hints[item.name], f"{prefix}{item.name}"
        if dataclasses.is_dataclass(hint):
            found += _fields(hint, f"{key}.")
        elif key != "training":
            default = item.default if item.default is not dataclasses.MISSING else _make_default(item)
            found.append(_field(key, hint, default))
    return found


def _make_default(item: Any) -> Any:
    return item.default_factory()


def _field(key: str, hint: Any, default: Any) -> Field:
    options = [option for option in _options(hint) if option is not type(None)]
    optional = len(options) < len(_options(hint))
    if get_origin(options[0]) is Literal:
        return Field(key, "choice", default, get_args(options[0]), optional)
    if any(get_origin(option) is list for option in options):
        return Field(key, "lines" if str in options else "list", default, (), optional)
    if get_origin(options[0]) is dict:
        return Field(key, "mapping", default, (), optional)
    kinds: dict[Any, Kind] = {bool: "flag", int: "integer", float: "number", str: "text"}
    return Field(key, kinds[options[0]], default, (), optional)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _training_defaults() -> dict[str, Any]:
    return {**_FREE_TRAINING, **TRAINING_DEFAULTS}


def _training_field(name: str, default: Any) -> Field:
    kinds: dict[Any, Kind] = {bool: "flag", int: "integer", str: "text"}
    # save_steps and warmup_steps: whole numbers are steps, others shares
    return Field(f"training.{name}", kinds.get(type(default), "number"), default, (), default is None)


def _number(field: Field, shown: Any) -> int | float:
    read = parse_number(shown.strip() if isinstance(shown, str) else shown)
    if not isinstance(read, (int, float)) or (
        field.kind == "integer" and isinstance(read, float) and not read.is_integer()
    ):
        wanted = "a whole number" if field.kind == "integer" else "a number"
        raise ConfigError(f"{field.key} must be {wanted}, not {shown!r}.")
    return int(read) if field.kind == "integer" else read


def _entries(field: Field, items: list[str]) -> Any:
    """Several lines are a list; one is the bare string that a file would hold."""
    if field.kind == "list":
        return items
    if not items:
        return None if field.optional else field.default
    return items[0] if len(items) == 1 else items


def _mapping(key: str, text: str) -> dict[str, Any]:
    try:
        read = parse_yaml(text) if text.strip() else {}
    except DocumentError:
        read = None
    if not isinstance(read, dict):
        raise ConfigError(f"{key} must be keys and values, not {text!r}.", "One a line, for example: prompt: question")
    return read


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _line(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry)
