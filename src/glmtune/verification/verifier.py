"""Check every file of a checkpoint folder, then the folder as a whole."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from glmtune.download.repository import RECORD_FILE, FileSum, hash_file
from glmtune.errors import GlmtuneError, ModelError, summarize_error
from glmtune.utils.console import ProgressBar, format_bytes
from glmtune.utils.file_access import require_readable_folder
from glmtune.utils.io import LOCK_FILE, read_json_object
from glmtune.verification.expected_sums import (
    ExpectedFiles,
    find_expected_files,
    identify_published,
    is_damaged_tokenizer,
    is_published_name,
)
from glmtune.verification.file_form import find_form_problem, find_wrong_entries
from glmtune.verification.pickle_code import find_foreign_names
from glmtune.verification.weight_values import find_weights_problem, list_tensor_names

_WEIGHTS = re.compile(r"(model|pytorch_model|adapter_model).*\.(safetensors|bin)")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_PARTS = (".part", ".incomplete", ".aria2", ".crdownload", ".download", ".tmp", ".!ut")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NEEDED_JSON = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)
_EDITABLE = (".json", ".md", ".py", ".txt")


@dataclass(frozen=True)
class FileFault:
    """Something wrong with a file, or with the folder."""

    file: str
    """Its name; empty for the folder as a whole."""
    kind: str
    """missing, form, sum, code, values, index, config or tokenizer."""
    problem: str


@dataclass
class VerifiedFile:
    """A file and what was checked of it."""

    name: str
    size: int
    sha256: str = ""
    sum_matches: bool | None = None
    """None if no sum is known for it."""


@dataclass
class Verification:
    """The result for a folder."""

    folder: Path
    expected: ExpectedFiles | None = None
    files: dict[str, VerifiedFile] = field(default_factory=dict)
    faults: list[FileFault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_fault(self, file: str, kind: str, problem: str) -> None:
        """Record a fault; of one kind, the first of a file."""
        if not any((fault.file, fault.kind) == (file, kind) for fault in self.faults):
            self.faults.append(FileFault(file, kind, problem))

    @property
    def faulty_files(self) -> list[str]:
        """Names of files with a fault, once each, in order."""
        return [name for name in dict.fromkeys(fault.file for fault in self.faults) if name]


def verify_folder(
    folder: Path, expected: ExpectedFiles | None = None, *, family: str | None = None, values: bool = True
) -> Verification:
    """Verify a checkpoint folder.

    Args:
        folder: of the checkpoint.
        expected: sizes and sums from its hub; when left out, those found beside the files or published.
        family: the generation, for folders that do not say it.
        values: read every weight: finite, and not all zero.

    Raises:
        ModelError: there is nothing to verify: no config.json and no weights; or the path is no text.
    """
    require_readable_folder(folder)
    if any("\udc80" <= letter <= "\udcff" for letter in str(folder)):
        raise ModelError(
            f"{folder}: its path is no text in the encoding of this terminal.", "Set LANG=C.UTF-8 and PYTHONUTF8=1."
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    if not weights and "config.json" not in names:
        raise ModelError(f"{folder}: neither config.json nor weights, so nothing to verify.", "Give a model's folder.")
    result = Verification(folder, expected or find_expected_files(folder))
    known = result.expected.repository.files if result.expected else {}
    for name in names:
        if name not in (RECORD_FILE, LOCK_FILE):
            result.files[name] = VerifiedFile(name, (folder / name).stat().st_size)

    _check_missing(result, names)
    _check_sizes(result)
    if result.expected and weights and not set(weights) & set(known):
        result.notes.append(f"None of the weight files here is in {result.expected.source}.")
    sums = [name for name in result.files if name in known or (not known and is_published_name(name))]
    passes = sum(result.files[name].size for name in sums) + sum(result.files[name].size for name in weights)
    with ProgressBar("Verify", passes, unit="bytes") as progress:
        _check_sums(result, sums, progress)
        tensors: dict[str, list[str]] = {}
        for name in result.files:
            if name in weights:
                _check_weights(result, name, tensors, progress, values)
            elif name.endswith(_PICKLES):
                _check_code(result, name)
    _check_json(result)
    _check_index(result, names, tensors)
    if "adapter_config.json" in names and "config.json" not in names:
        result.notes.append("An adapter: its base was not checked.")
    elif not any(fault.kind != "sum" for fault in result.faults):
        _check_model(result, family)
    return result


def _check_missing(result: Verification, names: list[str]) -> None:
    """Files that the hub's list or the shards' names call for, and downloads that were not finished."""
    missing: list[str] = []
    if result.expected and result.expected.complete:
        missing += [name for name in result.expected.repository.files if "/" not in name and name not in names]
    for name in names:
        match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)", name)
        if match and int(match[3]) < 10_000:
            shards = (f"{match[1]}-{number:05d}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1))
            missing += [shard for shard in shards if shard not in names]
    unfinished = [name for name in names if name.endswith(_PARTS)]
    for name in dict.fromkeys(missing):
        part = next((other for other in unfinished if other.lstrip(".").startswith(name)), None)
        size = f" ({format_bytes(result.files[part].size)} of it are in {part})" if part else ""
        result.add_fault(name, "missing", f"missing{size}")
    for name in unfinished:
        if not any(name.lstrip(".").startswith(other) for other in missing):
            note = f"{name}: left by a download that was not finished."
            result.notes += [note] if note not in result.notes else []
    _note_unfinished_downloads(result)
    links = [path.name for path in result.folder.iterdir() if path.is_symlink() and not path.exists()]
    for name in links:
        result.add_fault(name, "missing", f"a link to {os.readlink(result.folder / name)}, which is not there")


def _note_unfinished_downloads(result: Verification) -> None:
    """Downloads that the hubs' own clients did not finish, in folders of theirs."""
    for pattern in (".cache/huggingface/download/*.incomplete", "._____temp/*"):
        for path in sorted(result.folder.glob(pattern)):
            name = path.relative_to(result.folder).as_posix()
            note = f"{name}: left by a download that was not finished ({format_bytes(path.stat().st_size)})."
            result.notes += [note] if note not in result.notes else []


def _check_sizes(result: Verification) -> None:
    if result.expected is None:
        return
    for name, file in result.expected.repository.files.items():
        present = result.files.get(name)
        if present is None or file.size is None or present.size == file.size or name.endswith(_EDITABLE):
            continue
        fewer = present.size < file.size
        what = "cut short" if fewer else "too long"
        sizes = f"{format_bytes(present.size)} of {format_bytes(file.size)}"
        if format_bytes(present.size) == format_bytes(file.size):
            sizes = f"{present.size:,} of {file.size:,} bytes"
        result.add_fault(name, "form", f"{what}: {sizes}")


def _check_sums(result: Verification, names: list[str], progress: ProgressBar) -> None:
    has_list = result.expected is not None
    known = result.expected.repository.files if result.expected else {}
    broken = set(result.faulty_files)
    for name in names:
        file_sum = known[name].sum if name in known else FileSum("sha256", "")
        if file_sum is None or name in broken:  # a wrong size says enough
            progress.add(result.files[name].size)
            continue
        try:
            digits = hash_file(result.folder / name, file_sum.kind, progress.add)
        except OSError as error:  # a bad disk, no permission
            result.add_fault(name, "form", f"cannot be read ({error.strerror or error})")
            continue
        if file_sum.kind == "sha256":
            result.files[name].sha256 = digits
        if has_list:
            result.files[name].sum_matches = digits == file_sum.digits
    if not has_list:
        result.expected = identify_published({file.name: file.sha256 for file in result.files.values() if file.sha256})
        if result.expected is None:
            for file in result.files.values():
                if file.sha256 and is_damaged_tokenizer(file.name, file.size, file.sha256):
                    result.add_fault(file.name, "sum", "has the length of the published file and another content")
            return
        known = result.expected.repository.files
        for name in names:
            if name in known and (published := known[name].sum) is not None:
                result.files[name].sum_matches = result.files[name].sha256 == published.digits
        _check_missing(result, sorted(result.files))
    assert result.expected is not None
    owners = {file.sum.digits: name for name, file in known.items() if file.sum}
    for file in result.files.values():
        if file.sum_matches is not False:
            continue
        other = owners.get(file.sha256)
        if other is not None:
            result.add_fault(file.name, "sum", f"has the content of {other}")
        elif file.name.endswith(_EDITABLE):
            result.notes.append(f"{file.name} was changed: its sum is not that of {result.expected.source}.")
        else:
            result.add_fault(file.name, "sum", f"its sum is not that of {result.expected.source}")


def _check_weights(
    result: Verification, name: str, tensors: dict[str, list[str]], progress: ProgressBar, values: bool
) -> None:
    """The form of a weight file, code in it, and its values; records the names of its tensors."""
    path, size = result.folder / name, result.files[name].size
    start = progress.completed
    try:
        problem = "" if name in result.faulty_files and not result.files[name].sha256 else find_form_problem(path)
        if problem:
            result.add_fault(name, "form", problem)
            return
        if any(fault.file == name and fault.kind in ("form", "code") for fault in result.faults):
            return
        if name.endswith(".bin") and _check_code(result, name):
            return
        if name.endswith(".bin") and result.files[name].sum_matches is None and _is_zip(path):
            wrong, count = find_wrong_entries(path, lambda _: None)
            if wrong and len(wrong) < count:
                result.add_fault(name, "form", f"damaged: the CRC-32 of {wrong[0]} does not match")
                return
        tensors[name] = list_tensor_names(path)
        if values:
            problem = find_weights_problem(path, progress.add, allow_zeros=name.startswith("adapter"))
            if problem:
                result.add_fault(name, "values", problem)
    except ModelError as error:
        result.add_fault(name, "form", error.message.removeprefix(f"{path}: ").rstrip("."))
    except (OSError, RuntimeError, ValueError) as error:
        result.add_fault(name, "form", f"cannot be read ({summarize_error(error, 120)})")
    finally:
        if progress.completed < start + size:
            progress.add(start + size - progress.completed)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"PK"


def _check_code(result: Verification, name: str) -> bool:
    """Record code in a pickle; whether there is any."""
    names = find_foreign_names(result.folder / name)
    if not _WEIGHTS.fullmatch(name):  # settings and states of trainers hold classes of their libraries
        names = [entry for entry in names if entry.split(".")[0] in _DANGEROUS]
    if names:
        listing = ", ".join(names[:3])
        result.add_fault(name, "code", f"holds code ({listing}) that programs run when they load it; it was not run")
    return bool(names)


_DANGEROUS = frozenset(
    (
        *("os", "posix", "nt", "sys", "pty", "subprocess", "commands", "shutil", "runpy", "importlib", "ctypes"),
        *("builtins", "__builtin__", "code", "codeop", "types", "operator", "functools", "pickle", "marshal"),
        *("socket", "requests", "urllib", "http", "webbrowser", "asyncio", "multiprocessing"),
    )
)


def _check_json(result: Verification) -> None:
    for name in result.files:
        if name.endswith(".json") and name not in _INDEXES:
            try:
                read_json_object(result.folder / name, ModelError, max_bytes=2**28)
            except GlmtuneError as error:
                text = error.message.split(": ", 1)[-1].rstrip(".")
                if name in _NEEDED_JSON:
                    result.add_fault(name, "form", text)


def _check_index(result: Verification, names: list[str], tensors: dict[str, list[str]]) -> None:
    """Every tensor is in one file, and that is the one that the index says."""
    damaged = {fault.file for fault in result.faults if fault.kind in ("form", "code", "missing", "values")}
    for suffix in (".safetensors", ".bin"):
        places: dict[str, str] = {}
        for file in (name for name in tensors if name.endswith(suffix)):
            for tensor in tensors[file]:
                if tensor in places:
                    result.add_fault(file, "index", f"{tensor} is in {places[tensor]} too")
                    break
                places[tensor] = file
    for index in (name for name in _INDEXES if name in names):
        try:
            content = read_json_object(result.folder / index, ModelError, unique_keys=True)
        except GlmtuneError as error:
            result.add_fault(index, "index", error.message.split(": ", 1)[-1].rstrip("."))
            continue
        weight_map = content.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            result.add_fault(index, "index", "has no usable weight_map")
            continue
        for name in dict.fromkeys(map(str, weight_map.values())):
            _check_index_entry(result, index, name, weight_map, tensors, damaged)
        indexed = set(weight_map)
        listed = set(map(str, weight_map.values()))
        for file in (name for name in tensors if name in listed):
            extra = [tensor for tensor in tensors[file] if tensor not in indexed and "inv_freq" not in tensor]
            if extra:
                result.add_fault(index, "index", f"does not name {extra[0]}, which is in {file}")


def _check_index_entry(
    result: Verification,
    index: str,
    name: str,
    weight_map: dict[str, object],
    tensors: dict[str, list[str]],
    damaged: set[str],
) -> None:
    if name in damaged:
        return
    if name not in result.files:
        result.add_fault(name, "missing", f"missing; {index} names it")
        return
    present = set(tensors.get(name, ()))
    lacking = [tensor for tensor, file in weight_map.items() if file == name and tensor not in present]
    if lacking:
        result.add_fault(name, "index", f"lacks {lacking[0]}, which {index} says is in it")


def _check_model(result: Verification, family: str | None) -> None:
    """Shapes against config.json, and the tokenizer against the vocabulary."""
    from glmtune.families import AmbiguousFamilyError
    from glmtune.models.checkpoints import inspect_checkpoint
    from glmtune.models.tokenizers import load_tokenizer

    try:
        checkpoint = inspect_checkpoint(result.folder, family=family)
    except GlmtuneError as error:
        result.add_fault("config.json", "config", error.message.removeprefix(f"{result.folder}: ").rstrip("."))
        return
    try:
        tokenizer = load_tokenizer(result.folder, family=family)
    except AmbiguousFamilyError:
        result.notes.append("The tokenizer was not checked: give --family chatglm2 or chatglm3.")
        return
    except GlmtuneError as error:
        name = next((name for name in result.files if name in error.message and name.endswith((".model", ".json"))), "")
        name = name or ("tokenizer.json" if "tokenizer.json" in result.files else _name_tokenizer(error.message))
        result.add_fault(name, "tokenizer", error.message.split(": ", 1)[-1].rstrip("."))
        return
    if len(tokenizer) > checkpoint.config.vocab_size:
        result.add_fault(
            next((name for name in result.files if name.endswith(".model")), "tokenizer.json"),
            "tokenizer",
            f"the tokenizer has {len(tokenizer)} tokens, the embedding {checkpoint.config.vocab_size} rows",
        )


def _name_tokenizer(message: str) -> str:
    return "ice_text.model" if "ice_text.model" in message else "tokenizer.model"
