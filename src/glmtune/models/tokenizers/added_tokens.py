"""Tokens that a checkpoint's owner added to the published vocabulary: they match in text, before anything else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError
from glmtune.models.tokenizers.backends import CONTROL_TOKENS
from glmtune.utils.io import read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ADDED_TOKENS_FILE = "added_tokens.json"
"""What transformers writes beside a tokenizer of Python code: ids by token."""

_CONFIG_FILE = "tokenizer_config.json"
_ID = re.compile("[0-9]{1,9}")
_LARGEST_GAP = 100_000
_FLAGS = ("lstrip", "rstrip", "single_word")


def add_saved_tokens(
    tokenizer: PreTrainedTokenizerFast, folder: Path, config: dict[str, Any], *, reads_fast: bool = False
) -> bool:
    """Add the tokens of added_tokens.json and of `added_tokens_decoder` in tokenizer_config.json, with their ids.

    They are found in every text, also where special tokens stay text. Files may list tokens of the published
    vocabulary too. Ids may leave rows of the embedding out, as after a resize to a padded size; those ids get
    placeholders, which no text contains.

    Args:
        tokenizer: with the published vocabulary; gets the tokens.
        folder: of the checkpoint.
        config: the parsed config.json, which has the number of rows of the embedding.
        reads_fast: read those of tokenizer.json too.

    Returns:
        Whether there were any.

    Raises:
        ModelError: a file that cannot be read, ids that are not those of the vocabulary, or an id without an embedding.
    """
    from tokenizers import AddedToken

    known, tokens = tokenizer.get_vocab(), {}
    for token, saved in read_saved_tokens(folder, reads_fast=reads_fast).items():
        if token not in known:
            tokens[token] = saved
        elif known[token] != saved[0]:
            raise ModelError(
                f"{saved[2]}: token {token!r} has id {saved[0]}, but {known[token]} in the published vocabulary.",
                "The file belongs to another tokenizer: put the one of this checkpoint there, or remove it.",
            )
    if not tokens:
        return False
    _require_rows(tokens, folder, config)
    backend: Any = tokenizer.backend_tokenizer
    for token, (index, flags, path) in sorted(tokens.items(), key=lambda item: item[1][0]):
        following = backend.get_vocab_size(with_added_tokens=True)
        if index < following:
            raise ModelError(
                f"{path}: token {token!r} has id {index}, which is that of {tokenizer.convert_ids_to_tokens(index)!r}.",
                "The file belongs to another tokenizer: put the one of this checkpoint there, or remove it.",
            )
        if index - following > _LARGEST_GAP:
            raise ModelError(
                f"{path}: token {token!r} has id {index}, but the vocabulary ends at {following - 1}.",
                f"At most {_LARGEST_GAP:,} ids may lie between; the file belongs to another tokenizer.",
            )
        # A backend numbers its tokens in order, so the ids between need one each. Special: no text matches them.
        gap = range(following, index)
        backend.add_special_tokens([AddedToken(_name_placeholder(row), normalized=False) for row in gap])
        backend.add_tokens([AddedToken(token, normalized=False, special=False, **flags)])
    join_after_tokens(backend, list(tokens))
    return True


def join_after_tokens(backend: Any, tokens: Sequence[str]) -> None:
    """Leave out, when ids are decoded, the space that SentencePiece puts in front of the text after an added token.

    A text is cut at added tokens, and every part gets a dummy prefix; without this "<A>text" would become "<A> text".

    Args:
        backend: of the tokenizers library, which has the tokens.
        tokens: the added ones.
    """
    from tokenizers import Regex, decoders

    if isinstance(backend.decoder, decoders.Sequence) and tokens:  # tiktoken has no prefix
        names = "|".join(map(re.escape, tokens))
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Replace(Regex(f"(?= )(?<={names}) "), "")])


def match_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the tokens that a checkpoint's owner added as special ones match in text, as ordinary added tokens do.

    A tokenizer.json does not say who marked a token as special. The family's role and control tokens are known by
    name, or as pieces of the published vocabulary: they stay text wherever they are typed.

    Args:
        tokenizer: loaded from a tokenizer.json.
    """
    from tokenizers import Tokenizer

    backend: Any = tokenizer.backend_tokenizer
    pieces = backend.get_vocab_size(with_added_tokens=False)
    # `bos_token`, `pad_token` and so on, without the list of further ones, which is where an owner's tokens are.
    named = {str(value) for value in tokenizer.special_tokens_map.values() if not isinstance(value, list)}
    added = {
        token.content
        for index, token in backend.get_added_tokens_decoder().items()
        if token.special and index >= pieces
        if token.content not in (*CONTROL_TOKENS, *named, _name_placeholder(index))
    }
    if not added:
        return
    content = json.loads(backend.to_str())
    for entry in content["added_tokens"]:
        entry["special"] = entry["special"] and entry["content"] not in added
    # The flag of a token that a backend already has cannot be taken back.
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer._extra_special_tokens = [token for token in tokenizer._extra_special_tokens if str(token) not in added]


def list_added_tokens(vocabulary: dict[str, int], published: dict[str, int]) -> dict[str, int]:
    """The tokens of a vocabulary that a published one lacks, by id, without placeholders."""
    tokens = {
        token: index
        for token, index in vocabulary.items()
        if token not in published and token != _name_placeholder(index)
    }
    return dict(sorted(tokens.items(), key=lambda item: item[1]))


def _name_placeholder(index: int) -> str:
    return f"<|unused_row_{index}|>"


def _require_rows(tokens: dict[str, tuple[int, dict[str, bool], Path]], folder: Path, config: dict[str, Any]) -> None:
    """Require that the embedding has a row for the highest id; config.json may have the number before a resize."""
    token, (index, _, path) = max(tokens.items(), key=lambda item: item[1][0])
    rows, source = config.get("padded_vocab_size") or config.get("vocab_size"), "config.json"
    if isinstance(rows, int) and index >= rows:
        from glmtune.models.vocabulary_rows import count_embedding_rows

        stored = count_embedding_rows(folder)
        rows, source = (rows, source) if stored is None else (stored, "the weights")
    if isinstance(rows, int) and index >= rows:
        raise ModelError(
            f"{path}: token {token!r} has id {index}, but the embedding has {rows} rows ({source}).",
            "Use the config.json and the weights that were saved with these tokens.",
        )


def read_saved_tokens(folder: Path, *, reads_fast: bool = False) -> dict[str, tuple[int, dict[str, bool], Path]]:
    """Id, flags and file by token; tokenizer_config.json, which has the flags, before added_tokens.json.

    Args:
        folder: of a tokenizer.
        reads_fast: read tokenizer.json first.

    Raises:
        ModelError: a file that is broken.
    """
    tokens = _read_fast_tokens(folder) if reads_fast else {}
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


def _read_fast_tokens(folder: Path) -> dict[str, tuple[int, dict[str, bool], Path]]:
    """What tokenizer.json lists as added tokens, in the form of `read_saved_tokens`."""
    path = folder / "tokenizer.json"
    entries = _read_object(path).get("added_tokens") if path.is_file() else None
    tokens: dict[str, tuple[int, dict[str, bool], Path]] = {}
    for entry in entries if isinstance(entries, list) else []:
        index, content = (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if type(index) is not int or not isinstance(content, str) or not content:
            raise ModelError(f"{path}: added_tokens has {entry!r}, which is not valid.", "Copy the file again.")
        if content != _name_placeholder(index):
            tokens[content] = index, {name: entry.get(name) is True for name in _FLAGS}, path
    return tokens


def _read_object(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelError, "Download the file again.")
