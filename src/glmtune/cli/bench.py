"""`glmtune bench`: tokens per second and memory, by precision and batch size."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from glmtune.cli.options import Base, Compile, Device
from glmtune.errors import ConfigError


def bench(
    targets: Annotated[
        list[str],
        typer.Argument(help="Runs, adapters, checkpoint folders or hub ids.", metavar="RUN_OR_MODEL..."),
    ],
    variants: Annotated[str, typer.Option(help="Of fp32, 16-bit, int8, int4, nf4.")] = "16-bit,int8,int4",
    batch_sizes: Annotated[str, typer.Option(help="Rows at once, several with commas.")] = "1,8",
    prompt_tokens: Annotated[int, typer.Option(help="Length of the prompt of each row.")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens that each row gets.")] = 64,
    repeats: Annotated[int, typer.Option(help="Medians are taken over so many.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of bench.json and bench.png.")] = Path("glmtune-bench"),
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
    base: Base = None,
    dtype: Annotated[str, typer.Option(help="What 16-bit is, and what int8 and int4 compute in: bf16, fp16.")] = "bf16",
    device: Device = None,
    compile_: Compile = False,
) -> None:
    """Measure reading a prompt and writing a reply, and memory: base, live adapter, merged, int8, int4.

    Each is loaded in a process of its own; a checkpoint in full precision is quantised while it is loaded.
    """
    import json

    from rich.console import Console

    from glmtune.bench.cases import Case, Sizes, cases_of, run_cases
    from glmtune.bench.results import as_json, print_table, write
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    sizes = Sizes(prompt_tokens, new_tokens, _numbers(batch_sizes), repeats)
    asked = [variant.strip() for variant in variants.split(",") if variant.strip()]
    cases = cases_of(targets, asked, sizes, base=base, dtype=dtype, device=device, compiled=compile_)
    progress = Console(stderr=True, soft_wrap=True)
    with progress.status("") as status:

        def tell(case: Case) -> None:
            status.update(f"{cases.index(case) + 1} of {len(cases)}: {case.title}")

        results = run_cases(cases, sizes, tell)
    figures = as_json(results, shlex.join(["glmtune", *sys.argv[1:]]))
    paths = write(out, figures)
    if json_:
        typer.echo(json.dumps(figures, ensure_ascii=False, indent=2))
        return
    console = Console(soft_wrap=True)
    print_table(results, console)
    console.print(f"Figures: {paths[0]}   picture: {paths[1]}", markup=False, highlight=False)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) for part in parts):
        raise ConfigError(f"--batch-sizes {text}: whole numbers above 0 with commas between them.", "For example 1,8.")
    return tuple(map(int, parts))
