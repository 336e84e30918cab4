"""From data files to blocks of encoded rows, saying what was left out or cut."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from glmtune.config import DataConfig, RunConfig
from glmtune.data.batches import BlockDataset, Collate
from glmtune.data.cache import EncodedData, check_encoded, encode_sources, is_encoded, open_encoded
from glmtune.data.encoding import Counts, EncodingRules
from glmtune.data.packing import pack
from glmtune.data.sources import Source, open_sources
from glmtune.errors import DataError
from glmtune.families import Family
from glmtune.training.callbacks import clock

# Bytes of data files from which on encoding takes more than a few seconds.
_LARGE = 10_000_000


@dataclass
class Rows:
    """Training and evaluation data, ready for the trainer."""

    train: BlockDataset
    eval: BlockDataset | None
    collate: Collate
    summary: dict[str, Any]
    """What summary.json says of the data."""

    def describe(self, row: int) -> str:
        """The file and line of a training row."""
        return self.train.rows[row].where


def prepare_rows(config: RunConfig, family: Family, tokenizer: Any, console: Console) -> Rows:
    """Read, encode, split and pack the data of a run.

    Raises:
        DataError: a file that cannot be read, a row that fits no format, or limits that cut every row.
    """
    data = config.data
    rules = encoding_rules(data)
    seed = int(config.training["seed"])
    train = load_encoded(data.train, data, rules, family, tokenizer, console, seed)
    _refuse_if_all_cut(train, rules, data)
    if data.eval:
        held = load_encoded(data.eval, data, rules, family, tokenizer, console, seed)
        parts = _all(train), _all(held)
        stores = train.rows, held.rows
    else:
        held = None
        parts = _split(train.rows.conversations, data.eval_fraction, seed)
        stores = train.rows, train.rows
    capacity = max(rules.longest, int(max(train.rows.lengths, default=1)))
    datasets = [
        BlockDataset(store, _packed(store.lengths, part, capacity) if data.packing else _single(store.lengths, part))
        for store, part in zip(stores, parts, strict=True)
    ]
    told = f"Data: {len(parts[0])} training and {len(parts[1])} evaluation rows"
    packed = f", packed into {len(datasets[0])} blocks of up to {capacity} tokens" if data.packing else ""
    console.print(f"{told}{packed}", highlight=False)
    return Rows(
        datasets[0],
        datasets[1] if len(parts[1]) else None,
        Collate(tokenizer.pad_token_id, family, data.packing),
        _summary(train, held, parts, datasets[0], data.packing),
    )


def encoding_rules(data: DataConfig) -> EncodingRules:
    """The part of the data settings that decides ids."""
    return EncodingRules(
        data.max_source_length, data.max_target_length, data.max_length, data.overlength, data.train_on, data.prefix
    )


def load_encoded(
    entries: Any,
    data: DataConfig,
    rules: EncodingRules,
    family: Family,
    tokenizer: Any,
    console: Console,
    seed: int,
    folder: Path | None = None,
) -> EncodedData:
    """Encode data files (or find them in the cache), or open a set that was encoded before; say what was found.

    Args:
        entries: `data.train` or `data.eval` of a config.
        data: the other data settings.
        rules: limits and what is trained.
        family: the generation.
        tokenizer: its tokenizer.
        console: where it is said.
        seed: of sampling.
        folder: where to write; the cache when None.
    """
    if isinstance(entries, str) and is_encoded(entries):
        encoded = open_encoded(Path(entries))
        check_encoded(encoded, family, tokenizer, entries)
    else:
        sources = open_sources(entries, data.columns, data.format, seed)
        with console.status("Encoding rows") as status:
            progress = _encoding_progress(sources, status.update)
            encoded = encode_sources(sources, family, tokenizer, rules, folder=folder, progress=progress)
    report(encoded, rules, console)
    return encoded


def _encoding_progress(sources: list[Source], show: Callable[[str], None]) -> Callable[[int], None]:
    """Shows how many rows are encoded and how long the rest will take. Counting large files first costs a hundredth
    of encoding them, but for what is done in a moment anyway, it would only be in the way."""
    start = time.monotonic()
    size = sum(path.stat().st_size for source in sources for path in source.files)
    total = sum(source.count() for source in sources) if size > _LARGE else 0

    def progress(done: int) -> None:
        left = (time.monotonic() - start) / done * (total - done) if done and total else None
        of = f" of {total:,}, ETA {clock(left)}" if total else ""
        show(f"Encoding rows: {done:,}{of}")

    return progress


def report(encoded: EncodedData, rules: EncodingRules, console: Console) -> None:
    """Say what was read, how, and what was left out or cut."""
    meta, counts = encoded.meta, Counts(**encoded.meta.counts)
    for source in meta.sources:
        console.print(f"{source['name']}: {source['format']}", highlight=False, markup=False)
    for note in meta.notes:
        console.print(note, style="yellow", highlight=False, markup=False)
    for sentence in meta.broken[:5]:
        console.print(f"left out: {sentence}", style="yellow", highlight=False, markup=False)
    if meta.lines_left_out:
        more = " (the first 5 are listed)" if meta.lines_left_out > 5 else ""
        console.print(
            f"{meta.lines_left_out} lines are no rows{more}; the other {counts.conversations} are used.",
            style="yellow",
            highlight=False,
        )
    if counts.over:
        console.print(
            f"Length limits: {counts.turns_dropped} rows lost old turns, {counts.prompts_cut} the start of their "
            f"question, {counts.answers_cut} the end of their answer, {counts.rows_dropped} were dropped "
            f"({counts.tokens_cut} tokens in all).",
            style="yellow",
            highlight=False,
        )


def _refuse_if_all_cut(encoded: EncodedData, rules: EncodingRules, data: DataConfig) -> None:
    counts = Counts(**encoded.meta.counts)
    if not len(encoded.rows):
        raise DataError(f"{data.train}: no row is left (all {counts.rows_dropped} are too long).", "Raise the limits.")
    if counts.rows <= min(counts.prompts_cut, counts.answers_cut):
        raise DataError(
            f"{data.train}: every one of the {counts.rows} rows is longer than both limits "
            f"(max_source_length {rules.max_source_length}, max_target_length {rules.max_target_length}).",
            "Raise them: --set data.max_source_length=1024 --set data.max_target_length=1024",
        )


def _all(encoded: EncodedData) -> np.ndarray:
    return np.arange(len(encoded.rows))


def _split(conversations: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and a random share kept back; rows of one conversation stay on one side."""
    count = int(conversations.max()) + 1 if len(conversations) else 0
    if fraction <= 0 or count < 2:
        return np.arange(len(conversations)), np.arange(0)
    kept_back = min(max(1, round(count * fraction)), count - 1)
    chosen = np.zeros(count, dtype=bool)
    chosen[random.Random(seed).sample(range(count), kept_back)] = True
    held = chosen[conversations]
    return np.flatnonzero(~held), np.flatnonzero(held)


def _packed(lengths: np.ndarray, part: np.ndarray, capacity: int) -> list[list[int]]:
    return [[int(part[row]) for row in block] for block in pack(lengths[part], capacity)]


def _single(lengths: np.ndarray, part: np.ndarray) -> list[list[int]]:
    """A block per row, by length: neighbours in an evaluation batch then hold little padding. Training shuffles."""
    return [[int(row)] for row in part[np.argsort(lengths[part], kind="stable")]]


def _summary(
    train: EncodedData,
    held: EncodedData | None,
    parts: tuple[np.ndarray, np.ndarray],
    blocks: BlockDataset,
    packing: bool,
) -> dict[str, Any]:
    return {
        "train_rows": len(parts[0]),
        "eval_rows": len(parts[1]),
        "sources": train.meta.sources,
        "lines_left_out": train.meta.lines_left_out + (held.meta.lines_left_out if held else 0),
        "train": train.meta.counts,
        "eval": held.meta.counts if held else None,
        "blocks": len(blocks) if packing else None,
    }
