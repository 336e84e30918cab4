"""Encoded rows in an Arrow file: written as they come, read by number without loading them all."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from glmtune.data.encoding import EncodedRow
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import open_atomic

_SCHEMA = pa.schema(
    {
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "context": pa.int32(),
        "conversation": pa.int32(),
        "where": pa.string(),
        "value": pa.float64(),
    }
)
_BATCH = 1000


class RowStore:
    """Encoded rows on disk by number. Only their lengths are read at once; the rows are memory mapped.

    Attributes:
        path: of the Arrow file.
        digest: of its content.
        new_names: present names of data files by those in the file: a cache is found by content.
    """

    def __init__(self, path: Path, digest: str, new_names: Mapping[str, str] | None = None):
        self.path, self.digest = path, digest
        self.new_names = new_names or {}
        self._file = pa.memory_map(str(require_readable(path)))
        self._table = pa.ipc.open_file(self._file).read_all()
        parts = [np.diff(chunk.offsets.to_numpy()) for chunk in self._table["input_ids"].chunks]
        self.lengths = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        self.conversations = self._table["conversation"].to_numpy()
        # Files of earlier versions have no such column.
        has_values = "value" in self._table.column_names
        self.values = self._table["value"].to_numpy() if has_values else np.zeros(len(self))

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that loads data opens the file again, unless it was forked: Windows, macOS and Python 3.14 do not
        fork, and a memory map cannot be sent."""
        return type(self), (self.path, self.digest, dict(self.new_names))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> EncodedRow:
        row = self._table.slice(index, 1)
        return EncodedRow(
            row["input_ids"][0].values.to_numpy(zero_copy_only=False),
            row["labels"][0].values.to_numpy(zero_copy_only=False),
            row["context"][0].as_py(),
            row["conversation"][0].as_py(),
            rename_location(row["where"][0].as_py(), self.new_names),
            float(self.values[index]),
        )


class JoinedRowStore(RowStore):
    """Two stores as one, still memory mapped: the rows of `second` follow those of `first`."""

    def __init__(self, first: RowStore, second: RowStore):
        self.path, self.digest = first.path, f"{first.digest} {second.digest}"
        self.parts = (first, second)
        self.lengths = np.concatenate([first.lengths, second.lengths])
        self.conversations = np.concatenate([first.conversations, second.conversations])
        self.values = np.concatenate([first.values, second.values])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: int) -> EncodedRow:
        first, second = self.parts
        return first[index] if index < len(first) else second[index - len(first)]


def rename_location(text: str, new_names: Mapping[str, str]) -> str:
    """A text that begins with `file:`, with the present name of the file."""
    name: str | None = text.rpartition(":")[0]  # in a row; in a message, more follows
    if new_names and name not in new_names:
        name = next((name for name in new_names if text.startswith(f"{name}:")), None)
    if not new_names or name is None:
        return text
    return new_names[name] + text[len(name) :]


def write_rows(path: Path, rows: Iterable[EncodedRow]) -> int:
    """Write rows to an Arrow file as they come, atomically.

    Returns:
        The number of rows.
    """
    count = 0
    buffer = _ColumnBuffer()
    with (
        open_atomic(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as writer,
    ):
        for count, row in enumerate(rows, start=1):
            buffer.add_row(row)
            if count % _BATCH == 0:
                writer.write_batch(buffer.pop_batch())
        writer.write_batch(buffer.pop_batch())
    return count


class _ColumnBuffer:
    """Collects rows as flat arrays: Python numbers take eight times the memory, and a batch of them would no longer be
    in the CPU cache when it is written."""

    def __init__(self) -> None:
        self._ids, self._labels = array("i"), array("i")
        self._lengths: list[int] = []
        self._contexts: list[int] = []
        self._conversations: list[int] = []
        self._where: list[str] = []
        self._values: list[float] = []

    def add_row(self, row: EncodedRow) -> None:
        self._ids.fromlist(list(row.input_ids))
        self._labels.fromlist(list(row.labels))
        self._lengths.append(len(row.input_ids))
        self._contexts.append(row.context)
        self._conversations.append(row.conversation)
        self._where.append(row.where)
        self._values.append(row.value)

    def pop_batch(self) -> pa.RecordBatch:
        """All collected rows as a batch; the buffer is empty after it."""
        ends = pa.array(np.cumsum([0, *self._lengths], dtype=np.int32))
        lists = [pa.ListArray.from_arrays(ends, np.array(flat, dtype=np.int32)) for flat in (self._ids, self._labels)]
        scalars = [pa.array(column, pa.int32()) for column in (self._contexts, self._conversations)]
        others = [pa.array(self._where, pa.string()), pa.array(self._values, pa.float64())]
        batch = pa.record_batch([*lists, *scalars, *others], schema=_SCHEMA)
        self.__init__()  # type: ignore[misc]
        return batch
