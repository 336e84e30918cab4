"""Rows for KTO's estimate of a KL divergence: questions with answers to other questions (arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from glmtune.data.encoding import EncodedRow
from glmtune.errors import DataError
from glmtune.families import IGNORE_INDEX

_CHUNK = 512
"""Rows among which an answer to another question is looked for."""


def add_mismatched_rows(rows: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Follow every row by one with its question and the answer of an earlier row.

    As in TRL's KTOTrainer the answer is that of the row before (of the first row, the last one among some hundreds),
    but an answer to the same question is never taken: the estimate is of answers that do not belong to it. The second
    row's answer is cut where it would be too long with this question.

    Args:
        rows: with their labels in `value`.
        max_length: of a row in tokens.

    Raises:
        DataError: all rows have the same question.
    """
    iterator = iter(rows)
    before: list[EncodedRow] = []  # the last rows of the chunk before
    while chunk := list(islice(iterator, _CHUNK)):
        prompts = [list(row.input_ids[: _find_start(row)]) for row in before + chunk]
        for place, row in enumerate(chunk, start=len(before)):
            others = _order_candidates(place, len(prompts))
            other = next((index for index in others if prompts[index] != prompts[place]), None)
            if other is None:
                raise DataError(
                    f"{row.where}: KTO compares with answers to other questions, and all rows have the same one.",
                    "Add rows with other questions, or use stage dpo with pairs of answers.",
                )
            yield row
            yield _exchange_answer(row, (before + chunk)[other], max_length)
        before = chunk[-_CHUNK // 2 :]


def _order_candidates(place: int, count: int) -> Iterator[int]:
    """The rows before a place, the nearest first, and then those after it, the last first."""
    yield from range(place - 1, -1, -1)
    yield from range(count - 1, place, -1)


def _exchange_answer(row: EncodedRow, other: EncodedRow, max_length: int) -> EncodedRow:
    start, other_start = _find_start(row), _find_start(other)
    end = other_start + max(1, max_length - start)
    return replace(
        row,
        input_ids=[*row.input_ids[:start], *other.input_ids[other_start:end]],
        labels=[*[IGNORE_INDEX] * start, *other.labels[other_start:end]],
    )


def _find_start(row: EncodedRow) -> int:
    """The position of the first target."""
    labels: Sequence[int] = row.labels
    return next((index for index, label in enumerate(labels) if label != IGNORE_INDEX), len(labels))
