"""Rows as questions that the model answers itself: the last answer is taken out and kept as the reference."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from glmtune.data.column_formats import ColumnFormat
from glmtune.data.conversation import Conversation, InvalidRowError, RawRow, describe_type
from glmtune.data.message_keys import find_message_keys
from glmtune.data.row_format import RowFormat, decode_json_text, is_empty
from glmtune.data.turn_formats import PromptMessagesFormat
from glmtune.data.turn_history import exclude_answers

REFERENCE = "reference"
"""Keyword by which reward functions get the answer of a row."""
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")
"""Keywords of reward functions that no column may have."""
_MORE_PROMPTS = ("problem",)
# Not questions where no answer stands beside them.
_NOT_ALONE = ("content", "context")


@dataclass(frozen=True)
class QuestionFormat(RowFormat):
    """A question, as text or as a list of messages, without an answer.

    Attributes:
        pair: the format of the same rows with an answer.
    """

    cache_name = "Question"

    pair: ColumnFormat
    name: str
    formats: tuple[str, ...] = ("prompt",)

    def matches(self, values: dict[str, Any]) -> bool:
        value = values.get(self.pair.prompt)
        return isinstance(value, str) or self._has_messages(values)

    def get_columns(self) -> frozenset[str]:
        return self.pair.get_columns()

    def parse_row(self, row: RawRow) -> Conversation:
        pair = self.pair
        answered = RawRow({**row.values, pair.response: ""}, row.where)
        if self._has_messages(row.values):
            return PromptMessagesFormat(pair.prompt, pair.response, self.name).parse_row(answered)
        return pair.parse_row(answered)

    def _has_messages(self, values: dict[str, Any]) -> bool:
        return find_message_keys(decode_json_text(values.get(self.pair.prompt))) is not None


def list_question_formats(pairs: Iterable[ColumnFormat]) -> list[RowFormat]:
    """The formats of questions without answers, one for each name of the question's column.

    Args:
        pairs: the formats of the same rows with answers, under the user's names.
    """
    by_prompt: dict[str, ColumnFormat] = {}
    for pair in pairs:
        if pair.prompt not in _NOT_ALONE:
            by_prompt.setdefault(pair.prompt, pair)
    for name in _MORE_PROMPTS:
        by_prompt.setdefault(name, replace(next(iter(by_prompt.values())), prompt=name, input=()))
    return [QuestionFormat(pair, name) for name, pair in by_prompt.items()]


def read_prompt(row_format: RowFormat, row: RawRow) -> Conversation:
    """Read a row as a question: its last answer is emptied, and kept as `reference`; all columns are kept.

    Raises:
        InvalidRowError: the row is invalid, has no question, or a column with the name of another argument of reward
            functions.
    """
    reserved = next((name for name in RESERVED_COLUMNS if name in row.values), None)
    if reserved is not None:
        raise InvalidRowError(
            "reserved-column",
            f"column {reserved!r} has the name of another argument of reward functions",
            "Rename the column.",
        )
    column = str(getattr(row_format, "response", ""))
    answer = row.values.get(column)
    reference, raw_values = None, row.values
    if answer is not None and not isinstance(answer, (str, list, dict)):  # a number, say, which is no text to train on
        reference = answer
        row = RawRow({**row.values, column: ""}, row.where)
    conversation = row_format.parse_row(row)
    if conversation.text is not None:
        raise InvalidRowError("no-question", "plain text without a question to answer", "Stage grpo needs questions.")
    messages = conversation.messages
    if messages and messages[-1]["role"] in ("assistant", "tool"):
        reference = _read_answer(messages[-1]) if reference is None else reference
        messages = messages[:-1]
    if not any(message["role"] == "user" for message in messages):
        last = f"its last message is of role {messages[-1]['role']}" if messages else "there is no message"
        raise InvalidRowError("no-question", f"no question to answer: {last}", "Fix or remove the row.")
    conversation.messages = [*exclude_answers(messages), {"role": "assistant", "content": ""}]
    own = raw_values.get(REFERENCE)
    conversation.reference = reference if is_empty(own) else own
    conversation.columns = {str(name): value for name, value in raw_values.items() if name != REFERENCE}
    conversation.is_better_answer = False
    return conversation


def _read_answer(message: dict[str, Any]) -> str | None:
    """The text of an answer, for a call of a tool a JSON object with name and parameters; None if it is empty."""
    if message["role"] == "tool":
        call = {"name": message["name"], "parameters": message.get("parameters") or {}}
        return json.dumps(call, ensure_ascii=False)
    content = message["content"]
    if not isinstance(content, str):
        raise InvalidRowError("wrong-type", f"the answer must be text, not {describe_type(content)}")
    return content or None
