"""What every generation must answer: how a conversation becomes ids, and how ids become a reply."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
"""The label of a position whose prediction does not count (torch's `ignore_index`)."""

OFFICIAL_IDS = "official_text_ids"
"""The attribute of a tokenizer under which the published tokenizer's own encoder is kept, where there is one: the same
ids several times as fast."""

Message = Mapping[str, Any]
"""`role` and `content`; optional `loss` (bool), and per role `name`, `parameters`, `observation`, `metadata`."""


@dataclass
class Encoded:
    """One training row: `input_ids` and `labels`, both of the same length; `IGNORE` where no loss is taken.

    A label is the token that should follow the position before it. It is the input's own token, but for ChatGLM2's
    earlier answers, whose end token stands in the labels only.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    """Where the last answer begins."""
    context: int = 0
    """Length of the part that is read in both directions (ChatGLM-6B); 0 where attention is causal throughout."""


@dataclass
class ToolCall:
    """A tool the model asks for: its name and arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass
class Reply:
    """What a generated text says: the words for the user and the tools it calls."""

    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    problem: str = ""
    """Why a text that looks like a tool call could not be read as one."""


class Family(ABC):
    """One generation. `encode` and `encode_prompt` are the only places that render a conversation."""

    name: str
    title: str
    lora_targets: tuple[str, ...]
    """Module names that LoRA adapts unless told otherwise: the query, key and value projections."""
    stop_tokens: tuple[str, ...]
    """Tokens that end a reply, the one that closes a training row first."""
    one_answer_per_row = False
    """Whether a row can train its last answer only, so that a conversation becomes one row per answer."""
    position_streams = 1
    """How many positions a token has: ChatGLM-6B counts the context and the answer apart."""
    positions_scaled = False
    """Whether a published `rope_ratio` divides the positions (ChatGLM2-6B-32k) instead of stretching the base."""

    @abstractmethod
    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        """The ids after which the model writes its reply to `messages`."""

    @abstractmethod
    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids of an assistant's last message as they follow `encode_prompt`, the end token included."""

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> Encoded:
        """A conversation that ends with the assistant, as training sees it.

        Raises:
            DataError: there is no message, or the last one is not the assistant's.
        """
        require_answer(messages)
        prompt = self.encode_prompt(messages[:-1], tokenizer, tools)
        answer = self.encode_answer(messages[-1], tokenizer)
        return self.row(prompt, answer, trained=messages[-1].get("loss", True))

    def encode_text(self, text: str, tokenizer: PreTrainedTokenizerBase) -> Encoded:
        """Plain text for continued pre-training: every token of it is a target, and so is the end token."""
        return self.row(self._start(tokenizer), [*text_ids(tokenizer, text), self.stop_ids(tokenizer)[0]])

    @abstractmethod
    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids that open a row."""

    def row(self, prompt: list[int], answer: list[int], trained: bool = True) -> Encoded:
        """Ids from `encode_prompt` and those of an answer to it as one row, whose targets are the answer's."""
        targets = answer if trained else [IGNORE] * len(answer)
        return Encoded(prompt + answer, [IGNORE] * len(prompt) + targets, len(prompt))

    def parse_reply(self, text: str) -> Reply:
        """The reply in a generated `text` (special tokens already left out)."""
        return Reply(fill_training_time(text.strip()))

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Ids at which generation stops.

        Raises:
            ModelError: the tokenizer lacks one of them.
        """
        return [special_id(tokenizer, token) for token in self.stop_tokens]

    def __repr__(self) -> str:
        return f"<family {self.name}>"


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` alone; special tokens typed in it stay text, which is the formats' defence against injection."""
    official: Callable[[str], list[int]] | None = getattr(tokenizer, OFFICIAL_IDS, None)
    if official is not None:
        return official(text)
    backend: Any = tokenizer.backend_tokenizer
    # The same as tokenizer(text, add_special_tokens=False, split_special_tokens=True), without the two thirds of its
    # time that go into building a BatchEncoding. Every call of a tokenizer sets this state anew for itself.
    backend.encode_special_tokens = True
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return list(backend.encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=4096)
def special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token.

    Raises:
        ModelError: the tokenizer does not have it.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or (index == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ModelError(
            f"The tokenizer has no token {token!r}, which this generation's prompt needs.",
            "It belongs to another generation than config.json says; name the right one with --family.",
        )
    return index


def require_answer(messages: Sequence[Message]) -> None:
    """Raises:
    DataError: `messages` does not end with an assistant's (or tool call's) message.
    """
    if not messages or messages[-1]["role"] not in ("assistant", "tool"):
        last = messages[-1]["role"] if messages else "nothing"
        raise DataError(f"A training row must end with the assistant's answer; this one ends with {last}.")


def fill_training_time(text: str) -> str:
    """The published models write a placeholder for their training date; the official chat code fills it in."""
    return re.sub(r"\[\[训练时间\]\]", "2023年", text)
