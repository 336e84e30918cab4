"""Rows laid end to end into blocks of one length, best fit, so that almost no position is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Distribute rows over blocks: longest first, each into the fullest block that still has room for it.

    Best-fit decreasing needs at most 11/9 of the fewest possible blocks, and 6/9 of one more (Johnson, 1973).

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
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # blocks by the room they have left
    rooms = 0  # bit r is set while some block has room r; finding the tightest fit is then one bit operation
    for row in order.tolist():
        length = int(lengths[row])
        if length > capacity:
            raise ValueError(f"row {row} has {length} tokens, a block only {capacity}")
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            block = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, block = capacity, len(blocks)
            blocks.append([])
        blocks[block].append(row)
        left = room - length
        if left:
            with_room[left].append(block)
            rooms |= 1 << left
    return blocks
