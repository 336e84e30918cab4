"""What can be wrong with a row: one small function per kind, over a `Conversation`.

An error stops training, or teaches something nobody wants to teach; a warning deserves a look. What needs more than
the one row (doubles, evaluation data, the model's limits) is in `check_rows`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glmtune.data.conversation import LEFT_OUT, Conversation, Fault
from glmtune.data.mojibake import find_mojibake

ERROR, WARNING = "error", "warning"
EXCERPT = 60
"""Characters of a row that a finding shows at most."""

# Kinds that the checks report, each with its severity and what its findings have in common. The readers' faults
# (`Fault.kind`) are kinds too, and always errors.
KINDS: dict[str, tuple[str, str]] = {
    "unreadable": (ERROR, "the file cannot be read further"),
    "empty-answer": (ERROR, "an answer to be learnt is empty"),
    "no-target": (ERROR, "nothing in the row is learnt"),
    "call-without-result": (ERROR, "a tool is called, but no result follows"),
    "result-without-call": (ERROR, "a tool's result without a call before it"),
    "refused-by-model": (ERROR, "this generation cannot be trained on the row"),
    "eval-overlap": (ERROR, "the same question and answer stand in the evaluation data"),
    "eval-same-prompt": (WARNING, "the same question stands in the evaluation data, with another answer"),
    "duplicate": (WARNING, "the same row again"),
    "answer-is-question": (WARNING, "an answer repeats its question"),
    "over-limit": (WARNING, "longer than the length limits"),
    "same-role-twice": (WARNING, "two messages of one role in a row (some generations refuse that)"),
    "assistant-first": (WARNING, "the assistant speaks before the user (some generations refuse that)"),
    "no-final-answer": (WARNING, "what stands after the last answer is not used"),
    "replacement-character": (WARNING, "U+FFFD: a character was lost when the file was made"),
    "mojibake": (WARNING, "text decoded with the wrong encoding"),
    "special-token": (WARNING, "a special token typed as text; it stays text and is learnt as such"),
}

_FAULTS = {
    True: "the line cannot be read; training leaves it out",
    False: "the row cannot be used; training stops at it",
}

# `sop` and `eop` without brackets are special tokens of ChatGLM2 and ChatGLM3 too, but also ordinary letters.
_SPECIAL = re.compile(r"<\|[A-Za-z]\w*\|>|\[[gs]?MASK\]|</s>|<[se]op>")


@dataclass(frozen=True)
class Problem:
    """What a check says of a row. `severity` is the kind's own unless given."""

    kind: str
    message: str
    excerpt: str = ""
    severity: str = ""
    hint: str | None = None


@dataclass(frozen=True)
class Finding:
    """A problem and the row that has it; `row` counts from 1 over all rows."""

    severity: str
    kind: str
    where: str
    row: int
    message: str
    excerpt: str
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON. `line` is None where rows have no lines (parquet, hub data)."""
        file, _, place = self.where.rpartition(":")
        return {
            "severity": self.severity,
            "kind": self.kind,
            "where": self.where,
            "file": file or self.where,
            "line": int(place) if place.isdigit() else None,
            "row": self.row,
            "message": self.message,
            "excerpt": self.excerpt,
            "hint": self.hint,
        }


def title(kind: str) -> str:
    """What the findings of a kind have in common."""
    return KINDS[kind][1] if kind in KINDS else _FAULTS[kind in LEFT_OUT]


def finding(problem: Problem, where: str, row: int) -> Finding:
    """A problem in its place."""
    severity = problem.severity or KINDS[problem.kind][0]
    return Finding(severity, problem.kind, where, row, problem.message, problem.excerpt, problem.hint)


def fault_finding(fault: Fault, row: int) -> Finding:
    """A row that is no conversation, as a finding."""
    return Finding(ERROR, fault.kind, fault.where, row, fault.message, "", fault.hint)


def check_conversation(conversation: Conversation) -> list[Problem]:
    """All that the row alone shows."""
    return [problem for check in CHECKS for problem in check(conversation)]


def empty_answers(conversation: Conversation) -> Iterator[Problem]:
    """Answers of nothing but white space that would be learnt."""
    for number, message in _numbered(conversation, "assistant"):
        if message.get("loss", True) and not message["content"].strip():
            question = conversation.messages[number - 2] if number > 1 else {}
            yield Problem(
                "empty-answer", f"message {number}, an answer, is empty", excerpt(question.get("content", ""))
            )


def repeated_questions(conversation: Conversation) -> Iterator[Problem]:
    """Answers that equal the question right before them."""
    for number, message in _numbered(conversation, "assistant"):
        before = conversation.messages[number - 2] if number > 1 else {"role": ""}
        text = message["content"].strip()
        if text and before["role"] == "user" and before["content"].strip() == text:
            yield Problem("answer-is-question", f"message {number} repeats the question word for word", excerpt(text))


def untrained(conversation: Conversation) -> Iterator[Problem]:
    """Rows in which `loss` is false for every answer."""
    answers = [message for message in conversation.messages if message["role"] in ("assistant", "tool")]
    if conversation.text is None and not any(message.get("loss", True) for message in answers):
        yield Problem("no-target", "nothing to learn: loss is false for every answer", _start(conversation))


def role_order(conversation: Conversation) -> Iterator[Problem]:
    """A user or assistant who speaks twice, an assistant who speaks first, an end without an answer."""
    messages = conversation.messages
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        return
    if turns[0]["role"] in ("assistant", "tool"):
        yield Problem("assistant-first", "the assistant speaks first", excerpt(_words(turns[0])))
    for number, (one, two) in enumerate(pairwise(messages), start=2):
        if one["role"] == two["role"] and two["role"] in ("user", "assistant"):
            said = f"messages {number - 1} and {number} are both the {two['role']}'s"
            yield Problem("same-role-twice", said, excerpt(_words(two)))
    last = turns[-1]
    if last["role"] in ("user", "observation") or (last["role"] == "tool" and "observation" in last):
        said = "the user" if last["role"] == "user" else "a tool's result"
        yield Problem("no-final-answer", f"the row ends with {said}, not with an answer", excerpt(_words(last)))


def tool_balance(conversation: Conversation) -> Iterator[Problem]:
    """Calls without a result (one at the end is learnt as it is), and results without a call."""
    messages = conversation.messages
    for i, message in enumerate(messages):
        following = messages[i + 1]["role"] if i + 1 < len(messages) else "observation"
        if message["role"] == "tool" and "observation" not in message and following != "observation":
            said = f"message {i + 1} calls {message['name']!r}, but no result follows"
            yield Problem("call-without-result", said, excerpt(_words(message)))
        elif message["role"] == "assistant" and message.get("metadata") and following != "observation":
            said = f"message {i + 1} calls {message['metadata']!r}, but no result follows"
            yield Problem("call-without-result", said, excerpt(_words(message)))
        elif message["role"] == "observation" and not _called(messages[:i]):
            said = f"message {i + 1} is a tool's result, but nothing was called before it"
            yield Problem("result-without-call", said, excerpt(_words(message)))


def lost_characters(conversation: Conversation) -> Iterator[Problem]:
    """U+FFFD anywhere in the row."""
    for name, text in texts(conversation):
        if (position := text.find("\ufffd")) >= 0:
            count = text.count("\ufffd")
            said = f"{name} has {count} replacement character{'s' if count > 1 else ''} (U+FFFD)"
            yield Problem("replacement-character", said, excerpt(text, position))


def wrong_encoding(conversation: Conversation) -> Iterator[Problem]:
    """Text read with the wrong encoding; `find_mojibake` says how it is told."""
    for name, text in texts(conversation):
        if (position := find_mojibake(text)) is not None:
            said = f"{name} looks like text decoded with the wrong encoding"
            yield Problem("mojibake", said, excerpt(text, position))


def typed_specials(conversation: Conversation) -> Iterator[Problem]:
    """Special tokens in brackets, typed in the text. `</s>` is let pass where it closes an HTML `<s>`."""
    for name, text in texts(conversation):
        found = next((m for m in _SPECIAL.finditer(text) if not _closes_html(text, m)), None)
        if found is not None:
            yield Problem("special-token", f"{name} contains {found.group()}", excerpt(text, found.start()))


Check = Callable[[Conversation], Iterator[Problem]]
CHECKS: tuple[Check, ...] = (
    empty_answers,
    repeated_questions,
    untrained,
    role_order,
    tool_balance,
    lost_characters,
    wrong_encoding,
    typed_specials,
)


def texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Every text of a row, with what it is called."""
    if conversation.text is not None:
        yield "the text", conversation.text
    for number, message in enumerate(conversation.messages, start=1):
        yield f"message {number} ({message['role']})", _words(message)
    if conversation.tools:
        yield "the list of tools", json.dumps(conversation.tools, ensure_ascii=False)


def excerpt(text: str, position: int = 0) -> str:
    """At most `EXCERPT` characters of a text around a position, on one line and with control characters escaped."""
    start = max(0, min(position - EXCERPT // 3, len(text) - EXCERPT))
    shown = ("…" if start else "") + escaped(text[start : start + EXCERPT])
    if len(shown) > EXCERPT or start + EXCERPT < len(text):
        shown = shown[: EXCERPT - 1] + "…"
    return shown


def escaped(text: str) -> str:
    """A text whose characters that move the cursor, colour the terminal or turn the writing stand there escaped."""
    return "".join(char.encode("unicode_escape").decode() if _acts(char) else char for char in text)


def _acts(char: str) -> bool:
    turning = char in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return turning or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def last_answer(conversation: Conversation) -> int:
    """Where the last answer stands; -1 without one."""
    roles = [message["role"] for message in conversation.messages]
    return max((i for i, role in enumerate(roles) if role in ("assistant", "tool")), default=-1)


def _words(message: dict[str, Any]) -> str:
    if message["role"] != "tool":
        return message["content"]
    parts = [message["name"], json.dumps(message["parameters"], ensure_ascii=False)]
    if "observation" in message:
        seen = message["observation"]
        parts.append(seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False))
    return "\n".join(parts)


def _numbered(conversation: Conversation, role: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((i, message) for i, message in enumerate(conversation.messages, start=1) if message["role"] == role)


def _start(conversation: Conversation) -> str:
    return excerpt(next((text for _, text in texts(conversation)), ""))


def _called(before: list[dict[str, Any]]) -> bool:
    """Whether a result may follow: several may answer one message, and a call may be plain text of the assistant."""
    for message in reversed(before):
        if message["role"] != "observation":
            return message["role"] == "assistant" or (message["role"] == "tool" and "observation" not in message)
    return False


def _closes_html(text: str, found: re.Match[str]) -> bool:
    return found.group() == "</s>" and text.find("<s>", 1, found.start()) > 0
