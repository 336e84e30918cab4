"""NF4 and int8 through bitsandbytes, quantised while the published folders are read."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.errors import ModelError
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.quantization.quantizer import get_quantization
from tiny import FAMILIES, make_tiny

bitsandbytes = pytest.importorskip("bitsandbytes", reason='pip install "glmtune[qlora]"')

STORED = {"nf4": torch.uint8, "int8": torch.int8}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Like `tiny`, of the least width that bitsandbytes computes on the CPU."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp("wide") / family, hidden=128)
        return made[family]

    return get


def _rows(model, family):
    ids = torch.arange(5, 21)[None]
    if family == "chatglm":
        ids[0, 10:12] = torch.tensor([model.config.gmask_token_id, model.config.bos_token_id])
    return ids


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=["nf4", "int8"])
def quantization(request):
    return request.param


@pytest.fixture
def model(family, quantization, wide):
    return load_base(inspect_checkpoint(wide(family)), quantization=quantization, dtype="bf16", device="cpu")


def _quantised(model):
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def test_the_layers_are_quantised_and_nothing_else(model, family, quantization, wide):
    assert get_quantization(model) == quantization
    full = glmtune.load_model(wide(family))
    linears = {name for name, module in full.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(_quantised(model)) == {name for name in linears if "lm_head" not in name}
    inside = {f"{name}.weight" for name in _quantised(model)}
    for name, value in model.named_parameters():
        assert value.dtype == (STORED[quantization] if name in inside else torch.bfloat16), name


def test_every_part_of_a_fused_weight_stands_for_its_own_rows(model, family, quantization, wide):
    """A swapped or shifted part would be another matrix altogether; quantising moves a weight by its step."""
    full = dict(glmtune.load_model(wide(family)).named_parameters())
    for name, module in _quantised(model).items():
        identity = torch.eye(module.in_features, dtype=torch.bfloat16)
        bias = 0 if module.bias is None else module.bias.float()
        weight = (module(identity).float() - bias).T.detach()
        wanted = full[f"{name}.weight"]
        error = (weight - wanted).norm() / wanted.norm()
        assert error < (0.15 if quantization == "nf4" else 0.02), f"{name}: {error}"


def test_logits_stay_near_the_full_ones(model, family, quantization, wide):
    ids = _rows(model, family)
    full = glmtune.load_model(wide(family))(input_ids=ids).logits
    error = (model(input_ids=ids).logits.float() - full).norm() / full.norm()
    # Two layers of random weights, each 9 % off (the test above); other matrices would give 1.4.
    assert error < (0.55 if quantization == "nf4" else 0.1)


def test_one_step_of_lora_trains_through_it(model, family):
    from peft import LoraConfig, get_peft_model

    targets = ["query_key_value"] if family == "chatglm" else ["q_proj", "v_proj"]
    peft_model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    ids = _rows(model, family)
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    losses = []
    for _ in range(4):
        loss = peft_model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert get_quantization(peft_model) is not None


def test_scales_are_quantised_only_when_asked(wide):
    for double in (True, False):
        model = load_base(inspect_checkpoint(wide("chatglm3")), quantization="nf4", double_quantization=double)
        states = [module.weight.quant_state.nested for module in _quantised(model).values()]
        assert states == [double] * len(states)


def test_sizes_that_bitsandbytes_gets_wrong_on_the_cpu_are_refused(tiny):
    with pytest.raises(ModelError, match=r"q_proj has 32 inputs[\s\S]*packed4 or a GPU"):
        load_base(inspect_checkpoint(tiny("chatglm3")), quantization="nf4", device="cpu")
    assert (
        get_quantization(load_base(inspect_checkpoint(tiny("chatglm3")), quantization="int8", device="cpu")) == "int8"
    )


def test_gradients_are_the_same_after_an_evaluation(family, wide):
    """bitsandbytes, left alone, rearranges 4-bit weights when it first evaluates, into a form without a backward."""
    model = load_base(inspect_checkpoint(wide(family)), quantization="nf4", dtype="bf16", device="cpu")
    model.requires_grad_(False)
    ids = _rows(model, family)
    embeddings = model.get_input_embeddings().weight.requires_grad_()

    def gradient():
        embeddings.grad = None
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return embeddings.grad

    before = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert before.abs().sum() > 0
    torch.testing.assert_close(gradient(), before)


def test_a_weight_that_is_no_number_is_named_before_it_vanishes_in_four_bits(family, quantization, wide, tmp_path):
    folder = shutil.copytree(wide(family), tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if "layers.1" in name and name.endswith("dense_4h_to_h.weight"))
    state[name][7, 3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"model.safetensors: {name} holds a NaN"):
        load_base(inspect_checkpoint(folder), quantization=quantization)
