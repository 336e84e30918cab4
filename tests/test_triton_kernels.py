"""The Triton kernels of packed weights in Triton's interpreter; which path a machine without Triton takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from glmtune.quantization import device_kernels
from glmtune.quantization.device_kernels import PackedPath, pick_path


def test_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        Path(__file__).with_name("triton_cases.py"),
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "passed" in result.stdout
    assert "skipped" not in result.stdout


def test_no_kernels_without_triton(monkeypatch):
    monkeypatch.setattr(device_kernels, "is_installed", lambda module: False)
    assert pick_path.__wrapped__(torch.device("cpu"), 4, torch.float16) == PackedPath(
        False, False, "Triton is not installed"
    )
