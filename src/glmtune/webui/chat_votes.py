"""Votes for the better of two replies: preference rows for the next training, and a comparison of the two models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError, RunError
from glmtune.evaluation.votes import VOTES_FILE, VotedReplies, VoteResult, compare_votes
from glmtune.utils.io import iso_timestamp, slugify, write_text
from glmtune.webui.chat_messages import Messages, read_tools
from glmtune.webui.chat_store import Chat, Vote, iterate_chats
from glmtune.webui.context import Context
from glmtune.webui.errors import PathError
from glmtune.webui.paths import inside

ROWS_FILE = "votes.jsonl"
"""In the first root: the preference rows that votes make."""
_comparison_lock = threading.Lock()
_SIDES = {"first": 0, "second": 1}


@dataclass(frozen=True)
class WrittenRows:
    """What `write_votes` wrote.

    Attributes:
        path: of the file.
        rows: in it.
        later_rows: those whose prompt holds turns that the two models had answered differently.
        ties: votes that make no row.
    """

    path: Path
    rows: int
    later_rows: int
    ties: int


def make_vote(chat: Chat, better: str) -> Vote:
    """A vote on the last replies of both sides, with the history that each of them had.

    Raises:
        ConfigError: there are no two replies to the same questions.
    """
    messages = [side.messages for side in chat.sides]
    asked = [[message["content"] for message in each if message["role"] == "user"] for each in messages]
    has_replies = len(messages) == 2 and all(each and each[-1]["role"] == "assistant" for each in messages)
    if not has_replies or asked[0] != asked[1]:  # one side may have failed
        raise ConfigError("There are no two replies to compare.", "Ask two models side by side first.")
    tools = read_tools(chat.settings.get("tools", ""))
    system = chat.settings.get("system", "").strip()
    start: Messages = [{"role": "system", "content": system}] if system else []
    histories = [[*start, *each[:-1]] for each in messages]
    replies = [str(each[-1]["content"]) for each in messages]
    targets = [side.target for side in chat.sides]
    other = histories[1] if histories[1] != histories[0] else None
    return Vote(histories[0], replies, targets, _SIDES.get(better, -1), tools, other)


def make_preference_row(vote: Vote) -> dict[str, Any] | None:
    """A vote as a row for preference tuning; None where no reply is better. The prompt is the history of the better
    reply: it is what the model is trained to answer."""
    if vote.better not in (0, 1):
        return None
    row: dict[str, Any] = {
        "prompt": vote.get_history(vote.better),
        "chosen": [{"role": "assistant", "content": vote.replies[vote.better]}],
        "rejected": [{"role": "assistant", "content": vote.replies[1 - vote.better]}],
    }
    return row | ({"tools": vote.tools} if vote.tools else {})


def write_votes(context: Context) -> WrittenRows:
    """Write the votes of all conversations as preference rows."""
    votes = [vote for chat in iterate_chats(context) for vote in chat.votes]
    rows = [row for row in map(make_preference_row, votes) if row is not None]
    later = sum(vote.other_messages is not None and vote.better in (0, 1) for vote in votes)
    path = context.roots[0] / ROWS_FILE
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return WrittenRows(path, len(rows), later, len(votes) - len(rows))


def count_votes(chat: Chat) -> dict[str, int]:
    """Votes for the first, the second and none of the models in a conversation."""
    counts = {"first": 0, "second": 0, "tie": 0}
    for vote in chat.votes:
        counts[{0: "first", 1: "second"}.get(vote.better, "tie")] += 1
    return counts


def update_comparison(context: Context, chat: Chat) -> VoteResult | None:
    """Write the comparison of a conversation's two models again, from the votes of all conversations with both.

    Returns:
        The comparison; None without votes, and then its folder is removed.

    Raises:
        PathError: the folder leads out of the roots.
    """
    targets = [side.target for side in chat.sides]
    if len(targets) != 2:
        return None
    with _comparison_lock:  # a vote that comes at the same time is not overwritten
        folder = find_comparison_folder(context, targets)
        result = _compare(context, targets)
        if result is None:
            _remove_comparison(folder)
            return None
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / VOTES_FILE, json.dumps(result.to_dict(), ensure_ascii=False, indent=2) + "\n")
    return result


def read_comparison(context: Context, chat: Chat) -> tuple[Path, VoteResult] | None:
    """The comparison of a conversation's two models and its folder; None if there is none, or it cannot be read."""
    try:
        folder = find_comparison_folder(context, [side.target for side in chat.sides])
        return (folder, VoteResult.load(folder / VOTES_FILE)) if (folder / VOTES_FILE).is_file() else None
    except (RunError, PathError):
        return None


def find_comparison_folder(context: Context, targets: list[str]) -> Path:
    """Where the comparison of two models lies, whichever of them was on the left."""
    pair = sorted(targets)
    digest = hashlib.sha256("\n".join(pair).encode("utf-8", "replace")).hexdigest()[:8]
    names = "-".join(slugify(Path(target).name, "model")[:30] for target in pair)
    return inside(context.roots, f"evals/votes-{names}-{digest}")


def _compare(context: Context, targets: list[str]) -> VoteResult | None:
    chats = sorted(iterate_chats(context), key=lambda chat: chat.created)
    votes = [vote for chat in chats for vote in chat.votes if sorted(vote.targets) == sorted(targets)]
    if not votes:
        return None
    order = votes[0].targets  # the sides of the oldest conversation
    rows = list(_orient_votes(votes, order))
    return compare_votes([context.shorten(target) for target in order], order, rows, iso_timestamp())


def _orient_votes(votes: list[Vote], order: list[str]) -> Iterator[VotedReplies]:
    """Votes with the model `order[0]` first."""
    for vote in votes:
        sides = (0, 1) if vote.targets == order else (1, 0)
        better = sides.index(vote.better) if vote.better in sides else -1
        yield VotedReplies([vote.get_history(side) for side in sides], [vote.replies[side] for side in sides], better)


def _remove_comparison(folder: Path) -> None:
    for name in (VOTES_FILE, "report.html"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
