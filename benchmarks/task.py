"""The reference task: its rows, its settings, and how many floating-point operations a sample of it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import Shape


@dataclass(frozen=True)
class LoraTask:
    """LoRA on query, key and value; the same for every trainer."""

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    batch: int = 4
    learning_rate: float = 5e-5
    length: int = 512
    """Maximum tokens of a row, and tokens of a packed block."""
    rows: int = 64
    held_out: int = 32
    """Number of further rows, on which the trained adapters are compared."""
    same_order: bool = False
    """Rows sorted by length, and every trainer in that order: batches, and so losses, are the same step by step. If
    not, glmtune shuffles and groups rows as by default, and the others read them in the order of the file."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def count_token_flops(shape: Shape) -> float:
    """Operations of one token's forward pass through all matrices of the layers: two per weight."""
    return 2.0 * shape.layers * shape.layer_linears


def count_attention_flops(shape: Shape, length: int) -> float:
    """Operations of scores and weighted sums in one forward pass of a row.

    Position t attends to t + 1 positions, and each pair costs two operations per dimension of every head, twice.
    """
    pairs = length * (length + 1) / 2
    return 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def count_lora_flops(shape: Shape, task: LoraTask) -> float:
    """Operations of one token's forward pass through the adapters."""
    kv = shape.groups * shape.head_dim
    sizes = {"q_proj": shape.hidden, "k_proj": kv, "v_proj": kv}
    return 2.0 * shape.layers * sum(task.rank * (shape.hidden + sizes[target]) for target in task.targets)


def count_sample_flops(shape: Shape, task: LoraTask, length: int, targets: int) -> float:
    """The minimum that a LoRA step computes for one row, without padding and recomputation.

    Frozen matrices: once forward and once backward, for the gradient of their input. The same for the head, at target
    positions only. Attention costs twice as much backward, and so do the adapters, whose weights have gradients.

    Args:
        shape: of the model.
        task: the adapters' sizes.
        length: tokens of the row.
        targets: number of them that are predicted.
    """
    layers = 2 * count_token_flops(shape) * length
    attention = 3 * count_attention_flops(shape, length)
    adapters = 3 * count_lora_flops(shape, task) * length
    head = 2 * 2.0 * shape.head * targets
    return layers + attention + adapters + head


def count_step_flops(shape: Shape, method: str, task: LoraTask, length: int, targets: int) -> float:
    """The minimum that a step of any method computes for one row.

    Full training needs the gradients of the matrices too: three times the forward pass, not twice. A prefix, norms and
    the optimiser are not counted.

    Args:
        shape: of the model.
        method: `lora`, `ptuning` or `full`.
        task: the adapters' sizes.
        length: tokens of the row.
        targets: number of them that are predicted.
    """
    if method == "lora":
        return count_sample_flops(shape, task, length, targets)
    times = 3 if method == "full" else 2
    matrices = count_token_flops(shape) * length + 2.0 * shape.head * targets
    return times * matrices + 3 * count_attention_flops(shape, length)


def count_mean_flops(shape: Shape, task: LoraTask, rows: Sequence[dict[str, int]]) -> float:
    """Mean of `count_sample_flops` over rows that are described by `tokens` and `targets`."""
    return sum(count_sample_flops(shape, task, row["tokens"], row["targets"]) for row in rows) / len(rows)


def write_rows(data: Path, published: Path, task: LoraTask, folder: Path) -> list[dict[str, int]]:
    """Write the first rows of a JSON-lines file in the formats that the trainers read.

    `train.jsonl` and `held_out.jsonl` have the rows unchanged, for trainers that render them; `train_ids.json` and
    `held_out_ids.json` have `input_ids` and `labels`, for the others.

    Returns:
        Tokens and targets of each training row.

    Raises:
        ValueError: the file has too few rows, or one is longer than the limit and would be truncated.
    """
    from glmtune import detect_family, load_tokenizer

    lines = [line for line in data.read_text("utf-8").splitlines() if line.strip()]
    if len(lines) < task.rows + task.held_out:
        raise ValueError(f"{data} has {len(lines)} rows; {task.rows + task.held_out} are needed")
    family, tokenizer = detect_family(published), load_tokenizer(published)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": lines[: task.rows], "held_out": lines[task.rows : task.rows + task.held_out]}
    encoded = {}
    for name, part in parts.items():
        rows = [(line, _encode_row(json.loads(line), family, tokenizer)) for line in part]
        longest = max(len(row["input_ids"]) for _, row in rows)
        if longest > task.length:
            raise ValueError(f"{data}: a row of {longest} tokens; the limit is {task.length}")
        if task.same_order:
            rows.sort(key=lambda row: len(row[1]["input_ids"]))
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line, _ in rows), "utf-8")
        encoded[name] = [row for _, row in rows]
        (folder / f"{name}_ids.json").write_text(json.dumps(encoded[name]), "utf-8")
    return [{"tokens": len(row["input_ids"]), "targets": _count_targets(row["labels"])} for row in encoded["train"]]


def _encode_row(row: dict[str, str], family: Any, tokenizer: Any) -> dict[str, list[int]]:
    roles = (("user", row["content"]), ("assistant", row["summary"]))
    encoded = family.encode([{"role": role, "content": text} for role, text in roles], tokenizer)
    return {"input_ids": encoded.input_ids, "labels": encoded.labels}


def _count_targets(labels: Sequence[int]) -> int:
    return sum(label != -100 for label in labels[1:])
