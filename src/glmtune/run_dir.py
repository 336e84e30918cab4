"""The run folder: what lies where, and writing that never leaves half a file behind.

config.yaml         the run with every default filled in
metrics.jsonl       a JSON object per logged step
checkpoints/        checkpoint-N, whole or not there at all
adapter/ | model/   what was trained
summary.json        speed, memory, losses, versions, the base's fingerprint
loss.png            the curves
report.html         all of it as a page
eval/               scores, a folder per data set; forgetting.json: the probe before and after
stop                a file that asks a running training for a clean stop
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import RunError

if TYPE_CHECKING:
    from filelock import FileLock

_LOCK = ".lock"


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
        """Where the result lies: `adapter` or `model`."""
        return self.model if kind == "model" else self.adapter

    def require_new(self) -> None:
        """Raises:
        RunError: the folder exists and holds something.
        """
        if self.root.exists() and (not self.root.is_dir() or any(path.name != _LOCK for path in self.root.iterdir())):
            raise RunError(
                f"{self.root}: in use already; a run is never written over another.",
                "Choose another --output, continue this one with --resume, or remove it.",
            )

    @contextmanager
    def held(self, new: bool) -> Iterator[None]:
        """Make the folder if it is not there, and keep other processes from training in it.

        Args:
            new: the folder must hold nothing yet.

        Raises:
            RunError: it cannot be made, is not empty, or another process trains in it.
        """
        lock = self._lock()
        try:
            if new:
                self.require_new()
            yield
        finally:
            lock.release()

    def _lock(self) -> FileLock:
        """The lock of the folder, taken; the system frees it when the process ends, however it ends."""
        from filelock import FileLock, Timeout  # here, for every command imports this file

        lock = FileLock(self.root / _LOCK, timeout=0)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.root}: another process is training in this folder.", "Wait for it, or choose another --output."
            ) from None
        except OSError as error:
            raise RunError(f"{self.root}: cannot be made ({error.strerror}).", "Choose another --output.") from None
        return lock

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        return next(iter(self.checkpoints_newest_first()), None)

    def checkpoints_newest_first(self) -> list[Path]:
        """All finished checkpoints."""
        found = [(step, path) for step, path in self._numbered() if (path / "trainer_state.json").is_file()]
        return [path for _, path in sorted(found, reverse=True)]

    def append_metrics(self, entry: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged steps; a last line cut short by a kill is left out."""
        if not self.metrics.is_file():
            return []
        entries = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries

    def drop_metrics_after(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run does those steps again."""
        kept = [entry for entry in self.read_metrics() if entry.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept))

    def _numbered(self) -> Iterator[tuple[int, Path]]:
        for path in self.checkpoints.glob("checkpoint-*"):
            match = re.fullmatch(r"checkpoint-(\d+)", path.name)
            if match:
                yield int(match.group(1)), path


def default_root(model: str, method: str) -> Path:
    """A new folder's name: the model's own, the method and the time."""
    name = re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-") or "model"
    return Path("runs") / f"{name}-{method}-{time.strftime('%Y%m%d-%H%M%S')}"


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a run's."""
    return (Path(path) / "config.yaml").is_file()


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once it is whole; half of one is removed."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")
