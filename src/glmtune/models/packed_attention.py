"""Sequence packing: rows are concatenated to one sequence without padding; attention is computed within each row.

There is no mask over all positions. A model prepared by `set_packed_attention` takes the keyword `rows`; without it
(in generation) attention is unchanged. With it, in 16 bits on Ampere and later cards rows stay as they lie
(`varlen_attention.py`); on other GPUs rows of similar length are padded to one length within attention; on a CPU each
row is a call.

Shapes: T positions of the sequence, R rows of a group, t positions of its longest row, P virtual tokens of a prefix,
H heads, D head size.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from glmtune.models.attention_kernels import (
    VARLEN,
    attend_sdpa,
    find_compute_dtype,
    make_additive_mask,
    note_kernel,
    takes_varlen,
)
from glmtune.models.varlen_attention import VarlenRows, attend_varlen, make_varlen_rows

SEPARATE = "rows_"
"""Prefix of the names of attention implementations that take `rows`; a prefix encoder's own prefix is before it."""
Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class RowGroup:
    """Rows of one attention call: a single one in place, or several of similar length, padded."""

    positions: slice | torch.Tensor
    """Positions of the row; or those of each row, (R * t,), a shorter one's last position repeated."""
    length: int
    contexts: tuple[int, ...]
    device: torch.device
    _masks: dict[tuple[int, torch.dtype | None], torch.Tensor] = field(default_factory=dict, compare=False)

    def find_mask(self, prefix: int = 0, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Attention mask, (R, 1, t, P + t): the prefix, earlier tokens of the row, and its complete context.

        It is made once for all layers.

        Args:
            prefix: number of virtual tokens that every row sees.
            dtype: of an additive mask (`make_additive_mask`); None: a bool one.
        """
        if (prefix, dtype) not in self._masks:
            key_S = torch.arange(-prefix, self.length, device=self.device)
            contexts_R11 = torch.tensor(self.contexts).to(self.device)[:, None, None]
            mask_R1tS = ((key_S <= key_S[prefix:, None]) | (key_S < contexts_R11))[:, None]
            self._masks[prefix, dtype] = mask_R1tS if dtype is None else make_additive_mask(mask_R1tS, dtype)
        return self._masks[prefix, dtype]

    def select(self, x_1HTD: torch.Tensor) -> torch.Tensor:
        """The states of the group's positions, (R, H, t, D)."""
        if isinstance(self.positions, slice):
            return x_1HTD[:, :, self.positions]
        # Not by an index in brackets: its backward pass sorts, to add up positions that were taken twice.
        x_THD = x_1HTD[0].transpose(0, 1)
        return x_THD.index_select(0, self.positions).unflatten(0, (-1, self.length)).transpose(1, 2)


@dataclass(frozen=True)
class PackedRows:
    """The rows of a packed sequence, and how attention goes through them."""

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    device: torch.device
    single: bool
    """One attention call per row, in place."""
    _varlen_rows: dict[int, VarlenRows] = field(default_factory=dict, compare=False)

    @cached_property
    def groups(self) -> list[RowGroup]:
        """The rows of each attention call."""
        return self._grouped[0]

    @cached_property
    def _grouped(self) -> tuple[list[RowGroup], torch.Tensor | None]:
        """The groups, and the index of each position in their concatenated outputs; None: already in order."""
        starts = [0]
        for length in self.lengths:
            starts.append(starts[-1] + length)
        classes: dict[int, list[int]] = defaultdict(list)
        for row, length in enumerate(self.lengths):
            classes[row if self.single else max(4, (length - 1).bit_length())].append(row)
        groups: list[RowGroup] = []
        places: list[tuple[int, int]] = []  # of each row: its first position, and that in the groups' outputs
        offset = 0
        for members in classes.values():
            longest = max(self.lengths[row] for row in members)
            first, contexts = starts[members[0]], tuple(self.contexts[row] for row in members)
            positions: slice | torch.Tensor = slice(first, first + longest)
            if len(members) > 1:
                index_Rt = torch.tensor([starts[row] for row in members])[:, None] + torch.arange(longest)
                last_R1 = torch.tensor([[starts[row + 1] - 1] for row in members])
                positions = index_Rt.minimum(last_R1).flatten().to(self.device)
            groups.append(RowGroup(positions, longest, contexts, self.device))
            places += [(starts[row], offset + number * longest) for number, row in enumerate(members)]
            offset += len(members) * longest
        if all(start == place for start, place in places) and offset == starts[-1]:
            return groups, None
        order = [torch.arange(place, place + n) for (_, place), n in zip(sorted(places), self.lengths, strict=True)]
        return groups, torch.cat(order).to(self.device)

    def find_varlen_rows(self, prefix: int) -> VarlenRows:
        """The rows for `attend_varlen`, made once for all layers; `prefix` virtual tokens are in front of each."""
        if prefix not in self._varlen_rows:
            self._varlen_rows[prefix] = make_varlen_rows(self.lengths, self.contexts, prefix, self.device)
        return self._varlen_rows[prefix]

    def join(self, parts_RtHD: list[torch.Tensor]) -> torch.Tensor:
        """The outputs of all groups in the order of the sequence, (1, T, H, D)."""
        joined = torch.cat([part.flatten(0, 1) for part in parts_RtHD])
        order_T = self._grouped[1]
        return (joined if order_T is None else joined.index_select(0, order_T))[None]


def make_packed_rows(
    lengths: Sequence[int], contexts: Sequence[int], device: torch.device, single: bool | None = None
) -> PackedRows:
    """Make the rows of a sequence that are concatenated in this order.

    Args:
        lengths: tokens of each row.
        contexts: tokens at the start of each that see each other in both directions.
        device: where attention is computed.
        single: one attention call per row, without copies; else one per class of length (up to 16, 32, 64, ...
            tokens), which keeps a GPU busy. None: single rows on the CPU only.
    """
    return PackedRows(tuple(lengths), tuple(contexts), device, device.type == "cpu" if single is None else single)


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


def attend_by_rows(attend: Attention, *, fused: bool) -> Attention:
    """Make an attention function that attends within each of `rows`, if they are given.

    Args:
        attend: an attention function. If it takes a prefix (`prefix_kv`), its masks include the prefix.
        fused: whether it is sdpa, in whose place `varlen_attn` may be taken, and which needs no mask for causal
            attention.
    """

    def attention(
        module: Any,
        query_1HTD: torch.Tensor,
        key_1NTD: torch.Tensor,
        value_1NTD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        rows: PackedRows | None = None,
        prefix_kv: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        prefix_2NPD = None if prefix_kv is None else prefix_kv[module.layer_idx]
        if prefix_kv is not None:
            kwargs["prefix_kv"] = prefix_kv
        if rows is None:
            return attend(module, query_1HTD, key_1NTD, value_1NTD, attention_mask, **kwargs)
        prefix = 0 if prefix_2NPD is None else prefix_2NPD.shape[-2]
        if fused and takes_varlen(query_1HTD, kwargs.get("dropout", 0.0)):
            note_kernel(VARLEN)
            dtype, varlen_rows = find_compute_dtype(query_1HTD), rows.find_varlen_rows(prefix)
            scaling, states = kwargs.get("scaling"), (query_1HTD, key_1NTD, value_1NTD)
            return attend_varlen(*states, varlen_rows, dtype, scaling, prefix_2NPD), None
        parts = []
        for group in rows.groups:
            group_states = (group.select(x_1HTD) for x_1HTD in (query_1HTD, key_1NTD, value_1NTD))
            mask = None
            if prefix or not fused or not module.is_causal:
                is_additive = fused and not rows.single
                mask = group.find_mask(prefix, find_compute_dtype(query_1HTD) if is_additive else None)
            parts.append(attend(module, *group_states, mask, **kwargs)[0])
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


ALL_ATTENTION_FUNCTIONS.register(f"{SEPARATE}sdpa", attend_by_rows(attend_sdpa, fused=True))
ALL_ATTENTION_FUNCTIONS.register(f"{SEPARATE}eager", attend_by_rows(attend_eagerly, fused=False))
ALL_MASK_ATTENTION_FUNCTIONS.register(f"{SEPARATE}sdpa", sdpa_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(f"{SEPARATE}eager", eager_mask)
