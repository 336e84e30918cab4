"""What the routes share: the engine, the names of its models, and the limits of requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from glmtune.families import Family
from glmtune.serve.api_errors import ApiError
from glmtune.serve.prometheus import ServerMetrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from glmtune.generation.token_constraint import TokenTable
    from glmtune.serve.reply_group import EventMailbox

Result = TypeVar("Result")


@dataclass(frozen=True)
class ServedModel:
    """A name that requests may have in `model`.

    Attributes:
        name: of the model.
        adapter: name of the engine's adapter; None for the model as it was loaded.
        prefix: text before the first question, as in the adapter's training.
    """

    name: str
    adapter: str | None = None
    prefix: str = ""


@dataclass(frozen=True)
class ServeLimits:
    """Limits of requests.

    Attributes:
        context_window: tokens of prompt and reply together.
        body_bytes: size of a body.
        body_timeout_s: seconds in which a body has to arrive.
        request_timeout_s: seconds from a request's arrival to the end of its reply.
    """

    context_window: int
    body_bytes: int = 4 * 2**20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0


@dataclass(frozen=True)
class SamplingDefaults:
    """How tokens are chosen where a request does not say it; as in OpenAI's API."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass
class ServeContext:
    """See the file's docstring.

    Attributes:
        engine: a started `BatchEngine`.
        tokenizer: of the model.
        family: of the model.
        models: the first one answers where a contract has no `model`.
        limits: of requests.
        defaults: of sampling.
        is_draining: the server ends and takes no new requests.
        mailbox: of the server's loop, made by the first request.
    """

    engine: Any
    tokenizer: PreTrainedTokenizerBase
    family: Family
    models: list[ServedModel]
    limits: ServeLimits
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    is_draining: bool = False
    mailbox: EventMailbox | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    _token_table: TokenTable | None = None
    # One thread: tokenizers have state that a second one would change under way, and a long text must not stop the
    # others' streams.
    _encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encode"))

    def find_model(self, name: str) -> ServedModel:
        """The model of this name.

        Raises:
            ApiError: there is none.
        """
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models)
        raise ApiError(
            404, f"The model {name[:80]!r} does not exist. Served here: {known}.", code="model_not_found", param="model"
        )

    async def run_encoder(self, function: Callable[[], Result]) -> Result:
        """Call a function that uses the tokenizer, outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._encoder, function)

    def get_token_table(self) -> TokenTable:
        """The bytes of the vocabulary, for constraints; made once, on the encoder's thread."""
        if self._token_table is None:
            from glmtune.generation.token_constraint import TokenTable

            stops = self.family.get_stop_ids(self.tokenizer)
            self._token_table = TokenTable(self.tokenizer, len(self.tokenizer), stops)
        return self._token_table

    def close(self) -> None:
        """Stop the thread of the tokenizer."""
        self._encoder.shutdown(wait=False, cancel_futures=True)
