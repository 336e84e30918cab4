"""From data files to encoded training and evaluation rows, saying what was left out or cut."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from glmtune.config import RunConfig
from glmtune.data.encoding import Cuts, EncodedRow, Limits, encode_conversations
from glmtune.data.sources import Conversation, Source, read_source
from glmtune.errors import DataError
from glmtune.models.loading import Base


@dataclass
class Rows:
    """Encoded training and evaluation rows."""

    train: list[EncodedRow]
    eval: list[EncodedRow]
    cuts: dict[str, dict[str, int]]
    broken: int
    layout: str


def prepare_rows(config: RunConfig, base: Base, tokenizer: Any, console: Console) -> Rows:
    """Read, split and encode the data of a run.

    Raises:
        DataError: a file that cannot be read, a row that fits no layout, or limits that cut every row.
    """
    source = read_source(config.data.train, config.data.columns)
    _report_broken(source, console)
    train, held = source.conversations, []
    layout = source.layout
    broken = len(source.broken)
    if config.data.eval:
        evaluation = read_source(config.data.eval, config.data.columns)
        _report_broken(evaluation, console)
        held = evaluation.conversations
        broken += len(evaluation.broken)
    else:
        train, held = _split(train, config.data.eval_fraction, int(config.training["seed"]))
    limits = Limits(config.data.max_source_length, config.data.max_target_length)
    with console.status("Encoding rows"):
        train_rows, train_cuts = encode_conversations(train, base.family, tokenizer, limits)
        eval_rows, eval_cuts = encode_conversations(held, base.family, tokenizer, limits)
    console.print(f"Data: {len(train)} training and {len(held)} evaluation rows, columns {layout}", highlight=False)
    _report_cuts(train_cuts, train_rows, limits, config.data.train, console)
    cuts = {"train": train_cuts.as_dict(), "eval": eval_cuts.as_dict()}
    return Rows(train_rows, eval_rows, cuts, broken, layout)


def _split(rows: list[Conversation], fraction: float, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """Keep a random share back for evaluation; at least one row stays on each side, if there are two."""
    if fraction <= 0 or len(rows) < 2:
        return rows, []
    count = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    kept = [row for i, row in enumerate(rows) if i not in chosen]
    return kept, [rows[i] for i in sorted(chosen)]


def _report_broken(source: Source, console: Console) -> None:
    for sentence in source.broken[:5]:
        console.print(f"[yellow]left out[/] {sentence}", highlight=False)
    if source.broken:
        rest = " (the first 5 are listed)" if len(source.broken) > 5 else ""
        console.print(
            f"[yellow]{len(source.broken)} lines of {source.path} are no rows{rest}; "
            f"the other {len(source.conversations)} are used.[/]",
            highlight=False,
        )


def _report_cuts(cuts: Cuts, rows: list[EncodedRow], limits: Limits, path: str, console: Console) -> None:
    touched = cuts.turns_dropped + cuts.prompts_cut + cuts.answers_cut
    if not touched:
        return
    if len(rows) == cuts.rows and cuts.rows <= min(cuts.prompts_cut + cuts.turns_dropped, cuts.answers_cut):
        raise DataError(
            f"{path}: every one of the {cuts.rows} rows is longer than both limits "
            f"(max_source_length {limits.source}, max_target_length {limits.target}).",
            "Raise them: --set data.max_source_length=1024 --set data.max_target_length=1024",
        )
    console.print(
        f"[yellow]Length limits: {cuts.turns_dropped} rows lost old turns, {cuts.prompts_cut} the start of their "
        f"question, {cuts.answers_cut} the end of their answer ({cuts.tokens_cut} tokens in all).[/]",
        highlight=False,
    )
