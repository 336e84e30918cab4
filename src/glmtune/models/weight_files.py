"""The weight files of a checkpoint folder: inventory, checks before and after loading, fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from glmtune.errors import ModelError, summarize_error
from glmtune.models.weight_names import COMPUTED, find_published_name, group_by_published
from glmtune.utils.documents import shorten_value
from glmtune.utils.file_access import require_readable
from glmtune.utils.io import read_json_object
from glmtune.utils.operating_system import link_file

_KINDS = (("model", ".safetensors"), ("pytorch_model", ".bin"))
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Native names, which are the published ones of ChatGLM-6B.
_EMBEDDING_AND_HEAD = ("transformer.word_embeddings.weight", "lm_head.weight")
_SAMPLE_ROWS = 64
_DOWNLOAD_AGAIN = "Download the file again (compare its SHA-256 with the hub's)"


@dataclass(frozen=True)
class Weight:
    """One tensor on disk."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass
class WeightInventory:
    """All weights of a folder by name, without their values."""

    folder: Path
    weights: dict[str, Weight]
    indexed: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: weight.shape for name, weight in self.weights.items()}

    @property
    def dtype(self) -> torch.dtype:
        """The most frequent floating-point dtype of the matrices; float32 if all of them are packed."""
        matrices = (weight.dtype for weight in self.weights.values() if len(weight.shape) > 1)
        names = [name for name in matrices if getattr(torch, name).is_floating_point]
        return getattr(torch, max(set(names), key=names.count)) if names else torch.float32


def read_inventory(folder: Path) -> WeightInventory:
    """Read name, shape and dtype of every weight in `folder` from the files' headers.

    Raises:
        ModelError: no weights; a shard missing, cut short or not a weight file; an index that does not fit.
    """
    files, index, is_complete = _find_weight_files(folder)
    weights: dict[str, Weight] = {}
    for file in files:
        for name, (shape, dtype) in _read_header(file).items():
            if not _is_computed(name):
                weights[name] = Weight(file, shape, dtype)
    missing = [name for name, file in index.items() if name not in weights and not _is_computed(name)]
    if missing:
        raise ModelError(
            f"{folder}: the index names weights that its shards lack: {_join_names(missing)}.", f"{_DOWNLOAD_AGAIN}."
        )
    return WeightInventory(folder, weights, indexed=is_complete)


def check_shapes(inventory: WeightInventory, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Require that a folder has the weights of its config.

    Raises:
        ModelError: lists every missing, unexpected or wrongly shaped weight.
    """
    shapes = inventory.shapes
    faults = []
    missing = [name for name in expected if name not in shapes]
    unexpected = [name for name in shapes if name not in expected]
    wrong = [
        f"{name} is {_format_shape(shapes[name])}, config.json needs {_format_shape(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != tuple(shape)
    ]
    if missing:
        faults.append(f"missing: {_join_names(missing)}")
    if unexpected:
        faults.append(f"unexpected: {_join_names(unexpected)}")
    if wrong:
        faults.append(f"wrong shape: {_join_names(wrong)}")
    if faults:
        raise ModelError(
            f"{inventory.folder}: the weights do not fit config.json. {'; '.join(faults)}.",
            "Check that config.json and all weight files come from the same repository and revision.",
        )


@contextmanager
def open_loadable_folder(inventory: WeightInventory) -> Iterator[Path]:
    """Give a folder that transformers can load: the checkpoint's own, or links to its files and the missing index."""
    files = {weight.file for weight in inventory.weights.values()}
    is_single = len(files) == 1 and next(iter(files)).name in {f"{stem}{suffix}" for stem, suffix in _KINDS}
    if inventory.indexed or is_single:
        yield inventory.folder
        return
    with TemporaryDirectory(prefix="glmtune-") as temporary:
        beside = (inventory.folder / name for name in ("config.json", "generation_config.json"))
        for file in (*files, *(path for path in beside if path.is_file())):
            link_file(file.resolve(), Path(temporary) / file.name)
        suffix = next(iter(files)).suffix
        weight_map = {name: weight.file.name for name, weight in inventory.weights.items()}
        target = Path(temporary) / (_INDEXES[0] if suffix == ".safetensors" else _INDEXES[1])
        target.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8", newline="\n")
        yield Path(temporary)


def compute_fingerprint(inventory: WeightInventory, native_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Compute sixteen hexadecimal digits that identify a base, equal for every layout of the same weights.

    The first, middle and last row of every native weight are hashed in fp32 with its name and shape, so the
    published layout, a transformers folder, `.bin` and safetensors agree. Bases that differ only in other rows are
    not distinguished; training changes them all.

    Args:
        inventory: the folder's weights.
        native_shapes: shapes by the loaded model's own names.
    """
    digest = hashlib.sha256()
    places: dict[str, tuple[str, int]] = {}  # native name -> (name on disk, first row)
    for published, natives in group_by_published(native_shapes).items():
        first = 0
        for native in natives:
            places[native] = (native, 0) if native in inventory.weights else (published, first)
            first += native_shapes[native][0]
    with _RowReader(inventory) as rows:
        for native in sorted(name for name in native_shapes if places[name][0] in inventory.weights):
            name, first = places[native]
            count = native_shapes[native][0]
            digest.update(f"{native}{tuple(native_shapes[native])}".encode())
            for row in (0, count // 2, count - 1):
                digest.update(rows.read(name, first + row))
    return digest.hexdigest()[:16]


def read_tensors(inventory: WeightInventory) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and values of every weight, one at a time."""
    with _RowReader(inventory) as rows:
        for name in inventory.weights:
            yield name, rows.open(name)[:]


def has_equal_head(inventory: WeightInventory) -> bool:
    """Whether ChatGLM-6B's embedding and head have equal rows at their beginning, middle and end."""
    if not all(name in inventory.weights for name in _EMBEDDING_AND_HEAD):
        return False
    embedding, head = (inventory.weights[name] for name in _EMBEDDING_AND_HEAD)
    if (embedding.shape, embedding.dtype) != (head.shape, head.dtype):
        return False
    rows = embedding.shape[0]
    with _RowReader(inventory) as reader:
        first, second = (reader.open(name) for name in _EMBEDDING_AND_HEAD)
        starts = (0, rows // 2, max(rows - _SAMPLE_ROWS, 0))
        return all(torch.equal(first[i : i + _SAMPLE_ROWS], second[i : i + _SAMPLE_ROWS]) for i in starts)


class _RowReader:
    """Reads single rows of weights on disk; each file is opened once."""

    def __init__(self, inventory: WeightInventory):
        self._weights = inventory.weights
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> _RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.clear()

    def read(self, name: str, row: int) -> bytes:
        return self.open(name)[row : row + 1].float().numpy().tobytes()

    def open(self, name: str) -> Any:
        """The tensor, or a safetensors slice of it; both give rows when indexed."""
        file = self._weights[name].file
        if file not in self._open:
            is_safe = file.suffix == ".safetensors"
            self._open[file] = safe_open(require_readable(file), "pt") if is_safe else read_bin(file, "cpu")
        source = self._open[file]
        return source[name] if isinstance(source, dict) else source.get_slice(name)


def _find_weight_files(folder: Path) -> tuple[list[Path], dict[str, str], bool]:
    """Find the weight files, the weight map of the index if there is one, and whether transformers can read it."""
    for name in _INDEXES:
        if (folder / name).is_file():
            index, is_complete = _read_index(folder / name)
            names = sorted(set(index.values()))
            _require_files(folder, names, f"{name} names")
            return [folder / file for file in names], index, is_complete
    for stem, suffix in _KINDS:
        single = folder / f"{stem}{suffix}"
        if single.is_file():
            return [single], {}, False
        shards = sorted(folder.glob(f"{stem}-*-of-*{suffix}"))
        if shards:
            count = _read_shard_count(shards[0])
            names = [f"{stem}-{i:05d}-of-{count:05d}{suffix}" for i in range(1, count + 1)]
            _require_files(folder, names, "the shards' names call for")
            return [folder / name for name in names], {}, False
    code = sorted(path.name for path in folder.glob("*.py"))
    has = f" (only code: {', '.join(code)})" if code else ""
    raise ModelError(
        f"{folder}: no weights found{has}. Expected: model.safetensors, pytorch_model.bin, or their numbered shards.",
        "The weights are large files of the same repository; git clone brings them only with git-lfs.",
    )


def _read_shard_count(shard: Path) -> int:
    """The number of shards that the name of one says."""
    digits = shard.stem.rsplit("-of-", 1)[1]
    if not re.fullmatch(r"[0-9]{5}", digits):
        raise ModelError(f"{shard}: the name ends in {shorten_value(digits)}, not in a number of files.", "Rename it.")
    return int(digits)


def _require_files(folder: Path, names: list[str], who: str) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder}: {who} files that are not there: {_join_names(missing)}.", "Download the missing files."
        )


def _read_index(path: Path) -> tuple[dict[str, str], bool]:
    """The weight map of an index, and whether transformers can read the index as it is."""
    content = read_json_object(path, ModelError, f"{_DOWNLOAD_AGAIN}.")
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: not an index of weights (no usable weight_map).", f"{_DOWNLOAD_AGAIN}.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or file in (".", "..") or re.search(r"[/\\\0]", file):
            raise ModelError(
                f"{path}: {name} is said to be in {file!r}, which is no name of a file in this folder.",
                f"{_DOWNLOAD_AGAIN}.",
            )
    return weight_map, isinstance(content.get("metadata"), dict)


def _read_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name to shape and dtype (torch's name for it)."""
    with require_readable(file).open("rb") as stream:
        if stream.read(24).startswith(b"version https://git-lfs"):
            raise ModelError(f"{file}: a git-lfs pointer, not the weights.", "Run `git lfs pull`, or download it.")
    return _read_safetensors_header(file) if file.suffix == ".safetensors" else _read_bin_header(file)


def _read_safetensors_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with safe_open(require_readable(file), "pt") as source:
            slices = {name: source.get_slice(name) for name in source.keys()}  # noqa: SIM118 (not a dict)
            return {name: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), "float32")) for name, s in slices.items()}
    except (SafetensorError, OSError, struct.error) as error:
        raise ModelError(f"{file}: cut short or corrupt ({error}).", f"{_DOWNLOAD_AGAIN}.") from None


def _read_bin_header(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    state = read_bin(file, "meta")
    return {name: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in state.items()}


def read_bin(file: Path, device: str) -> dict[str, torch.Tensor]:
    """Read a `.bin` file without running code in it; mapped from disk where its format allows.

    Args:
        file: of named tensors.
        device: `cpu`, or `meta` for names, shapes and dtypes alone.

    Raises:
        ModelError: it is cut short, or holds something else.
    """
    file = require_readable(file)
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except UnicodeEncodeError:  # torch takes a path in UTF-8 alone
        raise ModelError(
            f"{file}: its path is no text in the encoding of this terminal.", "Set LANG=C.UTF-8 and PYTHONUTF8=1."
        ) from None
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and others for a broken file
        reason = summarize_error(error, 120)
        raise ModelError(
            f"{file}: cut short, corrupt or not plain weights ({reason}).", f"{_DOWNLOAD_AGAIN}."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{file}: holds something other than named tensors.", "Give the model's own weight files.")
    return state


def _is_computed(name: str) -> bool:
    return any(re.search(pattern, name) for pattern in COMPUTED)


def _join_names(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _format_shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
}


def check_finite(model: nn.Module, inventory: WeightInventory) -> None:
    """Check every floating-point weight of a loaded model.

    Raises:
        ModelError: names the first weight with a NaN or an infinity, and its file.
    """
    for native, value in model.named_parameters():
        if not is_finite_tensor(value.detach()):
            _raise_not_finite(_find_name_on_disk(native, inventory), inventory, value.dtype)


def check_finite_on_disk(inventory: WeightInventory) -> None:
    """Check every floating-point weight in the files, for loading that quantises all of them.

    Raises:
        ModelError: names the first weight with a NaN or an infinity, and its file.
    """
    for name, value in read_tensors(inventory):
        if not is_finite_tensor(value):
            _raise_not_finite(name, inventory, value.dtype)


def is_finite_tensor(value: torch.Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; one pass, no copy. Whole numbers always are."""
    if not value.is_floating_point() or not value.numel():
        return True
    least, most = value.aminmax()  # either is NaN if any element is
    return bool(least.isfinite() & most.isfinite())


def _find_name_on_disk(native: str, inventory: WeightInventory) -> str:
    """The stored weight that a loaded one came from; packing while loading makes scales of weights."""
    origins = (native, native.removesuffix("_scale"))
    names = [name for origin in origins for name in (origin, find_published_name(origin)[0])]
    return next(name for name in names if name in inventory.weights)


def _raise_not_finite(name: str, inventory: WeightInventory, loaded: torch.dtype) -> None:
    weight = inventory.weights[name]
    cast = str(loaded).removeprefix("torch.")
    also = "" if cast == weight.dtype else f"; or its {weight.dtype} does not fit {cast}, then load it as bf16 or fp32"
    raise ModelError(f"{weight.file}: {name} holds a NaN or an infinity.", f"{_DOWNLOAD_AGAIN}{also}.")
