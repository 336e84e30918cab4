"""`glmtune run`: do what a script, a command line or a config file of another project does."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from glmtune.migrate import ReplacementCommand


def run(
    words: Annotated[
        list[str],
        typer.Argument(help="A shell script, a YAML or JSON file, or a command line.", metavar="SCRIPT-OR-COMMAND..."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands of glmtune, and run none of them.")
    ] = False,
) -> None:
    """Run a script of an older project: training lines train, evaluate.sh scores, merge scripts merge.

    The command of glmtune that does it is printed first. Nothing of the script itself is executed (docs/migrate.md).
    """
    from glmtune.migrate import plan_commands
    from glmtune.utils.console import print_message, use_stderr

    dry_run = dry_run or "--dry-run" in words
    for command in plan_commands([word for word in words if word != "--dry-run"]):
        _adapt_process_count(command)
        with use_stderr():
            for note in command.notes:
                print_message(note)
            if not dry_run:
                print_message(f"Running: {command.text}")
        if dry_run:
            typer.echo(command.text)
            continue
        code = _run_command(command)
        if code:
            raise typer.Exit(code)


def _run_command(command: ReplacementCommand) -> int:
    """Run a command of glmtune in this process and return its exit code.

    Raises:
        GlmtuneError: as the command does.
    """
    from glmtune.cli.main import app

    os.environ.update(command.environment)
    sys.argv = ["glmtune", *command.words]  # train reads the words of other projects from there
    try:
        app(command.words)
    except SystemExit as end:  # how typer ends every command
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _adapt_process_count(command: ReplacementCommand) -> None:
    """Start no more processes than this machine has GPUs, and one if it has none; 0 stands for one on every GPU."""
    words = command.words
    if "--nproc" not in words:
        return
    import torch

    place = words.index("--nproc")
    wanted, gpus = int(words[place + 1]), torch.cuda.device_count()
    count = min(wanted, gpus) if wanted else gpus
    if wanted > max(count, 1):
        command.notes.append(f"Started on {wanted} GPUs; this machine has {gpus}.")
    options = ["--nproc", str(max(count, 1))] if count > 1 or command.needs_launcher else []
    command.words = [*words[:place], *options, *words[place + 2 :]]


def register(app: typer.Typer) -> None:
    """Add the command. Flags of other scripts are unknown to typer, so everything after the first word is a word."""
    app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run)
