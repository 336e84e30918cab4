"""A run of ours while it is being translated: the tree so far, and what has to be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Translation:
    """Somebody else's run, as one of ours.

    Attributes:
        tree: nested plain values for `config.from_tree`.
        notes: a line each: what was translated, what differs, what has no meaning here and why.
        source: what was read, for messages: a file or a script's name.
        processes: how many processes the script started; 0: one for every GPU of the machine.
        resume: whether it asked to continue from its last checkpoint.
    """

    source: str
    tree: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    processes: int = 1
    resume: bool = False
    moved: list[str] = field(default_factory=list, repr=False)
    """`theirs -> ours` of every key that was carried over; `finish` makes one note of them."""

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key of the tree."""
        *parents, last = key.split(".")
        node = self.tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value

    def get(self, key: str) -> Any:
        """The value of a dotted key; None where there is none."""
        node: Any = self.tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def default(self, key: str, value: Any) -> None:
        """Set a key that is not set yet: what their script does when it is not told."""
        if self.get(key) is None:
            self.put(key, value)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def finish(self) -> Translation:
        """Put the list of what was carried over in front of the other notes."""
        if self.moved:
            self.notes.insert(0, f"Translated: {', '.join(self.moved)}.")
            self.moved = []
        return self
