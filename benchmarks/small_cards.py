"""The table of `docs/plan.md`: what the plan gives for runs near the limit of small cards.

    PYTHONPATH=src python benchmarks/small_cards.py [--gpu-memory 6GB]

Nothing is loaded and nothing else is needed: models are planned from their published sizes, rows are random ids.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import memory
from gpu_figures import make_plan_request
from harness import MIB, format_table

from glmtune.training.plan.device import pick_device
from glmtune.training.plan.estimate import estimate_memory

ROWS: dict[str, Any] = {"batch": 4, "prompt": 256, "answer": 512, "checkpointing": True, "precision": "bf16"}
CELLS = {
    "ChatGLM3-6B, LoRA, 4 x 768, checkpointing": memory.Cell("chatglm3-6b", "lora", **ROWS),
    "ChatGLM3-6B, QLoRA, 4 x 768, checkpointing": memory.Cell("chatglm3-6b", "lora", "nf4", **ROWS),
    "ChatGLM-6B, P-Tuning v2 on int4, 1 x 128, accumulated 16 times": memory.Cell(
        "chatglm-6b", "ptuning", "packed4", batch=1, accumulation=16, prompt=42, answer=86, precision="bf16"
    ),
}
KEYS: list[dict[str, Any]] = [{}, {"embedding_on_host": True}]
KEYS += [{"embedding_on_host": True, "head_quantization": name} for name in ("packed8", "nf4", "packed4")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu-memory", default="6GB", help="the card, which decides the chunks of unpacking")
    device = pick_device(parser.parse_args().gpu_memory)
    rows = []
    for name, cell in CELLS.items():
        request = make_plan_request(cell, "cpu")
        # As published; random matrices of the benchmarks are not equal.
        spec = replace(request.spec, shares_head=request.spec.family.published_head_is_embedding)
        row = [name]
        for keys in KEYS:
            run = replace(request.run, model=replace(request.run.model, **keys))
            row.append(f"{estimate_memory(replace(request, spec=spec, run=run, device=device)).total / MIB:,.0f}")
        rows.append(row)
    heads = ["run", "as it is", "embedding on the host", "and head in packed8", "in nf4", "in packed4"]
    print("\n".join(format_table(heads, rows)))


if __name__ == "__main__":
    main()
