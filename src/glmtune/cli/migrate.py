"""`glmtune migrate`: somebody else's script or config file as a run of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.errors import ConfigError


def migrate(
    words: Annotated[
        list[str],
        typer.Argument(
            help="A shell script, a YAML or JSON file, or a command line behind --.", metavar="FILE|-- COMMAND..."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="Write the config there; it must not exist.")] = None,
) -> None:
    """Turn a script or config of ChatGLM's P-Tuning, finetune_demo, QLoRA or LLaMA-Factory into a config of glmtune."""
    from glmtune.migrate import read_flags, to_yaml

    if len(words) == 1 and not Path(words[0]).is_file() and not words[0].startswith("--"):
        raise ConfigError(f"{words[0]}: no such file.", "Give a shell script, a YAML or a JSON file.")
    translation = read_flags(words)
    text = to_yaml(translation)
    for note in translation.notes:
        typer.echo(note, err=True)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}).", "Choose another --output.") from None
    typer.echo(f"Train with it: glmtune train {output}", err=True)


def register(app: typer.Typer) -> None:
    """Add the command. Flags of other scripts are no options of ours, so unknown ones are words like any other."""
    app.command(context_settings={"ignore_unknown_options": True})(migrate)
