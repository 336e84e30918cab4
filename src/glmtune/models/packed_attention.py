"""Sequence packing: rows are concatenated to one sequence without padding; attention is computed within each row.

There is no mask over all positions; on a GPU rows of similar length are padded to one length within attention. A model
prepared by `set_packed_attention` takes the keyword `rows`; without it (in generation) attention is unchanged.

Shapes: T positions of the sequence, R rows of a group, t positions of its longest row, H heads, D head size.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEPARATE = "rows_"
"""Prefix of the names of attention implementations that take `rows`; a prefix encoder's own prefix is before it."""
Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class RowGroup:
    """Rows of one attention call: a single one in place, or several of similar length, padded."""

    positions: slice | torch.Tensor
    """Positions of the row; or those of each row, (R, t), a shorter one's last position repeated."""
    length: int
    contexts: tuple[int, ...]
    device: torch.device

    @cached_property
    def mask_R1tt(self) -> torch.Tensor:
        """Attention mask, bool: earlier tokens of the row, and its complete context."""
        index_t = torch.arange(self.length, device=self.device)
        contexts_R11 = torch.tensor(self.contexts, device=self.device)[:, None, None]
        return ((index_t <= index_t[:, None]) | (index_t < contexts_R11))[:, None]

    def select(self, x_1HTD: torch.Tensor) -> torch.Tensor:
        """The states of the group's positions, (R, H, t, D)."""
        if isinstance(self.positions, slice):
            return x_1HTD[:, :, self.positions]
        return x_1HTD[0][:, self.positions].transpose(0, 1)


@dataclass(frozen=True)
class PackedRows:
    """The rows of a packed sequence, in groups for attention."""

    groups: list[RowGroup]
    order_T: torch.Tensor | None
    """Index of each position in the concatenated outputs of the groups; None: already in order."""

    def join(self, parts_RtHD: list[torch.Tensor]) -> torch.Tensor:
        """The outputs of all groups in the order of the sequence, (1, T, H, D)."""
        joined = torch.cat([part.flatten(0, 1) for part in parts_RtHD])
        return (joined if self.order_T is None else joined[self.order_T])[None]


def make_packed_rows(
    lengths: Sequence[int], contexts: Sequence[int], device: torch.device, single: bool | None = None
) -> PackedRows:
    """Make the groups of rows of these lengths, concatenated in this order.

    Args:
        lengths: tokens of each row.
        contexts: tokens at the start of each that see each other in both directions.
        device: where attention is computed.
        single: one attention call per row, without copies; else one per class of length (up to 16, 32, 64, ...
            tokens), which keeps a GPU busy. None: single rows on the CPU only.
    """
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    if device.type == "cpu" if single is None else single:
        return PackedRows(
            [
                RowGroup(slice(start, start + length), length, (context,), device)
                for start, length, context in zip(starts, lengths, contexts, strict=False)
            ],
            None,
        )
    classes: dict[int, list[int]] = defaultdict(list)
    for row, length in enumerate(lengths):
        classes[max(4, (length - 1).bit_length())].append(row)
    groups, order, offset = [], torch.empty(starts[-1], dtype=torch.long), 0
    for members in classes.values():
        longest = max(lengths[row] for row in members)
        index_Rt = torch.tensor([starts[row] for row in members])[:, None] + torch.arange(longest)
        last_R1 = torch.tensor([[starts[row] + lengths[row] - 1] for row in members])
        groups.append(
            RowGroup(index_Rt.minimum(last_R1).to(device), longest, tuple(contexts[row] for row in members), device)
        )
        for place, row in enumerate(members):
            order[starts[row] : starts[row + 1]] = offset + place * longest + torch.arange(lengths[row])
        offset += len(members) * longest
    return PackedRows(groups, order.to(device))


def set_packed_attention(model: Any) -> None:
    """Switch `model` to an attention implementation that takes `rows`; flash attention is left as it is.

    Args:
        model: any of ours, with adapters or a prefix, not wrapped for data parallelism.
    """
    name = model.config._attn_implementation
    if not (has_packed_attention(model) or finds_rows_by_positions(model)):
        kind = name.rsplit("_", 1)[-1]
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(name.removesuffix(kind) + SEPARATE + kind)


def has_packed_attention(model: Any) -> bool:
    """Whether its attention takes `rows`."""
    return SEPARATE in model.config._attn_implementation


def finds_rows_by_positions(model: Any) -> bool:
    """Whether its attention finds rows where positions restart at 0 (transformers' flash attention)."""
    return "flash" in model.config._attn_implementation


def attend_by_rows(attend: Attention, *, masked: bool) -> Attention:
    """Make an attention function that calls `attend` for each group of `rows`, if they are given.

    Args:
        attend: an attention function.
        masked: whether `attend` needs a mask for causal attention too.
    """

    def attention(
        module: Any,
        query_1HTD: torch.Tensor,
        key_1NTD: torch.Tensor,
        value_1NTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        rows: PackedRows | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if rows is None:
            return attend(module, query_1HTD, key_1NTD, value_1NTD, attention_mask, **kwargs)
        parts = []
        for group in rows.groups:
            states = (group.select(x_1HTD) for x_1HTD in (query_1HTD, key_1NTD, value_1NTD))
            mask = group.mask_R1tt if masked or not module.is_causal else None
            parts.append(attend(module, *states, mask, **kwargs)[0])
        return rows.join(parts), None

    return attention


def attend_eagerly(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BNSD: torch.Tensor,
    value_BNSD: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The eager attention of the module's own file; transformers' adds its mask to the scores."""
    if mask is not None and mask.dtype is torch.bool:
        hidden = torch.finfo(query_BHTD.dtype).min
        mask = torch.zeros(mask.shape, dtype=query_BHTD.dtype, device=mask.device).masked_fill_(~mask, hidden)
    attend: Attention = sys.modules[type(module).__module__].eager_attention_forward
    return attend(module, query_BHTD, key_BNSD, value_BNSD, mask, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(f"{SEPARATE}sdpa", attend_by_rows(sdpa_attention_forward, masked=False))
ALL_ATTENTION_FUNCTIONS.register(f"{SEPARATE}eager", attend_by_rows(attend_eagerly, masked=True))
ALL_MASK_ATTENTION_FUNCTIONS.register(f"{SEPARATE}sdpa", sdpa_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(f"{SEPARATE}eager", eager_mask)
