"""The words of a command line: flags of another script, options of `glmtune train`, and positional arguments."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

from glmtune.config_parsing import set_key
from glmtune.errors import ConfigError
from glmtune.migrate.argument_names import TRAINING_LISTS, is_bool_text
from glmtune.migrate.translation import Translation

KEY_OPTIONS = {
    "--model": "model.path",
    "--data": "data.train",
    "--eval-data": "data.eval",
    "--method": "method",
    "--stage": "stage",
    "--output": "output",
    "--reward": "reward",
    "--family": "model.family",
}
"""Options of `glmtune train` that set a key of the config."""
LAUNCH_OPTIONS = {"--nproc", "--nnodes", "--node-rank", "--master-addr", "--master-port"}
"""Options of `glmtune train` about processes and machines."""
OTHER_OPTIONS = {"--set", "--resume", "--force", "--help"} | LAUNCH_OPTIONS
"""Options of `glmtune train` that set no key."""


@dataclass
class CommandWords:
    """A parsed command line.

    Attributes:
        positionals: words that belong to no flag.
        flags: flags of another script: name with underscores to text; True for a switch without a value.
        key_values: keys of our config, by the options of `glmtune train`.
        overrides: values of --set.
        resume: whether --resume is one of the words.
    """

    positionals: list[str] = field(default_factory=list)
    flags: dict[str, Any] = field(default_factory=dict)
    key_values: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    resume: bool = False

    def apply_options(self, translation: Translation) -> None:
        """Set the values of our own options, which override translated ones."""
        for key, value in self.key_values.items():
            translation.set_value(key, value)
        for override in self.overrides:
            set_key(translation.tree, override)
        translation.resume = translation.resume or self.resume


def find_flag_names(words: Iterable[str]) -> set[str]:
    """Return the names of all flags that are no options of `glmtune train`, with underscores."""
    flags = (word for word in words if word.startswith("--") and word != "--" and not _is_own_option(word))
    return {_flag_name(flag) for flag in flags}


def split_glued_words(words: Iterable[str], flag_names: Set[str]) -> tuple[list[str], list[str]]:
    """Split words such as `test.json--lora_rank`, which a shell makes of a line that ends in `test.json\\`.

    Args:
        words: of a command line.
        flag_names: all flags, with underscores.

    Returns:
        The words, and a note for each one that was split.
    """
    result: list[str] = []
    notes: list[str] = []
    for word in words:
        start = word.find("--", 2 if word.startswith("--") else 1)
        if start > 0 and "=" not in word[:start] and _flag_name(word[start:]) in flag_names:
            result += [word[:start], word[start:]]
            notes.append(f"{word} is read as {word[:start]} {word[start:]}: a space is missing before a backslash.")
        else:
            result.append(word)
    return result, notes


def parse_words(
    words: list[str],
    switches: Set[str],
    flag_names: Set[str],
    source: str,
    *,
    own_options: bool = True,
    list_flags: Set[str] = frozenset(),
) -> CommandWords:
    """Parse a command line.

    Args:
        words: the words after the script's name.
        switches: flags that may have no value.
        flag_names: all flags. Unknown ones are kept too, so that the caller can report them.
        source: for messages.
        own_options: whether options of `glmtune train` may be among the words.
        list_flags: flags that take several values, beside those of `TrainingArguments`.

    Raises:
        ConfigError: a flag without the value that it needs.
    """
    result = CommandWords()
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        if word == "--" or (own_options and name == "--force"):  # cli/train.py reads --force
            continue
        if own_options and name == "--resume":
            result.resume = True
        elif own_options and _is_own_option(word) and _flag_name(name) not in flag_names:  # --stage is theirs too
            if not equals:
                if not queue:
                    raise ConfigError(f"{source}: {word} needs a value.")
                value = queue.pop(0)
            if name == "--set":
                result.overrides.append(value)
            elif name in KEY_OPTIONS:
                result.key_values[KEY_OPTIONS[name]] = value
        elif word.startswith("--"):
            _parse_flag(word, queue, switches, flag_names, result, source, list_flags)
        else:
            result.positionals.append(word)
    return result


def _is_own_option(word: str) -> bool:
    option = word.partition("=")[0]
    return option in KEY_OPTIONS or option in OTHER_OPTIONS


def _flag_name(word: str) -> str:
    return word.lstrip("-").partition("=")[0].replace("-", "_")


def _parse_flag(
    word: str,
    queue: list[str],
    switches: Set[str],
    flag_names: Set[str],
    result: CommandWords,
    source: str,
    list_flags: Set[str],
) -> None:
    """Add a flag to `result.flags`, with its values from the front of `queue`."""
    name = _flag_name(word)
    _, equals, value = word.partition("=")
    has_value = bool(queue) and not queue[0].startswith("--")
    if name.startswith("no_") and name.removeprefix("no_") in switches:
        result.flags[name.removeprefix("no_")] = False
    elif equals:
        result.flags[name] = value
    elif name in switches:
        result.flags[name] = queue.pop(0) if queue and is_bool_text(queue[0]) else True
    elif not has_value and name not in flag_names:
        result.flags[name] = True
    elif not has_value:
        raise ConfigError(f"{source}: --{name} needs a value.")
    elif name in TRAINING_LISTS or name in list_flags:
        items = [queue.pop(0)]
        while queue and not queue[0].startswith("--"):
            items.append(queue.pop(0))
        result.flags[name] = items[0] if len(items) == 1 else items
    else:
        result.flags[name] = queue.pop(0)
