"""Data sources as conversations: opened once, read as often as wanted, never held in memory."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from glmtune.config_parsing import from_tree
from glmtune.data.catalog import SourceSpec, locate
from glmtune.data.conversation import BadRow, Conversation, Fault, Row
from glmtune.data.files import DataFile, find_files, open_file
from glmtune.data.formats import Wanted, candidates, detect, read_row
from glmtune.data.formats_columns import Layout, keys_of
from glmtune.data.hub_datasets import open_hub
from glmtune.errors import ConfigError, DataError

__all__ = ["Conversation", "Fault", "Source", "SourceSpec", "open_source", "open_sources", "weighted"]

# Raised whenever the same file gives other conversations than before; encoded copies are then made anew.
_RULES = 2
# So many rows without a known layout, or lines that are no rows, before the first file is given up.
_LOOK_AHEAD = 200
_BROKEN_KEPT = 20


class Rows(Protocol):
    """Where a source's rows come from."""

    def rows(self) -> Iterator[Row | Fault]:
        """All rows in order."""

    def hash_into(self, hasher: Any) -> None:
        """Add the content to a hash."""


class FileRows:
    """The rows of several files, one after the other."""

    def __init__(self, files: list[DataFile]):
        self.files = files

    def rows(self) -> Iterator[Row | Fault]:
        for file in self.files:
            yield from file.rows()

    def hash_into(self, hasher: Any) -> None:
        for file in self.files:
            content = hashlib.sha256(file.suffix.encode())
            file.check_unchanged()
            with file.path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    content.update(block)
            file.check_unchanged()
            hasher.update(content.digest())


class Source:
    """One opened source. Every iteration reads it anew; nothing of it stays in memory.

    Attributes:
        name: what the user named.
        spec: the same with everything filled in.
        files: its files; empty for hub data.
        format: the layout of its rows, as it is said to the user.
        notes: what the user should know of it.
        broken: a sentence for each of the first lines, at most 20, that were left out in the last iteration.
        broken_count: how many lines those were in all.
    """

    def __init__(self, name: str, spec: SourceSpec, data: Rows, layouts: list[Layout], seed: int):
        self.name = name
        self.spec = spec
        self.seed = seed
        self.files = [file.path for file in data.files] if isinstance(data, FileRows) else []
        self.notes: list[str] = []
        self.broken: list[str] = []
        self.broken_count = 0
        self._data = data
        self._layouts = layouts
        self._layout, self._first = _settle(name, data, layouts)
        self._count: int | None = None
        self.format = self._layout.name

    def __iter__(self) -> Iterator[Conversation]:
        """All conversations; broken lines are left out, counted in `broken_count` and listed in `broken`.

        Raises:
            DataError: a row that cannot be used, a file that changed or is damaged.
        """
        for item in self.scan():
            if isinstance(item, Conversation):
                yield item
            elif not item.left_out:
                raise item.error()

    def scan(self) -> Iterator[Conversation | Fault]:
        """All conversations, and in their place a `Fault` for every row that is none.

        Raises:
            DataError: what ends the reading: a file that changed or is damaged, a broken JSON array.
        """
        broken = self.broken = []
        count = self.broken_count = 0
        number = 0
        for item in self._data.rows():
            outcome = item if isinstance(item, Fault) else self._read(item)
            if isinstance(outcome, Fault) and outcome.left_out:
                count += 1
                if count <= _BROKEN_KEPT:
                    broken.append(str(outcome))
                if self.broken is broken:  # else a later iteration has begun
                    self.broken_count = count
            elif isinstance(outcome, Conversation):
                outcome.number, number = number, number + 1
            yield outcome

    def count(self) -> int:
        """How many conversations there are; the first call reads them all.

        Raises:
            DataError: as in iteration.
        """
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def digest(self) -> str:
        """A hash of the content and of all that decides what comes out of it; the files' places are no part of it.

        Raises:
            DataError: a file changed since it was opened.
        """
        hasher = hashlib.sha256()
        self._data.hash_into(hasher)
        spec = self.spec
        settings = [
            *(_RULES, self.format, repr(self._layout), spec.split, spec.subset),
            *((spec.weight, spec.num_samples, self.seed) if self.sampled else ()),
        ]
        hasher.update(json.dumps(settings).encode())
        return hasher.hexdigest()

    @property
    def sampled(self) -> bool:
        """Whether its rows are taken more or less often than once each, by the seed."""
        return self.spec.weight != 1 or self.spec.num_samples is not None

    def _read(self, row: Row) -> Conversation | Fault:
        try:
            if not self._layout.fits(row.values):
                other = detect(self._layouts, row.values)
                if other is not None:
                    raise _mixed(other, row, self._layout, self._first)
            return read_row(self._layout, row)
        except BadRow as bad:
            return bad.at(row.where)


def open_source(
    spec: SourceSpec | str | Path,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    seed: int = 42,
) -> Source:
    """Open a source: find its files, see how they are encoded and what layout their rows have.

    Args:
        spec: what to open; `glmtune.data.catalog` says what may be named.
        columns: names of columns by role (prompt, input, response, history, system, text, messages, tools), where
            they are not the usual ones; the spec's own go first.
        format: the layout, where detection should not decide; the spec's own goes first.
        seed: of sampling.

    Raises:
        DataError: no such data, a damaged or empty file, no known layout, or files of different layouts.
        ConfigError: an unknown column role, format or tag, or a hub's client that is not installed.
    """
    given = spec if isinstance(spec, SourceSpec) else SourceSpec(str(spec))
    found, on_hub = locate(given)
    found = replace(found, columns={**found.columns, **(columns or {}), **given.columns})
    if given.format is None and format is not None:
        found = replace(found, format=format)
    layouts = candidates(Wanted(found.columns, found.format, found.tags))
    if on_hub:
        data: Rows = open_hub(found.path, found.hub, found.split, found.subset)
        return Source(given.path, found, data, layouts, seed)
    if found.split not in (None, "train"):
        raise ConfigError(f"{given.path}: split is for hub data; this is a file.", "Give the file of that split.")
    files = [open_file(path) for path in find_files(found.path)]
    _same_schema(files)
    source = Source(given.path, found, FileRows(files), layouts, seed)
    source.notes += [f"{file.path}: read as GB18030 (it is not UTF-8)" for file in files if file.encoding == "gb18030"]
    return source


def open_sources(
    entries: str | Path | Mapping[str, Any] | list[Any],
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    seed: int = 42,
) -> list[Source]:
    """Open what `data.train` or `data.eval` holds: a path, or a list of paths and of dicts with `SourceSpec`'s keys.

    Raises:
        ConfigError: an entry with an unknown key (the nearest is named), a wrong type or no path.
        DataError: as in `open_source`.
    """
    listed = entries if isinstance(entries, list) else [entries]
    if not listed:
        raise ConfigError("The list of data is empty.", "Give at least one file, folder or data set.")
    return [open_source(_spec(entry, number), columns, format, seed) for number, entry in enumerate(listed, start=1)]


def weighted(sources: Iterable[Source]) -> Iterator[Conversation]:
    """The sources' rows one source after the other, each as often as its `weight` and `num_samples` say.

    A source of n rows gives `weight * (num_samples or n)` rows, rounded: whole passes, then a random part of a last
    pass, drawn by row number with the source's seed. Rows stay in file order; shuffling is the training's. Their
    `number` tells which of them are one and the same row.

    Raises:
        DataError: as in iteration.
    """
    first = 0
    for source in sources:
        first += yield from _share(source, first)


def _share(source: Source, first: int) -> Generator[Conversation, None, int]:
    """The source's part of the rows, numbered from `first`; returns how many rows it has."""
    spec = source.spec
    if not source.sampled:
        return (yield from _numbered(source, first))
    count = source.count()
    whole, rest = divmod(max(1, int(spec.weight * (spec.num_samples or count) + 0.5)), max(1, count))
    for _ in range(whole):
        yield from _numbered(source, first)
    if not rest:
        return count
    # Knuth's selection sampling (The Art of Computer Programming 3.4.2, algorithm S): exactly `rest` rows, each set
    # of them equally likely, and only two numbers to remember.
    chance = random.Random(source.seed)
    for left, conversation in zip(range(count, 0, -1), _numbered(source, first), strict=True):
        if chance.random() * left < rest:
            rest -= 1
            yield conversation
    return count


def _numbered(source: Source, first: int) -> Generator[Conversation, None, int]:
    count = 0
    for conversation in source:
        count += 1
        conversation.number += first
        yield conversation
    return count


def _spec(entry: Any, number: int) -> SourceSpec:
    if isinstance(entry, (str, Path)):
        return SourceSpec(str(entry))
    where = f"data entry {number}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a path or keys and values, not {entry!r}.", "For example: path: a.json")
    if not entry.get("path") and set(entry) <= set(SourceSpec.__dataclass_fields__):
        raise ConfigError(f"{where} has no path.", "For example: path: a.json")
    return from_tree(SourceSpec, entry, where)


def _settle(name: str, data: Rows, layouts: list[Layout]) -> tuple[Layout, Row]:
    """The one layout of all files, by the first rows of each, and the row that shows it.

    Raises:
        DataError: a file without usable rows or with unknown columns, or two files that disagree.
    """
    if not isinstance(data, FileRows):
        return _first_layout(name, data.rows(), layouts)
    settled: tuple[Layout, Row] | None = None
    for file in data.files:
        layout, row = _first_layout(str(file.path), file.rows(), layouts)
        if settled is None:
            settled = layout, row
        elif layout != settled[0]:
            raise _mixed(layout, row, *settled).at(row.where).error()
    assert settled is not None
    return settled


def _first_layout(name: str, rows: Iterator[Row | Fault], layouts: list[Layout]) -> tuple[Layout, Row]:
    first: Row | None = None
    broken: Fault | None = None
    for _, item in zip(range(_LOOK_AHEAD), rows, strict=False):
        if isinstance(item, Fault):
            broken = broken or item
            continue
        layout = detect(layouts, item.values)
        if layout is not None:
            return layout, item
        first = first or item
    if first is None:
        reason = f" The first: {broken}." if broken else ""
        raise DataError(
            f"{name}: no usable rows.{reason}", "Give one JSON object per line, or a JSON array of objects."
        )
    if len(layouts) == 1:  # the user named it: say what is wrong with the row by it
        try:
            read_row(layouts[0], first)
        except BadRow as bad:
            raise bad.at(first.where).error() from None
    known = "; ".join(dict.fromkeys(layout.name for layout in layouts))
    raise DataError(
        f"{first.where}: no known columns (this row has {keys_of(first.values)}).",
        f"Known: {known}. Others: name them in data.columns, e.g. --set data.columns.prompt=question.",
    )


def _mixed(other: Layout, row: Row, layout: Layout, first: Row) -> BadRow:
    return BadRow(
        "mixed-formats",
        f"this row is {other.name} (it has {keys_of(row.values)}), but {first.where} is {layout.name} "
        f"(it has {keys_of(first.values)})",
        "Give files of different formats as separate entries of data.train.",
    )


def _same_schema(files: list[DataFile]) -> None:
    first: tuple[DataFile, dict[str, str]] | None = None
    for file in files:
        schema = file.schema()
        if schema is None:
            continue
        if first is None:
            first = file, schema
            continue
        for column in sorted(schema.keys() | first[1].keys()):
            here, there = schema.get(column, "missing"), first[1].get(column, "missing")
            if here != there and "null" not in (here, there):  # a column that is empty in one file has no type there
                raise DataError(
                    f"{file.path}: column {column!r} is {here}, but {there} in {first[0].path}.",
                    "Give files of different schemas as separate entries of data.train.",
                )
