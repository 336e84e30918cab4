"""Checks of data in the background: a thread counts on while the page shows how far it is."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config import DataConfig, RunConfig
from glmtune.data.check_fix import FixPlan, FixResult, FixWriter, RowFixer, scan_fixed_rows
from glmtune.data.check_kinds import Finding, describe_kind
from glmtune.data.check_rows import CheckReport, ModelChecker, RowChecker, scan_sources
from glmtune.data.sources import DataSource
from glmtune.errors import GlmtuneError
from glmtune.webui.data_edits import EditBook
from glmtune.webui.data_outputs import write_entries
from glmtune.webui.data_rows import load_model_checker, open_rows
from glmtune.webui.status_pages import log_fault

_MAX_TASKS = 16
MAX_FOUND_ROWS = 20_000
"""Rows with findings that a check remembers, for the table."""


@dataclass
class SourceCount:
    """What a check found in one data set.

    Attributes:
        name: as the user gave it.
        format: of its rows.
        rows: number of its rows.
        findings: number of rows with findings.
        weight: its share.
        uses: number of rows of it in a training over all data once.
    """

    name: str
    format: str
    rows: int = 0
    findings: int = 0
    weight: float = 1.0
    uses: int = 0


@dataclass
class DataCheck:
    """A check under way or done.

    Attributes:
        id: of the check.
        name: of the data.
        data: settings of the rows that are checked.
        model_path: of the model that counts tokens; empty: none.
        report: counts and findings.
        model: what counted tokens.
        rows: kinds of findings by the number of the row.
        is_cut: whether there are more such rows than `rows` holds.
        sources: counts of each data set.
        edited: numbers of rows that were changed after the check.
        fixes: the files that were written, one for each data set.
        entries: by what each of them is chosen.
        error: why it ended early.
        is_done: whether it ended.
    """

    id: str
    name: str
    data: DataConfig
    model_path: str = ""
    report: CheckReport = field(default_factory=lambda: CheckReport("characters", keep_all=False))
    model: ModelChecker | None = None
    rows: dict[int, set[str]] = field(default_factory=dict)
    is_cut: bool = False
    sources: list[SourceCount] = field(default_factory=list)
    edited: set[int] = field(default_factory=set)
    fixes: list[FixResult] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    error: GlmtuneError | None = None
    is_done: bool = False
    is_cancelled: bool = False
    started: float = field(default_factory=time.monotonic)

    def matches(self, run: RunConfig) -> bool:
        """Whether it has been done for these rows and settings."""
        return self.is_done and self.data == run.data and self.model_path == (run.model.path or "")

    def find_rows(self, kind: str = "") -> frozenset[int]:
        """Numbers of the rows with findings (of a kind) that were not changed since."""
        return frozenset(
            number for number, kinds in self.rows.items() if (not kind or kind in kinds) and number not in self.edited
        )


class DataChecks:
    """The last checks of a server."""

    def __init__(self) -> None:
        self._checks: dict[str, DataCheck] = {}

    def start(
        self,
        run: RunConfig,
        name: str,
        edits: EditBook,
        outputs: Sequence[Path] = (),
        plan: FixPlan | None = None,
    ) -> DataCheck:
        """Start a check; the oldest ones are forgotten.

        Args:
            run: its data and, to count tokens, its model.
            name: of the data, for the page.
            edits: rows that were changed by hand.
            outputs: new .jsonl files for the rows of each data set; none: nothing is written.
            plan: what is done with rows that have findings.

        Raises:
            ConfigError: one of `outputs` exists.
        """
        writers = [FixWriter(output, needs_change=True) for output in outputs]
        check = DataCheck(uuid.uuid4().hex, name, run.data, run.model.path or "")
        while len(self._checks) >= _MAX_TASKS:
            self._checks.pop(next(iter(self._checks))).is_cancelled = True
        self._checks[check.id] = check
        arguments = (check, run, edits, writers, plan or FixPlan())
        threading.Thread(target=_run_check, args=arguments, name="glmtune-check", daemon=True).start()
        return check

    def get(self, id: str) -> DataCheck | None:
        """The check of an id, unless it was forgotten."""
        return self._checks.get(id)


class _CheckCancelledError(Exception):
    """Ends a check whose result nobody reads; what it wrote is removed."""


def _run_check(check: DataCheck, run: RunConfig, edits: EditBook, writers: list[FixWriter], plan: FixPlan) -> None:
    try:
        sources = open_rows(run)
        edits.apply(sources)
        check.sources = [SourceCount(source.name, source.format, weight=source.spec.weight) for source in sources]
        check.model = load_model_checker(run)
        check.report = CheckReport("tokens" if check.model else "characters", keep_all=False)
        checker = RowChecker(check.report, check.model)
        if writers:
            with ExitStack() as stack:
                fixers = [RowFixer(stack.enter_context(writer), plan, checker) for writer in writers]
                for findings in scan_fixed_rows(sources, checker, fixers):
                    _add(check, sources, findings)
            check.fixes = [writer.result for writer in writers]
            check.entries = write_entries(sources, check.fixes)
        else:
            for row in scan_sources(sources):
                _add(check, sources, checker.check_row(row))
        checker.add_findings_of_all_rows(sources)
        _count_uses(check, sources)
    except _CheckCancelledError:
        pass
    except GlmtuneError as error:
        check.error = error
    except Exception as error:  # a bug of ours: the page must not wait for ever
        log_fault(error, f"check of {check.name}")
        check.error = GlmtuneError(f"The check failed: {type(error).__name__}: {error}")
    check.is_done = True


def _add(check: DataCheck, sources: Sequence[DataSource], findings: list[Finding]) -> None:
    if check.is_cancelled:
        raise _CheckCancelledError
    if not findings:
        return
    # Rows come source by source: the last one that was begun is being read.
    current = max((i for i, source in enumerate(sources) if source.row_count), default=0)
    check.sources[current].findings += 1
    if len(check.rows) < MAX_FOUND_ROWS:
        check.rows[findings[0].row] = {finding.kind for finding in findings}
    else:
        check.is_cut = True


def _count_uses(check: DataCheck, sources: Sequence[DataSource]) -> None:
    for count, source in zip(check.sources, sources, strict=True):
        count.rows = source.row_count
        usable = source.conversation_count
        size = source.spec.num_samples or usable
        size = size if source.spec.repeat else min(size, usable)
        count.uses = max(1, int(source.spec.weight * size + 0.5)) if usable else 0


def group_findings(check: DataCheck, lang: str) -> list[dict[str, Any]]:
    """Kinds of findings, errors first, with the first findings of each that no change has made stale."""
    report = check.report
    kinds = sorted(report.kinds, key=lambda key: (key[0] != "error", -report.kinds[key], key[1]))
    groups = []
    for severity, kind in kinds:
        listed = [item for item in report.findings if (item.severity, item.kind) == (severity, kind)]
        groups.append(
            {
                "severity": severity,
                "kind": kind,
                "title": describe_kind(kind, lang),
                "count": report.kinds[severity, kind],
                "more": report.kinds[severity, kind] - len(listed),
                "findings": [item for item in listed if item.row not in check.edited],
                "hints": [*dict.fromkeys(item.hint for item in listed if item.hint)],
            }
        )
    return groups
