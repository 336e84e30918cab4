"""The head and the loss in chunks: the same numbers, and never all logits at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from glmtune.training import head as head_module
from glmtune.training.head import compute_head_losses

HIDDEN, COLUMNS, TARGETS, CHUNK = 12, 50, 23, 4


class WithBias(nn.Module):
    """A head that is no single matrix product."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(HIDDEN, COLUMNS)
        self.out_features = COLUMNS

    def forward(self, hidden):
        return self.inner(hidden)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that was made, and counts products."""

    def __init__(self):
        super().__init__()
        self.numel = 0
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.mm.default
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "_BYTES", CHUNK * 4 * COLUMNS)


def _head(kind):
    torch.manual_seed(0)
    head = WithBias() if kind == "general" else nn.Linear(HIDDEN, COLUMNS, bias=False)
    return head.requires_grad_(kind != "frozen")


def _inputs():
    torch.manual_seed(1)
    return torch.randn(TARGETS, HIDDEN, requires_grad=True), torch.randint(COLUMNS, (TARGETS,))


def _gradients(losses, hidden, head):
    weights = torch.linspace(0.5, 2, len(losses))  # a gradient of its own for every loss
    inputs = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return torch.autograd.grad((losses * weights).sum(), inputs)


@pytest.mark.parametrize("kind", ["frozen", "trained", "general"])
def test_losses_and_gradients_are_those_of_all_logits_at_once(kind):
    head, (hidden, targets) = _head(kind), _inputs()
    wanted = F.cross_entropy(head(hidden), targets, reduction="none")
    with Largest() as largest:
        losses = compute_head_losses(head, head.forward, hidden, targets)
        found = _gradients(losses, hidden, head)
    torch.testing.assert_close(losses, wanted)
    for one, other in zip(found, _gradients(wanted, hidden, head), strict=True):
        torch.testing.assert_close(one, other)
    assert largest.numel < TARGETS * COLUMNS  # of all logits


@pytest.mark.parametrize("kind", ["frozen", "trained", "general"])
def test_under_autocast_losses_are_fp32_and_near(kind):
    head, (hidden, targets) = _head(kind), _inputs()
    wanted = F.cross_entropy(head(hidden), targets, reduction="none")
    with torch.autocast("cpu", torch.bfloat16):
        losses = compute_head_losses(head, head.forward, hidden, targets)
    assert losses.dtype is torch.float32
    torch.testing.assert_close(losses, wanted, atol=2e-2, rtol=0)
    assert not torch.equal(losses, wanted)  # it did compute in bf16
    for one, other in zip(_gradients(losses, hidden, head), _gradients(wanted, hidden, head), strict=True):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["frozen", "trained", "general"])
def test_no_targets_have_no_loss_and_a_gradient_of_zero(kind):
    head = _head(kind)
    hidden = torch.randn(0, HIDDEN, requires_grad=True)
    losses = compute_head_losses(head, head.forward, hidden, torch.zeros(0, dtype=torch.long))
    assert losses.shape == (0,)
    for gradient in torch.autograd.grad(losses.sum(), [hidden, *(p for p in head.parameters() if p.requires_grad)]):
        assert not gradient.abs().sum()


@pytest.mark.parametrize(("wanted", "products"), [(False, 1), (True, 2)])
def test_without_gradients_only_losses_are_computed(wanted, products):
    head, (hidden, targets) = _head("frozen"), _inputs()
    with torch.set_grad_enabled(wanted), Largest() as watch:
        losses = compute_head_losses(head, head.forward, hidden, targets)
    torch.testing.assert_close(losses, F.cross_entropy(head(hidden), targets, reduction="none"))
    assert watch.products == products * -(-TARGETS // CHUNK)


def test_the_gradient_of_a_trained_head_is_added_up_in_fp32(monkeypatch):
    """In bf16, hundreds of small parts added to a large sum would be lost."""
    monkeypatch.setattr(head_module, "_BYTES", 4 * COLUMNS)  # one target a chunk
    head = _head("trained")
    hidden, targets = torch.full((600, HIDDEN), 0.5), torch.zeros(600, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        losses = compute_head_losses(head, head.forward, hidden, targets)
    (found,) = torch.autograd.grad(losses.sum(), head.weight)
    (wanted,) = torch.autograd.grad(F.cross_entropy(head(hidden), targets, reduction="sum"), head.weight)
    assert (found - wanted).norm() < 0.01 * wanted.norm()
