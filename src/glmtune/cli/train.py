"""`glmtune train`: our own options, and the command lines that users of other scripts have at hand."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.config import RunConfig, help_of, read_tree
from glmtune.config_parsing import from_tree, nearest
from glmtune.errors import ConfigError
from glmtune.run_dir import RunDir

if TYPE_CHECKING:
    from glmtune.training.generated import ScoreReplies
    from glmtune.training.run import Outcome


def train(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Argument(help="YAML or JSON file that describes the run; scripts of other projects too.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=help_of("model.path"))] = None,
    data: Annotated[str | None, typer.Option(help=help_of("data.train"))] = None,
    eval_data: Annotated[str | None, typer.Option(help=help_of("data.eval"))] = None,
    method: Annotated[str | None, typer.Option(help=help_of("method"))] = None,
    output: Annotated[str | None, typer.Option(help=help_of("output"))] = None,
    family: Annotated[str | None, typer.Option(help=help_of("model.family"))] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output where it stopped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even if the memory plan says it cannot fit.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any key of the config: --set training.max_steps=100")
    ] = None,
    nproc: Annotated[int | None, typer.Option(help="Processes on this machine, one per GPU.")] = None,
    nnodes: Annotated[int, typer.Option(help="Machines; run the command on each.")] = 1,
    node_rank: Annotated[int, typer.Option(help="Which of the machines this is, from 0.")] = 0,
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.")] = "",
    master_port: Annotated[int, typer.Option(help="A free port of machine 0.")] = 29500,
) -> None:
    """Tune a model on your rows; the run folder then holds the result, the curve and the numbers.

    Also takes the command lines of ChatGLM's ptuning/main.py, ChatGLM3's finetune_hf.py, train_qlora.py and
    LLaMA-Factory (docs/migrate.md).
    """
    if nproc is not None or nnodes > 1:
        from glmtune.training.launch import Nodes, launch

        nodes = Nodes(nnodes, node_rank, master_addr, master_port)
        raise typer.Exit(launch(1 if nproc is None else nproc, _without_launch(sys.argv[1:]), nodes))
    named = {
        "model.path": model,
        "data.train": data,
        "data.eval": eval_data,
        "method": method,
        "output": output,
        "model.family": family,
    }
    from glmtune.training.distributed import one_voice

    with one_voice():  # of several processes, one tells of an error
        tree, source, resume = _translated() or _own(context, config, named, set_ or [], resume)
        run = from_tree(RunConfig, modern(tree), source)
    _train(run, resume, force)


def _translated() -> tuple[dict[str, Any], str, bool] | None:
    """The run that another project's command line describes; None if it is ours."""
    from glmtune.migrate import translate

    translation = translate(sys.argv[sys.argv.index("train") + 1 :])
    if translation is None:
        return None
    _tell(translation.notes)
    return translation.tree, translation.source, translation.resume


def _own(
    context: typer.Context, config: Path | None, named: dict[str, str | None], overrides: list[str], resume: bool
) -> tuple[dict[str, Any], str, bool]:
    if context.args:
        known = [option for parameter in context.command.params for option in parameter.opts]
        raise ConfigError(f"glmtune train: unknown option {context.args[0]}.", nearest(context.args[0], known))
    if resume and config is None:
        if named["output"] is None:
            raise ConfigError("--resume needs the run folder.", "Give it with --output RUN.")
        config = RunDir(named["output"]).config
        if not config.is_file():
            raise ConfigError(f"{named['output']}: not a run folder (no config.yaml).", "Give an existing run.")
    return read_tree(config, [*quoted(named), *overrides]), str(config) if config else "options", resume


def quoted(named: dict[str, str | None]) -> list[str]:
    """Options as overrides. JSON is YAML, so this keeps a path such as `a: b` or `123` one string."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in named.items() if value is not None]


def modern(tree: dict[str, Any], here: bool = True) -> dict[str, Any]:
    """The tree with old names of `TrainingArguments` translated.

    Args:
        tree: of the config.
        here: leave out what this machine cannot do, and tell; otherwise nothing that some GPU can do.
    """
    given = tree.get("training")
    if not isinstance(given, dict):
        return tree
    from glmtune.migrate import modern_training

    training, notes = modern_training(given, **(_abilities() if here else {}))
    _tell(notes)
    return {**tree, "training": training}


def _abilities() -> dict[str, bool]:
    """What this machine can do, as `modern_training` asks."""
    import torch

    cuda = torch.cuda.is_available()
    return {"cuda": cuda, "bf16": not cuda or torch.cuda.is_bf16_supported(including_emulation=False)}


def _tell(notes: list[str]) -> None:
    if os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        for note in notes:
            typer.secho(note, fg="yellow", err=True)


def _train(config: RunConfig, resume: bool, force: bool) -> None:
    from rich.console import Console

    from glmtune.training.distributed import is_main
    from glmtune.training.run import train as train_run
    from glmtune.training.training_data import say

    console = Console(soft_wrap=True)
    outcome = train_run(config, resume=resume, console=console, score=_score_of(config), force=force)
    if not is_main():
        return
    if not outcome.finished:
        say(console, f"Stopped at step {outcome.step}; the checkpoint is saved.")
        say(console, f"Continue it: glmtune train --resume --output {shlex.quote(str(outcome.run.root))}")
        raise typer.Exit(130)
    from glmtune.report import write_report

    write_report(outcome.run.root)
    for line in _report(outcome):
        say(console, line)


def _score_of(config: RunConfig) -> ScoreReplies | None:
    """What scores replies while training; its libraries take a second to import."""
    if not config.generate.rows:
        return None
    from glmtune.evaluation.sampled import score_questions

    return score_questions


def _report(outcome: Outcome) -> list[str]:
    summary, run = outcome.summary, outcome.run
    said = [f"{summary['steps']} steps in {summary['seconds']:.0f} s"]
    losses = [f"{summary[key]:.4f}" for key in ("first_loss", "last_loss") if summary[key] is not None]
    if losses:
        said.append(f"loss {' to '.join(losses)}")
    if summary["eval_loss"] is not None:
        said.append(f"evaluation loss {summary['eval_loss']:.4f}")
    said.append(f"{summary['tokens_per_second']:,.0f} tokens/s")
    return [
        f"Done: {', '.join(said)}.",
        f"Result: {outcome.result}   report: {run.report}   numbers: {run.summary}",
        f"Talk to it: glmtune chat {shlex.quote(str(run.root))}",
    ]


def _without_launch(words: list[str]) -> list[str]:
    """The command line without the options that say how many processes run it."""
    from glmtune.migrate.flags import LAUNCH

    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in LAUNCH:
            skip = True
        elif not word.startswith(tuple(f"{option}=" for option in LAUNCH)):
            kept.append(word)
    return kept
