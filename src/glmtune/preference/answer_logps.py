"""Log-probabilities of answers, row by row, of packed rows.

Shapes: N targets of a batch, R rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.preference.reference_cache import find_reference_file, load_reference, save_reference
from glmtune.training.distributed import count_processes
from glmtune.training.loss import step_loss
from glmtune.utils.console import show_status


@torch.no_grad()
def compute_answer_logps(
    model: nn.Module,
    dataset: BlockDataset,
    collate: BlockCollator,
    arguments: TrainingArguments,
    is_evaluation: bool,
    identity: str = "",
) -> torch.Tensor:
    """Compute the log-probability of the answer of every row, without dropout.

    Args:
        model: any that `step_loss` takes.
        dataset: blocks of rows; not every row of its store has to be in one.
        collate: makes batches.
        arguments: of the training, for device, precision and batch sizes.
        is_evaluation: whether the rows are evaluated on. Batches have as many blocks as in training or evaluation, so
            that this pass needs no more memory than is planned for those.
        identity: of the model's weights, under which the result is kept on disk and found again; empty: it is not.

    Returns:
        (rows of the store,) in fp64 on the CPU; 0 where a row is in no block.
    """
    device = arguments.device
    size = arguments.per_device_eval_batch_size if is_evaluation else arguments.per_device_train_batch_size
    path = find_reference_file(identity, dataset, size, arguments) if identity else None
    if path is not None and (known_R := load_reference(path, len(dataset.rows))) is not None:
        return known_R
    table_R = torch.zeros(len(dataset.rows), dtype=torch.float64)
    dtype = torch.float16 if arguments.fp16 else torch.bfloat16
    starts = range(arguments.process_index * size, len(dataset), size * count_processes())
    was_training = model.training
    model.eval()
    with show_status("Reference log-probabilities") as status:
        for start in starts:
            status.update(f"Reference log-probabilities: {start:,} of {len(dataset):,} blocks")
            blocks = [dataset[index] for index in range(start, min(start + size, len(dataset)))]
            batch = collate(blocks).to(device)
            with torch.autocast(device.type, dtype, enabled=arguments.fp16 or arguments.bf16):
                losses_N = step_loss(model, batch)
            table_R[batch["rows"]] = sum_by_row(-losses_N, batch)[0].cpu()
    model.train(was_training)
    if count_processes() > 1:  # every process has computed the rows of its own batches
        shared_R = table_R.to(device)
        torch.distributed.all_reduce(shared_R)
        table_R = shared_R.cpu()
    if path is not None:
        save_reference(path, table_R)
    return table_R


def sum_by_row(values_N: torch.Tensor, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the targets' values and numbers of targets of each row, (R,) and (R,) in fp64: an answer's
    log-probability is in the hundreds, and differences of two are in the tenths."""
    ends_R = batch["row_lengths"].to(values_N.device).cumsum(0)
    rows_N = torch.bucketize(batch["target_positions"], ends_R, right=True)
    values_N = values_N.double()
    sums_R = values_N.new_zeros(len(ends_R)).index_add(0, rows_N, values_N)
    counts_R = values_N.new_zeros(len(ends_R)).index_add(0, rows_N, torch.ones_like(values_N))
    return sums_R, counts_R
