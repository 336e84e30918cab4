"""Options that several commands share, with one help text for each, and checks of their values.

The checks run while the command line is read, before anything is imported or loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from glmtune.config import ModelConfig, get_help
from glmtune.config_ranges import BATCH_SIZE, COUNT, PROBABILITY, SEED, TEMPERATURE, TOKENS, NumberRange, check_number
from glmtune.errors import ConfigError
from glmtune.html.i18n import LANGUAGES
from glmtune.utils.documents import shorten_value


def number_option(help: str, allowed: NumberRange, *names: str) -> Any:
    """An option for a number in a range, which `--help` shows.

    Args:
        help: what the number is.
        allowed: its range.
        names: `--name`; that of the parameter when left out.
    """

    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        check_number(value, allowed, parameter.opts[0])
        return value

    return typer.Option(*names, help=f"{help.rstrip('.')}; {allowed}.", callback=check)


def allow_values(known: tuple[str | int, ...]) -> Callable[..., Any]:
    """Make the callback of an option that takes one of several values.

    Args:
        known: the values.
    """

    def check(parameter: typer.CallbackParam, value: Any) -> Any:
        if value is not None and value not in known:
            option = parameter.opts[0]
            raise ConfigError(f"{option} cannot be {shorten_value(value)}.", f"One of: {', '.join(map(str, known))}.")
        return value

    return check


def _check_device(parameter: typer.CallbackParam, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", value):
        option = parameter.opts[0]
        raise ConfigError(f"{option} cannot be {shorten_value(value)}.", "One of: cpu, cuda, cuda:1, ..., mps.")
    return value


def _list_choices(key: str) -> tuple[str, ...]:
    """The words that a key of the config's section `model` takes."""
    choices = get_args(get_type_hints(ModelConfig)[key])
    return tuple(word for choice in choices for word in (get_args(choice) or [choice]) if isinstance(word, str))


DTYPES = ("fp32", "bf16", "fp16", "float32", "bfloat16", "float16")

# What a run is trained with: train, plan.
ConfigFile = Annotated[Path | None, typer.Argument(help="YAML or JSON file that describes the run.")]
Model = Annotated[str | None, typer.Option(help=get_help("model.path"))]
TrainData = Annotated[str | None, typer.Option("--data", help=get_help("data.train"))]
EvalData = Annotated[str | None, typer.Option(help=get_help("data.eval"))]
Method = Annotated[str | None, typer.Option(help=get_help("method"))]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the config: --set training.max_steps=100")
]
RunDataOverrides = Annotated[
    list[str] | None, typer.Option("--set", help="data.* settings other than the run's: --set data.max_length=1024")
]

# How a model is loaded.
RunOrModel = Annotated[
    str, typer.Argument(help="A run, an adapter, a model folder or a hub id.", metavar="RUN_OR_MODEL")
]
Base = Annotated[str | None, typer.Option(help="Folder or hub id of the adapter's base, if it was moved.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="fp32, bf16 or fp16. Default: that of the checkpoint.", callback=allow_values(DTYPES)),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="nf4, int8, packed4 or packed8. Default: that of the training.",
        callback=allow_values(_list_choices("quantization")),
    ),
]
Device = Annotated[
    str | None, typer.Option(help="cuda, mps (Apple) or cpu. Default: a GPU if there is one.", callback=_check_device)
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the decoding step (GPU only): the first reply is slower, later ones faster."
    ),
]
FamilyName = Annotated[
    str | None, typer.Option(help=get_help("model.family"), callback=allow_values(_list_choices("family")))
]
Hub = Annotated[str, typer.Option(help=get_help("model.hub"), callback=allow_values(_list_choices("hub")))]

# How replies are generated.
BatchSize = Annotated[int, number_option("Rows per batch; halved if memory is not sufficient.", BATCH_SIZE)]
Limit = Annotated[int | None, number_option("Use only the first N conversations.", COUNT)]
MaxNewTokens = Annotated[
    int | None,
    number_option("Maximum length of a reply in tokens. Default: data.max_target_length.", TOKENS),
]
Temperature = Annotated[float, number_option("0: greedy, the same reply every time.", TEMPERATURE)]
TopP = Annotated[
    float,
    number_option("Sample from the tokens with this share of the probability.", PROBABILITY),
]
SamplingSeed = Annotated[int, number_option("Seed of sampling.", SEED)]

ReportLanguage = Annotated[
    str | None,
    typer.Option(
        "--lang",
        help="Language that the report shows first: zh or en. Default: from the locale.",
        callback=allow_values(tuple(LANGUAGES)),
    ),
]
