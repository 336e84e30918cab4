"""Every method, precision and generation on a simulated GPU: trained, evaluated, saved, resumed and decoded."""

from __future__ import annotations

import itertools
import json

import pytest
from simulated_device import build_simulated_device, run_on_device

from tiny import FAMILIES

PRECISIONS = {"7.5": ("fp32", "fp16"), "8.6": ("fp32", "bf16", "fp16")}


def list_cells(kind: str, capability: str) -> list[dict[str, str | None]]:
    """The cells of bases in full precision, of quantised ones, or of pairs of answers."""
    precisions = PRECISIONS[capability]
    if kind == "full":
        runs = [*itertools.product(("lora", "ptuning", "freeze", "full"), ["sft"], [None], precisions)]
    elif kind == "quantized":
        quantized = (("lora", "int8"), *(("ptuning", name) for name in ("packed4", "packed8", "nf4", "int8")))
        runs = [("qlora", "sft", None, precision) for precision in precisions]
        runs += [(method, "sft", name, precisions[1]) for method, name in quantized]
    else:
        runs = [("lora", "dpo", None, precision) for precision in precisions]
        runs += [("lora", stage, None, precisions[1]) for stage in ("orpo", "simpo", "kto", "rm")]
        runs += [(method, "dpo", None, precisions[1]) for method in ("qlora", "ptuning", "full")]
        runs += [("ptuning", "kto", None, precisions[1]), ("qlora", "rm", None, precisions[1])]
    return [dict(zip(("method", "stage", "quantization", "precision"), run, strict=True)) for run in runs]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return build_simulated_device(tmp_path_factory.mktemp("device"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("capability", PRECISIONS)
@pytest.mark.parametrize("kind", ["full", "quantized", "pairs"])
def test_methods(kind, capability, family, environment, tmp_path):
    cells = list_cells(kind, capability)
    job = {"proofs": [], "runs": [{"family": family, "capability": capability, "cells": cells}]}
    results = run_on_device(environment, job, tmp_path)
    for result in results:
        print(json.dumps(result, ensure_ascii=False))
    assert len(results) == len(cells)
    assert not [result for result in results if not result["ok"]]
