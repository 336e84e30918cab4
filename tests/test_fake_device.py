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
import json, random, sys
import bitsandbytes, peft, glmtune
for family in ("chatglm", "chatglm2"):
    glmtune.load_model(sys.argv[1] + "/tests/golden/" + family, device="cpu")
sys.path += [sys.argv[1] + "/benchmarks", sys.argv[1] + "/tests"]
import gpu_cells
from gpu_results import Setup
from glmtune.config import PTuningConfig
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.families import get_family
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.methods.ptuning import PTuning
from glmtune.models.packed_attention import set_packed_attention
from glmtune.training.loss import step_loss
from torch.nn.attention import varlen
import varlen_reference
varlen.varlen_attn = varlen_reference.make_device_kernel(fakecuda)  # torch has it for GPUs alone
fakecuda.SM = capability = tuple(map(int, sys.argv[2].split(".")))
with fakecuda.world(capability):
    for cell in ("golden_parity", "packed_parity", "row_parity"):
        gpu_cells.CELLS[cell](Setup("cuda", "tiny"))
    for run in sys.argv[3:]:
        method, precision = run.split(":")
        gpu_cells.gpu_proofs.prove_training("cuda", method, [precision])

    fakecuda.OLD_GQA = True  # torch up to 2.13 has no memory-efficient kernel for grouped queries

    def list_kernels(compute):
        fakecuda.SYNC.reset()
        compute()
        # index_put adds up gradients of an index in brackets, for which it sorts.
        return sorted(
            name for name in fakecuda.SYNC.ops
            if name in ("index_put", "sort") or name.startswith(("sdpa", "varlen")) and "backward" not in name
        )

    for name in ("chatglm", "chatglm2"):
        rng, rows = random.Random(0), []
        for number, length in enumerate((20, 7, 33, 12, 40, 9)):
            ids = [rng.randrange(5, 60) for _ in range(length)]
            context = length // 2 if name == "chatglm" else 0
            rows.append((number, EncodedRow(ids, [-100, *ids[1:]], context, number, "x")))
        batch = {key: value.to("cuda") for key, value in BlockCollator(get_family(name))([rows]).items()}
        for dtype in ("fp16", "fp32"):
            model = glmtune.load_model(sys.argv[1] + "/tests/golden/" + name, dtype=dtype, device="cuda")
            prompt = rows[0][1].input_ids[:10] + [model.config.bos_token_id or 9]
            options = {"max_new_tokens": 3, "stops": (), "padding": 3}
            decoding = list_kernels(lambda: list(decode_tokens(model, [prompt], pick_greedy, **options)))
            model = PTuning(PTuningConfig(5)).prepare(model).to("cuda")  # its gradients leave the embedding alone
            set_packed_attention(model)
            training = list_kernels(lambda: step_loss(model, batch).sum().backward())
            print(json.dumps([name, dtype, decoding, training]))
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

    _check_attention(capability, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")])


def _check_attention(capability, lines):
    """Never the math kernel, nothing sorted in the backward pass, and rows as they lie on Ampere in 16 bits."""
    assert len(lines) == 4
    for family, dtype, decoding, training in lines:
        is_flash = capability == "8.6" and dtype == "fp16"
        # ChatGLM-6B's prompts have a mask, which is converted once and not in each layer (sdpa_mask_to_float); the
        # tokens after it have none.
        masked = ["sdpa_efficient"] if family == "chatglm" else []
        assert decoding == ([*masked, "sdpa_flash"] if is_flash else ["sdpa_efficient"]), (family, dtype)
        assert training == ["varlen_attn" if is_flash else "sdpa_efficient"], (family, dtype)
