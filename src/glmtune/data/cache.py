"""Encoded data sets on disk, found again by what they were made from: file contents, tokenizer, settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from glmtune.data.conversation import Conversation
from glmtune.data.encoding import Counts, EncodingRules, encode_conversations
from glmtune.data.files import ENCODED, holds_encoded
from glmtune.data.sources import Source, weighted
from glmtune.data.store import RowStore, write_rows
from glmtune.errors import DataError
from glmtune.families import Family
from glmtune.utils.io import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, META = ENCODED
# Raised whenever the same data and settings give other rows than before; older caches are then not found.
_VERSION = 2
_BROKEN_KEPT = 20


@dataclass
class Meta:
    """What is known of an encoded data set besides its rows."""

    family: str
    tokenizer: str
    rules: dict[str, Any]
    counts: dict[str, int]
    sources: list[dict[str, str]]
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """The first lines that were left out, a sentence each."""
    lines_left_out: int = 0
    content: str = ""
    """A hash of what was encoded and how; a resumed run compares it."""


@dataclass
class EncodedData:
    """An encoded data set, mapped from disk."""

    rows: RowStore
    meta: Meta


def encode_sources(
    sources: list[Source],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    rules: EncodingRules,
    *,
    folder: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> EncodedData:
    """Encode sources, or map what an earlier call encoded from the same content with the same settings.

    Several processes may call this at once: one encodes, the others wait for it and map its file.

    Args:
        sources: opened data files.
        family: the generation.
        tokenizer: its tokenizer.
        rules: limits and what is trained.
        folder: where to write; a folder of the cache, named by content, when None.
        progress: called with the number of conversations so far.

    Raises:
        DataError: a file or row that cannot be used.
    """
    identity = tokenizer_identity(tokenizer)
    target = folder or cache_root() / _key(sources, family, identity, rules)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(str(target / ".lock")):
            if not (target / META).is_file():
                _encode_into(target, sources, family, tokenizer, identity, rules, progress)
    except OSError as error:
        raise DataError(
            f"{target}: encoded rows cannot be written there ({error.strerror or error}).",
            "Name another folder for them in GLMTUNE_CACHE.",
        ) from None
    data = open_encoded(target)
    # The content decides what is found; the files may have been called otherwise when it was encoded.
    for saved, source in zip(data.meta.sources, sources, strict=True):
        saved["name"] = source.name
    return data


def open_encoded(folder: Path) -> EncodedData:
    """Map an encoded data set.

    Raises:
        DataError: the folder holds none, or a damaged one.
    """
    try:
        meta = Meta(**json.loads((folder / META).read_text(encoding="utf-8")))
        return EncodedData(RowStore(folder / ROWS), meta)
    except (OSError, ValueError, TypeError) as error:
        hint = "Remove it and encode it again."
        raise DataError(f"{folder}: not a whole encoded data set ({error}).", hint) from None


def is_encoded(path: str | os.PathLike[str]) -> bool:
    """Whether a folder was written by `glmtune data tokenize`."""
    return holds_encoded(Path(path))


def check_encoded(
    data: EncodedData, family: Family, tokenizer: PreTrainedTokenizerBase, rules: EncodingRules, where: str
) -> None:
    """Raises:
    DataError: the set was encoded for another generation or tokenizer, or with other settings than the run's.
    """
    wanted = asdict(rules)
    other = [f"{key}={value!r}" for key, value in data.meta.rules.items() if wanted.get(key) != value]
    if other:
        raise DataError(
            f"{where}: was encoded with {', '.join(other)}, which this run's data settings contradict.",
            f"Give the same: {' '.join(f'--set data.{setting}' for setting in other)}",
        )
    if data.meta.family != family.name or data.meta.tokenizer != tokenizer_identity(tokenizer):
        raise DataError(
            f"{where}: was encoded for {data.meta.family} with tokenizer {data.meta.tokenizer}; "
            f"this model is {family.name} with {tokenizer_identity(tokenizer)}.",
            "Encode it again with this model: glmtune data tokenize FILE --model M --save DIR",
        )


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of everything that decides a tokenizer's ids."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for passing in ("padding", "truncation"):  # set by the last call of the tokenizer, and no part of its ids
        backend.pop(passing, None)
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()[:16]


def cache_root() -> Path:
    """Where encoded data sets are kept: `GLMTUNE_CACHE`, else the user's cache folder."""
    named = os.environ.get("GLMTUNE_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "glmtune"
    return base / "data"


def _key(sources: list[Source], family: Family, identity: str, rules: EncodingRules) -> str:
    parts = [str(_VERSION), family.name, identity, json.dumps(asdict(rules), sort_keys=True)]
    parts += [source.digest() for source in sources]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _encode_into(
    folder: Path,
    sources: list[Source],
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    identity: str,
    rules: EncodingRules,
    progress: Callable[[int], None] | None,
) -> None:
    counts = Counts()
    stream = _counted(weighted(sources), progress)
    write_rows(folder / ROWS, encode_conversations(stream, family, tokenizer, rules, counts))
    broken = [sentence for source in sources for sentence in source.broken]
    meta = Meta(
        family.name,
        identity,
        asdict(rules),
        counts.as_dict(),
        [{"name": source.name, "format": source.format} for source in sources],
        [note for source in sources for note in source.notes],
        broken[:_BROKEN_KEPT],
        sum(source.broken_count for source in sources),
        _key(sources, family, identity, rules),
    )
    write_json(folder / META, asdict(meta))  # last: its presence says that the rows are whole


def _counted(stream: Iterator[Conversation], progress: Callable[[int], None] | None) -> Iterator[Conversation]:
    for number, conversation in enumerate(stream):
        if progress and number % 200 == 0:
            progress(number)
        yield conversation
