"""The data of a run as a plan needs it: its largest batches, its steps and its tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from transformers import IntervalStrategy, TrainingArguments

from glmtune.config import RunConfig
from glmtune.data.batches import Block, BlockDataset
from glmtune.families import IGNORE_INDEX
from glmtune.training.samplers import EpochSampler, find_order_seed, make_epoch_sampler, name_order
from glmtune.training.training_data import TrainingData

# Batches compared by their positions, and rows read to count their targets: both take a fraction of a second.
_MAX_BATCHES, _MAX_ROWS_READ = 200_000, 4_000


@dataclass
class Workload:
    """The largest batches of a run and the size of its data."""

    batch: list[Block]
    """The largest micro-batch of the training."""
    eval_batch: list[Block] | None
    """The largest batch of an evaluation; None: no evaluation."""
    steps: int
    tokens: int
    """Of all steps."""
    rows: int
    blocks: int
    block_lengths: list[int]
    """Tokens of the shortest, the median and the longest block."""


class LongestAnswers(BlockDataset):
    """The questions of stage grpo with as many answers of the longest length as are computed in one pass.

    Args:
        questions: blocks of one row each, which is a question with an empty answer.
        run: settings.
    """

    def __init__(self, questions: BlockDataset, run: RunConfig):
        super().__init__(questions.rows, questions.blocks)
        data, options = run.data, run.grpo
        longest = options.max_completion_length
        limit = (data.max_length or data.max_source_length) + longest
        self._longest = longest
        self._counts = [
            max(1, min(options.num_generations, limit // (length + longest))) if data.packing else 1
            for length in self.lengths
        ]
        tokens = [length + longest for length in self.lengths]
        self.lengths = [size * count for size, count in zip(tokens, self._counts, strict=True)]
        self.passes = sum(tokens) * options.num_generations / sum(self.lengths)
        """Of a question, on average."""

    def __getitem__(self, index: int) -> Block:
        ((number, row),) = super().__getitem__(index)
        ids = [*row.input_ids, *[row.input_ids[-1]] * self._longest]
        labels = [IGNORE_INDEX] * len(row.input_ids) + ids[len(row.input_ids) :]
        answered = dataclasses.replace(row, input_ids=ids, labels=labels)
        return [(number, answered)] * self._counts[index]


def make_workload(
    training_data: TrainingData, arguments: TrainingArguments, num_processes: int, weights: tuple[float, float]
) -> Workload:
    """Find the largest batches, in the order in which training draws them.

    Args:
        training_data: of the run.
        arguments: of the run.
        num_processes: that train together.
        weights: approximate bytes of a position and of a target: they decide which batch is the largest.
    """
    blocks, size = training_data.train, arguments.per_device_train_batch_size
    micro_batches = math.ceil(len(blocks) / (size * num_processes))
    steps_per_epoch = math.ceil(micro_batches / arguments.gradient_accumulation_steps)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps_per_epoch * arguments.num_train_epochs)
    # A run of 0 epochs draws no batch, but its plan needs one.
    count = min(max(steps, 1) * arguments.gradient_accumulation_steps * num_processes, _MAX_BATCHES)

    eval_blocks, eval_batch = training_data.eval, None
    if eval_blocks is not None and IntervalStrategy(arguments.eval_strategy) is not IntervalStrategy.NO:
        in_order = _split_batches(range(len(eval_blocks)), arguments.per_device_eval_batch_size)
        eval_batch = _find_largest_batch(eval_blocks, in_order, weights)
    lengths = sorted(blocks.lengths)
    return Workload(
        batch=_find_largest_batch(blocks, _draw_batches(blocks, arguments, num_processes, count), weights),
        eval_batch=eval_batch,
        steps=steps,
        tokens=round(sum(lengths) * steps / steps_per_epoch),
        rows=sum(len(block) for block in blocks.blocks),
        blocks=len(blocks),
        block_lengths=[lengths[0], lengths[len(lengths) // 2], lengths[-1]],
    )


def _draw_batches(
    blocks: BlockDataset, arguments: TrainingArguments, num_processes: int, count: int
) -> Iterator[list[int]]:
    """Micro-batches as `GlmTrainer` draws them, epoch after epoch."""
    size = arguments.per_device_train_batch_size
    order = name_order(arguments.train_sampling_strategy, size * num_processes * arguments.gradient_accumulation_steps)
    sampler = make_epoch_sampler(order, blocks.lengths, find_order_seed(arguments))
    epoch = 0
    while count > 0:
        if isinstance(sampler, EpochSampler):
            sampler.set_epoch(epoch)
        for batch in _split_batches(list(sampler), size):
            yield batch
            count -= 1
            if not count:
                return
        epoch += 1


def _split_batches(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def _find_largest_batch(
    blocks: BlockDataset, batches: Iterable[list[int]], weights: tuple[float, float]
) -> list[Block]:
    """The batch of most bytes. Targets are counted only in batches of most positions, up to a number of rows."""
    position_weight, target_weight = weights
    ranked = sorted(
        {tuple(batch): sum(blocks.lengths[i] for i in batch) for batch in batches}.items(),
        key=lambda item: -item[1],
    )
    largest, largest_bytes, rows_read = None, -1.0, 0
    for batch, positions in ranked:
        # No later batch is larger, even with a target at every position.
        if positions * (position_weight + target_weight) <= largest_bytes or rows_read > _MAX_ROWS_READ:
            break
        batch_blocks = [blocks[i] for i in batch]
        rows_read += sum(len(block) for block in batch_blocks)
        targets = sum(int(label) != IGNORE_INDEX for b in batch_blocks for _, row in b for label in row.labels[1:])
        batch_bytes = positions * position_weight + target_weight * targets
        if batch_bytes > largest_bytes:
            largest, largest_bytes = batch_blocks, batch_bytes
    assert largest is not None
    return largest


def truncate_blocks(blocks: list[Block], max_length: int, packing: bool) -> list[Block]:
    """A batch as it would be under a lower limit: rows cut at their end, and blocks of no more than `max_length`."""
    result = []
    for block in blocks:
        new_block: Block = []
        free = max_length
        for number, row in block:
            if free < 2:
                break
            end = min(len(row.input_ids), free if packing else max_length)
            short_row = dataclasses.replace(
                row, input_ids=row.input_ids[:end], labels=row.labels[:end], context=min(row.context, end - 1)
            )
            new_block.append((number, short_row))
            free -= end
        result.append(new_block)
    return result
