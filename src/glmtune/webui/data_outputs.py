"""New files for the rows of data sets: their names, and entries that name their columns as those of the old ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glmtune.data.catalog import read_entry
from glmtune.data.check_fix import FixResult
from glmtune.data.files import CATALOG_FILE
from glmtune.data.sources import DataSource
from glmtune.errors import ConfigError
from glmtune.utils.io import write_json
from glmtune.webui.context import Context
from glmtune.webui.paths import inside

FOLDER = "repaired"
"""Folder in the first root for rows whose columns are named in a dataset_info.json."""
_KEPT_KEYS = ("formatting", "columns", "tags", "ranking", "num_samples")
"""Of an entry, what is as true of the new rows."""


def suggest_outputs(context: Context, sources: Sequence[DataSource]) -> list[str]:
    """A new file for the rows of each data set: in the first root; of an entry of a dataset_info.json in a folder of
    its own, beside an entry that names its columns too."""
    outputs: list[str] = []
    for source in sources:
        entry = read_entry(source.name)
        name = source.name.rpartition(":")[2] if entry is not None else source.name
        stem = (Path(name).name.partition(".")[0] or "rows").replace("*", "").strip("-?[]") or "rows"
        folder = f"{FOLDER}/{stem}/" if entry is not None else ""
        outputs.append(_find_free(context, folder, stem, outputs))
    return outputs


def _find_free(context: Context, folder: str, stem: str, taken: Sequence[str]) -> str:
    number = 1
    while True:
        mark = f"-{number}" if number > 1 else ""
        place = f"{folder[:-1]}{mark}/{stem}-clean.jsonl" if folder else f"{stem}-clean{mark}.jsonl"
        path = context.roots[0] / place
        if place not in taken and not path.exists() and not (folder and path.parent.exists()):
            return place
        number += 1


def prepare_outputs(context: Context, sources: Sequence[DataSource], names: Sequence[str]) -> list[Path]:
    """The new files inside the roots, with the folders that were suggested for them.

    Raises:
        GlmtuneError: outside of the roots, not one for each data set, or in a folder whose dataset_info.json is not
            ours to change.
    """
    if len(names) != len(sources):
        raise ConfigError("The data were chosen anew.", "Reload the page and name a new file for each data set.")
    paths = [inside(context.roots, name) for name in names]
    if len(set(paths)) < len(paths):
        raise ConfigError(f"{context.shorten(paths[0])}: named twice.", "Give each data set a file of its own.")
    for source, path in zip(sources, paths, strict=True):
        if read_entry(source.name) is None:
            continue
        if (path.parent / CATALOG_FILE).exists():
            problem = f"{context.shorten(path.parent)}: has a {CATALOG_FILE} already."
            raise ConfigError(problem, "Choose a new folder: the columns of the rows are named in one beside them.")
        path.parent.mkdir(parents=True, exist_ok=True)
    return paths


def write_entries(sources: Sequence[DataSource], fixes: Sequence[FixResult]) -> list[str]:
    """Name the columns of new files as the entries of the old ones did.

    Returns:
        By what each new file is chosen: its path, or `dataset_info.json:NAME`; the old name where nothing was changed.
    """
    chosen = []
    for source, fix in zip(sources, fixes, strict=True):
        entry = read_entry(source.name)
        has_rows = fix.is_written and fix.clean_rows > 0
        if entry is None or not has_rows:
            chosen.append(str(fix.clean) if has_rows else source.name)
            if entry is not None and not fix.is_written and not any(fix.clean.parent.iterdir()):
                fix.clean.parent.rmdir()  # made for the new file
            continue
        columns = {key: value for key, value in entry.items() if key in _KEPT_KEYS}
        catalog = fix.clean.parent / CATALOG_FILE
        write_json(catalog, {fix.clean.stem: {"file_name": fix.clean.name, **columns}})
        chosen.append(f"{catalog}:{fix.clean.stem}")
    return chosen
