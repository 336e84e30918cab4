"""A run from its config to its folder, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from safetensors import SafetensorError
from transformers import IntervalStrategy, TrainerState, set_seed
from transformers.integrations import TensorBoardCallback

from glmtune.config import RunConfig, check, dump_yaml
from glmtune.errors import ConfigError, TrainingError
from glmtune.methods.lora import BaseNote, add_lora, save_adapter, trainable_parameters, write_adapter
from glmtune.models.loading import Base, inspect_base, load_base
from glmtune.models.quiet import quiet_libraries
from glmtune.models.tokenizers import load_tokenizer
from glmtune.rundir import RunDir, default_root, write_json, write_text
from glmtune.training.arguments import pick_precision, reporters, training_arguments
from glmtune.training.callbacks import MetricsCallback, StopCallback, TrainingProgress
from glmtune.training.curve import draw_curve
from glmtune.training.prepare import Rows, prepare_rows, say
from glmtune.training.proof import prove_adapter
from glmtune.training.resume import require_same_data, saved_run, with_absolute_paths
from glmtune.training.summary import closing, opening, precision_name
from glmtune.training.trainer import GlmTrainer


@dataclass
class Outcome:
    """How a training ended."""

    run: RunDir
    finished: bool
    step: int
    summary: dict[str, Any]


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> Outcome:
    """Train as `config` says and fill the run folder.

    Args:
        config: see `glmtune.config.RunConfig`.
        resume: continue the run in `config.output` from its last checkpoint.
        console: where progress goes.

    Raises:
        GlmtuneError: anything a user can mend: config, data, checkpoint, run folder, a loss that is not finite.
    """
    console = console or Console()
    quiet_libraries()
    check(config)

    base = inspect_base(config.model.path, family=config.model.family, hub=config.model.hub)
    run = RunDir(config.output or default_root(str(base.folder), config.method))
    precision = pick_precision(config.model.precision)
    arguments = training_arguments(config, run, precision)
    before = saved_run(run, config, base.fingerprint) if resume else None
    if before is None:
        run.require_new()
    say(console, f"{base.family.title} in {base.folder}, fingerprint {base.fingerprint}")
    tokenizer = load_tokenizer(base.folder, family=base.family.name)
    rows = prepare_rows(config, base.family, tokenizer, console)
    if before:
        require_same_data(run, before, rows.summary)
    if rows.eval is None:
        arguments.eval_strategy = IntervalStrategy.NO

    set_seed(arguments.seed)
    with console.status("Loading the model"):
        model = _load(config, base, precision, arguments.device)
    run.create()
    write_text(run.config, dump_yaml(with_absolute_paths(config)))
    checkpoint = _checkpoint(run, console) if resume else None
    summary = opening(config, base, rows, precision, trainable_parameters(model))
    write_json(run.summary, summary)
    say(
        console,
        f"{trainable_parameters(model):,} trainable parameters ({config.method}), "
        f"{precision_name(precision)} on {arguments.device}, run folder {run.root}",
    )

    note = BaseNote(str(base.folder.resolve()), base.fingerprint, base.family.name)
    stopper = StopCallback(run, console)
    trainer = _build_trainer(config, run, arguments, model, rows, note, stopper, console)
    seconds = _run(trainer, stopper, checkpoint)

    finished = trainer.state.global_step >= trainer.state.max_steps
    summary |= closing(trainer, seconds, run.read_metrics(), finished)
    write_json(run.summary, summary)
    draw_curve(run.read_metrics(), run.curve, f"{base.folder.name}, {config.method}")
    if finished:
        _save_and_prove(model, run, note, rows, arguments.device, summary)
    return Outcome(run, finished, trainer.state.global_step, summary)


def _save_and_prove(
    model: PeftModel, run: RunDir, note: BaseNote, rows: Rows, device: torch.device, summary: dict[str, Any]
) -> None:
    try:
        save_adapter(model, run.adapter, note)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{run.adapter}: the adapter cannot be written ({error}); the checkpoints are whole.",
            "Free some space, then: glmtune train --resume --output " + shlex.quote(str(run.root)),
        ) from None
    probe = {key: value.to(device) for key, value in rows.collate([rows.train[0]]).items()}
    summary["adapter_changes_logits_by"] = prove_adapter(model, run.adapter, probe)
    write_json(run.summary, summary)


def _checkpoint(run: RunDir, console: Console) -> Path | None:
    """Where a resumed run goes on; what was logged after it is forgotten, for those steps are done again."""
    checkpoint = run.last_checkpoint()
    step = -1 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    run.drop_metrics_after(step)
    told = f"Resuming from {checkpoint}." if checkpoint else f"{run.root} has no checkpoint yet: from the first step."
    say(console, told)
    return checkpoint


def _load(config: RunConfig, base: Base, precision: torch.dtype, device: torch.device) -> PeftModel:
    model = load_base(base, dtype=precision, device=device)
    if config.model.attention != "auto":
        try:
            model.set_attn_implementation(config.model.attention)
        except (ImportError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"model.attention: {reason}", "Use sdpa or eager.") from None
    model.config.use_cache = False
    return add_lora(model, base.family, config.lora)


def _build_trainer(
    config: RunConfig,
    run: RunDir,
    arguments: Any,
    model: PeftModel,
    rows: Rows,
    note: BaseNote,
    stopper: StopCallback,
    console: Console,
) -> GlmTrainer:
    callbacks: list[Any] = [MetricsCallback(run, TrainingProgress(console)), stopper]
    if "tensorboard" in reporters(config):
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(run.logs))))
    try:
        return GlmTrainer(
            model=model,
            args=arguments,
            train_dataset=rows.train,
            eval_dataset=rows.eval,
            data_collator=rows.collate,
            callbacks=callbacks,
            describe_row=rows.describe,
            save_weights=lambda folder: write_adapter(model, folder, note),
        )
    except (RuntimeError, ImportError, ValueError) as error:  # a reporter that is not installed, an unknown optimiser
        raise ConfigError(f"training: {str(error).strip().splitlines()[0]}") from None


def _run(trainer: GlmTrainer, stopper: StopCallback, checkpoint: Path | None) -> float:
    """Train, from a checkpoint if there is one.

    Returns:
        Seconds it took.
    """
    if checkpoint and _is_last(checkpoint, trainer):  # killed between the last step and the adapter
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer._load_from_checkpoint(str(checkpoint))
        return 0.0
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics["train_runtime"]
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"Out of GPU memory at step {trainer.state.global_step + 1} ({str(error).splitlines()[0]}).",
            "Lower data.max_length or training.per_device_train_batch_size (and raise gradient_accumulation_steps), "
            "or set training.gradient_checkpointing=true.",
        ) from None
    finally:
        stopper.restore()


def _is_last(checkpoint: Path, trainer: GlmTrainer) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    return state.global_step >= steps
