"""The part of the trainer that writes and reads checkpoints, each of which is complete or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors import SafetensorError
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import rotate_checkpoints

from glmtune.errors import TrainingError
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.method import Method, StateDict
from glmtune.training.checkpoint_files import PARTIAL_FOLDER, describe_write_error, write_checksums
from glmtune.training.data_position import DataPosition, write_position
from glmtune.training.distributed import any_rank, barrier
from glmtune.training.optimizer_state import OptimizerSettings, explain_load_errors
from glmtune.training.sharding import gather_weights, load_into_shards
from glmtune.utils.operating_system import replace_path


class CheckpointTrainer(Trainer):
    """What a method trains is what a checkpoint holds."""

    _method: Method
    _base_info: BaseInfo
    _optimizer_settings: OptimizerSettings | None
    _saving: bool
    """Whether a checkpoint is being written, under its temporary name."""

    def _find_position(self) -> DataPosition:
        """The position after the last step."""
        raise NotImplementedError

    def gather_state(self, everything: bool = False) -> StateDict | None:
        """Gather all weights in the main process if they are sharded; else return None. All processes must call it.

        Args:
            everything: frozen weights too.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        model: Any = self.model
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return gather_weights(model, lambda name: everything or name in trainable)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what the method trains; the Trainer adds the optimiser's state."""
        state = self.gather_state()
        if output_dir is not None and self.args.should_save:
            self._method.write(self.model, Path(output_dir), self._base_info, state)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        # The Trainer would add the whole model to what the method wrote.
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))  # type: ignore[union-attr]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with explain_load_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self._optimizer_settings is not None:
            has_schedule = os.path.isfile(os.path.join(checkpoint, SCHEDULER_NAME))
            step = None if has_schedule else self.state.global_step
            self._optimizer_settings.restore(self.optimizer, self.lr_scheduler, step)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if getattr(self.accelerator, "scaler", None) is not None:  # a run in fp16 may be resumed in another precision
            super()._load_scaler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = model or self.model
        with load_into_shards(target):
            self._method.read(target, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            return super()._load_best_model()
        # By its present path: the state of a run that was moved or is resumed from another folder has an old one.
        self._load_from_checkpoint(os.path.join(str(self.args.output_dir), f"checkpoint-{self.state.best_global_step}"))

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, PARTIAL_FOLDER) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write under a temporary name, then rename, so that a kill or a full disk leaves no incomplete checkpoint."""
        folder = Path(super()._get_output_dir(trial))
        partial, name = folder / PARTIAL_FOLDER, f"checkpoint-{self.state.global_step}"
        self._require_finite_weights()
        self._remove_folder(partial)
        barrier()
        try:
            self._saving = True
            super()._save_checkpoint(model, trial)
            barrier()
            if self.state.best_global_step:
                self.state.best_model_checkpoint = str(folder / f"checkpoint-{self.state.best_global_step}")
            if self.args.should_save:
                self._finish_checkpoint(folder, partial / name)
            barrier()
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = describe_write_error(error)
            if reason is None:
                raise
            is_full = "No space left" in reason
            hint = "Free some space" if is_full else "Free some space, or make it writable"
            what = f"no space left to save {name}" if is_full else f"{name} cannot be saved ({reason})"
            raise TrainingError(
                f"{folder}: {what}; the earlier checkpoints are complete.",
                f"{hint}, then continue with --resume.",
            ) from None
        finally:
            self._saving = False
            self._remove_folder(partial)

    def _remove_folder(self, folder: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish_checkpoint(self, folder: Path, written: Path) -> None:
        if self.state.best_global_step:  # under its final name now
            self.state.save_to_json(str(written / "trainer_state.json"))
        write_position(written, self._find_position())
        write_checksums(written)
        final = folder / written.name
        shutil.rmtree(final, ignore_errors=True)  # a resumed run may save the same step again
        replace_path(written, final)
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=False,  # a copied run, or a clock that was changed, has times in another order
        )

    def _require_finite_weights(self) -> None:
        """Stop a run before weights that nothing can be trained from take the place of an older checkpoint."""
        model: Any = self.model
        bad = None
        for name, parameter in model.named_parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if parameter.requires_grad and not bool(torch.isfinite(local).all()):
                bad = name
                break
        if any_rank(bad is not None, self.args.device):
            cause = "fp16 overflowed: use bf16 or fp32" if self.args.fp16 else "the learning rate is too high"
            raise TrainingError(
                f"The weights became infinite or NaN at step {self.state.global_step} ({bad or 'in another process'}).",
                f"Likely cause: {cause}. The earlier checkpoints are not touched.",
            )
