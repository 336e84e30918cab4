"""Tokens that a checkpoint's owner added to the published vocabulary: they match in text, before anything else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.utils.io import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADDED_TOKENS_FILE = "added_tokens.json"
"""What transformers writes beside a tokenizer of Python code: ids by token."""

_CONFIG_FILE = "tokenizer_config.json"
_ID = re.compile("[0-9]{1,9}")
_FLAGS = ("lstrip", "rstrip", "single_word")


def add_saved_tokens(tokenizer: PreTrainedTokenizerFast, folder: Path, config: dict[str, Any]) -> bool:
    """Add the tokens of added_tokens.json and of `added_tokens_decoder` in tokenizer_config.json, with their ids.

    They are found in every text, also where special tokens stay text. Files may list tokens of the published
    vocabulary too.

    Args:
        tokenizer: with the published vocabulary; gets the tokens.
        folder: of the checkpoint.
        config: the parsed config.json, which has the number of rows of the embedding.

    Returns:
        Whether there were any.

    Raises:
        ModelError: a file that cannot be read, ids that are not those of the vocabulary or do not follow it, or an id
            without an embedding.
    """
    from tokenizers import AddedToken

    known, tokens = tokenizer.get_vocab(), {}
    for token, saved in _read_saved_tokens(folder).items():
        if token not in known:
            tokens[token] = saved
        elif known[token] != saved[0]:
            raise ModelError(
                f"{saved[2]}: token {token!r} has id {saved[0]}, but {known[token]} in the published vocabulary.",
                "The file belongs to another tokenizer: put the one of this checkpoint there, or remove it.",
            )
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
            if type(index) is not int or not token:
                raise ModelError(f"{path}: {token!r} with id {index!r} is not valid.", "Download the file again.")
            tokens[token] = index, {}, path
    path = folder / _CONFIG_FILE
    decoder = _read_object(path).get("added_tokens_decoder") if path.is_file() else None
    if decoder is None:
        return tokens
    if not isinstance(decoder, dict):
        raise ModelError(f"{path}: added_tokens_decoder is not an object.", "Download the file again.")
    for index, saved in decoder.items():
        content = saved.get("content") if isinstance(saved, dict) else None
        if not isinstance(saved, dict) or not isinstance(content, str) or not content or not _ID.fullmatch(index):
            raise ModelError(f"{path}: added_tokens_decoder[{index!r}] is not valid.", "Download the file again.")
        tokens[content] = int(index), {name: saved.get(name) is True for name in _FLAGS}, path
    return tokens


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelError, "Download the file again.")
