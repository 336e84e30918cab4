"""Which generation a folder holds. All of them call themselves `chatglm`, so the telling keys decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glmtune.errors import ModelError
from glmtune.families.chatglm import ChatGLM
from glmtune.families.chatglm2 import ChatGLM2
from glmtune.families.chatglm3 import ChatGLM3
from glmtune.families.family import Family
from glmtune.families.glm4 import GLM4

FAMILIES: dict[str, Family] = {family.name: family for family in (ChatGLM(), ChatGLM2(), ChatGLM3(), GLM4())}

MARK = "glmtune_family"
"""The key that this project writes into the configs it saves, so that they need no guessing."""

# A vocabulary of this size or more can only be GLM-4's (151,552); ChatGLM2 and ChatGLM3 have 65,024.
_GLM4_VOCABULARY = 100_000


class UndecidedError(ModelError):
    """ChatGLM2 or ChatGLM3: the same weights and config, so it can be loaded, but not prompted."""


def get_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        ModelError: there is none.
    """
    if name not in FAMILIES:
        raise ModelError(f"There is no model family {name!r}.", f"Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def family_of_folder(folder: Path, name: str = "") -> Family:
    """The family of a checkpoint folder, from its config.json and, where that is silent, its tokenizer's files.

    Args:
        folder: holds config.json.
        name: what the user called the folder (a hub id), a last clue.

    Raises:
        ModelError: no config.json, not a ChatGLM, or nothing tells ChatGLM2 from ChatGLM3.
    """
    config = read_config(folder)
    clues = [name, *_saved_names(folder, config), folder.resolve().name]
    roles = _knows_roles(folder)
    return family_of_config(config, clues=clues, knows_roles=roles, where=str(folder))


def family_of_config(
    config: dict[str, Any], *, clues: list[str], knows_roles: bool | None = None, where: str = "config.json"
) -> Family:
    """The family that a parsed config.json describes.

    Args:
        config: the parsed file.
        clues: names that the checkpoint goes by, the most telling first.
        knows_roles: whether the folder's tokenizer knows the role tokens; None if it does not say.
        where: named in errors.

    Raises:
        ModelError: see `family_of_folder`.
    """
    if config.get(MARK):
        return get_family(config[MARK])
    model_type = config.get("model_type")
    if model_type not in ("chatglm", "glm", "glm4"):
        raise ModelError(
            f"{where}: not a ChatGLM or GLM-4 checkpoint (model_type is {model_type!r}).",
            "glmtune tunes ChatGLM-6B, ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4.",
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
    return _second_or_third(clues, knows_roles, where)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        ModelError: no such folder, no config.json, or it is not JSON.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder.", "Give a checkpoint folder or a hub id like org/name.")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: no config.json, so this is not a checkpoint folder.",
            "A ChatGLM folder holds config.json, the tokenizer's file and the weights.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}).", "Download the file again.") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: holds no JSON object.", "Download the file again.")
    return config


def _second_or_third(clues: list[str], knows_roles: bool | None, where: str) -> Family:
    """ChatGLM2 and ChatGLM3 share architecture, keys and tokenizer model; only names and role tokens differ."""
    if knows_roles is not None:
        return FAMILIES["chatglm3" if knows_roles else "chatglm2"]
    for clue in clues:
        lowered = clue.lower()
        if "chatglm3" in lowered:
            return FAMILIES["chatglm3"]
        if "chatglm2" in lowered or "codegeex2" in lowered:
            return FAMILIES["chatglm2"]
    raise UndecidedError(
        f"{where}: nothing says whether this is ChatGLM2 or ChatGLM3 (they share all config keys).",
        f'Say it with --family chatglm2 or chatglm3, or add "{MARK}": "chatglm3" to config.json.',
    )


def _knows_roles(folder: Path) -> bool | None:
    """Whether the folder's own tokenizer names `<|assistant|>`. Its code is read as text and never run."""
    for name in ("tokenizer.json", "tokenization_chatglm.py"):
        path = folder / name
        if path.is_file():
            return "<|assistant|>" in path.read_text(encoding="utf-8", errors="replace")
    return None


def _saved_names(folder: Path, config: dict[str, Any]) -> list[str]:
    """The names that the published files carry."""
    names = [str(config.get("_name_or_path", ""))]
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8-sig"))
            names.append(str(saved.get("name_or_path", "")))
        except (UnicodeDecodeError, json.JSONDecodeError, AttributeError):
            pass  # a clue less; the tokenizer's own loading will complain if the file matters
    return names
