"""Rows of data as the tab `Data` shows them: a page of a table, the first row's columns, one row as tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.check_kinds import escape_controls
from glmtune.data.check_rows import ModelChecker, scan_sources
from glmtune.data.conversation import Conversation, InvalidRow
from glmtune.data.files import is_encoded_folder
from glmtune.data.preview import UnusedRowError, find_row, make_preview, render_html
from glmtune.data.sources import DataSource, open_sources
from glmtune.errors import DataError
from glmtune.families import detect_family, get_family
from glmtune.html.builder import Html, el, join
from glmtune.webui.error_texts import localize_message, translate_message

PAGE_ROWS = 20
_MAX_TEXT = 400


@dataclass(frozen=True)
class TableRow:
    """A row of the table.

    Attributes:
        number: from 1 over all rows.
        where: `file:line`.
        question: the last message before the answer.
        answer: that is trained on; empty for plain text.
        problem: why the row cannot be used; None if it can.
    """

    number: int
    where: str
    question: str
    answer: str
    problem: str | None = None


def make_run(tree: Mapping[str, Any]) -> RunConfig:
    """A config that has data but may be without a model.

    Raises:
        ConfigError: an unknown key or a wrong type.
    """
    run: RunConfig = build_dataclass(RunConfig, dict(tree), "form")
    return run


def open_rows(run: RunConfig) -> list[DataSource]:
    """The training rows of a run.

    Raises:
        DataError: they cannot be read, or are encoded already.
    """
    entries = run.data.train if isinstance(run.data.train, list) else [run.data.train]
    for entry in entries:
        if isinstance(entry, str) and is_encoded_folder(Path(entry)):
            raise DataError(f"{entry}: holds encoded rows.", "Give the file that they were made from.")
    data = run.data
    return open_sources(data.train, data.columns, data.format, int(run.training["seed"]), data.preference)


def load_model_checker(run: RunConfig) -> ModelChecker | None:
    """What counts tokens; None without a model.

    Raises:
        ModelError: it has no tokenizer of a known generation.
    """
    if not run.model.path:
        return None
    from glmtune.methods.run_tokenizer import load_run_tokenizer
    from glmtune.training.training_data import make_encoding_rules
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    model = run.model
    family = get_family(model.family) if model.family else detect_family(model.path, model.hub)
    tokenizer, _ = load_run_tokenizer(run, model.path, family.name)
    return ModelChecker(family, tokenizer, make_encoding_rules(run.data))


def read_page(
    run: RunConfig, page: int, search: str = "", numbers: frozenset[int] | None = None
) -> tuple[list[TableRow], bool]:
    """A page of the table.

    Args:
        run: its data.
        page: from 1.
        search: only rows with this text in question or answer, whatever its case.
        numbers: only rows of these numbers; None: all.

    Returns:
        Up to `PAGE_ROWS` rows, and whether more follow.
    """
    needle = search.strip().casefold()
    rows = (
        row
        for row in _number_rows(run)
        if (numbers is None or row.number in numbers)
        and (not needle or needle in row.question.casefold() or needle in row.answer.casefold())
    )
    start = (page - 1) * PAGE_ROWS
    found = list(islice(rows, start, start + PAGE_ROWS + 1))
    return found[:PAGE_ROWS], len(found) > PAGE_ROWS


def render_row(run: RunConfig, number: int, with_ids: bool, title: str, lang: str) -> Html | None:
    """A row as the model sees it, in a frame of its own where no script runs; None without a model.

    Raises:
        GlmtuneError: no such row.
    """
    checker = load_model_checker(run)
    if checker is None:
        return None
    name = run.data.train if isinstance(run.data.train, str) else ", ".join(map(str, run.data.train))
    try:
        source, conversation = find_row(open_rows(run), number, name)
        page = render_html(
            *(make_preview(source, conversation, checker.family, checker.tokenizer, checker.rules), with_ids),
            *({"zh": "zh-CN"}.get(lang, lang), lambda line: translate_message(line, lang) or line),
        )
    except UnusedRowError as error:
        effect, problem = (localize_message(line, lang) for line in (error.effect, error.message))
        page = str(join([el("p", effect, ": ", problem), el("pre", error.row_text)]))
    return el("iframe", srcdoc=page, sandbox="", title=title, class_="frame short")


def _number_rows(run: RunConfig) -> Iterator[TableRow]:
    for number, row in enumerate(scan_sources(open_rows(run)), start=1):
        if isinstance(row, InvalidRow):
            yield TableRow(number, row.where, "", "", row.message)
        else:
            question, answer = _split_row(row)
            yield TableRow(number, row.where, _shorten(question), _shorten(answer))


def _split_row(row: Conversation) -> tuple[str, str]:
    if row.text is not None:
        return row.text, ""
    contents = [(message["role"], _get_text(message)) for message in row.messages]
    last = max((i for i, (role, _) in enumerate(contents) if role in ("assistant", "tool")), default=len(contents))
    question = next((content for role, content in reversed(contents[:last]) if role == "user"), "")
    answer = contents[last][1] if last < len(contents) else ""
    if row.rejected is not None:
        answer = f"{answer}\n≠ {_split_row(row.rejected)[1]}"
    return question, answer


def _get_text(message: Mapping[str, Any]) -> str:
    if message["role"] == "tool":
        return f"{message.get('name')}({message.get('parameters')})"
    return str(message.get("content", ""))


def _shorten(content: str) -> str:
    return escape_controls(content if len(content) <= _MAX_TEXT else f"{content[:_MAX_TEXT]}…")
