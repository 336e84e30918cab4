"""Processes that load data without being forked: those of Windows, macOS and Python 3.14."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from glmtune.data.batches import BlockCollator, BlockDataset
from glmtune.data.encoding import EncodedRow
from glmtune.data.row_store import JoinedRowStore, RowStore, write_rows
from glmtune.families import get_family


def make_store(tmp_path, name: str, count: int) -> RowStore:
    rows = [EncodedRow([i, i + 1, 2], [-100, i + 1, 2], 1, i, f"a.json:{i}", 0.5 * i) for i in range(count)]
    write_rows(tmp_path / name, rows)
    return RowStore(tmp_path / name, "digest", {"a.json": "b.json"})


def test_rows_are_the_same_in_another_process(tmp_path):
    first, second = make_store(tmp_path, "a.arrow", 3), make_store(tmp_path, "b.arrow", 2)
    joined = JoinedRowStore(first, second)
    sent = pickle.dumps(BlockDataset(joined, [[0, 4], [1]]))
    assert len(sent) < 2000  # paths, not rows
    dataset = pickle.loads(sent)
    assert dataset.rows.digest == joined.digest
    assert dataset.lengths == [6, 3]
    (number, row), (other, last) = dataset[0]
    assert (number, other) == (0, 4)
    assert row.where == "b.json:0"
    assert np.array_equal(last.input_ids, joined[4].input_ids)
    assert last.value == joined[4].value


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_batches_are_the_same_in_another_process(tmp_path, family):
    dataset = BlockDataset(make_store(tmp_path, "a.arrow", 3), [[0, 1], [2]])
    collate = BlockCollator(get_family(family))
    expected, batch = collate([dataset[0]]), pickle.loads(pickle.dumps(collate))([dataset[0]])
    assert set(batch) == set(expected)
    assert all((batch[name] == expected[name]).all() for name in expected if expected[name] is not None)
