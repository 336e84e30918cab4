"""The optimiser of a resumed run: moments of its checkpoint, settings of its config."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import RunError, summarize_error
from glmtune.training.checkpoint_files import describe_optimizer_state
from glmtune.training.memory import is_out_of_memory
from glmtune.training.sharding import uses_fsdp
from glmtune.utils.console import print_warning

# Settings of a parameter group that are no state. Others may be: some optimisers keep step counts in their groups.
_GROUP_SETTINGS = ("weight_decay", "betas", "eps", "initial_lr")


class OptimizerSettings:
    """Settings of a new optimiser and its scheduler, to be restored after a checkpoint has overwritten them.

    Args:
        optimizer: new.
        scheduler: new.
    """

    def __init__(self, optimizer: Any, scheduler: Any):
        self._groups = [
            {key: group[key] for key in _GROUP_SETTINGS if key in group} for group in optimizer.param_groups
        ]
        self._base_lrs = list(getattr(scheduler, "base_lrs", []))

    def restore(self, optimizer: Any, scheduler: Any, step: int | None) -> None:
        """Restore the settings, and set the learning rates of the next step as the present schedule has them.

        Unchanged settings give bit for bit the rates of the checkpoint.

        Args:
            optimizer: with the state of a checkpoint.
            scheduler: with the state of a checkpoint.
            step: of the checkpoint, if that has no scheduler state.
        """
        for group, settings in zip(optimizer.param_groups, self._groups, strict=True):
            group |= {key: value for key, value in settings.items() if key in group}
        if not isinstance(scheduler, LambdaLR):
            return  # its rates depend on what it has measured; resume.py refuses changes
        if step is not None:
            scheduler.last_epoch, scheduler._step_count = step, step + 1
        scheduler.base_lrs = self._base_lrs
        rates = [
            base * factor(scheduler.last_epoch)
            for base, factor in zip(self._base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        scheduler._last_lr = rates
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


@contextmanager
def explain_load_errors(checkpoint: str | None) -> Iterator[None]:
    """Turn a failure to load the state of an optimiser or scheduler into an error that the user can fix.

    Raises:
        RunError: in place of the error.
    """
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        if is_out_of_memory(error):
            raise
        raise RunError(
            f"{checkpoint}: the state of the optimiser cannot be loaded ({summarize_error(error, 200)}).",
            "Resume from an earlier checkpoint: glmtune train --resume CHECKPOINT",
        ) from None


def require_optimizer_state(checkpoint: Path, config: RunConfig, arguments: TrainingArguments) -> None:
    """Require that the optimiser's state was saved as it is going to be read.

    Raises:
        RunError: it was sharded in another way.
    """
    now = "DeepSpeed" if arguments.deepspeed else "FSDP" if uses_fsdp(config) else "one file"
    saved = describe_optimizer_state(checkpoint)
    if saved is None and now == "one file":
        print_warning(f"{checkpoint} has no optimiser state (training.save_only_model): its moments start from 0.")
    elif saved != now:
        names = {None: "no optimiser state", "one file": "the state of an optimiser that is not sharded"}
        raise RunError(
            f"{checkpoint}: holds {names.get(saved, f'the optimiser state of {saved}')}; "
            f"this run uses {'neither FSDP nor DeepSpeed' if now == 'one file' else now}.",
            "training.fsdp and training.deepspeed cannot change when a run is resumed.",
        )
