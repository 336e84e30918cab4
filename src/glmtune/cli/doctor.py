"""`glmtune doctor`: what is wrong with this machine, for a model and a config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Device
from glmtune.errors import ConfigError

_CONFIG_ENDINGS = (".yaml", ".yml", ".json", ".sh")


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="The model that you want to use: a folder, a run or a hub id.", metavar="MODEL")
    ] = None,
    config: Annotated[Path | None, typer.Argument(help="The config file of a run.", metavar="CONFIG")] = None,
    device: Device = None,
    trials: Annotated[
        bool, typer.Option("--trials/--no-trials", help="Compute something on the device: a training step, products.")
    ] = True,
    json_: Annotated[bool, typer.Option("--json", help="Print findings and facts as JSON, for an issue.")] = False,
) -> None:
    """Check this machine: driver, card, torch, libraries, memory, disk, network; each finding with its fix.

    MODEL and CONFIG say what the machine is for; either may be left out. The exit code is 1 if there is an error.
    """
    import json

    if model is not None and config is None and model.endswith(_CONFIG_ENDINGS):
        config, model = Path(model), None
    if config is not None and not config.is_file():
        raise ConfigError(f"{config}: no such file.", "Give the config file of a run.")

    from glmtune.doctor.doctor_output import describe_doctor, has_errors, print_doctor
    from glmtune.doctor.findings import find_problems
    from glmtune.doctor.gather import gather_facts
    from glmtune.utils.console import show_status, use_stderr
    from glmtune.utils.user_folders import find_home

    with use_stderr(), show_status("Looking at torch, the GPU and the libraries"):
        facts = gather_facts(model or "", str(config or ""), device or "", trials)
    problems = find_problems(facts)
    if json_:
        home = str(find_home() or "")
        typer.echo(json.dumps(describe_doctor(facts, problems, home), ensure_ascii=False, indent=2))
    else:
        print_doctor(facts, problems)
    if has_errors(problems):
        raise typer.Exit(1)
