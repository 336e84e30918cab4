"""From a generated text to the reply that is shown, and to its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from glmtune.evaluation.metrics import score_pair
from glmtune.evaluation.tool_scores import score_tools
from glmtune.families import Family, ToolCall
from glmtune.generation.batched import GeneratedReply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def score_reply(
    generated: GeneratedReply, reference: str, calls: Sequence[ToolCall], family: Family, *, tools: bool
) -> tuple[str, dict[str, float]]:
    """Read a reply as chat does, and score it.

    Args:
        generated: what the model wrote.
        reference: what it should have written.
        calls: the calls in the reference.
        family: reads calls from texts.
        tools: whether the row offers tools; rows that do, or whose reference calls one, get the scores of
            `score_tools` besides.

    Returns:
        The reply (a tool call as the model wrote it) and its scores by name.
    """
    reply = family.parse_reply(generated.text)
    prediction = make_printable(generated.text.strip() if reply.tool_calls else reply.content)
    scores = score_pair(prediction, reference, truncated=generated.stop == "length")
    if tools or calls:
        scores |= score_tools(calls, reply.tool_calls, reply.problem)
    return prediction, scores


def read_reference(ids: list[int], tokenizer: PreTrainedTokenizerBase, family: Family) -> tuple[str, list[ToolCall]]:
    """The text of an encoded answer, read as a reply to it is read, and the calls in it.

    The published scores take their references from ids too. Nothing else would be fair to a tokenizer that spells some
    characters in its own way.
    """
    written = str(tokenizer.decode(ids, skip_special_tokens=True))
    reply = family.parse_reply(written)
    return make_printable(written.strip() if reply.tool_calls else reply.content), reply.tool_calls


def make_printable(text: str) -> str:
    """`text` with a replacement character for every half of a surrogate pair, which no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
