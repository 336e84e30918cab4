"""Whether a reply calls the tools it should."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from glmtune.families import ToolCall


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
