"""Pack rows into blocks, and collate blocks into one sequence without padding; rows do not attend to each other.

Tensor names end in their shape: T positions, R rows, N targets, P position streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from glmtune.data.encoding import EncodedRow
from glmtune.data.row_store import RowStore
from glmtune.families import IGNORE_INDEX, Family

Block = list[tuple[int, EncodedRow]]
"""The rows of one block, each with its number."""


class BlockDataset(Dataset):
    """Blocks of rows; without packing every block is one row."""

    def __init__(self, rows: RowStore, blocks: list[list[int]]):
        self.rows = rows
        self.blocks = blocks
        self.lengths = [int(sum(rows.lengths[row] for row in block)) for block in blocks]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Block:
        return [(row, self.rows[row]) for row in self.blocks[index]]


class RowBatch(dict[str, Any]):
    """A batch of `BlockCollator`. What describes its rows stays on the CPU, where it is read: on a GPU every look at it
    would wait for all work so far."""

    _HOST_KEYS = frozenset({"row_lengths", "contexts", "rows", "tokens"})

    def to(self, device: torch.device | str, non_blocking: bool = True) -> RowBatch:
        """The batch with tokens, positions and targets on the device.

        Args:
            device: of the model.
            non_blocking: for accelerate, which passes it; copies never block.
        """
        return RowBatch(
            {
                key: value if key in self._HOST_KEYS else value.to(device, non_blocking=True)
                for key, value in self.items()
            }
        )


@dataclass
class BlockCollator:
    """Concatenates blocks to one sequence without padding.

    Calling it returns a `RowBatch` of:
        input_ids: (1, T).
        labels: (1, T).
        position_ids: (1, T) or (1, P, T); they start again with each row.
        target_positions: (N,), the positions that predict a target.
        targets: (N,), the tokens to predict there.
        row_lengths: (R,).
        contexts: (R,), the number of first tokens of each row with bidirectional attention.
        rows: (R,), the numbers of the rows, for errors; -1 for placeholder rows.
        tokens: (1,), the number of tokens without those of placeholder rows.
        values: (R,), the values of the rows (`EncodedRow.value`).
    """

    family: Family

    def __call__(self, items: list[Block]) -> RowBatch:
        numbers, rows = zip(*(row for item in items for row in item), strict=True)
        lengths = [len(row.input_ids) for row in rows]
        labels_T = np.concatenate([np.asarray(row.labels, dtype=np.int64) for row in rows])
        labels_T[np.cumsum([0, *lengths[:-1]])] = IGNORE_INDEX  # no position predicts the first token of a row
        positions_PT = np.concatenate(
            [make_position_ids(length, row.context, self.family) for length, row in zip(lengths, rows, strict=True)],
            axis=1,
        )
        positions_1PT = torch.from_numpy(positions_PT)[None]
        input_ids_T = np.concatenate([np.asarray(row.input_ids, dtype=np.int64) for row in rows])
        target_positions_N = np.flatnonzero(labels_T[1:] != IGNORE_INDEX)
        return RowBatch(
            input_ids=torch.from_numpy(input_ids_T)[None],
            position_ids=positions_1PT if self.family.position_streams > 1 else positions_1PT[:, 0],
            labels=torch.from_numpy(labels_T)[None],
            row_lengths=torch.tensor(lengths),
            contexts=torch.tensor([row.context for row in rows]),
            rows=torch.tensor(numbers),
            tokens=torch.tensor([sum(n for number, n in zip(numbers, lengths, strict=True) if number >= 0)]),
            target_positions=torch.from_numpy(target_positions_N),
            targets=torch.from_numpy(labels_T[1:][target_positions_N]),
            values=torch.tensor([row.value for row in rows], dtype=torch.float64),
        )


@dataclass
class LabelledCollator(BlockCollator):
    """Collates blocks whose rows go by twos: an answer with a label, and the same question with an answer to another
    one (`mismatched_rows`).

    Calling it returns the batch of the first ones, with that of the second ones as `mismatched`: they are computed
    apart, without gradients.
    """

    def __call__(self, items: list[Block]) -> RowBatch:
        batch = super().__call__([block[::2] for block in items])
        batch["mismatched"] = super().__call__([block[1::2] for block in items])
        return batch


def make_position_ids(length: int, context: int, family: Family) -> np.ndarray:
    """Position ids of one row, (P, T).

    With two streams (ChatGLM-6B) the first one counts the context and then stays at its last token, `[gMASK]`; the
    second one is 0 there and counts the answer from 1.
    """
    positions = np.arange(length)
    if family.position_streams == 1:
        return positions[None]
    if context == 0:  # plain text has causal attention and uses the first stream
        return np.stack([positions, np.zeros(length, dtype=np.int64)])
    return np.stack([np.minimum(positions, context - 1), np.maximum(positions - context + 1, 0)])


def pack_rows(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Distribute rows over blocks by best-fit decreasing: longest first, each into the fullest block that it fits in.

    This needs at most 11/9 of the minimum number of blocks, plus 6/9 (Johnson, 1973).

    Args:
        lengths: tokens of each row, none longer than `capacity`.
        capacity: tokens of a block.

    Returns:
        Row numbers of each block.

    Raises:
        ValueError: a row is longer than a block.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    blocks: list[list[int]] = []
    blocks_by_space: list[list[int]] = [[] for _ in range(capacity + 1)]  # blocks by their free space in tokens
    spaces = 0  # bit n is set if a block has n tokens free: finding the smallest sufficient space is one bit operation
    for row in order.tolist():
        length = int(lengths[row])
        if length > capacity:
            raise ValueError(f"row {row} has {length} tokens, a block only {capacity}")
        sufficient = spaces >> length
        if sufficient:
            space = length + (sufficient & -sufficient).bit_length() - 1
            block = blocks_by_space[space].pop()
            if not blocks_by_space[space]:
                spaces &= ~(1 << space)
        else:
            space, block = capacity, len(blocks)
            blocks.append([])
        blocks[block].append(row)
        rest = space - length
        if rest:
            blocks_by_space[rest].append(block)
            spaces |= 1 << rest
    return blocks
