"""What stands in front of a script: python, torchrun, deepspeed, accelerate; and how many processes they start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

from glmtune.migrate.draft import Translation
from glmtune.migrate.shell import Command

PROGRAMS = ("llamafactory-cli",)
LAUNCHERS = {"python", "python3", "torchrun", "deepspeed", "accelerate", "nohup", "time", "env", "exec", "sudo", "srun"}
_COUNTS = {"nproc_per_node", "num_gpus", "num_processes"}
_NODES = {"nnodes", "num_nodes", "num_machines"}


@dataclass
class Launch:
    """A script and what it was given.

    Attributes:
        script: its file name.
        words: its arguments.
        before: the words in front of it.
        command: where it stands.
    """

    script: str
    words: list[str]
    before: list[str]
    command: Command


def find_launch(command: Command) -> Launch | None:
    """The script that a command starts; None for other commands, `cd` or `mkdir` for example."""
    first = PurePath(command.words[0]).name
    if first in PROGRAMS:
        return Launch(first, command.words[1:], [], command)
    if not (first in LAUNCHERS or first.endswith(".py") or re.fullmatch(r"python3?\.\d+", first)):
        return None
    for index, word in enumerate(command.words):
        name = PurePath(word).name
        if name.endswith(".py") or name in PROGRAMS:
            return Launch(name, command.words[index + 1 :], command.words[:index], command)
    return None


def describe_launch(launch: Launch, draft: Translation) -> None:
    """Take over the number of processes and the variables in front, with a note for each."""
    before = _options(launch.before)
    names = {PurePath(word).name for word in launch.before}
    counts = [before[key] for key in _COUNTS if key in before]
    include = before.get("include", "")
    if include:
        draft.processes = include.count(",") + 1
    elif counts:
        draft.processes = int(counts[0]) if counts[0].isdigit() else 0
    elif "deepspeed" in names:
        draft.processes = 0
    if draft.processes != 1:
        many, count = (draft.processes,) * 2 if draft.processes else ("all", "N")
        draft.note(f"Started on {many} GPUs: glmtune train CONFIG --nproc {count}")
    if any(before.get(key, "1") != "1" for key in _NODES):
        draft.note("Started on several machines: give torchrun the same --nnodes and --node-rank on each.")
    _take_environment(launch.command.environment, draft)


def _take_environment(environment: dict[str, str], draft: Translation) -> None:
    for name, value in environment.items():
        if name == "USE_MODELSCOPE_HUB":
            if value in ("1", "true"):
                draft.put("model.hub", "modelscope")
            continue
        draft.note(f"{name}={value}: put it in front of glmtune in the same way.")


def _options(words: list[str]) -> dict[str, str]:
    """`--name=value` and `--name value` among a launcher's words, dashes as underscores."""
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if equals else following
    return found
