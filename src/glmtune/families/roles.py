"""ChatGLM3-6B and GLM-4: every message begins with the token of its role; the next role's token ends it."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from glmtune.errors import DataError
from glmtune.families.family import IGNORE, Encoded, Family, Message, require_answer, special_id, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "observation")


class RoleFamily(Family):
    """What the two generations share. A subclass says how tools are announced and called."""

    start_tokens: tuple[str, str]

    @abstractmethod
    def announce(self, messages: list[Message], tools: list) -> list[Message]:
        """The messages with a system message that lists the tools."""

    @abstractmethod
    def write_call(self, arguments: dict[str, Any]) -> str:
        """What the assistant writes, under the tool's name, to call it."""

    def expand(self, messages: Sequence[Message], tools: list | None) -> list[Message]:
        """Messages in the model's own roles: tools announced, `tool` messages turned into calls and results."""
        expanded: list[Message] = []
        for message in self.announce(list(messages), tools) if tools else messages:
            expanded += self._call_and_result(message) if message["role"] == "tool" else [message]
        return expanded

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        ids = self._start(tokenizer)
        for message in self.expand(messages, tools):
            ids += self._message_ids(message, tokenizer)
        return [*ids, special_id(tokenizer, "<|assistant|>")]

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        said = self.expand([message], None)[0]
        return [*self._body_ids(said, tokenizer), self._end(said, tokenizer)]

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> Encoded:
        require_answer(messages)
        ids = self._start(tokenizer)
        labels = [IGNORE] * len(ids)
        prompt_length = 0
        # The official mask says whether the prediction made *at* a token counts, so the token after an assistant's
        # message (the next role or the end) is a target too, and its own role token is not.
        counted, last = False, messages[-1]
        for message in self.expand(messages, tools):
            new = self._message_ids(message, tokenizer)
            labels.append(new[0] if counted else IGNORE)
            counted = message["role"] == "assistant" and message.get("loss", True)
            labels += new[1:] if counted else [IGNORE] * (len(new) - 1)
            if message["role"] == "assistant":
                prompt_length = len(ids) + 1
            ids += new
            last = message
        end = self._end(last, tokenizer)
        return Encoded([*ids, end], [*labels, end if counted else IGNORE], prompt_length)

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [special_id(tokenizer, token) for token in self.start_tokens]

    def _call_and_result(self, message: Message) -> list[Message]:
        """A `tool` message as the assistant's call and, if there is one, its result."""
        call = {
            "role": "assistant",
            "metadata": message["name"],
            "content": self.write_call(message.get("parameters") or {}),
            "loss": message.get("loss", True),
        }
        if "observation" not in message:
            return [call]
        result = message["observation"]
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        return [call, {"role": "observation", "content": content}]

    def _end(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> int:
        """What ends a row: after a tool call the tool's result is awaited, after all else nothing."""
        calls = message["role"] == "assistant" and message.get("metadata")
        return special_id(tokenizer, "<|observation|>" if calls else self.stop_tokens[0])

    def _message_ids(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        role = message["role"]
        if role not in ROLES:
            raise DataError(f"{self.title} has no role {role!r}.", f"Its roles are {', '.join(ROLES)} and tool.")
        return [special_id(tokenizer, f"<|{role}|>"), *self._body_ids(message, tokenizer)]

    def _body_ids(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        # The two pieces are encoded apart, as the official tokenizers do: each gets its own dummy prefix.
        return [*_metadata_ids(tokenizer, message.get("metadata", "")), *text_ids(tokenizer, message["content"])]


@lru_cache(maxsize=4096)
def _metadata_ids(tokenizer: PreTrainedTokenizerBase, metadata: str) -> tuple[int, ...]:
    """Nearly always the empty line or one of a few tool names."""
    return tuple(text_ids(tokenizer, f"{metadata}\n"))
