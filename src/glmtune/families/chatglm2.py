"""ChatGLM2-6B and CodeGeeX2-6B: `[gMASK] sop`, then rounds counted from 1 (THUDM/ChatGLM2-6B)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.families.family import EncodedSequence, Family, Message, get_special_id, require_answer, tokenize_text
from glmtune.families.rounds import Round, get_answer_text, split_rounds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatGLM2(Family):
    """The whole history is one text; only the last answer is tokenized separately, as in the official code."""

    name = "chatglm2"
    title = "ChatGLM2-6B"
    lora_targets = ("q_proj", "k_proj", "v_proj")
    stop_tokens = ("</s>",)
    positions_scaled = True

    def render_prompt(self, messages: Sequence[Message], tools: list | None = None) -> str:
        """The text after `[gMASK] sop`."""
        return self._render_rounds(split_rounds(messages, tools, self.title))[0]

    def encode_prompt(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> list[int]:
        return self.get_start_ids(tokenizer) + tokenize_text(tokenizer, self.render_prompt(messages, tools))

    def encode_answer(self, message: Message, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [
            *tokenize_text(tokenizer, get_answer_text(message, self.title)),
            get_special_id(tokenizer, self.stop_tokens[0]),
        ]

    def encode(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, tools: list | None = None
    ) -> EncodedSequence:
        """Encode a conversation in which every answer is trained.

        The input is exactly the official prompt, which has no end token after an earlier answer: there the end token
        is in the labels only, as the label of the position after the answer.
        """
        require_answer(messages)
        rounds = split_rounds(messages[:-1], tools, self.title)
        encoded = super().encode(messages, tokenizer, tools)
        spans = self._render_rounds(rounds)[1]
        if spans:
            self._label_earlier_answers(encoded, self._render_rounds(rounds)[0], spans, tokenizer)
        return encoded

    def get_start_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        return [get_special_id(tokenizer, "[gMASK]"), get_special_id(tokenizer, "sop")]

    def _render_rounds(self, rounds: list[Round]) -> tuple[str, list[tuple[int, int]]]:
        """The prompt, and the character spans of the earlier answers that are trained."""
        text, spans = "", []
        for i, turn in enumerate(rounds, start=1):
            text += f"[Round {i}]\n\n问：{turn.question}\n\n答："
            if turn.answer is not None:
                start = len(text)
                text += turn.answer["content"]
                if turn.answer.get("loss", True):
                    spans.append((start, len(text)))
                text += "\n\n"
        return text, spans

    def _label_earlier_answers(
        self, encoded: EncodedSequence, text: str, spans: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        offsets = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        shift, end_id = len(self.get_start_ids(tokenizer)), get_special_id(tokenizer, self.stop_tokens[0])
        starts = [first for first, _ in offsets]  # sorted: searched by bisection, since there may be many answers
        for start, end in spans:
            # A token that crosses either border of the answer is not a target.
            span = range(bisect_left(starts, start), bisect_left(starts, end))
            inside = [i for i in span if offsets[i][0] < offsets[i][1] <= end]
            for i in inside:
                encoded.labels[shift + i] = encoded.input_ids[shift + i]
            after = inside[-1] + 1 if inside else span.stop
            encoded.labels[shift + after] = end_id
