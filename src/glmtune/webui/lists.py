"""Lists to choose models, runs and data from: what lies under the roots, with the names it is shown by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.data.files import CATALOG_FILE, open_data_file
from glmtune.errors import GlmtuneError
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.paths import Kind, find_paths, inside, list_paths

Choices = list[tuple[str, str]]
"""Names, and the paths behind them."""
_MAX_COUNTED_BYTES = 8 * 2**20
MAX_CHOICES = 200
"""That a browser is sent at a time; the others are found by a search."""
_row_counts: dict[tuple[str, int, int], int | None] = {}


@dataclass(frozen=True)
class FoundChoices:
    """What a user may choose from.

    Attributes:
        choices: the first `MAX_CHOICES` that match.
        count: all that match.
        cut_roots: roots of which some folders were not looked at, see `paths.FoundPaths`.
    """

    choices: Choices
    count: int
    cut_roots: list[Path]


def list_choices(context: Context, *kinds: Kind) -> Choices:
    """Paths under the roots with the names they are shown by."""
    paths = [path for kind in kinds for path in list_paths(context.roots, kind)]
    return [(context.shorten(path), path) for path in dict.fromkeys(paths)]


def list_targets(context: Context) -> Choices:
    """Whatever has weights: runs, the newest first, then checkpoint folders."""
    return find_targets(context, "").choices


def list_datasets(context: Context) -> Choices:
    """Entries of every dataset_info.json under the roots by name, then data files."""
    return find_datasets(context, "").choices


def find_targets(context: Context, search: str) -> FoundChoices:
    """Runs, the newest first, then checkpoint folders, with all words of a search in their path."""
    found = [find_paths(context.roots, kind) for kind in ("runs", "models")]
    paths = dict.fromkeys(path for each in found for path in each.paths)
    matching = [path for path in paths if _matches(str(path), search)]
    choices = [(context.shorten(path), str(path)) for path in matching[:MAX_CHOICES]]
    return FoundChoices(choices, len(matching), list(dict.fromkeys(root for each in found for root in each.cut_roots)))


def find_datasets(context: Context, search: str) -> FoundChoices:
    """Entries of every dataset_info.json under the roots by name, then data files, with all words of a search in their
    name."""
    found = find_paths(context.roots, "data")
    catalogs = [path for path in found.paths if path.name == CATALOG_FILE]
    entries = [each for each in _list_entries(catalogs) if _matches(f"{each[0]}:{each[1]}", search)]
    files = [path for path in found.paths if path.name != CATALOG_FILE and _matches(str(path), search)]
    # Rows are counted for those alone that are shown.
    choices = [
        (_describe_entry(context, catalog.parent, name, entry), f"{catalog}:{name}")
        for catalog, name, entry in entries[:MAX_CHOICES]
    ]
    choices += [(context.shorten(path), str(path)) for path in files[: MAX_CHOICES - len(choices)]]
    return FoundChoices(choices, len(entries) + len(files), found.cut_roots)


def _matches(name: str, search: str) -> bool:
    return all(word in name.casefold() for word in search.casefold().split())


def _list_entries(catalogs: list[Path]) -> Iterator[tuple[Path, str, dict[str, Any]]]:
    for catalog in catalogs:
        for name, entry in (find_json_object(catalog) or {}).items():
            if isinstance(entry, dict):
                yield catalog, str(name), entry


def _describe_entry(context: Context, folder: Path, name: str, entry: dict[str, Any]) -> str:
    """Name, number of rows and format: `alpaca_zh_demo · 300 rows · alpaca`."""
    parts = [name]
    file = entry.get("file_name")
    if isinstance(file, str) and file:
        try:
            rows = count_rows(inside(context.roots, str(folder / file)))
        except PathError:
            rows = None
        parts += [f"{rows:,}"] if rows is not None else []
    else:
        parts += [str(entry[key]) for key in ("hf_hub_url", "ms_hub_url") if isinstance(entry.get(key), str)][:1]
    return " · ".join([*parts, str(entry.get("formatting") or "alpaca")])


def count_rows(path: Path) -> int | None:
    """Number of rows of a file that is not large; None if it is, or cannot be read. Counted once for each content."""
    try:
        status = path.stat()
    except OSError:
        return None
    if status.st_size > _MAX_COUNTED_BYTES or not path.is_file():
        return None
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _row_counts:
        try:
            _row_counts[key] = sum(1 for _ in open_data_file(path).read_rows())
        except (GlmtuneError, OSError, ValueError, json.JSONDecodeError):
            _row_counts[key] = None
    return _row_counts[key]
