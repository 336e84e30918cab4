"""Programs that start a script, such as torchrun and deepspeed, and the number of processes that they start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePath

from glmtune.migrate.shell import ShellCommand, split_environment
from glmtune.migrate.translation import TRAINING, Translation

PROGRAMS = ("llamafactory-cli", "swift", "trl", "xtuner")
LAUNCHERS = {"python", "python3", "torchrun", "deepspeed", "accelerate", "nohup", "time", "env", "exec", "sudo", "srun"}
_PROCESS_OPTIONS = ("nproc_per_node", "num_gpus", "num_processes")
_NODE_OPTIONS = ("nnodes", "num_nodes", "num_machines")


@dataclass
class ScriptLaunch:
    """A command that starts a script.

    Attributes:
        script: its file name.
        arguments: the words after it.
        launcher_words: the words before it.
        command: the whole command.
    """

    script: str
    arguments: list[str]
    launcher_words: list[str]
    command: ShellCommand


def find_launch(command: ShellCommand) -> ScriptLaunch | None:
    """Return the script that a command starts, or None for other commands such as `cd` and `mkdir`."""
    environment, words = split_environment(command.words)
    if environment and words:
        command = ShellCommand(words, command.location, {**command.environment, **environment})
    first = PurePath(command.words[0]).name
    if first in PROGRAMS:
        return ScriptLaunch(first, command.words[1:], [], command)
    if not (first in LAUNCHERS or first.endswith(".py") or re.fullmatch(r"python3?\.\d+", first)):
        return None
    for index, word in enumerate(command.words):
        name = PurePath(word).name
        if name.endswith(".py") or name in PROGRAMS:
            return ScriptLaunch(name, command.words[index + 1 :], command.words[:index], command)
    return None


def translate_launcher(launch: ScriptLaunch, translation: Translation) -> None:
    """Set the number of processes, with a note about it, and add notes about environment variables."""
    options: dict[str, str] = {}  # names with underscores
    for word, following in zip(launch.launcher_words, [*launch.launcher_words[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following

    counts = [options[name] for name in _PROCESS_OPTIONS if name in options]
    if options.get("include"):  # deepspeed: localhost:0,1
        translation.nproc = options["include"].count(",") + 1
    elif counts:
        translation.nproc = int(counts[0]) if counts[0].isdigit() else 0
    elif "deepspeed" in {PurePath(word).name for word in launch.launcher_words}:
        translation.nproc = 0
    if translation.nproc != 1:
        gpus, count = (translation.nproc, translation.nproc) if translation.nproc else ("all", "N")
        translation.add_note(f"Started on {gpus} GPUs: {TRAINING} --nproc {count}")
    if any(options.get(name, "1") != "1" for name in _NODE_OPTIONS):
        translation.add_note(f"Started on several machines: {TRAINING} --nnodes N --node-rank I on each.")

    for name, value in launch.command.environment.items():
        if name == "USE_MODELSCOPE_HUB" and value in ("1", "true", "True"):
            translation.set_value("model.hub", "modelscope")
        elif name == "NPROC_PER_NODE" and value.isdigit():
            translation.nproc = int(value)
            translation.add_note(f"Started on {value} GPUs: {TRAINING} --nproc {value}")
        elif name != "USE_MODELSCOPE_HUB":
            translation.environment[name] = value
            if os.environ.get(name) != value:  # `glmtune run` has set it
                translation.add_note(f"{name}={value}: set it before glmtune train in the same way.")
