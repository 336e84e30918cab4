"""A run from its config to its folder, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import set_seed
from transformers.integrations import TensorBoardCallback

from glmtune.config import RunConfig, check, dump_yaml
from glmtune.errors import RunError, TrainingError
from glmtune.methods.lora import BaseNote, add_lora, save_adapter, trainable_parameters, write_adapter
from glmtune.models.loading import Base, inspect_base, load_base
from glmtune.models.quiet import quiet_libraries
from glmtune.models.tokenizers import load_tokenizer
from glmtune.rundir import RunDir, default_root, write_json, write_text
from glmtune.training.arguments import check_training_keys, pick_precision, reporters, training_arguments
from glmtune.training.callbacks import MetricsCallback, StopCallback, TrainingProgress
from glmtune.training.curve import draw_curve
from glmtune.training.prepare import Rows, prepare_rows
from glmtune.training.proof import prove_adapter
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
    check_training_keys(config.training)

    base = inspect_base(config.model.path, family=config.model.family, hub=config.model.hub)
    console.print(f"{base.family.title} in {base.folder}, fingerprint {base.fingerprint}", highlight=False)
    tokenizer = load_tokenizer(base.folder, family=base.family.name)
    rows = prepare_rows(config, base.family, tokenizer, console)

    run, checkpoint = _open_run(config, base, resume, console)
    precision = pick_precision(config.model.precision)
    arguments = training_arguments(config, run, precision, has_eval=bool(rows.eval))
    set_seed(arguments.seed)
    with console.status("Loading the model"):
        model = _load(config, base, precision, arguments.device)
    summary = opening(config, base, rows, precision, trainable_parameters(model))
    write_json(run.summary, summary)
    console.print(
        f"{trainable_parameters(model):,} trainable parameters ({config.method}), "
        f"{precision_name(precision)} on {arguments.device}, run folder {run.root}",
        highlight=False,
    )

    note = BaseNote(str(base.folder.resolve()), base.fingerprint, base.family.name)
    stopper = StopCallback(run, console)
    trainer = _build_trainer(config, run, arguments, model, rows, note, stopper, console)
    result = _run(trainer, stopper, checkpoint)

    finished = trainer.state.global_step >= trainer.state.max_steps
    summary |= closing(trainer, result, run.read_metrics(), finished)
    if finished:
        save_adapter(model, run.adapter, note)
        probe = rows.collate([rows.train[0]])
        on_device = {key: value.to(arguments.device) for key, value in probe.items()}
        summary["adapter_changes_logits_by"] = prove_adapter(model, run.adapter, on_device)
    write_json(run.summary, summary)
    draw_curve(run.read_metrics(), run.curve, f"{base.folder.name}, {config.method}")
    return Outcome(run, finished, trainer.state.global_step, summary)


def _open_run(config: RunConfig, base: Base, resume: bool, console: Console) -> tuple[RunDir, Path | None]:
    """The run folder, and the checkpoint to go on from."""
    run = RunDir(config.output or default_root(str(base.folder), config.method))
    if not resume:
        run.create()
        write_text(run.config, dump_yaml(config))
        return run, None
    saved = _saved_fingerprint(run)
    if saved and saved != base.fingerprint:
        raise RunError(
            f"{run.root}: was started on a base with fingerprint {saved}; {base.folder} has {base.fingerprint}.",
            "Give the same base again with --model.",
        )
    checkpoint = run.last_checkpoint()
    step = -1 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    run.drop_metrics_after(step)
    told = f"Resuming from {checkpoint}." if checkpoint else f"{run.root} has no checkpoint yet: from the first step."
    console.print(told, highlight=False)
    return run, checkpoint


def _saved_fingerprint(run: RunDir) -> str | None:
    if not run.summary.is_file():
        return None
    return json.loads(run.summary.read_text(encoding="utf-8"))["model"]["fingerprint"]


def _load(config: RunConfig, base: Base, precision: torch.dtype, device: torch.device) -> PeftModel:
    model = load_base(base, dtype=precision, device=device)
    if config.model.attention != "auto":
        model.set_attn_implementation(config.model.attention)
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


def _run(trainer: GlmTrainer, stopper: StopCallback, checkpoint: Path | None) -> Any:
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"Out of GPU memory at step {trainer.state.global_step + 1} ({str(error).splitlines()[0]}).",
            "Lower training.per_device_train_batch_size (and raise gradient_accumulation_steps), the length limits, "
            "or set training.gradient_checkpointing=true.",
        ) from None
    finally:
        stopper.restore()
