"""Options that several commands share, with one help text for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glmtune.config import get_help

# What a run is trained with: train, plan.
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML or JSON file that describes the run.")]
Model = Annotated[str | None, typer.Option(help=get_help("model.path"))]
TrainData = Annotated[str | None, typer.Option("--data", help=get_help("data.train"))]
EvalData = Annotated[str | None, typer.Option(help=get_help("data.eval"))]
Method = Annotated[str | None, typer.Option(help=get_help("method"))]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the config: --set training.max_steps=100")
]

# How a model is loaded.
RunOrModel = Annotated[
    str, typer.Argument(help="A run, an adapter, a model folder or a hub id.", metavar="RUN_OR_MODEL")
]
Base = Annotated[str | None, typer.Option(help="Folder or hub id of the adapter's base, if it was moved.")]
Dtype = Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. Default: that of the checkpoint.")]
Quantization = Annotated[str | None, typer.Option(help="nf4, int8, packed4 or packed8. Default: that of the training.")]
Device = Annotated[str | None, typer.Option(help="cuda or cpu. Default: a GPU if there is one.")]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the decoding step (GPU only): the first reply is slower, later ones faster."
    ),
]
FamilyName = Annotated[str | None, typer.Option(help=get_help("model.family"))]
Hub = Annotated[str, typer.Option(help=get_help("model.hub"))]

# How replies are generated.
BatchSize = Annotated[int, typer.Option(help="Rows per batch; halved if memory is not sufficient.", min=1)]
Limit = Annotated[int | None, typer.Option(help="Use only the first N conversations.", min=1)]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Maximum length of a reply in tokens. Default: data.max_target_length.", min=1)
]
Temperature = Annotated[float, typer.Option(help="0: greedy, the same reply every time.", min=0.0)]
TopP = Annotated[
    float, typer.Option(help="Sample from the tokens with this share of the probability.", min=0.0, max=1.0)
]

ReportLanguage = Annotated[
    str | None, typer.Option("--lang", help="Language that the report shows first: zh or en. Default: from the locale.")
]
