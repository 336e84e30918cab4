"""A request while it is generated: its tokens, its text, and what its caller is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Literal

import torch

from glmtune.generation.batch_requests import BatchRequest, FinishEvent, TokenEvent, TokenLogprob
from glmtune.generation.batch_sampling import RowSampler
from glmtune.generation.reply_text import ReplyText, StopStrings
from glmtune.models.row_layout import RowLayout
from glmtune.models.tokenizers.text_decoding import TextDecoder

OnEvent = Callable[[TokenEvent | FinishEvent], None]
FinishReason = Literal["stop", "length", "cancelled", "error"]

_log = logging.getLogger(__name__)


class BatchRow:
    """A request from its arrival to its end.

    Args:
        request: what is asked.
        on_event: called with each event.
        max_new_tokens: longest reply that fits.
        on_finish: called before the last event.

    Attributes:
        ids: of the prompt and of the reply so far.
        filled: number of first ids whose keys and values are in the row's slot.
        context: number of first ids that see each other in both directions.
        prefix: keys and values before them, see `AdapterSwitch.get_prefix`.
        cached_tokens: how many of the prompt's were not computed for this request.
    """

    def __init__(
        self, request: BatchRequest, on_event: OnEvent, max_new_tokens: int, on_finish: Callable[[], None] | None = None
    ):
        self.request = request
        self.ids = list(request.input_ids)
        self.filled = 0
        self.context = 0
        self.prefix: torch.Tensor | None = None
        self.cached_tokens = 0
        self.is_cancelled = False
        self.is_finished = False
        self.sampler: RowSampler | None = None
        self._on_event, self._on_finish = on_event, on_finish
        self._max_new_tokens = max_new_tokens
        self._prompt_tokens = len(request.input_ids)
        self._text: ReplyText | None = None
        self._stops = StopStrings(request.stop)
        self._position: list[int] = []
        self._position_length = 0
        self._change: list[int] = []

    @property
    def new_tokens(self) -> int:
        """Tokens that were generated, a stop id included."""
        return len(self.ids) - self._prompt_tokens

    @property
    def offset(self) -> int:
        """Places of the prefix."""
        return 0 if self.prefix is None else self.prefix.shape[-2]

    @property
    def places(self) -> int:
        """Places of the slot that are filled, if anything is."""
        return self.offset + self.filled

    def prepare(self, layout: RowLayout, decode: TextDecoder, vocabulary: int, device: torch.device):
        """Make what generating needs, when the row joins a batch; of a row that returns, positions alone."""
        self.context = layout.count_context(self.ids)
        self.filled = 0
        if self.sampler is None:
            self.sampler = RowSampler(self.request, vocabulary, device)
            self._text = ReplyText(decode)

    def read_position(self, layout: RowLayout) -> list[int]:
        """Position of the last id, in each stream."""
        if not self._position:
            self._position = layout.make_positions(self.ids)[..., -1].reshape(-1).tolist()
            self._change, self._position_length = layout.next_change(self.ids), len(self.ids)
        steps = len(self.ids) - self._position_length
        return [start + steps * change for start, change in zip(self._position, self._change, strict=True)]

    @property
    def position_change(self) -> list[int]:
        """How far the next token's position is, in each stream; after `read_position`."""
        return self._change

    def add_token(
        self, token: int, logprob: TokenLogprob | None, stop_ids: Collection[int], layout: RowLayout
    ) -> tuple[FinishReason | None, bool]:
        """Add a generated token and pass on its text.

        Returns:
            Why the reply ends with it, if it does; and whether the positions of later tokens change.
        """
        changes = layout.changes_at(token, self.ids)
        self.ids.append(token)
        if self.sampler is not None:
            self.sampler.add_token(token)
        if changes:
            self._position = []
        if token in stop_ids and not self.request.ignore_eos:
            return "stop", changes
        assert self._text is not None
        text = self._stops.add(self._text.add([token]))
        is_last = self.new_tokens >= self._max_new_tokens and not self._stops.is_found
        if is_last:
            text += self._finish_text()
        self._on_event(TokenEvent(text, [token], None if logprob is None else [logprob]))
        if self._stops.is_found:
            return "stop", changes
        return "length" if is_last else None, changes

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Tell the caller that the reply ends; later calls do nothing."""
        if self.is_finished:
            return
        self.is_finished = True
        if self._on_finish:
            self._on_finish()
        try:
            text = self._finish_text() if self._text is not None and reason == "stop" else ""
            if text:
                self._on_event(TokenEvent(text, []))
            self._on_event(
                FinishEvent(
                    reason, self._prompt_tokens, self.new_tokens, min(self.cached_tokens, self._prompt_tokens), error
                )
            )
        except Exception:  # a caller that fails must not end the others' replies
            _log.exception("The receiver of a reply failed at its end.")

    def _finish_text(self) -> str:
        """The rest of the text: an incomplete character, and what might have become a stop string."""
        assert self._text is not None
        return self._stops.add(self._text.finish()) + self._stops.finish()
