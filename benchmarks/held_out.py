"""Mean loss of trained adapters on held-out rows, in fp32: `training.py` compares trainers by it.

    python benchmarks/held_out.py MODEL ROWS.json ADAPTER...

Prints a JSON object: folder of the adapter -> loss; the empty name is the base alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from glmtune import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("adapters", nargs="*")
    args = parser.parse_args()
    rows = json.loads(args.rows.read_text("utf-8"))
    losses = {adapter: compute_mean_loss(args.model, adapter or None, rows) for adapter in ["", *args.adapters]}
    print(json.dumps({"losses": losses}))


def compute_mean_loss(model_path: str, adapter: str | None, rows: list[dict[str, list[int]]]) -> float:
    """Mean over all targets of the rows, one row at a time."""
    model = load_model(model_path, adapter=adapter, dtype="fp32")
    total, count = 0.0, 0
    for row in rows:
        ids_1T = torch.tensor([row["input_ids"]], device=model.device)
        labels_T = torch.tensor(row["labels"][1:], device=model.device)
        with torch.inference_mode():
            logits_TV = model(input_ids=ids_1T).logits[0, :-1].float()
        total += float(F.cross_entropy(logits_TV, labels_T, ignore_index=-100, reduction="sum"))
        count += int((labels_T != -100).sum())
    return total / count


if __name__ == "__main__":
    main()
