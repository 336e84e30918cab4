"""`glmtune eval`: replies to every turn of a data set, and their scores."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import (
    Base,
    BatchSize,
    Compile,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Limit,
    MaxNewTokens,
    Quantization,
    RunOrModel,
    SamplingSeed,
    Temperature,
    TopP,
)


def eval_(
    target: RunOrModel,
    data: Annotated[str, typer.Option(help="Rows with answers, named as data.eval of a config.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results. Default: RUN/eval/DATA or evals/MODEL-DATA-TIME.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 0.8,
    seed: SamplingSeed = 0,
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

    Prompts are those of training. Give the same command again to continue a killed evaluation.
    """
    from glmtune.evaluation.dataset import read_eval_data
    from glmtune.evaluation.eval_folder import require_eval_folder
    from glmtune.evaluation.evaluate import check_sampling, default_output, describe_settings, evaluate
    from glmtune.evaluation.model_info import load_target, read_settings
    from glmtune.evaluation.terminal_tables import print_scores
    from glmtune.generation.compiled_step import compile_step, require_gpu
    from glmtune.generation.reply import Sampling
    from glmtune.report import write_report
    from glmtune.run_dir import is_run
    from glmtune.utils.console import print_message, show_status, use_stderr

    config = read_settings(target, set_ or [])
    sampling = Sampling(max_new_tokens or config.data.max_target_length, temperature, top_p)
    check_sampling(sampling, batch_size)
    command = shlex.join(["glmtune", *sys.argv[1:]])
    if output:
        require_eval_folder(output)
    with use_stderr():
        if compile_:
            require_gpu(device)
        with show_status("Loading the model"):
            opened, model = load_target(
                target, base=base, dtype=dtype, device=device, family=family, hub=hub, quantization=quantization
            )
        if compile_:
            compile_step(opened.model)
        with show_status("Reading the data"):
            rows = read_eval_data(
                data, config.data, opened.family, opened.tokenizer, limit=limit, seed=int(config.training["seed"])
            )
        for note in rows.notes:
            print_message(note)
        run = Path(target) if is_run(target) else None
        folder = output or default_output(target, data, run, describe_settings(model, rows, sampling, seed))
        try:
            metrics = evaluate(
                *(opened, model, rows, folder, sampling), seed=seed, batch_size=batch_size, command=command
            )
        except KeyboardInterrupt:
            print_message(f"\nStopped; to continue, give the same command again: {command}")
            raise typer.Exit(130) from None
    print_scores(metrics)
    page = write_report(folder)
    if run:
        write_report(run)  # its page shows the scores too
    print_message(f"Replies: {folder / 'predictions.jsonl'}   numbers: {folder / 'metrics.json'}   report: {page}")
