"""Which quantisation goes with which checkpoint, and how transformers is asked for it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from glmtune.errors import ModelError
from glmtune.models.checkpoints import WeightInventory
from glmtune.quantization.quantizer import PackedQuantizationConfig

if TYPE_CHECKING:
    from glmtune.models.loading import Checkpoint

BITSANDBYTES = ("nf4", "int8")
PACKED = {"packed4": 4, "packed8": 8}


def check_packing(inventory: WeightInventory, bits: int) -> None:
    """Compare what config.json says about packed weights with what the files hold.

    Args:
        inventory: the files' weights.
        bits: the config's `quantization_bit`; 0 for none.

    Raises:
        ModelError: packed weights that the config does not announce, or none where it does.
    """
    packed = [name for name in inventory.weights if name.endswith(".weight_scale")]
    if bits and not packed:
        raise ModelError(
            f"{inventory.folder}: config.json says quantization_bit {bits}, but no weight there is packed.",
            'Set "quantization_bit": 0 in config.json to load them; '
            f"--set model.quantization=packed{bits} then packs them while loading.",
        )
    if packed and not bits:
        raise ModelError(
            f"{inventory.folder}: the weights are packed ({packed[0]}), but config.json has no quantization_bit.",
            'Add "quantization_bit": 4 or 8 to config.json, as its repository has it.',
        )
    for name in packed:
        weight = inventory.weights.get(name.removesuffix("_scale"))
        if weight and weight.dtype != "int8":
            raise ModelError(
                f"{weight.file}: {name} belongs to a packed weight, but the weight is {weight.dtype}, not int8.",
                "Its quantiser was not the official one; use the full-precision repository of the same model.",
            )
    embeddings = [name for name in packed if name.endswith("word_embeddings.weight_scale")]
    if embeddings:
        raise ModelError(
            f"{inventory.folder}: the embeddings are packed too ({embeddings[0]}), which cannot be loaded.",
            "Use a repository whose embeddings are not, such as THUDM/chatglm-6b-int4, or the full-precision one.",
        )


def read_stored_quantization(config: PreTrainedConfig) -> str | None:
    """`nf4` or `int8` where a transformers folder was saved in bitsandbytes' form.

    Raises:
        ModelError: it was saved by another quantiser, or bitsandbytes is missing.
    """
    told = getattr(config, "quantization_config", None)
    if told is None:
        return None
    stored = told if isinstance(told, dict) else told.to_dict()
    if stored.get("quant_method") != "bitsandbytes":
        raise ModelError(
            f"config.json: quantised by {stored.get('quant_method')}, which glmtune does not read.",
            "Use the full-precision repository of the same model.",
        )
    quantization = "nf4" if stored.get("load_in_4bit") else "int8"
    _require_bitsandbytes(quantization)
    return quantization


def make_quantization_arguments(base: Checkpoint, quantization: str | None, dtype: torch.dtype, double: bool) -> dict[str, Any]:
    """What `from_pretrained` is given for a quantisation.

    Raises:
        ModelError: an unknown one, one that does not go with the checkpoint, or bitsandbytes is missing.
    """
    if quantization is None:
        return {}
    if quantization not in (*BITSANDBYTES, *PACKED):
        known = ", ".join((*BITSANDBYTES, *PACKED))
        raise ModelError(f"There is no quantization {quantization!r}.", f"Known: {known}.")
    if base.stored:
        raise ModelError(
            f"{base.folder}: its weights are {base.stored} already.",
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
        # From the stored precision, as the official quantiser: casting first would quantise other numbers.
        return {"quantization_config": PackedQuantizationConfig(PACKED[quantization]), "dtype": base.inventory.dtype}
    return {"quantization_config": _make_bitsandbytes_config(quantization, dtype, double)}


def prepare_quantized_cpu(model: nn.Module) -> None:
    """Keep to what bitsandbytes (0.50) computes rightly in 4 bits on the CPU.

    Its kernels there take it for granted that rows are whole blocks of 64, and give wrong numbers otherwise. And at the
    first evaluation it rearranges the weights for a faster kernel that has no backward pass: a model trained further
    would have no gradients below its last layer. That is turned off; decoding is then slower than with packed4.

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


def _require_bitsandbytes(quantization: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"quantization {quantization} needs bitsandbytes, which is not installed.",
            'Install it: pip install "glmtune[qlora]"; or use packed4 or packed8, which need nothing more.',
        )


def _make_bitsandbytes_config(quantization: str, dtype: torch.dtype, double: bool) -> Any:
    _require_bitsandbytes(quantization)
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=double,
    )
