"""Long work as ordinary commands, one after the other, that outlive the page and the server.

A job is a file `<id>.json` in the state folder, beside it `<id>.log` and, once it ended, `<id>.exit`. Whatever server
looks into the folder next finds the same jobs: running ones by process id and start time, so that a recycled id is
not taken for them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import psutil
from filelock import FileLock

from glmtune.run_dir import RunDir, is_run
from glmtune.utils.console import print_warning
from glmtune.utils.documents import shorten_path, shorten_value
from glmtune.utils.file_access import make_limit_variable
from glmtune.utils.io import find_json_object, read_json_object, write_json
from glmtune.utils.operating_system import make_detached_options, stop_detached
from glmtune.webui.errors import JobError

State = Literal["queued", "running", "finished", "failed", "stopped"]
COMMAND = (sys.executable, "-m", "glmtune")
_TICK_SECONDS = 1.0
_WAIT_SECONDS = 0.2
_ID = re.compile(r"[\w-]{1,80}")
_TAIL_BYTES = 256 * 1024
_BROKEN_HINT = "Remove the file: the result of the job is in its own folder."
_INTERRUPTED = 130
"""Exit code of a training that was stopped cleanly."""


@dataclass
class Job:
    """A command that was asked for on the page."""

    id: str
    kind: str
    """What it does: train, eval, compare, export and so on."""
    arguments: list[str]
    """What follows `glmtune` on the command line."""
    output: str
    """Folder of its result; of a training, the run folder."""
    owner: str
    """Who asked for it, see `guard.owner_of`."""
    state: State = "queued"
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    """Seconds since 1970."""
    exit_code: int | None = None
    pid: int | None = None
    born: float | None = None
    """Start time of the process as the system has it."""
    stops: int = 0
    """How often it was asked to stop."""

    @property
    def alive(self) -> bool:
        """Whether it is waiting or at work."""
        return self.state in ("queued", "running")


_Jobs = list[Job]  # inside the class, `list` is a method


class Jobs:
    """The jobs of a server.

    Args:
        folder: where their state is kept.
        workdir: where the commands run.
        on_end: called with a job that has ended, while the jobs are locked.
    """

    def __init__(self, folder: Path, workdir: Path, on_end: Callable[[Job], object] | None = None):
        self._folder = folder
        self._workdir = workdir
        self._on_end = on_end
        self._starts_jobs = True
        self._thread_lock = threading.RLock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._broken: set[str] = set()
        self._ended: dict[str, tuple[int, Job]] = {}  # with the time of the file: thousands are not read each second
        folder.mkdir(parents=True, exist_ok=True)
        # Two servers may share a root; the file lock keeps them from starting the same job.
        self._file_lock = FileLock(folder / ".lock")

    def watch(self) -> None:
        """Keep the queue moving while no page is open."""
        threading.Thread(target=self._watch, name="glmtune-jobs", daemon=True).start()

    def submit(self, kind: str, arguments: list[str], output: str, owner: str) -> Job:
        """Queue `glmtune ARGUMENTS`; it starts at once if nothing else runs.

        Raises:
            JobError: a job that has not ended yet writes to the same folder.
        """
        with self._held():
            rival = next((job for job in self._read_all() if job.alive and output and job.output == output), None)
            if rival is not None:
                raise JobError(
                    f"{output}: another job ({rival.kind}, {rival.state}) writes there.",
                    "Wait for it, or choose another folder.",
                )
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
            self._write(Job(name, kind, list(arguments), output, owner, created=time.time()))
            self._advance()
            return self._read(name)

    def stop(self, id: str) -> Job:
        """Ask a job to stop. A training saves a checkpoint first; the second time it is interrupted at once.

        Raises:
            JobError: there is no such job.
        """
        with self._held():
            self._advance()
            job = self._read(id)
            if not job.alive:
                return job
            job.stops += 1
            if job.state == "queued":
                job.state, job.ended = "stopped", time.time()
            elif job.kind != "train":
                _stop(job)
            elif job.stops > 1:
                _stop(job, interrupt=True)
            self._write(job)
            self._advance()
            return self._read(id)

    def stop_running(self) -> None:
        """Stop what runs and wait until it has ended: a training saves a checkpoint.

        Jobs that wait stay queued for the next server of the folder; this one starts no more.
        """
        self._starts_jobs = False
        for job in self.list():
            if job.state == "running":
                print(f"glmtune ui: stopping {job.kind} ({job.output or job.id})", flush=True)
                self.stop(job.id)
        while any(job.state == "running" for job in self.list()):
            time.sleep(_WAIT_SECONDS)

    def list(self) -> _Jobs:
        """All jobs, the newest first."""
        with self._held():
            self._advance()
            return sorted(self._read_all(), key=lambda job: (job.created, job.id), reverse=True)

    def get(self, id: str) -> Job:
        """The job as it is now.

        Raises:
            JobError: there is none of that id.
        """
        with self._held():
            self._advance()
            return self._read(id)

    def find_log(self, id: str) -> Path:
        """The file of what the command prints, which it may not have begun.

        Raises:
            JobError: there is no such job.
        """
        self._path(id)
        return self._folder / f"{id}.log"

    def tail(self, id: str, lines: int = 300) -> str:
        """The last lines of what the command printed.

        Raises:
            JobError: there is no such job.
        """
        log = self.find_log(id)
        if not log.is_file():
            return ""
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            said = stream.read().decode("utf-8", errors="replace")
        # What a bar overwrote on a terminal is left out.
        return "\n".join(line.rsplit("\r", 1)[-1] for line in said.rstrip("\n").split("\n")[-lines:])

    def remove_ended(self, select_old: Callable[[Iterator[tuple[float, Path]]], Sequence[Path]]) -> int:
        """Remove jobs that have ended, with their logs.

        Args:
            select_old: chooses from the times of their ends, in seconds since 1970, and their files.

        Returns:
            The number of removed jobs.
        """
        with self._held():
            self._advance()
            ended = [job for job in self._read_all() if not job.alive]
            old = select_old((job.ended or job.created, self._folder / f"{job.id}.json") for job in ended)
            for path in old:
                for suffix in (".log", ".exit", ".json"):  # the last one is what makes it a job
                    path.with_suffix(suffix).unlink(missing_ok=True)
                self._ended.pop(path.stem, None)
        return len(old)

    def _watch(self) -> None:
        while True:
            try:
                with self._held():
                    self._advance()
            except Exception as error:  # a full disk, say: the queue goes on when it is well again
                print_warning(f"The queue of jobs: {type(error).__name__}: {error}")
            time.sleep(_TICK_SECONDS)

    @contextmanager
    def _held(self) -> Iterator[None]:
        with self._thread_lock, self._file_lock:
            yield

    def _advance(self) -> None:
        """Bring states up to date, and start the next job if none runs."""
        jobs = sorted(self._read_all(), key=lambda job: (job.created, job.id))
        for job in jobs:
            if job.state == "running":
                self._look_after(job)
        if self._starts_jobs and not any(job.state == "running" for job in jobs):
            waiting = next((job for job in jobs if job.state == "queued"), None)
            if waiting is not None:
                self._start(waiting)

    def _look_after(self, job: Job) -> None:
        if job.id in self._children:
            self._children[job.id].poll()  # an ended child stays a zombie until it is asked
        if _is_running(job):
            if job.kind == "train" and job.stops:
                _ask_to_stop(job)
            return
        self._children.pop(job.id, None)
        left = self._exit(job)
        job.exit_code, job.ended = left.get("code"), left.get("ended", time.time())
        if job.exit_code == 0:
            job.state = "finished"
        else:
            job.state = "stopped" if job.stops or job.exit_code == _INTERRUPTED else "failed"
        if job.kind == "train":
            RunDir(job.output).stop.unlink(missing_ok=True)
        self._write(job)
        if self._on_end is not None:
            self._on_end(job)

    def _start(self, job: Job) -> None:
        command = [*COMMAND, *job.arguments]
        with (self._folder / f"{job.id}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "glmtune.webui.runner", str(self._folder / f"{job.id}.exit"), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._workdir,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **make_limit_variable()},
                **make_detached_options(),
            )
        self._children[job.id] = process
        job.state, job.started, job.pid = "running", time.time(), process.pid
        job.born = psutil.Process(process.pid).create_time()
        self._write(job)

    def _exit(self, job: Job) -> dict[str, Any]:
        """What the runner wrote; nothing if it was killed itself."""
        return find_json_object(self._folder / f"{job.id}.exit") or {}

    def _path(self, id: str) -> Path:
        path = self._folder / f"{id}.json"
        if not _ID.fullmatch(id) or not path.is_file():
            raise JobError(f"{shorten_path(id) or '(none)'}: no such job.", "Choose one of the list.")
        return path

    def _read(self, id: str) -> Job:
        path = self._path(id)
        content = read_json_object(path, JobError, _BROKEN_HINT)
        hints = get_type_hints(Job)
        wrong = [name for name, value in content.items() if name not in hints or not _has_type(value, hints[name])]
        missing = [field.name for field in fields(Job) if field.default is MISSING and field.name not in content]
        if wrong or missing:
            raise JobError(f"{path}: not a job: {', '.join(map(shorten_value, wrong + missing))}.", _BROKEN_HINT)
        return Job(**content)

    def _read_all(self) -> _Jobs:
        """All jobs; a file that is none is named in the server's terminal, and harms no other job."""
        jobs = []
        for path in self._folder.glob("[!.]*.json"):
            try:
                changed = path.stat().st_mtime_ns
                known, job = self._ended.get(path.stem, (0, None))
                if job is None or known != changed:
                    job = self._read(path.stem)
                    if not job.alive:
                        self._ended[path.stem] = (changed, job)
                jobs.append(job)
            except FileNotFoundError:  # removed by hand since it was listed
                continue
            except JobError as error:
                if path.name not in self._broken:
                    print_warning(str(error))
                self._broken.add(path.name)
        return jobs

    def _write(self, job: Job) -> None:
        write_json(self._folder / f"{job.id}.json", asdict(job))


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file is of the type of a field of `Job`."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds = tuple(kind for kind in get_args(hint) or (hint,))
    return isinstance(value, (*kinds, int) if float in kinds else kinds) and not isinstance(value, bool)


def memory_of(job: Job) -> int:
    """Bytes of main memory that a job's processes hold; 0 once it ended."""
    if not _is_running(job):
        return 0
    total = 0
    try:
        runner = psutil.Process(job.pid)
        for process in [runner, *runner.children(recursive=True)]:
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # ended meanwhile
        pass
    return total


def _is_running(job: Job) -> bool:
    try:
        process = psutil.Process(job.pid)
        return process.create_time() == job.born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop(job: Job, interrupt: bool = False) -> None:
    if job.pid is not None and _is_running(job):
        stop_detached(job.pid, interrupt=interrupt)


def _ask_to_stop(job: Job) -> None:
    """Touch the run's stop file, again and again: a training that is still loading takes an old one away."""
    if is_run(job.output):
        RunDir(job.output).stop.touch()
