"""The vocabulary of a GGUF file: SentencePiece's pieces and scores (ChatGLM2, ChatGLM3), or byte-level BPE (GLM-4).

llama.cpp cuts text by itself, so the file has what that takes. What differs from the tokenizer's own files is said in
`RENAMES`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.models.tokenizers.backends import BPE, GLM4_PATTERN
from glmtune.models.tokenizers.vocabulary_files import CONTROL, NORMAL, UNUSED, USER_DEFINED, read_sentencepiece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.families import Family

RENAMES = {"sop": "<sop>", "eop": "<eop>"}
"""ChatGLM2's and ChatGLM3's special tokens that are bare letters. llama.cpp finds special tokens anywhere in a text, so
"people" would be cut at "eop"; the names in brackets, those of GLM-4, do not occur in words. The ids stay."""


@dataclass(frozen=True)
class GgufVocabulary:
    """One entry for each row of the embedding."""

    model: str
    """`llama` (SentencePiece) or `gpt2` (byte-level BPE), as llama.cpp calls them."""
    pre: str
    """llama.cpp's name of the rule that cuts text into words."""
    tokens: list[str]
    types: list[int]
    """SentencePiece's numbers of the types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    template: str = ""
    """The chat template, with the names of this vocabulary."""
    stop_ids: tuple[int, ...] = ()
    pad_id: int | None = None


def make_vocabulary(tokenizer: PreTrainedTokenizerBase, family: Family, folder: Path, size: int) -> GgufVocabulary:
    """Collect the vocabulary of a checkpoint.

    Args:
        tokenizer: of the checkpoint.
        family: its generation.
        folder: of the checkpoint; holds tokenizer.model for the generations with SentencePiece.
        size: rows of the embedding; ids without a token get placeholders that no text gives.

    Raises:
        ModelError: tokenizer.model is missing or another tokenizer's, or the tokenizer cuts words by another rule
            than llama.cpp knows.
    """
    backend: Any = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    tokens, types = _list_tokens(tokenizer, size)
    scores: list[float] = []
    merges: list[str] = []
    by_pieces = bool(described["model"].get("byte_fallback"))
    if by_pieces:
        scores = _apply_pieces(folder, tokens, types)
    else:
        _require_known_cutting(described, folder)
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in described["model"]["merges"]]
    # Marks for training: not every reader of templates knows them.
    template = re.sub(r"(\{%-?\s*)generation\b", r"\1if true", str(tokenizer.chat_template or ""))
    template = re.sub(r"(\{%-?\s*)endgeneration\b", r"\1endif", template)
    for name, renamed in RENAMES.items():
        if name in tokens and renamed not in tokens:
            tokens[tokens.index(name)] = renamed
            template = template.replace(f"[gMASK]{name}", f"[gMASK]{renamed}")
    return GgufVocabulary(
        "llama" if by_pieces else "gpt2",
        "default" if by_pieces else "glm4",
        tokens,
        types,
        scores,
        merges,
        template,
        tuple(family.get_stop_ids(tokenizer)),
        tokenizer.pad_token_id,
    )


def _list_tokens(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    added = tokenizer.added_tokens_decoder
    for token, index in tokenizer.get_vocab().items():
        tokens[index] = token
        types[index] = NORMAL if index not in added else CONTROL if added[index].special else USER_DEFINED
    return tokens, types


def _apply_pieces(folder: Path, tokens: list[str], types: list[int]) -> list[float]:
    """Give the pieces of tokenizer.model their types; returns all scores."""
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ModelError(
            f"{folder}: has no tokenizer.model, whose scores a GGUF file needs.",
            "Put the one of the model's original repository there.",
        )
    model = read_sentencepiece(path, BPE)
    count = len(model.pieces)
    if tokens[:count] != model.pieces:
        raise ModelError(
            f"{path}: has other pieces than the tokenizer of this folder.", "Take both from one repository."
        )
    types[:count] = model.types
    return model.scores + [0.0] * (len(tokens) - count)


def _require_known_cutting(described: dict[str, Any], folder: Path) -> None:
    """llama.cpp has GLM-4's rule by name, not any rule."""
    rules = described.get("pre_tokenizer") or {}
    patterns = [rule.get("pattern", {}).get("Regex") for rule in rules.get("pretokenizers", [rules])]
    if GLM4_PATTERN not in patterns:
        raise ModelError(
            f"{folder}: its tokenizer cuts text by another rule than GLM-4's, which llama.cpp does not know.",
            "Use --format hf.",
        )
