"""Numbers of `benchmarks/gpu.py`, and kernels of attention, on the simulated CUDA device."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import gpu_cells
from gpu_results import Setup

import glmtune
from conftest import GOLDEN
from glmtune.config import PTuningConfig
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.families import get_family
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.methods.ptuning import PTuning
from glmtune.models.packed_attention import set_packed_attention
from glmtune.training.loss import step_loss

FAMILIES = ("chatglm", "chatglm2")


def load_on_cpu() -> None:
    """Load what is imported by the first load."""
    for family in FAMILIES:
        glmtune.load_model(GOLDEN / family, device="cpu")


def run_proofs() -> None:
    """The official numbers, packed weights, and rows end to end; a line of JSON per proof on standard output."""
    for cell in ("golden_parity", "packed_parity", "row_parity"):
        gpu_cells.CELLS[cell](Setup("cuda", "tiny"))


def list_attention_kernels(fake: Any) -> Iterator[dict[str, Any]]:
    """The kernels of decoding and of a training step of P-Tuning, which leaves the embedding alone.

    Args:
        fake: the module `fakecuda`.
    """
    fake.OLD_GQA = True  # torch up to 2.13 has no memory-efficient kernel for grouped queries

    def list_kernels(compute: Callable[[], object]) -> list[str]:
        fake.SYNC.reset()
        compute()
        # index_put adds up gradients of an index in brackets, for which it sorts.
        return sorted(
            name
            for name in fake.SYNC.ops
            if name in ("index_put", "sort") or (name.startswith(("sdpa", "varlen")) and "backward" not in name)
        )

    for name in FAMILIES:
        rng, rows = random.Random(0), []
        for number, length in enumerate((20, 7, 33, 12, 40, 9)):
            ids = [rng.randrange(5, 60) for _ in range(length)]
            context = length // 2 if name == "chatglm" else 0
            rows.append((number, EncodedRow(ids, [-100, *ids[1:]], context, number, "x")))
        batch = {key: value.to("cuda") for key, value in BlockCollator(get_family(name))([rows]).items()}
        for dtype in ("fp16", "fp32"):
            model: Any = glmtune.load_model(GOLDEN / name, dtype=dtype, device="cuda")
            prompt = [*rows[0][1].input_ids[:10], model.config.bos_token_id or 9]
            options = {"max_new_tokens": 3, "stops": (), "padding": 3}
            decoding = list_kernels(lambda: decode_tokens(model, [prompt], pick_greedy, **options))  # noqa: B023
            tuned: Any = PTuning(PTuningConfig(5)).prepare(model).to("cuda")
            set_packed_attention(tuned)
            training = list_kernels(lambda: step_loss(tuned, batch).sum().backward())  # noqa: B023
            yield {"family": name, "dtype": dtype, "decoding": decoding, "training": training}
    fake.OLD_GQA = False
