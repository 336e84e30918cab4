"""Positions and attention masks of ChatGLM-6B, read from token ids and a plain padding mask.

A row is `context, <sop>, answer`. The context reads itself in both directions; everything from `<sop>` on is
causal and sees the whole context. A position is two numbers: where in the context (the answer stays at the
`[gMASK]` or `[MASK]` it fills), and where in the answer (0 in the context). GLM: arXiv 2103.10360, section 2.

A row without `<sop>` is plain text: causal throughout, positions counting on, block 0. With no boundary to go by,
that is the reading in which a next-token loss cannot see its own targets.

Shapes: B batch, T query positions, S key positions.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from .configuration import ChatGLMConfig


def answer_flags(
    input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor | None, config: ChatGLMConfig
) -> torch.Tensor:
    """True from the first `<sop>` of a row on, (B, T) bool; all False in a row that has none."""
    is_sop_BT = input_ids_BT == config.bos_token_id
    if attention_mask_BT is not None:
        is_sop_BT = is_sop_BT & attention_mask_BT.bool()
    return is_sop_BT.cumsum(-1) > 0


def prefix_position_ids(
    input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor | None, config: ChatGLMConfig
) -> torch.Tensor:
    """The two position streams of each token.

    Args:
        input_ids_BT: whole rows, context and answer, (B, T).
        attention_mask_BT: 1 for a token, 0 for padding on either side, (B, T); None: no padding. Padding
            shifts neither stream.
        config: where the special ids come from.

    Returns:
        (B, 2, T) int64: `position`, then `block`. `position` counts the context's tokens and stays, from `<sop>`
        on, at the first `[gMASK]` of the context, else at its first `[MASK]`, else at its last token.
    """
    gmask_id, mask_id = config.gmask_token_id, config.mask_token_id
    assert gmask_id is not None  # the configuration filled in both
    assert mask_id is not None
    answer_BT = answer_flags(input_ids_BT, attention_mask_BT, config)
    if attention_mask_BT is None:
        index_BT = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device).expand_as(input_ids_BT)
        context_BT, counted_BT = ~answer_BT, answer_BT
    else:
        real_BT = attention_mask_BT.bool()
        index_BT = (real_BT.cumsum(-1) - 1).clamp(min=0)
        context_BT, counted_BT = real_BT & ~answer_BT, real_BT & answer_BT

    # argmax gives the first of equals: with [gMASK] ranked above [MASK] it finds the column to stay at.
    is_gmask_BT = input_ids_BT.eq(gmask_id)
    is_mask_BT = input_ids_BT.eq(mask_id)
    rank_BT = (2 * is_gmask_BT.long() + is_mask_BT.long()) * context_BT
    best_B1, column_B1 = rank_BT.max(-1, keepdim=True).values, rank_BT.argmax(-1, keepdim=True)
    last_B1 = (context_BT.sum(-1, keepdim=True) - 1).clamp(min=0)
    anchor_B1 = torch.where(best_B1 > 0, index_BT.gather(1, column_B1), last_B1)

    position_BT = torch.where(answer_BT, anchor_B1, index_BT)
    return torch.stack((position_BT, counted_BT.cumsum(-1)), dim=1)


def prefix_attention_mask(
    input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor | None, config: ChatGLMConfig
) -> torch.Tensor:
    """What each token may look at, (B, 1, T, T) bool with True for "may", one mask for all heads.

    Args: as for `prefix_position_ids`.
    """
    answer_BT = answer_flags(input_ids_BT, attention_mask_BT, config)
    # The flags never fall back to False, so the last one is whether the row has a `<sop>`.
    prefix_BS = ~answer_BT & answer_BT[:, -1:]
    index_T = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
    causal_TS = index_T[None, :] <= index_T[:, None]
    visible_BTS = causal_TS | prefix_BS[:, None, :]
    if attention_mask_BT is not None:
        # A padding token still sees itself: a query with no key at all is NaN in some attention kernels, and a
        # NaN in one row's padding spreads to whole weight gradients.
        itself_TS = index_T[None, :] == index_T[:, None]
        visible_BTS = (visible_BTS & attention_mask_BT.bool()[:, None, :]) | itself_TS
    return visible_BTS[:, None]


def widen_keys(mask_B1TS: torch.Tensor, key_length: int) -> torch.Tensor:
    """The bool mask with unseen columns added up to `key_length`: the free places of a fixed-size cache."""
    return functional.pad(mask_B1TS, (0, key_length - mask_B1TS.shape[-1]), value=False)
