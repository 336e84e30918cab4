"""Lists to choose models, runs and data from: what lies under the roots, with the names it is shown by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmtune.data.files import CATALOG_FILE, open_data_file
from glmtune.errors import GlmtuneError
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.paths import Kind, inside, list_paths, walk_folders

Choices = list[tuple[str, str]]
"""Names, and the paths behind them."""
_MAX_COUNTED_BYTES = 8 * 2**20
_MAX_ENTRIES = 300
_row_counts: dict[tuple[str, int, int], int | None] = {}


def list_choices(context: Context, *kinds: Kind) -> Choices:
    """Paths under the roots with the names they are shown by."""
    paths = [path for kind in kinds for path in list_paths(context.roots, kind)]
    return [(context.shorten(path), path) for path in dict.fromkeys(paths)]


def list_targets(context: Context) -> Choices:
    """Whatever has weights: runs, the newest first, then checkpoint folders."""
    return list_choices(context, "runs", "models")


def list_datasets(context: Context) -> Choices:
    """Entries of every dataset_info.json under the roots by name, then data files."""
    entries = list(_list_entries(context))
    return [*entries, *(choice for choice in list_choices(context, "data") if Path(choice[1]).name != CATALOG_FILE)]


def _list_entries(context: Context) -> Iterator[tuple[str, str]]:
    count = 0
    for root in context.roots:
        for folder, names in walk_folders(root):
            if CATALOG_FILE not in names:
                continue
            for name, entry in (find_json_object(folder / CATALOG_FILE) or {}).items():
                if isinstance(entry, dict) and count < _MAX_ENTRIES:
                    count += 1
                    yield _describe_entry(context, folder, str(name), entry), f"{folder / CATALOG_FILE}:{name}"


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
