"""The blocks of an epoch, shared out among processes: each is seen once, and all processes take as many batches.

Where the blocks do not come out even, idle ones fill the gaps: real tokens, for a model must have something to read,
without a target, so that neither loss nor gradient knows of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from glmtune.data.batches import BlockDataset, Item
from glmtune.families import IGNORE

IDLE = -1
"""The number of an idle block."""


class EvenSampler(Sampler[int]):
    """The block numbers of another sampler, filled up with idle ones.

    Args:
        sampler: of one epoch.
        size: blocks that all processes take at once; the epoch becomes a multiple of it.
    """

    def __init__(self, sampler: Any, size: int):
        self._sampler = sampler
        self._size = size

    def set_epoch(self, epoch: int) -> None:
        """Passed on."""
        if hasattr(self._sampler, "set_epoch"):
            self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._size) * self._size

    def __iter__(self) -> Iterator[int]:
        yield from self._sampler
        yield from [IDLE] * (len(self) - len(self._sampler))


class WithIdle(Dataset):
    """Blocks, and an idle one under the number `IDLE`: a copy of the shortest without targets and row numbers."""

    def __init__(self, blocks: BlockDataset):
        self._blocks = blocks
        self.lengths = blocks.lengths
        shortest = blocks[min(range(len(blocks)), key=blocks.lengths.__getitem__)]
        self._idle: Item = [(-1, dataclasses.replace(row, labels=[IGNORE] * len(row.input_ids))) for _, row in shortest]

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Item:
        return self._idle if index == IDLE else self._blocks[index]
