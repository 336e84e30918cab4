"""Who holds memory, of the GPU and of the machine, and giving back what is the page's own."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from glmtune.utils.operating_system import read_session
from glmtune.utils.shell_words import join_words
from glmtune.webui.context import Context
from glmtune.webui.gpu_memory import read_gpus
from glmtune.webui.jobs import Job

HolderKind = Literal["job", "leftover", "page", "command", "program", "unknown"]
_SCAN_SECONDS = 2.0
_MAX_NAME = 80
_UNKNOWN_BYTES = 300 * 2**20
"""Memory of a GPU in nobody's name below which nothing is said: the driver keeps some itself."""
_lock = threading.Lock()
_scans: list[tuple[float, dict[int, psutil.Process]]] = []


@dataclass(frozen=True)
class Holder:
    """Who holds memory.

    Attributes:
        kind: `job`: a running job; `leftover`: processes of a job that has ended; `page`: this server with the chat's
            models; `command`: a command of glmtune that was started elsewhere; `program`: any other on a GPU;
            `unknown`: memory of a GPU that the driver gives no process for.
        name: of the job, the models, the command line or the program.
        pid: of its first process; None: unknown.
        main_bytes: of the machine's memory.
        gpu_bytes: of the GPUs; None where the driver does not say.
        url: of its page.
        processes: what ends when it is freed, of a leftover.
    """

    kind: HolderKind
    name: str
    pid: int | None = None
    main_bytes: int = 0
    gpu_bytes: int | None = 0
    url: str = ""
    processes: tuple[psutil.Process, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether the page can free it without losing work: a running job is stopped on its own page."""
        return self.kind == "leftover" or (self.kind == "page" and bool(self.name))


def list_holders(context: Context) -> list[Holder]:
    """Everybody that is known to hold memory: jobs, this server, other commands of glmtune, programs on the GPUs."""
    gpus = read_gpus()
    on_gpu: dict[int, int | None] = {}
    for process in (process for gpu in gpus for process in gpu.processes):
        known = on_gpu.get(process.pid, 0)
        on_gpu[process.pid] = None if process.bytes is None or known is None else known + process.bytes
    scan = dict(_scan_processes())
    jobs = context.jobs.list()
    holders = [
        _make_job_holder(job, _take(scan, _list_tree(job.pid)), on_gpu) for job in jobs if job.state == "running"
    ]
    holders += _find_leftovers(jobs, scan, on_gpu)
    own = _take(scan, _list_tree(os.getpid()))  # with the short commands that the page runs, such as plans
    holders.append(_make_page_holder(context, own, on_gpu))
    for pid, process in scan.items():
        line = _read_command(process)
        if _is_glmtune(line):
            holders.append(Holder("command", _shorten(line), pid, _sum_bytes([process]), on_gpu.pop(pid, 0)))
    names = {process.pid: process.name for gpu in gpus for process in gpu.processes}
    holders += [Holder("program", Path(names[pid]).name[:_MAX_NAME], pid, 0, size) for pid, size in on_gpu.items()]
    rest = sum(gpu.used for gpu in gpus) - sum(holder.gpu_bytes or 0 for holder in holders)
    if rest > _UNKNOWN_BYTES:
        holders.append(Holder("unknown", "", gpu_bytes=rest))
    return holders


def free_holders(context: Context) -> tuple[list[Holder], list[Holder]]:
    """Give back what is the page's own: the chat's models, and processes of jobs that have ended.

    Returns:
        What was freed, and what still holds memory.
    """
    holders = list_holders(context)
    freed = [holder for holder in holders if holder.is_ours]
    context.models.clear()
    for process in (process for holder in freed for process in holder.processes):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # psutil checks that it is the same process
            process.terminate()
    with _lock:
        _scans.clear()
    return freed, [holder for holder in holders if not holder.is_ours and holder.kind != "page"]


def _make_job_holder(job: Job, processes: list[psutil.Process], on_gpu: dict[int, int | None]) -> Holder:
    name = f"{job.kind} {Path(job.output).name}" if job.output else job.kind
    url = f"/train?job={job.id}" if job.kind == "train" else f"/jobs/{job.id}"
    return Holder("job", name, job.pid, _sum_bytes(processes), _pop_gpu_bytes(processes, on_gpu), url)


def _make_page_holder(context: Context, own: list[psutil.Process], on_gpu: dict[int, int | None]) -> Holder:
    models = [context.shorten(target) for target in context.models.list_targets()]
    # A container's driver has other process ids: torch's own count then.
    on_card = _pop_gpu_bytes(own, on_gpu) or _read_torch_bytes()
    return Holder("page", ", ".join(models), os.getpid(), _sum_bytes(own), on_card)


def _read_torch_bytes() -> int:
    """Bytes that this process holds on GPUs, by torch's own count; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))


def _find_leftovers(
    jobs: Iterable[Job], scan: dict[int, psutil.Process], on_gpu: dict[int, int | None]
) -> list[Holder]:
    """Processes that a job has left: a job is a session of its own, whose number is that of its first process."""
    ended = {job.pid: job for job in jobs if not job.alive and job.pid and job.started and job.ended}
    groups: dict[int, list[psutil.Process]] = {}
    for pid, process in list(scan.items()):
        try:
            job = ended.get(read_session(pid))
            # Times: numbers are used again for sessions that have nothing to do with the job.
            if job and (job.started or 0) - 1 <= process.create_time() <= (job.ended or 0) + 1:
                groups.setdefault(job.pid or 0, []).append(scan.pop(pid))
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue
    return [
        Holder(
            *("leftover", f"{ended[session].kind} {Path(ended[session].output).name}".strip()),
            *(processes[0].pid, _sum_bytes(processes), _pop_gpu_bytes(processes, on_gpu)),
            processes=tuple(processes),
        )
        for session, processes in groups.items()
    ]


def _scan_processes() -> Mapping[int, psutil.Process]:
    """All processes of this user by id, listed once for all browsers that ask within `_SCAN_SECONDS`."""
    with _lock:
        if not _scans or time.monotonic() - _scans[0][0] > _SCAN_SECONDS:
            user = psutil.Process().username()
            found = {each.pid: each for each in psutil.process_iter(["username"]) if each.info["username"] == user}
            _scans[:] = [(time.monotonic(), found)]
        return _scans[0][1]


def _list_tree(pid: int | None) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first.pid, *(child.pid for child in first.children(recursive=True))]
    return []


def _take(scan: dict[int, psutil.Process], pids: Iterable[int]) -> list[psutil.Process]:
    processes = []
    for pid in pids:
        known = scan.pop(pid, None)
        with suppress(psutil.NoSuchProcess):
            processes.append(known or psutil.Process(pid))
    return processes


def _pop_gpu_bytes(processes: Iterable[psutil.Process], on_gpu: dict[int, int | None]) -> int | None:
    sizes = [on_gpu.pop(process.pid) for process in processes if process.pid in on_gpu]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _sum_bytes(processes: Iterable[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total


def _read_command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def _is_glmtune(line: list[str]) -> bool:
    """Whether a command line is one of glmtune: `glmtune serve ...` or `python -m glmtune serve ...`."""
    return any(Path(word).name == "glmtune" for word in line[:2]) or line[1:3] == ["-m", "glmtune"]


def _shorten(line: list[str]) -> str:
    """The command and what it works on, without options: their values may be passwords."""
    start = next((place for place, word in enumerate(line) if Path(word).name == "glmtune"), 0)
    words = [Path(word).name for word in line[start + 1 : start + 3] if not word.startswith("-")]
    return join_words(["glmtune", *words])[:_MAX_NAME]
