"""The forgetting probe: short questions that a chat model can answer, asked before and after fine-tuning.

The items were written for this project. They test what tuning on one narrow task tends to damage: facts, plain
instructions, arithmetic, code, common sense, refusals of harmful requests, small talk; in Chinese and English equally.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from glmtune.errors import ConfigError
from glmtune.evaluation.forgetting.probe_checks import passes_check
from glmtune.evaluation.metrics import compute_repeated_share, has_repeated_tail

LANGUAGES = ("zh", "en")
CATEGORIES = ("knowledge", "instructions", "arithmetic", "code", "reasoning", "safety", "chat")

_UNKNOWN = re.compile(r"<unk>|\[unk\]|[⁇\ufffd]", re.IGNORECASE)
_MOSTLY_UNKNOWN = 0.1
_MOSTLY_REPEATED = 0.5


@dataclass(frozen=True)
class ProbeItem:
    """One question."""

    id: str
    lang: str
    category: str
    prompt: str
    reference: str
    """A good short answer, for the loss under teacher forcing."""
    check: Mapping[str, Any]
    """What a right reply must contain: a `type` of `probe_checks` and its keys."""


def load_probe(langs: Collection[str] | None = None, categories: Collection[str] | None = None) -> list[ProbeItem]:
    """The items that ship with the package, in a fixed order.

    Args:
        langs: of `LANGUAGES`; all when None.
        categories: of `CATEGORIES`; all when None.

    Raises:
        ConfigError: an unknown language or category.
    """
    langs = _require_known("language", langs, LANGUAGES)
    categories = _require_known("category", categories, CATEGORIES)
    lines = files("glmtune.evaluation.forgetting").joinpath("probe_items.jsonl").read_text("utf-8").splitlines()
    items = [ProbeItem(**json.loads(line)) for line in lines]
    return [item for item in items if item.lang in langs and item.category in categories]


def _require_known(kind: str, names: Collection[str] | None, known: Collection[str]) -> Collection[str]:
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise ConfigError(f"The probe has no {kind} {name!r}.", f"It has {', '.join(known)}.")
    return names


def check_reply(item: ProbeItem, reply: str) -> bool:
    """Whether `reply` answers `item`."""
    return passes_check(item.check, reply)


def find_degeneration(reply: str) -> str | None:
    """Find the fault of a reply that is wrong for any question.

    Returns:
        "empty"; "unk": more than one character in ten is the mark of an unknown token; "loop": it ends in a loop, or
        half of its 4-word runs occurred before; None for a proper text.
    """
    text = reply.strip()
    if not text:
        return "empty"
    if len(_UNKNOWN.findall(text)) > _MOSTLY_UNKNOWN * len(_UNKNOWN.sub("?", text)):
        return "unk"
    if has_repeated_tail(text) or compute_repeated_share(text) > _MOSTLY_REPEATED:
        return "loop"
    return None
