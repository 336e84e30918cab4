"""Writing a tokenizer next to weights: the fast one that any library loads, and the published file it is made from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from glmtune.errors import ModelError
from glmtune.families import read_model_config
from glmtune.models.tokenizers import build_tokenizer, load_tokenizer
from glmtune.models.tokenizers.added_tokens import ADDED_TOKENS_FILE, list_added_tokens
from glmtune.models.tokenizers.backends import UNIGRAM
from glmtune.models.tokenizers.ids import count_image_tokens
from glmtune.models.tokenizers.vocabulary_files import read_sentencepiece
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import read_json_object, write_json

PUBLISHED_FILES = ("ice_text.model", "tokenizer.model")
_CONFIG = "tokenizer_config.json"
_COMMON = {"remove_space": False, "do_lower_case": False}
_LATER = {"tokenizer_class": "ChatGLMTokenizer", **_COMMON}
# The published tokenizer_config.json of each generation, without the path of its code.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "chatglm": {
        "bos_token": "<sop>",
        "eos_token": "<eop>",
        "end_token": "</s>",
        "gmask_token": "[gMASK]",
        "mask_token": "[MASK]",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        **_LATER,
    },
    "chatglm2": _LATER,
    "chatglm3": _LATER,
    "glm4": {
        **_COMMON,
        "tokenizer_class": "ChatGLM4Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
    },
}


def write_tokenizer(base: Path, family: str, folder: Path, tokenizer: Any = None) -> None:
    """Save the tokenizer of checkpoint folder `base` into `folder`, and beside it the published file.

    Args:
        base: the checkpoint folder.
        family: the generation.
        folder: where to.
        tokenizer: of the base, with more tokens; the base's own when None.
    """
    (tokenizer or load_tokenizer(base, family=family)).save_pretrained(str(folder))
    _use_transformers_4_names(folder / _CONFIG)
    copy_published_tokenizer(base, folder)


def copy_published_tokenizer(base: Path, folder: Path) -> list[str]:
    """Copy the published tokenizer's file, where the base has one.

    Returns:
        The names of the files copied.
    """
    names = [name for name in PUBLISHED_FILES if (base / name).is_file()]
    for name in names:
        shutil.copyfile(require_readable(base / name), folder / name)
    return names


def require_published_tokenizer(base: Path) -> None:
    """Require that a folder has the published tokenizer's file.

    Raises:
        ModelError: the folder does not have the published tokenizer's file.
    """
    if not any((base / name).is_file() for name in PUBLISHED_FILES):
        raise ModelError(
            f"{base}: has no published tokenizer file ({' or '.join(PUBLISHED_FILES)}), which --format official needs.",
            "Put the one of the model's original repository there, or use --format hf.",
        )


def write_published_tokenizer(base: Path, family: str, folder: Path, tokenizer: Any = None) -> None:
    """Write the published tokenizer: its file, and its own tokenizer_config.json, or an equivalent one if it has none.

    Args:
        base: the checkpoint folder.
        family: the generation.
        folder: where to.
        tokenizer: of the base, with more tokens, which are listed in added_tokens.json; the base's own when None.

    Raises:
        ModelError: see `require_published_tokenizer`.
    """
    require_published_tokenizer(base)
    copy_published_tokenizer(base, folder)
    own = _read_config(base / _CONFIG)
    if str(own.get("tokenizer_class", "")) == _PUBLISHED[family]["tokenizer_class"]:
        shutil.copyfile(require_readable(base / _CONFIG), folder / _CONFIG)
    else:
        _write_published_config(base, family, folder)
    # Tokens that were added to the base, wherever they are listed.
    written = build_tokenizer(folder, family, read_model_config(base)).get_vocab()
    added = list_added_tokens((tokenizer or load_tokenizer(base, family=family)).get_vocab(), written)
    if added:
        write_json(folder / ADDED_TOKENS_FILE, added)


def _write_published_config(base: Path, family: str, folder: Path) -> None:
    config = dict(_PUBLISHED[family])
    if family == "chatglm":  # its published code would assume the 20,000 of the earliest release
        model = read_sentencepiece(base / PUBLISHED_FILES[0], UNIGRAM)
        config["num_image_tokens"] = count_image_tokens(model, read_model_config(base), None)
    config["auto_map"] = {"AutoTokenizer": [f"tokenization_chatglm.{config['tokenizer_class']}", None]}
    write_json(folder / _CONFIG, config)


def _use_transformers_4_names(path: Path) -> None:
    """Write two keys by their names in transformers 4, which both versions read (vLLM may install 4)."""
    saved = _read_config(path)
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(saved.get("extra_special_tokens"), list):
        saved["additional_special_tokens"] = saved.pop("extra_special_tokens")
    write_json(path, saved)


def _read_config(path: Path) -> dict[str, Any]:
    return read_json_object(path, ModelError, "Download the file again.") if path.exists() else {}
