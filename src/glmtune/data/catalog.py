"""Resolve entries of `data.train`: files, folders, globs, entries of a `dataset_info.json`, hub data sets.

The first of these rules that applies is used:

1. A path that exists, or a glob: those files.
2. `PATH:NAME`, where PATH is a `dataset_info.json` or a folder that holds one: its entry NAME.
3. A plain name: an entry of the first `dataset_info.json` that has it, looked for in the working directory and in its
   `data` folder, then in the same two places of each parent folder.
4. `org/name`: a data set of the hub.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glmtune.config_parsing import suggest_key
from glmtune.config_ranges import NumberRange, check_number
from glmtune.data.conversation import PREFERENCE_HINT
from glmtune.data.files import CATALOG_FILE, has_data_suffix, is_glob
from glmtune.errors import ConfigError, DataError
from glmtune.utils.file_access import is_readable, require_readable
from glmtune.utils.io import read_json_object

_FORMATTINGS = ("alpaca", "sharegpt", "openai")
_COLUMNS = {
    **{role: role for role in ("prompt", "response", "history", "system", "messages", "tools")},
    **{"query": "input", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label"},
}
_USED = (*("file_name", "formatting", "columns", "tags"), *("num_samples", "split", "subset"))
_HUBS = {"huggingface": "hf_hub_url", "modelscope": "ms_hub_url"}
# Other sources that LLaMA-Factory supports. Ignored beside a hub id, which has priority.
_UNSUPPORTED_SOURCES = {
    "script_url": "is a program that makes the rows, which is not executed here",
    "cloud_file_name": "is in a cloud store",
}
# `folder` and `ranking` raise an error where they would matter. `om_hub_url` is one more source of the same rows, and
# older files have `file_sha1`: neither changes the data.
_KEYS = (*_USED, *_HUBS.values(), *_UNSUPPORTED_SOURCES, "om_hub_url", "folder", "ranking", "file_sha1")
_MAX_NAMES_SHOWN = 8


@dataclass(frozen=True)
class SourceSpec:
    """One entry of `data.train` or `data.eval`. A plain string means `path`.

    Attributes:
        path: a file, folder, glob, `dataset_info.json` entry or hub id; see the rules of the module.
        weight: how often its rows are used: 2 for twice, 0.5 for a seeded random half.
        num_samples: size of a seeded random sample of its rows; they repeat if there are fewer.
        repeat: false: rows do not repeat, so that num_samples is a maximum.
        columns: names of its columns by role, in addition to `data.columns`.
        format: of its rows, if it should not be detected.
        tags: LLaMA-Factory's settings for the keys and roles of messages.
        split: of hub data; `train` when None.
        subset: of hub data (its configuration).
        hub: that a hub id belongs to.

    Raises:
        ConfigError: a weight or sample that is not positive.
    """

    path: str
    weight: float = 1.0
    num_samples: int | None = None
    repeat: bool = True
    columns: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    subset: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"

    def __post_init__(self) -> None:
        check_number(self.weight, NumberRange(0, 10_000, excludes_low=True), "weight", self.path)
        check_number(self.num_samples, NumberRange(1, 10**8), "num_samples", self.path)


def resolve_source(spec: SourceSpec, uses_chosen: bool = False) -> tuple[SourceSpec, bool]:
    """Find what a spec names.

    Settings of a `dataset_info.json` are filled in where the spec has none.

    Args:
        spec: what the user gave.
        uses_chosen: whether the better answer of preference rows is trained on; otherwise entries of them are refused.

    Returns:
        The spec with a path of files or a hub id, and whether it is a hub id.

    Raises:
        DataError: nothing of that name, or a `dataset_info.json` that cannot be used, or without the entry.
        ConfigError: an unknown key in the entry.
    """
    name = spec.path
    if not name.strip():  # the current folder, for pathlib
        raise DataError("The path of the data is empty.", "Give a file, a folder or a hub id (org/name).")
    path = Path(name).expanduser()
    if path.is_absolute() or ".." in path.parts:  # whether there is such a file is not told either
        require_readable(_find_fixed_part(path))
    if path.name == CATALOG_FILE and path.is_file():
        names = list(_read_catalog(path))
        more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
        content = f"It has {', '.join(names[:_MAX_NAMES_SHOWN])}{more}." if names else "It is empty."
        raise DataError(f"{name}: a list of data sets, not rows.", f"Give one of them as {name}:NAME. {content}")
    if os.path.lexists(path) or is_glob(name):
        return spec, False
    catalog_name, colon, entry = name.rpartition(":")
    catalog = Path(catalog_name).expanduser()
    if colon and entry and (catalog_name.endswith(".json") or os.path.isdir(catalog)):
        if catalog.is_dir() and catalog.name != CATALOG_FILE:
            catalog /= CATALOG_FILE
        return _resolve_entry(spec, catalog, _read_catalog(catalog), entry, uses_chosen)
    if not has_data_suffix(name) and not re.search(r"[/\\]", name):
        return _search_catalogs(spec, uses_chosen)
    return spec, not has_data_suffix(name) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def read_entry(name: str) -> dict[str, Any] | None:
    """The entry that `PATH:NAME` names; None where the name is none of an entry.

    Raises:
        DataError: the `dataset_info.json` cannot be read.
    """
    catalog_name, colon, entry = name.rpartition(":")
    catalog = Path(catalog_name).expanduser()
    if os.path.lexists(name) or not colon or not entry:
        return None
    if catalog.is_dir() and catalog.name != CATALOG_FILE:
        catalog /= CATALOG_FILE
    if not catalog_name.endswith(".json") and not catalog.is_file():
        return None
    content = _read_catalog(catalog).get(entry)
    return content if isinstance(content, dict) else None


def _search_catalogs(spec: SourceSpec, uses_chosen: bool) -> tuple[SourceSpec, bool]:
    first: tuple[Path, dict[str, Any]] | None = None
    for folder in (Path.cwd(), *Path.cwd().parents):
        for path in (folder / CATALOG_FILE, folder / "data" / CATALOG_FILE):
            if not is_readable(path) or not path.is_file():
                continue
            entries = _read_catalog(path)
            if spec.path in entries:
                return _resolve_entry(spec, path, entries, spec.path, uses_chosen)
            first = first or (path, entries)
    if first is None:
        raise DataError(
            f"{spec.path}: no such file, and no {CATALOG_FILE} in this folder or its parents.",
            "Give a file, a folder or a hub id (org/name).",
        )
    path, entries = first
    raise DataError(f"{spec.path}: no such file, and no such entry in {path}.", suggest_key(spec.path, list(entries)))


def _read_catalog(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a {CATALOG_FILE}.", "Give the JSON file or the folder that holds it.")
    hint = "It must be a JSON object of data sets by name, in UTF-8."
    return read_json_object(path, DataError, hint, unique_keys=True)


def _resolve_entry(
    spec: SourceSpec, path: Path, entries: dict[str, Any], name: str, uses_chosen: bool
) -> tuple[SourceSpec, bool]:
    where = f"{path}: {name}"
    if name not in entries:
        raise DataError(f"{path}: no entry {name!r}.", suggest_key(name, list(entries)))
    entry = entries[name]
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object with file_name or a hub id.")
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key}.", suggest_key(key, list(_KEYS)))
    if entry.get("ranking") and not uses_chosen:
        raise DataError(f"{where}: preference rows (ranking); stage sft trains on single answers.", PREFERENCE_HINT)

    columns = _parse_columns(where, entry)
    format = entry.get("formatting") or ("alpaca" if columns and "text" not in columns else None)
    if format is not None and format not in _FORMATTINGS:
        raise DataError(f"{where}: unknown formatting {format!r}.", suggest_key(str(format), list(_FORMATTINGS)))
    samples = entry.get("num_samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise DataError(f"{where}: num_samples must be a whole number of at least 1, not {samples!r}.")
    target, hub = _parse_target(where, entry, spec, path.parent)

    split = entry.get("split") if hub else None
    tags = _parse_names(where, entry, "tags")
    if not spec.split and not hub and entry.get("split") not in (None, "", "train"):  # train: the default for files
        raise DataError(
            f"{where}: split {entry['split']!r} is for hub data; this is a file.", "Give the file of that split."
        )
    resolved = replace(
        spec,
        path=target,
        num_samples=spec.num_samples or samples,
        columns={**columns, **spec.columns},
        format=spec.format or format if "text" not in columns else "text",
        tags={**tags, **spec.tags},
        split=spec.split or split,
        subset=spec.subset or entry.get("subset") or None,
        hub=hub or spec.hub,
    )
    return resolved, hub is not None


def _parse_target(where: str, entry: dict[str, Any], spec: SourceSpec, folder: Path) -> tuple[str, Any]:
    """The path of the files and None, or a hub id and its hub."""
    for hub in (spec.hub, *_HUBS):
        if entry.get(_HUBS[hub]):
            if entry.get("folder"):
                problem = f"{where}: folder, a part of a hub data set, is not supported."
                raise DataError(problem, "Download it and give its files in file_name.")
            return str(entry[_HUBS[hub]]), hub
    for key, reason in _UNSUPPORTED_SOURCES.items():
        if entry.get(key):
            raise DataError(f"{where}: {key} {reason}.", "Download the rows and give them in file_name alone.")
    file = entry.get("file_name")
    if not isinstance(file, str) or not file:
        hint = "om_hub_url is not supported; download the rows." if entry.get("om_hub_url") else None
        raise DataError(f"{where}: has neither file_name nor hf_hub_url nor ms_hub_url.", hint)
    path = folder / Path(file).expanduser()
    require_readable(_find_fixed_part(path))
    return str(path), None


def _find_fixed_part(path: Path) -> Path:
    """A path up to its first wildcard."""
    parts = list(itertools.takewhile(lambda part: not is_glob(part), path.parts))
    return Path(*parts)


def _parse_columns(where: str, entry: dict[str, Any]) -> dict[str, str]:
    columns = _parse_names(where, entry, "columns")
    unknown = [role for role in columns if role not in _COLUMNS]
    if unknown:
        hint = suggest_key(unknown[0], list(_COLUMNS))
        raise DataError(f"{where}: column role {unknown[0]!r} is not supported.", hint)
    if columns == {"prompt": "text"}:  # LLaMA-Factory's entry for pre-training text
        return {"text": "text"}
    return {_COLUMNS[role]: column for role, column in columns.items()}


def _parse_names(where: str, entry: dict[str, Any], key: str) -> dict[str, str]:
    names = entry.get(key) or {}
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{where}: {key} must be an object of names.")
    return names
