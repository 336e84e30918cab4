"""Training in several processes: the process group, and what the main process does for all.

With a single process the functions do nothing, or return their argument.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from rich.console import Console
from torch.distributed.rendezvous import rendezvous

from glmtune.errors import ConfigError, TrainingError, summarize_error

T = TypeVar("T")

# Seconds in which the launcher ends the other processes after one has failed.
_GRACE = 30.0


def init_process_group(training: Mapping[str, Any]) -> None:
    """Initialise the process group if torchrun, `accelerate launch` or `--nproc` started several processes.

    Args:
        training: the section of a run's config; `use_cpu`, `ddp_backend` and `ddp_timeout` count.

    Raises:
        ConfigError: more processes on this machine than it has GPUs.
    """
    if _world_size() == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available() and not training.get("use_cpu"):
        require_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if dist.is_nccl_available():  # Windows has none
            backend = "cpu:gloo,cuda:nccl"  # gloo for objects that are not part of the training
    # FSDP and DeepSpeed call deprecated names of torch, which warns at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    timeout = timedelta(seconds=float(training.get("ddp_timeout") or 1800))
    dist.init_process_group(
        training.get("ddp_backend") or backend,
        store=_store(),
        rank=int(os.environ["RANK"]),
        world_size=_world_size(),
        timeout=timeout,
    )


def require_gpus(processes: int, gpus: int) -> None:
    """Require a GPU for each process of this machine, if there are any.

    Raises:
        ConfigError: there are GPUs, but not one for each process of this machine.
    """
    if 0 < gpus < processes:
        raise ConfigError(
            f"{processes} processes on a machine with {gpus} visible GPUs; each needs its own.",
            f"Start {gpus} (--nproc {gpus}), or set training.use_cpu=true.",
        )


def destroy_at_exit() -> None:
    """Destroy the process group at exit; torch warns about processes that do not."""
    if dist.is_initialized():
        _leave_at_exit()


def hard_exit(code: int) -> NoReturn:
    """End this process, one of several, without shutting down the interpreter.

    gloo's threads outlive their group if DistributedDataParallel was used. One that releases a tensor during
    interpreter shutdown aborts the process, and the launcher would report a finished training as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def count_processes() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return int(os.environ.get("RANK", 0)) == 0


def voice(console: Console) -> Console:
    """The console of the main process; one that says nothing for the others."""
    return console if is_main_process() else Console(quiet=True)


def broadcast_object(value: T) -> T:
    """Return the value of the main process in all processes."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.monitored_barrier() if dist.get_backend() == "gloo" else dist.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in any process; all must call it."""
    if not dist.is_initialized():
        return flag
    result = torch.tensor(int(flag), device=device)
    dist.all_reduce(result, dist.ReduceOp.MAX)
    return bool(result)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let the main process run the block before the others do."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


@contextmanager
def report_error_once() -> Iterator[None]:
    """Let one process only raise an error: others have the same one, or fail because that process has ended.

    Raises:
        TrainingError: another process has ended, so that a message to it failed.
        SystemExit: 1, in the other processes, if the launcher has not ended them before.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if _world_size() > 1 and _store().add("glmtune/failed", 1) > 1:
            time.sleep(_GRACE)
            raise SystemExit(1) from None
        if _world_size() > 1 and _is_lost_process(error):  # and that one could not report why
            raise TrainingError(
                f"Process {os.environ.get('RANK', 0)} has lost another process of the training "
                f"({summarize_error(error, 120)}).",
                "Find out why that one ended, then continue with --resume.",
            ) from None
        raise


def _is_lost_process(error: BaseException) -> bool:
    """Whether a collective operation failed because another process is gone."""
    if isinstance(error, dist.DistNetworkError | dist.DistBackendError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "monitoredBarrier")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _world_size() -> int:
    """Number of processes, from the launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


@cache
def _store() -> Any:
    """The store of the process group, from the launcher's addresses."""
    store, _, _ = next(rendezvous("env://"))
    return store


@cache
def _leave_at_exit() -> None:
    atexit.register(dist.destroy_process_group)
