"""Encoded rows in an Arrow file: written once as a stream, then mapped, so that memory does not grow with the rows."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from glmtune.data.encoding import EncodedRow

_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "context": pa.int32(),
        "conversation": pa.int32(),
        "where": pa.string(),
    }
)
_BATCH = 1000


class RowStore:
    """Encoded rows on disk, by number. Opening reads the lengths only; rows are mapped when they are asked for."""

    def __init__(self, path: Path):
        self.path = path
        self._file = pa.memory_map(str(path))
        self._table = pa.ipc.open_file(self._file).read_all()
        self.lengths = _lengths(self._table["input_ids"])
        self.conversations = self._table["conversation"].to_numpy()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> EncodedRow:
        row = self._table.slice(index, 1)
        return EncodedRow(
            row["input_ids"][0].values.to_numpy(zero_copy_only=False),
            row["labels"][0].values.to_numpy(zero_copy_only=False),
            row["context"][0].as_py(),
            row["conversation"][0].as_py(),
            row["where"][0].as_py(),
        )


def write_rows(path: Path, rows: Iterable[EncodedRow]) -> int:
    """Write rows as they come, whole or not at all.

    Returns:
        How many there were.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    columns = _Columns()
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for count, row in enumerate(rows, start=1):
                columns.add(row)
                if count % _BATCH == 0:
                    writer.write_batch(columns.take())
            writer.write_batch(columns.take())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


class _Columns:
    """Rows on their way to disk, as flat arrays from the moment they come: Python's own numbers take eight times the
    room, and a batch of them has left the processor's cache by the time it is written."""

    def __init__(self) -> None:
        self._ids, self._labels = array("i"), array("i")
        self._lengths: list[int] = []
        self._contexts: list[int] = []
        self._conversations: list[int] = []
        self._where: list[str] = []

    def add(self, row: EncodedRow) -> None:
        self._ids.fromlist(list(row.input_ids))
        self._labels.fromlist(list(row.labels))
        self._lengths.append(len(row.input_ids))
        self._contexts.append(row.context)
        self._conversations.append(row.conversation)
        self._where.append(row.where)

    def take(self) -> pa.RecordBatch:
        """All rows so far as a batch; what follows starts anew."""
        ends = pa.array(np.cumsum([0, *self._lengths], dtype=np.int32))
        lists = [pa.ListArray.from_arrays(ends, np.array(flat, dtype=np.int32)) for flat in (self._ids, self._labels)]
        scalars = [pa.array(column, pa.int32()) for column in (self._contexts, self._conversations)]
        batch = pa.record_batch([*lists, *scalars, pa.array(self._where, pa.string())], schema=_SCHEMA)
        self.__init__()  # type: ignore[misc]
        return batch


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
