"""Find the local folder of a checkpoint, downloading it from a model hub where needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from glmtune.errors import ModelError, summarize_error
from glmtune.utils.documents import shorten_path
from glmtune.utils.file_access import require_readable, require_readable_folder
from glmtune.utils.optional_packages import import_extra

# Files that each step needs. Of the repositories' Python files only the tokenizer's is downloaded: it is read as text
# to tell ChatGLM2 from ChatGLM3, and never executed.
_PATTERNS = {
    "config": ["config.json", "tokenizer_config.json", "tokenization_chatglm.py"],
    "tokenizer": ["*.json", "*.model", "tokenization_chatglm.py"],
    "all": ["*.json", "*.model", "*.safetensors", "*.bin", "tokenization_chatglm.py"],
}
HUBS = ("huggingface", "modelscope")


def resolve_checkpoint(path: str | os.PathLike[str], hub: str = "huggingface", parts: str = "all") -> Path:
    """Return the local folder of a checkpoint; download it into the hub's own cache if `path` is a hub id.

    Args:
        path: a folder, or a hub id such as `THUDM/chatglm3-6b` (ModelScope: `ZhipuAI/chatglm3-6b`).
        hub: `huggingface` or `modelscope`.
        parts: which files of the repository to download: `config`, `tokenizer` or `all`.

    Raises:
        FileAccessError: this process may not read the folder, or a link in it leads out of what it may read.
        ModelError: neither a folder nor a hub id, the hub's client is not installed, or the download failed.
    """
    local = Path(os.path.expanduser(path))  # Path's own raises for a name that is no user
    if local.is_absolute() or ".." in local.parts or os.path.lexists(local):
        require_readable(local)
    if os.path.isdir(local):
        return require_readable_folder(local)  # transformers opens files of it by itself
    name = str(path)
    if os.path.exists(local):
        raise ModelError(f"{name}: a file, not a checkpoint folder.", "Give the folder that holds config.json.")
    if not is_hub_id(name):
        raise ModelError(
            f"{shorten_path(name)}: no such folder.", "Give a checkpoint folder or a hub id like org/name."
        )
    if hub not in HUBS:
        raise ModelError(f"Unknown hub {hub!r}.", f"Known: {', '.join(HUBS)}.")
    download = _download_from_modelscope if hub == "modelscope" else _download_from_huggingface
    try:
        return Path(download(name, list_patterns(parts)))
    except ModelError:
        raise
    except Exception as error:  # the clients raise many types; each means that the checkpoint cannot be downloaded
        raise ModelError(
            f"{name}: no such folder, and it cannot be downloaded from {hub} ({summarize_error(error)}).",
            f"Check the spelling and the network, or: glmtune fetch {name} --hub {hub}",
        ) from None


def is_hub_id(name: str) -> bool:
    """Whether a name that is no folder is one of a hub rather than a mistyped path.

    Args:
        name: if its first part is a local folder, it is a path: no hub is asked.
    """
    is_local_path = name.startswith(".") or ("/" in name and os.path.isdir(Path(name).parent))
    return not is_local_path and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None


def find_local_folder(path: str) -> Path | None:
    """The folder of a checkpoint that is on this machine: a folder, or a hub id in Hugging Face's cache.

    Args:
        path: a folder or a hub id.
    """
    local = Path(os.path.expanduser(path))
    if os.path.isdir(local):
        return require_readable_folder(local)
    if not is_hub_id(path):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None


def list_patterns(parts: str) -> list[str]:
    """The files of a repository that a step needs.

    Args:
        parts: `config`, `tokenizer` or `all`.
    """
    return _PATTERNS[parts]


def _download_from_huggingface(name: str, patterns: list[str]) -> str:
    from huggingface_hub import HfApi, snapshot_download

    if "*.bin" in patterns and any(file.endswith(".safetensors") for file in HfApi().list_repo_files(name)):
        patterns = [pattern for pattern in patterns if pattern != "*.bin"]  # the same weights
    return snapshot_download(name, allow_patterns=patterns)


def _download_from_modelscope(name: str, patterns: list[str]) -> str:
    without = f"or download without it: glmtune fetch {name} --hub modelscope"
    modelscope = import_extra("modelscope", "A download from ModelScope", without, ModelError)
    folder: str = modelscope.snapshot_download(name, allow_patterns=patterns)
    return folder
