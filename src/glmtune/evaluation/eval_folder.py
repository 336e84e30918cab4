"""An evaluation's folder: replies as they come, so that a killed evaluation goes on, then the finished files.

predictions.jsonl             a JSON object per answered turn, in the order of the data
generated_predictions.txt     `labels` and `predict` per line, as ChatGLM-6B's `ptuning/main.py` writes them
metrics.json                  the scores, and all that decides them
predictions.partial.jsonl     while it runs: what decides the replies, then a line per finished batch
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glmtune.errors import RunError
from glmtune.evaluation.scoring import make_printable
from glmtune.utils.io import write_text

Record = dict[str, Any]


class EvalFolder:
    """The files of one evaluation.

    Args:
        root: the folder.
        settings: all that decides the replies, as JSON values; `data` and `digest` among them.
    """

    def __init__(self, root: Path, settings: dict[str, Any]):
        self.root = root
        self.predictions = root / "predictions.jsonl"
        self.metrics = root / "metrics.json"
        self.partial = root / "predictions.partial.jsonl"
        self._settings = settings
        self._records: list[Record] = []
        self.seconds = 0.0
        """How long they took."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder, and keep other processes from evaluating in it.

        Raises:
            RunError: one does, or the folder cannot be made.
        """
        lock = FileLock(self.root / ".lock", timeout=0)
        try:
            with _writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.root}: another process is evaluating in this folder.",
                "Wait for it, or choose another --output.",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def read_finished(self) -> dict[str, Any] | None:
        """metrics.json of the same evaluation, if it was finished before.

        Raises:
            RunError: the folder holds an evaluation of other data or with other settings.
        """
        if self.partial.is_file() or not self.predictions.is_file():
            return None
        metrics = _read_json(self.metrics)
        self._require_same(metrics.get("settings") or {}, self.predictions)
        return metrics

    def begin(self) -> None:
        """Read what an earlier, killed evaluation left, or start anew.

        Raises:
            RunError: it was of other data or with other settings, or cannot be written.
        """
        if self.partial.is_file() and self._read_partial():
            return
        with _writing(self.root):
            write_text(self.partial, _format_line(self._settings))

    def add(self, records: list[Record], seconds: float) -> None:
        """Keep the replies of a finished batch: one line, so that a kill leaves whole batches.

        Raises:
            RunError: it cannot be written.
        """
        with _writing(self.root), self.partial.open("a", encoding="utf-8") as stream:
            stream.write(_format_line({"seconds": seconds, "records": records}))
        self._records += records
        self.seconds += seconds

    @property
    def records(self) -> list[Record]:
        """The replies so far, in the order of the data."""
        return sorted(self._records, key=lambda record: record["row"])

    def write_results(self, metrics: dict[str, Any]) -> None:
        """Write the finished files; the partial one goes last.

        Raises:
            RunError: they cannot be written.
        """
        records = self.records
        pairs = ({"labels": record["reference"], "predict": record["prediction"]} for record in records)
        whole = json.dumps({**metrics, "settings": self._settings}, ensure_ascii=False, indent=2)
        with _writing(self.root):
            write_text(self.predictions, "".join(_format_line(record) for record in records))
            write_text(self.root / "generated_predictions.txt", "".join(_format_line(pair) for pair in pairs))
            write_text(self.metrics, make_printable(whole) + "\n")
            self.partial.unlink()

    def _read_partial(self) -> bool:
        """Whether there is anything to go on from."""
        lines = list(_iterate_lines(self.partial))
        if not lines:
            return False
        self._require_same(lines[0], self.partial)
        for batch in lines[1:]:
            self._records += batch["records"]
            self.seconds += batch["seconds"]
        # A line cut short by a kill goes, so that the next one starts on its own.
        write_text(self.partial, "".join(_format_line(line) for line in lines))
        return True

    def _require_same(self, theirs: dict[str, Any], where: Path) -> None:
        ours: dict[str, Any] = json.loads(_format_line(self._settings))
        hint = "Choose another --output, or remove the folder."
        if theirs.get("digest") != ours["digest"]:
            raise RunError(f"{where}: replies to {theirs.get('data', 'other data')}, not to {ours['data']}.", hint)
        names = [name for name in ours if name != "data" and theirs.get(name) != ours[name]]
        if names:
            other = "; ".join(f"{name} {_truncate_value(theirs.get(name))}, not {_truncate_value(ours[name])}" for name in names)
            raise RunError(f"{where}: made with other settings ({other}).", hint)


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:  # an OSError too
        raise
    except OSError as error:
        raise RunError(
            f"{root}: cannot be written ({error.strerror or error}).", "Free some space, or choose another --output."
        ) from None


def find_unfinished(folders: Iterable[Path], settings: dict[str, Any]) -> Path | None:
    """The first of the folders that holds a part of the evaluation with these settings."""
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
    with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        for line in stream:
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                return
            if not isinstance(value, dict):
                return
            yield value


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _format_line(value: dict[str, Any]) -> str:
    return make_printable(json.dumps(value, ensure_ascii=False)) + "\n"


def _truncate_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
