"""Replies to many prompts: left-padded batches of prompts of like length, stopped on every stop id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from glmtune.errors import ModelError, summarize_error
from glmtune.families import Family
from glmtune.generation.compiled_step import unwrap_model
from glmtune.generation.context_window import get_context_window
from glmtune.generation.cpu_prepack import prepacked
from glmtune.generation.engine import decode_tokens
from glmtune.generation.graph_step import release_graph
from glmtune.generation.sampling import Sampling, make_sampler
from glmtune.models.devices import free_cached_memory
from glmtune.models.tokenizers.text_decoding import decode_text
from glmtune.training.memory import is_out_of_memory
from glmtune.utils.console import count_noun

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class GeneratedReply:
    """A reply to the prompt with number `index`."""

    index: int
    ids: list[int]
    """Without the stop id."""
    text: str
    """Special tokens left out."""
    stop: Literal["stop", "length"]
    """`length`: cut at the longest reply allowed."""
    end: int | None = None
    """The stop id that ended it."""

    @property
    def tokens(self) -> int:
        """Tokens that were generated, the stop id included."""
        return len(self.ids) + (self.stop == "stop")


def generate_batched(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    seeds: Sequence[int] | None = None,
    on_done: Callable[[list[GeneratedReply]], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> list[GeneratedReply]:
    """Answer every prompt, the longest first: a lack of memory then shows at the start.

    In fp32 neither `batch_size` nor the other prompts change a reply; in 16 bits rounding may.

    Args:
        model: in eval mode, not wrapped for data parallelism.
        tokenizer: its tokenizer.
        family: its generation.
        prompts: ids, from `family.encode_prompt`.
        sampling: how tokens are chosen.
        batch_size: prompts in a batch; halved for the rest of the call if memory is not sufficient.
        seeds: one per prompt; all that a sampled reply's random draws depend on. The prompts' numbers when None.
        on_done: called with the replies of each finished batch.
        warn: called once if batches get smaller, and if prompts are longer than the context window.

    Returns:
        The replies in the order of the prompts.

    Raises:
        ModelError: there is not even memory for one reply.
    """
    seeds = range(len(prompts)) if seeds is None else seeds
    window = get_context_window(model)
    too_long = sum(len(prompt) >= window for prompt in prompts)
    if too_long and warn:  # not refused: rows of this length may have been trained on
        warn(
            f"{too_long} of {count_noun(len(prompts), 'prompt')} {'is' if too_long == 1 else 'are'} longer than the "
            "context window of this model "
            f"({window:,} tokens); its replies to them mean little. Lower data.max_source_length to shorten them."
        )

    def answer(batch: Sequence[int]) -> list[GeneratedReply]:
        row_seeds = [seeds[i] for i in batch]
        replies = _generate_batch(model, tokenizer, family, [prompts[i] for i in batch], sampling, row_seeds)
        return [_make_reply(i, ids, tokenizer, family) for i, ids in zip(batch, replies, strict=True)]

    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    replies: dict[int, GeneratedReply] = {}
    try:
        with prepacked(model, rows=min(batch_size, len(prompts))):
            for batch in run_in_batches(order, batch_size, answer, warn):
                replies |= {reply.index: reply for reply in batch}
                if on_done:
                    on_done(batch)
    finally:
        release_graph(unwrap_model(model))  # a training that generates between its steps needs the memory
    return [replies[i] for i in range(len(prompts))]


def run_in_batches(
    items: Sequence[T], size: int, compute: Callable[[Sequence[T]], R], warn: Callable[[str], None] | None = None
) -> Iterator[R]:
    """What `compute` makes of the items, `size` at a time; after a lack of memory half as many, from there on.

    Raises:
        ModelError: one item alone does not fit into memory.
    """
    start, is_warned = 0, False
    while start < len(items):
        batch = items[start : start + size]
        try:
            result = compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = summarize_error(error, 200)
        else:
            yield result
            start += len(batch)
            continue
        # Not in the handler: there the traceback still holds the tensors of what failed.
        if len(batch) == 1:
            raise ModelError(
                f"Out of memory with a single row ({reason}).",
                "Shorten prompts or replies, or load the model in fewer bits: --quantization nf4.",
            )
        size = len(batch) // 2
        free_cached_memory()
        if warn and not is_warned:
            warn(f"Out of memory with {len(batch)} rows in a batch; continuing with fewer.")
            is_warned = True


def _generate_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    prompts: list[Sequence[int]],
    sampling: Sampling,
    seeds: list[int],
) -> list[list[int]]:
    """The new ids of each row, its stop id included."""
    padding: Any = tokenizer.pad_token_id
    return decode_tokens(
        model,
        prompts,
        make_sampler(sampling, seeds, model.device),
        max_new_tokens=sampling.max_new_tokens,
        stops=family.get_stop_ids(tokenizer),
        padding=padding,
    )


def _make_reply(index: int, ids: list[int], tokenizer: PreTrainedTokenizerBase, family: Family) -> GeneratedReply:
    stops = set(family.get_stop_ids(tokenizer))
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    answer_ids = ids[:end]
    text = decode_text(tokenizer, answer_ids)
    if end is None:
        return GeneratedReply(index, answer_ids, text, "length")
    return GeneratedReply(index, answer_ids, text, "stop", ids[end])
