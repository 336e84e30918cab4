"""The proofs of benchmarks/gpu.py, and some methods, on a simulated CUDA device: mixed devices raise as on
a GPU. All methods, precisions and generations are in `fake_device/check_methods.py`, which takes minutes."""

from __future__ import annotations

import json

from simulated_device import build_simulated_device, run_on_device

SAMPLES = (
    ("chatglm2", "7.5", "qlora", "sft", "fp16", None),
    ("chatglm", "8.6", "ptuning", "sft", "bf16", "packed4"),
    ("glm4", "8.6", "full", "dpo", "fp32", None),
)


# One process for all: importing the libraries takes longer than a run.
def test_numbers_and_devices(tmp_path_factory):
    environment = build_simulated_device(tmp_path_factory.mktemp("device"))
    runs = [
        {
            "family": family,
            "capability": capability,
            "cells": [{"method": method, "stage": stage, "precision": precision, "quantization": quantization}],
        }
        for family, capability, method, stage, precision, quantization in SAMPLES
    ]
    work = tmp_path_factory.mktemp("work")
    results = run_on_device(environment, {"proofs": ["7.5", "8.6"], "runs": runs}, work)

    lines = [json.loads(line) for line in (work / "log.txt").read_text("utf-8").splitlines() if line.startswith('{"')]
    proofs = [line for line in lines if line.get("kind") == "proof"]
    assert not [proof for proof in proofs if not proof["ok"]]
    assert {"chatglm fp16: official logits and loss", "packed4 bf16, 8 rows"} < {proof["name"] for proof in proofs}

    cells = [result for result in results if "method" in result]
    assert len(cells) == len(SAMPLES)
    assert not [cell for cell in cells if not cell["ok"]]
    _check_attention([result for result in results if "training" in result])


def _check_attention(results):
    """Never the math kernel, nothing sorted in the backward pass, and rows as they lie on Ampere in 16 bits."""
    assert len(results) == 8
    for result in results:
        is_flash = result["capability"] == "8.6" and result["dtype"] == "fp16"
        # ChatGLM-6B's prompts have a mask, which is converted once and not in each layer (sdpa_mask_to_float); the
        # tokens after it have none.
        masked = ["sdpa_efficient"] if result["family"] == "chatglm" else []
        assert result["decoding"] == ([*masked, "sdpa_flash"] if is_flash else ["sdpa_efficient"]), result
        assert result["training"] == ["varlen_attn" if is_flash else "sdpa_efficient"], result
