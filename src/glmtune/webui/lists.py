"""Lists to choose models, runs and data from: what lies under the roots, with the names it is shown by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from glmtune.data.files import open_data_file
from glmtune.errors import GlmtuneError
from glmtune.utils.io import find_json_object
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.paths import inside
from glmtune.webui.root_walk import RootContents, walk_roots

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
        cut_roots: roots of which some folders were not looked at, see `root_walk.RootContents`.
    """

    choices: Choices
    count: int
    cut_roots: list[Path]


class RootLists:
    """The lists of a page. The roots are walked once for all of them, when the first one is asked for.

    Args:
        context: with the roots.
    """

    def __init__(self, context: Context):
        self._context = context

    @cached_property
    def contents(self) -> RootContents:
        """What the walk found."""
        return walk_roots(self._context.roots)

    def find_runs(self, search: str = "") -> FoundChoices:
        """Runs, the newest first, with all words of a search in their path."""
        return self._find_paths(self.contents.runs, search)

    def find_models(self, search: str = "") -> FoundChoices:
        """Folders of checkpoints, with all words of a search in their path."""
        return self._find_paths(self.contents.models, search)

    def find_targets(self, search: str = "") -> FoundChoices:
        """Runs, the newest first, then checkpoint folders, with all words of a search in their path."""
        return self._find_paths([*self.contents.runs, *self.contents.models], search)

    def find_datasets(self, search: str = "") -> FoundChoices:
        """Entries of every dataset_info.json under the roots by name, then data files, with all words of a search in
        their name."""
        entries = [each for each in _list_entries(self.contents.catalogs) if _matches(f"{each[0]}:{each[1]}", search)]
        files = self._find_paths(self.contents.data, search)
        # Rows are counted for those alone that are shown.
        choices = [
            (_describe_entry(self._context, catalog.parent, name, entry), f"{catalog}:{name}")
            for catalog, name, entry in entries[:MAX_CHOICES]
        ]
        choices += files.choices[: MAX_CHOICES - len(choices)]
        return FoundChoices(choices, len(entries) + files.count, files.cut_roots)

    def _find_paths(self, paths: Sequence[Path], search: str) -> FoundChoices:
        matching = [path for path in dict.fromkeys(paths) if _matches(str(path), search)]
        choices = [(self._context.shorten(path), str(path)) for path in matching[:MAX_CHOICES]]
        return FoundChoices(choices, len(matching), self.contents.cut_roots)


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
