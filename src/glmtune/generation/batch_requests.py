"""Requests to the batching engine and the events of their replies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


class TokenConstraint(Protocol):
    """What may follow in one reply; see `token_constraint.py`."""

    def list_allowed(self) -> Any:
        """Which tokens may follow: a numpy array of bool, one for each token; None: all."""

    def advance(self, token: int) -> None:
        """Take the token that was chosen."""


@dataclass
class BatchRequest:
    """A prompt and how it is to be continued.

    Attributes:
        input_ids: of the prompt.
        max_new_tokens: longest reply.
        temperature: 0 is greedy.
        top_p: share of the probability that is sampled from.
        top_k: number of tokens that are sampled from; 0: all.
        repetition_penalty: divides the scores of tokens that occurred, the prompt's too.
        presence_penalty: is taken off the scores of generated tokens.
        frequency_penalty: the same, times their number.
        logit_bias: added to the scores, by token id.
        seed: of the request's own random numbers; None: any.
        stop: strings that end the reply, without being part of it.
        logprobs: None: none; k: the token's own log probability and those of the k likeliest.
        adapter: name of an adapter of the engine; None: the model as it was loaded.
        ignore_eos: stop ids do not end the reply.
        constraint: restricts the tokens; of this request alone, since it has a state.
    """

    input_ids: list[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    logprobs: int | None = None
    adapter: str | None = None
    ignore_eos: bool = False
    constraint: TokenConstraint | None = None


@dataclass
class TokenLogprob:
    """Log probability of a generated token, and the likeliest tokens with theirs."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class TokenEvent:
    """A piece of a reply: whole characters only, perhaps none yet."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None


@dataclass
class FinishEvent:
    """The end of a reply."""

    reason: Literal["stop", "length", "cancelled", "error"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    error: str | None = None


class QueueFull(Exception):
    """Too many requests wait."""


class RequestTooLong(Exception):
    """A prompt that cannot fit.

    Args:
        prompt_tokens: its length.
        limit: tokens of prompt and reply together.
    """

    def __init__(self, prompt_tokens: int, limit: int):
        super().__init__(f"{prompt_tokens} tokens; the limit is {limit}")
        self.prompt_tokens = prompt_tokens
        self.limit = limit
