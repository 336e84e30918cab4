"""Which layout the rows of a source have: told by the user, or by the rows themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from glmtune.config_parsing import nearest
from glmtune.data.conversation import Conversation, Row, check_order
from glmtune.data.formats_chat import check_tags, message_layouts
from glmtune.data.formats_columns import QUESTION_ANSWER, ROLES, Columns, Layout, PlainText, renamed
from glmtune.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    """What the user says of the layout; all of it optional."""

    columns: Columns = field(default_factory=dict)
    format: str | None = None
    tags: Columns = field(default_factory=dict)


def candidates(wanted: Wanted) -> list[Layout]:
    """The layouts that a source may have, the most telling first.

    Raises:
        ConfigError: a column role, a format or a tag that does not exist.
    """
    columns = wanted.columns
    for role, column in columns.items():
        if role not in ROLES:
            raise ConfigError(f"data.columns: no role {role!r}.", nearest(str(role), list(ROLES)))
        if not isinstance(column, str):
            raise ConfigError(f"data.columns.{role} must be a column's name, not {column!r}.")
    check_tags(wanted.tags)
    chat: list[Layout] = list(message_layouts(columns, wanted.tags))
    pairs: list[Layout] = [renamed(layout, columns) for layout in QUESTION_ANSWER]
    plain: list[Layout] = [PlainText(columns.get("text", "text"))]
    everything = [*chat, *pairs, *plain]
    if wanted.format is not None:
        return _of_format(str(wanted.format), everything)
    if "messages" in columns or wanted.tags:
        return chat
    if "prompt" in columns or "response" in columns:
        return pairs
    if "text" in columns:
        return plain
    return everything


def detect(layouts: list[Layout], values: dict[str, Any]) -> Layout | None:
    """The first layout that fits a row."""
    return next((layout for layout in layouts if layout.fits(values)), None)


def read_row(layout: Layout, row: Row) -> Conversation:
    """A row of a known layout as a conversation whose roles are in order.

    Raises:
        BadRow: it cannot become one.
    """
    conversation = layout.read(row)
    if conversation.text is None:
        check_order(conversation.messages)
    return conversation


def _of_format(name: str, layouts: list[Layout]) -> list[Layout]:
    found = [layout for layout in layouts if name.lower() in layout.formats]
    if not found:
        known = sorted({name for layout in layouts for name in layout.formats})
        raise ConfigError(f"data.format: no format {name!r}.", nearest(name, known))
    return found
