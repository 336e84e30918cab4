"""transformers' Trainer with our loss, an exact evaluation and checkpoints that are whole or absent."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints

from glmtune.errors import TrainingError
from glmtune.training.loss import target_losses
from glmtune.training.order import EpochSampler

_PARTIAL = ".saving"


class GlmTrainer(Trainer):
    """The loop, optimiser, scheduler, mixed precision and distribution are transformers'."""

    def __init__(
        self, *args: Any, describe_row: Callable[[int], str], save_weights: Callable[[Path], None], **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # it prints every log as a dict; our progress says it in words
        self._describe_row = describe_row
        self._save_weights = save_weights
        self._head: nn.Module = self.model.get_output_embeddings()  # type: ignore[union-attr, operator]
        self._saving = False
        self.samples_seen = 0
        self._tokens_before: int | None = None
        # Makes the Trainer count the targets of a whole optimiser step, however it is split into micro-batches.
        self.model_accepts_loss_kwargs = True

    @property
    def tokens_seen(self) -> int:
        """Non-padding tokens trained on by this process, what a resumed run did before left out."""
        return int(self.state.num_input_tokens_seen) - (self._tokens_before or 0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        if self._tokens_before is None:
            self._tokens_before = int(self.state.num_input_tokens_seen)
        self.samples_seen += int((inputs["rows"] >= 0).sum()) * self.accelerator.num_processes
        losses_N = target_losses(model, self._head, inputs)
        loss = losses_N.sum() / (len(losses_N) if num_items_in_batch is None else num_items_in_batch)
        self._require_finite(loss, losses_N, inputs)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # undoes the mean that data parallelism takes of gradients
        return (loss, {"losses": losses_N}) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all targets of the data: unlike a mean of batch means, batching does not change it."""
        model = self.model_wrapped.eval()
        total, count, rows = 0.0, 0, 0
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                losses_N = target_losses(model, self._head, batch)
            # By block, so that blocks which were repeated to give every process as many can be left out again.
            blocks_N = batch["target_positions"] // batch["input_ids"].shape[1]
            zeros_B = torch.zeros(len(batch["rows"]), dtype=torch.float64, device=losses_N.device)
            parts_B = (
                zeros_B.index_add(0, blocks_N, losses_N.double()),
                zeros_B.index_add(0, blocks_N, torch.ones_like(losses_N, dtype=torch.float64)),
                (batch["rows"] >= 0).sum(dim=1),
            )
            sums_B, counts_B, rows_B = self.accelerator.gather_for_metrics(parts_B)
            total += float(sums_B.sum())
            count += int(counts_B.sum())
            rows += int(rows_B.sum())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_loss": total / count if count else float("nan")}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=rows)  # type: ignore[arg-type]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Non-padding tokens; the Trainer's own count sums the attention mask, which packing makes a square."""
        self.state.num_input_tokens_seen += int(self.accelerator.gather(inputs["tokens"]).sum())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = train_dataset or self.train_dataset
        strategy = self.args.train_sampling_strategy
        if strategy not in ("group_by_length", "random"):
            return super()._get_train_sampler(train_dataset)
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(dataset.lengths, self.args.seed, size if strategy == "group_by_length" else None)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return SequentialSampler(eval_dataset)  # the blocks are in order of length already

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """What goes into a checkpoint beside the optimiser's state is the method's affair."""
        if output_dir is not None:
            self._save_weights(Path(output_dir))

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _PARTIAL) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write under a temporary name, then rename: a kill or a full disk never leaves half a checkpoint."""
        folder = Path(super()._get_output_dir(trial))
        partial, name = folder / _PARTIAL, f"checkpoint-{self.state.global_step}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            self._saving = True
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._finish_checkpoint(folder, partial / name)
        except (OSError, SafetensorError, RuntimeError) as error:
            if not _no_space(error):
                raise
            raise TrainingError(
                f"{folder}: no space left to save {name}; the earlier checkpoints are whole.",
                "Free some space, then continue with --resume.",
            ) from None
        finally:
            self._saving = False
            shutil.rmtree(partial, ignore_errors=True)

    def _finish_checkpoint(self, folder: Path, written: Path) -> None:
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(folder / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(written / "trainer_state.json"))
        final = folder / written.name
        shutil.rmtree(final, ignore_errors=True)  # a resumed run may save the same step again
        os.replace(written, final)
        rotate_checkpoints(
            output_dir=str(folder),
            save_total_limit=self.args.save_total_limit,
            best_model_checkpoint=self.state.best_model_checkpoint,
            use_mtime=True,
        )

    def _require_finite(self, loss: torch.Tensor, losses_N: torch.Tensor, inputs: dict[str, Any]) -> None:
        if torch.isfinite(loss):
            return
        # Blocks with a target whose loss is not finite; within a block the rows are not told apart.
        blocks = inputs["target_positions"][~torch.isfinite(losses_N)] // inputs["input_ids"].shape[1]
        bad = [row for row in inputs["rows"][blocks.unique()].flatten().tolist() if row >= 0]
        cause = "fp16 overflowed: use bf16 or fp32" if self.args.fp16 else "the learning rate is too high for this data"
        raise TrainingError(
            f"The loss became {float(loss)} at step {self.state.global_step + 1} "
            f"(rows {', '.join(self._describe_row(row) for row in bad[:4])}).",
            f"Likely cause: {cause}, or a weight of the base is not finite. Nothing was saved from this step.",
        )


def _no_space(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
