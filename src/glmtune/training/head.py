"""Head and cross-entropy in one function, a chunk of targets at a time.

Logits of 65,024 or 130,528 columns are the largest tensor of a training step. Here they exist for one chunk only: with
a frozen head the gradient of the hidden states is computed in the forward pass (as in Liger Kernel, arXiv 2410.10989);
with a trained one the backward pass recomputes the logits. A frozen head may have trained rows, of tokens that a run
adds: the K columns of the logits' gradient that they need are kept from the forward pass.

Shapes: N targets, C of them in a chunk, H hidden size, V vocabulary, K trained rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from glmtune.methods.lora_tokens import find_trained_rows

# Logits of a chunk in fp32: few enough for the caches, many enough for large products.
_BYTES = 64 * 2**20


def compute_head_losses(
    head: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    hidden_NH: torch.Tensor,
    targets_N: torch.Tensor,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of every target, (N,) in fp32.

    Args:
        head: turns hidden states into logits.
        forward: its forward pass.
        hidden_NH: final hidden states of the positions that predict a target.
        targets_N: the target ids.
        smoothing: share of the target's probability that is spread over the whole vocabulary, as in transformers'
            `LabelSmoother`: the loss is (1 - smoothing) * -log p(target) + smoothing * mean over V of -log p.
    """
    trained = find_trained_rows(head)
    plain_head = head if trained is None else trained.module
    if _is_single_product(plain_head):
        weight_VH: Any = plain_head.weight
        ids_K, rows_KH = (None, None) if trained is None else (trained.ids_K, trained.rows_KH)
        if torch.is_autocast_enabled(hidden_NH.device.type):
            dtype = torch.get_autocast_dtype(hidden_NH.device.type)
            hidden_NH, weight_VH = hidden_NH.to(dtype), weight_VH.to(dtype)
        if rows_KH is not None:
            rows_KH = rows_KH.to(weight_VH.dtype)
        gradients = torch.is_grad_enabled()  # an autograd function cannot see it
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return _HeadLosses.apply(hidden_NH, weight_VH, targets_N, gradients, smoothing, ids_K, rows_KH)

    def losses(hidden_CH: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        logits_CV = forward(hidden_CH).float()
        return F.cross_entropy(logits_CV, targets_C, reduction="none", label_smoothing=smoothing)

    size = _chunk_size(int(getattr(head, "out_features", 0)) or 130_528)
    return torch.cat(
        [
            checkpoint(losses, hidden_CH, targets_C, use_reentrant=False)
            for hidden_CH, targets_C in zip(hidden_NH.split(size), targets_N.split(size), strict=True)
        ]
    )


def _is_single_product(head: nn.Module) -> bool:
    """Whether the head is one matrix product in floating point: no adapter, no bias, nothing packed."""
    return isinstance(head, nn.Linear) and head.bias is None and head.weight.is_floating_point()


def _chunk_size(columns: int) -> int:
    return max(1, _BYTES // (4 * columns))


class _HeadLosses(torch.autograd.Function):
    """Losses (N,) of `hidden_NH @ weight_VH.T`, where `rows_KH` replaces rows `ids_K` of a frozen weight. Later
    operations only scale their gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        targets_N: torch.Tensor,
        gradients: bool,
        smoothing: float,
        ids_K: torch.Tensor | None,
        rows_KH: torch.Tensor | None,
    ) -> torch.Tensor:
        size = _chunk_size(len(weight_VH))
        losses_N = torch.empty(len(hidden_NH), dtype=torch.float32, device=hidden_NH.device)
        in_forward = gradients and ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        gradient_NH = torch.empty_like(hidden_NH) if in_forward else None
        error_NK = hidden_NH.new_empty((len(hidden_NH), len(rows_KH))) if in_forward and rows_KH is not None else None
        for start in range(0, len(hidden_NH), size):
            part = slice(start, start + size)
            logs_CV = _log_softmax(hidden_NH[part], weight_VH, ids_K, rows_KH)
            losses_N[part] = -logs_CV.gather(1, targets_N[part, None])[:, 0]
            if smoothing:
                losses_N[part] = (1 - smoothing) * losses_N[part] - smoothing * logs_CV.mean(-1)
            if gradient_NH is not None:
                error_CV = _logit_gradient(logs_CV, targets_N[part], smoothing)
                error_CV = error_CV.to(weight_VH.dtype)
                if error_NK is not None:
                    error_NK[part] = error_CV[:, ids_K]
                    error_CV[:, ids_K] = 0
                gradient_NH[part] = error_CV @ weight_VH
                if error_NK is not None and rows_KH is not None:
                    gradient_NH[part] += error_NK[part] @ rows_KH
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, gradient_NH, error_NK)
        ctx.smoothing = smoothing
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, targets_N, gradient_NH, error_NK = ctx.saved_tensors
        if gradient_NH is not None:
            hidden_grad_NH = (gradient_NH * grad_N[:, None]).to(hidden_NH.dtype)
            rows_grad_KH = None if error_NK is None else (error_NK * grad_N[:, None]).to(hidden_NH.dtype).T @ hidden_NH
            return hidden_grad_NH, None, None, None, None, None, rows_grad_KH
        size = _chunk_size(len(weight_VH))
        hidden_grad_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        weight_grad_VH = torch.zeros_like(weight_VH, dtype=torch.float32)  # a sum over many chunks
        for start in range(0, len(hidden_NH), size):
            part = slice(start, start + size)
            error_CV = _logit_gradient(_log_softmax(hidden_NH[part], weight_VH), targets_N[part], ctx.smoothing)
            error_CV = (error_CV * grad_N[part, None]).to(weight_VH.dtype)
            weight_grad_VH += error_CV.T @ hidden_NH[part]
            if hidden_grad_NH is not None:
                hidden_grad_NH[part] = error_CV @ weight_VH
        return hidden_grad_NH, weight_grad_VH.to(weight_VH.dtype), None, None, None, None, None


def _log_softmax(
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
    ids_K: torch.Tensor | None = None,
    rows_KH: torch.Tensor | None = None,
) -> torch.Tensor:
    """Of the logits, (C, V) in fp32."""
    logits_CV = F.linear(hidden_CH, weight_VH)
    if rows_KH is not None:
        logits_CV[:, ids_K] = F.linear(hidden_CH, rows_KH)
    return logits_CV.log_softmax(-1, dtype=torch.float32)


def _logit_gradient(logs_CV: torch.Tensor, targets_C: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The gradient of the losses with respect to the logits, written over the log-probabilities: p minus the smoothed
    onehot(target)."""
    error_CV = logs_CV.exp_()
    if smoothing:
        error_CV -= smoothing / error_CV.shape[1]
    error_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] -= 1 - smoothing
    return error_CV
