"""Encoded rows in an Arrow file: written once as a stream, then mapped, so that memory does not grow with the rows."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
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
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in _batches(rows):
                writer.write_batch(_record_batch(batch))
                count += len(batch)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _batches(rows: Iterable[EncodedRow]) -> Iterator[list[EncodedRow]]:
    batch: list[EncodedRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _record_batch(rows: list[EncodedRow]) -> pa.RecordBatch:
    arrays = [
        _lists([row.input_ids for row in rows]),
        _lists([row.labels for row in rows]),
        pa.array([row.context for row in rows], pa.int32()),
        pa.array([row.conversation for row in rows], pa.int32()),
        pa.array([row.where for row in rows], pa.string()),
    ]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _lists(lists: list[Sequence[int]]) -> pa.ListArray:
    """A column of lists. Handing Arrow one flat array costs a tenth of handing it lists of Python numbers."""
    flat = array("i")
    for values in lists:
        flat.extend(values)
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    return pa.ListArray.from_arrays(ends, np.frombuffer(flat, dtype=np.int32))


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
