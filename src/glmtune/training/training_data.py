"""From data files to blocks of encoded rows, with a report of what was skipped or truncated."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from glmtune.config import DataConfig, RunConfig
from glmtune.data.batches import BlockCollator, BlockDataset, LabelledCollator, pack_rows
from glmtune.data.cache import (
    CACHE_VERSION,
    EncodedData,
    count_replay_rows,
    encode_sources,
    open_encoded_data,
    require_same_encoding,
    sample_replay_rows,
)
from glmtune.data.encoding import EncodingCounts, EncodingRules
from glmtune.data.files import is_encoded_folder
from glmtune.data.row_store import JoinedRowStore, RowStore
from glmtune.data.sources import READING_RULES, Conversation, DataSource, open_sources, sample_sources
from glmtune.errors import ConfigError, DataError
from glmtune.families import Family
from glmtune.utils.console import count_noun, format_duration, print_message, print_warning, show_status

# Data files of this many bytes take more than a few seconds to encode.
_LARGE_FILE_BYTES = 10_000_000


@dataclass
class QuestionTables:
    """The questions of encoded rows, by the number that each row has for its conversation."""

    train: dict[int, Conversation]
    eval: dict[int, Conversation]


@dataclass
class TrainingData:
    """Training and evaluation rows, ready for the trainer."""

    train: BlockDataset
    eval: BlockDataset | None
    collate: BlockCollator
    summary: dict[str, Any]
    """The entry `data` of summary.json."""
    questions: QuestionTables | None = None
    """Of stage grpo, what its rows were read from."""

    def describe_row(self, row: int) -> str:
        """The file and line of a training row."""
        return self.train.rows[row].where

    def describe_eval_row(self, row: int) -> str:
        """The file and line of an evaluation row."""
        return (self.eval or self.train).rows[row].where


def prepare_data(config: RunConfig, family: Family, tokenizer: Any) -> TrainingData:
    """Read, encode, split and pack the data of a run.

    Raises:
        DataError: a file that cannot be read, a row that fits no format, or limits that cut every row.
    """
    data = config.data
    rules = make_encoding_rules(data)
    seed = int(config.training["seed"])
    train = load_encoded_data(data.train, data, rules, family, tokenizer, seed)
    _require_uncut_rows(train, rules, data.train)
    train_store: RowStore = train.rows
    if data.eval:
        evaluation: EncodedData | None = load_encoded_data(data.eval, data, rules, family, tokenizer, seed)
        assert evaluation is not None
        eval_store = evaluation.rows
        train_rows, eval_rows = np.arange(len(train_store)), np.arange(len(eval_store))
    else:
        evaluation, eval_store = None, train_store
        train_rows, eval_rows = _split_rows(train_store.conversations, data, seed)

    replay = None
    if config.replay.data:
        # General rows are under the same limits, but have columns, a format and questions of their own.
        replay_config = replace(data, columns={}, format=None, prefix="")
        replay_rules = make_encoding_rules(replay_config)
        replay = load_encoded_data(config.replay.data, replay_config, replay_rules, family, tokenizer, seed)
        _require_uncut_rows(replay, replay_rules, config.replay.data)
        train_store, train_rows = _mix_replay(train_store, train_rows, replay.rows, config.replay.share, seed)

    # Rows that stay together: both answers, or a labelled one and its mismatch.
    group = 2 if data.preference in ("pairs", "labels") else 1
    longest = [int(max(_sum_lengths(store.lengths, group), default=1)) for store in (train_store, eval_store)]
    capacity = max(rules.max_row_length, *longest)

    def make_blocks(store: RowStore, rows: np.ndarray) -> BlockDataset:
        groups = rows.reshape(-1, group)
        lengths = _sum_lengths(store.lengths[rows], group)
        if data.packing and data.preference != "prompts":
            blocks = [groups[block].flatten().tolist() for block in pack_rows(lengths, capacity)]
        else:  # sorted by length, so that an evaluation batch holds little padding; training shuffles
            blocks = groups[np.argsort(lengths, kind="stable")].tolist()
        return BlockDataset(store, blocks)

    train_blocks, eval_blocks = make_blocks(train_store, train_rows), make_blocks(eval_store, eval_rows)
    is_packed = data.packing and data.preference != "prompts"
    packed = f", packed into {count_noun(len(train_blocks), 'block')} of up to {capacity} tokens" if is_packed else ""
    unit = {"pairs": "pair", "prompts": "question"}.get(data.preference, "row")
    eval_count = count_noun(len(eval_rows) // group, f"evaluation {unit}")
    print_message(f"Data: {len(train_rows) // group:,} training and {eval_count}{packed}")

    sets = [train, evaluation] if replay is None else [train, evaluation, replay]
    summary = {
        "train_rows": len(train_rows) // group,
        "eval_rows": len(eval_rows) // group,
        "sources": train.info.sources,
        "content": [each.info.content if each else None for each in sets],
        "reading": f"{READING_RULES}.{CACHE_VERSION}",
        "replay_rows": int((train_rows >= len(train.rows)).sum()),
        "lines_left_out": train.info.lines_left_out + (evaluation.info.lines_left_out if evaluation else 0),
        "train": train.info.counts,
        "eval": evaluation.info.counts if evaluation else None,
        "blocks": len(train_blocks) if is_packed else None,
    }
    if data.preference == "pairs" and config.stage != "rm" and train.rows.values.any():
        print_warning(f"The rows have margins, which have no effect on stage {config.stage}: they are for rm.")
    collate = LabelledCollator(family) if data.preference == "labels" else BlockCollator(family)
    evaluated = eval_blocks if len(eval_rows) else None
    questions = _read_question_tables(data, seed) if data.preference == "prompts" else None
    return TrainingData(train_blocks, evaluated, collate, summary, questions)


def _read_question_tables(data: DataConfig, seed: int) -> QuestionTables:
    """Read rows as questions, by their numbers, with everything that is not encoded: messages, columns, reference."""

    def read(entries: Any) -> dict[int, Conversation]:
        sources = open_sources(entries, data.columns, data.format, seed, data.preference)
        return {conversation.number: conversation for conversation in sample_sources(sources)}

    train = read(data.train)
    return QuestionTables(train, read(data.eval) if data.eval else train)


def _sum_lengths(lengths: np.ndarray, group: int) -> np.ndarray:
    """Tokens of each group of consecutive rows."""
    return lengths.reshape(-1, group).sum(1)


def make_encoding_rules(data: DataConfig) -> EncodingRules:
    """Select the data settings that decide token ids."""
    return EncodingRules(
        data.max_source_length, data.max_target_length, data.max_length, data.overlength, data.train_on, data.prefix
    )


def load_encoded_data(
    entries: Any,
    data: DataConfig,
    rules: EncodingRules,
    family: Family,
    tokenizer: Any,
    seed: int,
    folder: Path | None = None,
) -> EncodedData:
    """Encode data files (or find them in the cache), or open encoded rows; print what was found.

    Args:
        entries: `data.train` or `data.eval` of a config.
        data: the other data settings.
        rules: limits, and what is trained on.
        family: the generation.
        tokenizer: of the model.
        seed: of sampling.
        folder: where to write; the cache when None.

    Raises:
        DataError: encoded rows for pairs, since nothing in them says which two belong together, or for questions.
    """
    is_encoded = folder is not None or (isinstance(entries, str) and is_encoded_folder(entries))
    if data.preference in ("pairs", "labels") and is_encoded:
        needs = "two in each row" if data.preference == "pairs" else "a label in each row"
        raise DataError(
            f"{folder or entries}: encoded rows are single answers; data.preference {data.preference} needs {needs}.",
            "Give the files themselves to glmtune train: their rows are encoded and kept in the cache.",
        )
    if data.preference == "prompts" and is_encoded:
        raise DataError(
            f"{folder or entries}: encoded rows have none of the texts and columns that rewards are computed from.",
            "Give the files themselves to glmtune train: their questions are encoded and kept in the cache.",
        )
    if isinstance(entries, str) and is_encoded_folder(entries):
        encoded = open_encoded_data(Path(entries))
        require_same_encoding(encoded, family, tokenizer, rules, entries)
    else:
        sources = open_sources(entries, data.columns, data.format, seed, data.preference)
        with show_status("Encoding rows") as status:
            on_progress = _make_progress(sources, status.update)
            encoded = encode_sources(sources, family, tokenizer, rules, folder=folder, progress=on_progress)
    print_data_report(encoded)
    return encoded


def print_data_report(encoded: EncodedData) -> None:
    """Print what was read, in which format, and what was skipped or truncated."""
    info, counts = encoded.info, EncodingCounts(**encoded.info.counts)
    for source in info.sources:
        print_message(f"{source['name']}: {source['format']}")
        for note in source.get("notes", ()):
            print_warning(f"{source['name']}: {note}")
    for note in info.notes:
        print_warning(note)
    for sentence in info.broken[:5]:
        print_warning(f"skipped: {sentence}")
    if info.lines_left_out:
        more = " (the first 5 are listed)" if info.lines_left_out > 5 else ""
        used = f"{count_noun(counts.conversations, 'row is', 'rows are')} used"
        print_warning(f"{count_noun(info.lines_left_out, 'invalid line')} skipped{more}; {used}.")
    if counts.rows_over_limits:
        print_warning(
            f"Length limits: {count_noun(counts.turns_dropped, 'row')} lost old turns, "
            f"{counts.prompts_cut - counts.question_ends_cut} the start of their question, "
            f"{counts.question_ends_cut} its end, "
            f"{counts.answers_cut} the end of their answer, {counts.rows_dropped} were dropped "
            f"({count_noun(counts.tokens_cut, 'token')} in all)."
        )
    if counts.same_pairs:
        print_warning(
            f"Length limits: {count_noun(counts.same_pairs, 'pair')} dropped: "
            "what is left of the two answers is the same."
        )


def _make_progress(sources: list[DataSource], show: Callable[[str], None]) -> Callable[[int], None]:
    """Show how many rows are encoded, and for large files the time left: counting takes a tenth of encoding them."""
    start = time.monotonic()
    size = sum(path.stat().st_size for source in sources for path in source.files)
    total = 0

    def on_progress(rows: int) -> None:
        nonlocal total
        if rows == 0 and size > _LARGE_FILE_BYTES:
            total = sum(source.count_conversations() for source in sources)
        seconds_left = (time.monotonic() - start) / rows * (total - rows) if rows and total else None
        show(f"Encoding rows: {rows:,}" + (f" of {total:,}, ETA {format_duration(seconds_left)}" if total else ""))

    return on_progress


def _mix_replay(
    store: RowStore, rows: np.ndarray, replay_store: RowStore, share: float, seed: int
) -> tuple[RowStore, np.ndarray]:
    """Join the stores, and add general rows to the rows to train on."""
    available, count = len(replay_store), count_replay_rows(len(rows), share)
    total = len(rows) + count
    print_message(
        f"Replay: {count_noun(count, 'general row')} among {total:,} training rows ({100 * count / total:.1f} %), "
        f"out of {available:,}."
    )
    if count > available:
        print_warning(f"Each general row is used {count / available:.1f} times on average: give more of them.")
    if not count:
        print_warning(f"Too few training rows for a replay share of {share:g}: nothing is replayed.")
    replay_rows = len(store) + sample_replay_rows(available, count, seed)
    return JoinedRowStore(store, replay_store), np.concatenate([rows, replay_rows])


def _require_uncut_rows(encoded: EncodedData, rules: EncodingRules, entries: Any) -> None:
    counts = EncodingCounts(**encoded.info.counts)
    hint = "Raise them: --set data.max_length=2048"
    if not len(encoded.rows):
        raise DataError(f"{entries}: no row is left, all {counts.rows_dropped} are too long for {rules.limits}.", hint)
    if counts.rows <= min(counts.prompts_cut, counts.answers_cut):
        raise DataError(
            f"{entries}: every one of the {counts.rows} rows is longer than the limits: {rules.limits}.", hint
        )


def _split_rows(conversations: np.ndarray, data: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and a random part for evaluation; rows of one conversation stay in one part.

    Raises:
        ConfigError: `data.eval_rows` leaves nothing to train on.
    """
    numbers = np.unique(conversations)
    count = data.eval_rows
    if count is not None and count >= len(numbers):
        raise ConfigError(
            f"data.eval_rows is {count:,}; there are {count_noun(len(numbers), 'conversation')}.",
            "Hold out fewer, or give evaluation rows with --eval-data.",
        )
    if count is None:
        if data.eval_fraction <= 0 or len(numbers) < 2:
            return np.arange(len(conversations)), np.arange(0)
        count = min(max(1, round(len(numbers) * data.eval_fraction)), len(numbers) - 1)
    is_eval = np.isin(conversations, random.Random(seed).sample(numbers.tolist(), count))
    return np.flatnonzero(~is_eval), np.flatnonzero(is_eval)
