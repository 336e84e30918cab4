"""The attention kernel that a card takes, and the layout of keys and values that lets it take the best one.

torch chooses the kernel of `scaled_dot_product_attention` by card, dtype, mask and grouped queries, and says nothing
where none but the math kernel is left, which writes all scores in fp32. `KERNELS` is that choice as a table; attention
and the memory plan both read it here. It follows torch 2.13, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp.

Shapes: B batch, T queries, S keys, H query heads, N key-value heads, G = H / N query heads of a group, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface
from transformers.models.glm import modeling_glm
from transformers.models.glm4 import modeling_glm4

from glmtune.models.varlen_attention import runs_varlen

FLASH, EFFICIENT, MATH, VARLEN = "flash", "memory-efficient", "math", "flash, rows of varying length"
CUDNN = "cuDNN"
"""May be taken in place of flash or the memory-efficient kernel, with the same memory."""

_MASK_ALIGNMENT = 8
"""Numbers to whose multiple the memory-efficient kernel wants each line of a mask; it copies others."""
_HALVES = frozenset({torch.float16, torch.bfloat16})


@dataclass(frozen=True)
class AttentionKernel:
    """A kernel of `scaled_dot_product_attention` and what it takes."""

    name: str
    capability: tuple[int, int]
    """The first compute capability that has it in these dtypes."""
    dtypes: frozenset[torch.dtype]
    masks: bool
    """Whether it takes a mask; all take causal attention without one."""
    grouped: bool
    """Whether it takes fewer key-value heads than query heads."""


KERNELS = (
    AttentionKernel(FLASH, (8, 0), _HALVES, masks=False, grouped=True),
    AttentionKernel(EFFICIENT, (8, 0), _HALVES | {torch.float32}, masks=True, grouped=False),
    AttentionKernel(EFFICIENT, (5, 0), frozenset({torch.float16, torch.float32}), masks=True, grouped=False),
    AttentionKernel(MATH, (0, 0), _HALVES | {torch.float32, torch.float64}, masks=True, grouped=True),
)
"""In the order in which torch tries them."""


@dataclass(frozen=True)
class Card:
    """What attention has to know of a GPU."""

    capability: tuple[int, int]
    varlen: bool = False
    """Whether `torch.nn.attention.varlen.varlen_attn` runs on it and gives the right numbers."""
    disabled: frozenset[str] = frozenset()
    """Kernels that were switched off (`torch.backends.cuda.enable_flash_sdp`)."""


TURING, AMPERE = Card((7, 5)), Card((8, 0), varlen=True)
"""What a plan assumes of a GPU that is not here."""


@dataclass
class PlannedCard:
    """A card that is assumed in place of the device of the tensors."""

    card: Card | None
    """None: a CPU."""
    half: torch.dtype | None
    """The 16-bit precision of the run, where a trace computes in the other one."""
    kernels: set[str] = field(default_factory=set)
    """Kernels that attention would have taken."""


_planned: PlannedCard | None = None


@contextmanager
def plan_for_card(card: Card | None, half: torch.dtype | None = None) -> Iterator[PlannedCard]:
    """Choose kernels, and take their memory, as on this card, whatever device tensors are on.

    Args:
        card: None for a CPU.
        half: see `PlannedCard`.
    """
    global _planned
    before, _planned = _planned, PlannedCard(card, half)
    try:
        yield _planned
    finally:
        _planned = before


def find_card(device: torch.device, *, try_varlen: bool = False) -> Card | None:
    """The card of a device; None for anything but a CUDA device, where torch's choice is left alone.

    Args:
        device: of the tensors.
        try_varlen: find out whether `varlen_attn` runs on it, with a small product the first time.
    """
    if _planned is not None:
        return _planned.card
    if device.type != "cuda":
        return None
    switches = {
        FLASH: torch.backends.cuda.flash_sdp_enabled(),
        EFFICIENT: torch.backends.cuda.mem_efficient_sdp_enabled(),
        CUDNN: torch.backends.cuda.cudnn_sdp_enabled(),
    }
    disabled = frozenset(name for name, is_on in switches.items() if not is_on)
    capability = torch.cuda.get_device_capability(device)
    may_run = try_varlen and capability >= AMPERE.capability and FLASH not in disabled
    return Card(capability, may_run and runs_varlen(device), disabled)


def find_kernel(card: Card, dtype: torch.dtype, *, masked: bool, grouped: bool) -> str:
    """The first kernel of `KERNELS` that serves; the math kernel serves always."""
    for kernel in KERNELS[:-1]:
        if (
            card.capability >= kernel.capability
            and kernel.name not in card.disabled
            and dtype in kernel.dtypes
            and (kernel.masks or not masked)
            and (kernel.grouped or not grouped)
        ):
            return kernel.name
    return MATH


def find_compute_dtype(states: torch.Tensor) -> torch.dtype:
    """The dtype in which attention computes: autocast's, where it is on."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def choose_kernel(states: torch.Tensor, *, masked: bool, grouped: bool) -> str | None:
    """The kernel that torch takes for these states on their device's card; None where there is no card."""
    card, dtype = find_card(states.device), find_compute_dtype(states)
    if _planned is not None and _planned.half is not None and dtype in _HALVES:
        dtype = _planned.half
    return None if card is None else find_kernel(card, dtype, masked=masked, grouped=grouped)


def takes_varlen(states: torch.Tensor, dropout: float) -> bool:
    """Whether rows that are laid end to end go to `varlen_attn`: 16 bits, Ampere or later, no dropout."""
    size = states.shape[-1]
    if dropout or size % 8 or size > 256 or find_compute_dtype(states) not in _HALVES:
        return False
    card = find_card(states.device, try_varlen=True)
    return card is not None and card.varlen


def make_additive_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A bool mask as the memory-efficient kernel computes with it, which else converts and pads it in every layer.

    Args:
        mask: True where a key is seen, (..., T, S).
        dtype: of the queries.
    """
    keys = mask.shape[-1]
    line = -(-keys // _MASK_ALIGNMENT) * _MASK_ALIGNMENT
    additive = torch.zeros((*mask.shape[:-1], line), dtype=dtype, device=mask.device)[..., :keys]
    return additive.masked_fill_(~mask, float("-inf"))


def note_kernel(name: str) -> None:
    """Record a kernel for the plan that is being made, if one is."""
    if _planned is not None:
        _planned.kernels.add(name)


def attend_sdpa(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BNSD: torch.Tensor,
    value_BNSD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' `sdpa_attention_forward`, with grouped queries laid out for the best kernel of the card.

    Where only the math kernel takes grouped queries (cards before Ampere, and fp32 on any), key-value heads become rows
    of the batch, and the query heads of a group see them through a stride of 0: keys and values are not copied, forward
    or for the backward pass, which sums over the group. A single query per row needs not even that: the heads of a
    group are its queries.

    Returns:
        (B, T, H, D), and None for the weights.
    """
    batch, heads, queries, _ = query_BHTD.shape
    groups, masked = heads // key_BNSD.shape[1], attention_mask is not None
    if groups == 1 or (attention_mask is not None and attention_mask.shape[1] != 1):
        with _apply_plan(query_BHTD, masked, grouped=False):
            return sdpa_attention_forward(
                module, query_BHTD, key_BNSD, value_BNSD, attention_mask, dropout, scaling, is_causal, **kwargs
            )

    if queries == 1 and (masked or not _takes_groups(query_BHTD)):
        # On a CPU too: its kernel goes through the heads of a group one by one.
        query_BNGD = query_BHTD.reshape(batch, -1, groups, query_BHTD.shape[-1])
        with _apply_plan(query_BHTD, masked, grouped=False):
            output_BNGD = F.scaled_dot_product_attention(
                query_BNGD, key_BNSD, value_BNSD, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
            )
        return output_BNGD.reshape(batch, 1, heads, -1), None

    if find_card(query_BHTD.device) is None or (not masked and _takes_groups(query_BHTD)):
        with _apply_plan(query_BHTD, masked, grouped=not masked):
            return sdpa_attention_forward(
                module, query_BHTD, key_BNSD, value_BNSD, attention_mask, dropout, scaling, is_causal, **kwargs
            )

    is_causal = (module.is_causal if is_causal is None else is_causal) and not masked and queries > 1
    if is_causal:  # the places of a fixed-size cache after these queries are empty
        key_BNSD, value_BNSD = key_BNSD[:, :, :queries], value_BNSD[:, :, :queries]
    if _may_take_cudnn(query_BHTD):  # not known to take a stride of 0
        query, key, value = query_BHTD, *(x_BNSD.repeat_interleave(groups, 1) for x_BNSD in (key_BNSD, value_BNSD))
    else:
        # B * N rows of G heads; of a single row, all of these are views.
        query = query_BHTD.unflatten(1, (-1, groups)).flatten(0, 1)
        key, value = (x_BNSD.flatten(0, 1)[:, None].expand(-1, groups, -1, -1) for x_BNSD in (key_BNSD, value_BNSD))
        if attention_mask is not None and len(attention_mask) > 1:
            attention_mask = attention_mask.repeat_interleave(key_BNSD.shape[1], 0)
    with _apply_plan(query_BHTD, masked, grouped=False):
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, is_causal=is_causal
        )
    return output.unflatten(0, (batch, -1)).flatten(1, 2).transpose(1, 2).contiguous(), None


def _may_take_cudnn(states: torch.Tensor) -> bool:
    card = find_card(states.device)
    is_half = find_compute_dtype(states) in _HALVES
    return card is not None and is_half and card.capability >= AMPERE.capability and CUDNN not in card.disabled


def _takes_groups(query_BHTD: torch.Tensor) -> bool:
    """Whether a kernel other than the math one takes grouped queries without a mask."""
    return choose_kernel(query_BHTD, masked=False, grouped=True) not in (None, MATH)


def _apply_plan(query_BHTD: torch.Tensor, masked: bool, grouped: bool) -> AbstractContextManager[Any]:
    """Record the kernel of a planned card; within the context its math kernel is the one that runs."""
    name = choose_kernel(query_BHTD, masked=masked, grouped=grouped) if _planned is not None else None
    if name is None:
        return nullcontext()
    note_kernel(name)
    return sdpa_kernel(SDPBackend.MATH) if name == MATH else nullcontext()


# In place of transformers' function for its GLM models alone, whether they were loaded by us or not.
for module in (modeling_glm, modeling_glm4):
    functions = AttentionInterface()
    functions["sdpa"] = attend_sdpa
    module.ALL_ATTENTION_FUNCTIONS = functions  # type: ignore[attr-defined]
