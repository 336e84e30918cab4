"""Updates as one step of the graph are peft's updates."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from glmtune.methods import lora_fused
from glmtune.methods.lora_fused import draw_dropout_mask, fuse_updates


def _pair(**options):
    """The same adapters, non-zero, in peft's way and in ours."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 20))
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["0", "2"], "lora_dropout": 0.0} | options
    peft = get_peft_model(base, LoraConfig(**settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    ours = copy.deepcopy(peft)
    fuse_updates(ours)
    return peft.train(), ours.train()


def _run(model, x):
    x = x.clone().requires_grad_()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return out, x.grad, gradients


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"bias": "lora_only"}])
def test_outputs_and_gradients_are_pefts(options):
    peft, ours = _pair(**options)
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(_run(ours, x), _run(peft, x))


def test_under_autocast_they_are_near_and_gradients_stay_fp32():
    peft, ours = _pair()
    x = torch.randn(2, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        out, x_grad, gradients = _run(ours, x)
    wanted, wanted_x, wanted_gradients = _run(peft, x)
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, atol=0.05, rtol=0.05)
    torch.testing.assert_close(x_grad, wanted_x, atol=0.05, rtol=0.05)
    for name, gradient in gradients.items():
        assert gradient.dtype is torch.float32
        assert (gradient - wanted_gradients[name]).norm() < 0.03 * wanted_gradients[name].norm(), name


def test_what_is_dropped_in_the_forward_pass_is_dropped_in_the_backward_pass(monkeypatch):
    """With decisions that are known, peft's dropout is replaced by the same ones."""
    decisions = {24: torch.rand(10, 24) > 0.4, 16: torch.rand(10, 16) > 0.4}
    monkeypatch.setattr(lora_fused, "draw_dropout_mask", lambda shape, dropout, device: decisions[shape[-1]])
    peft, ours = _pair(lora_dropout=0.4)

    class Known(nn.Module):
        def forward(self, x):
            return x * decisions[x.shape[-1]].view_as(x) / 0.6

    for module in peft.modules():
        if hasattr(module, "lora_dropout") and isinstance(module.lora_dropout, nn.ModuleDict):
            module.lora_dropout["default"] = Known()
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(_run(ours, x), _run(peft, x))


def test_evaluation_drops_nothing_and_disabled_adapters_do_nothing():
    peft, ours = _pair(lora_dropout=0.5)
    x = torch.randn(3, 24)
    assert not torch.equal(ours(x), ours(x))
    torch.testing.assert_close(ours.eval()(x), peft.eval()(x))
    with ours.train().disable_adapter(), peft.train().disable_adapter():
        torch.testing.assert_close(ours(x), peft(x))


@pytest.mark.parametrize("dropout", [0.05, 0.1, 0.5])
def test_as_many_are_kept_as_are_asked_for_and_a_seed_repeats_them(dropout):
    shape, count = torch.Size((301, 1001)), 301 * 1001
    torch.manual_seed(3)
    keep = draw_dropout_mask(shape, dropout, torch.device("cpu"))
    assert keep.shape == shape
    deviation = (dropout * (1 - dropout) / count) ** 0.5
    assert float(keep.float().mean()) == pytest.approx(1 - dropout, abs=5 * deviation)
    # neighbours decide by themselves, those from one random number too
    both = (keep.flatten()[1:] & keep.flatten()[:-1]).float().mean()
    assert float(both) == pytest.approx((1 - dropout) ** 2, abs=10 * deviation)
    torch.manual_seed(3)
    assert torch.equal(draw_dropout_mask(shape, dropout, torch.device("cpu")), keep)
