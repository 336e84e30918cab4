"""ChatGLM3-6B and GLM-4: every message begins with the token of its role and ends with that of the next."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.errors import DataError
from glmtune.families.family import (
    IGNORE_INDEX,
    EncodedSequence,
    Family,
    Message,
    get_special_id,
    require_answer,
    tokenize_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_ROLES = ("system", "user", "assistant", "observation")


class RoleFamily(Family):
    """Common base of both generations. Subclasses define how tools are listed and called."""

    start_tokens: tuple[str, str]

    @abstractmethod
    def add_tools(self, messages: list[Message], tools: list) -> list[Message]:
        """Return the messages with a system message that lists the tools."""

    @abstractmethod
    def render_tool_call(self, arguments: dict[str, Any]) -> str:
        """The text of a tool call, which follows the line with the tool's name."""

    def expand_tool_messages(self, messages: Sequence[Message], tools: list | None) -> list[Message]:
        """Convert messages to the model's own roles: tools are listed, `tool` messages become calls and results."""
        expanded: list[Message] = []
        for message in self.add_tools(list(messages), tools) if tools else messages:
            expanded += self._split_tool_message(message) if message["role"] == "tool" else [message]
        return expanded

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        ids = self.get_start_ids(tokenizer)
        for message in self.expand_tool_messages(messages, tools):
            ids += self._encode_message(message, tokenizer)
        return [*ids, get_special_id(tokenizer, "<|assistant|>")]

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        answer = self.expand_tool_messages([message], None)[0]
        return [*self._encode_body(answer, tokenizer), self._end_id(answer, tokenizer)]

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> EncodedSequence:
        require_answer(messages)
        ids = self.get_start_ids(tokenizer)
        labels = [IGNORE_INDEX] * len(ids)
        prompt_length = 0
        # The official mask applies to the prediction made at a token, so the token after an assistant's message (the
        # next role or the end) is a target, and the role token of the message itself is not.
        is_trained, last = False, messages[-1]
        for message in self.expand_tool_messages(messages, tools):
            message_ids = self._encode_message(message, tokenizer)
            labels.append(message_ids[0] if is_trained else IGNORE_INDEX)
            is_trained = message.get("loss", message["role"] == "assistant")
            labels += message_ids[1:] if is_trained else [IGNORE_INDEX] * (len(message_ids) - 1)
            if message["role"] == "assistant":
                prompt_length = len(ids) + 1
            ids += message_ids
            last = message
        end = self._end_id(last, tokenizer)
        return EncodedSequence([*ids, end], [*labels, end if is_trained else IGNORE_INDEX], prompt_length)

    def encode_call_start(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return list(_encode_metadata(tokenizer, name))

    def get_start_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [get_special_id(tokenizer, token) for token in self.start_tokens]

    def _split_tool_message(self, message: Message) -> list[Message]:
        """A `tool` message as the assistant's call and, if there is one, its result."""
        call = {
            "role": "assistant",
            "metadata": message["name"],
            "content": self.render_tool_call(message.get("parameters") or {}),
            "loss": message.get("loss", True),
        }
        if "observation" not in message:
            return [call]
        result = message["observation"]
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return [call, {"role": "observation", "content": content, "loss": message.get("observation_loss", False)}]

    def _end_id(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> int:
        """The token that ends a row: after a tool call, the role of its result; otherwise the stop token."""
        calls = message["role"] == "assistant" and message.get("metadata")
        return get_special_id(tokenizer, "<|observation|>" if calls else self.stop_tokens[0])

    def _encode_message(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        role = message["role"]
        if role not in MODEL_ROLES:
            raise DataError(f"{self.title} has no role {role!r}.", f"Its roles are {', '.join(MODEL_ROLES)} and tool.")
        return [get_special_id(tokenizer, f"<|{role}|>"), *self._encode_body(message, tokenizer)]

    def _encode_body(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        # Tokenized separately, as in the official tokenizers: each part gets its own dummy prefix.
        return [
            *_encode_metadata(tokenizer, message.get("metadata", "")),
            *tokenize_text(tokenizer, message["content"]),
        ]


@lru_cache(maxsize=4096)
def _encode_metadata(tokenizer: PreTrainedTokenizerBase, metadata: str) -> tuple[int, ...]:
    # Cached: nearly always an empty line or one of a few tool names.
    return tuple(tokenize_text(tokenizer, f"{metadata}\n"))
