"""Less GPU memory for a frozen embedding and head: rows fetched from the host, and a quantised matrix.

A 6B model's two matrices of 65,024 or 130,528 rows are 1 to 2 GB in 16 bits, a third of a base in 4 bits.

Shapes: V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from glmtune.errors import ModelError
from glmtune.models.checkpoints import require_bitsandbytes
from glmtune.models.loading import PACKED, prepare_quantized_cpu
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.utils.optional_packages import import_extra


class HostEmbedding(nn.Module):
    """A frozen embedding whose matrix stays in the machine's memory; looked-up rows go to the device of the ids.

    The matrix is no parameter: what moves, counts or shards parameters leaves it alone, and a model's device is that of
    its other weights.

    Args:
        embedding: whose matrix it takes over.
    """

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        weight_VH = embedding.weight.detach().to("cpu")
        # Page-locked where there is a GPU: rows are copied without another buffer.
        self._weight_VH = weight_VH.pin_memory() if torch.cuda.is_available() else weight_VH

    @property
    def weight(self) -> torch.Tensor:
        """(V, H), on the CPU."""
        return self._weight_VH

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) ids on any device to (..., H) on the same; waits for ids that are on a GPU."""
        return F.embedding(ids.to("cpu"), self._weight_VH).to(ids.device)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> HostEmbedding:
        """`model.to(...)`: another precision, but never another device."""
        dtype = fn(self._weight_VH.new_empty(0)).dtype
        self._weight_VH = self._weight_VH.to(dtype)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._weight_VH

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        value = state_dict.get(f"{prefix}weight")
        if value is None:
            missing_keys.append(f"{prefix}weight")
        else:
            self._weight_VH.copy_(value)


def move_embedding_to_host(model: Any) -> None:
    """Replace a loaded model's embedding by a `HostEmbedding`."""
    model.set_input_embeddings(HostEmbedding(model.get_input_embeddings()))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # else the allocator keeps what the matrix took


def quantize_head(model: Any, quantization: str, double_quantization: bool = True) -> float:
    """Replace a loaded model's head by a quantised one, in place.

    Args:
        model: on its device.
        quantization: `packed8` or `packed4` (a scale per row), or `nf4` of bitsandbytes (a scale per 64 numbers).
        double_quantization: with nf4, quantise the scales too.

    Returns:
        The relative error of the weights: the root of the mean squared error over that of the mean square.

    Raises:
        ModelError: bitsandbytes is missing, or the head is not a plain matrix.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or not head.weight.is_floating_point():
        raise ModelError("model.head_quantization: the head is quantised already.", "Leave the key out.")
    if quantization in PACKED:
        quantized: nn.Module = PackedLinear.from_linear(head, PACKED[quantization])
    else:
        quantized = _quantize_nf4(head, double_quantization)
    model.set_output_embeddings(quantized)
    if quantization == "nf4" and head.weight.device.type == "cpu":
        prepare_quantized_cpu(model)
    error = _measure_error(head.weight.detach(), quantized)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return error


def _quantize_nf4(head: nn.Linear, double_quantization: bool) -> nn.Module:
    require_bitsandbytes("nf4")
    bitsandbytes = import_extra("bitsandbytes")

    dtype, device = head.weight.dtype, head.weight.device
    with torch.device("meta"):
        layer = bitsandbytes.nn.Linear4bit(
            head.in_features,
            head.out_features,
            bias=False,
            compute_dtype=dtype,
            quant_type="nf4",
            compress_statistics=double_quantization,
        )
    layer.weight = bitsandbytes.nn.Params4bit(
        head.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=double_quantization
    )
    result: nn.Module = layer.to(device)  # quantises
    return result


def _measure_error(weight_VH: torch.Tensor, quantized: Any) -> float:
    if isinstance(quantized, PackedLinear):
        chunks = quantized.iterate_dequantized(torch.float32)
    else:
        functional = import_extra("bitsandbytes.functional")
        whole_VH = functional.dequantize_4bit(quantized.weight.data, quantized.weight.quant_state)
        chunks = ((slice(i, i + 4096), whole_VH[i : i + 4096]) for i in range(0, len(weight_VH), 4096))
    errors, squares = torch.zeros((), device=weight_VH.device), torch.zeros((), device=weight_VH.device)
    for rows, chunk in chunks:
        exact = weight_VH[rows].float()
        errors += (chunk.float() - exact).square().sum()
        squares += exact.square().sum()
    return float((errors / squares).sqrt()) if squares else 0.0
