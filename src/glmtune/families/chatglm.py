"""ChatGLM-6B: text, `[gMASK]`, `<sop>`, answer, `<eop>` (THUDM/ChatGLM-6B, `ptuning/main.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.families.family import EncodedSequence, Family, Message, get_special_id, tokenize_text
from glmtune.families.rounds import get_answer_text, split_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatGLM(Family):
    """The prompt has bidirectional attention, so a row trains its last answer only."""

    name = "chatglm"
    title = "ChatGLM-6B"
    lora_targets = ("query_key_value",)
    stop_tokens = ("<eop>",)
    one_answer_per_row = True
    position_streams = 2
    published_head_is_embedding = True

    def render_prompt(self, messages: Sequence[Message], tools: list | None = None) -> str:
        """The text before `[gMASK]`: the question alone, or with a history, rounds counted from 0."""
        rounds = split_rounds(messages, tools, self.title)
        if len(rounds) == 1:
            return rounds[0].question
        parts = []
        for i, turn in enumerate(rounds):
            answer = "" if turn.answer is None else f"{turn.answer['content']}\n"
            parts.append(f"[Round {i}]\n问：{turn.question}\n答：{answer}")
        return "".join(parts)

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        return tokenize_text(tokenizer, self.render_prompt(messages, tools)) + self.get_start_ids(tokenizer)

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [
            *tokenize_text(tokenizer, get_answer_text(message, self.title)),
            get_special_id(tokenizer, self.stop_tokens[0]),
        ]

    def get_start_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [get_special_id(tokenizer, "[gMASK]"), get_special_id(tokenizer, "<sop>")]

    def build_row(self, prompt: list[int], answer: list[int], trained: bool = True) -> EncodedSequence:
        encoded = super().build_row(prompt, answer, trained)
        encoded.context = len(prompt) - 1  # all tokens before <sop>
        return encoded
