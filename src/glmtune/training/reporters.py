"""Callbacks of the services that metrics are reported to, besides the run folder."""

from __future__ import annotations

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from glmtune.config import RunConfig
from glmtune.errors import ConfigError, summarize_error
from glmtune.run_dir import RunDir
from glmtune.training.arguments import list_reporters
from glmtune.utils.console import is_main_process


def build_reporters(config: RunConfig, run: RunDir) -> list[TrainerCallback]:
    """Build the callbacks of `training.report_to`, which TrainingArguments are not given, so that they fail here.

    Raises:
        ConfigError: an unknown name, or its package is not installed.
    """
    names = list_reporters(config)
    callbacks: list[TrainerCallback] = []
    if "tensorboard" in names and is_main_process():
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(run.logs))))
    try:
        others = get_reporting_integration_callbacks([name for name in names if name != "tensorboard"])
        return callbacks + [callback() for callback in others]
    except (RuntimeError, ImportError, ValueError) as error:
        raise ConfigError(f"training.report_to: {summarize_error(error)}") from None
