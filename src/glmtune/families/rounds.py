"""ChatGLM-6B and ChatGLM2-6B: a conversation is numbered rounds of question and answer in one plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.families.family import Message


@dataclass
class Round:
    """A question and its answer; the answer is missing in the round the model is to write."""

    question: str
    answer: Message | None = None


def to_rounds(messages: Sequence[Message], tools: list | None, title: str) -> list[Round]:
    """Messages as rounds. A system message goes in front of the first question: these formats have no such role.

    Raises:
        DataError: tools, a role these generations do not know, or questions and answers that do not alternate.
    """
    if tools:
        raise no_tools(title)
    rounds: list[Round] = []
    systems: list[str] = []
    for position, message in enumerate(messages):
        role, content = message["role"], message.get("content", "")
        if role == "tool" or message.get("metadata"):
            raise no_tools(title)
        if role == "system" and not rounds:
            systems.append(content)
        elif role == "user" and (not rounds or rounds[-1].answer is not None):
            question = "\n".join([*systems, content])
            systems.clear()
            rounds.append(Round(question))
        elif role == "assistant" and rounds and rounds[-1].answer is None:
            rounds[-1].answer = message
        else:
            raise DataError(
                f"Message {position + 1} ({role}) does not fit: {title} wants an optional system message, "
                "then user and assistant in turn."
            )
    return rounds


def answer_text(message: Message, title: str) -> str:
    """What the assistant says in its last message.

    Raises:
        DataError: it calls a tool instead.
    """
    if message["role"] == "tool" or message.get("metadata"):
        raise no_tools(title)
    return message["content"]


def no_tools(title: str) -> DataError:
    """The refusal of tools."""
    return DataError(f"{title} has no format for tools.", "Use ChatGLM3-6B or GLM-4, or take the tools out.")
