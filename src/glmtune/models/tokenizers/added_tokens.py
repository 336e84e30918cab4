"""Tokens that a checkpoint's owner added to the published vocabulary: they match in text, before anything else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.utils.io import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADDED_TOKENS_FILE = "added_tokens.json"
"""What transformers writes beside a tokenizer of Python code: ids by token."""

_CONFIG_FILE = "tokenizer_config.json"
_FLAGS = ("lstrip", "rstrip", "single_word")


def add_saved_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path, config: dict[str, Any]) -> bool:
    """Add the tokens of added_tokens.json and of `added_tokens_decoder` in tokenizer_config.json, with their ids.

    Tokens that the published vocabulary has are left as they are. The others are found in every text, also where
    special tokens stay text.

    Args:
        tokenizer: with the published vocabulary; gets the tokens.
        folder: of the checkpoint.
        config: the parsed config.json, which has the number of rows of the embedding.

    Returns:
        Whether there were any.

    Raises:
        ModelError: a file that cannot be read, ids that do not follow the vocabulary, or an id without an embedding.
    """
    from tokenizers import AddedToken

    known = tokenizer.get_vocab()
    tokens = {token: saved for token, saved in _read_saved_tokens(folder).items() if token not in known}
    if not tokens:
        return False
    rows = config.get("padded_vocab_size") or config.get("vocab_size")
    backend: Any = tokenizer.backend_tokenizer
    for token, (index, flags, path) in sorted(tokens.items(), key=lambda item: item[1][0]):
        following = backend.get_vocab_size(with_added_tokens=True)
        if index != following:
            raise ModelError(
                f"{path}: token {token!r} has id {index}, but the next one of this vocabulary is {following}.",
                "The file belongs to another tokenizer: put the one of this checkpoint there, or remove it.",
            )
        if isinstance(rows, int) and index >= rows:
            raise ModelError(
                f"{path}: token {token!r} has id {index}, but the embedding has {rows} rows (config.json).",
                "Use the config.json and the weights that were saved with these tokens.",
            )
        backend.add_tokens([AddedToken(token, normalized=False, special=False, **flags)])
    return True


def _read_saved_tokens(folder: Path) -> dict[str, tuple[int, dict[str, bool], Path]]:
    """Id, flags and file by token; tokenizer_config.json, which has the flags, before added_tokens.json."""
    tokens: dict[str, tuple[int, dict[str, bool], Path]] = {}
    path = folder / ADDED_TOKENS_FILE
    if path.is_file():
        for token, index in _read_object(path).items():
            if type(index) is not int:
                raise ModelError(f"{path}: the id of {token!r} is no number.", "Download the file again.")
            tokens[token] = index, {}, path
    path = folder / _CONFIG_FILE
    decoder = _read_object(path).get("added_tokens_decoder") if path.is_file() else None
    if decoder is None:
        return tokens
    for index, saved in decoder.items() if isinstance(decoder, dict) else ((None, None),):
        content = saved.get("content") if isinstance(saved, dict) else None
        if not isinstance(content, str) or not content or not index.isdecimal():
            raise ModelError(f"{path}: added_tokens_decoder is not valid.", "Download the file again.")
        tokens[content] = int(index), {name: saved.get(name) is True for name in _FLAGS}, path
    return tokens


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelError, "Download the file again.")
