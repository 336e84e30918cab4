"""What a pickle would import and call, read from its opcodes. Nothing of it is executed."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# What torch.save writes for named tensors.
_PLAIN_MODULES = ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.nn.parameter", "collections")
_PLAIN_NAMES = ("OrderedDict", "Size", "device", "dtype", "Parameter", "UntypedStorage", "TypedStorage")
_DTYPE = r"b?float\d+\w*|q?u?int\d+\w*|complex\d+|bool|half|double|long|short"
_LEGACY_PICKLES = 5  # magic number, protocol, system, the objects, the keys of the storages; then raw bytes


def find_foreign_names(path: Path) -> list[str]:
    """Names that a file of tensors has no need of, such as `posix.system`: loading it as a pickle would run them.

    Args:
        path: what `torch.save` wrote, in its zip or its older form.

    Returns:
        `module.name` in the order of the file; empty for plain weights, and for a file that is neither form.
    """
    names: list[str] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith(".pkl"):
                        with archive.open(entry) as stream:
                            names += _list_names(stream, 1)
        else:
            with path.open("rb") as stream:
                names += _list_names(stream, _LEGACY_PICKLES)
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError):
        pass  # damage is reported by the check of the file's form
    return [name for name in dict.fromkeys(names) if not _is_plain(name)]


def _is_plain(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module not in _PLAIN_MODULES:
        return False
    if attribute in _PLAIN_NAMES or attribute.endswith("Storage") or attribute.startswith("_rebuild_"):
        return True
    return module == "torch" and re.fullmatch(_DTYPE, attribute) is not None


def _list_names(stream: IO[bytes], pickles: int) -> Iterator[str]:
    """Imports of some pickles that follow each other; it ends where a stream is no pickle."""
    for _ in range(pickles):
        texts: list[str] = []  # STACK_GLOBAL takes the two texts pushed last, directly or from the memo
        memo: dict[int, str] = {}
        try:
            for opcode, argument, _position in pickletools.genops(stream):
                yield from _read_opcode(opcode.name, argument, texts, memo)
        except (ValueError, EOFError, IndexError, OverflowError, MemoryError):  # a length that is none
            return


def _read_opcode(name: str, argument: Any, texts: list[str], memo: dict[int, str]) -> Iterator[str]:
    if name in ("GLOBAL", "INST"):
        yield str(argument).replace(" ", ".", 1)
    elif name == "STACK_GLOBAL":
        yield ".".join(texts[-2:]) if len(texts) > 1 else "an unknown name"
    elif "UNICODE" in name or name in ("STRING", "SHORT_BINSTRING", "BINSTRING"):
        texts.append(str(argument))
    elif name == "MEMOIZE":
        memo[len(memo)] = texts[-1] if texts else ""
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
        memo[int(argument)] = texts[-1] if texts else ""
    elif name in ("GET", "BINGET", "LONG_BINGET"):
        texts.append(memo.get(int(argument), ""))
    elif name in ("EXT1", "EXT2", "EXT4"):
        yield f"extension {argument}"
