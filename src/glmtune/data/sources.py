"""Data sources: open files and hub data sets, and read their rows as conversations without holding them in memory."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.config_parsing import build_dataclass
from glmtune.data.catalog import SourceSpec, resolve_source
from glmtune.data.conversation import WORSE_ANSWER, Conversation, InvalidRow, InvalidRowError, RawRow
from glmtune.data.files import find_files, open_data_file
from glmtune.data.formats import (
    FormatOptions,
    Preference,
    detect_format,
    list_formats,
    make_message_keys,
    read_conversation,
)
from glmtune.data.preference_rows import PreferenceFormat
from glmtune.data.prompt_rows import read_prompt
from glmtune.data.row_edits import RowEdits, apply_edits
from glmtune.data.row_format import RowFormat, list_keys
from glmtune.data.row_repairs import RepairScope
from glmtune.data.source_rows import FileRows, SourceRows, open_hub_dataset, require_same_schema
from glmtune.data.unread_keys import UnreadKeys
from glmtune.errors import ConfigError, DataError
from glmtune.utils.console import count_noun

__all__ = ["Conversation", "DataSource", "InvalidRow", "SourceSpec", "open_source", "open_sources", "sample_sources"]

# Raised whenever the same file gives other conversations than before; older encoded caches are then not found.
READING_RULES = 5
# Rows of a file in which its format is looked for.
_LOOK_AHEAD = 200
_MAX_INVALID_LINES = 20


class DataSource:
    """An opened source. Every iteration reads it again; no rows are held in memory.

    Attributes:
        name: by which the user gave it.
        spec: the same with all settings filled in.
        files: its files; empty for hub data.
        format: the name of its format, for messages.
        notes: for the user.
        invalid_lines: descriptions of the first lines, at most 20, that the last iteration skipped.
        invalid_line_count: number of all lines that it skipped.
        row_count: number of all rows that it read.
        worse_answers: number of rows with a worse answer alone that it left out (`data.preference: chosen`).
        better_answers: number of preference rows of which it read the better answer.
        conversation_count: number of all rows that it read as conversations.
        unread_keys: columns and keys of messages that it did not read.
        edits: rows that a user changed, by their number from 1; set it before an iteration.
    """

    def __init__(
        self,
        name: str,
        spec: SourceSpec,
        rows: SourceRows,
        formats: list[RowFormat],
        seed: int,
        reads_prompts: bool = False,
    ):
        self.name = name
        self.spec = spec
        self.seed = seed
        self.files = [file.path for file in rows.files] if isinstance(rows, FileRows) else []
        self.notes: list[str] = []
        self.invalid_lines: list[str] = []
        self.invalid_line_count = 0
        self.row_count = 0
        self.worse_answers = 0
        self.better_answers = 0
        self.conversation_count = 0
        self.unread_keys = UnreadKeys()
        self.edits: RowEdits = {}
        self._rows = rows
        self._formats = formats
        self._reads_prompts = reads_prompts
        self._preference = next(item for item in formats if isinstance(item, PreferenceFormat))
        self._format, self._first_row = _detect_source_format(name, rows, formats)
        # Of the rows with one answer among preference rows; the first such row decides.
        self._ordinary: tuple[RowFormat, RawRow] | None = None
        self._count: int | None = None
        self.format = self._format.name

    def __iter__(self) -> Iterator[Conversation]:
        """All conversations. Invalid lines are skipped, counted and listed.

        Raises:
            DataError: a row that cannot be used, a file that changed or is damaged.
        """
        for item in self.scan_rows():
            if isinstance(item, Conversation):
                yield item
            elif not item.is_skipped:
                raise item.to_error()

    def scan_rows(self) -> Iterator[Conversation | InvalidRow]:
        """All conversations, and an `InvalidRow` in place of every row that cannot become one.

        Raises:
            DataError: the reading cannot continue: a file that changed or is damaged, an invalid JSON array.
        """
        lines = self.invalid_lines = []
        count = self.invalid_line_count = 0
        unread_keys = self.unread_keys = UnreadKeys()
        number = worse_answers = self.worse_answers = better_answers = self.better_answers = 0
        self.conversation_count = 0
        self.row_count = 0
        for row_count, row in enumerate(apply_edits(self._rows.read_rows(), self.edits), start=1):
            result = row if isinstance(row, InvalidRow) else self.convert_row(row)
            if isinstance(result, Conversation):
                result.number, number = number, number + 1
                better_answers += result.is_better_answer
                if self.unread_keys is unread_keys:  # otherwise a later iteration has begun
                    self.better_answers, self.conversation_count = better_answers, number
                unread_keys.add_row(result, row_count)
            elif result.kind == WORSE_ANSWER:
                worse_answers += 1
                if self.unread_keys is unread_keys:  # otherwise a later iteration has begun
                    self.worse_answers = worse_answers
            elif result.is_skipped:
                count += 1
                if count <= _MAX_INVALID_LINES:
                    lines.append(str(result))
                if self.invalid_lines is lines:  # otherwise a later iteration has begun
                    self.invalid_line_count = count
            if self.unread_keys is unread_keys:
                self.row_count = row_count
            yield result

    def describe_rows(self) -> list[str]:
        """What the last iteration did not use of the rows, for the user."""
        notes = [self.unread_keys.describe()] if self.unread_keys.where else []
        ordinary = self.conversation_count - self.better_answers
        if self.better_answers and ordinary:
            notes.append(
                f"{count_noun(self.better_answers, 'preference row')}, the better answer alone, and "
                f"{count_noun(ordinary, 'row')} with one answer (data.preference=chosen)"
            )
        if self.worse_answers:
            rows = count_noun(self.worse_answers, "row")
            notes.append(f"{rows} with a worse answer left out (data.preference=chosen)")
        return notes

    def count_conversations(self) -> int:
        """Number of conversations; the first call reads them all.

        Raises:
            DataError: as in iteration.
        """
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count

    def compute_digest(self) -> str:
        """Hash the content and all settings that affect the conversations; the paths of the files do not.

        Raises:
            DataError: a file changed since it was opened.
        """
        hasher = hashlib.sha256()
        self._rows.update_hash(hasher)
        spec = self.spec
        settings = [
            *(READING_RULES, self.format, self._format.cache_key, spec.split, spec.subset),
            *((spec.weight, spec.num_samples, self.seed) if self.is_sampled else ()),
            *(() if spec.repeat else ("no repeat",)),
            *(("prompts",) if self._reads_prompts else ()),
        ]
        hasher.update(json.dumps(settings).encode())
        return hasher.hexdigest()

    @property
    def reads_labels(self) -> bool:
        """Whether its rows are answers with a label (`data.preference: labels`)."""
        return self._preference.reads_labels

    @property
    def is_sampled(self) -> bool:
        """Whether a weight or a sample changes how often its rows are used."""
        return self.spec.weight != 1 or self.spec.num_samples is not None

    @property
    def repair_scope(self) -> RepairScope:
        """What repairs of its rows need to know of them."""
        columns = {name for row_format in self._formats for name in row_format.get_columns()}
        columns -= {*self._preference.label, *self._preference.margin}
        return RepairScope(frozenset(columns), make_message_keys(self.spec.tags) if self.spec.tags else None)

    def convert_row(self, row: RawRow) -> Conversation | InvalidRow:
        """Read a row as training does; lists in it may be changed."""
        try:
            if self._preference.is_required and not self._preference.matches(row.values):
                raise self._preference.make_missing_error()
            if self._reads_prompts:
                row = RawRow({key: value for key, value in row.values.items() if value is not None}, row.where)
                return read_prompt(detect_format(self._formats, row.values) or self._format, row)
            return read_conversation(self._choose_format(row), row)
        except InvalidRowError as error:
            return error.to_invalid_row(row.where)

    def _choose_format(self, row: RawRow) -> RowFormat:
        """The format to read a row with: that of the source, or of preference rows, which may be among others.

        Raises:
            InvalidRowError: the row has another format.
        """
        if self._preference.matches(row.values):  # first, for it matches the format of its columns too
            return self._preference
        if self._format is not self._preference:
            if self._format.matches(row.values):
                return self._format
            expected, first = self._format, self._first_row
        elif self._ordinary is not None:
            expected, first = self._ordinary
        else:
            expected, first = self._format, self._first_row
        other = detect_format(self._formats, row.values)
        if other is None or other == expected:
            return expected
        if self._format is self._preference and self._preference.uses_chosen and self._ordinary is None:
            self._ordinary = other, row
            return other
        raise _make_mixed_error(other, row, expected, first)


def open_source(
    spec: SourceSpec | str | Path,
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    seed: int = 42,
    preference: Preference = "refuse",
) -> DataSource:
    """Open a source: find its files, and detect their encoding and the format of their rows.

    Args:
        spec: what to open, see `glmtune.data.catalog`.
        columns: names of columns by role (`column_formats.COLUMN_ROLES`), if they are not the usual ones; those of the
            spec have priority.
        format: of the rows, if it should not be detected; that of the spec has priority.
        seed: of sampling.
        preference: what to do with preference rows.

    Raises:
        DataError: no such data, a damaged or empty file, no known format, or files of different formats.
        ConfigError: an unknown column role, format or tag, or the hub's client is not installed.
    """
    source_spec = spec if isinstance(spec, SourceSpec) else SourceSpec(str(spec))
    resolved, is_on_hub = resolve_source(source_spec, preference != "refuse")
    resolved = replace(resolved, columns={**resolved.columns, **(columns or {}), **source_spec.columns})
    if source_spec.format is None and format is not None:
        resolved = replace(resolved, format=format)
    formats = list_formats(FormatOptions(resolved.columns, resolved.format, resolved.tags, preference))
    reads_prompts = preference == "prompts"
    if is_on_hub:
        hub_rows = open_hub_dataset(resolved.path, resolved.hub, resolved.split or "train", resolved.subset)
        return DataSource(source_spec.path, resolved, hub_rows, formats, seed, reads_prompts)
    if resolved.split not in (None, "train"):
        raise ConfigError(f"{source_spec.path}: split is for hub data; this is a file.", "Give the file of that split.")
    files = [open_data_file(path, resolved.columns.values()) for path in find_files(resolved.path)]
    require_same_schema(files)
    source = DataSource(source_spec.path, resolved, FileRows(files), formats, seed, reads_prompts)
    source.notes += [note for file in files for note in file.notes]
    return source


def open_sources(
    entries: str | Path | Mapping[str, Any] | list[Any],
    columns: Mapping[str, str] | None = None,
    format: str | None = None,
    seed: int = 42,
    preference: Preference = "refuse",
) -> list[DataSource]:
    """Open what `data.train` or `data.eval` holds: a path, or a list of paths and of dicts with `SourceSpec`'s keys.

    Raises:
        ConfigError: an entry with an unknown key (the message names the most similar one), a wrong type or no path.
        DataError: as in `open_source`.
    """
    entries = entries if isinstance(entries, list) else [entries]
    if not entries:
        raise ConfigError("The list of data is empty.", "Give at least one file, folder or data set.")
    specs = [_parse_entry(entry, i) for i, entry in enumerate(entries, start=1)]
    return [open_source(spec, columns, format, seed, preference) for spec in specs]


def read_columns(entry: str) -> list[str]:
    """The columns of the first row of local data, whether or not its format is known; empty for hub data.

    Args:
        entry: a path or an entry of a `dataset_info.json`, see `glmtune.data.catalog`.

    Raises:
        DataError: no such data, or a damaged file.
    """
    resolved, is_on_hub = resolve_source(SourceSpec(entry), uses_chosen=True)
    if is_on_hub:
        return []
    for path in find_files(resolved.path):
        for row in open_data_file(path).read_rows():
            if isinstance(row, RawRow):
                return list(row.values)
    return []


def sample_sources(sources: Iterable[DataSource]) -> Iterator[Conversation]:
    """Read sources one after the other, their rows as often as `weight` and `num_samples` say.

    A source of n rows gives `weight * (num_samples or n)` rows, rounded: complete passes, then a random part of a last
    pass, drawn by the source's seed. Rows are in file order; training shuffles them. A repeated row keeps its `number`.

    Raises:
        DataError: as in iteration.
    """
    first = 0
    for source in sources:
        first += yield from _sample_source(source, first)


def _sample_source(source: DataSource, first: int) -> Generator[Conversation, None, int]:
    """The rows of one source, numbered from `first`; returns the number of its rows."""
    spec = source.spec
    if not source.is_sampled:
        return (yield from _number_rows(source, first))
    count = source.count_conversations()
    size = spec.num_samples or count
    size = size if spec.repeat else min(size, count)
    passes, remainder = divmod(max(1, int(spec.weight * size + 0.5)), max(1, count))
    for _ in range(passes):
        yield from _number_rows(source, first)
    if not remainder:
        return count
    # Knuth's selection sampling (The Art of Computer Programming 3.4.2, algorithm S): exactly `remainder` rows, every
    # subset of them equally likely, in constant memory.
    generator = random.Random(source.seed)
    for rows_left, conversation in zip(range(count, 0, -1), _number_rows(source, first), strict=True):
        if generator.random() * rows_left < remainder:
            remainder -= 1
            yield conversation
    return count


def _number_rows(source: DataSource, first: int) -> Generator[Conversation, None, int]:
    count = 0
    for conversation in source:
        count += 1
        conversation.number += first
        yield conversation
    return count


def _parse_entry(entry: Any, number: int) -> SourceSpec:
    if isinstance(entry, (str, Path)):
        return SourceSpec(str(entry))
    where = f"data entry {number}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} must be a path or keys and values, not {entry!r}.", "For example: path: a.json")
    if not entry.get("path") and set(entry) <= set(SourceSpec.__dataclass_fields__):
        raise ConfigError(f"{where} has no path.", "For example: path: a.json")
    return build_dataclass(SourceSpec, entry, where)


def _detect_source_format(name: str, rows: SourceRows, formats: list[RowFormat]) -> tuple[RowFormat, RawRow]:
    """Detect the common format of all files by the first rows of each; also return the first row of that format.

    Raises:
        DataError: a file without usable rows or with unknown columns, or files of different formats.
    """
    if not isinstance(rows, FileRows):
        return _detect_first_format(name, rows.read_rows(), formats)
    first: tuple[RowFormat, RawRow] | None = None
    for file in rows.files:
        row_format, row = _detect_first_format(str(file.path), file.read_rows(), formats)
        if first is None:
            first = row_format, row
        elif row_format != first[0] and not _is_preference_used(row_format, first[0]):
            raise _make_mixed_error(row_format, row, *first).to_invalid_row(row.where).to_error()
    assert first is not None
    return first


def _is_preference_used(row_format: RowFormat, other: RowFormat) -> bool:
    """Whether one of two formats is that of preference rows, whose better answers may be mixed with other rows."""
    return any(isinstance(each, PreferenceFormat) and each.uses_chosen for each in (row_format, other))


def _detect_first_format(
    name: str, rows: Iterator[RawRow | InvalidRow], formats: list[RowFormat]
) -> tuple[RowFormat, RawRow]:
    first: RawRow | None = None
    first_invalid: InvalidRow | None = None
    for _, row in zip(range(_LOOK_AHEAD), rows, strict=False):
        if isinstance(row, InvalidRow):
            first_invalid = first_invalid or row
            continue
        row_format = detect_format(formats, row.values)
        if row_format is not None:
            return row_format, row
        first = first or row
    if first is None:
        reason = f" The first: {first_invalid}." if first_invalid else ""
        raise DataError(
            f"{name}: no usable rows.{reason}", "Give one JSON object per line, or a JSON array of objects."
        )
    plain = [row_format for row_format in formats if not isinstance(row_format, PreferenceFormat)]
    if len(plain) == 1:  # given by the user: say why the row does not match it
        try:
            read_conversation(plain[0], first)
        except InvalidRowError as error:
            raise error.to_invalid_row(first.where).to_error() from None
    problem = f"{first.where}: no known columns (this row has {list_keys(first.values)})."
    if any(isinstance(row_format, PreferenceFormat) and row_format.reads_pairs for row_format in formats):
        names = " ".join(f"--set data.columns.{role}=COLUMN" for role in ("prompt", "chosen", "rejected"))
        raise DataError(problem, f"Name those of the question and the two answers: {names}")
    names = "; ".join(_list_format_names(plain))
    raise DataError(
        problem,
        f"Known: {names}. Others: give their names in data.columns, e.g. --set data.columns.prompt=question.",
    )


def _list_format_names(formats: list[RowFormat]) -> list[str]:
    """The names of formats, of those with the same column of questions the first."""
    first_names: dict[str, str] = {}
    for row_format in formats:
        first_names.setdefault(getattr(row_format, "prompt", row_format.name), row_format.name)
    return list(dict.fromkeys(first_names.values()))


def _make_mixed_error(other: RowFormat, row: RawRow, row_format: RowFormat, first: RawRow) -> InvalidRowError:
    return InvalidRowError(
        "mixed-formats",
        f"this row is {other.name} (it has {list_keys(row.values)}), but {first.where} is {row_format.name} "
        f"(it has {list_keys(first.values)})",
        "Give files of different formats as separate entries of data.train.",
    )
