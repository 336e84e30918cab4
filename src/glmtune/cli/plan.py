"""`glmtune plan`: what a run will need, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import FamilyName
from glmtune.cli.train import modern, quoted
from glmtune.config import RunConfig, help_of, read_tree
from glmtune.config_parsing import from_tree
from glmtune.errors import ConfigError

if TYPE_CHECKING:
    from glmtune.training.plan.make import Plan


def plan(
    config: Annotated[Path | None, typer.Argument(help="YAML or JSON file that describes the run.")] = None,
    model: Annotated[str | None, typer.Option(help=help_of("model.path"))] = None,
    data: Annotated[str | None, typer.Option(help=help_of("data.train"))] = None,
    eval_data: Annotated[str | None, typer.Option(help=help_of("data.eval"))] = None,
    method: Annotated[str | None, typer.Option(help=help_of("method"))] = None,
    family: FamilyName = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key of the config.")] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Plan for a GPU of this size, 12GB for example; else for what is here.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that train together, one per GPU.", min=1)] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Memory, steps and time of a run, and the cheapest change that makes it fit. No weights are needed."""
    named = {
        "model.path": model,
        "data.train": data,
        "data.eval": eval_data,
        "method": method,
        "model.family": family,
    }
    tree = read_tree(config, [*quoted(named), *(set_ or [])])
    # A GPU of another machine is not asked what it can do.
    run = from_tree(RunConfig, modern(tree, here=gpu_memory is None), str(config) if config else "options")
    if not run.model.path:
        raise ConfigError("model.path is not set.", "Give --model, or set it in the config file.")

    from rich.console import Console

    from glmtune.training.plan.make import make_plan
    from glmtune.training.plan.show import as_dict

    notes = Console(stderr=True, soft_wrap=True, quiet=json_)
    made = make_plan(run, gpu_memory, processes, notes)
    if json_:
        typer.echo(json.dumps(as_dict(made), ensure_ascii=False, indent=2))
    else:
        _show(made)


def _show(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from glmtune.training.plan.show import answer, part_rows, work_lines
    from glmtune.training.training_data import say

    console = Console(soft_wrap=True)
    table = Table(title=f"Memory at the worst moment ({made.estimate.moment})", title_justify="left")
    table.add_column("part")
    table.add_column("GB", justify="right")
    table.add_column("what it is")
    for name, size, meaning in part_rows(made):
        table.add_row(name, size, meaning)
    console.print(table)
    for line in work_lines(made):
        say(console, line)
    for line in answer(made):
        say(console, line, "green" if made.verdict == "fits" else "yellow")
