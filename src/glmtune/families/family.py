"""Base class of the model families: conversations to token ids, and generated text to replies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of positions without a target (torch's `ignore_index`)."""

OFFICIAL_ENCODER = "official_text_ids"
"""Attribute of a tokenizer with the encoder of the published tokenizer, if there is one: same ids, several times as
fast."""

TRAINING_TIME = "[[训练时间]]"
"""What the published models write in place of their training date."""

Message = Mapping[str, Any]
"""`role` and `content`; optional `loss` (bool); by role also `name`, `parameters`, `observation`, `metadata`."""


@dataclass
class EncodedSequence:
    """One training row: `input_ids` and `labels` of the same length, with `IGNORE_INDEX` where there is no target.

    As in transformers, the label at position t is the target of the prediction at t - 1. It equals the input token,
    except for the end tokens of ChatGLM2's earlier answers, which are in the labels only.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    """Position at which the last answer begins."""
    context: int = 0
    """Number of first tokens with bidirectional attention (ChatGLM-6B); 0 if attention is causal throughout."""


@dataclass
class ToolCall:
    """A call of a tool by the model."""

    name: str
    arguments: dict[str, Any]


@dataclass
class Reply:
    """A parsed generated text: text for the user, and tool calls."""

    content: str
    tool_calls: list[ToolCall] = field(default_factory=list)
    problem: str = ""
    """Why a text that looks like a tool call could not be parsed as one."""


class Family(ABC):
    """One model generation. All conversations are rendered by `encode` and `encode_prompt`."""

    name: str
    title: str
    lora_targets: tuple[str, ...]
    """Modules that LoRA adapts by default: the query, key and value projections."""
    stop_tokens: tuple[str, ...]
    """Tokens that end a reply; the first one ends a training row."""
    has_json_calls = False
    """Whether the arguments of a tool call are written as a JSON object."""
    one_answer_per_row = False
    """Whether a row can train its last answer only: a conversation then becomes one row per answer."""
    position_streams = 1
    """Number of position ids per token: ChatGLM-6B has separate ones for context and answer."""
    positions_scaled = False
    """Whether a published `rope_ratio` divides the positions (ChatGLM2-6B-32k) instead of scaling the rotary base."""

    @abstractmethod
    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        """Encode the prompt after which the model generates its reply to `messages`."""

    @abstractmethod
    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Encode an assistant message as it follows `encode_prompt`, including the end token."""

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> EncodedSequence:
        """Encode a conversation that ends with an assistant message as a training row.

        Args:
            messages: dicts, see `Message`.
            tokenizer: of this generation.
            tools: the tools that the assistant may call.

        Raises:
            DataError: there is no message, or the last one is not the assistant's.
        """
        require_answer(messages)
        prompt = self.encode_prompt(messages[:-1], tokenizer, tools)
        answer = self.encode_answer(messages[-1], tokenizer)
        return self.build_row(prompt, answer, trained=messages[-1].get("loss", True))

    def encode_text(self, text: str, tokenizer: PreTrainedTokenizerBase) -> EncodedSequence:
        """Encode plain text for continued pre-training: all its tokens and the end token are targets."""
        return self.build_row(
            self.get_start_ids(tokenizer), [*tokenize_text(tokenizer, text), self.get_stop_ids(tokenizer)[0]]
        )

    @abstractmethod
    def get_start_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids at the start of every row."""

    def build_row(self, prompt: list[int], answer: list[int], trained: bool = True) -> EncodedSequence:
        """Join the ids of a prompt and its answer to a row; the targets are the answer's tokens."""
        targets = answer if trained else [IGNORE_INDEX] * len(answer)
        return EncodedSequence(prompt + answer, [IGNORE_INDEX] * len(prompt) + targets, len(prompt))

    def parse_reply(self, text: str) -> Reply:
        """Parse a generated text, from which special tokens have been removed."""
        return Reply(fill_training_time(text.strip()))

    def encode_call_start(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids after a prompt with which the model calls this tool; it continues with the arguments.

        Raises:
            DataError: this generation has no format for tools.
        """
        raise make_tools_error(self.title)

    def get_stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The ids at which generation stops.

        Raises:
            ModelError: the tokenizer lacks one of them.
        """
        return [get_special_id(tokenizer, token) for token in self.stop_tokens]

    def __repr__(self) -> str:
        return f"<family {self.name}>"


def tokenize_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize text without special tokens. Special tokens typed in it stay text, against prompt injection."""
    official: Callable[[str], list[int]] | None = getattr(tokenizer, OFFICIAL_ENCODER, None)
    if official is not None:
        return official(text)
    backend: Any = tokenizer.backend_tokenizer
    # Same ids as tokenizer(text, add_special_tokens=False, split_special_tokens=True) in a third of the time: no
    # BatchEncoding is built. Every call of a tokenizer sets this state again for itself.
    backend.encode_special_tokens = True
    if backend.padding is not None:
        backend.no_padding()
    if backend.truncation is not None:
        backend.no_truncation()
    return list(backend.encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=4096)
def get_special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a special token.

    Raises:
        ModelError: the tokenizer does not have the token.
    """
    index = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(index, int) or (index == tokenizer.unk_token_id and token != tokenizer.unk_token):
        raise ModelError(
            f"The tokenizer has no token {token!r}, which this generation's prompt needs.",
            "The tokenizer belongs to another generation than config.json says; name the right one with --family.",
        )
    return index


def require_answer(messages: Sequence[Message]) -> None:
    """Check that a conversation ends with an assistant message or a tool call.

    Raises:
        DataError: it does not.
    """
    if not messages or messages[-1]["role"] not in ("assistant", "tool"):
        last = messages[-1]["role"] if messages else "nothing"
        raise DataError(f"A training row must end with the assistant's answer; this one ends with {last}.")


def fill_training_time(text: str) -> str:
    """Replace the placeholder that the published models write for their training date, as the official code does."""
    return text.replace(TRAINING_TIME, "2023年")


def make_tools_error(title: str) -> DataError:
    """The error for tools in a conversation."""
    return DataError(f"{title} has no format for tools.", "Use ChatGLM3-6B or GLM-4, or remove the tools.")
