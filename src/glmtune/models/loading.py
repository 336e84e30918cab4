"""The one door to a base model: any layout of any generation, checked before and after it is read."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from glmtune.errors import ModelError, summarize_error
from glmtune.families import Family, family_from_folder, get_family
from glmtune.hub import resolve_checkpoint
from glmtune.models.auto import find_family, make_native_config, read_packed_bits
from glmtune.models.checkpoints import WeightInventory, check_shapes, compute_fingerprint, list_loadable, read_inventory
from glmtune.models.finite import check_finite, check_finite_on_disk
from glmtune.models.glm import PublishedGlmConfig
from glmtune.models.quantized import (
    BITSANDBYTES,
    check_packing,
    make_quantization_arguments,
    prepare_quantized_cpu,
    read_stored_quantization,
)
from glmtune.models.weight_names import list_published_shapes
from glmtune.quantization.quantizer import cast_unpacked, replace_linears

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Checkpoint:
    """A checkpoint folder that was looked through but not loaded."""

    folder: Path
    decided_family: Family | None
    config: PreTrainedConfig
    inventory: WeightInventory
    native_shapes: dict[str, tuple[int, ...]]
    packed_bits: int = 0
    """4 or 8 where the weights are in the official quantised layout, else 0."""
    stored: str | None = None
    """`nf4` or `int8` where a transformers folder holds bitsandbytes' numbers."""

    @property
    def family(self) -> Family:
        """The generation.

        Raises:
            ModelError: nothing tells ChatGLM2 from ChatGLM3; such a checkpoint can be loaded, but not prompted.
        """
        return self.decided_family or family_from_folder(self.folder)

    @cached_property
    def fingerprint(self) -> str:
        """Tells bases apart, whatever their layout on disk."""
        return compute_fingerprint(self.inventory, self.native_shapes)


def inspect_checkpoint(path: str | os.PathLike[str], *, family: str | None = None, hub: str = "huggingface") -> Checkpoint:
    """Look through a checkpoint: generation, config, and whether its weights fit; headers only, no values.

    Raises:
        ModelError: the folder cannot be loaded as it is; the message lists what is wrong with it.
    """
    folder = resolve_checkpoint(path, hub)
    chosen = get_family(family) if family else find_family(folder, name=str(path))
    config = make_native_config(folder, chosen)
    inventory = read_inventory(folder)
    bits = read_packed_bits(config)
    check_packing(inventory, bits)
    native = _native_shapes(config)
    expected = list_published_shapes(native) if isinstance(config, PublishedGlmConfig) else native
    stored = None if bits else read_stored_quantization(config)
    if stored is None:  # bitsandbytes' numbers have shapes of their own, which its loading checks
        check_shapes(inventory, expected)
    return Checkpoint(folder, chosen, config, inventory, native, bits, stored)


def load_base(
    base: Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    double_quantization: bool = True,
) -> PreTrainedModel:
    """Load the weights of an inspected checkpoint.

    A checkpoint in the official quantised layout stays in it. A full-precision one can be quantised while it is read,
    one weight at a time, so that no full-precision copy of it is ever held; embeddings, norms and head are not.

    Args:
        base: from `inspect_base`.
        dtype: `fp32`, `bf16`, `fp16` or a torch dtype; the checkpoint's own when None. What is computed in.
        device: where to; a GPU if there is one when None.
        quantization: `nf4` or `int8` of bitsandbytes, `packed4` or `packed8` of the official layout.
        double_quantization: with nf4, quantise the scales too.

    Raises:
        ModelError: a weight was not read, two were read into one, or one is not finite; an unknown quantisation, one
            that does not go with this checkpoint, or bitsandbytes is missing; it does not fit into the memory.
    """
    target, precision = parse_device(device), parse_dtype(dtype) or base.inventory.dtype
    arguments: dict[str, Any] = {"config": copy.deepcopy(base.config), "dtype": precision}
    arguments |= make_quantization_arguments(base, quantization, precision, double_quantization)
    if target.type != "cpu" or quantization in BITSANDBYTES or base.stored:
        arguments["device_map"] = {"": target}
    if quantization in BITSANDBYTES:
        check_finite_on_disk(base.inventory)
    with list_loadable(base.inventory) as folder:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **arguments)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _explain_lack_of_memory(base, target, quantization, error) from None
        model, info = loaded
    _require_loaded(base, info)
    if model.dtype != precision:  # packed while it was read, which is done in the checkpoint's own precision
        cast_unpacked(model, precision)
    if "nf4" in (quantization, base.stored) and target.type == "cpu":
        prepare_quantized_cpu(model)
    check_finite(model, base.inventory)
    # Absolute, for an adapter keeps it as the place of its base.
    model.config._name_or_path = model.name_or_path = str(base.folder.resolve())
    return model.eval()


def parse_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on; a GPU if there is one when None.

    Raises:
        ModelError: an unknown name, or a GPU where torch finds none.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ModelError(f"There is no device {str(device)!r}.", "Known: cpu, cuda, cuda:1 and so on.") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            "torch finds no GPU.", "Check `nvidia-smi`, and that this torch was built for CUDA; or use --device cpu."
        )
    return target


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its short or full name.

    Raises:
        ModelError: an unknown name.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point or named.itemsize < 2:
        raise ModelError(f"There is no precision {dtype!r}.", f"Known: {', '.join(DTYPES)}.")
    return named


def _native_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the model that `config` describes, built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if read_packed_bits(config):
            replace_linears(model, read_packed_bits(config))
    tied = getattr(model, "all_tied_weights_keys", {}) or {}
    return {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied}


def _explain_lack_of_memory(base: Checkpoint, target: torch.device, quantization: str | None, error: BaseException) -> ModelError:
    reason = summarize_error(error, 200)
    ways = ["end other programs that use this memory"]
    if target.type != "cpu":
        ways.append("use the CPU")
    if not (quantization or base.packed_bits or base.stored):
        ways.insert(0, "hold it in fewer bits (quantization nf4 or int8)")
    told = "; ".join(ways)
    return ModelError(
        f"{base.folder}: does not fit into the memory of {target} ({reason}).", f"{told[0].upper()}{told[1:]}."
    )


def _require_loaded(base: Checkpoint, info: dict[str, Any]) -> None:
    """`check_shapes` has compared the names; this is the proof that each was read as well."""
    left = {key: sorted(info.get(key) or []) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    faults = [f"{key.removesuffix('_keys')}: {', '.join(map(str, names[:8]))}" for key, names in left.items() if names]
    if faults or info.get("error_msgs"):
        raise ModelError(
            f"{base.folder}: not every weight was read. {'; '.join(faults) or info['error_msgs']}.",
            "This is a fault of glmtune or transformers rather than of the folder; please report it.",
        )
