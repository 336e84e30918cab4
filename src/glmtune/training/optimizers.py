"""Checks of `training.optim` and `training.lr_scheduler_type` before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from glmtune.config import RunConfig
from glmtune.config_parsing import suggest_key
from glmtune.errors import ConfigError, summarize_error
from glmtune.training.training_keys import OPTIMIZER_USES
from glmtune.utils.installation import format_install
from glmtune.utils.optional_packages import is_installed

# What transformers and the optimizers' packages raise at a value that they cannot use.
_FAULTS = (ValueError, TypeError, KeyError, ImportError, AttributeError, RuntimeError, NotImplementedError)


def check_optimizer(arguments: TrainingArguments, config: RunConfig) -> None:
    """Check that the optimizer and the scheduler of a run can be built: package, options and values.

    Raises:
        ConfigError: one that is unknown, refused or not installed, an option that it does not have, or a value that
            its package refuses.
    """
    name = str(getattr(arguments.optim, "value", arguments.optim))
    use = OPTIMIZER_USES.get(name)
    if use is None:
        raise ConfigError(f"training.optim has no value {name}.", suggest_key(name, list(OPTIMIZER_USES)))
    if use.refusal:
        raise ConfigError(f"training.optim {name} is not supported: {use.refusal}.", "Use adamw_torch or adafactor.")
    if use.module and not is_installed(use.module):
        raise ConfigError(
            f"training.optim {name} needs the package {use.module}, which is not installed.",
            format_install(use.install),
        )
    _check_options(arguments, name)
    if use.needs_targets:
        _check_targets(arguments, config, name)
    elif arguments.optim_target_modules:
        raise ConfigError(
            f"training.optim_target_modules has no effect with training.optim {name}.",
            "Remove it, or use galore_adamw, galore_adafactor or apollo_adamw.",
        )
    _build_for_one_weight(arguments, name, with_targets=use.needs_targets)


def _check_options(arguments: TrainingArguments, name: str) -> None:
    """Check the names in training.optim_args: transformers ignores those that the optimizer does not have."""
    options = OPTIMIZER_USES[name].options
    for part in filter(None, (arguments.optim_args or "").replace(" ", "").split(",")):
        key, sign, _ = part.partition("=")
        if not sign:
            raise ConfigError(f"training.optim_args: {part} has no value.", "For example momentum=0.9,nesterov=true.")
        if key not in options:
            known = f"It has {', '.join(options)}." if options else f"{name} has no options there: remove it."
            raise ConfigError(f"training.optim_args: {name} has no option {key}.", known)


def _check_targets(arguments: TrainingArguments, config: RunConfig, name: str) -> None:
    if not arguments.optim_target_modules:
        raise ConfigError(
            f"training.optim {name} needs training.optim_target_modules.",
            "For example --set training.optim_target_modules=all-linear.",
        )
    if config.method not in ("full", "freeze"):
        raise ConfigError(
            f"training.optim {name} projects the gradients of whole matrices; method {config.method} trains none.",
            "Use --method full or freeze, or another optimizer.",
        )


def _build_for_one_weight(arguments: TrainingArguments, name: str, with_targets: bool) -> None:
    """Build optimizer and scheduler for a single weight, so that their errors come before the model is loaded."""
    weight: Any = torch.nn.Linear(2, 2)
    scheduler_options: Any = arguments.lr_scheduler_kwargs
    optimizer: torch.optim.Optimizer = torch.optim.SGD(weight.parameters(), lr=arguments.learning_rate)
    if not with_targets:  # those look for their modules in the model
        try:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, weight)
            optimizer = kind(weight.parameters(), **options)
        except _FAULTS as error:
            raise ConfigError(f"training.optim {name}: {summarize_error(error)}.") from None
    kind_name = getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)
    try:
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=scheduler_options,
        )
    except _FAULTS as error:
        raise ConfigError(
            f"training.lr_scheduler_type {kind_name}: {summarize_error(error)}.",
            "Its options are given as training.lr_scheduler_kwargs.",
        ) from None
