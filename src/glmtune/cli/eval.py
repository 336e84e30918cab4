"""`glmtune eval`: replies to every turn of a data set, and their scores."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import (
    Base,
    Batch,
    Compile,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Limit,
    Quantization,
    ReplyLength,
    RunOrModel,
)


def eval_(
    target: RunOrModel,
    data: Annotated[str, typer.Option(help="Rows with answers: whatever data.eval of a run may name.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; RUN/eval/DATA or evals/MODEL-DATA-TIME by default.")
    ] = None,
    limit: Limit = None,
    batch_size: Batch = 8,
    max_new_tokens: ReplyLength = None,
    temperature: Annotated[float, typer.Option(help="0: greedy, the same replies every time.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from this share of the probability.", min=0.0, max=1.0)] = 0.8,
    seed: Annotated[int, typer.Option(help="Of sampling; the same seed gives the same replies.", min=0)] = 0,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    compile_: Compile = False,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="data.* settings other than the run's: --set data.max_length=1024")
    ] = None,
) -> None:
    """Answer every row and score the replies: ROUGE, BLEU-4, exact match, tool calls, loss, with 95 % intervals.

    Prompts are those of training. A killed evaluation goes on when the same command is given again.
    """
    from rich.console import Console

    from glmtune.evaluation.dataset import read_data
    from glmtune.evaluation.evaluate import check_sampling, default_output, evaluate, settings_of
    from glmtune.evaluation.model_info import open_target, settings_for
    from glmtune.evaluation.table import print_scores
    from glmtune.generation.compiled_step import check_compile, compile_step
    from glmtune.generation.reply import Sampling
    from glmtune.report import write_report
    from glmtune.run_dir import is_run
    from glmtune.training.training_data import say

    progress = Console(stderr=True, soft_wrap=True)
    config = settings_for(target, set_ or [])
    sampling = Sampling(max_new_tokens or config.data.max_target_length, temperature, top_p)
    check_sampling(sampling, batch_size)
    if compile_:
        check_compile(device)
    with progress.status("Loading the model"):
        opened, model = open_target(
            target, base=base, dtype=dtype, device=device, family=family, hub=hub, quantization=quantization
        )
    if compile_:
        compile_step(opened.model)
    with progress.status("Reading the data"):
        read = read_data(
            data, config.data, opened.family, opened.tokenizer, limit=limit, seed=int(config.training["seed"])
        )
    for note in read.notes:
        say(progress, note)
    run = Path(target) if is_run(target) else None
    folder = output or default_output(target, data, run, settings_of(model, read, sampling, seed))
    command = shlex.join(["glmtune", *sys.argv[1:]])
    try:
        metrics = evaluate(
            *(opened, model, read, folder, sampling),
            seed=seed,
            batch_size=batch_size,
            console=progress,
            command=command,
        )
    except KeyboardInterrupt:
        say(progress, f"\nStopped; the same command goes on where it was: {command}")
        raise typer.Exit(130) from None
    console = Console(soft_wrap=True)
    print_scores(metrics, console)
    page = write_report(folder)
    if run:
        write_report(run)  # its page shows the scores too
    say(console, f"Replies: {folder / 'predictions.jsonl'}   numbers: {folder / 'metrics.json'}   report: {page}")
