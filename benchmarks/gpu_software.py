"""Cell 0 of `gpu.py`: libraries that decide which kernels can run, and the allocator's option."""

from __future__ import annotations

import importlib.util
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from gpu_results import Setup, figure

_PACKAGES = (
    *("torch", "transformers", "peft", "accelerate", "triton", "bitsandbytes", "trl"),
    *("liger_kernel", "flash_attn"),
)
# What the other cells import beside torch.
_MODULES = (
    *("transformers", "peft", "accelerate", "safetensors", "tokenizers", "sentencepiece", "pyarrow", "filelock"),
    *("huggingface_hub", "yaml", "typer", "rich", "jinja2", "matplotlib", "psutil", "numpy"),
)


def software(setup: Setup) -> None:
    """Versions, parts of torch that are not in every release, and settings of the allocator."""
    figure("packages", **{name: _find_version(name) for name in _PACKAGES})
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    figure("missing", modules=", ".join(missing) or "none")
    has_varlen = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    has_flex = importlib.util.find_spec("torch.nn.attention.flex_attention") is not None
    parts: dict[str, Any] = {"varlen_attn": _say(has_varlen), "flex_attention": _say(has_flex)}
    if setup.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        parts |= {"CUDA": torch.version.cuda, "capability": f"{major}.{minor}"}
    figure("torch", **parts)
    setting = os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "not set"
    figure("allocator", setting=setting, expandable=_check_expandable() if setup.device == "cuda" else "on a GPU only")


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _say(is_there: bool) -> str:
    return "yes" if is_there else "no"


def _check_expandable() -> str:
    """Whether a segment of the allocator can grow, which a driver may not support."""
    block = torch.empty(2**25, device="cuda")
    segments = torch.cuda.memory_snapshot()
    del block
    return _say(any(segment.get("is_expandable", False) for segment in segments))
