"""`glmtune compare`: models, adapters and runs on the same rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from glmtune.config import DataConfig
from glmtune.errors import ConfigError, DataError, RunError
from glmtune.evaluation.candidates import Candidate
from glmtune.evaluation.dataset import EvalData, read_eval_data
from glmtune.evaluation.eval_folder import Record, read_predictions
from glmtune.evaluation.evaluate import describe_settings, evaluate, summarize_records
from glmtune.evaluation.forgetting.forget import describe_training
from glmtune.evaluation.forgetting.probing import BaseAnswers, ForgettingProbe
from glmtune.evaluation.judging import judge_replies
from glmtune.evaluation.model_info import ModelInfo
from glmtune.evaluation.model_switcher import ModelSwitcher
from glmtune.evaluation.output_folders import require_result_folder
from glmtune.evaluation.results import (
    COMPARISON_FILE,
    ChangedRow,
    ComparisonResult,
    EvaluationResult,
    ForgettingResult,
    ScorePair,
)
from glmtune.evaluation.scoring import make_printable
from glmtune.evaluation.statistics import compare_by_bootstrap
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling
from glmtune.utils.console import count_noun, print_message, print_warning
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import explain_write_errors, find_json_object, iso_timestamp, replace_folder, slugify, write_text

_EVALS = Path("evals")
_NOT_SHARED = ("train", "eval", "eval_fraction", "eval_rows", "packing", "prefix")
"""Data settings that decide no prompt, or only their own model's."""


@dataclass(frozen=True)
class ComparisonEntry:
    """A candidate with the rows as its generation renders them."""

    candidate: Candidate
    data: EvalData


def read_entries(candidates: Sequence[Candidate], path: str, *, limit: int | None = None) -> list[ComparisonEntry]:
    """Render the same rows for every candidate: by the data settings of the first run among them, each with its own
    `data.prefix`.

    Raises:
        ConfigError: fewer than two candidates.
        DataError: data that cannot be read, or a row that does not fit one of the generations.
    """
    if len(candidates) < 2:
        raise ConfigError("There is nothing to compare with: one model was given.", "Give two or more.")
    leader = next((each for each in candidates if each.run), candidates[0])
    rules = leader.config.data
    others = [
        each.name for each in candidates if each.run and _list_shared_rows(each.config.data) != _list_shared_rows(rules)
    ]
    if others:
        print_warning(f"Rows are read by the data settings of {leader.name}; {', '.join(others)} had others.")
    titles = dict.fromkeys(each.base.family.title for each in candidates)
    if len(titles) > 1:
        print_warning(f"Different generations ({', '.join(titles)}): the same rows, each in its own prompt.")
    seed = int(leader.config.training["seed"])
    entries = [
        ComparisonEntry(
            each,
            read_eval_data(
                path,
                replace(rules, prefix=each.config.data.prefix),
                each.base.family,
                each.tokenizer,
                limit=limit,
                seed=seed,
            ),
        )
        for each in candidates
    ]
    for note in entries[0].data.notes:
        print_message(note)
    return entries


def compare_models(
    entries: Sequence[ComparisonEntry],
    output: Path,
    sampling: Sampling,
    *,
    probe: ForgettingProbe | None = None,
    batch_size: int = 8,
    dtype: str | None = None,
    device: str | None = None,
    judge: str | None = None,
    command: str = "",
) -> ComparisonResult:
    """Answer the rows with every candidate, score the replies against the first one's, and write the comparison.

    A folder with a part of the same comparison is continued. Evaluations of the same models on the same rows in a
    run or in `evals` are reused.

    Args:
        entries: from `read_entries`; the first is the baseline.
        output: the folder.
        sampling: how tokens are chosen.
        probe: the forgetting probe, for models with the token ids of the first; None: not run.
        batch_size: rows in a batch.
        dtype: precision of all; each checkpoint's own when None.
        device: a GPU if there is one when None.
        judge: a reward model, for win rates.
        command: that repeats the comparison.

    Raises:
        RunError: the folder contains other replies, or cannot be written.
        DataError: no row is left that all of them can answer.
        ModelError: a model that cannot be loaded, or not even memory for one row.
    """
    require_compare_folder(output, [entry.candidate for entry in entries])
    run = _ComparisonRun(entries, output, sampling, probe, batch_size, command)
    switcher = ModelSwitcher(dtype, device)
    for i in _group_by_base([entry.candidate for entry in entries]):
        candidate = entries[i].candidate
        quantization = f" ({candidate.target.quantization})" if candidate.target.quantization else ""
        print_message(f"[{i + 1}/{len(entries)}] {candidate.name}{quantization}", "bold")
        run.take(i, *switcher.load(candidate))
    models = run.read_common_rows()
    comparison = run.compare(models)
    if judge is not None:
        switcher.clear()  # one model in memory at a time
        prefixes = [entry.data.rules.prefix for entry in entries]
        options: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "device": device}
        comparison = replace(
            comparison, judge=judge, win_rates=judge_replies(judge, models, prefixes, output, **options)
        )
    text = make_printable(json.dumps(comparison.to_dict(), ensure_ascii=False, indent=2))
    with explain_write_errors(output):
        write_text(output / COMPARISON_FILE, text + "\n")
    return comparison


def default_compare_output(entries: Sequence[ComparisonEntry], sampling: Sampling) -> Path:
    """A folder that the same comparison finds again: in the run, if one run is compared with models; else in `evals`.

    Args:
        entries: the models to compare.
        sampling: how.
    """
    first = entries[0].data
    decisive = [
        [entry.candidate.identity for entry in entries],
        [[asdict(entry.data.rules), [row.row for row in entry.data.rows]] for entry in entries],
        [first.digest, asdict(sampling)],
    ]
    digest = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:8]
    runs = {entry.candidate.run.root for entry in entries if entry.candidate.run}
    place = runs.pop() / "eval" if len(runs) == 1 else _EVALS
    return place / f"compare-{slugify(Path(first.path).name.split('.')[0], 'data')}-{digest}"


def require_compare_folder(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Require that a folder is new or empty, or holds a comparison of the same models, finished or not.

    Raises:
        RunError: it holds something else.
    """
    require_result_folder(folder, (COMPARISON_FILE, "[0-9]*-*/predictions*.jsonl"), "a comparison")
    names = {_name_folder(i, candidate) for i, candidate in enumerate(candidates)}
    others = sorted(path.parent.name for path in folder.glob("[0-9]*-*/predictions*.jsonl"))
    strangers = [name for name in dict.fromkeys(others) if name not in names]
    if strangers:
        raise RunError(
            f"{folder}: holds a comparison of other models ({', '.join(strangers)}).",
            "Choose another --output, or remove the folder.",
        )


def _name_folder(i: int, candidate: Candidate) -> str:
    return f"{i}-{slugify(candidate.name, 'data')}"


class _ComparisonRun:
    """A comparison in progress."""

    def __init__(
        self,
        entries: Sequence[ComparisonEntry],
        output: Path,
        sampling: Sampling,
        probe: ForgettingProbe | None,
        batch_size: int,
        command: str,
    ):
        self._entries, self._output, self._sampling = entries, output, sampling
        self._probe, self._batch_size = probe, batch_size
        self._command = command
        self._results: dict[int, EvaluationResult] = {}
        self._forgetting: dict[int, ForgettingResult] = {}
        self._before: BaseAnswers | None = None

    def take(self, i: int, opened: LoadedModel, model: ModelInfo) -> None:
        """Let candidate `i` answer the rows and, where it makes sense, the probe."""
        entry, folder = self._entries[i], self._folder(i)
        settings = describe_settings(model, entry.data, self._sampling, 0)
        earlier = None if folder.exists() else is_same_evaluation(_list_places(entry.candidate), settings)
        if earlier is not None:
            print_message(f"{earlier}: evaluated before; its replies are reused.")
            with explain_write_errors(folder):
                copy_evaluation(earlier, folder)
        self._results[i] = evaluate(
            *(opened, model, entry.data, folder, self._sampling),
            batch_size=self._batch_size,
            command=self._command,
        )
        if self._probe is None:
            return
        if i == 0:
            self._before = self._probe.ask_base(opened, model)
        elif self._before is not None and self._is_tuned(entry.candidate):
            result = self._probe.ask_tuned(self._before, opened, model, *describe_training(entry.candidate))
            self._forgetting[i] = replace(result, command=self._command, finished_at=iso_timestamp())

    def read_common_rows(self) -> list[list[Record]]:
        """The replies of each model to the rows that all models have answered.

        Raises:
            DataError: there are none.
        """
        models = select_common_rows([read_predictions(self._folder(i)) for i in range(len(self._entries))])
        if not models[0]:
            raise DataError(
                f"{self._entries[0].data.path}: no row is left that all models can answer within the limits.",
                "Raise them: --set data.max_source_length=2048",
            )
        return models

    def compare(self, models: list[list[Record]]) -> ComparisonResult:
        """Compare the replies, from `read_common_rows`."""
        rows = len(models[0])
        fewer = max(result.data.rows for result in self._results.values()) - rows
        if fewer:
            print_warning(f"{count_noun(fewer, 'row is', 'rows are')} skipped: too long for one of the models.")
        return ComparisonResult(
            kind="comparison",
            data=replace(self._results[0].data, rows=rows),
            models=[_restrict_result(self._results[i], records) for i, records in enumerate(models)],
            pairs=compare_pairs(models),
            changed=list_changed_rows(models),
            forgetting=[self._forgetting.get(i) for i in range(len(models))],
            command=self._command,
            finished_at=iso_timestamp(),
        )

    def _is_tuned(self, candidate: Candidate) -> bool:
        """Whether it may be tuned from the first model: it has the same token ids, and is another model."""
        first = self._entries[0].candidate
        same_ids = (first.base.family.name, first.vocabulary) == (candidate.base.family.name, candidate.vocabulary)
        return same_ids and first.identity != candidate.identity

    def _folder(self, i: int) -> Path:
        return self._output / _name_folder(i, self._entries[i].candidate)


def _group_by_base(candidates: Sequence[Candidate]) -> list[int]:
    """The order in which every base is loaded once: the first one's adapters, then the next base's."""
    keys = [candidate.base_key for candidate in candidates]
    return sorted(range(len(keys)), key=lambda i: (keys.index(keys[i]), i))


def _list_shared_rows(data: DataConfig) -> dict[str, Any]:
    return {key: value for key, value in asdict(data).items() if key not in _NOT_SHARED}


def _list_places(candidate: Candidate) -> list[Path]:
    """Folders that may contain an evaluation of the candidate."""
    folders = [*candidate.run.root.glob("eval/*/")] if candidate.run else []
    return sorted(folders) + sorted(_EVALS.glob("*/")) + sorted(_EVALS.glob("compare-*/*/"))


def _restrict_result(result: EvaluationResult, records: list[Record]) -> EvaluationResult:
    """The result over the rows that all models share."""
    result = replace(result, settings=None)  # results that were evaluated before have them
    if result.data.rows == len(records):
        return result
    return replace(result, **summarize_records(records), data=replace(result.data, rows=len(records)))


_FILES = ("predictions.jsonl", "generated_predictions.txt", "metrics.json")
"""metrics.json last: it marks a complete folder."""


def is_same_evaluation(folders: Iterable[Path], settings: dict[str, Any]) -> Path | None:
    """The first folder with a finished evaluation of the same model on the same rows, with the same settings.

    Args:
        folders: where to look.
        settings: from `evaluate.settings_of`.
    """
    decisive = _select_decisive(settings)
    return next((folder for folder in folders if _read_settings(folder) == decisive), None)


def copy_evaluation(source: Path, target: Path) -> None:
    """Take a finished evaluation over."""
    with replace_folder(target) as temporary:
        for name in _FILES:
            shutil.copyfile(require_readable(source / name), temporary / name)


def _read_settings(folder: Path) -> dict[str, Any] | None:
    if not all((folder / name).is_file() for name in _FILES) or (folder / "predictions.partial.jsonl").exists():
        return None
    settings = (find_json_object(folder / "metrics.json") or {}).get("settings")
    return _select_decisive(settings) if isinstance(settings, dict) else None


def _select_decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """All settings but the path of the data, which its digest identifies."""
    plain: dict[str, Any] = json.loads(json.dumps(settings))
    return {key: value for key, value in plain.items() if key != "data"}


_BY = "rouge_l"
"""The score by which a row has changed."""


def select_common_rows(models: Sequence[Sequence[Record]]) -> list[list[Record]]:
    """Of each model's records those whose rows all models have, in the order of the data. Length limits may drop a row
    under one tokenizer and keep it under another."""
    common = set.intersection(*({record["row"] for record in records} for records in models))
    return [[record for record in records if record["row"] in common] for records in models]


def compare_pairs(models: Sequence[Sequence[Record]]) -> list[ScorePair]:
    """Compare every later model with the first, score by score.

    Args:
        models: from `select_common_rows`.
    """
    first, *others = models
    return [pair for b, records in enumerate(others, start=1) for pair in _compare_records(first, records, b)]


def list_changed_rows(models: Sequence[Sequence[Record]], limit: int = 20) -> list[ChangedRow]:
    """List the rows whose ROUGE-L differs most from the first model's; of equal ones, the earlier in the data.

    Args:
        models: from `select_common_rows`.
        limit: number of rows.
    """
    rows = [row for row in zip(*models, strict=True) if len({record["prediction"] for record in row}) > 1]

    def change(row: Sequence[Record]) -> float:
        first, *others = (record["scores"][_BY] for record in row)
        return -max(abs(other - first) for other in others)

    return [
        ChangedRow(
            **{key: row[0][key] for key in ("row", "where", "prompt", "reference")},
            replies=[record["prediction"] for record in row],
            scores=[record["scores"][_BY] for record in row],
        )
        for row in sorted(rows, key=change)[:limit]
    ]


def _compare_records(first: Sequence[Record], other: Sequence[Record], b: int) -> list[ScorePair]:
    scores = [(one["scores"], two["scores"]) for one, two in zip(first, other, strict=True)]
    names = dict.fromkeys(name for one, two in scores for name in one if name in two)
    result = []
    for name in names:
        # Only rows with a tool call have all scores.
        both = [(one[name], two[name]) for one, two in scores if name in one and name in two]
        difference = compare_by_bootstrap([one for one, _ in both], [two for _, two in both])
        result.append(ScorePair(0, b, name, difference))
    return result
