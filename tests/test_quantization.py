"""The official quantised layout: its bytes, its numbers, its folders, and the fast paths through it."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import glmtune
from glmtune.errors import ModelError
from glmtune.models.auto import open_published_state
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.quantization import kernels
from glmtune.quantization.packed import dequantize, pack_int4, quantize, unpack_int4
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.quantization.quantizer import get_quantization, list_packed_layers, pack_model
from tiny import FAMILIES

LAYER_LINEARS = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


@pytest.fixture(scope="module")
def packed_golden(golden):
    return load_file(golden / "chatglm" / "quantized.safetensors")


def write_packed(source, folder, bits, dtype=torch.float32):
    """A copy of a published folder in the published quantised layout, made without the code that loads it."""
    shutil.copytree(source, folder)
    state = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    for name in [name for name in state if name.endswith(LAYER_LINEARS)]:
        state[name], state[f"{name}_scale"] = quantize(state[name], bits)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    set_keys(folder, quantization_bit=bits)
    return folder


def set_keys(folder, **keys):
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | keys), "utf-8")


def linear(outputs=128, inputs=96, bias=True, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(inputs, outputs, bias=bias)
    return layer.to(dtype)


# --- the layout ---


@pytest.mark.parametrize("bits", [4, 8])
def test_quantising_gives_the_official_bytes(bits, golden, packed_golden):
    weights = load_file(golden / "chatglm" / "model.safetensors")
    names = [name for name in packed_golden if name.startswith(f"int{bits}.") and name.endswith(".weight")]
    assert len(names) == 3
    for name in names:
        packed, scale = quantize(weights[name.removeprefix(f"int{bits}.")], bits)
        assert torch.equal(packed, packed_golden[name])
        assert torch.equal(scale, packed_golden[f"{name}_scale"])


def test_the_even_column_lies_in_the_high_nibble():
    assert pack_int4(torch.tensor([[1, -2]], dtype=torch.int8)).item() == 0x1E
    numbers = torch.randint(-8, 8, (6, 10), dtype=torch.int8)
    assert torch.equal(unpack_int4(pack_int4(numbers)), numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_are_within_half_a_step_and_never_wrap_around(bits, dtype):
    torch.manual_seed(0)
    weight = torch.randn(64, 256).to(dtype)
    weight[3] = 0
    weight[4] = 5e-6  # near fp16's smallest number, where a scale is off by half of itself
    weight[5, 0] = 300
    packed, scale = quantize(weight, bits)
    restored = dequantize(packed, scale, bits, torch.float32)
    regular = torch.arange(64) != 4
    step = scale.float()[regular, None]
    # fp16 rounds a quotient near 127 by up to 1/32.
    assert ((restored - weight.float())[regular].abs() <= step * 0.54).all()
    assert (restored[4] >= 0).all()
    assert (restored[3] == 0).all()
    assert scale.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)


def test_an_odd_number_of_columns_and_other_bits_are_refused():
    with pytest.raises(ModelError, match=r"33 columns cannot be int4[\s\S]*Use 8 bits"):
        quantize(torch.ones(2, 33), 4)
    assert quantize(torch.ones(2, 33), 8)[0].shape == (2, 33)
    with pytest.raises(ModelError, match="5 bits"):
        PackedLinear(8, 8, 5, bias=False)


# --- the layer ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_layer_computes_what_its_unpacked_weight_does(bits, dtype):
    # 96 outputs: no kernel takes that, so bf16 is unpacked as well.
    layer = PackedLinear.from_linear(linear(96), bits)
    inputs = torch.randn(2, 5, 96).to(dtype)
    wanted = F.linear(inputs.double(), layer.dequantize_weight(torch.float32).double(), layer.bias.double())
    output = layer(inputs)
    assert output.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(output.double(), wanted, atol=tolerance, rtol=tolerance)
    assert layer(inputs[0, 0]).shape == (96,)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(128, 96), (192, 512)])
def test_a_few_rows_take_the_kernel_and_get_the_same_numbers(bits, shape):
    if bits == 4 and kernels.find_int4_order() is None:
        pytest.skip("this processor's int4 kernel has a layout of its own")
    layer = PackedLinear.from_linear(linear(*shape), bits)
    inputs = torch.randn(140, shape[1], dtype=torch.bfloat16)
    exact = F.linear(inputs.double(), layer.dequantize_weight(torch.float32).double(), layer.bias.double())
    fast = layer(inputs[:3])
    assert layer._in_kernel_order == (bits == 4)
    # The product is rounded to bf16 before the scale and after it, and after the bias: three times 2^-9.
    torch.testing.assert_close(fast.double(), exact[:3], rtol=2e-2, atol=2e-2)
    slow = layer(inputs)  # too many rows for the kernel, on weights in the kernel's order
    torch.testing.assert_close(slow.double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("leave", ["state_dict", "to", "deepcopy"])
def test_weights_in_the_kernels_order_are_saved_and_moved_as_the_official_ones(leave):
    layer = PackedLinear.from_linear(linear(), 4)
    official = layer.weight.clone()
    row = torch.randn(1, 96, dtype=torch.bfloat16)
    first = layer(row)
    if kernels.find_int4_order() is not None:
        assert not torch.equal(layer.weight, official)
    if leave == "deepcopy":
        layer = copy.deepcopy(layer)
    elif leave == "to":
        layer.to(torch.float32)
    assert torch.equal(layer.state_dict()["weight"], official)
    assert torch.equal(layer(row), first)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_gradient_of_the_input_is_that_of_the_unpacked_matrix(bits):
    layer = PackedLinear.from_linear(linear(), bits)
    inputs = torch.randn(3, 7, 96, requires_grad=True)
    twin = inputs.detach().clone().requires_grad_()
    (layer(inputs) ** 2).sum().backward()
    (F.linear(twin, layer.dequantize_weight(torch.float32), layer.bias) ** 2).sum().backward()
    torch.testing.assert_close(inputs.grad, twin.grad, atol=1e-5, rtol=1e-5)
    assert layer.weight.grad is None


def test_training_after_decoding_uses_the_same_weights():
    layer = PackedLinear.from_linear(linear(), 4)
    before = torch.randn(3, 96, dtype=torch.bfloat16, requires_grad=True)
    layer(before).sum().backward()
    with torch.no_grad():
        layer(before)
    after = before.detach().clone().requires_grad_()
    layer(after).sum().backward()
    assert torch.equal(before.grad, after.grad)


def test_nothing_unpacked_is_kept_for_the_backward_pass():
    layer = PackedLinear.from_linear(linear(256, 256), 8)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(2, 256, requires_grad=True))
    assert max(kept, default=0) < 256 * 256


def test_autocast_decides_the_precision_and_scales_keep_theirs():
    layer = PackedLinear.from_linear(linear(), 8)
    scale = layer.weight_scale.clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 96)).dtype == torch.bfloat16
    layer.to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.weight_scale, scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_fake_tensors_take_no_kernel_and_leave_nothing_behind(bits):
    layer = PackedLinear.from_linear(linear(128, 160), bits)  # a shape of this test alone
    for kept in (kernels.find_int4_order, kernels._make_ones, kernels._make_unit_groups):
        kept.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        fake = copy.deepcopy(layer)
        fake.weight = torch.nn.Parameter(mode.from_tensor(layer.weight.data), requires_grad=False)
        fake.weight_scale = torch.nn.Parameter(mode.from_tensor(layer.weight_scale.data), requires_grad=False)
        assert not fake.prepack(torch.float32)
        assert fake(torch.empty(2, 160, dtype=torch.bfloat16)).shape == (2, 128)
    row = torch.randn(2, 160, dtype=torch.bfloat16)
    exact = F.linear(row.double(), layer.dequantize_weight(torch.float32).double(), layer.bias.double())
    torch.testing.assert_close(layer(row).double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_many_rows_of_an_arranged_layer_are_right_and_leave_it_arranged(dtype, monkeypatch):
    if not kernels.is_int8_exact():
        pytest.skip("this processor's integer products overflow")
    monkeypatch.setattr(kernels, "LARGE", 1)
    layer = PackedLinear.from_linear(linear(), 8)
    official = layer.weight.clone()
    assert layer.prepack(dtype)
    largest, multiply = [], kernels._multiply_in_parts
    monkeypatch.setattr(
        kernels, "_multiply_in_parts", lambda some, *rest: largest.append(len(some)) or multiply(some, *rest)
    )
    for rows in (0, 1, 128, 300, 700):
        inputs = torch.randn(rows, 96).to(dtype)
        exact = F.linear(inputs.double(), layer.dequantize_weight(torch.float32).double(), layer.bias.double())
        tolerance = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(layer(inputs).double(), exact, atol=tolerance, rtol=tolerance)
        assert layer._prepacked is not None
    assert max(largest) <= 128
    layer.unprepack()
    assert torch.equal(layer.weight, official)


# --- whole models ---


@pytest.mark.parametrize("bits", [4, 8])
def test_a_published_quantised_chatglm_has_the_official_logits(bits, golden, packed_golden, tmp_path):
    ids = load_file(golden / "chatglm" / "expected.safetensors")["single_ids"]
    folder = write_packed(golden / "chatglm", tmp_path / "packed", bits)
    base = inspect_checkpoint(folder)
    assert base.packed_bits == bits
    loaded, packed = load_base(base), pack_model(glmtune.load_model(golden / "chatglm"), bits)
    for model in (loaded, packed):
        assert get_quantization(model) == f"packed{bits}"
        assert len(list_packed_layers(model)) == 3 * 4
        logits = model(input_ids=ids).logits
        torch.testing.assert_close(logits, packed_golden[f"int{bits}.logits"], atol=1e-4, rtol=0)
    assert not torch.allclose(glmtune.load_model(golden / "chatglm")(input_ids=ids).logits, logits, atol=1e-3)


def _dequantised(model):
    """The same model with plain linears that hold the unpacked weights."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, PackedLinear)]:
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data, plain.bias = layer.dequantize_weight(torch.float32), layer.bias
        model.set_submodule(name, plain)
    return model


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_folders_of_every_generation_load_and_come_back_bit_equal(family, bits, tiny, tmp_path):
    folder = write_packed(tiny(family), tmp_path / "packed", bits, torch.float16)
    base = inspect_checkpoint(folder)
    model = load_base(base, dtype="fp32")
    assert get_quantization(model) == f"packed{bits}"
    assert model.config.quantization_bit == bits
    assert not getattr(model.config, "quantization_config", None)
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert {layer.weight_scale.dtype for layer in list_packed_layers(model)} == {torch.float16}
    assert not any(layer.weight_scale.requires_grad for layer in list_packed_layers(model))

    published = load_file(folder / "model.safetensors")
    state = open_published_state(model)
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], value.to(state[name].dtype)) for name, value in published.items())
    assert all(state[n].dtype == v.dtype for n, v in published.items() if "_scale" in n or v.dtype == torch.int8)

    ids = torch.arange(5, 17)[None]
    if family == "chatglm":
        ids[0, 8:10] = torch.tensor([model.config.gmask_token_id, model.config.bos_token_id])
    packed_logits = model(input_ids=ids).logits
    torch.testing.assert_close(_dequantised(model)(input_ids=ids).logits, packed_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_a_packed_model_is_saved_and_loaded_again(family, tiny, tmp_path):
    folder = write_packed(tiny(family), tmp_path / "packed", 4, torch.float16)
    model = glmtune.load_model(folder)
    model.save_pretrained(tmp_path / "again")
    glmtune.load_tokenizer(folder).save_pretrained(tmp_path / "again")
    base = inspect_checkpoint(tmp_path / "again")
    assert base.fingerprint == inspect_checkpoint(folder).fingerprint
    again = load_base(base)
    assert get_quantization(again) == "packed4"
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_transformers_opens_packed_folders_too(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = write_packed(tiny("chatglm2"), tmp_path / "packed", 8, torch.float16)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in glmtune.load_model(folder).state_dict().items())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_packing_while_loading_equals_the_packed_folder(family, bits, tiny, tmp_path):
    packed = glmtune.load_model(write_packed(tiny(family), tmp_path / "packed", bits))
    model = load_base(inspect_checkpoint(tiny(family)), quantization=f"packed{bits}")
    assert get_quantization(model) == f"packed{bits}"
    assert model.state_dict().keys() == packed.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in packed.state_dict().items())
    # The stored precision is what is packed, whatever is computed in.
    half = load_base(inspect_checkpoint(tiny(family)), quantization=f"packed{bits}", dtype="bf16")
    assert half.dtype == torch.bfloat16
    scales = [name for name in half.state_dict() if name.endswith("weight_scale")]
    assert all(torch.equal(half.state_dict()[name], packed.state_dict()[name]) for name in scales)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_generates_in_bf16(family, tiny):
    model = load_base(inspect_checkpoint(tiny(family)), quantization="packed4", dtype="bf16")
    ids = torch.arange(5, 13)[None]
    if family == "chatglm":
        ids = torch.cat((ids, torch.tensor([[model.config.gmask_token_id, model.config.bos_token_id]])), 1)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, eos_token_id=None)
    assert out.shape[1] == ids.shape[1] + 4


# --- what is refused ---


def _refusal(folder, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_base(inspect_checkpoint(folder), **options)
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_config_and_weights_must_agree_about_packing(family, tiny, tmp_path):
    full = shutil.copytree(tiny(family), tmp_path / "full")
    set_keys(full, quantization_bit=4)
    assert "quantization_bit 4, but no weight there is packed" in _refusal(full)
    set_keys(full, quantization_bit=0)
    assert get_quantization(glmtune.load_model(full)) is None
    packed = write_packed(tiny(family), tmp_path / "packed", 4)
    set_keys(packed, quantization_bit=None)
    assert "config.json has no quantization_bit" in _refusal(packed)
    set_keys(packed, quantization_bit=8)
    assert "wrong shape" in _refusal(packed)
    set_keys(packed, quantization_bit=3)
    assert "quantization_bit is 3" in _refusal(packed)


def test_packed_embeddings_and_other_number_formats_are_refused(tiny, tmp_path):
    folder = write_packed(tiny("chatglm"), tmp_path / "packed", 4)
    set_keys(folder, quantization_embeddings=True)
    assert "embeddings are packed" in _refusal(folder)
    set_keys(folder, quantization_embeddings=False)
    assert get_quantization(glmtune.load_model(folder)) == "packed4"
    state = load_file(folder / "model.safetensors")
    name = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    save_file(state | {name: state[name].view(torch.uint8)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"{name}_scale belongs to a packed weight, but the weight is uint8" in _refusal(folder)
    name = "transformer.word_embeddings.weight"
    embeddings = dict(zip((name, f"{name}_scale"), quantize(state[name], 4), strict=True))
    save_file(state | embeddings, folder / "model.safetensors", metadata={"format": "pt"})
    assert f"the embeddings are packed too ({name}_scale)" in _refusal(folder)


def test_a_packed_base_takes_no_other_quantisation(tiny, tmp_path):
    folder = write_packed(tiny("glm4"), tmp_path / "packed", 4)
    for quantization in ("nf4", "int8", "packed8"):
        assert f"int4 already and cannot become {quantization}" in _refusal(folder, quantization=quantization)
    assert get_quantization(load_base(inspect_checkpoint(folder), quantization="packed4")) == "packed4"
    assert "no quantization 'gptq'" in _refusal(tiny("glm4"), quantization="gptq")


def test_bitsandbytes_that_is_missing_is_named(tiny, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    assert '[qlora]"' in _refusal(tiny("chatglm3"), quantization="nf4")


@pytest.mark.parametrize("quantization", [None, "packed8", "packed4"])
@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named_with_its_file(family, quantization, value, tiny, tmp_path):
    folder = shutil.copytree(tiny(family), tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.1" in name and name.endswith("query_key_value.weight"))
    state[name][7, 3] = value
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    text = _refusal(folder, quantization=quantization)
    assert f"model.safetensors: {name} holds a NaN or an infinity" in text


def test_weights_too_large_for_fp16_are_told_from_broken_ones(tiny, tmp_path):
    folder = shutil.copytree(tiny("chatglm3"), tmp_path / "large")
    state = load_file(folder / "model.safetensors")
    state["transformer.output_layer.weight"][0, 0] = 1e6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "its float32 does not fit float16" in _refusal(folder, dtype="fp16")
    glmtune.load_model(folder, dtype="bf16")
