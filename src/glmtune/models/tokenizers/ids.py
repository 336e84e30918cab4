"""Checks of a tokenizer's ids against config.json and the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.models.tokenizers.vocabulary_files import SentencePieceModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def count_image_tokens(model: SentencePieceModel, config: dict[str, Any], declared: int | None) -> int:
    """Count the image tokens, which have the ids before the pieces of ChatGLM-6B: 0, in early releases 20000.

    The checkpoint's own ids decide, not the release: `bos_token_id` (or another special id) less the id of its piece.

    Args:
        model: ice_text.model.
        config: config.json.
        declared: `num_image_tokens`, where a file names it.

    Raises:
        ModelError: `declared` contradicts the special ids, or `<sop>`, `<eop>` or `[gMASK]` is not a piece.
    """
    names = {"bos_token_id": "<sop>", "gmask_token_id": "[gMASK]", "eos_token_id": "<eop>"}
    missing = [piece for piece in names.values() if piece not in model.pieces]
    if missing:
        raise ModelError(
            f"{model.path}: no piece {', '.join(missing)}: the wrong vocabulary for ChatGLM-6B.",
            "Use the ice_text.model of the checkpoint's own repository.",
        )
    key = next((key for key in names if isinstance(config.get(key), int)), None)
    if key is None:
        return declared or 0
    shift = config[key] - model.pieces.index(names[key])
    if shift < 0 or (declared is not None and declared != shift):
        reason = "its pieces start at 0" if declared is None else f"num_image_tokens is {declared}"
        raise ModelError(
            f"{model.path.parent}: stale special ids: config.json's {key} is {config[key]}, but "
            f"{names[key]} is piece {model.pieces.index(names[key])} of ice_text.model and {reason}.",
            "config.json, tokenizer_config.json and ice_text.model come from different releases: take all from one.",
        )
    return shift


def require_matching_ids(
    tokenizer: PreTrainedTokenizerFast, config: dict[str, Any], path: Path, stale: dict[str, str]
) -> None:
    """Require that the ids fit the embeddings, and that the special ids are those of config.json.

    Args:
        tokenizer: the built one.
        config: config.json.
        path: the tokenizer's file, for the message.
        stale: config key to the token it must be the id of. A list of ids must contain it; a missing key is fine.

    Raises:
        ModelError: more tokens than embeddings, or special ids that differ.
    """
    size_key = "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size"
    if len(tokenizer) > config.get(size_key, len(tokenizer)):
        raise ModelError(
            f"{path}: {len(tokenizer)} tokens, but config.json's {size_key} is {config[size_key]}: "
            "the wrong vocabulary for the tokenizer.",
            "The two files come from different checkpoints or releases: take both from one.",
        )
    wrong = []
    for key, token in stale.items():
        configured, actual = config.get(key), tokenizer.convert_tokens_to_ids(token)
        configured_ids = configured if isinstance(configured, list) else [configured]
        if configured is not None and actual not in configured_ids:
            wrong.append(f"{key} is {configured}, the tokenizer's {token} is {actual}")
    if wrong:
        raise ModelError(
            f"{path.parent}: stale special ids in config.json: {'; '.join(wrong)}.",
            "Correct config.json, or take it and the tokenizer's file from one release.",
        )
