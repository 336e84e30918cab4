"""What `data.train` may name: files, folders, globs, entries of a LLaMA-Factory `dataset_info.json`, hub data sets.

An entry is looked up by these rules, the first that applies:

1. A path that exists, or a glob: those files.
2. `PLACE:NAME`, where PLACE is a `dataset_info.json` or a folder that holds one: its entry NAME.
3. A bare name: an entry of the nearest `dataset_info.json` that has it, looked for in the working directory and in its
   `data` folder, then in the same two places of each folder above.
4. `org/name`: a data set of the hub.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from glmtune.config_parsing import nearest
from glmtune.data.files import CATALOG, has_data_suffix, is_glob
from glmtune.errors import ConfigError, DataError

_FORMATTINGS = ("alpaca", "sharegpt", "openai")
_COLUMNS = {
    **{role: role for role in ("prompt", "response", "history", "system", "messages", "tools")},
    "query": "input",
}
_USED = (*("file_name", "formatting", "columns", "tags"), *("num_samples", "split", "subset"))
_HUBS = {"huggingface": "hf_hub_url", "modelscope": "ms_hub_url"}
# Where LLaMA-Factory would take the rows from instead. Harmless beside a hub id, which goes first.
_ELSEWHERE = {
    "script_url": "is a program that makes the rows, and is not run here",
    "cloud_file_name": "lies in a cloud store",
}
# `folder` and `ranking` are refused where they matter. `om_hub_url` is one more place of the same rows, and older files
# have `file_sha1`: neither changes what is learnt.
_KEYS = (*_USED, *_HUBS.values(), *_ELSEWHERE, "om_hub_url", "folder", "ranking", "file_sha1")
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class SourceSpec:
    """One entry of `data.train` or `data.eval`. A bare string means `path`.

    Attributes:
        path: a file, folder, glob, `dataset_info.json` entry or hub id; see the module's rules.
        weight: how often its rows count: 2 takes them twice, 0.5 a seeded random half.
        num_samples: a seeded random sample of that many rows, with repetition once all are used.
        columns: names of its columns by role, on top of `data.columns`.
        format: its layout, where detection should not decide.
        tags: LLaMA-Factory's names for the keys and roles of messages.
        split: of hub data; `train` when None.
        subset: of hub data (its configuration).
        hub: where a hub id is looked up.

    Raises:
        ConfigError: a weight or sample that is not positive.
    """

    path: str
    weight: float = 1.0
    num_samples: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    split: str | None = None
    subset: str | None = None
    hub: Literal["huggingface", "modelscope"] = "huggingface"

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigError(f"{self.path}: weight is {self.weight}; it must be above 0.", "Leave out unwanted data.")
        if self.num_samples is not None and self.num_samples < 1:
            raise ConfigError(f"{self.path}: num_samples is {self.num_samples}; it must be at least 1.")


def locate(spec: SourceSpec) -> tuple[SourceSpec, bool]:
    """The spec with a path of files or a hub id in it, and whether it is the latter.

    What a `dataset_info.json` says is filled in where the spec says nothing itself.

    Raises:
        DataError: nothing of that name, a `dataset_info.json` that cannot be used, or one without an entry's name.
        ConfigError: an unknown key in the entry.
    """
    name = spec.path
    if Path(name).name == CATALOG and Path(name).expanduser().is_file():
        names = list(_read_catalog(Path(name).expanduser()))
        more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
        listed = f"It has {', '.join(names[:_NAMES_SHOWN])}{more}." if names else "It is empty."
        raise DataError(f"{name}: a list of data sets, no rows.", f"Give one of them as {name}:NAME. {listed}")
    if os.path.lexists(Path(name).expanduser()) or is_glob(name):
        return spec, False
    place, colon, entry = name.rpartition(":")
    if colon and entry and (place.endswith(".json") or os.path.isdir(Path(place).expanduser())):
        path = Path(place).expanduser()
        catalog = path / CATALOG if path.is_dir() and path.name != CATALOG else path
        return _from_catalog(spec, catalog, _read_catalog(catalog), entry)
    if not has_data_suffix(name) and not re.search(r"[/\\]", name):
        return _look_up(spec)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not has_data_suffix(name):
        return spec, True
    return spec, False


def _look_up(spec: SourceSpec) -> tuple[SourceSpec, bool]:
    first: tuple[Path, dict[str, Any]] | None = None
    for path in _catalogs():
        entries = _read_catalog(path)
        if spec.path in entries:
            return _from_catalog(spec, path, entries, spec.path)
        first = first or (path, entries)
    if first is None:
        raise DataError(
            f"{spec.path}: no such file, and no {CATALOG} here or above that could name it.",
            "Give a file, a folder or a hub id (org/name).",
        )
    raise DataError(f"{spec.path}: no such file, and no such entry in {first[0]}.", nearest(spec.path, list(first[1])))


def _catalogs() -> Iterator[Path]:
    here = Path.cwd()
    for folder in (here, *here.parents):
        for path in (folder / CATALOG, folder / "data" / CATALOG):
            if path.is_file():
                yield path


def _read_catalog(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(f"{path}: a folder, not a {CATALOG}.", "Give the JSON file or the folder that holds it.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).", f"No {CATALOG} there?") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}).", "Mend it there.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not UTF-8 JSON.", "Save it as UTF-8.") from None
    if not isinstance(entries, dict):
        raise DataError(f"{path}: must hold an object of data sets by name.")
    return entries


def _from_catalog(spec: SourceSpec, path: Path, entries: dict[str, Any], name: str) -> tuple[SourceSpec, bool]:
    where = f"{path}: {name}"
    if name not in entries:
        raise DataError(f"{path}: no entry {name!r}.", nearest(name, list(entries)))
    entry = entries[name]
    if not isinstance(entry, dict):
        raise DataError(f"{where} must be an object with file_name or a hub id.")
    _check_keys(where, entry)
    columns = _columns(where, entry.get("columns") or {})
    format = entry.get("formatting") or ("alpaca" if columns and "text" not in columns else None)
    if format is not None and format not in _FORMATTINGS:
        raise DataError(f"{where}: unknown formatting {format!r}.", nearest(str(format), list(_FORMATTINGS)))
    samples = entry.get("num_samples")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise DataError(f"{where}: num_samples must be a whole number of at least 1, not {samples!r}.")
    target, hub = _target(where, entry, spec, path.parent)
    filled = replace(
        spec,
        path=target,
        num_samples=spec.num_samples or samples,
        columns={**columns, **spec.columns},
        format=spec.format or format if "text" not in columns else "text",
        tags={**_texts(where, entry, "tags"), **spec.tags},
        split=spec.split or _split(where, entry, hub),
        subset=spec.subset or entry.get("subset") or None,
        hub=hub or spec.hub,
    )
    return filled, hub is not None


def _target(where: str, entry: dict[str, Any], spec: SourceSpec, folder: Path) -> tuple[str, Any]:
    for hub in (spec.hub, *_HUBS):
        if entry.get(_HUBS[hub]):
            if entry.get("folder"):
                said = f"{where}: folder, a part of a hub data set, cannot be chosen here."
                raise DataError(said, "Download it and name its files in file_name.")
            return str(entry[_HUBS[hub]]), hub
    for key, reason in _ELSEWHERE.items():
        if entry.get(key):
            raise DataError(f"{where}: {key} {reason}.", "Fetch the rows and name them in file_name alone.")
    file = entry.get("file_name")
    if not isinstance(file, str) or not file:
        hint = "om_hub_url is not supported; download the rows." if entry.get("om_hub_url") else None
        raise DataError(f"{where}: names neither file_name nor hf_hub_url nor ms_hub_url.", hint)
    return str(folder / Path(file).expanduser()), None


def _split(where: str, entry: dict[str, Any], hub: Any) -> str | None:
    split = entry.get("split")
    if hub or split in (None, "", "train"):  # for files, `train` is only the default written out
        return split if hub else None
    raise DataError(f"{where}: split {split!r} is for hub data; this is a file.", "Give the file of that split.")


def _check_keys(where: str, entry: dict[str, Any]) -> None:
    """Raises:
    ConfigError: a key that LLaMA-Factory does not have either.
    DataError: one that would change the rows' meaning if it were passed over.
    """
    for key in entry:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key {key}.", nearest(key, list(_KEYS)))
    if entry.get("ranking"):
        raise DataError(f"{where}: pairs of better and worse answers (ranking) cannot be learnt here.")


def _columns(where: str, columns: Any) -> dict[str, str]:
    texts = _texts(where, {"columns": columns}, "columns")
    unknown = [role for role in texts if role not in _COLUMNS]
    if unknown:
        raise DataError(f"{where}: column role {unknown[0]!r} is not supported.", nearest(unknown[0], list(_COLUMNS)))
    if texts == {"prompt": "text"}:  # how LLaMA-Factory writes pre-training text
        return {"text": "text"}
    return {_COLUMNS[role]: column for role, column in texts.items()}


def _texts(where: str, entry: dict[str, Any], key: str) -> dict[str, str]:
    values = entry.get(key) or {}
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise DataError(f"{where}: {key} must be an object of names.")
    return values
