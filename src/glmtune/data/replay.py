"""Replay: general rows mixed into training, so that a narrow task does not wear away what the base could do."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa

from glmtune.data.store import RowStore


class JoinedRows(RowStore):
    """Two stores as one, still mapped from disk: the rows of `second` follow those of `first`."""

    def __init__(self, first: RowStore, second: RowStore):
        self.path = first.path
        self._table = pa.concat_tables([first._table, second._table])
        self.lengths = np.concatenate([first.lengths, second.lengths])
        self.conversations = self._table["conversation"].to_numpy()


def replay_count(own: int, share: float) -> int:
    """How many rows beside `own` others make `share` of them all, to the nearest row."""
    return round(own * share / (1 - share))


def choose_replay(available: int, wanted: int, seed: int) -> np.ndarray:
    """Row numbers, (wanted,), in order: each row as often as any other but for a random part of a last pass."""
    whole, rest = divmod(wanted, available)
    drawn = random.Random(seed).sample(range(available), rest)
    return np.sort(np.concatenate([np.tile(np.arange(available), whole), np.array(drawn, dtype=np.int64)]))
