"""Settings of torch's GPU allocator, which it reads from the environment before the first use of a GPU."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

from glmtune.utils.operating_system import is_linux, is_macos

_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_OPTION = "expandable_segments:True"


def set_allocator_defaults(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let segments of GPU memory grow, so that batches of different lengths leave fewer gaps in it.

    What the user has set stays as it is, in any of the variables. Only Linux has such segments.

    Args:
        environment: of this process and its children.
    """
    if not is_linux() or any(name in environment for name in _VARIABLES):
        return
    environment[_pick_variable()] = _OPTION


def allow_mps_fallback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch compute on the CPU what it has no Metal kernel for, with a warning for each operation.

    Args:
        environment: of this process and its children, before torch is imported.
    """
    if is_macos():
        environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")


def _pick_variable() -> str:
    """The variable's name in the installed torch, which is not imported: 2.9 deprecated the older name."""
    try:
        major, minor = (int(part) for part in version("torch").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return _VARIABLES[0]
    return _VARIABLES[0] if (major, minor) >= (2, 9) else _VARIABLES[1]
