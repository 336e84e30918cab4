"""The decode loop: chat, evaluation and measurements all run it.

The prompt is read once, then a token per row and step. What differs between models (positions, masks of a prefix LM) is
made by the model's own `prepare_inputs_for_generation`, as transformers' `generate` does.

Shapes: B unfinished rows, S tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from glmtune.errors import ModelError
from glmtune.generation.compiled_step import CompiledStep, find_compiled_step, unwrap_model
from glmtune.generation.graph_step import GraphDecoder, find_graph_decoder
from glmtune.generation.kv_cache import new_preallocated_cache

Choose = Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
"""From ids (B, S), logits (B, V) in fp32 and the numbers of the rows to the next ids, (B,)."""

# Finished rows leave the batch once they are this share of it: moving the others copies their keys and values.
# A compiled or recorded step keeps its rows: another number of them is another step.
_DONE_SHARE = 0.25


class NonFiniteLogitsError(ModelError):
    """A model computed NaN or infinity, so that no token can be chosen.

    Args:
        step: number of the token, from 0.
    """

    def __init__(self, step: int):
        super().__init__(
            f"The model computes values that are not finite (NaN or infinity) at token {step + 1} of its reply.",
            "Its weights are broken, or do not fit fp16: load it as bf16 or fp32, or train again with a smaller "
            "learning rate.",
        )


@dataclass
class _DecodeState:
    """The unfinished rows, left-padded, with room for the tokens to come, (B, L)."""

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    """True for every place but padding, those to come included."""
    positions_BL: torch.Tensor
    length: int
    """Places in use, S."""
    is_padded: bool
    cache: Cache
    rows: list[int]
    """Their numbers."""

    @classmethod
    def begin(
        cls, prompts: Sequence[Sequence[int]], padding: int, new_tokens: int, device: torch.device, cache: Cache
    ) -> _DecodeState:
        longest = max(map(len, prompts))
        pads_B1 = torch.tensor([[longest - len(prompt)] for prompt in prompts])
        places_L = torch.arange(longest + new_tokens)
        ids_BL = torch.full((len(prompts), len(places_L)), padding)
        for row, prompt in enumerate(prompts):
            ids_BL[row, longest - len(prompt) : longest] = torch.tensor(prompt)
        positions_BL = (places_L - pads_B1).clamp(min=0)
        ids_BL, mask_BL, positions_BL = (
            x.to(device, non_blocking=True) for x in (ids_BL, places_L >= pads_B1, positions_BL)
        )
        return cls(ids_BL, mask_BL, positions_BL, longest, bool(pads_B1.any()), cache, rows=list(range(len(prompts))))

    @property
    def ids_BS(self) -> torch.Tensor:
        return self.ids_BL[:, : self.length]

    @property
    def mask_BS(self) -> torch.Tensor | None:
        """None: no row is padded, which tensors on a GPU do not say without being waited for."""
        return self.mask_BL[:, : self.length].long() if self.is_padded else None

    @property
    def positions_BS(self) -> torch.Tensor:
        return self.positions_BL[:, : self.length]

    def append(self, next_B: torch.Tensor) -> None:
        self.ids_BL[:, self.length] = next_B
        self.length += 1

    def select_rows(self, places: list[int]) -> None:
        """Keep the rows at these places alone."""
        places_B = torch.tensor(places).to(self.ids_BL.device, non_blocking=True)
        self.ids_BL, self.mask_BL, self.positions_BL = (
            x_BL.index_select(0, places_B) for x_BL in (self.ids_BL, self.mask_BL, self.positions_BL)
        )
        self.cache.batch_select_indices(places_B)
        self.rows = [self.rows[place] for place in places]


def decode_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    max_new_tokens: int,
    stops: Sequence[int],
    padding: int,
    on_step: Callable[[dict[int, int]], None] | None = None,
) -> list[list[int]]:
    """Continue every prompt until a stop id or the longest length.

    Args:
        model: in eval mode, not wrapped for data parallelism; adapters and prefixes are part of it.
        prompts: ids, at least one each.
        choose: picks the next ids.
        max_new_tokens: at least 1.
        stops: ids that end a row; without any, rows end at their longest length alone.
        padding: token before shorter prompts, which nothing attends to.
        on_step: called with each step's new ids by row number, including stop ids.

    Returns:
        The new ids of each row, its stop id included if there was one.

    Raises:
        NonFiniteLogitsError: the model computed NaN or infinity.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    for new in stream_tokens(model, prompts, choose, max_new_tokens=max_new_tokens, stops=stops, padding=padding):
        for row, token in new.items():
            replies[row].append(token)
        if on_step:
            on_step(new)
    return replies


# Not inference mode: what a model keeps from here, rotary tables say, may serve a training step later.
@torch.no_grad()
def stream_tokens(
    model: Any,
    prompts: Sequence[Sequence[int]],
    choose: Choose,
    *,
    max_new_tokens: int,
    stops: Sequence[int],
    padding: int,
) -> Iterator[dict[int, int]]:
    """Continue every prompt, and yield each step's new ids by row number, including stop ids.

    The arguments are those of `decode_tokens`.
    """
    bare = unwrap_model(model)
    compiled = find_compiled_step(bare)
    longest = max(map(len, prompts)) + max_new_tokens
    graph = None if compiled else find_graph_decoder(bare)
    if graph and not (max_new_tokens > 1 and graph.begin(len(prompts), longest)):
        graph = None
    cache: Any = graph.cache if graph else None
    if not graph:
        cache = compiled.new_cache(len(prompts), longest) if compiled else new_preallocated_cache()
    state = _DecodeState.begin(prompts, padding, max_new_tokens, bare.device, cache)
    ends, finished = set(stops), set()
    try:
        for step in range(max_new_tokens):
            logits_BV = _run_forward(bare, state, step == 0, compiled, graph, max_new_tokens - step)
            sums_B = logits_BV.sum(-1)  # before `choose`, which may write into the logits
            next_B = choose(_strip_padding(state), logits_BV, state.rows)
            # The ids have to come to the CPU anyway: a row of NaN shows in them as -1, without another synchronisation.
            # A sum that is infinite or NaN is the only one that differs from itself less itself.
            ids = next_B.masked_fill(sums_B - sums_B != 0, -1).tolist()
            new = {row: token for row, token in zip(state.rows, ids, strict=True) if row not in finished}
            if -1 in new.values():
                if graph:
                    graph.drop()  # NaN in its cache would reach the next reply
                raise NonFiniteLogitsError(step)
            yield new
            finished |= {row for row, token in new.items() if token in ends}
            remaining = [place for place, row in enumerate(state.rows) if row not in finished]
            if not remaining or step == max_new_tokens - 1:
                break
            state.append(next_B)
            has_fixed_rows = compiled or graph
            if not has_fixed_rows and len(state.rows) - len(remaining) >= _DONE_SHARE * len(state.rows):
                state.select_rows(remaining)
    finally:
        if graph:
            graph.end()


def pick_greedy(ids_BS: torch.Tensor, logits_BV: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """The likeliest ids."""
    return logits_BV.argmax(-1)


def _run_forward(
    bare: Any,
    state: _DecodeState,
    first: bool,
    compiled: CompiledStep | None = None,
    graph: GraphDecoder | None = None,
    remaining: int = 1,
) -> torch.Tensor:
    """Logits (B, V) after the last tokens, fp32."""
    step = compiled if compiled and not first else bare
    inputs = bare.prepare_inputs_for_generation(
        state.ids_BS,
        next_sequence_length=None if first else 1,
        past_key_values=state.cache,
        attention_mask=state.mask_BS,
        position_ids=state.positions_BS,
        use_cache=True,  # training switches it off in the config
        is_first_iteration=first,
    )
    on_cpu = state.ids_BL.device.type == "cpu"
    is_sdpa = bare.config._attn_implementation.endswith("sdpa")
    if is_sdpa and not first and not compiled and (on_cpu or state.is_padded):
        # Without a mask, transformers asks sdpa to share key-value heads among queries, which its CPU kernel does by
        # going through them one by one; with one it stacks the queries of a head, which takes a fraction of the time.
        # On a GPU transformers would wait for the device to see whether a mask hides anything.
        inputs["attention_mask"] = state.mask_BL[:, None, None, : state.length]
    if graph and not first:
        del inputs["past_key_values"], inputs["use_cache"]
        return graph.compute_logits(inputs, state.length - 1, state.mask_BL[:, : state.length], remaining)
    return step(**inputs, logits_to_keep=1, return_dict=True).logits[:, -1].float()


def _strip_padding(state: _DecodeState) -> torch.Tensor:
    """Rows with their first token in place of padding, for samplers that look at earlier tokens."""
    mask_BS = state.mask_BS
    if mask_BS is None:
        return state.ids_BS
    first_B1 = state.ids_BS.gather(1, mask_BS.argmax(-1, keepdim=True))
    return torch.where(mask_BS.bool(), state.ids_BS, first_B1)
