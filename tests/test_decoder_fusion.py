"""GLM's layers in fewer operations: the numbers of transformers' own, and weights that come back as they were."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache
from transformers.models.glm import modeling_glm
from transformers.models.glm.modeling_glm import GlmForCausalLM

import glmtune
from glmtune.generation import cpu_prepack
from glmtune.generation.cpu_prepack import PrepackedPart, prepack_weights, prepacked, restore_weights
from glmtune.models import glm_layers
from glmtune.models.glm_layers import compute_hidden_states
from tiny import make_tiny

IDS = torch.tensor([[5, 9, 70, 33, 8, 120], [7, 7, 90, 14, 60, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny("chatglm3", tmp_path_factory.mktemp("wide") / "model", hidden=64)


def load(folder, **options):
    return glmtune.load_model(folder, **{"dtype": "fp32", "device": "cpu", **options})


def run(decoder, mask, forward):
    """Hidden states of a prompt of five tokens and of a sixth one."""
    cache, positions, hidden = DynamicCache(), torch.arange(6).expand(2, -1), []
    for new in (slice(0, 5), slice(5, 6)):
        width = new.stop
        hidden.append(forward(decoder, IDS[:, new], mask[:, :, new, :width], positions[:, new], cache))
    return torch.cat(hidden, dim=1)


def forward_plain(decoder, ids, mask, positions, cache):
    return decoder(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers_layers(folder, dtype):
    model = load(folder, dtype=dtype)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    got = run(model.model, mask, compute_hidden_states)
    with torch.device("cpu"):
        plain = GlmForCausalLM(model.config).to(model.dtype).eval()
    plain.load_state_dict(model.state_dict())
    assert type(plain.model.layers[0].self_attn) is modeling_glm.GlmAttention
    expected = run(plain.model, mask, forward_plain)
    assert torch.equal(got, expected)


@torch.no_grad()
def test_a_layer_with_a_hook_is_called(folder):
    model = load(folder)
    mask = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    expected, calls = run(model.model, mask, compute_hidden_states), []
    model.model.layers[1].register_forward_hook(lambda *call: calls.append(call))
    assert torch.equal(run(model.model, mask, compute_hidden_states), expected)
    assert len(calls) == 2


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(("dtype", "smallest"), [("fp32", 0), ("fp32", 1 << 17), ("bf16", 0)])
@torch.no_grad()
def test_joint_projections_compute_the_same_and_come_back(folder, dtype, smallest, rows, monkeypatch):
    monkeypatch.setattr(cpu_prepack, "_MIN_ELEMENTS", smallest)
    model = load(folder, dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = model(IDS).logits
    changed = prepack_weights(model, rows)
    attention = model.model.layers[0].self_attn
    assert isinstance(attention.k_proj, PrepackedPart)
    tolerance = 1e-5 if dtype == "fp32" else 0.1
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=tolerance)
    hidden = torch.randn(2, 3, 64).to(model.dtype)
    parts = torch.cat([layer(hidden) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)], dim=-1)
    torch.testing.assert_close(attention.q_proj.joint(hidden), parts, rtol=0, atol=tolerance)
    during = model.state_dict()
    assert all(torch.equal(during[name], tensor) for name, tensor in before.items())
    assert during.keys() == before.keys()
    restore_weights(model, changed)
    assert type(attention.k_proj) is torch.nn.Linear
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_an_adapter_on_a_projection_keeps_it_apart(folder):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(folder), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    expected = model(input_ids=IDS).logits
    with prepacked(model, rows=8):
        attention = model.get_base_model().model.layers[0].self_attn
        assert not any(isinstance(module, PrepackedPart) for module in attention.modules())
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(model(input_ids=IDS).logits, expected)


def test_gradients_take_transformers_way(folder):
    model = load(folder)
    model(IDS).logits.sum().backward()
    assert model.model.layers[0].mlp.gate_up_proj.weight.grad is not None
    assert isinstance(model.model.layers[0].mlp, glm_layers.FusedGlmMLP)
