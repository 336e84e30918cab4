"""The order of the blocks of an epoch, and their distribution among processes.

The order depends on seed and epoch only. transformers' samplers draw from the global random state, which dropout
advances: a run resumed in a later epoch would shuffle that epoch in another order.

If the blocks cannot be divided evenly, idle ones are added: real tokens, since a model needs some, without a target, so
that they have no part in loss or gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from glmtune.data.batches import Block, BlockDataset
from glmtune.families import IGNORE_INDEX


class EpochSampler(Sampler[int]):
    """Block numbers of one epoch.

    Args:
        lengths: tokens of each block.
        seed: of the run.
        group: blocks per optimiser step, to group blocks of similar length; None for a plain shuffle.
    """

    def __init__(self, lengths: Sequence[int], seed: int, group: int | None):
        self._lengths = list(lengths)
        self._seed = seed
        self._group = group
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the Trainer calls it at the start of every epoch, including the one that is resumed."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        if self._group is None:
            return iter(torch.randperm(len(self._lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._group, generator=generator))


def name_order(strategy: str, group: int) -> str:
    """The order of an epoch as a text: `random`, `group_by_length:32` (blocks per optimiser step), or the strategy."""
    return f"{strategy}:{group}" if strategy == "group_by_length" else strategy


def find_order_seed(arguments: TrainingArguments) -> int:
    """The seed of the order of the blocks."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def make_epoch_sampler(order: str, lengths: Sequence[int], seed: int) -> Any:
    """Make the sampler of an order that depends on seed and epoch only; None for other orders.

    Args:
        order: of `name_order`.
        lengths: tokens of each block.
        seed: of the run.
    """
    strategy, _, group = order.partition(":")
    if strategy == "sequential":
        return SequentialSampler(lengths)
    if strategy == "random" or group.isdecimal():
        return EpochSampler(lengths, seed, int(group) if group else None)
    return None


class ResumedSampler(Sampler[int]):
    """The blocks of every epoch; of the epoch that is resumed, those that are left, in the order it was begun in.

    Args:
        sampler: of the other epochs.
        length: blocks of an epoch.
        resumed: of the epoch that is resumed.
        epoch: that is resumed.
        start: blocks of it that were trained on.
    """

    def __init__(self, sampler: Any, length: int, resumed: Any = None, epoch: int = 0, start: int = 0):
        self._sampler, self._resumed = sampler, resumed
        self._length, self._resumed_epoch, self._start = length, epoch, start
        self._epoch = -1  # before the first epoch, when the Trainer asks for the length of a whole one

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch."""
        self._epoch = epoch
        for sampler in (self._sampler, self._resumed):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)

    @property
    def is_resumed_epoch(self) -> bool:
        """Whether the epoch is the one that was begun before."""
        return self._resumed is not None and self._epoch == self._resumed_epoch

    def __len__(self) -> int:
        return self._length - (self._start if self.is_resumed_epoch else 0)

    def __iter__(self) -> Iterator[int]:
        if self.is_resumed_epoch:
            return islice(iter(self._resumed), self._start, None)
        return iter(self._sampler)


IDLE_BLOCK = -1
"""Index of an idle block."""


class PaddedSampler(Sampler[int]):
    """The indices of another sampler, padded with idle ones.

    Args:
        sampler: of one epoch.
        size: blocks that all processes together take in a batch; the epoch is padded to a multiple of it.
    """

    def __init__(self, sampler: Any, size: int):
        self._sampler = sampler
        self._size = size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the other sampler."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._size) * self._size

    def __iter__(self) -> Iterator[int]:
        yield from self._sampler
        yield from [IDLE_BLOCK] * (len(self) - len(self._sampler))


class IdleBlockDataset(Dataset):
    """Blocks, and at index `IDLE_BLOCK` an idle one: a copy of the shortest without targets and row numbers."""

    def __init__(self, blocks: BlockDataset):
        self._blocks = blocks
        self.lengths = blocks.lengths
        shortest = blocks[min(range(len(blocks)), key=blocks.lengths.__getitem__)]
        self._idle: Block = [
            (-1, dataclasses.replace(row, labels=[IGNORE_INDEX] * len(row.input_ids))) for _, row in shortest
        ]

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Block:
        return self._idle if index == IDLE_BLOCK else self._blocks[index]
