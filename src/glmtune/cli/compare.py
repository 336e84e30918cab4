"""`glmtune compare` and `glmtune forget`: is it better, and what did it cost."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Base, Batch, Device, Dtype, FamilyName, Hub, Lang, Limit, Quantization, ReplyLength


def compare(
    targets: Annotated[
        list[str], typer.Argument(help="The baseline, then what to compare with it.", metavar="RUN_OR_MODEL...")
    ],
    data: Annotated[str, typer.Option(help="Rows with answers: whatever data.eval of a run may name.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the results; RUN/eval/compare-DATA-… or evals/compare-DATA-….")
    ] = None,
    limit: Limit = None,
    batch_size: Batch = 8,
    max_new_tokens: ReplyLength = None,
    forget: Annotated[bool, typer.Option(help="Put the forgetting probe to the baseline and to the others.")] = True,
    forget_limit: Annotated[int | None, typer.Option(help="Only so many questions of the probe.", min=1)] = None,
    base: Base = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    lang: Lang = "en",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="data.* settings for all of them: --set data.max_source_length=1024"),
    ] = None,
) -> None:
    """Score base, adapters and runs on the same rows: what is better, whether that is chance, which replies changed.

    Replies are greedy. The base of several adapters is loaded once. A killed comparison goes on when the same command
    is given again.
    """
    from rich.console import Console

    from glmtune.evaluation.candidates import open_contenders
    from glmtune.evaluation.comparison import compare as compare_entries
    from glmtune.evaluation.comparison import default_compare_output, read_entries
    from glmtune.evaluation.comparison_tables import print_comparison
    from glmtune.evaluation.forgetting.forget import limits_for
    from glmtune.evaluation.forgetting.probe import load_probe
    from glmtune.evaluation.forgetting.probing import Probe, spread
    from glmtune.generation.reply import Sampling
    from glmtune.report import write_report
    from glmtune.training.training_data import say
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    progress = Console(stderr=True, soft_wrap=True)
    contenders = open_contenders(
        targets, base=base, family=family, hub=hub, quantization=quantization, overrides=set_ or []
    )
    entries = read_entries(contenders, data, progress, limit=limit)
    longest = max_new_tokens or entries[0].data.rules.max_target_length
    sampling = Sampling(longest)
    leader = next((target for target, each in zip(targets, contenders, strict=True) if each.run), targets[0])
    probe = Probe(spread(load_probe(), forget_limit), limits_for(leader, []), batch_size, progress) if forget else None
    folder = output or default_compare_output(entries, sampling)
    command = shlex.join(["glmtune", *sys.argv[1:]])
    try:
        comparison = compare_entries(
            *(entries, folder, sampling),
            probe=probe,
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            console=progress,
            command=command,
        )
    except KeyboardInterrupt:
        say(progress, f"\nStopped; the same command goes on where it was: {command}")
        raise typer.Exit(130) from None
    console = Console(soft_wrap=True)
    print_comparison(comparison, console)
    say(console, f"Report: {write_report(folder, lang)}   numbers: {folder / 'comparison.json'}")


def forget(
    target: Annotated[
        str, typer.Argument(help="A run, an adapter, or a whole model that was tuned.", metavar="RUN_OR_ADAPTER")
    ],
    base: Annotated[
        str | None, typer.Option(help="Where the adapter's base lies now; what a whole model was tuned from.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the result; the run itself or evals/forget-NAME-TIME by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many questions, of every kind.", min=1)] = None,
    questions: Annotated[
        list[str] | None, typer.Option(help="zh or en: questions of this language only; both by default.")
    ] = None,
    batch_size: Batch = 8,
    dtype: Dtype = None,
    quantization: Quantization = None,
    device: Device = None,
    family: FamilyName = None,
    hub: Hub = "huggingface",
    lang: Lang = "en",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Thresholds other than the run's: --set forget.kl_fail=3")
    ] = None,
) -> None:
    """Ask general questions before and after tuning: does it still know what its base knows?

    Ends with 0 where the verdict is pass or warn, with 3 where it is fail.
    """
    from rich.console import Console

    from glmtune.evaluation.comparison_tables import print_forgetting
    from glmtune.evaluation.forgetting.forget import (
        EXIT_CODES,
        default_forget_output,
        limits_for,
        open_pair,
        write_forgetting,
    )
    from glmtune.evaluation.forgetting.forget import forget as ask_both
    from glmtune.evaluation.forgetting.probe import load_probe
    from glmtune.evaluation.forgetting.probing import spread
    from glmtune.report import write_report
    from glmtune.training.training_data import say
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    progress = Console(stderr=True, soft_wrap=True)
    limits = limits_for(target, set_ or [])
    items = spread(load_probe(questions), limit)
    tuned, its_base = open_pair(target, base=base, family=family, hub=hub, quantization=quantization)
    result = ask_both(
        *(tuned, its_base, items, limits), batch_size=batch_size, dtype=dtype, device=device, console=progress
    )
    folder = output or default_forget_output(target, tuned)
    path = write_forgetting(folder, result, shlex.join(["glmtune", *sys.argv[1:]]))
    console = Console(soft_wrap=True)
    print_forgetting(result, console)
    say(console, f"Report: {write_report(folder, lang)}   numbers: {path}")
    raise typer.Exit(EXIT_CODES[result["verdict"]])
