"""The fused layers of ChatGLM2, ChatGLM3 and GLM-4 compute what transformers' layers do."""

from __future__ import annotations

import pytest
import torch
from transformers import GlmForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.models.glm import modeling_glm

import glmtune
from conftest import REPOSITORY
from glmtune.models.attention_kernels import attend_sdpa
from glmtune.models.glm_layers import _FUSED, FusedGlmAttention, FusedGlmRMSNorm

PLAIN = {fused: plain for plain, fused in _FUSED.items()}


@pytest.fixture
def models():
    """One model in the form it is loaded in, and the same with transformers' own layers."""

    def make(dtype):
        folder = REPOSITORY / "tests" / "golden" / "chatglm2"
        fused, plain = (glmtune.load_model(folder, dtype=dtype, device="cpu").eval() for _ in range(2))
        for module in plain.modules():
            module.__class__ = PLAIN.get(type(module), type(module))
        return fused, plain

    return make


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_logits_of_a_prompt_and_of_later_tokens_are_equal(dtype, models):
    ids = torch.randint(20, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = []
    for model in models(dtype):
        cache = DynamicCache()
        with torch.no_grad():
            first = model(input_ids=ids[:, :6], past_key_values=cache, use_cache=True).logits
            later = [model(input_ids=ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in (6, 7)]
        logits.append(torch.cat([first, *later], dim=1))
    assert torch.equal(*logits)


def test_under_autocast_and_with_scaled_positions(models):
    ids = torch.arange(20, 29)[None]
    logits = []
    for model in models("fp32"):
        model.model.rotary_emb.attention_scaling = 1.1
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits.append(model(input_ids=ids).logits)
    assert torch.equal(*logits)


def test_gradients_are_those_of_transformers(models):
    ids = torch.arange(20, 29)[None]
    gradients = []
    for model in models("fp32"):
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.equal(*gradients)


def test_the_class_of_the_model_and_its_weights_stay(models):
    fused, plain = models("fp32")
    assert type(fused) is GlmForCausalLM
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert sum(isinstance(module, FusedGlmAttention) for module in fused.modules()) == 3


def test_one_kernel_rounds_once(monkeypatch):
    """Against the norm in fp64: as near as a single rounding comes, in 16 bits."""
    torch.manual_seed(0)
    norm = FusedGlmRMSNorm(64, eps=1e-5).to(torch.bfloat16)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(50, 64).to(torch.bfloat16)
    exact = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight.double()
    # As on a GPU; a CPU takes transformers' forward pass.
    device = type("Device", (), {"type": "cuda"})()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: torch.no_grad())
    gpu_x = x.as_subclass(type("OnGpu", (torch.Tensor,), {"device": device}))
    with torch.no_grad():
        result = norm(gpu_x).as_subclass(torch.Tensor)
    half_ulp = 0.5 * torch.finfo(torch.bfloat16).eps * exact.abs()
    assert ((result.double() - exact).abs() <= 1.01 * half_ulp.clamp(min=1e-6)).all()


def test_their_attention_is_that_of_the_card(models, monkeypatch):
    """The function that lays out grouped queries, in place of transformers'."""
    attended = []

    def attend(*args, **kwargs):
        attended.append(args[0].layer_idx)
        return attend_sdpa(*args, **kwargs)

    fused, _ = models("fp32")
    monkeypatch.setitem(modeling_glm.ALL_ATTENTION_FUNCTIONS, "sdpa", attend)
    with torch.no_grad():
        fused(input_ids=torch.arange(20, 26)[None])
    assert attended == list(range(fused.config.num_hidden_layers))
