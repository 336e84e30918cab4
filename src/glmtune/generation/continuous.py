"""Continuous batching: requests join and leave a running batch between its steps (Orca, Yu et al., OSDI 2022).

One thread owns the model. Every step it takes new requests, computes their prompts, and computes a token of every
request's reply by one forward pass: the weights are read once for all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from glmtune.errors import summarize_error
from glmtune.families import Family
from glmtune.generation.adapter_switch import AdapterLane, AdapterSwitch
from glmtune.generation.batch_lane import BatchLane, BatchModel
from glmtune.generation.batch_requests import BatchRequest, QueueFull, RequestTooLong
from glmtune.generation.batch_rows import BatchRow, OnEvent
from glmtune.generation.context_window import get_context_window
from glmtune.generation.cpu_prepack import prepack_weights, restore_weights
from glmtune.generation.prefix_store import PrefixStore
from glmtune.models.devices import free_cached_memory
from glmtune.models.row_layout import get_row_layout
from glmtune.models.tokenizers.text_decoding import make_text_decoder
from glmtune.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BatchEngine", "BatchHandle", "EngineClosed", "EngineStats"]

_log = logging.getLogger(__name__)

# After this time without requests, the memory of their keys and values is given back.
_IDLE_S = 5.0


class EngineClosed(QueueFull):
    """The engine takes no more requests: it is draining or closed."""


@dataclass
class EngineStats:
    """What an engine does now, and has done since its start.

    Attributes:
        running: requests in a batch.
        waiting: requests in the queue.
        prompt_tokens_total: of the prompts that were computed, without the cached ones.
        cached_tokens_total: of prompts whose keys and values were there already.
        generated_tokens_total: of replies.
        finished_total: requests that have ended, in whatever way.
        steps_total: of all batches.
        cache_bytes: keys and values of running requests.
        prefix_cache_bytes: keys and values of earlier ones.
    """

    running: int = 0
    waiting: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    finished_total: int = 0
    steps_total: int = 0
    cache_bytes: int = 0
    prefix_cache_bytes: int = 0


class BatchHandle:
    """A submitted request."""

    def __init__(self, engine: BatchEngine, row: BatchRow):
        self._engine = engine
        self._row = row

    @property
    def reply_ids(self) -> list[int]:
        """The ids that were generated so far, a stop id included; complete after the `FinishEvent`."""
        return self._row.ids[len(self._row.request.input_ids) :]

    def cancel(self) -> None:
        """End the reply; `FinishEvent("cancelled")` follows unless it is finished. From any thread."""
        self._engine._cancel(self._row)


class BatchEngine:
    """Generates the replies to many requests at the same time.

    Args:
        model: in eval mode, with an adapter or not; nothing else uses it between `start` and `close`.
        tokenizer: its tokenizer.
        family: its generation.
        max_batch: requests that are generated at the same time.
        max_context: tokens of prompt and reply together; the model's context window when None.
        max_queue: requests that wait.
        adapters: folders of adapters by the names that requests have.
        prefix_cache_bytes: memory for keys and values of earlier prompts and replies.
        compute_context: what the thread computes in: autocast, say, which holds for one thread only.

    Raises:
        ModelError, RunError, ConfigError: an adapter cannot be loaded, or does not belong to this base.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        family: Family,
        *,
        max_batch: int = 16,
        max_context: int | None = None,
        max_queue: int = 256,
        adapters: Mapping[str, str] | None = None,
        prefix_cache_bytes: int = 512 * 2**20,
        compute_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self._switch = AdapterSwitch(model, adapters or {})
        bare = self._switch.bare
        self._limit = max_context or get_context_window(bare)
        self._max_batch, self._max_queue = max_batch, max_queue
        self._batch_limit = max_batch  # lower after a lack of memory
        self._model = BatchModel(
            bare,
            get_row_layout(bare),
            self._switch,
            frozenset(family.get_stop_ids(tokenizer)),
            PrefixStore(prefix_cache_bytes),
            make_text_decoder(tokenizer),
            bare.config.vocab_size,
        )
        self._lanes: dict[AdapterLane, BatchLane] = {}
        self._waiting: deque[BatchRow] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_draining = self._is_closed = self._has_cancelled = False
        self._stats = EngineStats()
        self._submitted = self._finished = 0
        self._prepacked: list = []
        self._compute_context = compute_context

    def start(self) -> None:
        """Start the thread that owns the model."""
        try:
            self._prepacked = prepack_weights(self._model.bare, rows=self._max_batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        self._thread = threading.Thread(
            target=self._run, args=(torch.get_num_threads(),), name="glmtune-batch", daemon=True
        )
        self._thread.start()

    def submit(self, request: BatchRequest, on_event: OnEvent) -> BatchHandle:
        """Add a request to the queue. From any thread.

        Args:
            request: what to continue, and how.
            on_event: called on the engine's thread with each event; it must not block.

        Raises:
            QueueFull: too many requests wait, or the engine is draining (`EngineClosed`).
            RequestTooLong: the prompt leaves no room for a reply.
            ValueError: an empty prompt, an id out of the vocabulary, an unknown adapter, or no token to generate.
        """
        self._check(request)
        longest = min(request.max_new_tokens, self._limit - len(request.input_ids))
        row = BatchRow(request, on_event, longest, self._note_finish)
        with self._changed:
            if self._is_draining or self._is_closed:
                raise EngineClosed("the engine takes no more requests")
            if len(self._waiting) >= self._max_queue:
                raise QueueFull(f"{len(self._waiting)} requests wait")
            self._waiting.append(row)
            self._submitted += 1
            self._changed.notify_all()
        return BatchHandle(self, row)

    def stats(self) -> EngineStats:
        """What the engine does now and has done."""
        with self._changed:
            lanes = list(self._lanes.values())
            waiting = len(self._waiting)
            finished = self._stats.finished_total
            return EngineStats(
                **{
                    **vars(self._stats),
                    "waiting": waiting,
                    "running": self._submitted - waiting - finished,
                    "cache_bytes": sum(lane.cache_bytes for lane in lanes),
                    "prefix_cache_bytes": self._model.store.nbytes,
                }
            )

    def drain(self, timeout_s: float) -> bool:
        """Take no new request, and wait until the accepted ones are finished.

        Args:
            timeout_s: longest time to wait.

        Returns:
            Whether all are finished.
        """
        end = time.monotonic() + timeout_s
        with self._changed:
            self._is_draining = True
            while self._stats.finished_total < self._submitted and not self._is_closed:
                if not self._changed.wait(max(end - time.monotonic(), 0)) and time.monotonic() >= end:
                    return False
        return True

    def close(self) -> None:
        """End the thread; requests that are not finished are cancelled. The model is then as it was."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        restore_weights(self._model.bare, self._prepacked)
        self._switch.restore()

    # --- the engine's thread ---

    @torch.no_grad()  # not inference mode: what a model keeps from here may serve a training step later
    def _run(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while self._wait_for_work():
            try:
                with self._compute_context():
                    self._step()
            except Exception as error:  # a defect: the requests end, the engine lives
                _log.exception("A step of the batch failed.")
                for lane in self._lanes.values():
                    lane.fail_all(f"{type(error).__name__}: {summarize_error(error, 200)}")
                self._lanes.clear()
                self._count_finished()
        self._cancel_all()

    def _wait_for_work(self) -> bool:
        """Wait for something to do; False once the engine is closed."""
        with self._changed:
            while not self._is_closed and not self._waiting and not self._running():
                if not self._changed.wait(_IDLE_S):
                    for lane in self._lanes.values():
                        lane.release()
            return not self._is_closed

    def _running(self) -> int:
        return sum(len(lane.rows) for lane in self._lanes.values())

    def _step(self) -> None:
        if self._has_cancelled:
            self._remove_cancelled()
        self._admit()
        for lane in list(self._lanes.values()):
            if not lane.rows:
                continue
            cached = sum(row.cached_tokens for row in lane.rows)
            rows = list(lane.rows)
            try:
                prompt, generated = lane.step()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._free_memory(lane, summarize_error(error, 200))
                continue
            cached = sum(row.cached_tokens for row in rows) - cached
            with self._changed:
                self._stats.prompt_tokens_total += prompt
                self._stats.cached_tokens_total += cached
                self._stats.generated_tokens_total += generated
                self._stats.steps_total += 1
        self._count_finished()

    def _admit(self) -> None:
        """Let waiting requests join, the oldest first."""
        running = self._running()
        while self._waiting and running < self._batch_limit:
            with self._changed:
                if not self._waiting:
                    return
                row = self._waiting.popleft()
            key = self._switch.get_lane(row.request.adapter)
            try:
                if key not in self._lanes:
                    with self._changed:
                        self._lanes[key] = BatchLane(self._model, key, self._max_batch)
                self._lanes[key].add(row)
            except Exception as error:
                _log.exception("A request failed.")
                row.finish("error", f"{type(error).__name__}: {summarize_error(error, 200)}")
                continue
            running += 1

    def _free_memory(self, lane: BatchLane, reason: str) -> None:
        """After a lack of memory: forget earlier prompts, then let the newest requests wait again."""
        store = self._model.store
        if len(store):
            store.clear()
        elif len(lane.rows) > 1:
            rows = lane.take_newest(len(lane.rows) // 2)
            self._batch_limit = max(1, self._running())
            _log.warning("Out of memory (%s): %d requests wait again.", reason, len(rows))
            with self._changed:
                self._waiting.extendleft(rows)
        else:
            lane.fail_all(f"Out of memory ({reason}).")
        free_cached_memory()

    def _cancel(self, row: BatchRow) -> None:
        with self._changed:
            row.is_cancelled = self._has_cancelled = True
            self._changed.notify_all()

    def _remove_cancelled(self) -> None:
        with self._changed:
            self._has_cancelled = False
            cancelled = [row for row in self._waiting if row.is_cancelled]
            for row in cancelled:
                self._waiting.remove(row)
        for row in cancelled:
            row.finish("cancelled")
        for lane in self._lanes.values():
            lane.remove_cancelled()

    def _cancel_all(self) -> None:
        with self._changed:
            rows = [*self._waiting, *(row for lane in self._lanes.values() for row in lane.rows)]
            self._waiting.clear()
            self._lanes.clear()
        for row in rows:
            row.finish("cancelled")
        self._count_finished()

    def _note_finish(self) -> None:
        self._finished += 1

    def _count_finished(self) -> None:
        """Publish how many requests have ended."""
        if self._finished != self._stats.finished_total:
            with self._changed:
                self._stats.finished_total = self._finished
                self._changed.notify_all()
        if not self._running():
            self._batch_limit = self._max_batch

    def _check(self, request: BatchRequest) -> None:
        ids, size = request.input_ids, self._model.vocabulary
        if not ids:
            raise ValueError("the prompt is empty")
        # Not left to the model: on a GPU an id out of range breaks the whole process.
        outside = [token for token in (min(ids), max(ids), *request.logit_bias) if not 0 <= token < size]
        if outside:
            raise ValueError(f"the vocabulary has {size:,} tokens; {outside[0]} is not one of them")
        if request.max_new_tokens < 1:
            raise ValueError("max_new_tokens is less than 1")
        if len(ids) >= self._limit:
            raise RequestTooLong(len(ids), self._limit)
        if request.adapter is not None and request.adapter not in self._switch.names():
            raise ValueError(f"there is no adapter {request.adapter!r}; there are {self._switch.names()}")
