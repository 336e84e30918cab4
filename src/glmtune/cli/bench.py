"""`glmtune bench`: tokens per second and memory, by precision and batch size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Base, Compile, Device, allow_values, number_option
from glmtune.config_ranges import BATCH_SIZE, TOKENS, NumberRange
from glmtune.errors import ConfigError
from glmtune.utils.documents import shorten_value
from glmtune.utils.shell_words import join_words


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(help="Runs, adapters, checkpoint folders or hub ids.", metavar="RUN_OR_MODEL..."),
    ],
    variants: Annotated[
        str, typer.Option(help="Comma-separated: fp32, 16-bit, packed8, packed4, nf4.")
    ] = "16-bit,packed8,packed4",
    batch_sizes: Annotated[str, typer.Option(help="Rows per batch, comma-separated.")] = "1,8",
    prompt_tokens: Annotated[int, number_option("Length of each row's prompt.", TOKENS)] = 128,
    new_tokens: Annotated[int, number_option("Length of each row's reply.", TOKENS)] = 64,
    repeats: Annotated[
        int, number_option("Number of measurements, of which the medians are taken.", NumberRange(1, 1000))
    ] = 3,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            help="Folder of bench.json and bench.png, new or empty. Default: glmtune-bench, or glmtune-bench-TIME.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
    base: Base = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="Precision of 16-bit, and of products with quantised weights: bf16, fp16.",
            callback=allow_values(("bf16", "fp16")),
        ),
    ] = "bf16",
    device: Device = None,
    compile_: Compile = False,
) -> None:
    """Measure the speed and memory of replies: base, live adapter, merged, packed8, packed4.

    Each is loaded in a process of its own; a checkpoint in full precision is quantised while it is loaded.
    """
    import json

    from glmtune.bench.bench_output import choose_bench_folder, describe_results, print_results, write_results
    from glmtune.bench.cases import BenchmarkCase, BenchmarkSizes, make_cases, run_cases
    from glmtune.utils.console import print_message, show_status, silence_libraries, use_stderr

    silence_libraries()
    sizes = BenchmarkSizes(prompt_tokens, new_tokens, _parse_sizes(batch_sizes), repeats)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    folder = choose_bench_folder(output)
    with use_stderr():
        cases = make_cases(targets, names, sizes, base=base, dtype=dtype, device=device, compiled=compile_)
        with show_status("") as status:

            def show_case(case: BenchmarkCase) -> None:
                status.update(f"{cases.index(case) + 1} of {len(cases)}: {case.title}")

            results = run_cases(cases, sizes, show_case)
    figures = describe_results(results, join_words(["glmtune", *sys.argv[1:]]))
    paths = write_results(folder, figures)
    if json_:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
        return
    print_results(results)
    print_message(f"Figures: {paths[0]}   plot: {paths[1]}")


def _parse_sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) < 10 and BATCH_SIZE.contains(int(part)) for part in parts):
        raise ConfigError(
            f"--batch-sizes is {shorten_value(text)}; it must be whole numbers {BATCH_SIZE}, separated by commas.",
            "For example 1,8.",
        )
    return tuple(map(int, parts))
