"""Ids of plain text by SentencePiece itself, as the published tokenizers compute them.

The fast tokenizers give the same ids (the tests compare both) and do everything else; but a data set is a hundred
thousand texts, and SentencePiece cuts them three (ChatGLM2, ChatGLM3) to ten times (ChatGLM-6B) as fast.
"""

from __future__ import annotations

import re
from pathlib import Path

import sentencepiece

_BLANKS = re.compile(" {2,80}")


class SentencePieceIds:
    """Text to ids; special tokens typed in it stay text."""

    def __init__(self, model: Path):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def __call__(self, text: str) -> list[int]:
        return self._model.encode(text)


class ChatGLMSentencePieceIds(SentencePieceIds):
    """ChatGLM-6B: white space is named before SentencePiece sees it, image tokens shift the ids."""

    def __init__(self, model: Path, image_tokens: int):
        super().__init__(model)
        self._shift = image_tokens

    def __call__(self, text: str) -> list[int]:
        named = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        named = _BLANKS.sub(lambda run: f"<|blank_{len(run.group())}|>", named)
        ids = super().__call__(named)
        return [i + self._shift for i in ids] if self._shift else ids
