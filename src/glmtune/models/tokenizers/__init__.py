"""Tokenizers of the published checkpoints as fast tokenizers that reload without this project.

The repositories ship a SentencePiece model (GLM-4: a tiktoken file) and Python code around it. What that code does is
put into one `tokenizer.json`: the ids, the decoding, the special tokens, the prompt. Nothing of theirs is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmtune.errors import ModelError, summarize_error
from glmtune.families import family_from_folder, read_model_config
from glmtune.families.family import OFFICIAL_ENCODER
from glmtune.hub import resolve_checkpoint
from glmtune.models.tokenizers import backends
from glmtune.models.tokenizers.added_tokens import add_saved_tokens, match_special_tokens
from glmtune.models.tokenizers.ids import count_image_tokens, require_matching_ids
from glmtune.models.tokenizers.new_tokens import add_adapter_tokens, drop_official_encoder
from glmtune.models.tokenizers.templates import CHATGLM, CHATGLM2, CHATGLM3, GLM4
from glmtune.models.tokenizers.vocabulary_files import (
    ChatGLMSentencePieceIds,
    SentencePieceIds,
    read_sentencepiece,
    read_tiktoken,
)
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import find_json_object, read_json_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["build_tokenizer", "load_tokenizer"]

# What git leaves in place of a large file that was not fetched.
_LFS_POINTER = b"version https://git-lfs"


def load_tokenizer(
    path: str | os.PathLike[str],
    hub: str = "huggingface",
    family: str | None = None,
    *,
    adapter: Path | None = None,
) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint: an official folder, a transformers folder or a hub id.

    `tokenizer(text, add_special_tokens=False, split_special_tokens=True)` gives the ids of the published tokenizers;
    special tokens typed in the text stay text. A folder needs config.json and the tokenizer's file only; one that
    holds a tokenizer.json needs nothing else.

    Args:
        path: a folder or a hub id.
        hub: `huggingface` or `modelscope`, for a hub id.
        family: the generation, for folders that do not say it.
        adapter: of this checkpoint; the tokens that were added while it was trained are added.

    Raises:
        ModelError: the tokenizer's file is missing, broken, or does not fit config.json, or that of the adapter does
            not fit the checkpoint.
    """
    folder = resolve_checkpoint(path, hub, parts="tokenizer")
    if (folder / "tokenizer.json").is_file():
        tokenizer = _load_fast(folder)
    else:
        chosen = family or family_from_folder(folder, name=str(path)).name
        tokenizer = build_tokenizer(folder, chosen, read_model_config(folder))
    if adapter is not None:
        add_adapter_tokens(tokenizer, adapter)
    return tokenizer


def build_tokenizer(folder: Path, family: str, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The fast tokenizer of an official checkpoint folder.

    Args:
        folder: holds `ice_text.model` (ChatGLM-6B) or `tokenizer.model` (the others).
        family: `chatglm`, `chatglm2`, `chatglm3` or `glm4`.
        config: the parsed config.json, which knows the special ids and the size of the vocabulary.

    Raises:
        ModelError: the tokenizer's file is missing, broken, or does not fit `config`.
    """
    if family not in _BUILDERS:
        raise ModelError(f"There is no tokenizer for {family!r}.", f"Known: {', '.join(_BUILDERS)}.")
    try:
        tokenizer = _BUILDERS[family](Path(folder), config)
    except (ModelError, OSError):
        raise
    except Exception as error:  # SentencePiece and the Rust library raise RuntimeError and Exception for damaged files
        files = (Path(folder) / name for name in ("ice_text.model", "tokenizer.model"))
        path = next((path for path in files if path.is_file()), folder)
        raise ModelError(f"{path}: damaged ({summarize_error(error, 120)}).", "Download the file again.") from None
    if add_saved_tokens(tokenizer, Path(folder), config):
        drop_official_encoder(tokenizer)
    return tokenizer


def _build_chatglm(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """THUDM/ChatGLM-6B: Unigram, special ids among the pieces, image tokens in front of them in early releases."""
    path = _find_tokenizer_file(folder, "ice_text.model")
    model = read_sentencepiece(path, backends.UNIGRAM)
    shift = count_image_tokens(model, config, _read_image_tokens(folder, config))
    tokenizer = _wrap_backend(
        backends.build_unigram_backend(model, shift),
        CHATGLM,
        bos_token="<sop>",
        eos_token="<eop>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="[MASK]",
        extra_special_tokens=[piece for piece in model.control if piece not in backends.CHATGLM_NAMED],
    )
    require_matching_ids(
        tokenizer,
        config,
        path,
        stale={
            "bos_token_id": "<sop>",
            "eos_token_id": "<eop>",
            "pad_token_id": "<pad>",
            "mask_token_id": "[MASK]",
            "gmask_token_id": "[gMASK]",
        },
    )
    setattr(tokenizer, OFFICIAL_ENCODER, ChatGLMSentencePieceIds(path, shift))
    return tokenizer


def _build_chatglm2(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """THUDM/ChatGLM2-6B: BPE, five special tokens behind the pieces."""
    return _build_bpe(folder, config, backends.CHATGLM2_SPECIALS, CHATGLM2)


def _build_chatglm3(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """THUDM/ChatGLM3-6B: ChatGLM2's, and four role tokens behind them."""
    return _build_bpe(folder, config, backends.CHATGLM3_SPECIALS, CHATGLM3)


def _build_bpe(
    folder: Path, config: dict[str, Any], specials: tuple[str, ...], template: str
) -> PreTrainedTokenizerFast:
    path = _find_tokenizer_file(folder, "tokenizer.model")
    model = read_sentencepiece(path, backends.BPE)
    extra = [piece for piece in model.control if piece != "</s>"] + list(specials)
    tokenizer = _wrap_backend(
        backends.build_bpe_backend(model, specials),
        template,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        extra_special_tokens=extra,
    )
    require_matching_ids(tokenizer, config, path, stale={"eos_token_id": "</s>", "pad_token_id": "<unk>"})
    setattr(tokenizer, OFFICIAL_ENCODER, SentencePieceIds(path))
    return tokenizer


def _build_glm4(folder: Path, config: dict[str, Any]) -> PreTrainedTokenizerFast:
    """THUDM/GLM-4-9B, original layout: tiktoken's byte-level BPE, fourteen special tokens behind it."""
    path = _find_tokenizer_file(folder, "tokenizer.model")
    tokenizer = _wrap_backend(
        backends.build_tiktoken_backend(read_tiktoken(path)),
        GLM4,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(backends.GLM4_SPECIALS[1:]),
    )
    require_matching_ids(
        tokenizer, config, path, stale={"eos_token_id": "<|endoftext|>", "pad_token_id": "<|endoftext|>"}
    )
    return tokenizer


_BUILDERS: dict[str, Callable[[Path, dict[str, Any]], PreTrainedTokenizerFast]] = {
    "chatglm": _build_chatglm,
    "chatglm2": _build_chatglm2,
    "chatglm3": _build_chatglm3,
    "glm4": _build_glm4,
}


def _wrap_backend(backend: Any, template: str, **special_tokens: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )


def _find_tokenizer_file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ModelError(
            f"{folder}: the tokenizer's file {name} is missing.",
            f"Put the {name} of the checkpoint's repository there; its .py files are not enough (and not needed).",
        )
    with require_readable(path).open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise ModelError(
            f"{path}: a Git LFS pointer, not the file itself.",
            "Run `git lfs pull` in the repository, or download the file from the hub.",
        )
    return path


def _read_image_tokens(folder: Path, config: dict[str, Any]) -> int | None:
    """`num_image_tokens` where a file names it (early ChatGLM-6B: 20000; later tokenizer_config.json: 0)."""
    path = folder / "tokenizer_config.json"
    saved: Any = {}
    if path.exists():
        saved = read_json_object(path, ModelError, "Download the file again.")
    declared = saved.get("num_image_tokens") if isinstance(saved, dict) else None
    return config.get("num_image_tokens") if declared is None else declared


def _load_fast(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    # The generic class, not AutoTokenizer: a config.json with an `auto_map` must not lead to the repository's code.
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the Rust parser and transformers raise a handful of unrelated kinds
        reason = summarize_error(error)
        raise ModelError(
            f"{folder}: tokenizer.json does not load ({reason}).", "It is corrupt or truncated: get it again."
        ) from None
    match_special_tokens(tokenizer)
    add_saved_tokens(tokenizer, folder, find_json_object(folder / "config.json") or {})
    return tokenizer
