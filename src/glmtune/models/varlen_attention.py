"""Attention of rows laid end to end in one call without padding: `torch.nn.attention.varlen` (FlashAttention).

Causal rows are one call. With a prefix in front of every row's keys they are one call too: where a row has more keys
than queries, the kernel's causal mask counts from the end, so that the first query sees the prefix and itself.

A prefix-LM mask (ChatGLM-6B: a context that sees itself in both directions, an answer that is causal) is two calls: the
contexts' queries to the contexts' keys without a mask, the answers' queries to all keys of their rows causally. Queries
are put in that order before and outputs back after; keys and values stay as they lie, because a segment may have keys
and no queries. 7 launches a layer forward and 7 backward, and no score is computed for nothing. What was counted
against it:

- FlexAttention: 1 launch, but a block mask per micro-batch, Triton, and a compilation of a minute; where it cannot
  be compiled it writes all scores of the sequence.
- Two attentions joined by log-sum-exp: 8 more launches in fp32 for the join, and torch 2.13's `varlen_attn` ignores
  the gradient of the log-sum-exp, so that the backward pass would have to be written on private operations.
- Both calls with all queries, and each position takes the right output: 3 launches and 7, but twice the scores, and a
  second output that is kept for the backward pass: 25 MiB a layer for 4 rows of 768 tokens.

Shapes: T positions of the sequence, S key positions with prefixes, R rows, P virtual tokens, H query heads, N key-value
heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional as F

from glmtune.utils.console import print_warning

_CAUSAL, _FULL = (-1, 0), (-1, -1)


@dataclass(frozen=True)
class Segments:
    """Segments of a sequence that attend to their own keys only."""

    query_ends: torch.Tensor
    """0 and the end of each segment, int32."""
    key_ends: torch.Tensor
    longest_query: int
    longest_keys: int


@dataclass(frozen=True)
class PrefixPlaces:
    """Where rows and prefixes lie in keys that have a prefix in front of every row."""

    sources_S: torch.Tensor
    """Of each key, its index in the prefix followed by the sequence."""
    row_keys_T: torch.Tensor
    """Index of each position of the sequence among the keys."""
    prefix_keys_RP: torch.Tensor
    """Index of each virtual token of each row among the keys."""


@dataclass(frozen=True)
class QueryOrder:
    """Queries of contexts in front of those of answers."""

    contexts: Segments
    sizes: tuple[int, int]
    """Tokens of all contexts and of all answers."""
    order_T: torch.Tensor | None
    """Positions of the sequence in this order; None: the sequence has it."""
    inverse_T: torch.Tensor | None


@dataclass(frozen=True)
class VarlenRows:
    """The rows of a sequence as `attend_varlen` takes them."""

    rows: Segments
    """Whole rows; where rows have contexts, their queries are those of the answers."""
    queries: QueryOrder | None
    """None: no row has a context."""
    places: PrefixPlaces | None
    """None: no prefix, or a single row, which the prefix is put in front of."""


def make_varlen_rows(lengths: Sequence[int], contexts: Sequence[int], prefix: int, device: torch.device) -> VarlenRows:
    """Find the segments of rows of these lengths.

    Args:
        lengths: tokens of each row.
        contexts: tokens at the start of each that see each other in both directions.
        prefix: number of virtual tokens in front of every row's keys.
        device: where attention is computed.
    """
    places = _find_prefix_places(lengths, prefix, device) if prefix and len(lengths) > 1 else None
    keys = [prefix + length for length in lengths]
    if max(contexts) < 2:  # a single token sees what it sees in a causal row
        return VarlenRows(_make_segments(lengths, keys, device), None, places)
    answers = [length - context for length, context in zip(lengths, contexts, strict=True)]
    context_queries, context_keys = [], []
    for context, answer in zip(contexts, answers, strict=True):
        context_queries += [context, 0]
        context_keys += [prefix + context, answer]
    starts = [0, *accumulate(lengths)][:-1]
    parts = [torch.arange(start, start + context) for start, context in zip(starts, contexts, strict=True)]
    parts += [torch.arange(s + c, s + n) for s, c, n in zip(starts, contexts, lengths, strict=True)]
    is_in_order = len(lengths) == 1
    order_T = torch.cat(parts)
    queries = QueryOrder(
        _make_segments(context_queries, context_keys, device),
        (sum(contexts), sum(answers)),
        None if is_in_order else order_T.to(device),
        None if is_in_order else order_T.argsort().to(device),
    )
    return VarlenRows(_make_segments(answers, keys, device), queries, places)


def attend_varlen(
    query_1HTD: torch.Tensor,
    key_1NTD: torch.Tensor,
    value_1NTD: torch.Tensor,
    rows: VarlenRows,
    dtype: torch.dtype,
    scaling: float | None,
    prefix_2NPD: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention within each row.

    Args:
        query_1HTD: of the sequence.
        key_1NTD: of the sequence, without the prefix.
        value_1NTD: the same.
        rows: from `make_varlen_rows`, for as many virtual tokens as `prefix_2NPD` has.
        dtype: 16 bits, in which to compute.
        scaling: of the scores; None: D ** -0.5.
        prefix_2NPD: keys and values that every row sees.

    Returns:
        (1, T, H, D).
    """
    query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query_1HTD, key_1NTD, value_1NTD))
    if prefix_2NPD is not None:
        key, value = (
            _insert_prefix(x_TND, prefix_NPD.transpose(0, 1).to(dtype), rows.places)
            for x_TND, prefix_NPD in zip((key, value), prefix_2NPD, strict=True)
        )
    else:
        key, value = _own_storage(key), _own_storage(value)
    queries = rows.queries
    if queries is None:
        return _call_kernel(_own_storage(query), key, value, rows.rows, _CAUSAL, scaling)[None]

    if queries.order_T is not None:
        query = _Reorder.apply(query, queries.order_T, queries.inverse_T)
    context_query, answer_query = _own_storage(query).split(queries.sizes)
    output_THD = _call_kernel(context_query, key, value, queries.contexts, _FULL, scaling)
    if len(answer_query):
        answer_output = _call_kernel(answer_query, key, value, rows.rows, _CAUSAL, scaling)
        output_THD = torch.cat([output_THD, answer_output])
    if queries.order_T is not None:
        output_THD = _Reorder.apply(output_THD, queries.inverse_T, queries.order_T)
    return output_THD[None]


def _own_storage(x_TND: torch.Tensor) -> torch.Tensor:
    """States that keep no more than themselves for the backward pass: ChatGLM-6B's are parts of one tensor."""
    is_part = x_TND.requires_grad and x_TND.untyped_storage().nbytes() > x_TND.numel() * x_TND.element_size()
    return x_TND.contiguous() if is_part else x_TND


class _Reorder(torch.autograd.Function):
    """A gather of every position once, whose gradient is the gather of the inverse order."""

    @staticmethod
    def forward(ctx: Any, x_TND: torch.Tensor, order_T: torch.Tensor, inverse_T: torch.Tensor) -> torch.Tensor:
        ctx.inverse_T = inverse_T
        return x_TND.index_select(0, order_T)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradients[0].index_select(0, ctx.inverse_T), None, None


def _call_kernel(
    query_THD: torch.Tensor,
    key_SND: torch.Tensor,
    value_SND: torch.Tensor,
    segments: Segments,
    window: tuple[int, int],
    scaling: float | None,
) -> Any:
    from torch.nn.attention import varlen  # since torch 2.10

    names = _list_options(varlen.varlen_attn)
    options: dict[str, Any] = {"window_size": window} if "window_size" in names else {"is_causal": window == _CAUSAL}
    if "enable_gqa" in names:  # torch 2.11 and 2.10 take grouped queries without it
        options["enable_gqa"] = query_THD.shape[1] != key_SND.shape[1]
    if "scale" in names:
        options["scale"] = scaling
    elif scaling is not None:  # torch 2.10 scales by the head size alone
        query_THD = query_THD * (scaling * query_THD.shape[-1] ** 0.5)
    output: Any = varlen.varlen_attn(
        query_THD,
        key_SND,
        value_SND,
        segments.query_ends,
        segments.key_ends,
        segments.longest_query,
        segments.longest_keys,
        **options,
    )
    return output


@cache
def _list_options(varlen_attn: Any) -> frozenset[str]:
    parameters = signature(varlen_attn).parameters.values()
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):  # a wrapper: of the newest torch
        return frozenset({"window_size", "scale", "enable_gqa"})
    return frozenset(p.name for p in parameters)


def _make_segments(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Segments:
    ends = torch.tensor([[0, *accumulate(sizes)] for sizes in (queries, keys)], dtype=torch.int32).to(device)
    return Segments(ends[0], ends[1], max(queries), max(keys))


def _find_prefix_places(lengths: Sequence[int], prefix: int, device: torch.device) -> PrefixPlaces:
    sources, row_keys, prefix_keys, start, key = [], [], [], 0, 0
    for length in lengths:
        sources += [torch.arange(prefix), torch.arange(prefix + start, prefix + start + length)]
        prefix_keys.append(torch.arange(key, key + prefix))
        row_keys.append(torch.arange(key + prefix, key + prefix + length))
        start, key = start + length, key + prefix + length
    return PrefixPlaces(*(torch.cat(parts).to(device) for parts in (sources, row_keys, prefix_keys)))


def _insert_prefix(x_TND: torch.Tensor, prefix_PND: torch.Tensor, places: PrefixPlaces | None) -> torch.Tensor:
    """Keys or values with the prefix in front of every row, (S, N, D)."""
    if places is None:
        return torch.cat([prefix_PND, x_TND])
    inserted: torch.Tensor = _InsertPrefix.apply(x_TND, prefix_PND, places)
    return inserted


class _InsertPrefix(torch.autograd.Function):
    """The gradient of a plain gather would be added up in 16 bits, for the prefix over all rows and in any order."""

    @staticmethod
    def forward(ctx: Any, x_TND: torch.Tensor, prefix_PND: torch.Tensor, places: PrefixPlaces) -> torch.Tensor:
        ctx.places, ctx.prefix = places, len(prefix_PND)
        return torch.cat([prefix_PND, x_TND]).index_select(0, places.sources_S)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (gradient_SND,) = gradients
        gradient_TND = gradient_SND.index_select(0, ctx.places.row_keys_T)
        shared_RPND = gradient_SND.index_select(0, ctx.places.prefix_keys_RP).unflatten(0, (-1, ctx.prefix))
        return gradient_TND, shared_RPND.sum(0, dtype=torch.float32).to(gradient_SND.dtype), None


@cache
def runs_varlen(device: torch.device) -> bool:
    """Whether `varlen_attn` runs on this device and gives the right outputs and gradients; checked once, on tiny rows.

    Rows with a context and a prefix and grouped queries are compared with `scaled_dot_product_attention` in fp32.
    """
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:  # torch before 2.10
        return False
    try:
        error = _measure_error(device)
    except Exception as failure:  # torch built without FlashAttention, or a card that its kernels do not support
        reason = f"does not run here ({type(failure).__name__}: {next(iter(str(failure).splitlines()), '')[:120]})"
    else:
        if error < 2e-2:  # outputs of about 1, in fp16
            return True
        reason = f"gives other numbers on this card (error {error:.2g})"
    print_warning(f"torch's varlen_attn {reason}: rows are attended to in groups of similar length, which is slower.")
    return False


def _measure_error(device: torch.device) -> float:
    """The largest difference of outputs and gradients from attention row by row in fp32."""
    lengths, contexts, prefix, groups = (9, 4, 17, 3), (5, 0, 16, 3), 3, 2
    generator, total = torch.Generator().manual_seed(0), sum(lengths)
    with torch.enable_grad(), torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        query, key, value = (
            torch.randn(1, heads, total, 64, generator=generator).to(device, torch.float16).requires_grad_()
            for heads in (2 * groups, 2, 2)
        )
        prefix_2NPD = torch.randn(2, 2, prefix, 64, generator=generator).to(device, torch.float16).requires_grad_()
        inputs = [query, key, value, prefix_2NPD]
        # Memory that a kernel leaves unwritten must not happen to be 0, as the gradient of unseen keys is.
        freed = [torch.full_like(x, torch.nan) for x in inputs for _ in range(4)]
        del freed
        rows = make_varlen_rows(lengths, contexts, prefix, device)
        output_THD = attend_varlen(query, key, value, rows, torch.float16, None, prefix_2NPD)[0]
        parts = []
        for q, k, v, length, context in zip(
            *(x.float().split(lengths, dim=2) for x in (query, key, value)), lengths, contexts, strict=True
        ):
            k, v = (
                torch.cat([p[None].float(), x], 2).repeat_interleave(groups, 1)
                for p, x in zip(prefix_2NPD, (k, v), strict=True)
            )
            places = torch.arange(-prefix, length, device=device)
            mask = (places <= places[prefix:, None]) | (places < context)
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1))
        expected_THD = torch.cat(parts)
        weights_THD = torch.randn(expected_THD.shape, generator=generator).to(device)
        ours = torch.autograd.grad((output_THD.float() * weights_THD).sum(), inputs)
        theirs = torch.autograd.grad((expected_THD * weights_THD).sum(), inputs)
        pairs = zip((output_THD, *ours), (expected_THD, *theirs), strict=True)
        errors = [((a.float() - b.float()).abs().max() / b.float().abs().max()).detach() for a, b in pairs]
        return float(torch.stack(errors).max())  # NaN, if one is
