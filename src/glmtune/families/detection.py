"""Detect the generation of a checkpoint folder. The model type is `chatglm` for several, so other keys decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glmtune.download.repository import read_record
from glmtune.errors import ModelError
from glmtune.families.chatglm import ChatGLM
from glmtune.families.chatglm2 import ChatGLM2
from glmtune.families.chatglm3 import ChatGLM3
from glmtune.families.config_values import check_config_values
from glmtune.families.family import Family
from glmtune.families.glm4 import GLM4
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import find_json_object, read_json_object

FAMILIES: dict[str, Family] = {family.name: family for family in (ChatGLM(), ChatGLM2(), ChatGLM3(), GLM4())}

FAMILY_KEY = "glmtune_family"
"""The key for the family in config.json files that this project writes."""

# GLM-4 has a vocabulary of 151,552; ChatGLM2 and ChatGLM3 have 65,024.
_GLM4_VOCABULARY = 100_000


class AmbiguousFamilyError(ModelError):
    """Either ChatGLM2 or ChatGLM3: the checkpoint can be loaded, but the format of its prompts is unknown."""


def get_family(name: str) -> Family:
    """Return the family of that name.

    Raises:
        ModelError: unknown name.
    """
    if name not in FAMILIES:
        raise ModelError(f"Unknown model family {name!r}.", f"Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def family_from_folder(folder: Path, name: str = "") -> Family:
    """Detect the family of a checkpoint folder from its config.json and, if needed, its tokenizer's files.

    Args:
        folder: holds config.json.
        name: by which the user gave the checkpoint (a hub id).

    Raises:
        ModelError: no config.json, not a ChatGLM checkpoint, or ChatGLM2 and ChatGLM3 cannot be told apart.
    """
    config = read_model_config(folder)
    tokenizer_config = find_json_object(folder / "tokenizer_config.json") or {}
    record = read_record(folder)
    names = [
        name,
        str(config.get("_name_or_path", "")),
        str(tokenizer_config.get("name_or_path", "")),
        record.id if record else "",
        folder.resolve().name,
    ]
    return family_from_config(config, names=names, has_role_tokens=_has_role_tokens(folder), where=str(folder))


def family_from_config(
    config: dict[str, Any], *, names: list[str], has_role_tokens: bool | None = None, where: str = "config.json"
) -> Family:
    """Detect the family from a parsed config.json.

    Args:
        config: the parsed file.
        names: of the checkpoint, the most reliable one first.
        has_role_tokens: whether its tokenizer has role tokens; None if unknown.
        where: the config comes from, for errors.

    Raises:
        ModelError: see `family_from_folder`.
    """
    if config.get(FAMILY_KEY):
        return get_family(config[FAMILY_KEY])
    model_type = config.get("model_type")
    if model_type not in ("chatglm", "glm", "glm4"):
        raise ModelError(
            f"{where}: not a ChatGLM or GLM-4 checkpoint (model_type is {model_type!r}).",
            "glmtune supports ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4.",
        )
    if "inner_hidden_size" in config or config.get("position_encoding_2d"):
        return FAMILIES["chatglm"]
    vocabulary = config.get("padded_vocab_size") or config.get("vocab_size") or 0
    if model_type == "glm4" or vocabulary >= _GLM4_VOCABULARY:
        return FAMILIES["glm4"]
    if model_type == "chatglm" and "padded_vocab_size" not in config:
        raise ModelError(
            f"{where}: a chatglm config without the keys of any published generation.",
            "config.json should hold inner_hidden_size (ChatGLM-6B) or padded_vocab_size (the others).",
        )
    return _distinguish_chatglm2_and_3(names, has_role_tokens, where)


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a checkpoint folder.

    Raises:
        ModelError: no such folder, no config.json, or it is not a JSON object.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder.", "Give a checkpoint folder or a hub id like org/name.")
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(
            f"{folder}: no config.json, so this is not a checkpoint folder.",
            "A ChatGLM folder holds config.json, the tokenizer's file and the weights.",
        )
    config = read_json_object(path, ModelError, "Download the file again.")
    check_config_values(config, path)
    return config


def _distinguish_chatglm2_and_3(names: list[str], has_role_tokens: bool | None, where: str) -> Family:
    """ChatGLM2 and ChatGLM3 have the same architecture, keys and tokenizer model; only names and role tokens differ."""
    if has_role_tokens is not None:
        return FAMILIES["chatglm3" if has_role_tokens else "chatglm2"]
    for name in map(str.lower, names):
        if "chatglm3" in name:
            return FAMILIES["chatglm3"]
        if "chatglm2" in name or "codegeex2" in name:
            return FAMILIES["chatglm2"]
    raise AmbiguousFamilyError(
        f"{where}: cannot tell whether this is ChatGLM2 or ChatGLM3 (they share all config keys).",
        f'Give --family chatglm2 or chatglm3, or add "{FAMILY_KEY}": "chatglm3" to config.json.',
    )


def _has_role_tokens(folder: Path) -> bool | None:
    """Whether the folder's tokenizer has `<|assistant|>`; None without its file. Its code is not executed."""
    for name in ("tokenizer.json", "tokenization_chatglm.py"):
        path = folder / name
        if path.is_file():
            return "<|assistant|>" in require_readable(path).read_text(encoding="utf-8", errors="replace")
    return None
