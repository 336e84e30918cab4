"""The run folder: its files, and the few operations on them.

config.yaml         the run with every default filled in
metrics.jsonl       a JSON object per logged step
samples.jsonl       answers while training: of stage grpo with rewards, of generate.rows the first ones
progress.json       where a running training is: phase, step, time left
checkpoints/        checkpoint-N, complete or absent
adapter/ | model/   what was trained
summary.json        speed, memory, losses, versions, the base's fingerprint
loss.png            the curves
report.html         all of it as a page
eval/               scores, a folder per data set; forgetting.json: the probe before and after
stop                a file that requests a clean stop of a running training
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glmtune.errors import RunError
from glmtune.utils.file_access import require_readable, require_readable_folder
from glmtune.utils.io import LOCK_FILE, file_timestamp, lock_folder, slugify, write_json, write_text


class RunDir:
    """Paths inside a run folder and the few operations on them."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def curve(self) -> Path:
        return self.root / "loss.png"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def stop(self) -> Path:
        return self.root / "stop"

    @property
    def logs(self) -> Path:
        return self.root / "runs"

    def result(self, kind: str) -> Path:
        """The folder of the result, of kind `adapter` or `model`."""
        return self.model if kind == "model" else self.adapter

    def require_new(self) -> None:
        """Require that the folder does not exist or is empty.

        Raises:
            RunError: it holds something.
        """
        if self.root.exists() and not self.is_unstarted():
            raise RunError(
                f"{self.root}: not empty; a run is never written over another.",
                "Choose another --output, continue this one with --resume, or remove it.",
            )

    def is_unstarted(self) -> bool:
        """Whether the folder is empty, or a run was ended in it before it had written anything but its config."""
        if not self.root.is_dir():
            return False
        leftovers = {LOCK_FILE, self.config.name, f".{self.config.name}.tmp", f".{self.summary.name}.tmp"}
        names = {path.name for path in self.root.iterdir()}
        return names <= leftovers and (LOCK_FILE in names or not names)

    @contextmanager
    def lock(self, new: bool) -> Iterator[None]:
        """Create the folder if it is not there, and keep other processes from training in it.

        Args:
            new: the folder must hold nothing yet.

        Raises:
            RunError: it cannot be created, is not empty, or another process trains in it.
        """
        with lock_folder(self.root, "training"):
            require_readable_folder(self.root)  # checkpoints are read, and logs written, by transformers
            if new:
                self.require_new()
            yield

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        return next(iter(self.checkpoints_newest_first()), None)

    def checkpoints_newest_first(self) -> list[Path]:
        """All finished checkpoints."""
        checkpoints = []
        for path in self.checkpoints.glob("checkpoint-*"):
            match = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if match and (path / "trainer_state.json").is_file():
                checkpoints.append((int(match.group(1)), path))
        return [path for _, path in sorted(checkpoints, reverse=True)]

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def write_progress(self, phase: str, **values: Any) -> None:
        """Write progress.json.

        Args:
            phase: training, evaluating, saving, finished or stopped.
            values: step, max_steps, seconds, eta_seconds and the like.
        """
        with suppress(OSError):  # a full disk is reported where a checkpoint is saved
            write_json(self.progress, {"phase": phase, **values})

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged steps. Lines that are no entry with a step are skipped: a kill cuts the last one off."""
        return self._parse_metrics()[0]

    def _parse_metrics(self, path: Path | None = None) -> tuple[list[dict[str, Any]], int]:
        """The entries of a file, metrics.jsonl by default, and the number of lines that are none."""
        path = path or self.metrics
        if not path.is_file():
            return [], 0
        entries, bad = [], 0
        for line in require_readable(path).read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                entries.append(entry)
            else:
                bad += 1
        return entries, bad

    def drop_metrics_after(self, step: int) -> int:
        """Drop what was logged, and the samples, after `step`: a resumed run repeats those steps.

        Returns:
            The number of lines that were left out because they cannot be read.
        """
        bad = 0
        for path in (self.metrics, self.samples):
            if path is self.samples and not path.is_file():
                continue
            entries, invalid = self._parse_metrics(path)
            kept = [entry for entry in entries if entry["step"] <= step]
            write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))
            bad += invalid
        return bad


def default_root(model: str, method: str) -> Path:
    """A new folder's name: the model's own, the method and the time."""
    return Path("runs") / f"{slugify(Path(model).name, 'model')}-{method}-{file_timestamp()}"


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's."""
    return (Path(path) / "config.yaml").is_file()
