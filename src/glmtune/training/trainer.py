"""transformers' Trainer with our loss, an exact evaluation, and checkpoints that are complete or absent.

CONTRIBUTING.md lists the private methods of transformers that it overrides, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import EarlyStoppingCallback, PrinterCallback
from transformers.trainer_utils import EvalLoopOutput

from glmtune.data.batches import RowBatch
from glmtune.errors import TrainingError
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.method import Method
from glmtune.methods.ptuning import allow_quantized_training
from glmtune.models.devices import find_double_device, to_double
from glmtune.training.checkpoint_trainer import CheckpointTrainer
from glmtune.training.data_position import (
    DataPosition,
    count_micro_batches,
    count_steps,
)
from glmtune.training.distributed import any_rank, count_processes
from glmtune.training.loss import LossSettings, find_head
from glmtune.training.loss_checks import LossChecks, NonFiniteLoss, ScaleCheck, find_loss_scale
from glmtune.training.objective import Objective, StepDataError, compute_means
from glmtune.training.optimizer_state import OptimizerSettings
from glmtune.training.samplers import (
    IdleBlockDataset,
    PaddedSampler,
    ResumedSampler,
    find_order_seed,
    make_epoch_sampler,
    name_order,
)
from glmtune.training.sharding import (
    allow_fsdp_on_cpu,
    cast_while_sharding,
    keep_losses_fp32,
)
from glmtune.utils.console import print_warning
from glmtune.utils.shell_words import quote_word


class GlmTrainer(CheckpointTrainer):
    """The loop, optimiser, scheduler, mixed precision and distribution are transformers'."""

    def __init__(
        self,
        *args: Any,
        describe_row: Callable[[int], str],
        describe_eval_row: Callable[[int], str],
        method: Method,
        base_info: BaseInfo,
        objective: Objective,
        scores: Callable[[Any, int], dict[str, float]] | None = None,
        frozen_dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ):
        # A prefix on a quantised base is no PeftModel, which is all that transformers would let train there.
        with allow_quantized_training(kwargs["model"]):
            super().__init__(*args, **kwargs)
        self._loss_settings = LossSettings(self.args.label_smoothing_factor, self.args.neftune_noise_alpha or 0.0)
        self.neftune_noise_alpha = None  # its hook does not know packed rows
        self.remove_callback(PrinterCallback)  # prints every log as a dict; MetricsCallback shows the same numbers
        self._describe_row = describe_row
        self._describe_eval_row = describe_eval_row
        self._method = method
        self._base_info = base_info
        self._objective = objective
        self._scores = scores
        self._loss_checks = LossChecks(self._describe_rows, objective.find_rows, objective.stops_at_zero_loss)
        self._eval_checks = LossChecks(self._describe_rows, objective.find_rows, stops_at_zero=False)
        self._scale_check, self._scaled_step = ScaleCheck(), -1
        self._frozen_dtype = frozen_dtype
        self._saving = False
        self._sampler: Any = None
        self._start: DataPosition | None = None
        self._start_step = 0
        self._epoch = self._batches = 0  # micro-batches of this epoch, since it was begun or resumed
        self._epoch_batches = 0
        self._rng_checkpoint: str | None = None
        self._optimizer_settings: OptimizerSettings | None = None
        self.samples_seen = 0
        self._uncounted = [0, 0]  # tokens and rows of this process since the counts were summed last
        self._tokens_before: int | None = None
        # Makes the Trainer count the targets of a whole optimiser step, however it is split into micro-batches.
        self.model_accepts_loss_kwargs = True

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with cast_while_sharding(self._frozen_dtype) if self.is_fsdp_enabled else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimiser of `training.optim` over the parameter groups of the method, if it has any (LoRA+)."""
        groups = self._method.optimizer_groups(self.model, self.args.learning_rate, self.args.weight_decay)
        if self.optimizer is not None or groups is None:
            return super().create_optimizer(model)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        options.pop("lr", None)
        self.optimizer = kind(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        self._optimizer_settings = OptimizerSettings(self.optimizer, scheduler)
        return scheduler

    def resume_at(self, position: DataPosition, step: int) -> None:
        """Continue with the row after the last one that a checkpoint was trained on; call it before `train`.

        Args:
            position: of the checkpoint.
            step: of the checkpoint.
        """
        self._start, self._start_step = position, step

    @property
    def _block_count(self) -> int:
        dataset: Any = self.train_dataset
        return len(dataset)

    @property
    def _batch_size(self) -> int:
        """Blocks that all processes together take in a forward pass."""
        return self.args.train_batch_size * count_processes()

    @property
    def _order(self) -> str:
        group = self._batch_size * self.args.gradient_accumulation_steps
        return name_order(str(self.args.train_sampling_strategy), group)

    def _count_batches(self, blocks: int) -> int:
        return count_micro_batches(blocks, self.args, count_processes())

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        values = super().set_initial_training_values(args, dataloader)
        if self._start is None:
            return values
        counts = count_steps(self.args, self._block_count, count_processes(), self._start, self._start_step)
        return (counts.epochs, *values[1:-1], counts.steps)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        patience = [one.early_stopping_patience for one in self._early_stopping()]
        super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, checkpoint, trial)
        if checkpoint is None or self._start is None:
            return 0, 0
        for one, number in zip(self._early_stopping(), patience, strict=False):
            one.early_stopping_patience = number  # of the config, not of the checkpoint
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        self.find_best_checkpoint()
        return self._start.epoch, 0

    def _early_stopping(self) -> list[EarlyStoppingCallback]:
        return [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]

    def find_best_checkpoint(self) -> None:
        """Set the path of the best checkpoint: the state of a run that was moved has an old one."""
        best = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.best_global_step}"
        is_there = bool(self.state.best_global_step) and best.is_dir()
        self.state.best_model_checkpoint = str(best) if is_there else None
        if self.args.load_best_model_at_end and self.state.best_global_step and not is_there:
            print_warning(f"{best}, the best so far, is gone: the best of the next ones is used.")
            self.state.best_global_step = self.state.best_metric = None

    def create_accelerator_and_postprocess(self) -> None:
        with allow_fsdp_on_cpu(self.args):
            super().create_accelerator_and_postprocess()

    @property
    def tokens_seen(self) -> int:
        """Non-padding tokens trained on by all processes, without those before a resumed run was stopped."""
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
            keep_losses_fp32(model, find_head(model))
        losses_M = self._objective.compute_losses(model, inputs, self._loss_settings)
        loss = losses_M.sum() / (len(losses_M) if num_items_in_batch is None else num_items_in_batch)
        if self._loss_checks.add(self.state.global_step + 1, loss, losses_M, inputs):
            self._check_losses()
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # undoes the mean that data parallelism takes of gradients
        return (loss, {"losses": losses_M}) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """The targets, pairs or answers of an optimiser step in all processes."""
        if not batch_samples:
            return None
        count = torch.stack([self._objective.count_items(batch) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and count_processes() > 1:
            count = self.accelerator.reduce(count)
        return count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._average_metrics(is_evaluation=False)
        super().log(logs, start_time)

    def _average_metrics(self, is_evaluation: bool) -> dict[str, float]:
        """Means over the items of all processes since the last call; empty without metrics."""
        sums_K2 = self._objective.pop_metrics(is_evaluation)
        if sums_K2 is None:
            return {}
        return compute_means(self._objective.metric_names, self.accelerator.reduce(sums_K2.to(self.args.device)))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Compute the mean loss over all targets or pairs, which unlike a mean of batch means does not depend on
        batching, and the scores of replies if `generate.rows` is set, so that a checkpoint can be the best by any."""
        if not self._objective.evaluates_losses:
            with self.compute_loss_context_manager():
                scores = self._objective.evaluate()
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
            return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))  # type: ignore[arg-type]
        model = self.model_wrapped
        model.eval()  # DeepSpeed's returns nothing
        keep_losses_fp32(model, find_head(model))
        # On the device until the end, so that no batch waits for it.
        total, count, rows = torch.zeros((), dtype=torch.float64, device=find_double_device(self.args.device)), 0, 0
        with self.compute_loss_context_manager():
            self._objective.prepare_batches(model, dataloader, True)
        for batch in dataloader:
            batch = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                losses_M = self._objective.compute_losses(model, batch, None)
            if self._eval_checks.add(self.state.global_step, losses_M.sum(), losses_M, batch):
                self._check_eval_losses()
            total += to_double(losses_M).sum()
            count, rows = count + len(losses_M), rows + int((batch["rows"] >= 0).sum())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self._check_eval_losses()
        counts_2 = torch.tensor([count, rows], dtype=torch.float64).to(total.device)
        total_loss, count, rows = self.accelerator.reduce(torch.cat([total[None], counts_2])).tolist()
        metrics = {f"{metric_key_prefix}_loss": total_loss / count if count else float("nan")}
        pair_metrics = self._average_metrics(is_evaluation=True)
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in pair_metrics.items()}
        if self._scores is not None:
            with self.compute_loss_context_manager():
                scores = self._scores(self.model, self.state.global_step)
            metrics |= {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=int(rows))  # type: ignore[arg-type]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Count tokens of rows; the Trainer would count those of idle blocks too."""
        self._uncounted[0] += int(inputs["tokens"].sum())
        self._uncounted[1] += int((inputs["rows"] >= 0).sum())
        self._batches += 1
        if count_processes() == 1:
            self._sum_counts()

    def _sum_counts(self) -> None:
        """Add what all processes have trained on since the last call; with several processes, it waits for them."""
        counts = self._uncounted
        if count_processes() > 1:
            counts = self.accelerator.reduce(torch.tensor(counts).to(self.args.device)).tolist()
        self.state.num_input_tokens_seen += counts[0]
        self.samples_seen += counts[1]
        self._uncounted = [0, 0]

    def _prepare_input(self, data: Any) -> Any:
        return data.to(self.args.device) if isinstance(data, RowBatch) else super()._prepare_input(data)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        parts = self._objective.split_batch(inputs)
        losses = []
        for number, part in enumerate(parts, start=1):
            # With the last part, gradients are summed over the processes.
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        if not self._skips_steps:
            return loss
        # The step will be skipped: in the logged mean it counts as the others did.
        mean = self._tr_loss / (1 + self.state.global_step - self._globalstep_last_logged)
        return torch.where(loss.isfinite(), loss, mean)

    @property
    def _skips_steps(self) -> bool:
        """Whether this is a run in fp16 that skips steps with gradients that are not finite."""
        return find_loss_scale(self.accelerator) is not None

    def _get_dataloader(self, dataset: Any, description: str, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        if count_processes() > 1:
            dataset = IdleBlockDataset(dataset)
        return super()._get_dataloader(dataset, description, batch_size, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = train_dataset or self.train_dataset
        lengths = dataset.lengths
        seed = find_order_seed(self.args)
        sampler = make_epoch_sampler(self._order, lengths, seed) or super()._get_train_sampler(train_dataset)
        if self._start is None:
            self._sampler = ResumedSampler(sampler, len(lengths))
        else:
            resumed = make_epoch_sampler(self._start.order, lengths, seed) or sampler
            self._sampler = ResumedSampler(sampler, len(lengths), resumed, self._start.epoch, self._start.blocks)
        return PaddedSampler(self._sampler, self._batch_size) if count_processes() > 1 else self._sampler

    def _run_epoch(self, model: Any, epoch: int, **kwargs: Any) -> None:  # type: ignore[override]
        self._sampler.set_epoch(epoch)  # accelerate does not do this in a resumed epoch
        self._epoch, self._batches = epoch, 0
        self._epoch_batches = self._count_batches(len(self._sampler))
        if len(self._sampler) < self._block_count:
            # The epoch was begun before. Its rest is an epoch of its own for the Trainer, which would skip batches of
            # the present size.
            kwargs["steps_in_epoch"] = self._epoch_batches
            kwargs["num_update_steps_per_epoch"] = -(-self._epoch_batches // self.args.gradient_accumulation_steps)
            self._rng_checkpoint = kwargs["resume_from_checkpoint"]
        super()._run_epoch(model=model, epoch=epoch, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._rng_checkpoint is not None:  # creating the iterator, which draws a number, was before the checkpoint
            self._load_rng_state(self._rng_checkpoint)
            self._rng_checkpoint = None
        step = self.state.global_step + 1
        with self.compute_loss_context_manager():
            try:
                prepared = self._objective.generate_batches(batches, step, self._is_logged(step))
            except StepDataError as error:
                self._save_before_failure(error)
            if prepared is not batches:
                batches, count = prepared, self._get_num_items_in_batch(prepared, device)
            self._objective.prepare_batches(self.model_wrapped, batches, False)
        for _ in range(self._objective.extra_updates):
            self._update_weights(batches, count)
        return batches, count

    def _save_before_failure(self, error: StepDataError) -> NoReturn:
        """Save the weights after the last step, if they are not yet, and raise the error with what to do then."""
        step, checkpoints = self.state.global_step, Path(str(self.args.output_dir))
        if step == 0:
            raise error
        if not any_rank((checkpoints / f"checkpoint-{step}").is_dir(), self.args.device):
            self._check_losses()
            self._sum_counts()
            self._save_checkpoint(self.model, trial=None)  # type: ignore[arg-type]
        command = f"glmtune train --resume --output {quote_word(str(checkpoints.parent))}"
        hint = f"{error.hint or 'Correct it.'} Step {step} is saved; continue: {command}"
        raise StepDataError(error.message, hint) from None

    def _is_logged(self, step: int) -> bool:
        is_first = step == 1 and self.args.logging_first_step
        return is_first or step % max(int(self.state.logging_steps or 1), 1) == 0 or step == self.state.max_steps

    def _update_weights(self, batches: list[Any], count: Any) -> None:
        """An optimiser update on the micro-batches of a step, before the one that the Trainer makes."""
        model: Any = self.model_wrapped
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with nullcontext() if is_last else self.accelerator.no_sync(model):
                self.training_step(model, batch, count)
        if self.args.max_grad_norm > 0:
            self._clip_grad_norm(model)
        self.optimizer.step()  # type: ignore[union-attr]
        model.zero_grad()

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._epoch_batches and self._sampler.is_resumed_epoch:
            batches = self._count_batches(self._block_count)
            self.state.epoch = self._epoch + (batches - self._epoch_batches + self._batches) / batches
        scale = find_loss_scale(self.accelerator)
        if scale is not None and self.state.global_step != self._scaled_step:
            self._scaled_step = self.state.global_step
            self._scale_check.add(*scale)
            if self.is_deepspeed_enabled and self._scale_check.is_hopeless():
                self._check_losses()  # now: at the smallest scale DeepSpeed raises an error of its own
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._check_losses()
            self._sum_counts()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _find_position(self) -> DataPosition:
        """The position after the last step."""
        if self._batches >= self._epoch_batches:
            return DataPosition(self._epoch + 1, 0, self._order)
        before = self._block_count - len(self._sampler)
        is_resumed = self._start is not None and self._sampler.is_resumed_epoch
        order = self._start.order if is_resumed and self._start else self._order
        return DataPosition(self._epoch, before + self._batches * self._batch_size, order)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        in_order = SequentialSampler(eval_dataset)  # by length already
        return (
            PaddedSampler(in_order, self.args.eval_batch_size * count_processes())
            if count_processes() > 1
            else in_order
        )

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._check_losses()
        self._sum_counts()
        # With a limit of 1 the Trainer would remove the newest checkpoint, from which a run is resumed.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _check_losses(self) -> None:
        """Read the losses of the micro-batches since the last check; waits for the device once.

        In fp16 with a loss scaler, a step with a loss that is not finite is skipped, and named.

        Raises:
            TrainingError: a loss is not finite.
        """
        found = self._loss_checks.read()
        if not found and not self._skips_steps:
            return
        if found and not self._skips_steps:
            self._raise_non_finite(found[0])
        if self._scale_check.is_hopeless():
            if found:
                self._raise_non_finite(found[0])
            raise TrainingError(
                f"The gradients became infinite or NaN at many steps in a row, up to step {self.state.global_step}.",
                self._explain_non_finite(),
            )
        if found:
            steps = sorted({bad.step for bad in found})
            more = f", and {len(steps) - 1} more up to step {steps[-1]}" if len(steps) > 1 else ""
            print_warning(
                f"The loss became {found[0].value} at step {steps[0]} (rows {self._describe_rows(found[0].rows)})"
                f"{more}: skipped; the loss scale of fp16 adapts."
            )

    def _check_eval_losses(self) -> None:
        for bad in self._eval_checks.read():
            where = f"The evaluation loss became {bad.value} at step {bad.step}"
            rows = self._describe_rows(bad.rows, self._describe_eval_row)
            raise TrainingError(f"{where} (rows {rows}).", self._explain_non_finite())

    def _raise_non_finite(self, bad: NonFiniteLoss) -> NoReturn:
        where = f"The loss became {bad.value} at step {bad.step}"
        raise TrainingError(f"{where} (rows {self._describe_rows(bad.rows)}).", self._explain_non_finite())

    def _explain_non_finite(self) -> str:
        cause = "fp16 overflowed: use bf16 or fp32" if self.args.fp16 else "the learning rate is too high for this data"
        return f"Likely cause: {cause}, or a weight of the base is not finite. Nothing of this step was saved."

    def _describe_rows(self, rows: list[int], describe: Callable[[int], str] | None = None) -> str:
        rows = [row for row in rows if row >= 0]  # idle blocks have -1
        more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
        return ", ".join((describe or self._describe_row)(row) for row in rows[:4]) + more
