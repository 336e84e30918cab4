"""Methods that the published code has on its models, for ours: `chat`, `stream_chat`, `quantize`.

Imported while transformers imports its model, so everything else is imported when a method is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


def add_published_methods(model_class: Any) -> None:
    """Give a class of language models the methods that the published code has."""
    for method in (chat, stream_chat, quantize):
        setattr(model_class, method.__name__, method)


def keep_rotary_precision(rotary_class: Any) -> None:
    """Let `half()`, `bfloat16()` and `to(dtype)` leave rotary frequencies in fp32: in 16 bits they are other positions,
    and other replies beyond a few hundred tokens."""

    def apply_in_own_precision(self: Any, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        exact = dict(self.named_buffers(recurse=False))
        super(rotary_class, self)._apply(fn, recurse)
        for name, buffer in list(self.named_buffers(recurse=False)):
            if buffer.dtype != exact[name].dtype:
                # `buffer` says where to; its values are rounded.
                setattr(self, name, exact[name].to(buffer.device))
        return self

    rotary_class._apply = apply_in_own_precision


def chat(self: Any, tokenizer: Any, query: str, history: Any = None, *arguments: Any, **options: Any) -> Any:
    """Answer `query` after `history`, as `chat` of the published code.

    Args:
        tokenizer: from `AutoTokenizer` or `glmtune.load_tokenizer`.
        query: the new message.
        history: from the last call: pairs of question and answer (ChatGLM-6B, ChatGLM2), or messages with role and
            content (ChatGLM3, GLM-4).
        arguments, options: `role` (ChatGLM3, GLM-4), `max_length`, `max_new_tokens`, `do_sample`, `top_p`, `top_k`,
            `temperature`, `repetition_penalty`, `logits_processor`, with the defaults of the published code.

    Returns:
        The reply, and the history with it.

    Raises:
        ConfigError: an argument that is unknown, or has a value that is not supported.
        DataError: the prompt fills `max_length`, or the history has another form.
    """
    from glmtune.auto_classes.published_chat import answer_query

    return answer_query(self, tokenizer, query, history, arguments, options)


def stream_chat(
    self: Any, tokenizer: Any, query: str, history: Any = None, *arguments: Any, **options: Any
) -> Iterator[Any]:
    """Answer as `chat` does, and yield the reply so far with its history again and again.

    `return_past_key_values=True` yields None as a third value, to be passed on as `past_key_values`: the conversation
    is read from its start each time, which gives the same replies.
    """
    from glmtune.auto_classes.published_chat import stream_answer

    return stream_answer(self, tokenizer, query, history, arguments, options)


def quantize(self: Any, bits: int, *_: Any, **__: Any) -> Any:
    """Pack the layers' matrices into 4 or 8 bits, in place, as `quantize` of the published code.

    Returns:
        The model itself.

    Raises:
        ModelError: another number of bits, or a model that is quantised otherwise.
    """
    from glmtune.auto_classes.published_loading import quantize_in_place

    return quantize_in_place(self, bits)
