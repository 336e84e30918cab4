"""Mean loss of trained adapters on rows that nobody learnt, in fp32: `training.py` compares contenders by it.

    python benchmarks/held_out.py MODEL ROWS.json ADAPTER...

Prints a JSON object: folder of the adapter to loss; the empty name is the base alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from glmtune import load_model


def main() -> None:
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("model")
    made.add_argument("rows", type=Path)
    made.add_argument("adapters", nargs="*")
    args = made.parse_args()
    rows = json.loads(args.rows.read_text("utf-8"))
    losses = {adapter: mean_loss(args.model, adapter or None, rows) for adapter in ["", *args.adapters]}
    print(json.dumps({"losses": losses}))


def mean_loss(model: str, adapter: str | None, rows: list[dict[str, list[int]]]) -> float:
    """Mean over all targets of the rows, one row at a time."""
    loaded = load_model(model, adapter=adapter, dtype="fp32")
    total, count = 0.0, 0
    for row in rows:
        ids_1T = torch.tensor([row["input_ids"]], device=loaded.device)
        labels_T = torch.tensor(row["labels"][1:], device=loaded.device)
        with torch.inference_mode():
            logits_TV = loaded(input_ids=ids_1T).logits[0, :-1].float()
        total += float(F.cross_entropy(logits_TV, labels_T, ignore_index=-100, reduction="sum"))
        count += int((labels_T != -100).sum())
    return total / count


if __name__ == "__main__":
    main()
