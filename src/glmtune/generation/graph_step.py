"""The decoding step recorded as a CUDA graph: one launch per token in place of several hundred.

Without a compiler: what is recorded is the model's own forward pass, with adapter, prefix and packed weights. Whatever
changes from token to token is written into tensors that stay where they are: the ids, their positions, the mask, and
the place in the cache.

A recording is used if it gives the numbers of the plain step and takes less time. Both are measured, the first at the
start of every reply that uses it. Replies shorter than what it costs are decoded without.

Shapes: B rows, N key-value heads, L places of the cache, T new tokens, D head size, V vocabulary.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from glmtune.errors import summarize_error
from glmtune.utils.console import print_warning

Record = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""From a step to a function that repeats it, and the tensor that holds its result."""

# Tokens of a reply that are decoded without a recording: one takes about as long as they do.
_PLAIN_TOKENS = 8
# Sizes of a cache are multiples of this: one recording then serves prompts and replies of many lengths.
_LENGTH_STEP = 512
_REPEATS = 3
# Kernels may be chosen otherwise while recording; beyond this difference from the plain step, relative to its largest
# logit, something is wrong.
_TOLERANCE = 1e-2


@dataclass
class _Places:
    """Where new keys and values go, for all layers."""

    capacity: int
    length: int = 0
    """Places in use."""
    place_1: torch.Tensor | None = None
    """The next one as a tensor, while the step is recorded; all L places are then attended to, through a mask."""


class _GraphLayer(DynamicLayer):
    """One layer's keys and values in buffers (B, N, L, D) that are never replaced."""

    def __init__(self, places: _Places):
        super().__init__()
        self._places = places
        self._buffers: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, N, T, D) of each; returns the keys and the values to attend to."""
        states = (key_states, value_states)
        if not self._buffers:
            self.lazy_initialization(key_states, value_states)
            # Zeros: a hidden place has the weight 0, which NaN would survive.
            self._buffers = [
                state.new_zeros(*state.shape[:2], self._places.capacity, state.shape[-1]) for state in states
            ]
        if self._places.place_1 is not None:
            for buffer, new in zip(self._buffers, states, strict=True):
                buffer.index_copy_(2, self._places.place_1, new)
            keys, values = self._buffers
            return keys, values
        start, end = self._places.length, self._places.length + key_states.shape[-2]
        for buffer, new in zip(self._buffers, states, strict=True):
            buffer[:, :, start:end] = new
        keys, values = (buffer[:, :, :end] for buffer in self._buffers)
        return keys, values

    def get_seq_length(self) -> int:
        return self._places.length


@dataclass
class _Recording:
    repeat: Callable[[], None]
    logits_BV: torch.Tensor
    is_exact: bool
    """Whether it gives the very numbers of the plain step, so that a change of the model shows in them."""


class GraphDecoder:
    """The cache and the recorded step of a model, for one reply or batch of replies at a time.

    Args:
        model: a causal language model, not wrapped.
        record: makes the recording.
    """

    def __init__(self, model: Any, record: Record):
        self._model, self._record = model, record
        self.reason: str | None = None
        """Why it is not used; None while it may be."""
        self._seconds: tuple[float, float] | None = None
        self._break_even = 0
        self._lock = threading.Lock()  # held while a reply is decoded
        self._is_trusted = False
        self._tokens = 0
        self._plain_seconds: list[float] = []
        self.drop()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a copy of the model makes its own

    def drop(self) -> None:
        """Free the cache and the recording."""
        self._size: tuple[int, int] | None = None
        self._recording: _Recording | None = None
        self._inputs: dict[str, torch.Tensor] = {}
        self._weights: tuple[Any, ...] = ()
        self._places = _Places(0)
        self.cache: Cache | None = None

    def begin(self, rows: int, length: int) -> bool:
        """Prepare for replies to `rows` prompts, of `length` tokens with them.

        Returns:
            Whether it can be used: not if another reply is being decoded, or if it was found to be of no use.
        """
        if self.reason is not None or not self._lock.acquire(blocking=False):
            return False
        size = (rows, -(-length // _LENGTH_STEP) * _LENGTH_STEP)
        # A recording reads weights where they were, as they were made to numbers then (a prefix).
        tensors = chain(self._model.parameters(), self._model.buffers())
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        if (size, weights) != (self._size, self._weights):
            self.drop()
            self._size, self._weights = size, weights
            self._places = _Places(size[1])
            make_layer: Any = partial(_GraphLayer, self._places)
            self.cache = Cache(layer_class_to_replicate=make_layer)
        self._places.length, self._tokens, self._plain_seconds = 0, 0, []
        return True

    def end(self) -> None:
        """The reply is complete."""
        self._is_trusted = False
        if self._recording is not None and not self._recording.is_exact:
            self._recording = None
        self._lock.release()

    def release(self) -> None:
        """Free the cache and the recording, unless a reply is being decoded."""
        if self._lock.acquire(blocking=False):
            self.drop()
            self._lock.release()

    def compute_logits(
        self, inputs: dict[str, Any], length: int, mask_BS: torch.Tensor, remaining: int
    ) -> torch.Tensor:
        """Logits (B, V) after the next token of each row, fp32.

        Args:
            inputs: of the plain step, with ids and positions (B, ..., 1).
            length: tokens before it.
            mask_BS: True for places that are no padding, the new one included.
            remaining: tokens to come at most.
        """
        self._tokens += 1
        self._places.length = length
        if self._recording is not None:
            return self._repeat_recording(inputs, mask_BS)
        if self.reason is not None or self._tokens <= _PLAIN_TOKENS or remaining < self._break_even:
            start = time.perf_counter()
            logits_BV = self._run_model(**inputs)
            if self._tokens > 1 and len(self._plain_seconds) < _REPEATS:
                _synchronize(logits_BV)
                self._plain_seconds.append(time.perf_counter() - start)
            return logits_BV
        return self._make_recording(inputs, mask_BS)

    def describe(self) -> str:
        """What is known of it, for a report."""
        if self.reason is not None:
            return f"no CUDA graph: {self.reason}"
        if self._seconds is None:
            return f"no CUDA graph: replies of up to {_PLAIN_TOKENS} tokens are not worth one"
        graph, plain = self._seconds
        return f"CUDA graph: {1000 * graph:.2f} ms a step, {1000 * plain:.2f} without"

    def _run_model(self, **inputs: Any) -> torch.Tensor:
        outputs = self._model(**inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1, return_dict=True)
        return outputs.logits[:, -1].float()

    def _run_fixed(self) -> torch.Tensor:
        """The step on the fixed tensors alone: this is what is recorded."""
        inputs = dict(self._inputs)
        self._places.place_1 = inputs.pop("place")
        try:
            return self._run_model(**inputs)
        finally:
            self._places.place_1 = None

    def _set_inputs(self, inputs: dict[str, Any], mask_BS: torch.Tensor) -> None:
        """Write what is new into the fixed tensors."""
        ids_B1, positions = inputs["input_ids"], inputs["position_ids"]
        if not self._inputs:
            mask_B11L = ids_B1.new_zeros(len(ids_B1), 1, 1, self._places.capacity, dtype=torch.bool)
            place_1 = ids_B1.new_zeros(1)
            self._inputs = {"input_ids": ids_B1.clone(), "position_ids": positions.clone()}
            self._inputs |= {"attention_mask": mask_B11L, "place": place_1}
        self._inputs["input_ids"].copy_(ids_B1)
        self._inputs["position_ids"].copy_(positions)
        self._inputs["place"].fill_(self._places.length)
        if self._is_trusted:
            self._inputs["attention_mask"][..., self._places.length] = True
        else:
            self._inputs["attention_mask"].zero_()[:, 0, 0, : mask_BS.shape[1]] = mask_BS

    def _repeat_recording(self, inputs: dict[str, Any], mask_BS: torch.Tensor) -> torch.Tensor:
        """The step by its recording, which the first token of a reply compares with the plain one."""
        recording = self._recording
        assert recording is not None
        self._set_inputs(inputs, mask_BS)
        recording.repeat()
        if not self._is_trusted:
            expected_BV = self._run_fixed()  # after it: the last one's keys and values stay in the cache
            if not torch.equal(expected_BV, recording.logits_BV):
                self._recording = None  # the model computes something else than when it was recorded
                return expected_BV
        self._is_trusted = True
        return recording.logits_BV.clone()  # a sampler may write into them

    def _make_recording(self, inputs: dict[str, Any], mask_BS: torch.Tensor) -> torch.Tensor:
        """Record the step, and keep the recording if it serves; the logits are those of the plain step."""
        self._set_inputs(inputs, mask_BS)
        expected_BV = self._run_fixed().clone()
        _synchronize(expected_BV)
        start = time.perf_counter()
        try:
            repeat, logits_BV = self._record(self._run_fixed)
        except Exception as error:  # torch, Triton and bitsandbytes each raise their own kinds
            self._refuse(f"the step cannot be recorded ({type(error).__name__}: {summarize_error(error, 200)})")
            return self._run_fixed()
        graph_s = math.inf
        for _ in range(_REPEATS):
            begin = time.perf_counter()
            repeat()
            _synchronize(logits_BV)
            graph_s = min(graph_s, time.perf_counter() - begin)
        cost_s = time.perf_counter() - start
        plain_s = min(self._plain_seconds)
        difference = (logits_BV - expected_BV).abs().max() / expected_BV.abs().max()
        if not bool(difference <= _TOLERANCE) and bool(expected_BV.isfinite().all()):
            self._refuse("a recorded step gives other numbers than the plain one")
        elif graph_s >= plain_s:
            self._refuse(f"a recorded step takes {1000 * graph_s:.2f} ms, the plain one {1000 * plain_s:.2f}")
        else:
            self._seconds = graph_s, plain_s
            self._break_even = math.ceil(cost_s / (plain_s - graph_s))
            self._recording = _Recording(repeat, logits_BV, torch.equal(logits_BV, expected_BV))
            self._is_trusted = True
        # Again where it is refused: the last step's keys and values stay in the cache.
        return expected_BV if self._recording is not None else self._run_fixed()

    def _refuse(self, reason: str) -> None:
        self.reason = reason
        print_warning(f"Decoding without a CUDA graph: {reason}.")


def record_cuda_graph(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Record a step as a CUDA graph, after running it once on the stream of the recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        logits_BV = step()
    return graph.replay, logits_BV


def find_graph_decoder(model: Any) -> GraphDecoder | None:
    """The decoder of a model, not wrapped; made at the first call. None: see `explain_no_graph`."""
    decoder = getattr(model, "_graph_decoder", None)
    if decoder is None and explain_no_graph(model) is None:
        decoder = model._graph_decoder = GraphDecoder(model, record_cuda_graph)
    return decoder


def explain_no_graph(model: Any) -> str | None:
    """Why the steps of this model are never recorded; None: they may be."""
    if model.device.type != "cuda":
        return "it is for a CUDA GPU"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "several processes share the model"
    if len(getattr(model, "hf_device_map", None) or {}) > 1:
        return "the model is on several devices"
    if not model.config._attn_implementation.endswith("sdpa"):
        return f"attention {model.config._attn_implementation} takes another form of mask"
    return None


def describe_graph(model: Any) -> str:
    """Whether the steps of a model, not wrapped, were recorded, in words."""
    decoder = getattr(model, "_graph_decoder", None)
    return decoder.describe() if decoder else f"no CUDA graph: {explain_no_graph(model) or 'no reply was decoded'}"


def release_graph(model: Any) -> None:
    """Free the recording and its cache: training, say, needs the memory."""
    decoder = getattr(model, "_graph_decoder", None)
    if decoder is not None:
        decoder.release()


def _synchronize(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
