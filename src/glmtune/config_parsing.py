"""Read YAML and JSON files and `key=value` options, and build dataclasses from them with checked names and types."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from glmtune.config_ranges import check_number
from glmtune.errors import ConfigError
from glmtune.utils.documents import (
    MAX_YAML_BYTES,
    DocumentError,
    parse_json,
    parse_yaml,
    read_document,
    shorten_value,
)

# Larger whole numbers have no float.
_LARGEST = 10**300


def suggest_key(name: str, known: Sequence[str]) -> str:
    """A hint for an error: the known name most similar to `name`, or all known names if none is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {matches[0]}?" if matches else f"Known: {', '.join(sorted(known))}."


def build_dataclass(kind: Any, tree: Any, where: str, prefix: str = "") -> Any:
    """Build a dataclass from nested dicts.

    Args:
        kind: the dataclass.
        tree: its values by field name.
        where: the file or option they come from, for errors.
        prefix: dotted key of `tree` in the whole config, for errors.

    Raises:
        ConfigError: an unknown key (the message names the most similar one), a wrong type, or a number out of its
            range.
    """
    fields = {f.name: f for f in dataclasses.fields(kind)}
    if isinstance(tree, str) and prefix:  # `model: path` is short for `model: {path: path}`
        tree = {next(iter(fields)): tree}
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{where}: {prefix.rstrip('.') or 'the file'} must hold keys and values, not {shorten_value(tree)}."
        )
    hints = get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        if key not in fields:
            name = str(key) if len(str(key)) <= 60 else f"{str(key)[:60]}…"
            raise ConfigError(f"{where}: unknown key {prefix}{name}.", suggest_key(str(key), list(fields)))
        if value is not None:  # a key without a value keeps its default
            values[key] = _convert(hints[key], value, where, f"{prefix}{key}")
            check_field_range(fields[key], values[key], f"{prefix}{key}", where)
    return kind(**values)


def check_field_range(field: dataclasses.Field[Any], value: Any, key: str, where: str = "") -> None:
    """Check a number, or those of a list, against the `range` of its field, and those in a dict against the field's
    `ranges`, by key.

    Raises:
        ConfigError: names key, value and range.
    """
    if "range" in field.metadata:
        for number in value if isinstance(value, list) else [value]:
            check_number(number, field.metadata["range"], key, where)
    for name, allowed in field.metadata.get("ranges", {}).items():
        if isinstance(value, Mapping) and name in value:
            check_number(parse_number(value[name]), allowed, f"{key}.{name}", where)


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return build_dataclass(kind, value, where, f"{key}.")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        choices = [choice for choice in arguments if choice is not type(None)]
        list_type = next((choice for choice in choices if get_origin(choice) is list), None)
        return _convert(list_type if list_type and isinstance(value, list) else choices[0], value, where, key)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(
            f"{where}: {key} cannot be {shorten_value(value)}.", f"One of: {', '.join(map(str, arguments))}."
        )
    if origin is list:
        items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
        if isinstance(items, list) and arguments[0] is Any:
            return items
        if isinstance(items, list):
            return [_convert(arguments[0], item, where, key) for item in items]
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(name): _convert_item(arguments[1], value[name], where, f"{key}.{name}") for name in value}
    else:
        number = parse_number(value)
        if kind is float and isinstance(number, (int, float)) and not isinstance(number, bool):
            is_too_large = isinstance(number, int) and abs(number) > _LARGEST
            return (math.inf if number > 0 else -math.inf) if is_too_large else float(number)
        if kind is int and isinstance(number, int) and not isinstance(number, bool):
            return number
        if kind is bool and isinstance(value, bool):
            return value
        if kind is str and isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{where}: {key} holds a null character.")
        if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return shorten_value(value) if isinstance(value, int) else str(value)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    expected = names.get(kind, "a list" if origin is list else "keys and values")
    raise ConfigError(f"{where}: {key} must be {expected}, not {shorten_value(value)}.")


def _convert_item(kind: Any, value: Any, where: str, key: str) -> Any:
    return value if kind is Any or value is None else _convert(kind, value, where, key)


def parse_number(value: Any) -> Any:
    """Convert a text to int or float if it is a number, including `1e-4`; return anything else unchanged."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def read_config_file(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML or JSON file.

    Raises:
        ConfigError: no such file, it cannot be parsed, or it does not hold keys and values.
    """
    try:
        text = read_document(path, MAX_YAML_BYTES)
        tree = parse_json(text, unique_keys=True) if path.suffix == ".json" else parse_yaml(text)
    except DocumentError as error:
        hint = None if os.path.isfile(path) else "Give a YAML or JSON file that describes the run."
        raise ConfigError(error.describe(path), hint) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values.", "For example: model: ./chatglm3-6b")
    return tree


def set_key(tree: dict[str, Any], override: str) -> None:
    """Set a key of nested dicts.

    Args:
        tree: changed in place.
        override: `a.b=value`, the value in YAML.

    Raises:
        ConfigError: `override` has no `=`.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: must look like key=value.", "For example: --set training.max_steps=100")
    *parents, last = key.strip().split(".")
    shorthand = {"model": "path", "data": "train", "replay": "data"}
    node = tree
    for parent in parents:
        child = node.get(parent)
        if isinstance(child, str) and parent in shorthand:
            child = {shorthand[parent]: child}
        node[parent] = child if isinstance(child, dict) else {}
        node = node[parent]
    try:
        node[last] = parse_yaml(text)
    except DocumentError as error:
        # Text such as `a: b` or `[x` is a value too; what no file may hold is refused here too.
        if not error.is_syntax:
            raise ConfigError(f"--set {key.strip()}: {error.problem}.") from None
        node[last] = text


_SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey", "credential")


def drop_secrets(value: Any) -> Any:
    """The `training` section without access tokens and passwords: config files are copied into reports and given to
    others."""
    if isinstance(value, list):
        return [drop_secrets(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: drop_secrets(part)
        for key, part in value.items()
        if not (part and isinstance(part, str) and any(word in str(key).lower() for word in _SECRET_WORDS))
    }
