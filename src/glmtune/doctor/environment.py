"""Packages, folders and variables around this Python."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from glmtune.doctor.machine_facts import FolderFacts, WorkFacts
from glmtune.utils.operating_system import find_other_owner, get_temporary_variable, read_file_system
from glmtune.utils.user_folders import find_home, find_user_cache

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "huggingface-hub", "datasets"),
    *("bitsandbytes", "deepspeed", "triton", "numpy", "sentencepiece", "glmtune", "torchvision", "torchaudio"),
)
_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_HOME", "BNB_CUDA_VERSION", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"),
    *("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "GLMTUNE_CACHE", "TMPDIR"),
    *("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"),
    *("LANG", "LC_ALL", "PYTHONUTF8", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTORCH_CUDA_ALLOC_CONF"),
)
_CUDA_LIBRARIES = ("libcudart", "libcublas", "libcudnn", "libnvJitLink", "libcusparse", "libnccl")
_COMPILERS = {"ninja", "nvcc", "cicc", "cc1plus", "ptxas"}


def read_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter, with the passwords of proxies removed; LD_LIBRARY_PATH only with CUDA libraries.

    Args:
        environment: of this process.
    """
    variables = {name: environment[name] for name in _VARIABLES if name in environment}
    for name, value in variables.items():
        if "proxy" in name.lower():
            variables[name] = re.sub(r"//[^/@]*@", "//", value)
    paths = [path for path in variables.pop("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
    paths = [path for path in paths if _has_cuda_libraries(path)]
    if paths:
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
    return variables


def _has_cuda_libraries(folder: str) -> bool:
    try:
        return any(name.startswith(_CUDA_LIBRARIES) for name in os.listdir(folder))
    except OSError:
        return False


def find_duplicates(paths: Iterable[str] | None = None) -> dict[str, tuple[str, ...]]:
    """Packages with several installed versions: `1.2 in FOLDER`, the one that is used first.

    Args:
        paths: to look in; those of this Python when None.
    """
    places: dict[str, dict[str, str]] = {}
    for distribution in importlib.metadata.distributions(path=sys.path if paths is None else list(paths)):
        with contextlib.suppress(Exception):  # metadata that is cut short
            name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
            if name in _PACKAGES:
                folder = str(Path(str(distribution.locate_file(""))).resolve())
                places.setdefault(name, {}).setdefault(f"{distribution.version} in {folder}", folder)
    copies = {name: tuple(found) for name, found in places.items() if len(found) > 1}
    # A source tree with its own metadata beside an editable installation is one version in two places.
    return {name: found for name, found in copies.items() if len({text.split(" in ")[0] for text in found}) > 1}


def find_leftovers(paths: Iterable[str] | None = None) -> tuple[str, ...]:
    """Folders that pip renamed and did not remove: `~orch`."""
    found = []
    for path in dict.fromkeys(sys.path if paths is None else paths):
        if path.endswith(("site-packages", "dist-packages")):
            with contextlib.suppress(OSError):
                found += [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.startswith("~")]
    return tuple(found)


def find_shadows(paths: list[str] | None = None) -> dict[str, str]:
    """Modules of Python and of our libraries that files in front of them on the path hide.

    Args:
        paths: in the order in which modules are looked for; those of this Python when None.
    """
    names = set(sys.stdlib_module_names) | {name.replace("-", "_") for name in _PACKAGES} - {"glmtune"}
    shadows: dict[str, str] = {}
    for path in sys.path if paths is None else paths:
        folder = path or os.getcwd()
        if _is_library_folder(folder):
            break
        try:
            entries = os.listdir(folder)
        except OSError:  # a zip archive, or not there
            continue
        for entry in entries:
            stem = entry.removesuffix(".py")
            full = os.path.join(folder, entry)
            is_package = stem == entry and os.path.isfile(os.path.join(full, "__init__.py"))
            if stem in names and stem not in shadows and (entry.endswith(".py") or is_package):
                shadows[stem] = full
    return shadows


def _is_library_folder(folder: str) -> bool:
    """Whether modules are looked for in Python's own library or among installed packages."""
    if os.path.basename(folder) in ("site-packages", "dist-packages"):
        return True
    return os.path.isfile(os.path.join(folder, "os.py")) and os.path.isdir(os.path.join(folder, "importlib"))


def find_stale_locks(root: Path | None = None) -> tuple[str, ...]:
    """Locks in the folder of torch's extensions while nothing is compiled.

    Args:
        root: of the extensions; torch's when None.
    """
    if root is None:
        default = (find_home() or Path("~")) / ".cache" / "torch_extensions"
        root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    locks = [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern)] if root.is_dir() else []
    if not locks:
        return ()
    import psutil

    running = {process.info["name"] or "" for process in psutil.process_iter(["name"])}
    return () if running & _COMPILERS else tuple(map(str, sorted(locks)))


def list_folders(work: WorkFacts, has_gpu: bool) -> tuple[FolderFacts, ...]:
    """The folders that are written to.

    Args:
        work: the model and the config.
        has_gpu: whether kernels are compiled.
    """
    cache = str(find_user_cache())
    folders = [
        ("the folder of temporary files", tempfile_folder(), get_temporary_variable()),
        ("the cache of encoded data", os.environ.get("GLMTUNE_CACHE", os.path.join(cache, "glmtune")), "GLMTUNE_CACHE"),
        ("where runs are written", os.getcwd(), ""),
    ]
    if work.is_hub_id:
        hub = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
        folders.append(("the cache of downloaded models", hub, "HF_HOME"))
    if has_gpu:
        triton = os.environ.get("TRITON_CACHE_DIR", os.path.join(find_home() or "~", ".triton"))
        folders.append(("the cache of compiled kernels", triton, "TRITON_CACHE_DIR"))
    if work.deepspeed_compiles:
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", os.path.join(cache, "torch_extensions"))
        folders.append(("where DeepSpeed compiles its optimizer", extensions, "TORCH_EXTENSIONS_DIR"))
    return tuple(read_folder(*folder) for folder in folders)


def tempfile_folder() -> str:
    """The folder of temporary files; the first candidate where none can be written to."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return os.environ.get(get_temporary_variable(), "/tmp")


def read_folder(purpose: str, path: str, variable: str) -> FolderFacts:
    """What a folder allows; of one that is not there, what the folder allows in which it would be made.

    Args:
        purpose: for the message.
        path: of the folder.
        variable: that chooses another.
    """
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            writable = place.is_dir()
    except OSError:
        writable = False
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        free = 0
    files, executable = read_file_system(place)
    owner = "" if writable else find_other_owner(place)
    return FolderFacts(purpose, str(place), writable, free, files, executable, owner, variable)
