"""Rows with a better and a worse answer: recognised in every shape, refused, or read as their better answer alone."""

from __future__ import annotations

import math
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
from glmtune.data.preference_shapes import normalize_pair, read_question
from glmtune.data.row_format import (
    Columns,
    RowFormat,
    decode_json_text,
    is_empty,
    list_keys,
)
from glmtune.data.turn_formats import PromptMessagesFormat
from glmtune.data.turn_history import exclude_answers

_CHOSEN_COLUMNS = (
    *("chosen", "chosen_response", "response_chosen", "chosen_messages", "answer_chosen", "chosen_answer"),
    *("preferred_output", "response_j", "pos_resp"),  # OpenAI, stack-exchange-paired, CValues
)
_REJECTED_COLUMNS = (
    *("rejected", "rejected_response", "response_rejected", "rejected_messages", "answer_rejected"),
    *("rejected_answer", "rejected_responses", "non_preferred_output", "response_k", "neg_resp"),
)
_LABEL_COLUMNS = ("label", "kto_tag")
_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "-1": False, "-1.0": False}
_MESSAGE_COLUMNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class PreferenceFormat(RowFormat):
    """Rows with a better and a worse answer, or (KTO) with an answer and whether it is a good one.

    Attributes:
        inner: the formats of the same rows with one answer; without any, no row is a preference row.
        messages: that of rows made of their answers' messages: a list `messages` with `role` and `content`.
        keys: of messages in the file, if they are not the usual ones.
        chosen: names of the column with the better answer.
        rejected: names of the column with the worse one.
        label: names of the column that says whether the answer is good.
        is_label_named: whether the user named that column: numbers and texts are then read too.
        uses_chosen: whether the better answer is trained on; otherwise the rows are refused.
        reads_pairs: whether both answers are read.
        reads_labels: whether single answers with a label are read; a pair then is a good and a bad one.
        margin: names of the column with how much better the better answer is.
        other_columns: names of columns that the user gave to other roles.
    """

    cache_name = "Preference"

    inner: tuple[RowFormat, ...]
    messages: RowFormat | None = None
    keys: MessageKeys | None = None
    chosen: tuple[str, ...] = _CHOSEN_COLUMNS
    rejected: tuple[str, ...] = _REJECTED_COLUMNS
    label: tuple[str, ...] = _LABEL_COLUMNS
    is_label_named: bool = False
    uses_chosen: bool = False
    reads_pairs: bool = field(default=False, repr=False)
    reads_labels: bool = field(default=False, repr=False)
    margin: tuple[str, ...] = field(default=("margin",), repr=False)
    other_columns: tuple[str, ...] = ()
    name: str = "preference rows"
    formats: tuple[str, ...] = ()

    def matches(self, values: dict[str, Any]) -> bool:
        # Checked first because it is fast: rows of other formats have neither such a column nor a list of answers.
        if self._own_columns.isdisjoint(values) and not self._find_answer_list(values):
            return False
        return bool(self.describe_preference(values))

    @property
    def cache_key(self) -> str:
        reading = f" pairs, {'/'.join(self.margin)}" if self.reads_pairs else " labels" if self.reads_labels else ""
        return super().cache_key + reading

    @property
    def is_required(self) -> bool:
        """Whether rows of other formats cannot be used: they lack what is trained on."""
        return self.reads_pairs or self.reads_labels

    def get_columns(self) -> frozenset[str]:
        return frozenset((*self.chosen, *self.rejected, *self.label))

    def list_unread_columns(self, values: dict[str, Any]) -> list[str]:
        values = self._normalize(values)
        row, row_format = self._make_first_row(values)
        replaced = values.keys() - row.keys()
        if self.reads_pairs:
            replaced |= set(self.margin)
        return [name for name in row_format.list_unread_columns(row) if name in values and name not in replaced]

    def list_unread_message_keys(self, values: dict[str, Any]) -> list[str]:
        row, row_format = self._make_first_row(self._normalize(values))
        return row_format.list_unread_message_keys(row)

    @cached_property
    def _own_columns(self) -> frozenset[str]:
        return self.get_columns().difference(self.other_columns)

    @cached_property
    def _answer_columns(self) -> frozenset[str]:
        return frozenset(inner.response for inner in self.inner if isinstance(inner, ColumnFormat))

    @cached_property
    def _questions(self) -> frozenset[str]:
        """The columns that may hold the question."""
        names = (getattr(inner, key, "") for inner in self.inner for key in ("prompt", "column"))
        return frozenset((*_MESSAGE_COLUMNS, *names)) - {""}

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
        if self._read_label(values) is not None or (self.reads_labels and self._find_label(values)):
            return f"{self._find_label(values)} is true or false"
        return ""

    def parse_row(self, row: RawRow) -> Conversation:
        description = self.describe_preference(row.values)
        if self.reads_labels:
            return self._parse_labelled(row)
        if self.reads_pairs:
            return self._parse_pair(row)
        if not self.uses_chosen and description:
            raise make_preference_error(description)
        row = RawRow(self._normalize(row.values), row.where)
        better, row_format = self._make_better_row(row.values)
        conversation = row_format.parse_row(RawRow(better, row.where))
        conversation.is_better_answer = True
        _exclude_earlier_answers(conversation)
        return conversation

    def make_missing_error(self) -> InvalidRowError:
        """The error for a row without what is trained on."""
        if self.reads_labels:
            return InvalidRowError(
                "no-label",
                "no label beside the answer",
                "KTO needs to know of every answer whether it is good: a column label (or kto_tag) with true or false.",
            )
        return InvalidRowError(
            "no-pair",
            "no worse answer beside the better one",
            "Preference tuning needs both in every row: columns chosen and rejected.",
        )

    def _parse_labelled(self, row: RawRow) -> Conversation:
        """An answer and whether it is good; of a pair, both answers. The last answer alone is trained on."""
        if self._find_label(row.values) is None:
            if not self.describe_preference(row.values):
                raise self.make_missing_error()
            pair = self._parse_pair(row)
            assert pair.rejected is not None
            pair.is_desirable, pair.rejected.is_desirable = True, False
            return pair
        values, row_format = self._make_labelled_row(row.values)
        conversation = row_format.parse_row(RawRow(values, row.where))
        conversation.is_desirable = self._require_label(row.values)
        _exclude_earlier_answers(conversation)
        return conversation

    def _make_first_row(self, values: dict[str, Any]) -> tuple[dict[str, Any], RowFormat]:
        """The row as if it had one answer, the better one of two, and the format of that."""
        is_labelled = self.reads_labels and self._find_label(values) is not None
        return self._make_labelled_row(values) if is_labelled else self._make_better_row(values)

    def _make_labelled_row(self, values: dict[str, Any]) -> tuple[dict[str, Any], RowFormat]:
        """A row without its label, and its format."""
        rest = {key: value for key, value in values.items() if key != self._find_label(values)}
        row_format = next((inner for inner in self.inner if inner.matches(rest)), None)
        if row_format is None:
            raise InvalidRowError(
                "missing-column",
                f"no known question and answer beside the label (this row has {list_keys(values)})",
                "Name their columns: --set data.columns.prompt=COLUMN --set data.columns.response=COLUMN",
            )
        return rest, row_format

    def _parse_pair(self, row: RawRow) -> Conversation:
        """Both answers; only what follows the messages that the two conversations share is trained on."""
        sides = []
        normalized = self._normalize(row.values)
        for values in (normalized, self._exchange_answers(normalized)):
            side_values, row_format = self._make_better_row(values)
            sides.append(row_format.parse_row(RawRow(side_values, row.where)))
        better, worse = sides
        if better.messages == worse.messages:
            raise InvalidRowError("same-answers", "the better and the worse answer are the same", "Remove the row.")
        pairs = zip(better.messages, worse.messages, strict=False)
        shared = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if shared is None:
            problem = "one of the two conversations is the start of the other: there are no two answers to compare"
            raise InvalidRowError("no-pair", problem, "Fix or remove the row.")
        if any(side.messages[shared]["role"] not in ("assistant", "tool") for side in sides):
            problem = f"the two conversations differ in message {shared + 1}, before an answer: the questions differ"
            raise InvalidRowError("other-question", problem, "Both answers must follow the same messages.")
        for side in sides:
            side.messages = [*exclude_answers(side.messages[:shared]), *side.messages[shared:]]
        better.rejected = worse
        if self.reads_pairs:
            better.margin = self._read_margin(row.values)
        return better

    def _normalize(self, values: dict[str, Any]) -> dict[str, Any]:
        """The row with its question and answers as the other formats have them."""
        if self._own_columns.isdisjoint(values):
            return values
        own = {*self.chosen, *self.rejected} - set(self.other_columns)
        answers = [name for name in values if name in own]
        return normalize_pair(values, self._questions, answers, self.keys) if answers else values

    def _read_margin(self, values: dict[str, Any]) -> float:
        """How much better the better answer is; 0 where the row does not say."""
        name = next((name for name in self.margin if values.get(name) is not None), None)
        if name is None:
            return 0.0
        value = values[name]
        is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
        try:
            margin = float(value) if is_number else math.nan
        except ValueError:
            margin = math.nan
        if not math.isfinite(margin):
            raise InvalidRowError("wrong-type", f"column {name!r} must be a number, not {value!r}", "Fix the row.")
        return margin

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
        error = self.make_missing_error()
        if self._find_label(values) is not None:
            error.hint = "Answers with a label, good or bad, are for another stage: --stage kto"
        raise error

    def _drop_answer(self, values: dict[str, Any], worse: Any) -> dict[str, Any]:
        """The row without the answer that its messages end with, where `worse` is an answer alone."""
        column = self._find_messages(values)
        if column is None or (isinstance(worse, list) and len(worse) > 1):
            return values
        return {**values, column: read_question(values[column])}

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
            better = self._add_chosen(better, decode_json_text(values[name]), name) if name else self._move(better)
        elif column:
            better[column] = values[column][0]
        elif label is not None:
            label_column = str(self._find_label(values))
            if not label:
                raise InvalidRowError(WORSE_ANSWER, f"{label_column} is false: a worse answer, which is not trained on")
            del better[label_column]
        formats = (*self.inner, self.messages) if has_pair and self.messages else self.inner
        row_format = next((inner for inner in formats if inner.matches(better)), None)
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
        if isinstance(chosen, list) and find_message_keys(chosen):
            return self._add_messages(better, [convert_to_role_content(message) for message in chosen])
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
        return better

    def _move(self, better: dict[str, Any]) -> dict[str, Any]:
        """The row with its list of messages, which ends with the better answer, as `messages`."""
        column = self._find_messages(better)
        if column is None:
            return better
        return {**{key: value for key, value in better.items() if key != column}, "messages": better[column]}

    def _add_messages(self, better: dict[str, Any], chosen: list[Message]) -> dict[str, Any]:
        """The row with a list `messages`: the whole of `chosen`, or the question's messages and `chosen`."""
        column = self._find_messages(better)
        question: list[Any] = []
        has_question = any(isinstance(m, dict) and m.get("role") in ("user", "human") for m in chosen)
        prompts = {inner.prompt for inner in self.inner if isinstance(inner, (ColumnFormat, PromptMessagesFormat))}
        if column:
            if not has_question:
                question = read_question(better[column])
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
        return next((name for name in columns if find_message_keys(decode_json_text(values.get(name)))), None)

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

    def _require_label(self, values: dict[str, Any]) -> bool:
        """Whether the answer of a labelled row is good.

        Raises:
            InvalidRowError: the label is neither true nor false.
        """
        name = str(self._find_label(values))
        value = values[name]
        text = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else ""
        if text not in _LABELS:
            raise InvalidRowError(
                "wrong-type", f"column {name!r} must be true or false (or 1 or 0), not {value!r}", "Fix the row."
            )
        return _LABELS[text]

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
    reads_labels: bool = False,
    *,
    messages: RowFormat | None = None,
    keys: MessageKeys | None = None,
) -> PreferenceFormat:
    """The format with the user's names of columns.

    Args:
        inner: the formats of the same rows with one answer.
        columns: names by role.
        uses_chosen: whether the better answer is trained on.
        reads_pairs: whether both answers are read.
        reads_labels: whether answers with a label are read.
        messages: of a list `messages` with `role` and `content`.
        keys: of messages in the file, if the user named them.
    """
    own_roles = ("chosen", "rejected", "label", "margin")
    names = {role: (columns[role],) for role in ("chosen", "rejected", "margin") if role in columns}
    label = {"label": (columns["label"],), "is_label_named": True} if "label" in columns else {}
    others = tuple(name for role, name in columns.items() if role not in own_roles)
    answered = tuple(row_format for row_format in inner if not isinstance(row_format, TextFormat))
    reading = {"uses_chosen": uses_chosen, "reads_pairs": reads_pairs, "reads_labels": reads_labels}
    options: Any = {**names, **label, **reading, "other_columns": others}
    return PreferenceFormat(answered, messages, keys, **options)


def _exclude_earlier_answers(conversation: Conversation) -> None:
    """Do not train on answers before the last question: what is judged is the last one."""
    messages = conversation.messages
    start = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    conversation.messages = [*exclude_answers(messages[:start]), *messages[start:]]
