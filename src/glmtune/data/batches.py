"""Rows of ids as batches: packed into blocks that do not see each other, or padded one by one.

Tensor names end in their shape: B rows or blocks, T positions, N targets, P position streams.
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
    """Blocks as a right-padded batch.

    `input_ids` (B, T), `labels` (B, T), and what the loss needs to touch targets only: `target_positions` (N,), flat
    indices into (B, T) of the positions that predict one, and `targets` (N,), what they should predict. `rows` (B,
    most) are row numbers for errors, -1 where a block has fewer; `tokens` (1,) counts what is no padding.

    A batch of single rows has a plain `attention_mask` (B, T) and lets the model derive positions. One with packed
    blocks brings `position_ids`, (B, T) or (B, P, T), which start anew with each row, and a boolean mask (B, 1, T, T)
    that lets no row see another.
    """

    pad_token_id: int
    family: Family
    packed: bool

    def __call__(self, items: list[Item]) -> dict[str, torch.Tensor]:
        length = max(sum(len(row.input_ids) for _, row in item) for item in items)
        shape = (len(items), length)
        ids_BT = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels_BT = np.full(shape, IGNORE, dtype=np.int64)
        segments_BT = np.zeros(shape, dtype=np.int64)  # 0 is padding, a block's rows count from 1
        context_BT = np.zeros(shape, dtype=bool)
        positions_BPT = np.zeros((len(items), self.family.position_streams, length), dtype=np.int64)
        for b, item in enumerate(items):
            start = 0
            for number, (_, row) in enumerate(item, start=1):
                part = slice(start, start + len(row.input_ids))
                ids_BT[b, part] = row.input_ids
                labels_BT[b, part] = row.labels
                labels_BT[b, start] = IGNORE  # nothing in front of a row predicts its first token
                segments_BT[b, part] = number
                context_BT[b, start : start + row.context] = True
                positions_BPT[b, :, part] = row_positions(len(row.input_ids), row.context, self.family)
                start = part.stop
        batch = {
            "input_ids": torch.from_numpy(ids_BT),
            "labels": torch.from_numpy(labels_BT),
            "rows": _row_numbers(items),
            "tokens": torch.tensor([int((segments_BT > 0).sum())]),
            **_targets(torch.from_numpy(labels_BT)),
        }
        if not self.packed:
            return batch | {"attention_mask": torch.from_numpy((segments_BT > 0).astype(np.int64))}
        positions = torch.from_numpy(positions_BPT)
        return batch | {
            "position_ids": positions if self.family.position_streams > 1 else positions[:, 0],
            "attention_mask": block_mask(torch.from_numpy(segments_BT), torch.from_numpy(context_BT)),
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


def block_mask(segments_BT: torch.Tensor, context_BT: torch.Tensor) -> torch.Tensor:
    """Who sees whom in packed blocks, (B, 1, T, T) bool: earlier tokens of the same row, and its whole context.

    Padding sees itself, since a position that sees nothing has no softmax.
    """
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    length = segments_BT.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    return (same & (earlier | context_BT[:, None, :]))[:, None]


def _targets(labels_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    following_BT = torch.full_like(labels_BT, IGNORE)
    following_BT[:, :-1] = labels_BT[:, 1:]
    positions_N = (following_BT.flatten() != IGNORE).nonzero().squeeze(1)
    return {"target_positions": positions_N, "targets": following_BT.flatten()[positions_N]}


def _row_numbers(items: list[Item]) -> torch.Tensor:
    most = max(len(item) for item in items)
    return torch.tensor([[row for row, _ in item] + [-1] * (most - len(item)) for item in items])
