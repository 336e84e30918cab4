"""How fast a loaded model reads a prompt and writes a reply, beside what the machine's memory allows.

What limits decoding at batch 1 is reading the weights: every token needs all matrices of the layers and the head, and
one row of the embedding. The share of the limit is those bytes over the time of a token, by the bandwidth measured
between the repeats. Keys and values, which are read too, are left out of the count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from glmtune.errors import ConfigError
from glmtune.generation.compiled_step import compiled_step
from glmtune.generation.cpu_prepack import arranged
from glmtune.generation.engine import decode, greedy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BUFFER = 1 << 28  # bytes; caches are smaller
_FIRST_ID = 10  # below it are special ids


@dataclass(frozen=True)
class Measured:
    """Medians over the repeats; seconds, bytes, tokens per second of all rows together."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    first_token_s: float
    """From the prompt to the first new token."""
    token_s: float
    """Of a later step, in which every row gets a token."""
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    read_bytes: int
    """Weights that a step reads."""
    bandwidth: float
    """Bytes per second that a sum over a large tensor reads."""
    limit_share: float
    """Of the bandwidth, by reading weights."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    batch_size: int = 1,
    repeats: int = 3,
    on_repeat: Callable[[], None] | None = None,
) -> Measured:
    """Time greedy replies to random ids; no row stops early.

    Args:
        model: loaded, in eval mode. On a CPU its weights are arranged for decoding while it is measured.
        tokenizer: says how many ids have a meaning; None: all of the model's.
        prompt_tokens: of each row.
        new_tokens: of each row, at least 2.
        batch_size: rows.
        repeats: after a short warm-up, or two whole replies where the step is compiled.
        on_repeat: told after each.

    Raises:
        ConfigError: less than 2 new tokens, no prompt, no row; or more tokens than the model has positions.
    """
    check_sizes(model.config, prompt_tokens, new_tokens, batch_size, repeats)
    ids = _random_prompts(model, tokenizer, batch_size, prompt_tokens)
    read = weights_read(model)
    firsts, tokens, bandwidths = [], [], []
    with arranged(model):
        # A step is compiled for the cache of the longest reply, and recorded once it has run.
        for length in [max(new_tokens, 3)] * 2 if compiled_step(model) else [2]:
            _times(model, ids, length)
        for _ in range(repeats):
            bandwidths.append(read_bandwidth(model.device))
            first, later = _times(model, ids, new_tokens)
            firsts.append(first)
            tokens.append(statistics.median(later))
            if on_repeat:
                on_repeat()
    first, token, bandwidth = map(statistics.median, (firsts, tokens, bandwidths))
    return Measured(
        batch_size,
        prompt_tokens,
        new_tokens,
        repeats,
        first_token_s=first,
        token_s=token,
        prefill_tokens_per_s=batch_size * prompt_tokens / first,
        decode_tokens_per_s=batch_size / token,
        read_bytes=read,
        bandwidth=bandwidth,
        limit_share=read / token / bandwidth,
    )


def check_sizes(config: Any, prompt_tokens: int, new_tokens: int, batch_size: int = 1, repeats: int = 1) -> None:
    """Raises: ConfigError, see `measure`."""
    if min(prompt_tokens, batch_size, repeats) < 1 or new_tokens < 2:
        raise ConfigError(
            f"{batch_size} rows of {prompt_tokens} prompt tokens and {new_tokens} new ones, {repeats} times: "
            "nothing to measure.",
            "At least one row, one prompt token, one repeat, and two new tokens (the first is the prompt's).",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest and prompt_tokens + new_tokens > longest:
        raise ConfigError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the model's {longest} positions.",
            "Lower --prompt-tokens or --new-tokens.",
        )


def weights_read(model: Any) -> int:
    """Bytes of weights that a token reads: all but the embeddings, of which it reads a row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    skipped = {id(p) for p in embedding.parameters()} - {id(p) for p in head.parameters()}
    return sum(_bytes(p) for p in model.parameters() if id(p) not in skipped)


def weights_held(model: Any) -> int:
    """Bytes of all weights."""
    return sum(map(_bytes, model.parameters()))


def read_bandwidth(device: torch.device | str, size: int = _BUFFER) -> float:
    """Bytes per second, the median of seven sums over `size` bytes of fp32."""
    numbers = torch.ones(size // 4, device=device)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        numbers.sum().item()  # waits for a GPU, too
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds[1:])


def _bytes(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # of bitsandbytes: the scales lie beside the numbers
    scales = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *scales))


def _random_prompts(model: Any, tokenizer: Any, rows: int, length: int) -> list[list[int]]:
    words = model.get_input_embeddings().weight.shape[0]
    if tokenizer is not None:
        words = min(words, tokenizer.vocab_size)
    lowest = min(_FIRST_ID, words - 1)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(lowest, words, (rows, length), generator=generator).tolist()


def _times(model: Any, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each later step."""
    ends: list[float] = []
    start = time.perf_counter()
    decode(
        *(model, prompts, greedy),
        max_new_tokens=new_tokens,
        stops=(),
        padding=0,
        on_step=lambda _: ends.append(time.perf_counter()),
    )
    return ends[0] - start, [after - before for before, after in pairwise(ends)]
