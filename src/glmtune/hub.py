"""From what a user typed (a folder or a hub id) to a folder on disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

from glmtune.errors import ModelError, first_line

# What each step needs. The repositories' own Python files are left out everywhere but in "config", where the
# tokenizer's is read as text to tell ChatGLM2 from ChatGLM3; nothing ever runs them.
_PATTERNS = {
    "config": ["config.json", "tokenizer_config.json", "tokenization_chatglm.py"],
    "tokenizer": ["*.json", "*.model", "tokenization_chatglm.py"],
    "all": ["*.json", "*.model", "*.safetensors", "*.bin", "tokenization_chatglm.py"],
}
HUBS = ("huggingface", "modelscope")


def resolve(path: str | os.PathLike[str], hub: str = "huggingface", parts: str = "all") -> Path:
    """The local folder of a checkpoint, downloaded into the hub's own cache when `path` is a hub id.

    Args:
        path: a folder, or a hub id such as `THUDM/chatglm3-6b` (ModelScope: `ZhipuAI/chatglm3-6b`).
        hub: `huggingface` or `modelscope`.
        parts: `config`, `tokenizer` or `all`: how much of the repository is wanted.

    Raises:
        ModelError: neither a folder nor a hub id, the hub's client is missing, or the download failed.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    name = str(path)
    if local.exists():
        raise ModelError(f"{name}: a file, not a checkpoint folder.", "Give the folder that holds config.json.")
    # Where the first part is a folder here, a local path was meant and mistyped: no hub is asked.
    meant_local = name.startswith(".") or ("/" in name and Path(name).parent.is_dir())
    if meant_local or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(f"{name}: no such folder.", "Give a checkpoint folder or a hub id like org/name.")
    if hub not in HUBS:
        raise ModelError(f"There is no hub {hub!r}.", f"Known: {', '.join(HUBS)}.")
    download = _from_modelscope if hub == "modelscope" else _from_huggingface
    try:
        return Path(download(name, _PATTERNS[parts]))
    except ModelError:
        raise
    except Exception as error:  # the clients raise a dozen kinds; each means that the checkpoint is not to be had
        reason = first_line(error)
        raise ModelError(
            f"{name}: no such folder here, and {hub} did not give it ({reason}).",
            "Check the spelling and the network, or download it by hand and give the folder.",
        ) from None


def _from_huggingface(name: str, patterns: list[str]) -> str:
    from huggingface_hub import HfApi, snapshot_download

    if "*.bin" in patterns and any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name)):
        patterns = [pattern for pattern in patterns if pattern != "*.bin"]  # both formats hold the same weights
    return snapshot_download(name, allow_patterns=patterns)


def _from_modelscope(name: str, patterns: list[str]) -> str:
    try:
        from modelscope import snapshot_download
    except ImportError:
        raise ModelError(
            "ModelScope's client is not installed.", "Install it: pip install 'glmtune[modelscope]'"
        ) from None
    return snapshot_download(name, allow_patterns=patterns)
