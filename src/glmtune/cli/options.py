"""Options that several commands share: one help text for each."""

from __future__ import annotations

from typing import Annotated

import typer

from glmtune.config import help_of

RunOrModel = Annotated[
    str, typer.Argument(help="A run, an adapter, a checkpoint folder or a hub id.", metavar="RUN_OR_MODEL")
]
Base = Annotated[str | None, typer.Option(help="Where the adapter's base lies now.")]
Batch = Annotated[int, typer.Option(help="Rows at once; halved when memory does not suffice.", min=1)]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; the checkpoint's own by default.")]
Quantization = Annotated[str | None, typer.Option(help="nf4, int8, packed4, packed8; by default as it was tuned.")]
Device = Annotated[str | None, typer.Option(help="cuda, cpu; a GPU if there is one by default.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the step, on a GPU: the first reply waits, later ones are faster.")
]
FamilyName = Annotated[str | None, typer.Option(help=help_of("model.family"))]
Hub = Annotated[str, typer.Option(help=help_of("model.hub"))]
Limit = Annotated[int | None, typer.Option(help="Only the first so many conversations.", min=1)]
ReplyLength = Annotated[
    int | None, typer.Option(help="Longest reply in tokens; data.max_target_length by default.", min=1)
]
Lang = Annotated[str, typer.Option(help="zh or en: the language that the report shows first.")]
