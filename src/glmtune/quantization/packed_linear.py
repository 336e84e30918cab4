"""A linear layer whose weight stays packed.

Shapes: M rows of input (all dimensions but the last), O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from glmtune.quantization import kernels
from glmtune.quantization.device_kernels import dequantize_on_device, is_product_fused, multiply_packed
from glmtune.quantization.packed import count_packed_columns, dequantize, dequantize_into, quantize, scale_rows

# Numbers unpacked at a time: what fits a CPU's cache, and on a GPU a thousandth of its memory (in 16 bits), within
# what keeps it busy.
_CPU_CHUNK = 1 << 20
_LEAST_DEVICE_CHUNK, _MOST_DEVICE_CHUNK = 1 << 22, 1 << 25


def pick_device_chunk(memory: int) -> int:
    """Numbers to unpack at a time on a GPU.

    Args:
        memory: bytes of the GPU.
    """
    return min(max(memory // 1024 // 2, _LEAST_DEVICE_CHUNK), _MOST_DEVICE_CHUNK)


@cache
def _read_device_chunk(device: torch.device) -> int:
    if device.type != "cuda":
        return _MOST_DEVICE_CHUNK
    _, total = torch.cuda.mem_get_info(device)
    return pick_device_chunk(total)


class PackedLinear(nn.Module):
    """`x @ (numbers * scale).T + bias` with int8 or int4 numbers in the official layout; the weight is frozen.

    In bf16 on the CPU a few rows at a time are multiplied by torch's weight-only kernels, and by a faster one in int8
    after `prepack`; on a GPU by a Triton kernel where one was measured to be faster (`device_kernels`). Everywhere
    else, and for many rows, the weight is unpacked a chunk of rows at a time and multiplied. A compiled step is given
    plain operations, to fuse for one row.
    Gradients pass to the input; no unpacked weight is stored for them.

    Args:
        in_features: I.
        out_features: O.
        bits: 4 or 8.
        bias: whether there is one.
        dtype: of scales and bias until weights are loaded.

    Raises:
        ModelError: 4 bits and an odd number of inputs.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, bias: bool, dtype: torch.dtype | None = None):
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        columns = count_packed_columns(in_features, bits)
        # Parameters rather than buffers: transformers splits published weights by the sizes of parameters.
        self.weight = nn.Parameter(torch.empty(out_features, columns, dtype=torch.int8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype)) if bias else None
        self.unpack_chunk: int | None = None  # numbers unpacked at a time; None: by device
        self.traces_gpu = False  # unpacked on the CPU as on a GPU, for the memory plan
        self._in_kernel_order = False
        self._prepacked: torch.Tensor | None = None  # the numbers, while `weight` is empty
        self._prepacked_scale: torch.Tensor | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, bits: int) -> PackedLinear:
        """The quantised form of a layer; its bias is shared.

        Raises:
            ModelError: 4 bits and an odd number of inputs.
        """
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bits, bias=False)
        with torch.no_grad():
            packed, scale = quantize(linear.weight, bits)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
        layer.bias = linear.bias
        return layer.train(linear.training)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., I) in fp32, bf16 or fp16 to (..., O) in the same precision (under autocast: in autocast's)."""
        kind = inputs.device.type
        if torch.is_autocast_enabled(kind):
            inputs = inputs.to(torch.get_autocast_dtype(kind))
        inputs_MI = inputs.reshape(-1, self.in_features)
        plain = self._prepacked is None and not self._in_kernel_order
        if torch.compiler.is_compiling() and plain and not torch.is_grad_enabled():
            outputs_MO = self._multiply_for_compilers(inputs_MI)
        elif self._prepacked is not None and kernels.is_prepacked_faster(inputs_MI):
            assert self._prepacked_scale is not None
            outputs_MO = kernels.multiply_prepacked_int8(inputs_MI, self._prepacked, self._prepacked_scale)
            outputs_MO = outputs_MO.to(inputs_MI.dtype)
        elif self._prepacked is None and kernels.is_kernel_available(inputs_MI, self.out_features, self.bits):
            outputs_MO = self._multiply_packed(inputs_MI)
        elif plain and is_product_fused(inputs_MI, self.bits):
            outputs_MO = multiply_packed(inputs_MI, self.weight.data, self.weight_scale.data, self.bits)
        else:
            outputs_MO = _UnpackAndMultiply.apply(inputs_MI, self)
        if self.bias is not None:
            outputs_MO = outputs_MO + self.bias.to(outputs_MO.dtype)
        return outputs_MO.view(*inputs.shape[:-1], self.out_features)

    def prepack(self, dtype: torch.dtype) -> bool:
        """Bring int8 numbers on the CPU into the order of a faster kernel.

        Saving, loading and moving bring the official order back; so does `unprepack`.

        Args:
            dtype: of the inputs.

        Returns:
            Whether the numbers were reordered.
        """
        if dtype == torch.bfloat16 and self.in_features * self.out_features < kernels.LARGE:
            return False  # torch's kernel for bf16 has less to prepare
        packed = (self.weight, self.weight_scale)
        usable = self.bits == 8 and all(type(each) is nn.Parameter and each.device.type == "cpu" for each in packed)
        if self._prepacked is not None or not usable or not kernels.is_int8_exact():
            return False
        # Allocate first: if memory runs out here, the layer is unchanged.
        scale, prepacked = self.weight_scale.detach().float(), kernels.prepack_int8(self.weight.data)
        self._prepacked, self._prepacked_scale = prepacked, scale
        self.weight.data = self.weight.data.new_empty(0, self.in_features)
        return True

    def unprepack(self) -> None:
        """Undo `prepack`."""
        if self._prepacked is not None:
            self.weight.data = kernels.unpack_prepacked_int8(self._prepacked)
            self._prepacked = self._prepacked_scale = None

    def dequantize_weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The complete weight, (O, I)."""
        return torch.cat([rows for _, rows in self.iterate_dequantized(dtype)])

    def iterate_dequantized(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """Some rows of the weight at a time: where they are, and (rows, I) in `dtype`."""
        weight = self.weight.data if self._prepacked is None else kernels.unpack_prepacked_int8(self._prepacked)
        for rows in self._iterate_chunks():
            packed, scale = weight[rows], self.weight_scale[rows]
            if self._in_kernel_order:
                yield rows, scale_rows(kernels.unpack_kernel_order(packed), scale, dtype)
            elif self.traces_gpu:
                yield rows, dequantize_into(packed, scale, self.bits, dtype)
            else:
                yield rows, dequantize_on_device(packed, scale, self.bits, dtype)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits={self.bits}, bias={self.bias is not None}"

    def _multiply_packed(self, inputs_MI: torch.Tensor) -> torch.Tensor:
        if self.bits == 8:
            numbers_MO = kernels.multiply_int8(inputs_MI.contiguous(), self.weight.data)
        else:
            if not self._in_kernel_order:
                self._reorder_rows(kernels.to_kernel_order)
                self._in_kernel_order = True
            numbers_MO = kernels.multiply_int4(inputs_MI.contiguous(), self.weight.data)
        return (numbers_MO * self.weight_scale.float()).to(inputs_MI.dtype)

    def _multiply_for_compilers(self, inputs_MI: torch.Tensor) -> torch.Tensor:
        """In operations that a compiler makes one kernel of: for one row it reads the packed numbers and no more."""
        if len(inputs_MI) > 1:
            return F.linear(inputs_MI, dequantize(self.weight, self.weight_scale, self.bits, inputs_MI.dtype))
        exact_1I = inputs_MI.float()
        if self.bits == 8:
            sums_O = (exact_1I * self.weight).sum(-1)
        else:  # even columns are in the high nibble
            high_OJ, low_OJ = self.weight >> 4, (self.weight << 4) >> 4
            sums_O = (exact_1I[:, 0::2] * high_OJ + exact_1I[:, 1::2] * low_OJ).sum(-1)
        return (sums_O * self.weight_scale.float())[None].to(inputs_MI.dtype)

    def _to_official_order(self) -> None:
        self.unprepack()
        if self._in_kernel_order:
            self._reorder_rows(kernels.from_kernel_order)
            self._in_kernel_order = False

    def _reorder_rows(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Reorder in place, by complete blocks, without a second copy. The next decoded token changes it back."""
        for rows in self._iterate_chunks():
            self.weight.data[rows] = change(self.weight.data[rows])

    def _iterate_chunks(self) -> Iterator[slice]:
        device = self.weight.device
        most = self.unpack_chunk or (_CPU_CHUNK if device.type == "cpu" else _read_device_chunk(device))
        # Whole blocks of the int4 kernel.
        step = max(most // self.in_features // kernels.ROWS, 1) * kernels.ROWS
        for start in range(0, self.out_features, step):
            yield slice(start, min(start + step, self.out_features))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._to_official_order()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._to_official_order()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        """`model.to(...)`: scales move too but keep their precision, for coarser ones are other weights."""
        self._to_official_order()
        exact = self.weight_scale.data
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != exact.dtype:
            self.weight_scale.data = exact.to(self.weight_scale.device)
        return self


class _UnpackAndMultiply(torch.autograd.Function):
    """Unpacks the weight in the forward pass and again in the backward pass, instead of keeping it in between."""

    @staticmethod
    def forward(ctx: Any, inputs_MI: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        outputs_MO = inputs_MI.new_empty(inputs_MI.shape[0], layer.out_features)
        for rows, weight in layer.iterate_dequantized(inputs_MI.dtype):
            outputs_MO[:, rows] = F.linear(inputs_MI, weight)
            del weight  # else there are two chunks while the next is unpacked
        return outputs_MO

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient_MO,) = gradients
        # Summed over chunks in fp32, as one product would.
        total_MI = gradient_MO.new_zeros(gradient_MO.shape[0], ctx.layer.in_features, dtype=torch.float32)
        for rows, weight in ctx.layer.iterate_dequantized(gradient_MO.dtype):
            total_MI += gradient_MO[:, rows] @ weight
            del weight
        return total_MI.to(gradient_MO.dtype), None
