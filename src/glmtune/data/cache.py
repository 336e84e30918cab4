"""Encoded data sets on disk, named by a hash of file contents, tokenizer and settings, and memory mapped."""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from glmtune.data.conversation import Conversation
from glmtune.data.encoding import EncodingCounts, EncodingRules, encode_conversations
from glmtune.data.files import ENCODED_FILES
from glmtune.data.mismatched_rows import add_mismatched_rows
from glmtune.data.row_store import RowStore, rename_location, write_rows
from glmtune.data.sources import DataSource, sample_sources
from glmtune.errors import DataError
from glmtune.families import Family
from glmtune.utils.console import print_warning
from glmtune.utils.documents import parse_json, read_document
from glmtune.utils.file_access import add_cache_folder
from glmtune.utils.io import hash_file, write_json
from glmtune.utils.user_folders import find_user_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_FILE, INFO_FILE = ENCODED_FILES
# Raised whenever the same data and settings give other rows than before; older caches are then not found.
CACHE_VERSION = 3
_MAX_INVALID_LINES = 20
# A full or read-only disk; a wrong path that the user named is another matter.
_CACHE_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM})
# A home that is none: HOME=/dev/null, as users of services have.
_HOME_ERRORS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass
class EncodedDataInfo:
    """Description of an encoded data set. The names of the fields are the keys of its file."""

    family: str
    tokenizer: str
    """Hash of the tokenizer."""
    rules: dict[str, Any]
    counts: dict[str, int]
    sources: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Descriptions of the first skipped lines."""
    lines_left_out: int = 0
    """Number of skipped lines."""
    content: str = ""
    """Hash of data and settings, compared when a run is resumed."""
    files: list[str] = field(default_factory=list)
    """Names of the data files by which rows and messages were written."""
    rows_sha256: str = ""
    """Checksum of the file of rows."""


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

    Several processes may call this at the same time: one encodes, the others wait for it and open the result. A damaged
    entry of the cache is encoded again. If the cache's disk is full or cannot be written, the rows are in a temporary
    folder until the process ends; both are said.

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

    def encode(to: Path) -> None:
        _encode_to_folder(to, sources, family, tokenizer, tokenizer_hash, rules, progress)

    try:
        data = _open_or_encode(target, encode)
    except OSError as error:
        reason = error.strerror or str(error)
        tolerated = _CACHE_DISK_ERRORS | (frozenset() if os.environ.get("GLMTUNE_CACHE") else _HOME_ERRORS)
        if folder is not None or error.errno not in tolerated:
            hint = (
                "Set GLMTUNE_CACHE to another folder." if folder is None else "Free some space, or give another folder."
            )
            raise DataError(f"{target}: encoded rows cannot be written ({reason}).", hint) from None
        print_warning(
            f"{get_cache_dir()}: encoded rows cannot be kept there ({reason}); they are encoded for this run only. "
            "Set GLMTUNE_CACHE to another folder to keep them."
        )
        data = _encode_temporarily(encode)
    _rename_files(data, sources)
    return data


def open_encoded_data(folder: Path) -> EncodedData:
    """Check and memory map an encoded data set.

    Raises:
        DataError: the folder holds none, or a damaged one.
    """
    try:
        info = EncodedDataInfo(**parse_json(read_document(folder / INFO_FILE)))
        EncodingCounts(**info.counts)
        # Not left to Arrow: damaged offsets in a mapped file would end the process.
        digest = hash_file(folder / ROWS_FILE)
        if info.rows_sha256 and digest != info.rows_sha256:
            raise ValueError(f"the checksum of {ROWS_FILE} differs")
        return EncodedData(RowStore(folder / ROWS_FILE, digest), info)
    except (OSError, ValueError, TypeError, RecursionError) as error:
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


_SAME_IDS = (
    (
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"Regex": r"\A(?!\z)"}, "content": "▁"},
    ),
)
"""Steps of a tokenizer that differ in offsets only, and those of earlier releases, with which data was encoded."""


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase, *, with_added: bool = True) -> str:
    """A short hash of everything that affects the ids of a tokenizer.

    Args:
        tokenizer: a fast one.
        with_added: include tokens that were added to the published vocabulary.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    if not with_added:
        backend["decoder"] = None
        backend["added_tokens"] = [token for token in backend["added_tokens"] if token["special"]]
    for key in ("padding", "truncation"):  # state of the last call, which does not affect the ids
        backend.pop(key, None)
    text = json.dumps(backend, sort_keys=True)
    for step, counterpart in _SAME_IDS:
        text = text.replace(json.dumps(step, sort_keys=True), json.dumps(counterpart, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def get_cache_dir() -> Path:
    """The folder of encoded data sets: in `GLMTUNE_CACHE`, otherwise in the user's cache folder."""
    cache = os.environ.get("GLMTUNE_CACHE")
    base = Path(cache) if cache else find_user_cache() / "glmtune"
    return base / "data"


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
    parts = [str(CACHE_VERSION), family.name, tokenizer_hash, json.dumps(asdict(rules), sort_keys=True)]
    parts += [source.compute_digest() for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _open_or_encode(folder: Path, encode: Callable[[Path], None]) -> EncodedData:
    """Open the encoded rows of a folder; encode them if there are none, or damaged ones.

    Raises:
        OSError: the folder cannot be written.
    """
    # Without the lock first: the disk of a complete cache may be read-only. Rows that another process is replacing fail
    # their checksum, and are opened again after it.
    if (folder / INFO_FILE).is_file():
        with suppress(DataError):
            return open_encoded_data(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        if (folder / INFO_FILE).is_file():
            try:
                return open_encoded_data(folder)
            except DataError as error:
                print_warning(f"{error.message.rstrip('.')}; encoding it again.")
        encode(folder)
        return open_encoded_data(folder)


def _encode_temporarily(encode: Callable[[Path], None]) -> EncodedData:
    """Encode to a folder that is removed when the process ends.

    Raises:
        DataError: there is no space for it either.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="glmtune-rows-"))
        add_cache_folder(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        encode(folder)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{tempfile.gettempdir()}: encoded rows cannot be written ({reason}).",
            "Free some space, or set TMPDIR and GLMTUNE_CACHE to other folders.",
        ) from None
    return open_encoded_data(folder)


def _rename_files(data: EncodedData, sources: list[DataSource]) -> None:
    """Replace the names that the files had when they were encoded by those of this run."""
    info, names = data.info, _list_file_names(sources)
    new_names = {old: new for old, new in zip(info.files, names, strict=False) if old != new}
    data.rows.new_names = new_names
    info.notes = [note for source in sources for note in source.notes]
    info.broken = [rename_location(line, new_names) for line in info.broken]
    info.files = names
    for saved, source in zip(info.sources, sources, strict=True):
        saved["name"] = source.name


def _list_file_names(sources: list[DataSource]) -> list[str]:
    return [name for source in sources for name in [*map(str, source.files)] or [source.name]]


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
    rows = encode_conversations(conversations, family, tokenizer, rules, counts)
    if any(source.reads_labels for source in sources):
        rows = add_mismatched_rows(rows, rules.max_row_length)
    write_rows(folder / ROWS_FILE, rows)
    invalid_lines = [line for source in sources for line in source.invalid_lines]
    info = EncodedDataInfo(
        family.name,
        tokenizer_hash,
        asdict(rules),
        counts.as_dict(),
        [{"name": source.name, "format": source.format, "notes": source.describe_rows()} for source in sources],
        [note for source in sources for note in source.notes],
        invalid_lines[:_MAX_INVALID_LINES],
        sum(source.invalid_line_count for source in sources),
        _compute_key(sources, family, tokenizer_hash, rules),
        _list_file_names(sources),
        hash_file(folder / ROWS_FILE),
    )
    write_json(folder / INFO_FILE, asdict(info))  # last: it marks the rows as complete


def _report_progress(
    conversations: Iterator[Conversation], progress: Callable[[int], None] | None
) -> Iterator[Conversation]:
    for number, conversation in enumerate(conversations):
        if progress and number % 200 == 0:
            progress(number)
        yield conversation
