"""Start a command in several processes with torch's launcher, like torchrun, but without its tracebacks."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from glmtune.errors import ConfigError
from glmtune.training.distributed import require_gpus
from glmtune.utils.operating_system import count_oom_kills, list_hangup_signals, name_crash, send_to_children


@dataclass
class NodeRank:
    """This machine among several, and the address of the first one."""

    count: int = 1
    rank: int = 0
    address: str = ""
    """Of the machine with rank 0."""
    port: int = 29500


def launch_processes(nproc: int, arguments: Sequence[str], nodes: NodeRank | None = None) -> int:
    """Run `glmtune` in several processes on this machine, and wait for them.

    Args:
        nproc: number of processes; one per GPU.
        arguments: of the command, without `--nproc` and related options.
        nodes: for several machines, each of which runs this command with its own rank.

    Returns:
        The exit code: 0, 130 if the run was stopped, else that of the process that ended first, which is named; 1 if a
        signal killed it.

    Raises:
        ConfigError: more processes than GPUs, or no address of the first machine.
    """
    nodes = nodes or NodeRank()
    _check_arguments(nproc, nodes, on_cpu=any("use_cpu=true" in argument.lower() for argument in arguments))
    # torchrun would set 1, which is many times slower on a machine without GPUs.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    forwarded: list[int] = []

    def forward_signal(number: int, frame: FrameType | None) -> None:
        forwarded.append(number)
        send_to_children(number)

    previous = {number: signal.signal(number, forward_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    oom_kills = count_oom_kills()
    try:
        elastic_launch(_make_launch_config(nproc, nodes), sys.executable)("-m", "glmtune", *arguments)
    except ChildFailedError as error:
        rank, failure = _find_cause(error)
        if forwarded and (failure.exitcode == 130 or -failure.exitcode in forwarded):
            return 130
        if nproc * nodes.count > 1 and failure.exitcode != 130:
            print(describe_failure(rank, nproc * nodes.count, failure.exitcode, oom_kills), file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as error:  # SIGHUP, SIGQUIT: torch has ended the processes
        print(f"Stopped by {error.sigval.name}.", file=sys.stderr)
        return 128 + error.sigval
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def describe_failure(rank: int, count: int, exit_code: int, oom_kills: int = 0) -> str:
    """Say which process ended, and how.

    Args:
        rank: of the process.
        count: of all processes.
        exit_code: negative: the number of the signal that killed it.
        oom_kills: of the system before the processes started; see `count_oom_kills`.
    """
    which = f"Process {rank} of {count} (ranks 0 to {count - 1})"
    name = name_crash(exit_code)
    if name is None:
        return f"{which} ended with exit code {exit_code}; the others were stopped."
    text = f"{which} was killed by {name}; the others were stopped."
    if name != "SIGKILL":
        return text
    if count_oom_kills() > oom_kills:
        return f"{text}\nThe system was out of memory: start fewer processes, or use a smaller batch or model."
    return f"{text}\nIf nobody did that, the system was out of memory (see dmesg): start fewer processes."


def _find_cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """The process whose end is the cause: one that a signal killed, unless it is the launcher's own SIGTERM."""
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    killed = [item for item in failures if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    return (killed or failures)[0]


def _check_arguments(nproc: int, nodes: NodeRank, on_cpu: bool) -> None:
    if nproc < 1:
        raise ConfigError(f"--nproc is {nproc}; it must be at least 1.")
    if not on_cpu:
        require_gpus(nproc, torch.cuda.device_count())
    if not 0 <= nodes.rank < nodes.count:
        raise ConfigError(f"--node-rank is {nodes.rank}; with --nnodes {nodes.count} it is 0 to {nodes.count - 1}.")
    if nodes.count > 1 and not nodes.address:
        raise ConfigError("--nnodes needs the address of node 0.", "Give it with --master-addr HOST.")


def _make_launch_config(nproc: int, nodes: NodeRank) -> LaunchConfig:
    alone = nodes.count == 1
    return LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex if alone else "glmtune",
        rdzv_backend="c10d" if alone else "static",
        rdzv_endpoint="localhost:0" if alone else f"{nodes.address}:{nodes.port}",
        rdzv_configs={} if alone else {"rank": nodes.rank, "timeout": 900},
        local_addr="localhost" if alone else None,
        max_restarts=0,
        signals_to_handle=list_hangup_signals(),
    )
