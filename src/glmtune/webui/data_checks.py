"""Checks of data in the background: a thread counts on while the page shows how far it is."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config import DataConfig, RunConfig
from glmtune.data.check_fix import FixResult, FixWriter, scan_raw_rows
from glmtune.data.check_kinds import Finding, describe_kind
from glmtune.data.check_rows import CheckReport, ModelChecker, RowChecker, scan_sources
from glmtune.errors import GlmtuneError
from glmtune.webui.data_rows import load_model_checker, open_rows
from glmtune.webui.status_pages import log_fault

_MAX_TASKS = 16
_MAX_FINDINGS = 20_000


@dataclass
class DataCheck:
    """A check under way or done.

    Attributes:
        id: of the check.
        name: of the data.
        data: settings of the rows that are checked.
        fix: file that the clean rows are written to; None: none.
        report: counts and findings.
        model: what counted tokens.
        rows: numbers of the rows with findings.
        error: why it ended early.
        is_done: whether it ended.
    """

    id: str
    name: str
    data: DataConfig
    fix: Path | None
    report: CheckReport = field(default_factory=lambda: CheckReport("characters", keep_all=False))
    model: ModelChecker | None = None
    rows: set[int] = field(default_factory=set)
    error: GlmtuneError | None = None
    fix_result: FixResult | None = None
    is_done: bool = False
    is_cancelled: bool = False
    started: float = field(default_factory=time.monotonic)


class DataChecks:
    """The last checks of a server."""

    def __init__(self) -> None:
        self._checks: dict[str, DataCheck] = {}

    def start(self, run: RunConfig, name: str, fix: Path | None = None) -> DataCheck:
        """Start a check; the oldest ones are forgotten.

        Args:
            run: its data and, to count tokens, its model.
            name: of the data, for the page.
            fix: a new .jsonl file for the clean rows; None: nothing is written.

        Raises:
            ConfigError: `fix` exists.
        """
        writer = FixWriter(fix) if fix is not None else None
        check = DataCheck(uuid.uuid4().hex, name, run.data, fix)
        while len(self._checks) >= _MAX_TASKS:
            self._checks.pop(next(iter(self._checks))).is_cancelled = True
        self._checks[check.id] = check
        threading.Thread(target=_run_check, args=(check, run, writer), name="glmtune-check", daemon=True).start()
        return check

    def get(self, id: str) -> DataCheck | None:
        """The check of an id, unless it was forgotten."""
        return self._checks.get(id)


class _CheckCancelledError(Exception):
    """Ends a check whose result nobody reads; what it wrote is removed."""


def _run_check(check: DataCheck, run: RunConfig, writer: FixWriter | None) -> None:
    try:
        sources = open_rows(run)
        check.model = load_model_checker(run)
        check.report = CheckReport("tokens" if check.model else "characters", keep_all=False)
        checker = RowChecker(check.report, check.model)
        if writer is None:
            for row in scan_sources(sources):
                _add(check, checker.check_row(row))
        else:
            with writer:
                for row, raw_row, line in scan_raw_rows(sources):
                    findings = checker.check_row(row)
                    _add(check, findings)
                    writer.add_row(raw_row, line, findings)
            check.fix_result = writer.result
        checker.add_findings_of_all_rows(sources)
    except _CheckCancelledError:
        pass
    except GlmtuneError as error:
        check.error = error
    except Exception as error:  # a bug of ours: the page must not wait for ever
        log_fault(error, f"check of {check.name}")
        check.error = GlmtuneError(f"The check failed: {type(error).__name__}: {error}")
    check.is_done = True


def _add(check: DataCheck, findings: list[Finding]) -> None:
    if check.is_cancelled:
        raise _CheckCancelledError
    if len(check.rows) < _MAX_FINDINGS:
        check.rows.update(finding.row for finding in findings)


def group_findings(report: CheckReport, lang: str) -> list[dict[str, Any]]:
    """Kinds of findings, errors first, with the first findings of each."""
    kinds = sorted(report.kinds, key=lambda key: (key[0] != "error", -report.kinds[key], key[1]))
    return [
        {
            "severity": severity,
            "title": describe_kind(kind, lang),
            "count": report.kinds[severity, kind],
            "findings": [item for item in report.findings if (item.severity, item.kind) == (severity, kind)],
        }
        for severity, kind in kinds
    ]
