"""An engine that answers what a test says, with the interface of `BatchEngine`."""

from __future__ import annotations

import dataclasses
import threading

from glmtune.generation.batch_requests import FinishEvent, QueueFull, TokenEvent, TokenLogprob


@dataclasses.dataclass
class FakeStats:
    running: int = 1
    generated_tokens_total: int = 7


class FakeEngine:
    """Answers every request with the same pieces, or as told; the interface is that of `BatchEngine`.

    Args:
        pieces: of text.
        reason: of the end.
    """

    def __init__(self, pieces=("你", "好", "！"), reason="stop"):
        self.pieces, self.reason = list(pieces), reason
        self.requests, self.cancelled = [], []
        self.error = None
        self.is_waiting = False
        self.max_requests = 100

    def submit(self, request, on_event):
        if self.error:
            raise self.error
        if len(self.requests) >= self.max_requests:
            raise QueueFull()
        self.requests.append(request)
        handle = FakeHandle(self, request, on_event)
        if not self.is_waiting:
            threading.Thread(target=handle.answer).start()
        return handle

    def stats(self):
        return FakeStats()

    def drain(self, timeout_s):
        return True

    def close(self):
        pass


class FakeHandle:
    def __init__(self, engine, request, on_event):
        self.engine, self.request, self.on_event = engine, request, on_event

    def answer(self):
        for number, piece in enumerate(self.engine.pieces):
            logprobs = None
            if self.request.logprobs is not None:
                token = 300 + number
                logprobs = [TokenLogprob(token, -0.5, [(token, -0.5), (301, -2.0)][: self.request.logprobs])]
            self.on_event(TokenEvent(piece, [number], logprobs))
        prompt, reason = len(self.request.input_ids), self.engine.reason
        error = "out of memory" if reason == "error" else None
        self.on_event(FinishEvent(reason, prompt, len(self.engine.pieces), 2, error))

    def cancel(self):
        self.engine.cancelled.append(self.request)
