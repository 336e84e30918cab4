"""Where a run is in its rows: every checkpoint says how many blocks of the epoch it was trained on.

transformers derives that from the number of steps, which is right only if batch size, accumulation and number of
processes are what they were.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainingArguments

from glmtune.errors import RunError
from glmtune.training.samplers import name_order
from glmtune.utils.documents import parse_json, read_document
from glmtune.utils.io import write_json

POSITION_FILE = "data_position.json"


@dataclass(frozen=True)
class DataPosition:
    """The epoch, and the blocks of it that were trained on."""

    epoch: int
    blocks: int
    """In the order of the epoch; 0 at its start."""
    order: str
    """Of this epoch, see `samplers.make_epoch_sampler`."""


def write_position(folder: Path, position: DataPosition) -> None:
    """Write the file into the folder of a checkpoint."""
    write_json(folder / POSITION_FILE, dataclasses.asdict(position))


def read_position(folder: Path) -> DataPosition | None:
    """Read the position of a checkpoint; None for a checkpoint of an older version.

    Raises:
        RunError: the file is broken.
    """
    path = folder / POSITION_FILE
    if not path.is_file():
        return None
    try:
        content = parse_json(read_document(path))
        position = DataPosition(int(content["epoch"]), int(content["blocks"]), str(content["order"]))
        if min(position.epoch, position.blocks) < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path}: broken, so the rows that were trained on are unknown.",
            "Go back to an earlier checkpoint: glmtune train --resume CHECKPOINT",
        ) from None
    return position


def find_position(folder: Path, step: int, arguments: TrainingArguments, blocks: int, processes: int) -> DataPosition:
    """Find the position of a checkpoint; one of an older version was trained with the present batch size.

    Args:
        folder: of the checkpoint.
        step: of the checkpoint.
        arguments: of the run.
        blocks: of an epoch.
        processes: that train.

    Raises:
        RunError: its file is broken.
    """
    position = read_position(folder)
    if position is None:
        size = arguments.train_batch_size * processes * arguments.gradient_accumulation_steps
        micro_batches = count_micro_batches(blocks, arguments, processes)
        epoch, steps = divmod(step, max(1, -(-micro_batches // arguments.gradient_accumulation_steps)))
        order = name_order(str(arguments.train_sampling_strategy), size)
        position = DataPosition(epoch, min(steps * size, blocks), order)
    if position.blocks > blocks:
        raise RunError(f"{folder}: was trained on {position.blocks} blocks of an epoch, which now has {blocks}.")
    return dataclasses.replace(position, blocks=0) if arguments.ignore_data_skip else position


@dataclass(frozen=True)
class StepCounts:
    """How far a resumed run goes."""

    epochs: int
    """The number of the last epoch, counted from 1."""
    steps: int
    """Optimiser steps at the end of the run, those before the resumption included."""
    is_beyond: bool
    """Whether the checkpoint is already beyond the end."""


def count_micro_batches(blocks: int, arguments: TrainingArguments, processes: int) -> int:
    """Number of forward passes of each process over `blocks` blocks."""
    size = arguments.train_batch_size * processes
    # Several processes have idle blocks in the place of missing ones, so that none is dropped.
    return blocks // size if arguments.dataloader_drop_last and processes == 1 else -(-blocks // size)


def count_steps(
    arguments: TrainingArguments, blocks: int, processes: int, position: DataPosition, step: int
) -> StepCounts:
    """Count the steps of a run that continues at a position, with its present batch size.

    Args:
        arguments: of the run; `max_steps` takes precedence over `num_train_epochs`.
        blocks: of an epoch.
        processes: that train.
        position: of the checkpoint.
        step: of the checkpoint.
    """

    def count_updates(number: int) -> int:
        return -(-count_micro_batches(number, arguments, processes) // arguments.gradient_accumulation_steps)

    in_epoch = max(count_updates(blocks), 1)
    in_rest = count_updates(blocks - position.blocks)
    if arguments.max_steps > 0:
        last, is_beyond = arguments.max_steps, step > arguments.max_steps
    else:
        wanted = math.ceil(arguments.num_train_epochs * in_epoch)
        done = (position.epoch + 1) * in_epoch - in_rest  # as many steps of the present size
        last, is_beyond = step + max(0, wanted - done), done > wanted
    remaining = last - step
    more_epochs = -(-max(0, remaining - in_rest) // in_epoch)
    return StepCounts(position.epoch + (1 + more_epochs if remaining > 0 else 0), last, is_beyond)
