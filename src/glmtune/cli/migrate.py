"""`glmtune migrate`: translate a script or config file of another project to a config of glmtune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from glmtune.errors import ConfigError


def migrate(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A shell script, a YAML or JSON file, or a command line after --.", metavar="FILE|-- COMMAND..."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="New file for the config. Default: standard output.")] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print config, notes and the commands of glmtune as JSON.")
    ] = False,
) -> None:
    """Translate a script or config of an older project to a glmtune config; to run it directly: glmtune run."""
    from glmtune.migrate import dump_translation, require_translation
    from glmtune.utils.console import print_message, use_stderr
    from glmtune.utils.io import explain_write_errors, write_text

    if len(words) == 1 and not Path(words[0]).is_file() and not words[0].startswith("--"):
        raise ConfigError(f"{words[0]}: no such file.", "Give a shell script, a YAML or a JSON file.")
    if json_:
        typer.echo(json.dumps(_translate_to_dict(words), ensure_ascii=False, indent=2))
        return
    translation = require_translation(words)
    text = dump_translation(translation)
    with use_stderr():
        for note in translation.notes:
            print_message(note)
        if output is None:
            typer.echo(text, nl=False)
            return
        if output.exists():
            raise ConfigError(f"{output}: already exists.", "Choose another --output.")
        with explain_write_errors(output):
            write_text(output, text)
        print_message(f"Train with it: glmtune train {output}")


def _translate_to_dict(words: list[str]) -> dict[str, Any]:
    """Config (None where the script starts no training, or several), notes and commands.

    Raises:
        ConfigError: not of another project, or it cannot be translated.
    """
    from glmtune.migrate import dump_translation, plan_commands, require_translation

    commands = plan_commands(words)
    notes = [note for command in commands for note in command.notes]
    config = None
    if any(command.words[0] == "train" for command in commands):
        try:
            translation = require_translation(words)
            config, notes = dump_translation(translation), [*translation.notes, *notes]
        except ConfigError as error:  # several trainings; the commands are there all the same
            notes = [str(error), *notes]
    return {"config": config, "notes": list(dict.fromkeys(notes)), "commands": [each.text for each in commands]}


def register(app: typer.Typer) -> None:
    """Add the command. Flags of other scripts are unknown to typer, so unknown options are accepted as words."""
    app.command(context_settings={"ignore_unknown_options": True})(migrate)
