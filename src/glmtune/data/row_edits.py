"""Rows that a user changed by hand: laid over those of a file, which stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from glmtune.data.conversation import LEFT_OUT, InvalidRow, RawRow, describe_type
from glmtune.data.json_rows import parse_json
from glmtune.errors import DataError

RowEdits = Mapping[int, dict[str, Any] | None]
"""New values by the number of the row in its source, from 1; None: the row is left out."""


def apply_edits(rows: Iterable[RawRow | InvalidRow], edits: RowEdits) -> Iterator[RawRow | InvalidRow]:
    """The rows with those that were changed in place of the original ones, at the same `file:line`."""
    for number, row in enumerate(rows, start=1):
        if number not in edits:
            yield row
            continue
        values = edits[number]
        yield RawRow(values, row.where) if values is not None else make_left_out_row(row.where)


def make_left_out_row(where: str) -> InvalidRow:
    """What stands in the place of a row that a user leaves out."""
    return InvalidRow(where, LEFT_OUT, "left out by hand")


def parse_edited_row(text: str) -> dict[str, Any]:
    """The row that a user typed.

    Raises:
        DataError: it is no JSON object.
    """
    try:
        values = parse_json(text.strip())
    except ValueError as error:
        raise DataError(f"The row is not JSON ({error}).", "Correct it: a JSON object in double quotes.") from None
    if not isinstance(values, dict):
        raise DataError(f"The row must be a JSON object, not {describe_type(values)}.", 'For example {"content": "…"}.')
    return values


def format_row(values: Mapping[str, Any]) -> str:
    """A row as a user edits it."""
    # default=str: parquet has values that JSON does not have (dates, decimals).
    return json.dumps(values, ensure_ascii=False, indent=2, default=str)
