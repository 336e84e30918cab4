"""Conversations of the chat, kept as files: named, found again, exported as rows and votes."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.utils.io import find_json_object, write_json, write_text
from glmtune.webui.chat_messages import Messages, read_tools
from glmtune.webui.context import Context

_MAX_LISTED = 200
_MAX_NAME = 60
_ID = re.compile(r"[0-9a-f]{32}")
_change_lock = threading.Lock()
VOTES_FILE = "votes.jsonl"
"""In the first root: the preference rows that votes make."""


@dataclass
class Side:
    """One of the one or two models of a conversation."""

    target: str
    messages: Messages = field(default_factory=list)


@dataclass
class Vote:
    """A judgement of two replies to the same messages."""

    messages: Messages
    """Up to the question."""
    replies: list[str]
    targets: list[str]
    better: int
    """0 or 1; -1: none is better."""
    tools: list[Any] | None = None


@dataclass
class Chat:
    """A conversation."""

    id: str
    name: str = ""
    created: float = 0.0
    sides: list[Side] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    """Fields of the form beside the messages."""
    votes: list[Vote] = field(default_factory=list)


def create_chat(context: Context, targets: list[str], settings: dict[str, str]) -> Chat:
    """A new conversation, which is kept from now on."""
    chat = Chat(uuid.uuid4().hex, "", time.time(), [Side(target) for target in targets], settings)
    save_chat(context, chat)
    return chat


def load_chat(context: Context, id: str) -> Chat:
    """The conversation of an id.

    Raises:
        ConfigError: there is none, or its file is damaged.
    """
    content = find_json_object(_path(context, id))
    if content is None:
        raise ConfigError("This conversation is not kept any more.", "Start a new one.")
    try:
        sides = [Side(str(side["target"]), list(side["messages"])) for side in content["sides"]]
        votes = [Vote(**vote) for vote in content.get("votes", [])]
        return Chat(id, str(content["name"]), float(content["created"]), sides, dict(content["settings"]), votes)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{_path(context, id)}: not a conversation.", "Remove the file.") from None


def save_chat(context: Context, chat: Chat) -> None:
    """Keep a conversation. One without a name is called after its first question."""
    if not chat.name and chat.sides and chat.sides[0].messages:
        chat.name = " ".join(str(chat.sides[0].messages[0].get("content", "")).split())[:_MAX_NAME]
    write_json(_path(context, chat.id), asdict(chat))


def change_chat(context: Context, id: str, change: Callable[[Chat], None]) -> Chat:
    """Change a conversation as it is now, whoever else changed it since it was read: a vote, a name and a reply may
    come at the same time.

    Raises:
        ConfigError: see `load_chat`; also what `change` raises.
    """
    with _change_lock:
        chat = load_chat(context, id)
        change(chat)
        save_chat(context, chat)
        return chat


def add_vote(chat: Chat, vote: Vote) -> None:
    """Add a vote; one on the same replies is replaced, so that a change of mind makes no contradicting rows."""
    others = [each for each in chat.votes if (each.messages, each.replies) != (vote.messages, vote.replies)]
    chat.votes = [*others, vote]


def delete_chat(context: Context, id: str) -> None:
    """Remove a conversation."""
    _path(context, id).unlink(missing_ok=True)


def list_chats(context: Context) -> list[tuple[str, str]]:
    """Ids and names, the newest first."""
    chats = ((path.stem, find_json_object(path)) for path in _list_files(context)[:_MAX_LISTED])
    return [(id, str(content.get("name") or "–")) for id, content in chats if content and _ID.fullmatch(id)]


def make_rows(chat: Chat) -> Iterator[dict[str, Any]]:
    """The conversation of each side as a row to train on."""
    tools = read_tools(chat.settings.get("tools", ""))
    system = chat.settings.get("system", "").strip()
    for side in chat.sides:
        if any(message["role"] == "assistant" for message in side.messages):
            messages = [*([{"role": "system", "content": system}] if system else []), *side.messages]
            yield {"messages": messages} | ({"tools": tools} if tools else {})


def make_preference_row(vote: Vote) -> dict[str, Any] | None:
    """A vote as a row for preference tuning; None where no reply is better."""
    if vote.better not in (0, 1):
        return None
    row: dict[str, Any] = {
        "prompt": vote.messages,
        "chosen": [{"role": "assistant", "content": vote.replies[vote.better]}],
        "rejected": [{"role": "assistant", "content": vote.replies[1 - vote.better]}],
    }
    return row | ({"tools": vote.tools} if vote.tools else {})


def write_votes(context: Context) -> tuple[Path, int]:
    """Write the votes of all conversations as preference rows.

    Returns:
        The file, and its number of rows.
    """
    rows = []
    for id in (path.stem for path in _list_files(context)):
        try:
            votes = load_chat(context, id).votes
        except ConfigError:  # damaged; it hides no other
            continue
        rows += [row for row in map(make_preference_row, votes) if row is not None]
    path = context.roots[0] / VOTES_FILE
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path, len(rows)


def count_votes(chat: Chat) -> dict[str, int]:
    """Votes for the first, the second and none of the models."""
    counts = {"first": 0, "second": 0, "tie": 0}
    for vote in chat.votes:
        counts[{0: "first", 1: "second"}.get(vote.better, "tie")] += 1
    return counts


def _path(context: Context, id: str) -> Path:
    if not _ID.fullmatch(id):
        raise ConfigError("There is no such conversation.", "Choose one of the list.")
    return context.state("chats") / f"{id}.json"


def _list_files(context: Context) -> list[Path]:
    """The files of all conversations, the newest first."""
    return sorted(context.state("chats").glob("*.json"), key=_read_time, reverse=True)


def _read_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted since it was listed
        return 0.0
