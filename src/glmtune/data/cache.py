"""Encoded data sets on disk, named by a hash of file contents, tokenizer and settings, and memory mapped."""

from __future__ import annotations

import hashlib
import json
import os
import random
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodedRow, EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.files import ENCODED_FILES
from glmtune.data.sources import DataSource, sample_sources
from glmtune.errors import DataError
from glmtune.families import Family
from glmtune.utils.io import open_atomic, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_FILE, INFO_FILE = ENCODED_FILES
# Raised whenever the same data and settings give other rows than before; older caches are then not found.
_VERSION = 2
_MAX_INVALID_LINES = 20
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


@dataclass
class EncodedDataInfo:
    """Description of an encoded data set. The names of the fields are the keys of its file."""

    family: str
    tokenizer: str
    """Hash of the tokenizer."""
    rules: dict[str, Any]
    counts: dict[str, int]
    sources: list[dict[str, str]]
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Descriptions of the first skipped lines."""
    lines_left_out: int = 0
    """Number of skipped lines."""
    content: str = ""
    """Hash of data and settings, compared when a run is resumed."""


class RowStore:
    """Encoded rows on disk by number. Only their lengths are read at once; the rows are memory mapped."""

    def __init__(self, path: Path):
        self.path = path
        self._file = pa.memory_map(str(path))
        self._table = pa.ipc.open_file(self._file).read_all()
        parts = [np.diff(chunk.offsets.to_numpy()) for chunk in self._table["input_ids"].chunks]
        self.lengths = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
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


class JoinedRowStore(RowStore):
    """Two stores as one, still memory mapped: the rows of `second` follow those of `first`."""

    def __init__(self, first: RowStore, second: RowStore):
        self.path = first.path
        self._table = pa.concat_tables([first._table, second._table])
        self.lengths = np.concatenate([first.lengths, second.lengths])
        self.conversations = self._table["conversation"].to_numpy()


@dataclass
class EncodedData:
    """An encoded data set, mapped from disk."""

    rows: RowStore
    info: EncodedDataInfo


def encode_sources(
    sources: list[DataSource],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    *,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedData:
    """Encode sources, or open what an earlier call encoded from the same content with the same settings.

    Several processes may call this at the same time: one encodes, the others wait for it and open the result.

    Args:
        sources: opened sources.
        family: the generation.
        tokenizer: its tokenizer.
        rules: length limits and what to train on.
        folder: to write to; None for a folder of the cache.
        progress: called with the number of conversations so far.

    Raises:
        DataError: a file or row that cannot be used, or the folder cannot be written.
    """
    tokenizer_hash = hash_tokenizer(tokenizer)
    target = folder or get_cache_dir() / _compute_key(sources, family, tokenizer_hash, rules)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target / ".lock")):
            if not (target / INFO_FILE).is_file():
                _encode_to_folder(target, sources, family, tokenizer, tokenizer_hash, rules, progress)
    except OSError as error:
        raise DataError(
            f"{target}: encoded rows cannot be written ({error.strerror or error}).",
            "Set GLMTUNE_CACHE to another folder.",
        ) from None
    data = open_encoded_data(target)
    # Caches are found by content: the files may have had other names when it was encoded.
    for saved, source in zip(data.info.sources, sources, strict=True):
        saved["name"] = source.name
    return data


def open_encoded_data(folder: Path) -> EncodedData:
    """Memory map an encoded data set.

    Raises:
        DataError: the folder holds none, or a damaged one.
    """
    try:
        info = EncodedDataInfo(**json.loads((folder / INFO_FILE).read_text(encoding="utf-8")))
        return EncodedData(RowStore(folder / ROWS_FILE), info)
    except (OSError, ValueError, TypeError) as error:
        hint = "Remove it and encode it again."
        raise DataError(f"{folder}: not a complete encoded data set ({error}).", hint) from None


def require_same_encoding(
    data: EncodedData, family: Family, tokenizer: PreTrainedTokenizerBase, rules: EncodingRules, where: str
) -> None:
    """Check that an encoded data set fits the model and the settings of a run.

    Raises:
        DataError: it was encoded for another generation or tokenizer, or with other settings.
    """
    expected = asdict(rules)
    differences = [f"{key}={value!r}" for key, value in data.info.rules.items() if expected.get(key) != value]
    if differences:
        raise DataError(
            f"{where}: was encoded with {', '.join(differences)}; the data settings of this run differ.",
            f"Give the same: {' '.join(f'--set data.{setting}' for setting in differences)}",
        )
    if data.info.family != family.name or data.info.tokenizer != hash_tokenizer(tokenizer):
        raise DataError(
            f"{where}: was encoded for {data.info.family} with tokenizer {data.info.tokenizer}; "
            f"this model is {family.name} with {hash_tokenizer(tokenizer)}.",
            "Encode it again with this model: glmtune data tokenize FILE --model M --output DIR",
        )


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of everything that affects the ids of a tokenizer."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("padding", "truncation"):  # state of the last call, which does not affect the ids
        backend.pop(key, None)
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()[:16]


def get_cache_dir() -> Path:
    """The folder of encoded data sets: in `GLMTUNE_CACHE`, otherwise in the user's cache folder."""
    cache = os.environ.get("GLMTUNE_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "glmtune"
    return base / "data"


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


def count_replay_rows(own: int, share: float) -> int:
    """Number of replay rows to add to `own` rows so that they are `share` of all, to the nearest row."""
    return round(own * share / (1 - share))


def sample_replay_rows(available: int, count: int, seed: int) -> np.ndarray:
    """Sample row numbers for replay: complete passes over the rows, then a random part of a last pass.

    Args:
        available: number of rows to choose from.
        count: number of rows to choose.
        seed: of the random part.

    Returns:
        Row numbers (count,), sorted.
    """
    passes, remainder = divmod(count, available)
    part = random.Random(seed).sample(range(available), remainder)
    return np.sort(np.concatenate([np.tile(np.arange(available), passes), np.array(part, dtype=np.int64)]))


def _compute_key(sources: list[DataSource], family: Family, tokenizer_hash: str, rules: EncodingRules) -> str:
    parts = [str(_VERSION), family.name, tokenizer_hash, json.dumps(asdict(rules), sort_keys=True)]
    parts += [source.compute_digest() for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _encode_to_folder(
    folder: Path,
    sources: list[DataSource],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_hash: str,
    rules: EncodingRules,
    progress: Callable[[int], None] | None,
) -> None:
    counts = EncodingCounts()
    conversations = _report_progress(sample_sources(sources), progress)
    write_rows(folder / ROWS_FILE, encode_conversations(conversations, family, tokenizer, rules, counts))
    invalid_lines = [line for source in sources for line in source.invalid_lines]
    info = EncodedDataInfo(
        family.name,
        tokenizer_hash,
        asdict(rules),
        counts.as_dict(),
        [{"name": source.name, "format": source.format} for source in sources],
        [note for source in sources for note in source.notes],
        invalid_lines[:_MAX_INVALID_LINES],
        sum(source.invalid_line_count for source in sources),
        _compute_key(sources, family, tokenizer_hash, rules),
    )
    write_json(folder / INFO_FILE, asdict(info))  # last: it marks the rows as complete


def _report_progress(
    conversations: Iterator[Conversation], progress: Callable[[int], None] | None
) -> Iterator[Conversation]:
    for number, conversation in enumerate(conversations):
        if progress and number % 200 == 0:
            progress(number)
        yield conversation


class _ColumnBuffer:
    """Collects rows as flat arrays: Python numbers take eight times the memory, and a batch of them would no longer be
    in the CPU cache when it is written."""

    def __init__(self) -> None:
        self._ids, self._labels = array("i"), array("i")
        self._lengths: list[int] = []
        self._contexts: list[int] = []
        self._conversations: list[int] = []
        self._where: list[str] = []

    def add_row(self, row: EncodedRow) -> None:
        self._ids.fromlist(list(row.input_ids))
        self._labels.fromlist(list(row.labels))
        self._lengths.append(len(row.input_ids))
        self._contexts.append(row.context)
        self._conversations.append(row.conversation)
        self._where.append(row.where)

    def pop_batch(self) -> pa.RecordBatch:
        """All collected rows as a batch; the buffer is empty after it."""
        ends = pa.array(np.cumsum([0, *self._lengths], dtype=np.int32))
        lists = [pa.ListArray.from_arrays(ends, np.array(flat, dtype=np.int32)) for flat in (self._ids, self._labels)]
        scalars = [pa.array(column, pa.int32()) for column in (self._contexts, self._conversations)]
        batch = pa.record_batch([*lists, *scalars, pa.array(self._where, pa.string())], schema=_SCHEMA)
        self.__init__()  # type: ignore[misc]
        return batch
