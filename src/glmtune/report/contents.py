"""Reading everything that a report shows about a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmtune.config_parsing import read_config_file
from glmtune.errors import ConfigError, RunError
from glmtune.evaluation.results import (
    COMPARISON_FILE,
    EVALUATION_FILE,
    FORGETTING_FILE,
    PAIR_ROWS_FILE,
    PAIRS_FILE,
    ComparisonResult,
    EvaluationResult,
    ForgettingResult,
    PairResult,
    load_result,
)
from glmtune.evaluation.votes import VOTES_FILE, VoteResult
from glmtune.run_dir import RunDir, is_run
from glmtune.training.summary import RunSummary
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import parse_dataclass

PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder."""

    name: str
    result: EvaluationResult
    predictions: list[dict[str, Any]]
    pairs: PairResult | None = None
    """Of an evaluation on rows with two answers."""
    pair_rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ReportContents:
    """What a report is made of. What the folder does not hold is empty or None."""

    kind: str
    """run, eval, comparison, votes or forgetting."""
    folder: Path
    summary: RunSummary = field(default_factory=lambda: parse_dataclass(RunSummary, None))
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """The lines of a run's metrics.jsonl."""
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)
    comparisons: list[ComparisonResult] = field(default_factory=list)
    forgetting: ForgettingResult | None = None
    votes: VoteResult | None = None


def read_contents(folder: Path) -> ReportContents:
    """Read a run, an evaluation, a comparison, by scores or by votes, or a forgetting probe.

    Raises:
        RunError: the folder is none of these, or one of its files cannot be read.
    """
    if is_run(folder):
        return _read_run(folder)
    forgetting_file = folder / FORGETTING_FILE
    forgetting = ForgettingResult.load(forgetting_file) if forgetting_file.is_file() else None
    if (folder / COMPARISON_FILE).is_file():
        comparison = ComparisonResult.load(folder / COMPARISON_FILE)
        return ReportContents("comparison", folder, comparisons=[comparison], forgetting=forgetting)
    if (folder / EVALUATION_FILE).is_file():
        return ReportContents("eval", folder, evaluations=[_read_evaluation(folder)])
    if (folder / VOTES_FILE).is_file():
        return ReportContents("votes", folder, votes=VoteResult.load(folder / VOTES_FILE))
    if forgetting:
        return ReportContents("forgetting", folder, forgetting=forgetting)
    raise RunError(
        f"{folder}: nothing to report on; it is not a run, evaluation, comparison or forgetting probe.",
        "Give a folder that glmtune train, eval, compare or forget has written.",
    )


def _read_run(folder: Path) -> ReportContents:
    run = RunDir(folder)
    try:
        config = read_config_file(run.config)
    except ConfigError as error:
        raise RunError(error.message, "Restore the file, or remove it: it is the run's own copy.") from None
    summary = load_result(RunSummary, run.summary) if run.summary.is_file() else parse_dataclass(RunSummary, None)
    forgetting = folder / FORGETTING_FILE
    evaluated = sorted(folder.glob("eval/*/"))
    return ReportContents(
        "run",
        folder,
        summary=summary,
        metrics=[entry for entry in run.read_metrics() if isinstance(entry, dict)],
        config=config,
        config_text=require_readable(run.config).read_text("utf-8-sig"),
        evaluations=[_read_evaluation(each) for each in evaluated if (each / EVALUATION_FILE).is_file()],
        comparisons=[
            ComparisonResult.load(each / COMPARISON_FILE) for each in evaluated if (each / COMPARISON_FILE).is_file()
        ],
        forgetting=ForgettingResult.load(forgetting) if forgetting.is_file() else None,
    )


def _read_evaluation(folder: Path) -> Evaluation:
    result = EvaluationResult.load(folder / EVALUATION_FILE)
    pairs = PairResult.load(folder / PAIRS_FILE) if (folder / PAIRS_FILE).is_file() else None
    pair_rows = _read_lines(folder / PAIR_ROWS_FILE) if pairs else []
    return Evaluation(folder.name, result, _read_lines(folder / PREDICTIONS_FILE), pairs, pair_rows)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in require_readable(path).read_text("utf-8", errors="replace").split("\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a last line that was cut off by a kill
        if isinstance(row, dict):
            rows.append(row)
    return rows
