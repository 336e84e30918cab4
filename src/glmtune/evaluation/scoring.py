"""From a generated text to the reply that is shown, and to its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from glmtune.evaluation.metrics import score_pair
from glmtune.families import Family, ToolCall
from glmtune.generation.batched import GeneratedReply, generate_batched
from glmtune.generation.reply import Sampling
from glmtune.models.tokenizers.text_decoding import decode_text
from glmtune.training.generated import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def score_reply(
    generated: GeneratedReply, reference: str, calls: Sequence[ToolCall], family: Family, *, tools: bool
) -> tuple[str, dict[str, float]]:
    """Read a reply as chat does, and score it.

    Args:
        generated: the reply.
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
    written = decode_text(tokenizer, ids)
    reply = family.parse_reply(written)
    return make_printable(written.strip() if reply.tool_calls else reply.content), reply.tool_calls


def make_printable(text: str) -> str:
    """`text` with a replacement character for every half of a surrogate pair, which cannot be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def score_tools(expected: Sequence[ToolCall], predicted: Sequence[ToolCall], problem: str = "") -> dict[str, float]:
    """Scores, 0 to 100, of the calls in one reply of a row that offers tools. Calls are compared in their order.

    Args:
        expected: the reference's calls; none where the right reply calls nothing.
        predicted: the calls that could be read from the reply.
        problem: why a text that looks like a call could not be read (`Reply.problem`).

    Returns:
        `tool_decision`: it calls something, readable or not, exactly if the reference does;
        `tool_parse_failure`: a call could not be read;
        and where either side calls something, over the longer of the two lists (a call too many or too few is wrong):
        `tool_name`: right name; `tool_arguments`: right name and all arguments equal; `tool_argument_keys`: of the
        arguments on either side, the share that is equal, 0 under a wrong name.
    """
    called = bool(predicted) or bool(problem)
    scores = {"tool_decision": 100.0 * (bool(expected) == called), "tool_parse_failure": 100.0 * bool(problem)}
    if not expected and not called:
        return scores
    shares = [_compute_call_shares(*pair) for pair in zip_longest(expected, predicted)] or [(0.0, 0.0, 0.0)]
    for name, column in zip(
        ("tool_name", "tool_arguments", "tool_argument_keys"), zip(*shares, strict=True), strict=True
    ):
        scores[name] = 100 * sum(column) / len(column)
    return scores


def _compute_call_shares(expected: ToolCall | None, predicted: ToolCall | None) -> tuple[float, float, float]:
    """Right name, right call, share of equal arguments."""
    if expected is None or predicted is None or expected.name != predicted.name:
        return 0.0, 0.0, 0.0
    keys = expected.arguments.keys() | predicted.arguments.keys()
    shared = expected.arguments.keys() & predicted.arguments.keys()
    equal = sum(is_same_value(expected.arguments[key], predicted.arguments[key]) for key in shared)
    return 1.0, float(equal == len(keys)), equal / len(keys) if keys else 1.0


def is_same_value(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 but not true (which Python takes for 1), whitespace around a text
    does not count."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, str) and isinstance(b, str):
        return a.strip() == b.strip()
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same_value(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(is_same_value(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def score_questions(
    model: Any,
    tokenizer: Any,
    family: Family,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_reply: Callable[[int, str], None] | None = None,
) -> list[dict[str, float]]:
    """Greedy replies to the questions, scored as `glmtune eval` does; see `ScoreReplies`.

    Whether a row offered tools is not known any more: tool scores are given where the reference calls one.
    """
    prompts = [question.prompt_ids for question in questions]
    replies = generate_batched(model, tokenizer, family, prompts, Sampling(max_new_tokens), batch_size=batch_size)
    scores = []
    for number, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        reference, calls = read_reference(question.reference_ids, tokenizer, family)
        text, reply_scores = score_reply(reply, reference, calls, family, tools=False)
        if on_reply is not None:
            on_reply(number, text)
        scores.append(reply_scores)
    return scores
