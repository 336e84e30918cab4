"""Write the rows of checked files anew: clean and repaired ones to one file, refused ones, with reasons, to another."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from glmtune.config_parsing import suggest_key
from glmtune.data.check_kinds import ERROR, KINDS, Finding, Problem
from glmtune.data.check_rows import RowChecker, find_row_problems
from glmtune.data.conversation import Conversation, InvalidRow, RawRow
from glmtune.data.files import DataFile, open_data_file
from glmtune.data.row_edits import apply_edits
from glmtune.data.row_repairs import LINE_REPAIRS, REPAIRABLE, REPAIRS, TRIM, Values, parse_literal, trim_texts
from glmtune.data.source_rows import FileRows
from glmtune.data.sources import DataSource
from glmtune.errors import ConfigError, DataError
from glmtune.utils.file_access import require_writable
from glmtune.utils.operating_system import rename_new

REFUSED_SUFFIX, CHANGED_SUFFIX = ".refused.jsonl", ".changed.jsonl"
REMOVED_WARNINGS = ("duplicate", "contradicting-pair")
"""Kinds of warnings whose row is refused; an earlier one is kept."""
EDITED = "edited"
"""In place of the kind of a repair, for a row that a user changed."""
_MAX_ROUNDS = 4


@dataclass(frozen=True)
class FixPlan:
    """What is done with rows that have findings.

    Attributes:
        repaired: kinds of findings that are repaired where they can be.
        removed: kinds of warnings whose rows are refused; those with an error that is left are refused anyway.
        trims: whether white space at the ends of all texts is removed.
    """

    repaired: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset(REMOVED_WARNINGS)
    trims: bool = False

    @property
    def changes_rows(self) -> bool:
        """Whether rows may be written otherwise than they are in their file."""
        return bool(self.repaired) or self.trims


def make_fix_plan(repaired: Iterable[str], removed: Iterable[str] = REMOVED_WARNINGS, trims: bool = False) -> FixPlan:
    """The plan of kinds that a user names; `all` stands for all that can be repaired.

    Raises:
        ConfigError: a kind that is unknown, or has no repair.
    """
    kinds = set(repaired)
    if "all" in kinds:
        kinds = kinds - {"all"} | set(REPAIRABLE)
    unknown = next((kind for kind in sorted(kinds) if kind not in REPAIRABLE), None)
    if unknown is not None:
        raise ConfigError(f"{unknown}: no kind of findings with a repair.", suggest_key(unknown, list(REPAIRABLE)))
    unknown = next((kind for kind in removed if KINDS.get(kind) is None), None)
    if unknown is not None:
        raise ConfigError(f"{unknown}: no kind of findings.", suggest_key(unknown, list(KINDS)))
    return FixPlan(frozenset(kinds), frozenset(removed), trims)


@dataclass
class FixResult:
    """The written files, and their numbers of rows.

    Attributes:
        clean: file of the rows that are used, `clean_rows` of them.
        refused: file of the others.
        changed: file that says what was changed, of `changed_rows` of the clean rows.
        repairs: numbers of rows by kind of repair.
        is_written: false where nothing was to be changed, and so no file was written.
    """

    clean: Path
    refused: Path
    changed: Path
    clean_rows: int = 0
    refused_rows: int = 0
    changed_rows: int = 0
    repairs: Counter[str] = field(default_factory=Counter)
    is_written: bool = True

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a path is None if there was no such row, and so no file."""
        return {
            "clean": str(self.clean) if self.clean_rows else None,
            "clean_rows": self.clean_rows,
            "refused": str(self.refused) if self.refused_rows else None,
            "refused_rows": self.refused_rows,
            "changed": str(self.changed) if self.changed_rows else None,
            "changed_rows": self.changed_rows,
            "repairs": dict(self.repairs),
        }


class FixWriter:
    """Writes rows while they are checked. The files have temporary names until all rows are written."""

    def __init__(self, output: Path, needs_change: bool = False):
        """Check the names of the files.

        Args:
            output: file for the clean rows; those for the refused rows and for the changes are beside it.
            needs_change: whether nothing is written if all rows are clean and none was changed.

        Raises:
            ConfigError: not a .jsonl name, or one of the files exists.
        """
        if output.suffix != ".jsonl":
            raise ConfigError(f"--fix {output}: rows are written as JSON lines.", "Give a name that ends with .jsonl.")
        self.result = FixResult(output, output.with_suffix(REFUSED_SUFFIX), output.with_suffix(CHANGED_SUFFIX))
        self._needs_change = needs_change
        self._paths = (self.result.clean, self.result.refused, self.result.changed)
        require_writable(output.parent)
        for path in self._paths:
            if os.path.lexists(path):
                raise ConfigError(f"{path}: exists; --fix does not overwrite files.", "Give another name, or move it.")
        if not output.parent.is_dir():
            raise ConfigError(f"{output.parent}: no such folder.", "Create it first.")
        self._temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in self._paths]
        self._streams: list[IO[str]] = []

    def __enter__(self) -> FixWriter:
        self._streams = [path.open("w", encoding="utf-8", newline="\n") for path in self._temporary]
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for stream in self._streams:
            stream.close()
        counts = (self.result.clean_rows, self.result.refused_rows, self.result.changed_rows)
        if self._needs_change and not any(counts[1:]):
            self.result.is_written = False
            counts = (0, 0, 0)
        for temporary, path, count in zip(self._temporary, self._paths, counts, strict=True):
            if kind is None and count:
                _rename_new(temporary, path)
            else:
                temporary.unlink(missing_ok=True)

    def write_clean(self, values: Values) -> None:
        """Write a row to the file of clean rows."""
        self._write_json(0, values)
        self.result.clean_rows += 1

    def write_refused(self, row: RawRow | InvalidRow, line: str | None, reasons: list[str]) -> None:
        """Write a row as it is in its file, or the text of a line that could not be parsed, with the reasons."""
        refused: dict[str, Any] = {"where": row.where, "reasons": reasons}
        self._write_json(1, refused | ({"row": row.values} if isinstance(row, RawRow) else {"line": line}))
        self.result.refused_rows += 1

    def write_change(self, where: str, repairs: list[str], before: Values | str | None, after: Values) -> None:
        """Write what was changed in a row: the kinds of repairs, and the row before and after them."""
        self._write_json(2, {"where": where, "repairs": repairs, "before": before, "after": after})
        self.result.changed_rows += 1
        self.result.repairs.update(repairs)

    def _write_json(self, index: int, value: dict[str, Any]) -> None:
        # default=str: parquet has values that JSON does not have (dates, decimals).
        self._streams[index].write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


class RowFixer:
    """Decides of each row whether it is written, repaired or refused, and writes it.

    Args:
        writer: of the files.
        plan: see `FixPlan`.
        checker: of the rows as they are in their file.
    """

    def __init__(self, writer: FixWriter, plan: FixPlan, checker: RowChecker):
        self.writer = writer
        self.plan = plan
        self._model = checker.model
        # Repairs make rows alike that were not: those that are written are compared once more.
        self._written = checker.make_successor() if plan.changes_rows else None

    def add_row(
        self,
        source: DataSource,
        raw_row: RawRow | InvalidRow,
        line: str | None,
        findings: list[Finding],
        before: RawRow | InvalidRow | None = None,
    ) -> None:
        """Write a row to one of the files.

        Args:
            source: that the row is of.
            raw_row: as in its file, or as a user changed it.
            line: text of a line that could not be parsed.
            findings: of the row.
            before: the row in its file, if a user changed it.
        """
        values, repairs = self._repair(source, raw_row, line, {finding.kind for finding in findings})
        reasons = self._list_reasons(source, raw_row.where, values) if repairs else self._choose_reasons(findings)
        if values is None or reasons:
            refused = before if isinstance(raw_row, InvalidRow) and isinstance(before, RawRow) else raw_row
            self.writer.write_refused(refused, line, reasons or [f"{item.kind}: {item.message}" for item in findings])
            return
        if not repairs and self._written is not None:
            reasons = self._find_repetition(source, RawRow(values, raw_row.where))
            if reasons:
                self.writer.write_refused(raw_row, line, reasons)
                return
        self.writer.write_clean(values)
        if before is not None or repairs:
            original = raw_row if before is None else before
            old = original.values if isinstance(original, RawRow) else line
            changes = [*([EDITED] if before is not None else []), *repairs]
            self.writer.write_change(raw_row.where, changes, old, values)

    def _repair(
        self, source: DataSource, raw_row: RawRow | InvalidRow, line: str | None, kinds: set[str]
    ) -> tuple[Values | None, list[str]]:
        """The row after all repairs of the plan, and which of them changed it."""
        repairs: list[str] = []
        values = raw_row.values if isinstance(raw_row, RawRow) else None
        if values is None and kinds & self.plan.repaired.intersection(LINE_REPAIRS):
            values = parse_literal(line)
            repairs += sorted(kinds.intersection(LINE_REPAIRS)) if values is not None else []
            kinds = self._find_kinds(source, RawRow(values, raw_row.where)) if values is not None else set()
        if values is None:
            return None, []
        scope = source.repair_scope if self.plan.changes_rows else None
        if scope is not None and self.plan.trims:
            trimmed = trim_texts(values, scope)
            if trimmed != values:
                values, repairs = trimmed, [*repairs, TRIM]
        for _ in range(_MAX_ROUNDS if scope is not None else 0):
            due = [kind for kind in REPAIRS if kind in kinds & self.plan.repaired]
            before = values
            for kind in due:
                repaired = REPAIRS[kind](values, scope)  # type: ignore[arg-type]
                if repaired != values:
                    values = repaired
                    repairs += [kind] if kind not in repairs else []
            if values == before:
                break
            kinds = self._find_kinds(source, RawRow(values, raw_row.where))
        return values, repairs

    def _find_kinds(self, source: DataSource, row: RawRow) -> set[str]:
        return {problem.kind for problem in find_row_problems(self._convert(source, row), self._model)}

    def _convert(self, source: DataSource, row: RawRow) -> Conversation | InvalidRow:
        return source.convert_row(RawRow(deepcopy(row.values), row.where))

    def _list_reasons(self, source: DataSource, where: str, values: Values | None) -> list[str]:
        """Why a row is refused although it was repaired."""
        if values is None:
            return []
        row = self._convert(source, RawRow(values, where))
        problems = find_row_problems(row, self._model)
        left = [f"{item.kind}: {item.message}" for item in problems if self._is_reason(item.kind, item.severity)]
        return left or self._find_repetition(source, RawRow(values, where))

    def _find_repetition(self, source: DataSource, row: RawRow) -> list[str]:
        """Whether the row repeats or contradicts one that was written, or is in the evaluation data."""
        converted = self._convert(source, row)
        if self._written is None or isinstance(converted, InvalidRow):
            return []
        problems: list[Problem] = self._written.find_overlap(converted)
        return [f"{item.kind}: {item.message}" for item in problems if self._is_reason(item.kind, item.severity)]

    def _choose_reasons(self, findings: list[Finding]) -> list[str]:
        return [f"{item.kind}: {item.message}" for item in findings if self._is_reason(item.kind, item.severity)]

    def _is_reason(self, kind: str, severity: str) -> bool:
        return (severity or KINDS.get(kind, ERROR)) == ERROR or kind in self.plan.removed


def scan_raw_rows(
    sources: Iterable[DataSource],
) -> Iterator[tuple[Conversation | InvalidRow, RawRow | InvalidRow, str | None]]:
    """Read rows as conversations and as in their file, with the text of invalid lines. A row that a user changed is
    read as it was changed.

    Raises:
        DataError: hub data, or the reading cannot continue: the rest of the rows could not be written.
    """
    for source in sources:
        for row, raw_row, line, _ in _scan_source(source):
            yield row, raw_row, line


def scan_fixed_rows(
    sources: Sequence[DataSource], checker: RowChecker, fixers: Sequence[RowFixer]
) -> Iterator[list[Finding]]:
    """Check the rows of sources and write them anew, those of each source by its own fixer.

    Returns:
        The findings of each row, as it is in its file.

    Raises:
        DataError: see `scan_raw_rows`.
    """
    for source, fixer in zip(sources, fixers, strict=True):
        for row, raw_row, line, before in _scan_source(source):
            findings = checker.check_row(row)
            fixer.add_row(source, raw_row, line, findings, before)
            yield findings


@dataclass(frozen=True)
class LocatedRow:
    """A row of some sources.

    Attributes:
        source: that it is of.
        number: in its source, from 1.
        row: as a conversation.
        raw_row: as in its file, or as a user changed it; of hub data the same as `row`.
        line: text of a line that could not be parsed.
    """

    source: DataSource
    number: int
    row: Conversation | InvalidRow
    raw_row: RawRow | InvalidRow | Conversation
    line: str | None


def locate_row(sources: Iterable[DataSource], number: int) -> LocatedRow | None:
    """The row of a number, from 1 over all sources; None if there is none.

    Raises:
        DataError: see `scan_raw_rows`.
    """
    for source in sources:
        count = 0
        rows = _scan_source(source) if source.files else ((row, row, None, None) for row in source.scan_rows())
        for row, raw_row, line, _ in rows:
            count += 1
            if count == number:
                return LocatedRow(source, count, row, raw_row, line)
        number -= count
    return None


def _scan_source(
    source: DataSource,
) -> Iterator[tuple[Conversation | InvalidRow, RawRow | InvalidRow, str | None, RawRow | InvalidRow | None]]:
    """Each row as a conversation, as in its file, the text of an invalid line, and the row before a user changed it."""
    if not source.files:
        raise DataError(f"{source.name}: --fix writes the rows of files; this is hub data.", "Download it first.")
    files = [open_data_file(path, source.spec.columns.values()) for path in source.files]
    lines = _LineReader(files)
    originals = FileRows(files).read_rows()
    for number, (row, original) in enumerate(zip(source.scan_rows(), originals, strict=True), start=1):
        is_edited = number in source.edits
        (raw_row,) = apply_edits([original], {1: source.edits[number]} if is_edited else {})
        line = lines.read_line(original.where) if isinstance(original, InvalidRow) else None
        yield row, raw_row, line, original if is_edited else None


class _LineReader:
    """Reads lines of text files by `file:line`, in the order of the files."""

    def __init__(self, files: list[DataFile]):
        self._files = {str(file.path): file for file in files}
        self._name = ""
        self._stream: Iterator[tuple[int, str]] = iter(())
        self._last_line = 0

    def read_line(self, where: str) -> str | None:
        """The text of a line; None if it was returned before (an array may be on one line), or there are no lines."""
        name, _, number = where.rpartition(":")
        if not number.isdigit() or name not in self._files:
            return None
        if name != self._name:
            self._name, self._last_line = name, 0
            self._stream = enumerate(self._files[name].open_text(), start=1)
        for line, text in self._stream if self._last_line < int(number) else ():
            self._last_line = line
            if line == int(number):
                return text.rstrip("\n")
        return None


def _rename_new(temporary: Path, path: Path) -> None:
    """Rename a file unless another program has created the target."""
    try:
        rename_new(temporary, path)
    except FileExistsError:
        raise ConfigError(
            f"{path}: was created while the rows were checked; the new ones are in {temporary}."
        ) from None
