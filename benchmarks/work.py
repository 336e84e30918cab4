"""The reference work: which rows, which settings, and how many floating-point operations a sample of it needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models import Shape


@dataclass(frozen=True)
class Work:
    """LoRA on query, key and value; the same for every contender."""

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    batch: int = 4
    learning_rate: float = 5e-5
    length: int = 512
    """No row is longer; blocks of packed rows are this long."""
    rows: int = 64
    held_out: int = 32
    """Further rows, on which what was trained is compared."""
    same_order: bool = False
    """The rows sorted by length, and everybody in that order: batches and so losses are the same step by step. Else
    glmtune shuffles and groups rows as it does for its users, and the others go through the file."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def token_flops(shape: Shape) -> float:
    """Operations of one token's forward pass through all matrices of the layers: two per weight."""
    return 2.0 * shape.layers * shape.layer_linears


def attention_flops(shape: Shape, length: int) -> float:
    """Operations of scores and weighted sums in one forward pass of a row: position t sees t + 1 others, and each pair
    costs two operations per dimension of every head, twice."""
    pairs = length * (length + 1) / 2
    return 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def lora_flops(shape: Shape, work: Work) -> float:
    """Operations of one token's forward pass through the adapters."""
    kv = shape.groups * shape.head_dim
    sizes = {"q_proj": shape.hidden, "k_proj": kv, "v_proj": kv}
    return 2.0 * shape.layers * sum(work.rank * (shape.hidden + sizes[target]) for target in work.targets)


def sample_flops(shape: Shape, work: Work, length: int, targets: int) -> float:
    """The least that a LoRA step computes for one row, padding and recomputation left out.

    Frozen matrices: once forward and once backward, for the gradient of their input; of their own there is none. The
    same goes for the head, at target positions only. Attention costs twice as much backward, and so do the adapters,
    whose weights have gradients.

    Args:
        shape: of the model.
        work: the adapters' sizes.
        length: tokens of the row.
        targets: how many of them are predicted.
    """
    layers = 2 * token_flops(shape) * length
    attention = 3 * attention_flops(shape, length)
    adapters = 3 * lora_flops(shape, work) * length
    head = 2 * 2.0 * shape.head * targets
    return layers + attention + adapters + head


def step_flops(shape: Shape, method: str, work: Work, length: int, targets: int) -> float:
    """The least that a step of any method computes for one row.

    Full training needs the gradients of the matrices too: three times the forward pass, not twice. A prefix is left
    out of the count, as norms and the optimiser are.

    Args:
        shape: of the model.
        method: `lora`, `ptuning` or `full`.
        work: the adapters' sizes.
        length: tokens of the row.
        targets: how many of them are predicted.
    """
    if method == "lora":
        return sample_flops(shape, work, length, targets)
    times = 3 if method == "full" else 2
    matrices = token_flops(shape) * length + 2.0 * shape.head * targets
    return times * matrices + 3 * attention_flops(shape, length)


def mean_flops(shape: Shape, work: Work, rows: Sequence[dict[str, int]]) -> float:
    """Mean of `sample_flops` over rows that are described by `tokens` and `targets`."""
    return sum(sample_flops(shape, work, row["tokens"], row["targets"]) for row in rows) / len(rows)


def write_rows(data: Path, published: Path, work: Work, folder: Path) -> list[dict[str, int]]:
    """Cut the rows of the work out of a JSON-lines file, in the forms that the contenders read.

    `train.jsonl` and `held_out.jsonl` are the rows as they are, for trainers that render them themselves;
    `train_ids.json` and `held_out_ids.json` hold `input_ids` and `labels`, for those that take them.

    Returns:
        Tokens and targets of each training row.

    Raises:
        ValueError: the file has too few rows, or one is longer than the limit and would be cut.
    """
    from glmtune import detect_family, load_tokenizer

    lines = [line for line in data.read_text("utf-8").splitlines() if line.strip()]
    if len(lines) < work.rows + work.held_out:
        raise ValueError(f"{data} has {len(lines)} rows; {work.rows + work.held_out} are needed")
    family, tokenizer = detect_family(published), load_tokenizer(published)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": lines[: work.rows], "held_out": lines[work.rows : work.rows + work.held_out]}
    encoded = {}
    for name, part in parts.items():
        rows = [(line, _encode(json.loads(line), family, tokenizer)) for line in part]
        longest = max(len(row["input_ids"]) for _, row in rows)
        if longest > work.length:
            raise ValueError(f"{data}: a row of {longest} tokens; the limit is {work.length}")
        if work.same_order:
            rows.sort(key=lambda row: len(row[1]["input_ids"]))
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line, _ in rows), "utf-8")
        encoded[name] = [row for _, row in rows]
        (folder / f"{name}_ids.json").write_text(json.dumps(encoded[name]), "utf-8")
    return [{"tokens": len(row["input_ids"]), "targets": _targets(row["labels"])} for row in encoded["train"]]


def _encode(row: dict[str, str], family: Any, tokenizer: Any) -> dict[str, list[int]]:
    roles = (("user", row["content"]), ("assistant", row["summary"]))
    found = family.encode([{"role": role, "content": text} for role, text in roles], tokenizer)
    return {"input_ids": found.input_ids, "labels": found.labels}


def _targets(labels: Sequence[int]) -> int:
    return sum(label != -100 for label in labels[1:])
