"""`glmtune train`: train from a config file, from options, or from the command line of another project."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmtune.cli.options import ConfigFile, EvalData, FamilyName, Method, Model, Overrides, TrainData, number_option
from glmtune.config import RunConfig, get_help, read_tree
from glmtune.config_parsing import build_dataclass, suggest_key
from glmtune.config_ranges import NumberRange
from glmtune.errors import ConfigError
from glmtune.run_dir import RunDir
from glmtune.utils.shell_words import quote_word

if TYPE_CHECKING:
    from glmtune.training.generated import ScoreReplies
    from glmtune.training.objective import Objective
    from glmtune.training.run import TrainingResult

_CHECKPOINT = r"checkpoint-\d+"


def train(
    context: typer.Context,
    config: ConfigFile = None,
    model: Model = None,
    data: TrainData = None,
    eval_data: EvalData = None,
    method: Method = None,
    stage: Annotated[str | None, typer.Option(help=get_help("stage"))] = None,
    reward: Annotated[str | None, typer.Option(help=get_help("reward"))] = None,
    output: Annotated[str | None, typer.Option(help=get_help("output"))] = None,
    family: FamilyName = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run in --output from its last step; with the path of a checkpoint after it, from there.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Train even if the memory plan says it cannot fit.")] = False,
    set_: Overrides = None,
    nproc: Annotated[
        int | None, number_option("Number of processes on this machine, one per GPU.", NumberRange(1, 1024))
    ] = None,
    nnodes: Annotated[int, number_option("Number of machines; run the command on each.", NumberRange(1, 10_000))] = 1,
    node_rank: Annotated[int, number_option("Rank of this machine, from 0.", NumberRange(0, 9_999))] = 0,
    master_addr: Annotated[str, typer.Option(help="Address of machine 0.")] = "",
    master_port: Annotated[int, number_option("A free port of machine 0.", NumberRange(1, 65_535))] = 29500,
) -> None:
    """Train a model on your rows; the run folder holds the result, the curves and the numbers.

    Command lines, scripts and config files of ChatGLM's ptuning/main.py, ChatGLM3's finetune_hf.py, train_qlora.py and
    LLaMA-Factory are accepted too (docs/migrate.md).
    """
    if nproc is not None or nnodes > 1:
        from glmtune.training.launch import NodeRank, launch_processes

        nodes = NodeRank(nnodes, node_rank, master_addr, master_port)
        raise typer.Exit(launch_processes(1 if nproc is None else nproc, _drop_launch_options(sys.argv[1:]), nodes))

    from glmtune.migrate import translate_command
    from glmtune.training.distributed import is_main_process, report_error_once
    from glmtune.training.run import train as run_training
    from glmtune.utils.console import print_message, print_warning

    checkpoint = ""
    with report_error_once():
        # The options of other projects are unknown to typer, so they are read from the raw command line.
        translation = translate_command(sys.argv[sys.argv.index("train") + 1 :])
        if translation is None:
            paths = [Path(word) for word in (config, *context.args) if word is not None]
            if resume and len(paths) == 2 and not context.args[0].startswith("-"):
                config, output, checkpoint = _resolve_two_paths(paths, output)
            elif context.args:
                options = [option for parameter in context.command.params for option in parameter.opts]
                raise ConfigError(
                    f"glmtune train: unknown option {context.args[0]}.", suggest_key(context.args[0], options)
                )
            elif resume:
                config, output, checkpoint = _resolve_resumption(config, output)
            values = {
                "model.path": model,
                "data.train": data,
                "data.eval": eval_data,
                "method": method,
                "stage": stage,
                "reward": reward,
                "output": output,
                "model.family": family,
            }
            tree = read_tree(config, [*format_overrides(values), *(set_ or [])])
            source = str(config) if config else "options"
        else:
            _print_notes(translation.notes)
            tree, source, resume = translation.tree, translation.source, translation.resume
        run_config = build_dataclass(RunConfig, update_training_section(tree), source)

    score: ScoreReplies | None = None
    if run_config.generate.rows:  # the libraries of the metrics take a second to import
        from glmtune.evaluation.scoring import score_questions

        score = score_questions

    objective: Objective | None = None
    if run_config.stage != "sft":
        from glmtune.config_checks import check_config
        from glmtune.preference import make_objective

        with report_error_once():
            check_config(run_config)  # a wrong setting is named before a reward function is imported
            objective = make_objective(run_config)

    result = run_training(
        run_config, resume=resume, checkpoint=checkpoint, score=score, objective=objective, force=force
    )
    if not is_main_process():
        return
    if not result.is_finished:
        print_message(f"Stopped at step {result.step}; the checkpoint is saved.")
        print_message(f"Resume: glmtune train --resume --output {quote_word(str(result.run.root))}")
        raise typer.Exit(130)

    from glmtune.report import write_report
    from glmtune.training.checkpoint_files import WRITE_ERRORS

    try:
        write_report(result.run.root)
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        root = quote_word(str(result.run.root))
        print_warning(f"{result.run.report}: cannot be written ({error.strerror}). Later: glmtune report {root}")
    _print_result(result)


def format_overrides(values: dict[str, str | None]) -> list[str]:
    """Write options as overrides of `read_tree`.

    Args:
        values: dotted key to value; None: not set. Values are quoted as JSON, so that a path such as `a: b` or `123`
            stays one string.
    """
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]


def update_training_section(tree: dict[str, Any], check_device: bool = True) -> dict[str, Any]:
    """Translate old names of `TrainingArguments` in the tree of a config, and print a note for each change.

    Args:
        tree: of the config.
        check_device: remove settings that this machine does not support.
    """
    section = tree.get("training")
    if not isinstance(section, dict):
        return tree
    from glmtune.migrate import update_training_keys

    support = {}
    if check_device:
        import torch

        cuda = torch.cuda.is_available()
        support = {"cuda": cuda, "bf16": not cuda or torch.cuda.is_bf16_supported(including_emulation=False)}
    new_section, notes = update_training_keys(section, **support)
    _print_notes(notes)
    return {**tree, "training": new_section}


def _resolve_resumption(path: Path | None, output: str | None) -> tuple[Path | None, str | None, str]:
    """Find what is resumed.

    Args:
        path: given after --resume: a checkpoint (its path, or its name beside --output), a run folder, a config file.
        output: of --output.

    Returns:
        Config file, run folder, and the checkpoint to go back to; empty for the newest.

    Raises:
        ConfigError: the run folder is not given, or is none.
    """
    checkpoint = ""
    if path is not None and re.fullmatch(_CHECKPOINT, path.name) and not path.is_file():
        checkpoint = str(path)
        output = output or (str(path.parent.parent) if path.parent.name == "checkpoints" else None)
        path = None
    elif path is not None and path.is_dir():
        output, path = output or str(path), None
    if path is not None:
        return path, output, checkpoint
    if output is None:
        raise ConfigError(
            "--resume needs the run folder.",
            "Give it with --output RUN, or a checkpoint: RUN/checkpoints/checkpoint-N.",
        )
    config = RunDir(output).config
    if not config.is_file():
        raise ConfigError(f"{output}: not a run folder (no config.yaml).", "Give an existing run.")
    return config, output, checkpoint


def _resolve_two_paths(paths: list[Path], output: str | None) -> tuple[Path | None, str | None, str]:
    """Find what is resumed where a config file and a run or checkpoint are given.

    Returns:
        As `_resolve_resumption`.

    Raises:
        ConfigError: neither is a config file, or both are.
    """
    files = [path for path in paths if path.is_file()]
    places = [path for path in paths if path not in files]
    is_checkpoint = bool(places) and re.fullmatch(_CHECKPOINT, places[0].name) is not None
    if len(files) != 1 or not (is_checkpoint or places[0].is_dir()):
        raise ConfigError(
            f"--resume with {paths[0]} and {paths[1]}: one should be a config file, the other a run or a checkpoint.",
            "glmtune train CONFIG --resume RUN/checkpoints/checkpoint-N",
        )
    (place,) = places
    if not is_checkpoint:
        return files[0], output or str(place), ""
    if place.parent.name == "checkpoints":
        output = output or str(place.parent.parent)
    return files[0], output, str(place)


def _print_notes(notes: list[str]) -> None:
    from glmtune.utils.console import print_warning, use_stderr

    with use_stderr():
        for note in notes:
            print_warning(note)


def _print_result(result: TrainingResult) -> None:
    from glmtune.methods.value_head_file import is_reward_folder
    from glmtune.utils.console import count_noun, print_message

    summary, run = result.summary, result.run
    parts = [f"{count_noun(summary['steps'], 'step')} in {summary['seconds']:.0f} s"]
    losses = [f"{summary[key]:.4f}" for key in ("first_loss", "last_loss") if summary[key] is not None]
    if "first_reward" in summary:  # the loss says nothing about generated answers
        parts.append(f"reward {summary['first_reward']:.4g} to {summary['last_reward']:.4g}")
    elif losses:
        parts.append(f"loss {' to '.join(losses)}")
    if summary["eval_loss"] is not None:
        is_best = summary["kept_step"] != summary["steps"]
        of_step = f" (of step {summary['kept_step']}, the best, which is kept)" if is_best else ""
        parts.append(f"evaluation loss {summary['eval_loss']:.4f}{of_step}")
    parts.append(f"{summary['tokens_per_second']:,.0f} tokens/s")
    print_message(f"Done: {', '.join(parts)}.")
    print_message(f"Result: {result.folder}   report: {run.report}   numbers: {run.summary}")
    root = quote_word(str(run.root))
    if is_reward_folder(result.folder):
        print_message(f"Score answers with it: glmtune score {root} --data FILE")
    else:
        print_message(f"Chat with it: glmtune chat {root}")


def _drop_launch_options(words: list[str]) -> list[str]:
    """Return the command line without the options about processes and machines."""
    from glmtune.migrate.command_words import LAUNCH_OPTIONS

    result, skip_value = [], False
    for word in words:
        if skip_value:
            skip_value = False
        elif word in LAUNCH_OPTIONS:
            skip_value = True
        elif not word.startswith(tuple(f"{option}=" for option in LAUNCH_OPTIONS)):
            result.append(word)
    return result
