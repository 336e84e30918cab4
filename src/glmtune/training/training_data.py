"""From data files to blocks of encoded rows, saying what was left out or cut."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from glmtune.config import DataConfig, RunConfig
from glmtune.data.batches import BlockDataset, Collate
from glmtune.data.cache import EncodedData, check_encoded, encode_sources, is_encoded, open_encoded
from glmtune.data.encoding import Counts, EncodingRules
from glmtune.data.packing import pack
from glmtune.data.replay import JoinedRows, choose_replay, replay_count
from glmtune.data.sources import Source, open_sources
from glmtune.data.store import RowStore
from glmtune.errors import DataError
from glmtune.families import Family
from glmtune.utils.console import format_duration

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
    _refuse_if_all_cut(train, rules, data.train)
    if data.eval:
        held = load_encoded(data.eval, data, rules, family, tokenizer, console, seed)
        parts = _all(train), _all(held)
        stores = train.rows, held.rows
    else:
        held = None
        parts = _split(train.rows.conversations, data.eval_fraction, seed)
        stores = train.rows, train.rows
    replay = _load_replay(config, family, tokenizer, console) if config.replay.data else None
    if replay is not None:
        mixed, part = _with_replay(train, parts[0], replay, config, console)
        parts, stores = (part, parts[1]), (mixed, stores[1])
    longest = [int(max(store.lengths, default=1)) for store in stores]
    capacity = max(rules.longest, *longest)
    datasets = [
        BlockDataset(store, _packed(store.lengths, part, capacity) if data.packing else _single(store.lengths, part))
        for store, part in zip(stores, parts, strict=True)
    ]
    told = f"Data: {len(parts[0])} training and {len(parts[1])} evaluation rows"
    packed = f", packed into {len(datasets[0])} blocks of up to {capacity} tokens" if data.packing else ""
    say(console, f"{told}{packed}")
    return Rows(
        datasets[0],
        datasets[1] if len(parts[1]) else None,
        Collate(family),
        _summary(train, held, replay, parts, datasets[0], data.packing),
    )


def _load_replay(config: RunConfig, family: Family, tokenizer: Any, console: Console) -> EncodedData:
    """Read and encode the general rows: under the limits of the run's own, but with columns, a format and questions of
    their own.

    Raises:
        DataError: as for `data.train`.
    """
    data = replace(config.data, columns={}, format=None, prefix="")
    rules = encoding_rules(data)
    seed = int(config.training["seed"])
    encoded = load_encoded(config.replay.data, data, rules, family, tokenizer, console, seed)
    _refuse_if_all_cut(encoded, rules, config.replay.data)
    return encoded


def _with_replay(
    train: EncodedData, part: np.ndarray, replay: EncodedData, config: RunConfig, console: Console
) -> tuple[RowStore, np.ndarray]:
    """The store of both, and the rows of it to train on."""
    available = len(replay.rows)
    wanted = replay_count(len(part), config.replay.share)
    chosen = choose_replay(available, wanted, int(config.training["seed"]))
    total = len(part) + wanted
    told = f"Replay: {wanted} of the {total} training rows ({100 * wanted / total:.1f} %) are general ones"
    say(console, f"{told}, of {available} that there are.")
    if wanted > available:
        say(console, f"Each of them is taken {wanted / available:.1f} times on average: give more.", "yellow")
    if not wanted:
        say(console, f"So few rows hold no share of {config.replay.share:g}: nothing is replayed.", "yellow")
    return JoinedRows(train.rows, replay.rows), np.concatenate([part, len(train.rows) + chosen])


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
        check_encoded(encoded, family, tokenizer, rules, entries)
    else:
        sources = open_sources(entries, data.columns, data.format, seed)
        with console.status("Encoding rows") as status:
            progress = _encoding_progress(sources, status.update)
            encoded = encode_sources(sources, family, tokenizer, rules, folder=folder, progress=progress)
    report(encoded, console)
    return encoded


def _encoding_progress(sources: list[Source], show: Callable[[str], None]) -> Callable[[int], None]:
    """Shows how many rows are encoded and how long the rest will take. Large files are counted first, which takes a
    tenth of encoding them; for what is done in a moment, or found in the cache, nothing is."""
    start = time.monotonic()
    size = sum(path.stat().st_size for source in sources for path in source.files)
    total = 0

    def progress(done: int) -> None:
        nonlocal total
        if done == 0 and size > _LARGE:
            total = sum(source.count() for source in sources)
        left = (time.monotonic() - start) / done * (total - done) if done and total else None
        of = f" of {total:,}, ETA {format_duration(left)}" if total else ""
        show(f"Encoding rows: {done:,}{of}")

    return progress


def report(encoded: EncodedData, console: Console) -> None:
    """Say what was read, how, and what was left out or cut."""
    meta, counts = encoded.meta, Counts(**encoded.meta.counts)
    for source in meta.sources:
        say(console, f"{source['name']}: {source['format']}")
    for note in meta.notes:
        say(console, note, "yellow")
    for sentence in meta.broken[:5]:
        say(console, f"left out: {sentence}", "yellow")
    if meta.lines_left_out:
        more = " (the first 5 are listed)" if meta.lines_left_out > 5 else ""
        left = f"the other {counts.conversations} are used"
        say(console, f"{meta.lines_left_out} lines are no rows{more}; {left}.", "yellow")
    if counts.over:
        say(
            console,
            f"Length limits: {counts.turns_dropped} rows lost old turns, {counts.prompts_cut} the start of their "
            f"question, {counts.answers_cut} the end of their answer, {counts.rows_dropped} were dropped "
            f"({counts.tokens_cut} tokens in all).",
            "yellow",
        )


def say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: a path may hold what rich would take for markup."""
    console.print(text, style=style, highlight=False, markup=False)


def _refuse_if_all_cut(encoded: EncodedData, rules: EncodingRules, entries: Any) -> None:
    counts = Counts(**encoded.meta.counts)
    if not len(encoded.rows):
        raise DataError(
            f"{entries}: no row is left, all {counts.rows_dropped} are too long for {rules.limits}.",
            "Raise them: --set data.max_length=2048",
        )
    if counts.rows <= min(counts.prompts_cut, counts.answers_cut):
        raise DataError(
            f"{entries}: every one of the {counts.rows} rows is longer than the limits: {rules.limits}.",
            "Raise them: --set data.max_length=2048",
        )


def _all(encoded: EncodedData) -> np.ndarray:
    return np.arange(len(encoded.rows))


def _split(conversations: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and a random share kept back; rows of one conversation stay on one side."""
    numbers = np.unique(conversations)
    if fraction <= 0 or len(numbers) < 2:
        return np.arange(len(conversations)), np.arange(0)
    kept_back = min(max(1, round(len(numbers) * fraction)), len(numbers) - 1)
    chosen = random.Random(seed).sample(numbers.tolist(), kept_back)
    held = np.isin(conversations, chosen)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _packed(lengths: np.ndarray, part: np.ndarray, capacity: int) -> list[list[int]]:
    return [[int(part[row]) for row in block] for block in pack(lengths[part], capacity)]


def _single(lengths: np.ndarray, part: np.ndarray) -> list[list[int]]:
    """A block per row, by length: neighbours in an evaluation batch then hold little padding. Training shuffles."""
    return [[int(row)] for row in part[np.argsort(lengths[part], kind="stable")]]


def _summary(
    train: EncodedData,
    held: EncodedData | None,
    replay: EncodedData | None,
    parts: tuple[np.ndarray, np.ndarray],
    blocks: BlockDataset,
    packing: bool,
) -> dict[str, Any]:
    content = [train.meta.content, held.meta.content if held else None]
    return {
        "train_rows": len(parts[0]),
        "eval_rows": len(parts[1]),
        "sources": train.meta.sources,
        "content": [*content, replay.meta.content] if replay is not None else content,
        "replay_rows": int((parts[0] >= len(train.rows)).sum()),
        "lines_left_out": train.meta.lines_left_out + (held.meta.lines_left_out if held else 0),
        "train": train.meta.counts,
        "eval": held.meta.counts if held else None,
        "blocks": len(blocks) if packing else None,
    }
