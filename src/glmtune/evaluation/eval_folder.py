"""The folder of an evaluation: replies batch by batch, so that a killed evaluation can continue, then the results.

predictions.jsonl             a JSON object per answered turn, in the order of the data
generated_predictions.txt     `labels` and `predict` per line, as ChatGLM-6B's `ptuning/main.py` writes them
metrics.json                  the scores, and all that decides them
predictions.partial.jsonl     while it runs: the settings, then a line per finished batch
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glmtune.errors import RunError
from glmtune.evaluation.output_folders import require_result_folder
from glmtune.evaluation.results import EvaluationResult
from glmtune.evaluation.scoring import make_printable
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import explain_write_errors, find_json_object, lock_folder, parse_dataclass, write_text

Record = dict[str, Any]


def require_eval_folder(folder: Path) -> None:
    """Require that a folder is new or empty, or holds an evaluation.

    Raises:
        RunError: it holds something else.
    """
    require_result_folder(folder, ("predictions.jsonl", "predictions.partial.jsonl"), "an evaluation")


class EvalFolder:
    """The files of one evaluation.

    Args:
        root: the folder.
        settings: all that decides the replies, as JSON values; `data`, `digest` and `reading` among them.
        questions: by row number, its prompt and reference: replies of an earlier version, which hashed data in
            another way, are recognised by them.
    """

    def __init__(self, root: Path, settings: dict[str, Any], questions: Mapping[int, tuple[Any, str]]):
        self.root = root
        self.predictions = root / "predictions.jsonl"
        self.metrics = root / "metrics.json"
        self.partial = root / "predictions.partial.jsonl"
        self._settings = settings
        self._questions = questions
        self._records: list[Record] = []
        self.seconds = 0.0
        """How long they took."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes from evaluating in it.

        Raises:
            RunError: one does, the folder cannot be made, or it holds something else than an evaluation.
        """
        require_eval_folder(self.root)
        with lock_folder(self.root, "evaluating"):
            yield

    def read_finished(self) -> EvaluationResult | None:
        """Read the result of the same evaluation, if it was finished before.

        Raises:
            RunError: the folder holds an evaluation of other data or with other settings.
        """
        if self.partial.is_file() or not self.predictions.is_file():
            return None
        result: EvaluationResult = parse_dataclass(EvaluationResult, find_json_object(self.metrics))
        self._require_same(result.settings or {}, self.predictions, list(_iterate_lines(self.predictions)))
        return result

    def begin(self) -> None:
        """Read the replies of an earlier, killed evaluation, or start from the first row.

        Raises:
            RunError: it was of other data or with other settings, or cannot be written.
        """
        if self.partial.is_file() and self._read_partial():
            return
        with explain_write_errors(self.root):
            write_text(self.partial, _format_line(self._settings))

    def add(self, records: list[Record], seconds: float) -> None:
        """Write the replies of a finished batch: one line, so that a kill leaves complete batches.

        Raises:
            RunError: it cannot be written.
        """
        with explain_write_errors(self.root), self.partial.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(_format_line({"seconds": seconds, "records": records}))
        self._records += records
        self.seconds += seconds

    @property
    def records(self) -> list[Record]:
        """The replies so far, in the order of the data."""
        return sorted(self._records, key=lambda record: record["row"])

    def write_results(self, result: EvaluationResult) -> None:
        """Write the finished files; the partial one goes last.

        Raises:
            RunError: they cannot be written.
        """
        records = self.records
        pairs = ({"labels": record["reference"], "predict": record["prediction"]} for record in records)
        metrics = json.dumps({**result.to_dict(), "settings": self._settings}, ensure_ascii=False, indent=2)
        with explain_write_errors(self.root):
            write_text(self.predictions, "".join(_format_line(record) for record in records))
            write_text(self.root / "generated_predictions.txt", "".join(_format_line(pair) for pair in pairs))
            write_text(self.metrics, make_printable(metrics) + "\n")
            self.partial.unlink()

    def _read_partial(self) -> bool:
        """Read an earlier, partial evaluation; False if there is none."""
        lines = list(_iterate_lines(self.partial))
        if not lines:
            return False
        self._require_same(lines[0], self.partial, [record for line in lines[1:] for record in line["records"]])
        for batch in lines[1:]:
            self._records += batch["records"]
            self.seconds += batch["seconds"]
        # A line cut short by a kill goes, so that the next one starts on its own.
        write_text(self.partial, "".join(_format_line(line) for line in lines))
        return True

    def _require_same(self, theirs: dict[str, Any], where: Path, records: list[Record]) -> None:
        ours: dict[str, Any] = json.loads(_format_line(self._settings))
        hint = "Choose another --output, or remove the folder."
        is_earlier = theirs.get("reading") != ours["reading"]
        if is_earlier:
            is_same = all(self._questions.get(r["row"]) == (r["prompt"], r["reference"]) for r in records)
        else:
            is_same = theirs.get("digest") == ours["digest"]
        if not is_same:
            raise RunError(f"{where}: replies to {theirs.get('data', 'other data')}, not to {ours['data']}.", hint)
        unlike = ("data", *(("digest", "reading") if is_earlier else ()))
        names = [name for name in ours if name not in unlike and theirs.get(name) != ours[name]]
        if names:
            other = "; ".join(
                f"{name} {_truncate_value(theirs.get(name))}, not {_truncate_value(ours[name])}" for name in names
            )
            raise RunError(f"{where}: made with other settings ({other}).", hint)


def find_unfinished(folders: Iterable[Path], settings: dict[str, Any]) -> Path | None:
    """Find the first folder with a part of the evaluation with these settings."""
    ours = json.loads(_format_line(settings))
    for folder in folders:
        partial = folder / "predictions.partial.jsonl"
        if partial.is_file() and next(_iterate_lines(partial), None) == ours:
            return folder
    return None


def read_predictions(folder: Path) -> list[Record]:
    """The records of a finished evaluation.

    Raises:
        RunError: there is none.
    """
    path = folder / "predictions.jsonl"
    if not path.is_file():
        raise RunError(f"{folder}: no predictions.jsonl, so this is no finished evaluation.")
    return list(_iterate_lines(path))


def _iterate_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file up to the first line that a kill cut short."""
    with require_readable(path).open(encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not isinstance(value, dict):
                return
            yield value


def _format_line(value: dict[str, Any]) -> str:
    return make_printable(json.dumps(value, ensure_ascii=False)) + "\n"


def _truncate_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
