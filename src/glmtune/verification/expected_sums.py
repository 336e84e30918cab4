"""What the sums of a folder's files should be: by its hub, by the download that made it, by published lists."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from glmtune.download.repository import FileSum, Repository, RepositoryFile, read_record
from glmtune.verification.published_sums import PUBLISHED_IDS, PUBLISHED_SUMS, TOKENIZER_SIZES


@dataclass
class ExpectedFiles:
    """Sizes and sums of the files that a folder should hold."""

    repository: Repository
    source: str
    """Where they are from, as part of a sentence."""
    cached: bool = False
    """Whether the folder belongs to the cache of Hugging Face's client, which glmtune does not write into."""
    complete: bool = False
    """Whether a file of the list that the folder lacks is missing from it."""


def find_expected_files(folder: Path) -> ExpectedFiles | None:
    """Find sums that a download left beside the files; None without any.

    Args:
        folder: a checkpoint.
    """
    record = read_record(folder)
    if record is not None:
        return ExpectedFiles(record, "the list of its download (glmtune-fetch.json)", complete=True)
    cached = _read_cache_names(folder)
    if cached.files:
        return ExpectedFiles(cached, "the names in Hugging Face's cache", cached=True)
    beside = _read_download_metadata(folder)
    return ExpectedFiles(beside, "the record of Hugging Face's client") if beside.files else None


def _read_cache_names(folder: Path) -> Repository:
    """Sums from a snapshot folder of Hugging Face's cache, whose files are links to blobs named by their sum."""
    repository = Repository("huggingface", "", folder.name)
    match = re.fullmatch(r"models--(.+?)--(.+)", folder.parent.parent.name)
    if folder.parent.name != "snapshots" or match is None:
        return repository
    repository.id = f"{match[1]}/{match[2]}"
    for path in folder.iterdir():
        if path.is_symlink():
            digits = os.path.basename(os.readlink(path))
            if (file_sum := _parse_etag(digits)) is not None:
                repository.files[path.name] = RepositoryFile(path.name, None, file_sum)
    return repository


def _read_download_metadata(folder: Path) -> Repository:
    """Sums from `.cache/huggingface/download/*.metadata`: a commit, an etag and a time, a line each."""
    repository = Repository("huggingface", "", "")
    for path in sorted((folder / ".cache" / "huggingface" / "download").glob("*.metadata")):
        try:
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            continue
        name = path.name.removesuffix(".metadata")
        if len(lines) > 1 and (file_sum := _parse_etag(lines[1].strip())) is not None:
            repository.revision = lines[0].strip()
            repository.files[name] = RepositoryFile(name, None, file_sum)
    return repository


def _parse_etag(text: str) -> FileSum | None:
    if re.fullmatch(r"[0-9a-f]{64}", text):
        return FileSum("sha256", text)
    return FileSum("git-sha1", text) if re.fullmatch(r"[0-9a-f]{40}", text) else None


def is_published_name(name: str) -> bool:
    """Whether a published list has a file of this name."""
    return any(name in files for files in PUBLISHED_SUMS.values())


def identify_published(sums: Mapping[str, str]) -> ExpectedFiles | None:
    """Find the published repository that a folder is, from its weights; None if none of them is a published one.

    A tuned model saved under the same names shares no weights with it, so it is not taken for a damaged one.

    Args:
        sums: SHA-256 by file name.
    """
    best, shared = "", 0
    for name, files in PUBLISHED_SUMS.items():
        weights = {digits for file, digits in files.items() if file.endswith(".bin")}
        count = len(weights & set(sums.values()))
        if count > shared:
            best, shared = name, count
    if not best:
        return None
    repository = Repository("huggingface", PUBLISHED_IDS[best], "main")
    for file, digits in PUBLISHED_SUMS[best].items():
        repository.files[file] = RepositoryFile(file, None, FileSum("sha256", digits))
    return ExpectedFiles(repository, f"the published sums of {best}", complete=True)


def is_damaged_tokenizer(name: str, size: int, sha256: str) -> bool:
    """Whether a file has the length of a published tokenizer and another content.

    Args:
        name: of the file.
        size: in bytes.
        sha256: of its content.
    """
    known = {files[name] for files in PUBLISHED_SUMS.values() if name in files}
    return TOKENIZER_SIZES.get(name) == size and sha256 not in known


def guess_repository(folder: Path) -> str:
    """The repository that config.json names, for advice; empty without one."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        name = config.get("_name_or_path", "")
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    return PUBLISHED_IDS.get(folder.resolve().name, "")
