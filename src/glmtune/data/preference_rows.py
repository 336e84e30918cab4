"""Rows with a better and a worse answer: recognised in every shape, refused, or read as their better answer alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from glmtune.data.column_formats import ANSWER_COLUMNS, ColumnFormat, TextFormat
from glmtune.data.conversation import (
    PREFERENCE_HINT,
    WORSE_ANSWER,
    Conversation,
    InvalidRowError,
    RawRow,
    describe_type,
)
from glmtune.data.message_keys import Message, MessageKeys, convert_to_role_content, find_message_keys
from glmtune.data.row_format import (
    Columns,
    RowFormat,
    decode_json_text,
    is_empty,
    list_keys,
)
from glmtune.data.turn_formats import PromptMessagesFormat
from glmtune.data.turn_history import exclude_answers

_CHOSEN_COLUMNS = ("chosen", "chosen_response", "response_chosen", "chosen_messages", "answer_chosen", "chosen_answer")
_REJECTED_COLUMNS = (
    *("rejected", "rejected_response", "response_rejected", "rejected_messages", "answer_rejected"),
    *("rejected_answer", "rejected_responses"),
)
_LABEL_COLUMNS = ("label", "kto_tag")
_MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
# Anthropic's files have whole conversations as text.
_TRANSCRIPT_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class PreferenceFormat(RowFormat):
    """Rows with a better and a worse answer, or (KTO) with an answer and whether it is a good one.

    Attributes:
        inner: the formats of the same rows with one answer; without any, no row is a preference row.
        chosen: names of the column with the better answer.
        rejected: names of the column with the worse one.
        label: names of the column that says whether the answer is good.
        is_label_named: whether the user named that column: numbers and texts are then read too.
        uses_chosen: whether the better answer is trained on; otherwise the rows are refused.
        reads_pairs: whether both answers are read.
        other_columns: names of columns that the user gave to other roles.
        joined: the format of a question's messages joined with an answer: `role` and `content` in a column `messages`.
    """

    cache_name = "Preference"

    inner: tuple[RowFormat, ...]
    chosen: tuple[str, ...] = _CHOSEN_COLUMNS
    rejected: tuple[str, ...] = _REJECTED_COLUMNS
    label: tuple[str, ...] = _LABEL_COLUMNS
    is_label_named: bool = False
    uses_chosen: bool = False
    reads_pairs: bool = field(default=False, repr=False)
    other_columns: tuple[str, ...] = ()
    joined: RowFormat | None = field(default=None, repr=False)
    name: str = "preference rows"
    formats: tuple[str, ...] = ()

    def matches(self, values: dict[str, Any]) -> bool:
        # Checked first because it is fast: rows of other formats have neither such a column nor a list of answers.
        if self._own_columns.isdisjoint(values) and not self._find_answer_list(values):
            return False
        return bool(self.describe_preference(values))

    @property
    def cache_key(self) -> str:
        return super().cache_key + (" pairs" if self.reads_pairs else "")

    def get_columns(self) -> frozenset[str]:
        return frozenset((*self.chosen, *self.rejected, *self.label))

    def list_unread_columns(self, values: dict[str, Any]) -> list[str]:
        better, row_format = self._make_better_row(values)
        replaced = values.keys() - better.keys()
        return [name for name in row_format.list_unread_columns(better) if name in values and name not in replaced]

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        better, row_format = self._make_better_row(values)
        return row_format.list_unread_message_keys(better)

    @cached_property
    def _own_columns(self) -> frozenset[str]:
        return self.get_columns().difference(self.other_columns)

    @cached_property
    def _answer_columns(self) -> frozenset[str]:
        return frozenset(inner.response for inner in self.inner if isinstance(inner, ColumnFormat))

    def describe_preference(self, values: dict[str, Any]) -> str:
        """What makes a row a preference row, for messages; empty if it is none."""
        if not self.inner:
            return ""
        names = [
            name
            for name in (*self.chosen, *self.rejected)
            if name in values and name not in self.other_columns and not is_empty(values[name])
        ]
        if names:
            return " and ".join(names)
        column = self._find_answer_list(values)
        if column:
            return f"{column} is a list of {len(values[column])} answers"
        if self._read_label(values) is not None:
            return f"{self._find_label(values)} is true or false"
        return ""

    def parse_row(self, row: RawRow) -> Conversation:
        description = self.describe_preference(row.values)
        if self.reads_pairs:
            return self._parse_pair(row)
        if not self.uses_chosen and description:
            raise make_preference_error(description)
        better, row_format = self._make_better_row(row.values)
        conversation = row_format.parse_row(RawRow(better, row.where))
        conversation.is_better_answer = True
        # Answers before the last question are the same for the better and the worse answer.
        messages = conversation.messages
        start = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
        conversation.messages = [*exclude_answers(messages[:start]), *messages[start:]]
        return conversation

    def _parse_pair(self, row: RawRow) -> Conversation:
        """Both answers; only what follows the messages that the two conversations share is trained on."""
        sides = []
        for values in (row.values, self._exchange_answers(row.values)):
            side_values, row_format = self._make_better_row(values)
            sides.append(row_format.parse_row(RawRow(side_values, row.where)))
        better, worse = sides
        if better.messages == worse.messages:
            raise InvalidRowError("same-answers", "the better and the worse answer are the same", "Remove the row.")
        pairs = zip(better.messages, worse.messages, strict=False)
        shared = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if shared is None:
            shared = min(len(better.messages), len(worse.messages))
        for side in sides:
            side.messages = [*exclude_answers(side.messages[:shared]), *side.messages[shared:]]
        better.rejected = worse
        return better

    def _exchange_answers(self, values: dict[str, Any]) -> dict[str, Any]:
        """The row with its worse answer in the place of the better one."""
        column = self._find_answer_list(values)
        name = next((n for n in self.rejected if n not in self.other_columns and not is_empty(values.get(n))), None)
        if name is not None:
            worse = decode_json_text(values[name])
            if isinstance(worse, list) and worse and isinstance(worse[0], str):
                worse = worse[0]  # of several, the first
            own = {*self.chosen, *self.rejected} - set(self.other_columns)
            rest = {key: value for key, value in values.items() if key not in own}
            return {**self._drop_answer(rest, worse), self.chosen[0]: worse}
        if column:  # from the best to the worst
            return {**values, column: [values[column][-1], values[column][0]]}
        raise InvalidRowError(
            "no-pair",
            "no worse answer beside the better one",
            "Preference tuning needs both in every row: columns chosen and rejected.",
        )

    def _drop_answer(self, values: dict[str, Any], worse: Any) -> dict[str, Any]:
        """The row without the answer that its messages end with, where `worse` is an answer alone."""
        column = self._find_messages(values)
        if column is None or (isinstance(worse, list) and len(worse) > 1):
            return values
        messages = list(decode_json_text(values[column]))
        while messages and self._convert_message(messages[-1])["role"] == "assistant":
            messages.pop()
        return {**values, column: messages}

    def _make_better_row(self, values: dict[str, Any]) -> tuple[dict[str, Any], RowFormat]:
        """The row as if it had its better answer alone, and the format of that."""
        dropped = {name for name in (*self.chosen, *self.rejected) if name not in self.other_columns}
        has_pair = any(not is_empty(values.get(name)) for name in dropped)
        label = self._read_label(values)
        better = {key: value for key, value in values.items() if key not in dropped}
        column = self._find_answer_list(values)
        name: str | None = None
        if has_pair:
            name = next((name for name in self.chosen if name in dropped and not is_empty(values.get(name))), None)
            # ms-swift's rows have the better answer in its usual place, and a worse one beside it.
            better = self._add_chosen(better, decode_json_text(values[name]), name) if name else better
        elif column:
            better[column] = values[column][0]
        elif label is not None:
            label_column = str(self._find_label(values))
            if not label:
                raise InvalidRowError(WORSE_ANSWER, f"{label_column} is false: a worse answer, which is not trained on")
            del better[label_column]
        row_format = next((inner for inner in self.inner if inner.matches(better)), None)
        if row_format is None and name is not None and self.joined is not None and self.joined.matches(better):
            row_format = self.joined
        if row_format is None and has_pair and name is None:
            raise InvalidRowError("no-answer", "a preference row without its better answer", "Fix or remove the row.")
        if row_format is None:
            raise InvalidRowError(
                "missing-column",
                f"no known question to the better answer (this row has {list_keys(values)})",
                "Name its column: --set data.columns.prompt=COLUMN",
            )
        return better, row_format

    def _add_chosen(self, better: dict[str, Any], chosen: Any, name: str) -> dict[str, Any]:
        if isinstance(chosen, dict):
            chosen = [chosen]
        if isinstance(chosen, list) and len(chosen) == 1 and isinstance(chosen[0], str):
            chosen = chosen[0]
        if isinstance(chosen, list) and self._find_keys(chosen):
            return self._add_messages(better, [self._convert_message(message) for message in chosen])
        if not isinstance(chosen, str):
            problem = f"column {name!r} must be text or messages, not {describe_type(chosen)}"
            raise InvalidRowError("wrong-type", problem)
        column = self._find_messages(better)
        if column:
            return self._add_messages(better, [{"role": "assistant", "content": chosen}])
        # Last those whose question is often a column beside another question.
        by_name = sorted(self.inner, key=lambda inner: getattr(inner, "prompt", "") in ("content", "context"))
        for inner in by_name:
            if isinstance(inner, ColumnFormat) and inner.prompt in better:
                # The answer of a row that has both is the better one too, or a third.
                others = {
                    key: value for key, value in better.items() if key not in ANSWER_COLUMNS or key == inner.prompt
                }
                return {**others, inner.response: chosen}
        turns = _split_transcript(chosen)
        return {**better, "messages": turns} if turns else better

    def _add_messages(self, better: dict[str, Any], chosen: list[Message]) -> dict[str, Any]:
        """The row with a list `messages`: the whole of `chosen`, or the question's messages and `chosen`."""
        column = self._find_messages(better)
        question: list[Any] = []
        has_question = any(isinstance(m, dict) and m.get("role") in ("user", "human") for m in chosen)
        prompts = {inner.prompt for inner in self.inner if isinstance(inner, (ColumnFormat, PromptMessagesFormat))}
        if column:
            if not has_question:
                question = [self._convert_message(message) for message in decode_json_text(better[column])]
        elif not has_question:
            row_format = next((i for i in self.inner if isinstance(i, ColumnFormat) and i.prompt in better), None)
            if row_format and isinstance(better[row_format.prompt], str) and len(chosen) == 1:
                return {**better, row_format.response: chosen[0].get("content")}
            return better  # without a question: the caller's error
        used = {column, *prompts, *ANSWER_COLUMNS} if column or has_question else {column}
        rest = {key: value for key, value in better.items() if key not in used}
        # `input` and the like of the question are in `chosen` already.
        return {**rest, "messages": [*question, *chosen]}

    def _find_messages(self, values: dict[str, Any]) -> str | None:
        """The column with the messages of the question."""
        prompts = [inner.prompt for inner in self.inner if isinstance(inner, (ColumnFormat, PromptMessagesFormat))]
        named = [inner.column for inner in self.inner if hasattr(inner, "column")]
        columns = (*named, *_MESSAGE_COLUMNS, *prompts)
        return next((name for name in columns if self._find_keys(decode_json_text(values.get(name)))), None)

    def _find_keys(self, messages: Any) -> MessageKeys | None:
        """The keys of messages: those that the user named, else the usual ones; None for other values."""
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
            return None
        return next((keys for keys in self._named_keys if keys.role in messages[0]), None) or find_message_keys(
            messages
        )

    @cached_property
    def _named_keys(self) -> tuple[MessageKeys, ...]:
        return tuple(inner.keys for inner in self.inner if hasattr(inner, "keys"))

    def _convert_message(self, message: Any) -> Any:
        """A message with `role` and `content`."""
        keys = self._find_keys([message])
        return message if keys is None else convert_to_role_content(message, keys)

    def _find_answer_list(self, values: dict[str, Any]) -> str | None:
        """The column of answers that holds several, the best one first."""
        names = [name for name, value in values.items() if type(value) is list and name in self._answer_columns]
        if not names:
            return None
        pairs = (inner for inner in self.inner if isinstance(inner, ColumnFormat) and inner.matches(values))
        name = next((pair.response for pair in pairs), None)
        answers = values[name] if name in names else []
        return name if len(answers) > 1 and all(isinstance(text, str) for text in answers) else None

    def _find_label(self, values: dict[str, Any]) -> str | None:
        names = (name for name in self.label if name not in self.other_columns)
        return next((name for name in names if values.get(name) is not None), None)

    def _read_label(self, values: dict[str, Any]) -> bool | None:
        """Whether the answer of a KTO row is a good one; None for other rows."""
        name = self._find_label(values)
        if name is None:
            return None
        value = values[name]
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            value = value.strip().lower() == "true"
        elif self.is_label_named and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            value = str(value).strip() not in ("0", "-1", "0.0", "")
        if not isinstance(value, bool):
            return None
        return value if any(inner.matches(values) for inner in self.inner) else None


def make_preference_error(description: str) -> InvalidRowError:
    """The error for a preference row; `description` says what makes it one."""
    problem = f"a preference row ({description}); stage sft trains on single answers"
    return InvalidRowError("preference-row", problem, PREFERENCE_HINT)


def make_preference_format(
    inner: Iterable[RowFormat],
    columns: Columns,
    uses_chosen: bool,
    reads_pairs: bool = False,
    joined: RowFormat | None = None,
) -> PreferenceFormat:
    """The format with the user's names of columns.

    Args:
        inner: the formats of the same rows with one answer.
        columns: names by role.
        uses_chosen: whether the better answer is trained on.
        reads_pairs: whether both answers are read.
        joined: see `PreferenceFormat`.
    """
    own_roles = ("chosen", "rejected", "label")
    names = {role: (columns[role],) for role in ("chosen", "rejected") if role in columns}
    label = {"label": (columns["label"],), "is_label_named": True} if "label" in columns else {}
    others = tuple(name for role, name in columns.items() if role not in own_roles)
    answered = tuple(row_format for row_format in inner if not isinstance(row_format, TextFormat))
    options: Any = {**names, **label, "uses_chosen": uses_chosen, "reads_pairs": reads_pairs, "other_columns": others}
    return PreferenceFormat(answered, **options, joined=joined)


def _split_transcript(text: str) -> list[Message]:
    """The messages of a conversation written as `Human: ...` and `Assistant: ...`; empty for other texts."""
    parts = _TRANSCRIPT_MARK.split(text)
    if len(parts) < 5 or parts[0].strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[name], "content": content.strip()}
        for name, content in zip(parts[1::2], parts[2::2], strict=True)
    ]
