"""The request of an export, its source, and the checks that need no weights."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from glmtune.errors import ConfigError, ModelError
from glmtune.export.gguf_export import choose_type, require_gguf
from glmtune.export.gguf_types import estimate_gguf_bytes
from glmtune.export.published_config import has_published_layout
from glmtune.export.shards import parse_shard_size
from glmtune.methods.base_info import require_same_base
from glmtune.methods.ptuning import is_prefix_folder
from glmtune.methods.tuned_model import resolve_target
from glmtune.methods.value_head_file import is_reward_folder
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.devices import parse_device
from glmtune.models.loading import DTYPES, make_quantization_arguments, parse_dtype
from glmtune.models.tokenizers import load_tokenizer
from glmtune.models.tokenizers.tokenizer_files import require_published_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

LAYOUTS = ("hf", "official", "gguf")
BITS = (16, 8, 4)
BITSANDBYTES = {8: "int8", 4: "nf4"}
"""bitsandbytes' type for the bits of `hf` folders."""
_SPARE = 50_000_000
"""Bytes for the tokenizer and the small files."""


@dataclass(frozen=True)
class ExportRequest:
    """How to write it. The fields are the options of `glmtune export`."""

    layout: str = "hf"
    bits: int = 16
    """16 means unquantised, in `dtype`."""
    adapter_only: bool = False
    max_shard_size: str = "5GB"
    dtype: str | None = None
    device: str | None = None
    gguf_type: str | None = None
    """Number format of a GGUF file; None for the usual one."""


@dataclass(frozen=True)
class ExportSource:
    """What to write: a base and, perhaps, an adapter on it."""

    base: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    adapter: Path | None
    is_prefix: bool
    base_quantization: str | None
    """Quantisation of the base during the run."""

    @property
    def is_lora(self) -> bool:
        return self.adapter is not None and not self.is_prefix

    @property
    def is_reward_model(self) -> bool:
        return is_reward_folder(self.adapter or self.base.folder)

    def dtype(self, request: ExportRequest) -> torch.dtype:
        """The precision of what is not quantised."""
        return parse_dtype(request.dtype) or self.base.inventory.dtype


def open_source(target: str, base: str | None, family: str | None, hub: str) -> ExportSource:
    """Find base, adapter and tokenizer behind a `RUN_OR_MODEL`; no weight is read.

    Raises:
        ModelError: the base or its tokenizer is broken.
        RunError: the run has no result, or its base is gone or another one.
    """
    model_target = resolve_target(target, base=base, family=family, hub=hub)
    inspected = inspect_checkpoint(model_target.base, family=model_target.family, hub=model_target.hub)
    if model_target.adapter is not None:
        require_same_base(model_target.adapter, inspected.fingerprint, inspected.folder)
    return ExportSource(
        inspected,
        load_tokenizer(inspected.folder, family=inspected.family.name, adapter=model_target.adapter),
        model_target.adapter,
        model_target.adapter is not None and is_prefix_folder(model_target.adapter),
        model_target.quantization,
    )


def require_possible(source: ExportSource, request: ExportRequest, out: Path) -> None:
    """Refuse what cannot be written.

    Raises:
        ConfigError: an option that does not exist, or has no meaning here.
        ModelError: the base cannot take that form, a library is missing, or the disk is too small.
    """
    if request.layout not in LAYOUTS:
        raise ConfigError(f"--format {request.layout}: no such layout.", f"Known: {', '.join(LAYOUTS)}.")
    if request.bits not in BITS:
        raise ConfigError(f"--bits {request.bits}: not possible.", f"Known: {', '.join(map(str, BITS))}.")
    if request.gguf_type and request.layout != "gguf":
        raise ConfigError(f"--type {request.gguf_type}: for --format gguf only.", "Use --bits, or --format gguf.")
    if request.adapter_only and source.adapter is None:
        raise ConfigError("--adapter-only: there is no adapter here.", "Leave it out to write the whole model.")
    parse_shard_size(request.max_shard_size)
    parse_device(request.device)
    dtype = source.dtype(request)
    if dtype not in DTYPES.values():
        raise ConfigError(f"--dtype {str(dtype).removeprefix('torch.')}: not possible.", f"Known: {', '.join(DTYPES)}.")
    if request.layout == "official":
        _require_official(source.base)
    if request.layout == "gguf":
        require_gguf(source, request)
    if not request.adapter_only:
        if request.layout == "official":
            require_published_tokenizer(source.base.folder)
        _require_bits(source, request)
        _require_space(out, estimate_bytes(source, request))


def estimate_bytes(source: ExportSource, request: ExportRequest) -> int:
    """How much disk the export takes at its largest, from shapes alone."""
    if request.layout == "gguf":
        packed = 2 if source.base.packed_bits == 4 else 1  # a byte holds two numbers
        shapes = {
            name: (shape[0], shape[1] * packed) if len(shape) > 1 and ".layers." in name else shape
            for name, shape in source.base.native_shapes.items()
        }
        return estimate_gguf_bytes(shapes, choose_type(request), source.dtype(request)) + _SPARE
    wide = source.dtype(request).itemsize
    full_bytes = written_bytes = 0
    for name, shape in source.base.native_shapes.items():
        numbers = math.prod(shape)
        if len(shape) > 1 and ".layers." in name:
            numbers *= 2 if source.base.packed_bits == 4 else 1  # a byte holds two of them
            written_bytes += numbers * request.bits // 8 if request.bits < 16 else numbers * wide
        else:
            written_bytes += numbers * wide
        full_bytes += numbers * wide
    # bitsandbytes quantises while it reads, so a merged model is written in full precision first.
    intermediate_bytes = full_bytes if source.is_lora and request.layout == "hf" and request.bits < 16 else 0
    return written_bytes + intermediate_bytes + _SPARE


def _require_official(base: Checkpoint) -> None:
    if not has_published_layout(base.config):
        raise ModelError(
            f"{base.folder}: a {base.config.model_type} model was never published in the official layout.",
            "Use --format hf.",
        )


def _require_bits(source: ExportSource, request: ExportRequest) -> None:
    base, packed = source.base, source.base.packed_bits
    if packed and source.is_lora:
        raise ModelError(
            f"{base.folder}: its weights are int{packed}; an adapter cannot be merged into them.",
            "Give the full-precision repository of the same model with --base, or use --adapter-only.",
        )
    if packed and (request.layout, request.bits) not in (("official", packed), ("hf", 16), ("gguf", 16)):
        raise ModelError(
            f"{base.folder}: its weights are int{packed} already.",
            f"Use --format official --bits {packed}, or --format hf --bits 16, which does not bring back what is lost.",
        )
    if request.layout == "hf" and request.bits < 16:
        if source.is_prefix:
            raise ModelError(
                f"{source.adapter}: a P-Tuning prefix cannot be exported with a base that bitsandbytes quantised.",
                "Use --bits 16 and quantise while loading, or --format official.",
            )
        make_quantization_arguments(
            base, BITSANDBYTES[request.bits], source.dtype(request), True
        )  # names what is missing


def _require_space(out: Path, needed: int) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{folder}: {free / 1e9:.1f} GB free, the export takes {needed / 1e9:.1f} GB.",
            "Free some space, or write to another disk.",
        )
