"""The proofs of benchmarks/gpu.py on a CUDA device that is not there: operations that mix devices raise as on a GPU.

The device is a small extension of torch kept beside the published tokenizers (`fake_cuda` in GLMTUNE_ASSETS).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from conftest import REPOSITORY, find_asset

# Transformers and peft are imported, and a model is loaded, before the device appears: they read its functions once.
SCRIPT = """
import fakecuda
import sys
import bitsandbytes, peft, glmtune
for family in ("chatglm", "chatglm2"):
    glmtune.load_model(sys.argv[1] + "/tests/golden/" + family, device="cpu")
sys.path.append(sys.argv[1] + "/benchmarks")
import gpu_cells
from gpu_results import Setup
fakecuda.SM = capability = tuple(map(int, sys.argv[2].split(".")))
with fakecuda.world(capability):
    for cell in ("golden_parity", "packed_parity", "row_parity"):
        gpu_cells.CELLS[cell](Setup("cuda", "tiny"))
    for run in sys.argv[3:]:
        method, precision = run.split(":")
        gpu_cells.gpu_proofs.prove_training("cuda", method, [precision])
"""


@pytest.fixture(scope="module")
def fake_cuda(tmp_path_factory):
    folder = find_asset("fake_cuda")
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler to build the fake device with")
    out = tmp_path_factory.mktemp("fake-cuda")
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    command = ["bash", str(folder / "build.sh"), str(out)]
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return {"FAKE_CUDA_HOOKS": str(out / "libhooks.so"), "PYTHONPATH": f"{folder}:{REPOSITORY / 'src'}"}


# Training takes long on this device: each method is trained once.
@pytest.mark.parametrize(
    ("capability", "runs"), [("7.5", ["lora:fp16", "freeze:fp32"]), ("8.6", ["ptuning:fp16", "full:bf16"])]
)
def test_numbers_and_devices(fake_cuda, capability, runs):
    command = [sys.executable, "-c", SCRIPT, str(REPOSITORY), capability, *runs]
    environment = os.environ | fake_cuda | {"HF_DEACTIVATE_ASYNC_LOAD": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    proofs = [line for line in lines if line["kind"] == "proof"]
    assert not [proof for proof in proofs if not proof["ok"]]
    names = {proof["name"] for proof in proofs}
    assert {f"{run.replace(':', ' ')}: losses as on the CPU" for run in runs} < names
