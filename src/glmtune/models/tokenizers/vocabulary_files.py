"""Readers of SentencePiece model files and tiktoken vocabularies, and the official encoding by SentencePiece.

A SentencePiece file is a small protobuf message. Both Python packages that define it (sentencepiece and transformers)
register the same file name, so a process that imports both dies, and each pins protobuf's version; reading five fields
needs neither.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from glmtune.errors import ModelError
from glmtune.utils.file_access import require_readable

# Field numbers and piece types of sentencepiece_model.proto.
_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_BYTE_FALLBACK = 3, 35
_NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX, _NORMALIZER_EXTRA_SPACES = 2, 3, 4
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}


@dataclass
class SentencePieceModel:
    """The content of a model file, in the order of its ids."""

    path: Path
    kind: str = "Unigram"
    """`Unigram` or `BPE`."""
    pieces: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    byte_fallback: bool = False
    dummy_prefix: bool = True
    """Whether a text gets a space in front before it is cut."""
    collapse_spaces: bool = True
    """Whether runs of spaces become one, and those at the ends none."""
    charsmap: bytes = b""
    """The compiled normalisation rules; empty for the identity."""

    @property
    def control(self) -> list[str]:
        """Control pieces, which never match text."""
        return [piece for piece, kind in zip(self.pieces, self.types, strict=True) if kind == CONTROL]

    def of_type(self, *types: int) -> list[tuple[str, float]]:
        """(piece, score) of these types, in the order of their ids."""
        rows = zip(self.pieces, self.scores, self.types, strict=True)
        return [(piece, score) for piece, score, kind in rows if kind in types]


def read_sentencepiece(path: Path, kind: str) -> SentencePieceModel:
    """The model in `path`, which must be of `kind` (`Unigram` or `BPE`).

    Raises:
        ModelError: not a SentencePiece model, truncated, of another kind, or with settings that cannot be converted
            exactly.
    """
    try:
        model = _parse_model(path, require_readable(path).read_bytes())
    except (IndexError, ValueError, struct.error):
        model = SentencePieceModel(path)
    if not model.pieces or UNKNOWN not in model.types:
        raise ModelError(
            f"{path}: not a SentencePiece model, or a truncated one ({path.stat().st_size:,} bytes).",
            "Download the file again and compare its size with the repository's.",
        )
    if model.kind != kind:
        raise ModelError(
            f"{path}: a {model.kind} model where this generation has a {kind} one.",
            "The tokenizer belongs to another generation than config.json.",
        )
    _require_convertible(model)
    return model


def _require_convertible(model: SentencePieceModel) -> None:
    """Reject settings that no published checkpoint has and that a fast tokenizer would tokenize differently."""
    differences = []
    if not model.byte_fallback:
        differences.append("no byte fallback")
    if not model.dummy_prefix:
        differences.append("no dummy prefix")
    if model.kind == "BPE" and model.collapse_spaces:
        differences.append("collapsed spaces")
    if model.kind == "BPE" and model.charsmap:
        differences.append("a normaliser")
    if model.kind == "BPE" and {USER_DEFINED, UNUSED} & set(model.types):
        differences.append("user-defined or unused pieces")
    if model.kind == "Unigram" and not (model.charsmap and model.collapse_spaces):
        differences.append("no normaliser or uncollapsed spaces")
    if differences:
        raise ModelError(
            f"{model.path}: a {model.kind} model differences the published ones ({'; '.join(differences)}).",
            "Use the tokenizer file of the checkpoint's own repository.",
        )


def _parse_model(path: Path, data: bytes) -> SentencePieceModel:
    model = SentencePieceModel(path)
    ids = set()
    for number, value in _read_fields(data):
        ids.add(number)
        if number == _PIECE:
            _add_piece(model, _require_bytes(value))
        elif number == _TRAINER:
            options = dict(_read_fields(_require_bytes(value)))
            model.kind = _KINDS.get(int(options.get(_TRAINER_MODEL_TYPE, 1)), "unknown")
            model.byte_fallback = bool(options.get(_TRAINER_BYTE_FALLBACK, 0))
        elif number == _NORMALIZER:
            options = dict(_read_fields(_require_bytes(value)))
            model.charsmap = _require_bytes(options.get(_NORMALIZER_CHARSMAP, b""))
            model.dummy_prefix = bool(options.get(_NORMALIZER_DUMMY_PREFIX, 1))
            model.collapse_spaces = bool(options.get(_NORMALIZER_EXTRA_SPACES, 1))
    if not {_PIECE, _TRAINER, _NORMALIZER} <= ids:  # a file cut off between two pieces still parses
        raise ValueError("cut off")
    return model


def _add_piece(model: SentencePieceModel, data: bytes) -> None:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _read_fields(data):
        if number == _PIECE_TEXT:
            text = _require_bytes(value).decode("utf-8")
        elif number == _PIECE_SCORE:
            (score,) = struct.unpack("<f", _require_bytes(value))
        elif number == _PIECE_TYPE:
            kind = int(value)
    model.pieces.append(text)
    model.scores.append(score)
    model.types.append(kind)


def _require_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: numbers as int, everything else as its bytes.

    Raises:
        ValueError, IndexError: `data` is not a complete message.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = _read_varint(data, position)
        wire = key & 7
        if key >> 3 == 0:  # zeros: a file whose space was reserved and not filled
            raise ValueError("field 0")
        if wire == 0:
            number, position = _read_varint(data, position)
            yield key >> 3, number
            continue
        if wire == 2:
            size, position = _read_varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > end:
            raise ValueError("cut off")
        yield key >> 3, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:  # nearly all of them
        return byte, position + 1
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """Tokens and their ranks, which are their ids.

    Raises:
        ModelError: a line is not a token and a rank, or ranks are missing (a truncated file).
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(require_readable(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ModelError(
                f"{path}:{number}: not a tiktoken vocabulary, or a corrupt or truncated one.",
                "Each line is a base64 token and its rank; download the file again.",
            ) from None
    # The special tokens follow the last rank, so a gap would shift every one of them.
    if not ranks or sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(
            f"{path}: {len(ranks)} tokens whose ranks do not run from 0 to {len(ranks) - 1}.",
            "The file is corrupt or truncated; download it again.",
        )
    return ranks


_BLANKS = re.compile(" {2,80}")


class SentencePieceIds:
    """Text to ids; special tokens typed in it stay text."""

    def __init__(self, model: Path):
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def __call__(self, text: str) -> list[int]:
        return self._model.encode(text)


class ChatGLMSentencePieceIds(SentencePieceIds):
    """ChatGLM-6B: white space is replaced by its pieces before SentencePiece; image tokens shift the ids."""

    def __init__(self, model: Path, image_tokens: int):
        super().__init__(model)
        self._shift = image_tokens

    def __call__(self, text: str) -> list[int]:
        escaped = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        escaped = _BLANKS.sub(lambda run: f"<|blank_{len(run.group())}|>", escaped)
        ids = super().__call__(escaped)
        return [i + self._shift for i in ids] if self._shift else ids
