"""ChatGLM3-6B and GLM-4: every message begins with the token of its role; the next role's token ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.errors import DataError
from glmtune.families.base import IGNORE, Encoded, Family, Message, require_answer, special_id, text_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "observation")


class RoleFamily(Family):
    """What the two generations share. A subclass says how tools are announced and called."""

    start_tokens: tuple[str, str]

    def expand(self, messages: Sequence[Message], tools: list | None) -> list[Message]:
        """Messages in the model's own roles: tools announced, `tool` messages turned into calls and results."""
        raise NotImplementedError

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        ids = self._start(tokenizer)
        for message in self.expand(messages, tools):
            ids += self._message_ids(message, tokenizer)
        return [*ids, special_id(tokenizer, "<|assistant|>")]

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        ids = self._body_ids(message, tokenizer)
        return [*ids, special_id(tokenizer, self.stop_tokens[0])]

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> Encoded:
        require_answer(messages)
        ids = self._start(tokenizer)
        # counts[i] says whether the prediction made *at* token i counts, so the token after an assistant's
        # message (the next role or the end) is a target too, and its own role token is not.
        counts = [False] * len(ids)
        for message in self.expand(messages, tools):
            new = self._message_ids(message, tokenizer)
            trained = message["role"] == "assistant" and message.get("loss", True)
            ids += new
            counts += [trained] * len(new)
        ids.append(special_id(tokenizer, self.stop_tokens[0]))
        labels = [token if counted else IGNORE for token, counted in zip(ids, [False, *counts], strict=True)]
        return Encoded(ids, labels)

    def _start(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [special_id(tokenizer, token) for token in self.start_tokens]

    def _message_ids(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        role = message["role"]
        if role not in ROLES:
            raise DataError(f"{self.title} has no role {role!r}.", f"Its roles are {', '.join(ROLES)} and tool.")
        return [special_id(tokenizer, f"<|{role}|>"), *self._body_ids(message, tokenizer)]

    def _body_ids(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        # The two pieces are encoded apart, as the official tokenizers do: each gets its own dummy prefix.
        metadata = text_ids(tokenizer, f"{message.get('metadata', '')}\n")
        return metadata + text_ids(tokenizer, message["content"])
