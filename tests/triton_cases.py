"""The Triton kernels of packed weights next to torch's operations, and how they are chosen.

Run by test_triton_kernels.py in a process of its own: Triton's interpreter has to be set before Triton is imported.
"""

from __future__ import annotations

import pytest
import torch

from glmtune.quantization import device_kernels, triton_kernels
from glmtune.quantization.device_kernels import pick_path
from glmtune.quantization.packed import count_packed_columns, dequantize, unpack_int4

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(16, 64), (33, 514)]  # whole blocks; and less than a block of outputs and bytes


def _make_packed(outputs, inputs, bits, scale_dtype=torch.float32):
    generator = torch.Generator().manual_seed(outputs)
    shape = outputs, count_packed_columns(inputs, bits)
    packed_OJ = torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator)
    return packed_OJ, (torch.rand(outputs, generator=generator) * 0.01).to(scale_dtype)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
def test_unpacked_weights_have_the_same_bits(bits, dtype, scale_dtype):
    for outputs, inputs in SHAPES:
        packed_OJ, scale_O = _make_packed(outputs, inputs, bits, scale_dtype)
        weight_OI = triton_kernels.dequantize_packed(packed_OJ, scale_O, bits, dtype)
        expected_OI = dequantize(packed_OJ, scale_O, bits, dtype)
        if dtype == torch.bfloat16:
            # The interpreter cuts fp32 off where hardware rounds: at most one unit in the last place.
            distance = weight_OI.view(torch.int16).int() - expected_OI.view(torch.int16).int()
            assert distance.abs().max() <= 1
        else:
            assert torch.equal(weight_OI, expected_OI)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_products_are_within_the_rounding_of_their_sums(bits, dtype, rows):
    for outputs, inputs in SHAPES:
        packed_OJ, scale_O = _make_packed(outputs, inputs, bits)
        inputs_MI = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)
        numbers_OI = unpack_int4(packed_OJ) if bits == 4 else packed_OJ
        exact_OI = numbers_OI.double() * scale_O.double()[:, None]
        exact_MO = inputs_MI.double() @ exact_OI.T
        # |error| <= the sum's own rounding in fp32 (2^-24 per addition) and one rounding to `dtype`.
        sum_error_MO = inputs * 2**-24 * (inputs_MI.double().abs() @ exact_OI.abs().T)
        allowed_MO = sum_error_MO + torch.finfo(dtype).eps * (exact_MO.abs() + sum_error_MO)
        product_MO = triton_kernels.multiply_packed(inputs_MI, packed_OJ, scale_O, bits)
        assert product_MO.dtype == dtype
        assert (product_MO.double() - exact_MO).abs().le(allowed_MO).all()


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    """The interpreter takes seconds for a matrix of a 6B model."""
    monkeypatch.setattr(device_kernels, "_OUTPUTS", 32)
    monkeypatch.setattr(device_kernels, "_INPUTS", 64)


def test_kernels_that_are_faster_are_chosen(monkeypatch):
    times = iter([3.0, 1.0, 1.0, 2.0])  # product: plain, Triton; unpacking: plain, Triton
    monkeypatch.setattr(device_kernels, "_time_best", lambda *_: next(times))
    path = pick_path.__wrapped__(torch.device("cpu"), 4, torch.float16)
    assert (path.multiply, path.dequantize) == (True, False)
    assert "3.0 x in a product, 0.5 x in unpacking" in path.reason


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_kernels_that_do_not_work_are_not_chosen(monkeypatch, fault):
    def dequantize_packed(packed_OJ, scale_O, bits, dtype):
        if fault == "raises":
            raise RuntimeError("no kernel image")
        return dequantize(packed_OJ, scale_O * 2, bits, dtype)

    warnings = []
    monkeypatch.setattr(triton_kernels, "dequantize_packed", dequantize_packed)
    monkeypatch.setattr(device_kernels, "print_warning", warnings.append)
    path = pick_path.__wrapped__(torch.device("cpu"), 8, torch.float32)
    assert (path.multiply, path.dequantize) == (False, False)
    assert ("other numbers" if fault == "wrong" else "no kernel image") in path.reason
    assert len(warnings) == 1
    assert warnings[0].startswith("packed8: ")
