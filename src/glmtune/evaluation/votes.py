"""A comparison of two models by the votes of people: votes.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmtune.evaluation.results import load_result
from glmtune.evaluation.statistics import ScoreSummary

VOTES_FILE = "votes.json"
_Z = 1.959964
"""Quantile of the normal distribution for 95 %, two-sided."""


@dataclass(frozen=True)
class VotedReplies:
    """Replies of two models to one question, and which one a person found better.

    Attributes:
        prompts: messages up to the question, as each model had them: from the second turn on, its own replies are in
            its history.
        replies: of both models.
        better: 0 or 1; -1: none.
    """

    prompts: list[Any]
    replies: list[str]
    better: int


@dataclass(frozen=True)
class VoteResult:
    """votes.json: how often people found the first model's reply better than the second's.

    Attributes:
        kind: "votes".
        models: names of both.
        targets: what they are: paths or hub ids.
        wins: votes for the first model.
        losses: for the second.
        ties: for none.
        rate: share of wins in percent, ties as halves, with Wilson's 95 % interval.
        p: two-sided sign test of "neither is better" over the votes that are no ties; 1 without any.
        mean_lengths: characters of a reply of each model; people tend to prefer longer ones.
        rows: what was voted on.
        finished_at: of the last vote.
    """

    kind: str
    models: list[str]
    targets: list[str]
    wins: int
    losses: int
    ties: int
    rate: ScoreSummary
    p: float
    mean_lengths: list[float]
    rows: list[VotedReplies]
    finished_at: str

    @classmethod
    def load(cls, path: Path) -> VoteResult:
        """Read votes.json; see `load_result`."""
        result: VoteResult = load_result(cls, path)
        return result

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return asdict(self)


def compare_votes(
    models: Sequence[str], targets: Sequence[str], rows: Sequence[VotedReplies], finished_at: str
) -> VoteResult:
    """Count votes on replies of two models.

    Args:
        models: names of both.
        targets: what they are.
        rows: what was voted on, the first model's side first.
        finished_at: of the last vote.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("A comparison needs at least one vote.")
    wins, losses = (sum(row.better == side for row in rows) for side in (0, 1))
    ties = len(rows) - wins - losses
    lengths = [sum(len(row.replies[side]) for row in rows) / len(rows) for side in (0, 1)]
    return VoteResult(
        *("votes", list(models), list(targets), wins, losses, ties),
        rate=compute_vote_rate(wins, losses, ties),
        p=compute_sign_p(wins, losses),
        mean_lengths=lengths,
        rows=list(rows),
        finished_at=finished_at,
    )


def compute_vote_rate(wins: int, losses: int, ties: int) -> ScoreSummary:
    """Share of wins in percent, ties as halves, with Wilson's interval (JASA 22, 1927): unlike a bootstrap it is no
    point where few votes all say the same. With ties it is wider than it had to be.

    Raises:
        ValueError: no votes.
    """
    count = wins + losses + ties
    if not count:
        raise ValueError("A rate needs at least one vote.")
    share = (wins + ties / 2) / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return ScoreSummary(100 * share, 100 * max(0.0, middle - half), 100 * min(1.0, middle + half), count)


def compute_sign_p(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact sign test: how likely is a split at least as uneven if both are equally good."""
    count = wins + losses
    tail = sum(math.comb(count, number) for number in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**count)
