"""Which files of a repository a model needs."""

from __future__ import annotations

import re

from glmtune.download.repository import RECORD_FILE, Repository, RepositoryFile
from glmtune.errors import ModelError

_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_BIN = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_SMALL = re.compile(r"[^/]+\.(json|model|jinja)|(vocab|merges)\.txt")
_INDEXES = {"model.safetensors.index.json": _SAFETENSORS, "pytorch_model.bin.index.json": _BIN}


def select_files(repository: Repository, names: list[str] | None = None) -> list[RepositoryFile]:
    """Choose the files to download: settings, tokenizer, and the weights in one format, safetensors where it is there.

    No Python files, no other folders, no weights of other programs.

    Args:
        repository: with all its files.
        names: only these files, of whatever kind.

    Raises:
        ModelError: the repository lacks one of `names`, or has no weights.
    """
    if names:
        for name in names:
            if name not in repository.files:
                raise ModelError(f"{repository.id}: has no file {name}.", _list_files(repository))
        return [repository.files[name] for name in dict.fromkeys(names)]
    listed = set(repository.files) - {RECORD_FILE}  # somebody's download that was uploaded again
    has_safetensors = any(_SAFETENSORS.fullmatch(path) for path in listed)
    weights = _SAFETENSORS if has_safetensors else _BIN
    if any(weights.fullmatch(path) and "-of-" in path for path in listed):
        listed -= {"model.safetensors", "pytorch_model.bin"}  # the same weights once more, in one file
    chosen = [
        repository.files[path]
        for path in sorted(listed)
        if weights.fullmatch(path) or (_SMALL.fullmatch(path) and _INDEXES.get(path, weights) is weights)
    ]
    if not any(weights.fullmatch(file.path) for file in chosen):
        raise ModelError(f"{repository.id}: holds no model.safetensors or pytorch_model.bin.", _list_files(repository))
    return chosen


def _list_files(repository: Repository, most: int = 12) -> str:
    names = sorted(repository.files)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"It has: {', '.join(names[:most])}{more}."
