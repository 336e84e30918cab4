"""Words of a command line, sorted: flags of another script, options of ours, and what stands alone."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from glmtune.config_parsing import set_key
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import TRAINING_LISTS
from glmtune.migrate.draft import Translation
from glmtune.migrate.values import is_bool_word

OWN = {
    "--model": "model.path",
    "--data": "data.train",
    "--eval-data": "data.eval",
    "--method": "method",
    "--output": "output",
    "--family": "model.family",
}
"""Options of `glmtune train` that stand for a key."""
LAUNCH = {"--nproc", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
"""Its options that say how many processes run it."""
OWN_OTHERS = {"--set", "--resume", "--force", "--help"} | LAUNCH
"""Its options that do not."""


@dataclass
class Words:
    """A command line, sorted.

    Attributes:
        alone: words that belong to no flag.
        given: flags of another script: name, dashes as underscores, to text; True for a switch that stands alone.
        keys: keys of ours, by our options.
        sets: what stood behind --set.
        resume: whether --resume was given.
    """

    alone: list[str] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    sets: list[str] = field(default_factory=list)
    resume: bool = False

    def put_own(self, draft: Translation) -> None:
        """Our own options, on top of what was translated."""
        for key, value in self.keys.items():
            draft.put(key, value)
        for override in self.sets:
            set_key(draft.tree, override)
        draft.resume = draft.resume or self.resume


def flag_names(words: Iterable[str]) -> set[str]:
    """The names of all flags that are not ours."""
    return {_name(word) for word in words if word.startswith("--") and _own(word) is None and word != "--"}


def sort_words(words: list[str], switches: Set[str], known: Set[str], source: str) -> Words:
    """Sort a command line.

    Args:
        words: everything behind the script's name.
        switches: flags that may stand without a value.
        known: every flag; whoever reads on names the unknown ones.
        source: for messages.

    Raises:
        ConfigError: a flag without the value it needs.
    """
    sorted_words = Words()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        own = _own(word)
        if own == "--resume":
            sorted_words.resume = True
        elif own == "--force":
            continue  # what runs the training has read it
        elif own:
            _take_own(own, _own_value(word, rest, source), sorted_words)
        elif word.startswith("--"):
            _take_flag(word, rest, (switches, known), sorted_words, source)
        else:
            sorted_words.alone.append(word)
    return sorted_words


def _own(word: str) -> str | None:
    option = word.partition("=")[0]
    return option if option in OWN or option in OWN_OTHERS else None


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def _own_value(word: str, rest: list[str], source: str) -> str:
    _, equals, value = word.partition("=")
    if equals:
        return value
    if not rest:
        raise ConfigError(f"{source}: {word} needs a value.")
    return rest.pop(0)


def _take_own(option: str, value: str, words: Words) -> None:
    if option == "--set":
        words.sets.append(value)
    elif option in OWN:
        words.keys[OWN[option]] = value


def _take_flag(word: str, rest: list[str], names: tuple[Set[str], Set[str]], words: Words, source: str) -> None:
    name = _name(word)
    switches, known = names
    if name.startswith("no_") and name.removeprefix("no_") in switches:
        words.given[name.removeprefix("no_")] = False
        return
    _, equals, value = word.partition("=")
    if equals:
        words.given[name] = value
    elif name in switches:
        words.given[name] = rest.pop(0) if rest and is_bool_word(rest[0]) else True
    elif (not rest or rest[0].startswith("--")) and name not in known:
        words.given[name] = True
    elif not rest or rest[0].startswith("--"):
        raise ConfigError(f"{source}: --{name} needs a value.")
    elif name in TRAINING_LISTS:
        words.given[name] = _several(rest)
    else:
        words.given[name] = rest.pop(0)


def _several(rest: list[str]) -> str | list[str]:
    listed = [rest.pop(0)]
    while rest and not rest[0].startswith("--"):
        listed.append(rest.pop(0))
    return listed[0] if len(listed) == 1 else listed
