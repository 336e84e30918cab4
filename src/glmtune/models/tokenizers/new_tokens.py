"""Tokens that a run adds to its base's vocabulary (`data.new_tokens`), and those that an adapter's folder lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ConfigError
from glmtune.families.family import OFFICIAL_ENCODER, tokenize_text
from glmtune.models.tokenizers.added_tokens import (
    ADDED_TOKENS_FILE,
    add_saved_tokens,
    join_after_tokens,
    list_added_tokens,
    read_saved_tokens,
)
from glmtune.utils.console import print_message
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_KEY = "data.new_tokens"
_LARGEST_FILE = 10_000_000
_LISTED = 5


@dataclass(frozen=True)
class NewTokens:
    """Tokens that the base's own tokenizer does not have."""

    ids: dict[str, int] = field(default_factory=dict)
    """By token, ascending."""
    pieces: dict[str, list[int]] = field(default_factory=dict)
    """Ids of the base's tokens that each one is made of."""
    trained_ids: list[int] = field(default_factory=list)
    """Those whose rows of embedding and head an adapter trains."""

    def __bool__(self) -> bool:
        return bool(self.ids)

    @property
    def rows(self) -> int:
        """Number of rows that the embedding needs."""
        return max(self.ids.values(), default=-1) + 1


def read_new_tokens(entry: str | Sequence[str]) -> list[str]:
    """Read the tokens of `data.new_tokens`.

    Args:
        entry: the tokens, or a UTF-8 file with one per line; empty lines are left out.

    Raises:
        ConfigError: no such file, or a token that cannot be one.
    """
    if not isinstance(entry, str):
        return _check_tokens([(token, _KEY) for token in entry])
    if not entry:
        return []
    path = Path(entry).expanduser()
    require_readable(path)
    if not path.is_file():
        raise ConfigError(
            f"{_KEY}: {entry} is not a file.",
            f"Give a file with one token per line, or a list: --set '{_KEY}=[\"{entry}\"]'",
        )
    if path.stat().st_size > _LARGEST_FILE:
        raise ConfigError(f"{_KEY}: {path} has {path.stat().st_size:,} bytes.", "Give a file with one token per line.")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_KEY}: {path} cannot be read ({error}).", "Save it as text in UTF-8.") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return _check_tokens([(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line])


def _check_tokens(entries: Sequence[tuple[str, str]]) -> list[str]:
    """Require that tokens are different from each other, not empty, and without white space at an end.

    Args:
        entries: (token, its place).
    """
    for token, place in entries:
        if not token.strip():
            raise ConfigError(f"{place}: a token is empty.", "Remove it.")
        if token != token.strip():
            raise ConfigError(f"{place}: token {token!r} begins or ends with white space.", "Remove the white space.")
    token, count = next(iter(Counter(token for token, _ in entries).most_common(1)), ("", 0))
    if count > 1:
        place = [place for other, place in entries if other == token][1]
        raise ConfigError(f"{place}: token {token!r} is listed twice.", "Remove one of them.")
    return [token for token, _ in entries]


def add_new_tokens(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> NewTokens:
    """Add tokens behind the vocabulary; those that it has already are left out, which is said.

    Args:
        tokenizer: of the base; gets the tokens.
        texts: from `read_new_tokens`.

    Raises:
        ConfigError: one of them is a special token of the model.
    """
    from tokenizers import AddedToken

    vocabulary, specials = tokenizer.get_vocab(), set(tokenizer.all_special_tokens)
    for text in texts:
        if text in specials:
            raise ConfigError(
                f"{_KEY}: {text} is a special token of this model; in the text of a message it stays text.",
                "Leave it out.",
            )
    present = [text for text in texts if text in vocabulary]
    if present:
        more = f" and {len(present) - _LISTED} more" if len(present) > _LISTED else ""
        print_message(f"{_KEY}: {', '.join(present[:_LISTED])}{more} in the vocabulary already, so not added.")
    added = [text for text in texts if text not in vocabulary]
    pieces = {text: tokenize_text(tokenizer, text) for text in added}
    backend: Any = tokenizer.backend_tokenizer
    following = backend.get_vocab_size(with_added_tokens=True)
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in added])
    join_after_tokens(backend, added)
    if added:
        drop_official_encoder(tokenizer)
    ids = {text: following + number for number, text in enumerate(added)}
    return NewTokens(ids, pieces, list(ids.values()))


def add_adapter_tokens(tokenizer: PreTrainedTokenizerFast, adapter: Path) -> NewTokens:
    """Add the tokens that the files of a tokenizer beside an adapter list and the base does not have.

    Args:
        tokenizer: of the base; gets the tokens.
        adapter: a folder; a file of weights has no tokenizer beside it.

    Raises:
        ModelError: a file that cannot be read, or ids that are not those of the base's vocabulary.
    """
    if not adapter.is_dir():
        return NewTokens()
    published = tokenizer.get_vocab()
    # No size: the adapter may have rows of its own for them, which its loading checks.
    if not add_saved_tokens(tokenizer, adapter, {}, reads_fast=True):
        return NewTokens()
    drop_official_encoder(tokenizer)
    return NewTokens(list_added_tokens(tokenizer.get_vocab(), published))


def read_saved_ids(adapter: Path) -> dict[str, int]:
    """Ids by token of the tokenizer files beside an adapter; empty without any.

    Raises:
        ModelError: a file that cannot be read.
    """
    if not adapter.is_dir():
        return {}
    return {token: saved[0] for token, saved in read_saved_tokens(adapter, reads_fast=True).items()}


def write_added_tokens(folder: Path, tokens: NewTokens) -> None:
    """Write added_tokens.json of an adapter's folder; no file without tokens."""
    if tokens:
        write_json(folder / ADDED_TOKENS_FILE, tokens.ids)


def drop_official_encoder(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the fast tokenizer encode texts: SentencePiece does not know tokens that were added."""
    if hasattr(tokenizer, OFFICIAL_ENCODER):
        delattr(tokenizer, OFFICIAL_ENCODER)
