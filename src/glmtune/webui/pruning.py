"""Removes what the page keeps by itself, so that it does not grow for ever. Nothing that a user named is removed: saved
settings, named conversations, runs, results."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glmtune.utils.console import count_noun, print_message, print_warning
from glmtune.utils.file_access import FileAccessError, require_readable
from glmtune.webui.chat_store import Chat, delete_chat, has_own_name, iterate_chats
from glmtune.webui.context import Context
from glmtune.webui.root_walk import walk_roots
from glmtune.webui.uploads import list_received, remove_received

_DAY_SECONDS = 86_400.0
_EVERY_SECONDS = 6 * 3600.0
_FOLDER_NAMED = re.compile(rb"uploads[/\\]*(?:[\"'\s\]:,]|$)|uploads[/\\][^\"'\n]*[*?\[]")
"""The folder of uploads as a whole, or a pattern in it."""


@dataclass(frozen=True)
class KeepRule:
    """How long something is kept.

    Attributes:
        days: since it was last changed.
        most: that are kept; the oldest go first.
    """

    days: int
    most: int

    def select_old(self, items: Iterable[tuple[float, Path]]) -> list[Path]:
        """Of files with their times, in seconds since 1970, those that are not kept."""
        newest_first = sorted(items, reverse=True)
        oldest = time.time() - self.days * _DAY_SECONDS
        return [path for place, (changed, path) in enumerate(newest_first) if changed < oldest or place >= self.most]


CHATS = KeepRule(180, 1000)
"""Conversations without a name that a user chose, and without votes."""
DRAFTS = KeepRule(90, 1000)
"""Forms that were filled in and not started."""
JOBS = KeepRule(90, 1000)
"""Jobs that have ended, with their logs; results are in folders of their own."""
UPLOADS = KeepRule(90, 10**6)
"""Uploaded files, as they were sent, that nothing names; their number is limited when they are sent."""


def start_pruning(context: Context) -> None:
    """Prune now and every few hours, in a thread."""
    threading.Thread(target=_repeat_pruning, args=(context,), name="glmtune-pruning", daemon=True).start()


def remove_unkept(context: Context) -> dict[str, int]:
    """Remove what the rules of this module do not keep.

    Returns:
        The number of removed files or jobs of each kind.
    """
    return {
        "conversation": _prune_chats(context),
        "unfinished form": _prune_drafts(context),
        "ended job": context.jobs.remove_ended(JOBS.select_old),
        "config": _prune_configs(context),
        "upload": _prune_uploads(context),
    }


def _repeat_pruning(context: Context) -> None:
    while True:
        try:
            removed = remove_unkept(context)
            if any(removed.values()):
                parts = [count_noun(number, kind, f"{kind}s") for kind, number in removed.items() if number]
                print_message(f"Removed by age: {', '.join(parts)}.")
        except Exception as error:  # a full disk, say: the page works on
            print_warning(f"Old files of the page are not removed: {type(error).__name__}: {error}")
        time.sleep(_EVERY_SECONDS)


def _prune_chats(context: Context) -> int:
    folder = context.state("chats")

    def is_removable(chat: Chat) -> bool:
        return not chat.votes and not has_own_name(chat)

    paths = [folder / f"{chat.id}.json" for chat in iterate_chats(context) if is_removable(chat)]
    old = CHATS.select_old(_read_times(paths))
    for path in old:
        delete_chat(context, path.stem)
    return len(old)


def _prune_drafts(context: Context) -> int:
    old = DRAFTS.select_old(_read_times(context.state("drafts").glob("*.json")))
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _prune_configs(context: Context) -> int:
    """Remove configs that no job names; a training has a copy in its run."""
    words = {word for job in context.jobs.list() for word in job.arguments}
    paths = [path for path in context.state("configs").glob("*.yaml") if str(path) not in words]
    old = JOBS.select_old(_read_times(paths))
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)


def _prune_uploads(context: Context) -> int:
    """Remove old uploads that are as they were sent, and that no form, job, run or list of data sets names."""
    old = UPLOADS.select_old(_read_times(list_received(context)))
    if not old:
        return 0
    contents = walk_roots(context.roots)
    if contents.cut_roots:  # what was not looked at may name one
        return 0
    names = {path: (path.name.encode(), json.dumps(path.name)[1:-1].encode()) for path in old}
    for content in _read_references(context, [*(run / "config.yaml" for run in contents.runs), *contents.catalogs]):
        if _FOLDER_NAMED.search(content):
            return 0
        names = {path: forms for path, forms in names.items() if not any(form in content for form in forms)}
    for path in names:
        remove_received(context, path)
    return len(names)


def _read_references(context: Context, paths: list[Path]) -> Iterator[bytes]:
    """The contents of files that may name an upload: those of the page, and `paths`."""
    state = [path for name in ("drafts", "settings", "configs", "jobs") for path in context.state(name).glob("*.*")]
    for path in [*(each for each in state if each.suffix in (".json", ".yaml")), *paths]:
        try:
            yield require_readable(path).read_bytes()
        except (OSError, FileAccessError):  # deleted since it was listed, or a link that leads out of the roots
            continue


def _read_times(paths: Iterable[Path]) -> Iterator[tuple[float, Path]]:
    for path in paths:
        try:
            yield path.stat().st_mtime, path
        except OSError:  # deleted since it was listed
            continue
