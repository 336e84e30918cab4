"""Runs in a process with the simulated CUDA device: a job from standard input, a line of JSON per result to a file.

The job: `work` (an empty folder), `out` (the file), `proofs` (compute capabilities for `parity.py`), `runs` (a family,
a compute capability and cells of `method_cells.py` each).
"""

from __future__ import annotations

import fakecuda  # before torch

# isort: split
# They ask torch once whether there is a GPU: imported, and a model loaded, before the device appears.
import bitsandbytes  # noqa: F401
import peft  # noqa: F401

# isort: split
import gc
import json
import sys
from pathlib import Path
from typing import Any

import method_cells
import parity
import varlen_reference
from simulated_gpu import simulate_gpu
from torch.nn.attention import varlen

from conftest import draw_nothing


def read_capability(text: str) -> tuple[int, int]:
    major, minor = map(int, text.split("."))
    return major, minor


def main() -> None:
    job = json.load(sys.stdin)

    def write(result: dict[str, Any]) -> None:
        with Path(job["out"]).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result, ensure_ascii=False) + "\n")

    varlen.varlen_attn = varlen_reference.make_device_kernel(fakecuda)  # torch has it for GPUs alone
    parity.load_on_cpu()
    draw_nothing(setattr)
    gc.freeze()  # a training collects garbage, and looking at all objects of the libraries takes as long as its steps
    for text in job["proofs"]:
        with simulate_gpu(fakecuda, read_capability(text)):
            parity.run_proofs()
            for kernels in parity.list_attention_kernels(fakecuda):
                write({"capability": text, **kernels})
    for run in job["runs"]:
        device = method_cells.Device(fakecuda, read_capability(run["capability"]))
        work = Path(job["work"], f"{run['family']}-{run['capability']}")
        for result in method_cells.run_cells(device, run["family"], run["cells"], work):
            write({"capability": run["capability"], **result})
    gc.unfreeze()  # Triton lists what is left at the end of the process


if __name__ == "__main__":
    main()
