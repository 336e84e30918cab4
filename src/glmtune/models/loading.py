"""Loading the weights of a base model, of any layout of any generation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from glmtune.errors import ModelError, summarize_error
from glmtune.models.checkpoints import Checkpoint, require_bitsandbytes
from glmtune.models.devices import BITSANDBYTES, choose_device, fit_dtype
from glmtune.models.glm_layers import fuse_layers
from glmtune.models.shared_head import share_equal_head
from glmtune.models.weight_files import check_finite, check_finite_on_disk, open_loadable_folder
from glmtune.quantization.quantizer import PackedQuantizationConfig, cast_unpacked

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PACKED = {"packed4": 4, "packed8": 8}


def load_base(
    base: Checkpoint,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantization: str | None = None,
    double_quantization: bool = True,
) -> PreTrainedModel:
    """Load the weights of an inspected checkpoint.

    A checkpoint in the official quantised layout stays in it. A full-precision one can be quantised during loading, one
    weight at a time, so that there is never a full-precision copy; embeddings, norms and head stay as they are.
    ChatGLM-6B's embedding and head are equal, and one matrix in memory (`shared_head`).

    Args:
        base: from `inspect_checkpoint`.
        dtype: of the computation: `fp32`, `bf16`, `fp16` or a torch dtype; the checkpoint's own when None.
        device: where to; a GPU if there is one when None.
        quantization: `nf4` or `int8` of bitsandbytes, `packed4` or `packed8` of the official layout.
        double_quantization: with nf4, quantise the scales too.

    Raises:
        ModelError: a weight was not read, two were read into one, or one is not finite; an unknown quantisation, one
            that this checkpoint cannot have, or bitsandbytes is missing; it does not fit into the memory.
    """
    target = choose_device(device, quantization or base.stored_quantization)
    precision = fit_dtype(parse_dtype(dtype) or base.inventory.dtype, target, is_chosen=dtype is not None)
    arguments: dict[str, Any] = {"dtype": precision}
    arguments |= make_quantization_arguments(base, quantization, precision, double_quantization)
    if target.type != "cpu" or quantization in BITSANDBYTES or base.stored_quantization:
        arguments["device_map"] = {"": target}
    model: Any = load_weights(base, quantization, precision, arguments)
    share_equal_head(model)
    # Absolute, because an adapter records it as the path of its base.
    model.config._name_or_path = model.name_or_path = str(base.folder.resolve())
    return model.eval()


def load_weights(
    base: Checkpoint, quantization: str | None, precision: torch.dtype, arguments: dict[str, Any]
) -> PreTrainedModel:
    """Load an inspected checkpoint and check that every weight was read and is finite.

    Args:
        base: from `inspect_checkpoint`.
        quantization: see `load_base`; for its checks alone, `arguments` ask transformers for it.
        precision: of the computation.
        arguments: of transformers' `from_pretrained`, without the config.

    Raises:
        ModelError: see `load_base`.
    """
    if quantization in BITSANDBYTES:
        check_finite_on_disk(base.inventory)
    device_map = arguments.get("device_map")
    place = device_map.get("", device_map) if isinstance(device_map, dict) else device_map
    with open_loadable_folder(base.inventory) as folder:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=copy.deepcopy(base.config), output_loading_info=True, **arguments
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _explain_lack_of_memory(base, place or "cpu", quantization, error) from None
        model, info = loaded
    _require_loaded(base, info)
    if model.dtype != precision:  # packed during loading, which is done in the checkpoint's own precision
        cast_unpacked(model, precision)
    if "nf4" in (quantization, base.stored_quantization) and model.device.type == "cpu":
        prepare_quantized_cpu(model)
    check_finite(model, base.inventory)
    fuse_layers(model)
    return model


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its short or full name.

    Raises:
        ModelError: an unknown name.
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype in DTYPES:
        return DTYPES[dtype]
    result = getattr(torch, dtype, None)
    if not isinstance(result, torch.dtype) or not result.is_floating_point or result.itemsize < 2:
        raise ModelError(f"There is no precision {dtype!r}.", f"Known: {', '.join(DTYPES)}.")
    return result


def _explain_lack_of_memory(
    base: Checkpoint, target: Any, quantization: str | None, error: BaseException
) -> ModelError:
    reason = summarize_error(error, 200)
    hints = ["end other programs that use this memory"]
    if str(target) != "cpu":
        hints.append("use the CPU")
    if not (quantization or base.packed_bits or base.stored_quantization):
        hints.insert(0, "quantise it (quantization nf4 or int8)")
    hint = "; ".join(hints)
    return ModelError(
        f"{base.folder}: does not fit into the memory of {target} ({reason}).", f"{hint[0].upper()}{hint[1:]}."
    )


def _require_loaded(base: Checkpoint, info: dict[str, Any]) -> None:
    """Require that every weight was read; `check_shapes` has compared their names before."""
    problems = {key: sorted(info.get(key) or []) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    faults = [
        f"{key.removesuffix('_keys')}: {', '.join(map(str, names[:8]))}" for key, names in problems.items() if names
    ]
    if faults or info.get("error_msgs"):
        raise ModelError(
            f"{base.folder}: not every weight was read. {'; '.join(faults) or info['error_msgs']}.",
            "This is a bug of glmtune or transformers, not a fault of the folder; please report it.",
        )


def make_quantization_arguments(
    base: Checkpoint, quantization: str | None, dtype: torch.dtype, double: bool
) -> dict[str, Any]:
    """Make the arguments of `from_pretrained` for a quantisation.

    Raises:
        ModelError: an unknown one, one that does not go with the checkpoint, or bitsandbytes is missing.
    """
    if quantization is None:
        return {}
    if quantization not in (*BITSANDBYTES, *PACKED):
        choices = ", ".join((*BITSANDBYTES, *PACKED))
        raise ModelError(f"There is no quantization {quantization!r}.", f"Known: {choices}.")
    if base.stored_quantization:
        raise ModelError(
            f"{base.folder}: its weights are {base.stored_quantization} already.",
            "Leave quantization out, or use the full-precision repository of the same model.",
        )
    if base.packed_bits:
        if PACKED.get(quantization) == base.packed_bits:
            return {}
        raise ModelError(
            f"{base.folder}: its weights are int{base.packed_bits} already and cannot become {quantization}.",
            f"Leave quantization out to load them as packed{base.packed_bits}, "
            "or use the full-precision repository of the same model.",
        )
    if quantization in PACKED:
        # From the stored precision, as the official code: casting first would quantise other numbers.
        return {"quantization_config": PackedQuantizationConfig(PACKED[quantization]), "dtype": base.inventory.dtype}
    return {"quantization_config": _make_bitsandbytes_config(quantization, dtype, double)}


def prepare_quantized_cpu(model: nn.Module) -> None:
    """Avoid what bitsandbytes 0.50 computes wrongly in 4 bits on the CPU.

    Its kernels assume that rows are whole blocks of 64, and give wrong numbers otherwise. At the first evaluation it
    converts the weights for a faster kernel without a backward pass: a model trained further would have no gradients
    below its last layer. That is turned off; decoding is then slower than with packed4.

    Raises:
        ModelError: names the first layer of another width. No published model has one; small ones may.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        if state.shape[1] % state.blocksize:
            raise ModelError(
                f"nf4 on the CPU: {name} has {state.shape[1]} inputs; bitsandbytes computes multiples of "
                f"{state.blocksize} there.",
                "Use quantization packed4 or a GPU.",
            )
        module.support_avx512bf16_for_cpu = False


def _make_bitsandbytes_config(quantization: str, dtype: torch.dtype, double: bool) -> Any:
    require_bitsandbytes(quantization)
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
    )
