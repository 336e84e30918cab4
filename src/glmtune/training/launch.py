"""Start a command in several processes with torch's launcher, like torchrun, but without its tracebacks."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType

import psutil
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from glmtune.errors import ConfigError
from glmtune.training.distributed import require_gpus


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
        The exit code: 0, 1 after an error (which was printed), 130 if the run was stopped.

    Raises:
        ConfigError: more processes than GPUs, or no address of the first machine.
    """
    nodes = nodes or NodeRank()
    _check_arguments(nproc, nodes, on_cpu=any("use_cpu=true" in argument.lower() for argument in arguments))
    # torchrun would set 1, which is many times slower on a machine without GPUs.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    previous = signal.signal(signal.SIGINT, _forward_signal)
    try:
        elastic_launch(_make_launch_config(nproc, nodes), sys.executable)("-m", "glmtune", *arguments)
    except ChildFailedError as error:
        return max(error.get_first_failure()[1].exitcode, 1)
    finally:
        signal.signal(signal.SIGINT, previous)
    return 0


def _forward_signal(number: int, frame: FrameType | None) -> None:
    """Forward Ctrl-C to the processes, which save after a common step; torch's launcher would kill them after 30 s."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


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
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
    )
