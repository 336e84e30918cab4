"""Rows of embedding and head in the weight files: a resized checkpoint may have others than its config.json says."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedConfig

from glmtune.errors import ModelError
from glmtune.models.weight_files import WeightInventory, read_inventory
from glmtune.utils.console import print_message
from glmtune.utils.io import find_json_object

_EMBEDDINGS = (
    "transformer.word_embeddings.weight",
    "transformer.embedding.word_embeddings.weight",
    "model.embed_tokens.weight",
)
_HEADS = ("transformer.output_layer.weight", "lm_head.weight")


def count_embedding_rows(folder: Path) -> int | None:
    """Count the rows of the embedding in a checkpoint folder's weight files; None without readable ones."""
    try:
        return _find_rows(read_inventory(folder), _EMBEDDINGS)
    except ModelError:
        return None


def fit_vocabulary_size(config: PreTrainedConfig, inventory: WeightInventory, family: str | None) -> None:
    """Set `vocab_size` of a config to the rows of embedding and head, if these agree with each other; and say it.

    `resize_token_embeddings` of the published code leaves `padded_vocab_size` as it was.

    Args:
        config: native; changed in place.
        inventory: the weights that it belongs to.
        family: the generation's name, for the tokenizer; None if it is not known.

    Raises:
        ModelError: embedding and head differ, or the tokenizer has more tokens than they have rows.
    """
    embedding, head = _find_rows(inventory, _EMBEDDINGS), _find_rows(inventory, _HEADS)
    size = config.vocab_size
    if not embedding or {embedding, head or embedding} == {size}:
        return
    key = _find_size_key(inventory.folder)
    numbers = f"the embedding has {embedding} rows, the head has {head}, and config.json's {key} is {size}"
    if head is not None and head != embedding:
        raise ModelError(
            f"{inventory.folder}: {numbers}.",
            "Resize both to one size, or take config.json and all weight files from the same repository and revision.",
        )
    if embedding < size:
        _require_row_per_token(inventory.folder, embedding, numbers, family)
    config.vocab_size = embedding
    what = "embedding and head have" if head else "the embedding has"
    _print_size(f"{inventory.folder}: {what} {embedding} rows; config.json's {key}, {size}, is not used.")


def _require_row_per_token(folder: Path, rows: int, numbers: str, family: str | None) -> None:
    from glmtune.models.tokenizers import load_tokenizer

    tokens = len(load_tokenizer(folder, family=family))
    if tokens > rows:
        raise ModelError(
            f"{folder}: {numbers}, but its tokenizer has {tokens} tokens.",
            "Check that config.json, tokenizer and all weight files come from the same repository and revision.",
        )


def _find_size_key(folder: Path) -> str:
    own = find_json_object(folder / "config.json") or {}
    return "padded_vocab_size" if "padded_vocab_size" in own else "vocab_size"


def _find_rows(inventory: WeightInventory, names: tuple[str, ...]) -> int | None:
    shapes = [inventory.weights[name].shape for name in names if name in inventory.weights]
    return shapes[0][0] if shapes and len(shapes[0]) == 2 else None


@lru_cache(maxsize=64)  # a command inspects its base several times
def _print_size(line: str) -> None:
    print_message(line)
