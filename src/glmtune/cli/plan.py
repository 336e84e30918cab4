"""`glmtune plan`: the memory, steps and time of a run, before its weights are loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from glmtune.cli.options import ConfigFile, EvalData, FamilyName, Method, Model, Overrides, TrainData, number_option
from glmtune.cli.train import format_overrides, update_training_section
from glmtune.config import RunConfig, read_tree
from glmtune.config_parsing import build_dataclass
from glmtune.config_ranges import NumberRange
from glmtune.errors import ConfigError

if TYPE_CHECKING:
    from glmtune.training.plan.planner import Plan


def plan(
    config: ConfigFile = None,
    model: Model = None,
    data: TrainData = None,
    eval_data: EvalData = None,
    method: Method = None,
    family: FamilyName = None,
    set_: Overrides = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(help="Plan for a GPU of this size: 12GB. Default: the GPU of this machine, else its CPU."),
    ] = None,
    nproc: Annotated[
        int,
        number_option(
            "Number of processes that train together, one per GPU.", NumberRange(1, 100_000), "--nproc", "--processes"
        ),
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Memory, steps and time of a run, and the cheapest change that makes it fit. No weights are needed."""
    options = {
        "model.path": model,
        "data.train": data,
        "data.eval": eval_data,
        "method": method,
        "model.family": family,
    }
    tree = read_tree(config, [*format_overrides(options), *(set_ or [])])
    # With --gpu-memory the plan is for another machine, whose GPU may support what this one does not.
    tree = update_training_section(tree, check_device=gpu_memory is None)
    run = build_dataclass(RunConfig, tree, str(config) if config else "options")
    if not run.model.path:
        raise ConfigError("model.path is not set.", "Give --model, or set it in the config file.")

    from glmtune.training.plan.plan_report import plan_to_dict
    from glmtune.training.plan.planner import make_plan
    from glmtune.utils.console import use_quiet_console, use_stderr

    with use_quiet_console() if json_ else use_stderr():
        result = make_plan(run, gpu_memory, nproc)
    if json_:
        typer.echo(json.dumps(plan_to_dict(result), ensure_ascii=False, indent=2))
    else:
        _print_plan(result)


def _print_plan(result: Plan) -> None:
    from rich.table import Table

    from glmtune.training.plan.plan_report import format_attention, format_parts, format_verdict, format_workload
    from glmtune.utils.console import get_console, print_message

    table = Table(title=f"Memory at the peak ({result.estimate.phase})", title_justify="left")
    table.add_column("part")
    table.add_column("size", justify="right")
    table.add_column("what it is")
    for row in format_parts(result):
        table.add_row(*row)
    get_console().print(table)
    for line in (*format_attention(result), *format_workload(result)):
        print_message(line)
    for line in format_verdict(result):
        print_message(line, "green" if result.verdict == "fits" else "yellow")
