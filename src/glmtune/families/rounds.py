"""ChatGLM-6B and ChatGLM2-6B: conversations as numbered rounds of question and answer in plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from glmtune.errors import DataError
from glmtune.families.family import Message, make_tools_error


@dataclass
class Round:
    """A question and its answer; `answer` is None in the round that the model has to answer."""

    question: str
    answer: Message | None = None


def split_rounds(messages: Sequence[Message], tools: list | None, title: str) -> list[Round]:
    """Group messages into rounds. A system message is put before the first question: these formats have no such role.

    Raises:
        DataError: tools, an unknown role, or questions and answers that do not alternate.
    """
    if tools:
        raise make_tools_error(title)
    rounds: list[Round] = []
    systems: list[str] = []
    for position, message in enumerate(messages):
        role, content = message["role"], message.get("content", "")
        if role in ("system", "user") and message.get("loss"):
            raise DataError(
                f"Message {position + 1} ({role}) has loss: true, but {title} is trained on answers only: the rest of "
                "its prompt is one text.",
                "Remove the flag, or use ChatGLM3-6B or GLM-4.",
            )
        if role == "tool" or message.get("metadata"):
            raise make_tools_error(title)
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
                f"Message {position + 1} ({role}) does not fit: {title} takes an optional system message, "
                "then user and assistant in turn."
            )
    return rounds


def get_answer_text(message: Message, title: str) -> str:
    """The text of an assistant message.

    Raises:
        DataError: the message calls a tool.
    """
    if message["role"] == "tool" or message.get("metadata"):
        raise make_tools_error(title)
    return message["content"]
