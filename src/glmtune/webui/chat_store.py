"""Conversations of the chat, kept as files: named, found again, exported as rows."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glmtune.errors import ConfigError
from glmtune.utils.io import find_json_object, write_json
from glmtune.webui.chat_messages import Messages, read_tools
from glmtune.webui.context import Context

PAGE_CHATS = 20
MAX_NAME = 60
_ID = re.compile(r"[0-9a-f]{32}")
_change_lock = threading.Lock()
_read_chats: dict[str, tuple[int, Chat]] = {}
"""Conversations by path, with the time of the file: thousands are not read for every list and vote."""


@dataclass
class Side:
    """One of the one or two models of a conversation."""

    target: str
    messages: Messages = field(default_factory=list)


@dataclass
class Vote:
    """A judgement of two replies to the same messages."""

    messages: Messages
    """Up to the question, as the first side had them."""
    replies: list[str]
    targets: list[str]
    better: int
    """0 or 1; -1: none is better."""
    tools: list[Any] | None = None
    other_messages: Messages | None = None
    """As the second side had them, where the models had answered earlier turns differently."""

    def get_history(self, side: int) -> Messages:
        """The messages that a side's reply answers."""
        return self.other_messages if side == 1 and self.other_messages is not None else self.messages


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
    is_named: bool = False
    """Whether a user chose the name."""


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
        votes = [_read_vote(vote) for vote in content.get("votes", [])]
        settings, is_named = dict(content["settings"]), content.get("is_named") is True
        return Chat(id, str(content["name"]), float(content["created"]), sides, settings, votes, is_named)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{_path(context, id)}: not a conversation.", "Remove the file.") from None


def save_chat(context: Context, chat: Chat) -> None:
    """Keep a conversation. One without a name is called after its first question."""
    chat.name = chat.name or _suggest_name(chat)
    write_json(_path(context, chat.id), asdict(chat))


def has_own_name(chat: Chat) -> bool:
    """Whether a user chose the name of a conversation."""
    return chat.is_named or chat.name not in ("", _suggest_name(chat))


def _suggest_name(chat: Chat) -> str:
    messages = chat.sides[0].messages if chat.sides else []
    return " ".join(str(messages[0].get("content", "")).split())[:MAX_NAME] if messages else ""


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

    def identify(each: Vote) -> tuple[Any, ...]:
        return each.messages, each.other_messages, each.replies

    chat.votes = [*(each for each in chat.votes if identify(each) != identify(vote)), vote]


def delete_chat(context: Context, id: str) -> None:
    """Remove a conversation."""
    path = _path(context, id)
    path.unlink(missing_ok=True)
    _read_chats.pop(str(path), None)


def iterate_chats(context: Context) -> Iterator[Chat]:
    """All conversations, the newest first; a file that is none hides no other. They are shared: not to be changed."""
    for path in _list_files(context):
        try:
            changed = path.stat().st_mtime_ns
            known = _read_chats.get(str(path))
            if known is None or known[0] != changed:
                known = _read_chats[str(path)] = (changed, load_chat(context, path.stem))
            yield known[1]
        except (ConfigError, OSError):  # damaged, or deleted since it was listed
            _read_chats.pop(str(path), None)


def list_chats(context: Context, search: str = "", page: int = 1) -> tuple[list[Chat], int]:
    """A page of the conversations, the newest first.

    Args:
        context: the server's settings.
        search: words of the name or of a model.
        page: from 1.

    Returns:
        Up to `PAGE_CHATS` conversations, and the number of all that match.
    """
    words = search.casefold().split()
    found = []
    for chat in iterate_chats(context):
        content = " ".join([chat.name, *(side.target for side in chat.sides)]).casefold()
        if all(word in content for word in words):
            found.append(chat)
    start = (page - 1) * PAGE_CHATS
    return found[start : start + PAGE_CHATS], len(found)


def make_rows(chat: Chat) -> Iterator[dict[str, Any]]:
    """The conversation of each side as a row to train on."""
    tools = read_tools(chat.settings.get("tools", ""))
    system = chat.settings.get("system", "").strip()
    for side in chat.sides:
        if any(message["role"] == "assistant" for message in side.messages):
            messages = [*([{"role": "system", "content": system}] if system else []), *side.messages]
            yield {"messages": messages} | ({"tools": tools} if tools else {})


def _read_vote(content: dict[str, Any]) -> Vote:
    """Raises:
    TypeError: not a vote.
    """
    vote = Vote(**content)
    pairs = (vote.replies, vote.targets)
    if not all(isinstance(pair, list) and [type(each) for each in pair] == [str, str] for pair in pairs):
        raise TypeError("not two replies of two models")
    return vote


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
