"""A reply that comes in pieces and can be stopped."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers import set_seed

from glmtune.families import Reply
from glmtune.generation.load import LoadedModel
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.webui.chat_messages import Messages


class _StoppedError(Exception):
    """Leaves `generate` between two tokens."""


def stream_reply(
    loaded: LoadedModel,
    messages: Messages,
    sampling: Sampling,
    stop: threading.Event,
    *,
    system: str = "",
    tools: list[Any] | None = None,
    seed: int | None = None,
    on_drop: Callable[[int], None] | None = None,
) -> Iterator[str | Reply]:
    """Let the model answer in a thread of its own.

    Args:
        loaded: the model.
        messages: the user's message, or a tool's result, last.
        sampling: how tokens are chosen.
        stop: ends the reply between two tokens once it is set.
        system: the system message.
        tools: descriptions.
        seed: makes a sampled reply repeat.
        on_drop: see `generate_reply`.

    Yields:
        The text so far, again and again, then the reply; a stopped one holds what there was.
    """
    pieces: queue.Queue[str | Reply | Exception] = queue.Queue()
    is_left = threading.Event()

    def put(text: str) -> None:
        if stop.is_set() or is_left.is_set():
            raise _StoppedError
        pieces.put(text)

    def work() -> None:
        conversation = [{"role": "system", "content": system}, *messages] if system else messages
        try:
            if seed is not None:
                set_seed(seed)
            pieces.put(
                generate_reply(
                    *(loaded.model, loaded.tokenizer, loaded.family, conversation),
                    tools=tools,
                    sampling=sampling,
                    on_text=put,
                    prefix=loaded.prefix,
                    on_drop=on_drop,
                )
            )
        except Exception as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from _read_pieces(pieces)
    finally:
        is_left.set()  # nobody listens any more if the page was closed
        thread.join()


def _read_pieces(pieces: queue.Queue[str | Reply | Exception]) -> Iterator[str | Reply]:
    text = ""
    while True:
        piece = pieces.get()
        if isinstance(piece, str):
            text += piece
            if pieces.empty():  # a page slower than the model is not sent every token
                yield text
        elif isinstance(piece, _StoppedError):
            yield Reply(text)
            return
        elif isinstance(piece, Exception):
            raise piece
        else:
            yield piece
            return
