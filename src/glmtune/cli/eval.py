"""`glmtune eval`: replies to every turn of a data set, and their scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

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
    RunDataOverrides,
    RunOrModel,
    SamplingSeed,
    Temperature,
    TopP,
)
from glmtune.utils.shell_words import join_words


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
    reference: Annotated[
        str | None,
        typer.Option(
            help="Of pairs: the model that rewards and KL compare with. Default: what the run started from.",
            metavar="RUN_OR_MODEL",
        ),
    ] = None,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    compile_: Compile = False,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    set_: RunDataOverrides = None,
) -> None:
    """Answer every row and score the replies: ROUGE, BLEU-4, exact match, tool calls, loss, with 95 % intervals.

    Of rows with two answers (a run of preference tuning, or --set data.preference=pairs), replies are compared with the
    better ones, and the model is asked which of the two it prefers: accuracy and margin of rewards, KL from the
    reference.

    Prompts are those of training. Give the same command again to continue a killed evaluation.
    """
    from glmtune.errors import ConfigError
    from glmtune.evaluation.candidates import open_candidates
    from glmtune.evaluation.dataset import read_eval_data
    from glmtune.evaluation.eval_folder import require_eval_folder
    from glmtune.evaluation.evaluate import check_sampling, default_output, describe_settings, evaluate
    from glmtune.evaluation.model_info import load_target, read_settings
    from glmtune.evaluation.model_switcher import ModelSwitcher
    from glmtune.evaluation.pair_data import read_pairs
    from glmtune.evaluation.pair_evaluation import evaluate_pairs, open_reference
    from glmtune.evaluation.terminal_tables import print_pairs, print_scores
    from glmtune.generation.compiled_step import compile_step, require_gpu
    from glmtune.generation.reply import Sampling
    from glmtune.report import write_report
    from glmtune.run_dir import is_run
    from glmtune.utils.console import print_message, show_status, use_stderr

    config = read_settings(target, set_ or [])
    sampling = Sampling(max_new_tokens or config.data.max_target_length, temperature, top_p)
    check_sampling(sampling, batch_size)
    command = join_words(["glmtune", *sys.argv[1:]])
    if output:
        require_eval_folder(output)
    has_pairs = config.data.preference in ("pairs", "labels")
    if reference and not has_pairs:
        raise ConfigError(
            "--reference is for rows with two answers.", "To read both of them: --set data.preference=pairs"
        )
    with use_stderr():
        if compile_:
            require_gpu(device)
        options: Any = {"family": family, "hub": hub, "quantization": quantization}
        switcher = ModelSwitcher(dtype, device)
        if has_pairs:
            tuned = open_candidates([target], base=base, overrides=set_ or [], **options)[0]
            other = open_reference(tuned, reference, **options)
        with show_status("Loading the model"):
            if has_pairs and not compile_:
                opened, model = switcher.load(tuned)
            else:
                opened, model = load_target(target, base=base, dtype=dtype, device=device, **options)
        if compile_:
            compile_step(opened.model)
        with show_status("Reading the data"):
            reading: Any = {"limit": limit, "seed": int(config.training["seed"])}
            rows = read_eval_data(data, config.data, opened.family, opened.tokenizer, **reading)
            pairs = read_pairs(data, config.data, opened.family, opened.tokenizer, **reading) if has_pairs else None
        for note in rows.notes:
            print_message(note)
        if pairs and not pairs.pairs:
            print_message(f"{data}: no pairs of answers, so replies alone are scored.")
            pairs = None
        run = Path(target) if is_run(target) else None
        folder = output or default_output(target, data, run, describe_settings(model, rows, sampling, seed))
        try:
            metrics = evaluate(
                *(opened, model, rows, folder, sampling),
                seed=seed,
                batch_size=batch_size,
                command=command,
                with_ids=pairs is not None,
            )
            if pairs:
                del opened  # one model in memory at a time
                pair_result = evaluate_pairs(
                    *(switcher, tuned, other, pairs, rows.rows, folder),
                    settings=describe_settings(model, rows, sampling, seed),
                    batch_size=batch_size,
                    command=command,
                )
        except KeyboardInterrupt:
            print_message(f"\nStopped; to continue, give the same command again: {command}")
            raise typer.Exit(130) from None
    print_scores(metrics)
    if pairs:
        print_pairs(pair_result)
    page = write_report(folder)
    if run:
        write_report(run)  # its page shows the scores too
    pair_files = f"   pairs: {folder / 'pairs.jsonl'}, {folder / 'pairs.json'}" if pairs else ""
    print_message(
        f"Replies: {folder / 'predictions.jsonl'}   numbers: {folder / 'metrics.json'}{pair_files}   report: {page}"
    )
