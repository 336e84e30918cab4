"""Measure how fast a loaded model reads a prompt and writes a reply, next to the limit of the memory bandwidth.

What limits decoding at batch 1 is reading the weights: every token needs all matrices of the layers and the head, and
one row of the embedding. The share of the limit is those bytes over the time of a token, by the bandwidth measured
between the repeats. Keys and values, which are read too, are not counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from glmtune.errors import ConfigError
from glmtune.generation.compiled_step import find_compiled_step, unwrap_model
from glmtune.generation.cpu_prepack import prepacked
from glmtune.generation.engine import decode_tokens, pick_greedy
from glmtune.generation.graph_step import find_graph_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BANDWIDTH_BUFFER = 1 << 28  # bytes; caches are smaller
_FIRST_ORDINARY_ID = 10  # special ids are below it


@dataclass(frozen=True)
class SpeedMeasurement:
    """Medians over the repeats: seconds, bytes, and tokens per second of all rows together.

    The fields are keys of bench.json.
    """

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
    """Share of the bandwidth that reading the weights takes."""


def measure_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    batch_size: int = 1,
    repeats: int = 3,
    on_repeat: Callable[[], None] | None = None,
) -> SpeedMeasurement:
    """Time greedy replies to random ids; no row stops early.

    Args:
        model: loaded, in eval mode. On a CPU its weights are prepacked for decoding while it is measured.
        tokenizer: its vocabulary limits the ids; None: all of the model's.
        prompt_tokens: of each row.
        new_tokens: of each row, at least 2.
        batch_size: rows.
        repeats: after a short warm-up, or two complete replies where the step is compiled or recorded.
        on_repeat: called after each.

    Raises:
        ConfigError: less than 2 new tokens, no prompt, no row; or more tokens than the model has positions.
    """
    check_sizes(model.config, prompt_tokens, new_tokens, batch_size, repeats)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    if tokenizer is not None:
        vocab_size = min(vocab_size, tokenizer.vocab_size)
    lowest = min(_FIRST_ORDINARY_ID, vocab_size - 1)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(lowest, vocab_size, (batch_size, prompt_tokens), generator=generator).tolist()

    first_seconds, token_seconds, bandwidths = [], [], []
    read_bytes = count_read_bytes(model)
    with prepacked(model, rows=batch_size):
        # A step is compiled or recorded for the cache of the longest reply, after it has run a few times.
        has_fixed_cache = find_compiled_step(model) or find_graph_decoder(unwrap_model(model))
        for length in [max(new_tokens, 3)] * 2 if has_fixed_cache else [2]:
            _time_steps(model, prompts, length)
        for _ in range(repeats):
            bandwidths.append(measure_bandwidth(model.device))
            first_step, later_steps = _time_steps(model, prompts, new_tokens)
            first_seconds.append(first_step)
            token_seconds.append(statistics.median(later_steps))
            if on_repeat:
                on_repeat()
    first, token, bandwidth = map(statistics.median, (first_seconds, token_seconds, bandwidths))
    return SpeedMeasurement(
        batch_size,
        prompt_tokens,
        new_tokens,
        repeats,
        first_token_s=first,
        token_s=token,
        prefill_tokens_per_s=batch_size * prompt_tokens / first,
        decode_tokens_per_s=batch_size / token,
        read_bytes=read_bytes,
        bandwidth=bandwidth,
        limit_share=read_bytes / token / bandwidth,
    )


def check_sizes(config: Any, prompt_tokens: int, new_tokens: int, batch_size: int = 1, repeats: int = 1) -> None:
    """Check sizes before a model is loaded.

    Raises:
        ConfigError: see `measure_model`.
    """
    if min(prompt_tokens, batch_size, repeats) < 1 or new_tokens < 2:
        raise ConfigError(
            f"{batch_size} rows of {prompt_tokens} prompt tokens and {new_tokens} new ones, {repeats} times: "
            "nothing to measure.",
            "At least one row, one prompt token, one repeat, and two new tokens (the first belongs to the prompt).",
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions and prompt_tokens + new_tokens > positions:
        raise ConfigError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones are more than the model's {positions} positions.",
            "Lower --prompt-tokens or --new-tokens.",
        )


def count_read_bytes(model: Any) -> int:
    """Bytes of weights that a token reads: all but the embeddings, of which it reads a row."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    skipped = {id(p) for p in embedding.parameters()} - {id(p) for p in head.parameters()}
    return sum(_count_bytes(p) for p in model.parameters() if id(p) not in skipped)


def count_weight_bytes(model: Any) -> int:
    """Bytes of all weights."""
    return sum(map(_count_bytes, model.parameters()))


def _count_bytes(parameter: torch.Tensor) -> int:
    state = getattr(parameter, "quant_state", None)  # bitsandbytes' scales are not parameters
    scales = [] if state is None else [state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in (parameter, *scales))


def measure_bandwidth(device: torch.device | str, size: int = _BANDWIDTH_BUFFER) -> float:
    """Bytes per second, the median of seven sums over `size` bytes of fp32."""
    numbers = torch.ones(size // 4, device=device)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        numbers.sum().item()  # waits for a GPU, too
        seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds[1:])


def _time_steps(model: Any, prompts: list[list[int]], new_tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and of each later step."""
    ends: list[float] = []
    start = time.perf_counter()
    decode_tokens(
        *(model, prompts, pick_greedy),
        max_new_tokens=new_tokens,
        stops=(),
        padding=0,
        on_step=lambda _: ends.append(time.perf_counter()),
    )
    return ends[0] - start, [after - before for before, after in pairwise(ends)]
