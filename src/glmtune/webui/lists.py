"""Lists to choose models, runs and data from: what lies under the roots, with the names it is shown by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from glmtune.data.files import open_data_file
from glmtune.errors import GlmtuneError
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.paths import inside
from glmtune.webui.root_walk import MAX_DEPTH, MAX_FOLDERS, RootContents, walk_roots
from glmtune.webui.texts import text

Choices = list[tuple[str, str]]
"""Names, and the paths behind them."""
MAX_PATHS = 200
"""Paths of each kind in a list."""
MAX_ENTRIES = 300
"""Entries of catalogs in a list."""
MAX_COUNTED_BYTES = 8 * 2**20
"""Of a file whose rows are counted for its name in a list."""
_row_counts: dict[tuple[str, int, int], int | None] = {}


class RootLists:
    """The lists of a page. The roots are walked once for all of them, when the first one is asked for.

    Args:
        context: with the roots.
    """

    def __init__(self, context: Context):
        self._context = context
        self._cut: dict[str, int] = {}

    @cached_property
    def contents(self) -> RootContents:
        """What the walk found."""
        return walk_roots(self._context.roots)

    @cached_property
    def runs(self) -> Choices:
        """Runs, the newest first."""
        return self._name_paths("runs", self.contents.runs)

    @cached_property
    def models(self) -> Choices:
        """Folders of checkpoints."""
        return self._name_paths("models", self.contents.models)

    @cached_property
    def targets(self) -> Choices:
        """Whatever has weights: runs, the newest first, then checkpoint folders."""
        return list(dict.fromkeys([*self.runs, *self.models]))

    @cached_property
    def datasets(self) -> Choices:
        """Entries of every dataset_info.json under the roots by name, then data files."""
        entries: Choices = []
        for entry in self._list_entries():
            if len(entries) == MAX_ENTRIES:
                self._cut["entries"] = MAX_ENTRIES
                break
            entries.append(entry)
        return [*entries, *self._name_paths("data", self.contents.data)]

    def describe_limits(self, lang: str) -> list[str]:
        """What is missing in the lists that were asked for, for the user."""
        notes = [text(f"lists.cut_{kind}", lang, limit=f"{limit:,}") for kind, limit in self._cut.items()]
        if self.contents.is_cut:
            notes.append(text("lists.cut_folders", lang, limit=f"{MAX_FOLDERS:,}", depth=MAX_DEPTH))
        return notes

    def _name_paths(self, kind: str, paths: Sequence[Path]) -> Choices:
        if len(paths) > MAX_PATHS:
            self._cut[kind] = MAX_PATHS
        return [(self._context.shorten(path), str(path)) for path in paths[:MAX_PATHS]]

    def _list_entries(self) -> Iterator[tuple[str, str]]:
        for catalog in self.contents.catalogs:
            for name, entry in (find_json_object(catalog) or {}).items():
                if isinstance(entry, dict):
                    yield _describe_entry(self._context, catalog.parent, str(name), entry), f"{catalog}:{name}"


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
    if status.st_size > MAX_COUNTED_BYTES or not path.is_file():
        return None
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _row_counts:
        try:
            _row_counts[key] = sum(1 for _ in open_data_file(path).read_rows())
        except (GlmtuneError, OSError, ValueError, json.JSONDecodeError):
            _row_counts[key] = None
    return _row_counts[key]
