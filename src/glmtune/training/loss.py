"""The loss of a training step: the head is applied at target positions only, a chunk of them at a time.

Shapes: T tokens of a batch of rows without padding, N of them targets, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from glmtune.models.packed_attention import finds_rows_by_positions, has_packed_attention, make_packed_rows
from glmtune.models.varlen_attention import make_varlen_rows
from glmtune.training.head import compute_head_losses


@dataclass(frozen=True)
class LossSettings:
    """What regularises the loss of a training step."""

    label_smoothing: float = 0.0
    """See `compute_head_losses`."""
    embedding_noise: float = 0.0
    """Alpha of NEFTune (arXiv 2310.05914); 0: no noise. Only a model in training mode gets any."""
    temperature: float = 1.0
    """What logits are divided by."""


def step_loss(
    model: nn.Module, batch: dict[str, Any], single_rows: bool | None = None, settings: LossSettings | None = None
) -> torch.Tensor:
    """Compute the cross-entropy of every target of a batch.

    Training sums it and divides by the targets of the optimiser step; evaluation sums it over all batches.

    Args:
        model: a causal model, perhaps wrapped (adapter, DDP, FSDP, DeepSpeed), whose attention was set by
            `glmtune.models.packed_attention.set_packed_attention`.
        batch: from `glmtune.data.batches.BlockCollator`.
        single_rows: attend to one row at a time; by the device when None.
        settings: of training; none for evaluation, whose losses are plain cross-entropies.

    Returns:
        Losses (N,) in fp32.

    Raises:
        ValueError: the model's attention would let rows see each other.
    """
    inputs = select_model_inputs(model, batch, single_rows)
    settings = settings or LossSettings()
    positions_N, targets_N = batch["target_positions"], batch["targets"]

    def compute_losses(head: nn.Module, forward: Callable[..., Any], hidden_TH: torch.Tensor) -> torch.Tensor:
        hidden_NH = hidden_TH.index_select(0, positions_N)  # its backward pass does not sort
        if settings.temperature != 1:  # a head is linear, without a bias
            hidden_NH = hidden_NH / settings.temperature
        return compute_head_losses(head, forward, hidden_NH, targets_N, settings.label_smoothing)

    with (
        compute_in_head(model, compute_losses),
        add_embedding_noise(model, batch["row_lengths"], settings.embedding_noise),
    ):
        return model(**inputs, labels=batch["targets"], use_cache=False).loss


def select_model_inputs(model: nn.Module, batch: dict[str, Any], single_rows: bool | None = None) -> dict[str, Any]:
    """Select the part of a batch that the model takes.

    Raises:
        ValueError: the model's attention would let rows see each other.
    """
    unwrapped = getattr(model, "module", model)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    if finds_rows_by_positions(unwrapped):
        # Without these transformers finds the rows in the positions, which waits for the GPU in every layer.
        segments = make_varlen_rows(batch["row_lengths"].tolist(), [0], 0, batch["input_ids"].device).rows
        ends = {"cu_seq_lens_q": segments.query_ends, "cu_seq_lens_k": segments.key_ends}
        return inputs | ends | {"max_length_q": segments.longest_query, "max_length_k": segments.longest_keys}
    if not has_packed_attention(unwrapped):
        raise ValueError("the model's attention does not keep rows apart: call set_packed_attention(model) first")
    ids_1T = batch["input_ids"]
    rows = make_packed_rows(batch["row_lengths"].tolist(), batch["contexts"].tolist(), ids_1T.device, single_rows)
    # transformers passes a mask of four dimensions on as it is; without one it would make a mask of all positions.
    return inputs | {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids_1T.device), "rows": rows}


def find_head(model: nn.Module) -> nn.Module:
    """The module that turns hidden states into logits, of a model that may be wrapped."""
    unwrapped: Any = getattr(model, "module", model)
    return unwrapped.get_output_embeddings()


@contextmanager
def compute_in_head(
    model: nn.Module, compute: Callable[[nn.Module, Callable[..., Any], torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Let the model's head compute something else than logits, and its loss function pass it on as `output.loss`.

    It is computed inside the head's own call, because FSDP and ZeRO-3 gather its weights by hooks on it, and it leaves
    the model through its output, because FSDP starts the backward pass by hooks on that.

    Args:
        model: perhaps wrapped.
        compute: of the head, its own forward pass and the final hidden states (T, H).
    """
    head: Any = find_head(model)
    owner: Any = next(m for m in model.modules() if isinstance(m, PreTrainedModel) and head in m.children())
    forward, own_forward = head.forward, vars(head).get("forward")  # accelerate may have set one on the instance
    own_loss = vars(owner).get("_loss_function")

    def compute_in_forward(hidden_1TH: torch.Tensor) -> torch.Tensor:
        return compute(head, forward, hidden_1TH.flatten(0, 1))

    def return_losses(logits: torch.Tensor, **_: Any) -> torch.Tensor:
        return logits

    head.forward, owner.loss_function = compute_in_forward, return_losses
    try:
        yield
    finally:
        del head.forward, owner._loss_function
        if own_forward is not None:
            head.forward = own_forward
        if own_loss is not None:
            owner._loss_function = own_loss


@contextmanager
def add_embedding_noise(model: nn.Module, row_lengths_R: torch.Tensor, alpha: float) -> Iterator[None]:
    """Add uniform noise of NEFTune to the embeddings of a model in training mode.

    Its magnitude is alpha / sqrt(L * H) with the length L of each row; transformers' own hook would take the length of
    the whole packed block for it.
    """
    if not alpha or not model.training:
        yield
        return
    unwrapped: Any = getattr(model, "module", model)

    def add_noise(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        lengths_R = row_lengths_R.cpu()  # on a GPU, their sum would be waited for
        lengths_T = lengths_R.repeat_interleave(lengths_R).to(output.device, non_blocking=True)
        magnitudes_T1 = (alpha / (lengths_T * output.shape[-1]).sqrt())[:, None].to(output.dtype)
        noise_TH = torch.empty_like(output.flatten(0, -2)).uniform_(-1, 1) * magnitudes_T1
        return output + noise_TH.view_as(output)

    hook = unwrapped.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        hook.remove()
