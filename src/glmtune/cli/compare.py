"""`glmtune compare` and `glmtune forget`: scores and forgetting of tuned models beside their base."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import (
    Base,
    BatchSize,
    Device,
    Dtype,
    FamilyName,
    Hub,
    Limit,
    MaxNewTokens,
    Quantization,
    ReportLanguage,
    number_option,
)
from glmtune.config_ranges import COUNT
from glmtune.utils.shell_words import join_words


def compare(
    targets: Annotated[
        list[str], typer.Argument(help="The baseline, then the models to compare with it.", metavar="RUN_OR_MODEL...")
    ],
    data: Annotated[str, typer.Option(help="Rows with answers, named as data.eval of a config.")],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the results. Default: RUN/eval/compare-DATA-…, evals/compare-DATA-…."),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="A reward model (a run of stage rm): win rates against the baseline.", metavar="RUN_OR_MODEL"
        ),
    ] = None,
    forget: Annotated[bool, typer.Option(help="Run the forgetting probe on the baseline and on the others.")] = True,
    forget_limit: Annotated[int | None, number_option("Use only N questions of the probe.", COUNT)] = None,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    lang: ReportLanguage = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="data.* settings for all models: --set data.max_source_length=1024"),
    ] = None,
) -> None:
    """Score base, adapters and runs on the same rows: what is better, whether that is chance, which replies changed.

    Replies are greedy. The base of several adapters is loaded once. Give the same command again to continue a killed
    comparison.
    """
    from glmtune.evaluation.candidates import open_candidates
    from glmtune.evaluation.comparison import compare_models as compare_entries
    from glmtune.evaluation.comparison import default_compare_output, read_entries, require_compare_folder
    from glmtune.evaluation.forgetting.forget import read_limits
    from glmtune.evaluation.forgetting.probe import load_probe
    from glmtune.evaluation.forgetting.probing import ForgettingProbe, spread_items
    from glmtune.evaluation.judging import require_reward_model
    from glmtune.evaluation.terminal_tables import print_comparison
    from glmtune.generation.reply import Sampling
    from glmtune.report import write_report
    from glmtune.utils.console import print_message, silence_libraries, use_stderr

    silence_libraries()
    command = join_words(["glmtune", *sys.argv[1:]])
    with use_stderr():
        if judge is not None:
            require_reward_model(judge)
        candidates = open_candidates(
            targets, base=base, family=family, hub=hub, quantization=quantization, overrides=set_ or []
        )
        if output:
            require_compare_folder(output, candidates)
        entries = read_entries(candidates, data, limit=limit)
        sampling = Sampling(max_new_tokens or entries[0].data.rules.max_target_length)
        leader = next((target for target, each in zip(targets, candidates, strict=True) if each.run), targets[0])
        probe = (
            ForgettingProbe(spread_items(load_probe(), forget_limit), read_limits(leader, []), batch_size)
            if forget
            else None
        )
        folder = output or default_compare_output(entries, sampling)
        try:
            comparison = compare_entries(
                *(entries, folder, sampling),
                probe=probe,
                batch_size=batch_size,
                dtype=dtype,
                device=device,
                judge=judge,
                command=command,
            )
        except KeyboardInterrupt:
            print_message(f"\nStopped; to continue, give the same command again: {command}")
            raise typer.Exit(130) from None
    print_comparison(comparison)
    print_message(f"Report: {write_report(folder, lang)}   numbers: {folder / 'comparison.json'}")


def forget(
    target: Annotated[str, typer.Argument(help="A run, an adapter, or a fully tuned model.", metavar="RUN_OR_ADAPTER")],
    base: Annotated[
        str | None,
        typer.Option(help="The adapter's base, if it was moved; of a fully tuned model, what it was tuned from."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the result. Default: the run itself, or evals/forget-NAME-TIME.")
    ] = None,
    limit: Annotated[int | None, number_option("Use only N questions, of every kind.", COUNT)] = None,
    questions: Annotated[
        list[str] | None, typer.Option(help="zh or en: questions of this language only. Default: both.")
    ] = None,
    batch_size: BatchSize = 8,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    lang: ReportLanguage = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Thresholds in place of the run's: --set forget.kl_fail=3")
    ] = None,
) -> None:
    """Ask general questions before and after tuning: does the model still know what its base knows?

    The exit code is 0 if the verdict is pass or warn, 3 if it is fail.
    """
    from glmtune.evaluation.forgetting.forget import (
        EXIT_CODES,
        default_forget_output,
        open_pair,
        read_limits,
        require_forget_folder,
        write_forgetting,
    )
    from glmtune.evaluation.forgetting.forget import measure_forgetting as measure_forgetting
    from glmtune.evaluation.forgetting.probe import load_probe
    from glmtune.evaluation.forgetting.probing import spread_items
    from glmtune.evaluation.terminal_tables import print_forgetting
    from glmtune.report import write_report
    from glmtune.utils.console import print_message, silence_libraries, use_stderr

    silence_libraries()
    with use_stderr():
        limits = read_limits(target, set_ or [])
        items = spread_items(load_probe(questions), limit)
        tuned, tuned_base = open_pair(target, base=base, family=family, hub=hub, quantization=quantization)
        folder = output or default_forget_output(target, tuned)
        require_forget_folder(folder, tuned, tuned_base)
        result = measure_forgetting(
            *(tuned, tuned_base, items, limits), batch_size=batch_size, dtype=dtype, device=device
        )
        path = write_forgetting(folder, result, join_words(["glmtune", *sys.argv[1:]]))
    print_forgetting(result)
    print_message(f"Report: {write_report(folder, lang)}   numbers: {path}")
    raise typer.Exit(EXIT_CODES[result.verdict])
