"""What a run will be fed: its largest batches, its steps and its tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import IntervalStrategy, TrainingArguments

from glmtune.data.batches import BlockDataset, Item
from glmtune.families import IGNORE
from glmtune.training.samplers import EpochSampler
from glmtune.training.training_data import Rows

# Batches looked at one by one, and rows read to count their targets: what takes a fraction of a second.
_BATCHES, _ROWS = 200_000, 4_000


@dataclass
class Work:
    """The data of a run as a plan needs it."""

    batch: list[Item]
    """The largest micro-batch of the training."""
    eval_batch: list[Item] | None
    steps: int
    tokens: int
    """Of all steps."""
    rows: int
    blocks: int
    lengths: list[int]
    """Shortest, median and longest block."""


def work_of(rows: Rows, arguments: TrainingArguments, processes: int, weights: tuple[float, float]) -> Work:
    """The largest batches, in the order that training draws them in.

    Args:
        rows: of the run.
        arguments: of the run.
        processes: that share the work.
        weights: bytes of a position and of a target, roughly: they decide which batch is the largest.
    """
    blocks, size = rows.train, arguments.per_device_train_batch_size
    micro = math.ceil(len(blocks) / (size * processes))
    each = math.ceil(micro / arguments.gradient_accumulation_steps)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(each * arguments.num_train_epochs)
    # A run of no epochs draws none, but has a size.
    wanted = min(max(steps, 1) * arguments.gradient_accumulation_steps * processes, _BATCHES)
    held = rows.eval
    evaluation = None
    if held is not None and IntervalStrategy(arguments.eval_strategy) is not IntervalStrategy.NO:
        in_order = _chunks(range(len(held)), arguments.per_device_eval_batch_size)
        evaluation = _largest(held, in_order, weights)
    lengths = sorted(blocks.lengths)
    return Work(
        _largest(blocks, _drawn(blocks, arguments, size, processes, wanted), weights),
        evaluation,
        steps,
        round(sum(lengths) * steps / each),
        sum(len(block) for block in blocks.blocks),
        len(blocks),
        [lengths[0], lengths[len(lengths) // 2], lengths[-1]],
    )


def _drawn(
    blocks: BlockDataset, arguments: TrainingArguments, size: int, processes: int, wanted: int
) -> Iterator[list[int]]:
    """Micro-batches as `GlmTrainer` draws them, epoch after epoch."""
    grouped = arguments.train_sampling_strategy == "group_by_length"
    group = size * processes * arguments.gradient_accumulation_steps if grouped else None
    sampler = EpochSampler(blocks.lengths, arguments.seed, group)
    epoch = 0
    while wanted > 0:
        sampler.set_epoch(epoch)
        for batch in _chunks(list(sampler), size):
            yield batch
            wanted -= 1
            if not wanted:
                return
        epoch += 1


def _chunks(numbers: Any, size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def _largest(blocks: BlockDataset, batches: Iterator[list[int]], weights: tuple[float, float]) -> list[Item]:
    """The batch of most bytes. Targets are counted in those of most positions only, as far as rows may be read."""
    position, target = weights
    ranked = sorted(
        {tuple(batch): sum(blocks.lengths[i] for i in batch) for batch in batches}.items(),
        key=lambda item: -item[1],
    )
    best, most, read = None, -1.0, 0
    for batch, positions in ranked:
        if positions * (position + target) <= most or read > _ROWS:  # not even with a target at every position
            break
        items = [blocks[i] for i in batch]
        read += sum(len(item) for item in items)
        bytes_ = positions * position + target * sum(_targets(item) for item in items)
        if bytes_ > most:
            best, most = items, bytes_
    assert best is not None
    return best


def _targets(item: Item) -> int:
    return sum(sum(int(label) != IGNORE for label in row.labels[1:]) for _, row in item)


def shortened(items: list[Item], longest: int, packed: bool) -> list[Item]:
    """A batch as it would be under a lower limit: rows cut at their end, and blocks of no more than `longest`."""
    made = []
    for item in items:
        kept: Item = []
        room = longest
        for number, row in item:
            if room < 2:
                break
            end = min(len(row.input_ids), room if packed else longest)
            cut = dataclasses.replace(
                row,
                input_ids=row.input_ids[:end],
                labels=row.labels[:end],
                context=min(row.context, end - 1),
            )
            kept.append((number, cut))
            room -= end
        made.append(kept)
    return made
