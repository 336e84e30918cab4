"""A bare training loop: the cost of a step with nothing around it. One of the trainers of `training.py`.

    python benchmarks/bare_loop.py MODEL ROWS.json OUT --settings JSON [--precision bf16]

The model from transformers and peft, the rows of a batch packed without padding, attention per row, head and loss at
target positions only, AdamW. No trainer, no checks, no progress.
Tensor names end in their shape: T positions of all rows of a batch, N targets, H hidden, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, get_linear_schedule_with_warmup

from glmtune import load_model


def pack_batch(rows: list[dict[str, Any]], device: str) -> dict[str, Any]:
    """A batch as one sequence: ids and positions (1, T), lengths of its rows, positions and ids of the targets (N,)."""
    ids_T = torch.tensor([i for row in rows for i in row["input_ids"]], device=device)
    labels_T = torch.tensor([i for row in rows for i in [-100, *row["labels"][1:]]], device=device)
    lengths = [len(row["input_ids"]) for row in rows]
    positions_N = (labels_T[1:] != -100).nonzero().squeeze(1)
    return {
        "input_ids": ids_T[None],
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "row_lengths": lengths,
        "target_positions": positions_N,
        "targets": labels_T[positions_N + 1],
    }


def attend_per_row(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, row_lengths: list[int], **options: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row, (1, heads, T, D) each: no mask, and nothing computed that it would hide."""
    times = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(times, dim=1) for t in (key, value))
    parts = zip(*(t.split(row_lengths, dim=2) for t in (query, key, value)), strict=True)
    scale = options["scaling"]
    out = [F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale) for q, k, v in parts]
    return torch.cat(out, dim=2).transpose(1, 2), None


def compute_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Mean cross-entropy of the targets."""
    base = model.get_base_model()
    inputs = {name: batch[name] for name in ("input_ids", "position_ids", "row_lengths")}
    hidden_TH = base.model(**inputs, use_cache=False).last_hidden_state[0]
    logits_NV = base.lm_head(hidden_TH[batch["target_positions"]])
    return F.cross_entropy(logits_NV.float(), batch["targets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    task, device = args.settings, "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(42)
    model: Any = load_model(args.model, dtype=args.precision, device=device)
    AttentionInterface.register("by_row", attend_per_row)
    model.set_attn_implementation("by_row")
    lora = LoraConfig(
        r=task["rank"], lora_alpha=task["alpha"], lora_dropout=task["dropout"], target_modules=task["targets"]
    )
    model = get_peft_model(model, lora).train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    rows = json.loads(args.rows.read_text("utf-8"))
    batches = [rows[i : i + task["batch"]] for i in range(0, len(rows), task["batch"])]
    optimizer = torch.optim.AdamW(trainable, lr=task["learning_rate"], weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    losses = []
    start = time.perf_counter()
    for rows_of_batch in batches:
        batch = pack_batch(rows_of_batch, device)
        with torch.autocast(device, torch.bfloat16, enabled=args.precision == "bf16"):
            loss = compute_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    seconds = time.perf_counter() - start
    model.save_pretrained(args.out, save_embedding_layers=False)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    print(json.dumps({"seconds": seconds, "losses": losses, "device_peak_bytes": peak}))


if __name__ == "__main__":
    main()
