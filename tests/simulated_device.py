"""Processes with the simulated CUDA device, a small extension of torch kept beside the published tokenizers
(`fake_cuda` in GLMTUNE_ASSETS): operations that mix devices raise as on a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import REPOSITORY, find_asset


def build_simulated_device(out: Path) -> dict[str, str]:
    """Compile the device.

    Args:
        out: an empty folder.

    Returns:
        The environment of a process that has it. It must be there before torch is imported.
    """
    folder = find_asset("fake_cuda")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler to build the simulated device with")
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["bash", str(folder / "build.sh"), str(out)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    folders = [folder, *(REPOSITORY / name for name in ("src", "tests", "tests/fake_device", "tools", "benchmarks"))]
    return {
        "FAKE_CUDA_HOOKS": str(out / "libhooks.so"),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "HF_DEACTIVATE_ASYNC_LOAD": "1",
        "OMP_NUM_THREADS": "1",
    }


def run_on_device(environment: dict[str, str], job: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """Run `fake_device/device_worker.py`.

    Args:
        environment: from `build_simulated_device`.
        job: what to run; see there.
        work: an empty folder.

    Returns:
        Its results, a dict each.
    """
    worker = REPOSITORY / "tests" / "fake_device" / "device_worker.py"
    out = work / "results.jsonl"
    result = subprocess.run(
        [sys.executable, str(worker)],
        input=json.dumps(job | {"work": str(work), "out": str(out)}),
        env=os.environ | environment | {"GLMTUNE_CACHE": str(work / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    (work / "log.txt").write_text(result.stdout + result.stderr, "utf-8")
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]
