"""The order of the blocks in an epoch: random, of seed and epoch alone, so that a resumed run goes on where it stopped.

transformers' samplers draw from the global random state, which dropout moves on: a run resumed in a later epoch would
shuffle that epoch anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """Block numbers of one epoch.

    Args:
        lengths: tokens of each block.
        seed: of the run.
        group: rows per optimiser step when blocks of like length are to come together; None for a plain shuffle.
    """

    def __init__(self, lengths: Sequence[int], seed: int, group: int | None):
        self._lengths = list(lengths)
        self._seed = seed
        self._group = group
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of every epoch, the one that is resumed in too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        if self._group is None:
            return iter(torch.randperm(len(self._lengths), generator=generator).tolist())
        return iter(get_length_grouped_indices(self._lengths, self._group, generator=generator))
