"""The rows of one batch: they join, get a token each per step, and leave.

Rows that generate come first, then those whose prompt is not computed yet; each has the slot of its place in the list.

Shapes: R rows of a forward pass, T new tokens, W places of the longest row, K position streams, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from glmtune.errors import summarize_error
from glmtune.generation.adapter_switch import AdapterLane, AdapterSwitch
from glmtune.generation.batch_requests import TokenLogprob
from glmtune.generation.batch_rows import BatchRow, FinishReason
from glmtune.generation.batch_sampling import BatchSampler
from glmtune.generation.prefix_store import BLOCK, PrefixStore, count_common
from glmtune.generation.slot_cache import SlotCache
from glmtune.models.attention_kernels import make_additive_mask
from glmtune.models.glm_layers import compute_hidden_states
from glmtune.models.row_layout import RowLayout
from glmtune.models.tokenizers.text_decoding import TextDecoder
from glmtune.training.memory import is_out_of_memory

# Tokens of prompts in one forward pass: generating rows wait for it.
_PROMPT_TOKENS = 512
# A prompt with this many tokens in common with one of the same pass waits for it and takes them from there.
_WORTH_WAITING = 64

# Prompts of a pass are padded to a multiple of this.
_LENGTH_STEP = 16

_log = logging.getLogger(__name__)


@dataclass
class BatchModel:
    """What all batches of an engine compute with."""

    bare: Any
    layout: RowLayout
    switch: AdapterSwitch
    stop_ids: Collection[int]
    store: PrefixStore
    decode: TextDecoder
    vocabulary: int

    @property
    def device(self) -> torch.device:
        return self.bare.device


@dataclass
class _StepState:
    """Inputs of the next step of the generating rows, on the device."""

    ids_R1: torch.Tensor
    past_R: torch.Tensor
    positions: torch.Tensor
    """(R, 1), or (R, K, 1)."""
    change: torch.Tensor
    rows_R: torch.Tensor
    width: int
    sampler: BatchSampler


@dataclass
class _Choice:
    """What a step found for a row."""

    row: BatchRow
    token: int
    logprob: TokenLogprob | None
    error: str | None = None


class BatchLane:
    """A batch whose rows are computed with the same adapter, or with LoRA adapters and prefixes of their own.

    Args:
        model: what it computes with.
        lane: its adapters.
        max_rows: slots to allocate at most.
    """

    def __init__(self, model: BatchModel, lane: AdapterLane, max_rows: int):
        self._model = model
        self._lane = lane
        self._max_rows = max_rows
        self._cache = SlotCache(model.bare.config.num_hidden_layers)
        self.rows: list[BatchRow] = []
        self._ready = 0
        self._state: _StepState | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._cache.nbytes

    def add(self, row: BatchRow) -> None:
        """Let a request join."""
        model = self._model
        row.prepare(model.layout, model.decode, model.vocabulary, model.device)
        row.prefix = model.switch.get_prefix(row.request.adapter)
        self.rows.append(row)

    def take_newest(self, count: int) -> list[BatchRow]:
        """Remove the rows that joined last, unfinished, the newest first."""
        taken = []
        for _ in range(min(count, len(self.rows))):
            taken.append(self.rows[-1])
            self._remove(len(self.rows) - 1)
        return taken

    def remove_cancelled(self) -> None:
        """End the rows whose caller no longer wants them."""
        for place in reversed(range(len(self.rows))):
            if self.rows[place].is_cancelled:
                self._finish(place, "cancelled")

    def fail_all(self, error: str) -> None:
        """End all rows with an error."""
        while self.rows:
            self._finish(len(self.rows) - 1, "error", error)

    def step(self) -> tuple[int, int]:
        """Compute prompts, then a token for every row that generates.

        Returns:
            Tokens of prompts that were computed, and tokens that were generated.

        Raises:
            RuntimeError, MemoryError: out of memory; no row has changed.
        """
        prompt_tokens, generated = 0, 0
        if self._ready < len(self.rows):
            prompt_tokens, generated = self._step_prompts()
        if self._ready:
            generated += self._step_tokens()
        return prompt_tokens, generated

    def release(self) -> None:
        """Give back the memory of a batch without rows."""
        self._cache.release()

    # --- prompts ---

    def _step_prompts(self) -> tuple[int, int]:
        ends = self._choose_prompts()
        start, stop = self._ready, self._ready + len(ends)
        rows = self.rows[start:stop]
        tokens = sum(end - row.filled for row, end in zip(rows, ends, strict=True))
        is_complete = ends[0] == len(rows[0].ids)

        def run(first: int, last: int) -> torch.Tensor:
            return self._run_prompts(first, ends[first - start : last - start])

        choices = self._compute(start, stop, run)
        for row, end in zip(rows, ends, strict=True):
            row.filled = end
        if not is_complete:  # a part of a long prompt: the token after it is known
            return tokens, self._apply([choice for choice in choices if choice.error is not None])
        self._ready = stop
        self._state = None
        return tokens, self._apply(choices)

    def _choose_prompts(self) -> list[int]:
        """How far the prompts of the next rows are computed in one pass: all to their ends, or a part of a long one."""
        ends: list[int] = []
        total = longest = 0
        for place in range(self._ready, len(self.rows)):
            row = self.rows[place]
            if row.filled == 0:
                self._begin(place)
            new = len(row.ids) - row.filled
            if not ends and new > _PROMPT_TOKENS:
                return [max(row.filled + _PROMPT_TOKENS, row.context)]
            padded = max(longest, new) * (len(ends) + 1)
            group = self.rows[self._ready : place]
            if ends and (padded > max(_PROMPT_TOKENS, (total + new) * 3 // 2) or new > _PROMPT_TOKENS):
                break
            if row.filled == 0 and any(self._count_shared(row, other) >= _WORTH_WAITING for other in group):
                break
            ends.append(len(row.ids))
            total, longest = total + new, max(longest, new)
        return ends

    def _count_shared(self, row: BatchRow, other: BatchRow) -> int:
        """Tokens that `row` could take from `other`: its context is all of them, or none."""
        if row.request.adapter != other.request.adapter or row.context != other.context:
            return 0
        common = min(count_common(row.ids, other.ids), len(row.ids) - 1)
        return common if common > row.context else 0

    def _begin(self, place: int) -> None:
        """Fill a row's slot with its prefix, and with keys and values that were computed before for the same ids."""
        row, model = self.rows[place], self._model
        limit, best = len(row.ids) - 1, BLOCK - 1
        source: int | torch.Tensor | None = None
        for number, other in enumerate(self.rows[: self._ready]):
            shared = min(self._count_shared(row, other), other.filled, limit)
            if shared > max(best, row.context):
                source, best = number, shared
        found = model.store.find(row.request.adapter, row.ids)
        if found is not None:
            entry, length = found
            length = min(length, limit)
            if length > max(best, row.context) and model.layout.count_context(entry.ids) == row.context:
                source, best = entry.states, length
        if source is None and row.prefix is None:
            return
        self._reserve(row.offset + len(row.ids) + 1)
        if row.prefix is not None:
            self._cache.restore(place, 0, row.prefix, row.offset)
        if isinstance(source, int):
            self._cache.move(source, place, row.offset + best)
        elif source is not None:
            self._cache.restore(place, row.offset, source, best)
        if source is not None:
            row.filled = row.cached_tokens = best

    def _run_prompts(self, start: int, ends: list[int]) -> torch.Tensor:
        """Logits (R, V) after the tokens up to `ends`."""
        rows = self.rows[start : start + len(ends)]
        device, layout = self._model.device, self._model.layout
        past = [row.places for row in rows]
        new = [end - row.filled for row, end in zip(rows, ends, strict=True)]
        width = max(p + n for p, n in zip(past, new, strict=True))
        self._reserve(width + 1)
        self._cache.select(start, past, new)
        # oneDNN keeps a kernel for every number of tokens that it has met: few numbers, little memory.
        longest = -(-max(new) // _LENGTH_STEP) * _LENGTH_STEP
        ids_RT = torch.zeros(len(rows), longest, dtype=torch.long)
        positions = torch.zeros(len(rows), *([layout.streams] if layout.streams else []), longest, dtype=torch.long)
        for number, (row, end) in enumerate(zip(rows, ends, strict=True)):
            ids_RT[number, : new[number]] = torch.tensor(row.ids[row.filled : end])
            positions[number, ..., : new[number]] = layout.make_positions(row.ids)[..., row.filled : end]
        columns_W = torch.arange(width)
        seen_RT1 = (torch.tensor(past)[:, None] + torch.arange(longest))[..., None]
        contexts_R11 = torch.tensor([row.offset + row.context for row in rows])[:, None, None]
        mask_RTW = (columns_W <= seen_RT1) | (columns_W < contexts_R11)
        hidden_RTH = self._run_layers(rows, ids_RT.to(device), positions.to(device), mask_RTW[:, None].to(device))
        last_R = torch.tensor([count - 1 for count in new], device=device)
        return self._run_head(hidden_RTH[torch.arange(len(rows), device=device), last_R])

    # --- tokens ---

    def _step_tokens(self) -> int:
        count = self._ready
        if self._state is None:
            self._state = self._make_state(count)
        state = self._state
        if state.width > self._cache.length:
            self._reserve(state.width)
        choices = self._compute(0, count, self._run_step, state)
        if self._state is not state:  # rows were computed apart, after an error
            self._state = None
        for row in self.rows[:count]:
            row.filled += 1
        return self._apply(choices)

    def _make_state(self, count: int) -> _StepState:
        rows, device, layout = self.rows[:count], self._model.device, self._model.layout
        places = [row.read_position(layout) for row in rows]
        changes = [row.position_change for row in rows]
        positions = torch.tensor(places, device=device)
        return _StepState(
            ids_R1=torch.tensor([[row.ids[-1]] for row in rows], device=device),
            past_R=torch.tensor([row.places for row in rows], device=device),
            positions=positions[..., None] if layout.streams else positions,
            change=torch.tensor(changes, device=device)[..., None]
            if layout.streams
            else torch.tensor(changes, device=device),
            rows_R=torch.arange(count, device=device),
            width=max(row.places for row in rows) + 1,
            sampler=BatchSampler([row.sampler for row in rows if row.sampler], device),
        )

    def _run_step(self, start: int, stop: int) -> torch.Tensor:
        """Logits (R, V) of the next token of the generating rows."""
        state = self._state
        assert state is not None
        past_R = state.past_R[start:stop]
        self._cache.select_step(start, state.rows_R[: stop - start], past_R, state.width)
        mask_RW = torch.arange(state.width, device=past_R.device) <= past_R[:, None]
        hidden_R1H = self._run_layers(
            self.rows[start:stop], state.ids_R1[start:stop], state.positions[start:stop], mask_RW[:, None, None]
        )
        return self._run_head(hidden_R1H[:, -1])

    # --- both ---

    def _run_layers(
        self, rows: list[BatchRow], ids_RT: torch.Tensor, positions: torch.Tensor, mask_R1TW: torch.Tensor
    ) -> torch.Tensor:
        model = self._model
        model.switch.use(self._lane, [row.request.adapter for row in rows])
        dtype = model.bare.get_input_embeddings().weight.dtype
        if model.bare.config._attn_implementation.endswith("eager"):
            mask_R1TW = torch.zeros(mask_R1TW.shape, dtype=dtype, device=mask_R1TW.device).masked_fill_(
                ~mask_R1TW, torch.finfo(dtype).min
            )
        else:  # once for all layers
            mask_R1TW = make_additive_mask(mask_R1TW, dtype)
        return compute_hidden_states(model.bare.base_model, ids_RT, mask_R1TW, positions, self._cache)

    def _run_head(self, hidden_RH: torch.Tensor) -> torch.Tensor:
        return self._model.bare.get_output_embeddings()(hidden_RH).float()

    def _compute(
        self, start: int, stop: int, run: Callable[[int, int], torch.Tensor], state: _StepState | None = None
    ) -> list[_Choice]:
        """Run a forward pass and choose tokens; after an error by halves, until the row that causes it is alone."""
        rows = self.rows[start:stop]
        try:
            logits_RV = run(start, stop)
            is_whole = state is not None and stop - start == len(state.rows_R)
            if is_whole:
                sampler = state.sampler  # type: ignore[union-attr]
            else:
                sampler = BatchSampler([row.sampler for row in rows if row.sampler], logits_RV.device)
            next_R, ids, logprobs = sampler.choose(logits_RV)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if len(rows) == 1:
                _log.exception("A request failed.")
                return [_Choice(rows[0], -1, None, f"{type(error).__name__}: {summarize_error(error, 200)}")]
            self._state = None if state is None else self._make_state(self._ready)
            middle = (start + stop) // 2
            return self._compute(start, middle, run, state) + self._compute(middle, stop, run, state)
        if is_whole and self._state is state and state is not None:
            state.ids_R1 = next_R[:, None]
            state.past_R = state.past_R + 1
            state.positions = state.positions + state.change
            state.width += 1
        return [
            _Choice(row, token, logprobs.get(number), None if token >= 0 else _NOT_FINITE)
            for number, (row, token) in enumerate(zip(rows, ids, strict=True))
        ]

    def _apply(self, choices: list[_Choice]) -> int:
        """Give the rows their tokens and let those that are done leave; returns the number of tokens."""
        model = self._model
        ends: list[tuple[BatchRow, FinishReason, str | None]] = []
        generated = 0
        for choice in choices:
            row = choice.row
            if choice.error is not None:
                ends.append((row, "error", choice.error))
                continue
            generated += 1
            try:
                reason, changes = row.add_token(choice.token, choice.logprob, model.stop_ids, model.layout)
            except Exception as error:
                _log.exception("The receiver of a reply failed.")
                ends.append((row, "error", f"{type(error).__name__}: {summarize_error(error, 200)}"))
                continue
            if reason is not None:
                ends.append((row, reason, None))
            elif changes:
                self._state = None
        for row, reason, message in ends:
            self._finish(self.rows.index(row), reason, message)
        return generated

    def _finish(self, place: int, reason: FinishReason, error: str | None = None) -> None:
        row, store = self.rows[place], self._model.store
        if reason == "error":
            self._cache.clear(place)
        elif store.accepts(row.filled, self._cache.bytes_per_token):
            states = self._cache.save(place, row.offset, row.filled)
            store.add(row.request.adapter, row.ids[: row.filled], states)
        self._remove(place)
        row.finish(reason, error)

    def _remove(self, place: int) -> None:
        """Take a row out; the last ones move into its place."""
        self._state = None
        if place < self._ready:
            self._ready -= 1
            self._move(self._ready, place)
            place = self._ready
        self._move(len(self.rows) - 1, place)
        self.rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._cache.move(source, target, self.rows[source].places)
            self.rows[target] = self.rows[source]

    def _reserve(self, length: int) -> None:
        """Make room for all rows, and for `length` places."""
        # Doubled, so that rows that join one by one are copied a few times only.
        slots = min(self._max_rows, 1 << (len(self.rows) - 1).bit_length())
        self._cache.reserve(slots, max(length, *(row.places for row in self.rows)))


_NOT_FINITE = (
    "The model computes values that are not finite (NaN or infinity). Its weights are broken, or do not fit fp16: load "
    "it as bf16 or fp32."
)
