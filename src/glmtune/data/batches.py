"""Rows of ids as batches: one sequence without padding, in which no row sees another.

Tensor names end in their shape: T positions, R rows, N targets, P position streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from glmtune.data.encoding import EncodedRow
from glmtune.data.store import RowStore
from glmtune.families import IGNORE, Family

Item = list[tuple[int, EncodedRow]]
"""What a batch is made of: the rows of one block, each with its number."""


class BlockDataset(Dataset):
    """Blocks of rows; without packing every block is one row."""

    def __init__(self, rows: RowStore, blocks: list[list[int]]):
        self.rows = rows
        self.blocks = blocks
        self.lengths = [int(sum(rows.lengths[row] for row in block)) for block in blocks]

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> Item:
        return [(row, self.rows[row]) for row in self.blocks[index]]


@dataclass
class Collate:
    """Blocks laid end to end as one sequence, without any padding.

    `input_ids` (1, T), `labels` (1, T), `position_ids` (1, T) or (1, P, T), which start anew with each row, and what
    the loss needs to touch targets only: `target_positions` (N,) of the positions that predict one, and `targets`
    (N,), what they should predict. `row_lengths` (R,) says where rows end, `contexts` (R,) how many of their first
    tokens see each other in both directions, `rows` (R,) their numbers, for errors. `tokens` (1,) counts those of rows
    that have a number; idle ones have -1.
    """

    family: Family

    def __call__(self, items: list[Item]) -> dict[str, torch.Tensor]:
        numbers, rows = zip(*(row for item in items for row in item), strict=True)
        lengths = [len(row.input_ids) for row in rows]
        labels_T = np.concatenate([np.asarray(row.labels, dtype=np.int64) for row in rows])
        labels_T[np.cumsum([0, *lengths[:-1]])] = IGNORE  # nothing in front of a row predicts its first token
        positions_PT = np.concatenate(
            [row_positions(length, row.context, self.family) for length, row in zip(lengths, rows, strict=True)], axis=1
        )
        positions_1PT = torch.from_numpy(positions_PT)[None]
        return {
            "input_ids": torch.from_numpy(np.concatenate([np.asarray(row.input_ids, dtype=np.int64) for row in rows]))[
                None
            ],
            "position_ids": positions_1PT if self.family.position_streams > 1 else positions_1PT[:, 0],
            "labels": torch.from_numpy(labels_T)[None],
            "row_lengths": torch.tensor(lengths),
            "contexts": torch.tensor([row.context for row in rows]),
            "rows": torch.tensor(numbers),
            "tokens": torch.tensor([sum(n for number, n in zip(numbers, lengths, strict=True) if number >= 0)]),
            **_targets(torch.from_numpy(labels_T)),
        }


def row_positions(length: int, context: int, family: Family) -> np.ndarray:
    """Positions of one row, (P, T).

    With two streams (ChatGLM-6B) the first counts through the context and then stays at its last token, `[gMASK]`;
    the second is 0 there and counts the answer from 1.
    """
    counted = np.arange(length)
    if family.position_streams == 1:
        return counted[None]
    if context == 0:  # text without a context is read causally, in the first stream
        return np.stack([counted, np.zeros(length, dtype=np.int64)])
    return np.stack([np.minimum(counted, context - 1), np.maximum(counted - context + 1, 0)])


def _targets(labels_T: torch.Tensor) -> dict[str, torch.Tensor]:
    predicted = (labels_T[1:] != IGNORE).nonzero().squeeze(1)
    return {"target_positions": predicted, "targets": labels_T[1:][predicted]}
