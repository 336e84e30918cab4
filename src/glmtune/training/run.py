"""A run from its config to its folder, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import (
    EarlyStoppingCallback,
    IntervalStrategy,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.integrations import TensorBoardCallback

from glmtune.config import RunConfig, check, dump_yaml
from glmtune.errors import ConfigError, ModelError, TrainingError, first_line
from glmtune.methods import method_of
from glmtune.methods.base_info import BaseNote
from glmtune.methods.method import Method, State, trainable_parameters
from glmtune.methods.tuned_model import trained_folder
from glmtune.models.loading import Base, inspect_base, load_base
from glmtune.models.packed_attention import separate_rows
from glmtune.models.tokenizers import load_tokenizer
from glmtune.run_dir import RunDir, default_root
from glmtune.training.arguments import pick_precision, reporters, training_arguments
from glmtune.training.callbacks import MetricsCallback, StopCallback, TrainingProgress
from glmtune.training.checkpoint_seals import newest_whole
from glmtune.training.curve import draw_curve
from glmtune.training.deepspeed import check_agreement, loaded_whole, with_deepspeed
from glmtune.training.distributed import is_main, join, leave, main_first, one_voice, processes, share, voice
from glmtune.training.generated import GeneratedScores, ScoreReplies, generated_scores
from glmtune.training.memory import is_out_of_memory, out_of_memory
from glmtune.training.plan.apply import KEY as PLAN
from glmtune.training.plan.apply import settle
from glmtune.training.recompute import RecomputeFirst
from glmtune.training.resume import require_same_data, saved_run, with_absolute_paths
from glmtune.training.sharding import check_sharing, exchange_only_trained, shares_weights
from glmtune.training.summary import closing, opening, precision_name
from glmtune.training.trainer import GlmTrainer
from glmtune.training.training_data import Rows, prepare_rows, say
from glmtune.training.verify import probe_logits, require_change, require_saved
from glmtune.utils.console import silence_libraries
from glmtune.utils.io import replace_folder, write_json, write_text


@dataclass
class Outcome:
    """How a training ended."""

    run: RunDir
    result: Path
    """The folder of what was trained; there once the run is finished."""
    finished: bool
    step: int
    summary: dict[str, Any]


@dataclass
class Prepared:
    """A model that is ready to be trained."""

    model: Any
    method: Method
    note: BaseNote
    probe: dict[str, Any]
    base_logits: torch.Tensor | None
    """Of the probe, before anything was trained: by the base alone or, where processes share the weights out, by the
    prepared model before its first step; None in a run that they resume."""


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    score: ScoreReplies | None = None,
    force: bool = False,
) -> Outcome:
    """Train as `config` says and fill the run folder; alone, or as one of the processes of a launcher.

    Args:
        config: see `glmtune.config.RunConfig`.
        resume: continue the run in `config.output` from its last checkpoint.
        console: where progress goes.
        score: scores replies, where `generate.rows` asks for it: `glmtune.evaluation.sampled.score_questions`.
        force: train even if the memory plan says that the run cannot fit.

    Raises:
        ValueError: `generate.rows` is set and `score` is not given.
        GlmtuneError: anything a user can mend: config, data, checkpoint, run folder, a loss that is not finite.
    """
    with one_voice():
        silence_libraries()
        check(config)
        join(config.training)
        outcome = _train(with_deepspeed(config), resume, voice(console or Console()), score, force)
        leave()
        return outcome


def _train(config: RunConfig, resume: bool, console: Console, score: ScoreReplies | None, force: bool) -> Outcome:
    base = inspect_base(config.model.path, family=config.model.family, hub=config.model.hub)
    _require_same_base(base)
    run = RunDir(share(config.output or default_root(str(base.folder), config.method)))
    precision = pick_precision(config.model.precision)
    arguments = training_arguments(config, run, precision)
    check_agreement(config, arguments)
    check_sharing(config, quantised=bool(getattr(base.config, "quantization_bit", None)))
    before = saved_run(run, config, base.fingerprint) if resume else None
    if before is None and is_main():
        run.require_new()
    _mention_idle_gpus(arguments, console)
    say(console, f"{base.family.title} in {base.folder}, fingerprint {base.fingerprint}")
    tokenizer = load_tokenizer(base.folder, family=base.family.name)
    with main_first():
        rows = prepare_rows(config, base.family, tokenizer, console)
    if before:
        require_same_data(run, before, rows.summary)
    if rows.eval is None:
        _no_evaluation(config, arguments)

    planned = settle(config, base, arguments, precision, rows, console, force=force, before=before)
    generate = config.generate
    scores = generated_scores(generate.rows, generate.max_new_tokens, rows, base.family, tokenizer, arguments, score)

    set_seed(arguments.seed)
    with console.status("Loading the model"):
        prepared = _prepare(config, base, precision, arguments, rows)
    with run.lock(new=before is None) if is_main() else nullcontext():
        return _fill(run, config, base, precision, arguments, prepared, rows, scores, planned, resume, console)


def _fill(
    run: RunDir,
    config: RunConfig,
    base: Base,
    precision: torch.dtype,
    arguments: TrainingArguments,
    prepared: Prepared,
    rows: Rows,
    scores: GeneratedScores | None,
    planned: dict[str, Any],
    resume: bool,
    console: Console,
) -> Outcome:
    """Train, and write the run folder from its config to its result: the main process does, the others train along."""
    checkpoint = share(_checkpoint(run, console) if resume and is_main() else None)
    trainable = trainable_parameters(prepared.model)
    summary = opening(config, base, rows, precision, trainable) | planned
    if is_main():
        write_text(run.config, dump_yaml(with_absolute_paths(config)))
        write_json(run.summary, summary)
    say(
        console,
        f"{trainable:,} trainable parameters ({_described(config)}), "
        f"{precision_name(precision)} on {_devices(arguments)}, run folder {run.root}",
    )

    stopper = StopCallback(run, console)
    trainer = _build_trainer(config, run, arguments, prepared, rows, scores, stopper, console)
    if layers := planned[PLAN]["checkpointed_layers"]:
        trainer.add_callback(RecomputeFirst(layers))
    if shares_weights(config) and checkpoint is None:
        trainer.add_callback(_FirstProbe(prepared))
    if processes() > 1:
        set_seed(arguments.seed + arguments.process_index)  # the same dropout everywhere would be less of it
    seconds = _run(trainer, stopper, checkpoint, config)

    finished = not stopper.stopped or trainer.state.global_step >= trainer.state.max_steps
    if finished and trainer.state.global_step < trainer.state.max_steps:
        say(console, f"Stopped early: no better evaluation in {config.early_stopping} of them.")
    if is_main():
        summary |= closing(trainer, seconds, run.read_metrics(), finished)
        write_json(run.summary, summary)
        draw_curve(run.read_metrics(), run.curve, f"{base.folder.name}, {_described(config)}")
    if finished:
        dtype = prepared.method.save_dtype(precision, base.inventory.dtype)
        summary["logits_changed_by"] = _save_and_prove(prepared, run, dtype, trainer, shares_weights(config))
        if is_main():
            write_json(run.summary, summary)
    step = trainer.state.global_step
    return Outcome(run, run.result(prepared.method.keeps), finished, step, share(summary))


class _FirstProbe(TrainerCallback):
    """The probe's logits before the first step, computed by all processes: no single one could hold the model."""

    def __init__(self, prepared: Prepared):
        self._prepared = prepared

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._prepared.base_logits = probe_logits(kwargs["model"], self._prepared.probe, args)


def _require_same_base(base: Base) -> None:
    first = share(base.fingerprint)
    if base.fingerprint != first:
        raise ModelError(
            f"{base.folder}: has fingerprint {base.fingerprint} on this machine; on the first it is {first}.",
            "Copy the same checkpoint to every machine.",
        )


def _mention_idle_gpus(arguments: TrainingArguments, console: Console) -> None:
    gpus = torch.cuda.device_count() if arguments.device.type == "cuda" else 0
    if processes() == 1 and gpus > 1:
        say(console, f"Training on one of {gpus} GPUs; all of them: glmtune train --nproc {gpus} ...", "yellow")


def _devices(arguments: TrainingArguments) -> str:
    count = processes()
    return f"{count} processes ({arguments.device.type})" if count > 1 else str(arguments.device)


def _no_evaluation(config: RunConfig, arguments: TrainingArguments) -> None:
    wanted = "early_stopping" if config.early_stopping else "training.load_best_model_at_end"
    if config.early_stopping or arguments.load_best_model_at_end:
        raise ConfigError(
            f"{wanted} needs evaluation rows, and there are none.", "Give --eval-data, or set data.eval_fraction=0.05."
        )
    arguments.eval_strategy = IntervalStrategy.NO


def _prepare(
    config: RunConfig, base: Base, precision: torch.dtype, arguments: TrainingArguments, rows: Rows
) -> Prepared:
    # Without mixed precision a frozen layer in 16 bits cannot hand its output to a trained one in fp32.
    mixed = precision if arguments.bf16 or arguments.fp16 else torch.float32
    method = method_of(config, base.family, mixed)
    with loaded_whole(arguments):
        model: Any = load_base(
            base,
            dtype=method.load_dtype(precision),
            device="cpu" if shares_weights(config) else arguments.device,  # sharding moves what is this process's part
            quantization=config.model.quantization,
            double_quantization=config.model.double_quantization,
        )
    if config.model.attention != "auto":
        try:
            model.set_attn_implementation(config.model.attention)
        except (ImportError, ValueError) as error:
            reason = first_line(error)
            raise ConfigError(f"model.attention: {reason}", "Use sdpa or eager.") from None
    separate_rows(model)
    note = BaseNote(str(base.folder.resolve()), base.fingerprint, base.family.name)
    probe = rows.collate([rows.train[0]])
    try:
        before = None if shares_weights(config) else probe_logits(model, probe, arguments)
        model = method.prepare(model)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, "before the first step", config) from None
    if config.adapter:
        method.start_from(model, trained_folder(Path(config.adapter), method.keeps), note)
    return Prepared(model, method, note, probe, before)


def _save_and_prove(
    prepared: Prepared, run: RunDir, dtype: torch.dtype | None, trainer: GlmTrainer, shared: bool
) -> float | None:
    """Write the result, read it back, and compare what it says with what the base said.

    Returns:
        The largest change of a logit; None in all processes but the main one, and where the base's are not known.
    """
    method, model = prepared.method, prepared.model
    folder = run.result(method.keeps)
    state = trainer.gathered(everything=method.keeps == "model")
    if is_main():
        with loaded_whole(trainer.args):  # a method may read the base again
            _save(prepared, run, dtype, state)
        require_saved(method, model, folder, state)
    if prepared.base_logits is None:
        return None
    if not shared and not is_main():
        return None
    if not shared:
        method.read(model, folder)
    after = probe_logits(model, prepared.probe, trainer.args)
    return require_change(folder, prepared.base_logits, after)


def _save(prepared: Prepared, run: RunDir, dtype: torch.dtype | None, state: State | None) -> None:
    folder = run.result(prepared.method.keeps)
    try:
        with replace_folder(folder) as temporary:
            prepared.method.save(prepared.model, temporary, prepared.note, dtype, state)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{folder}: what was trained cannot be written ({error}); the checkpoints are whole.",
            "Free some space, then: glmtune train --resume --output " + shlex.quote(str(run.root)),
        ) from None


def _described(config: RunConfig) -> str:
    return f"{config.method} on {config.model.quantization}" if config.model.quantization else config.method


def _checkpoint(run: RunDir, console: Console) -> Path | None:
    """Where a resumed run goes on; what was logged after it is forgotten, for those steps are done again."""
    checkpoint = newest_whole(run, console)
    step = -1 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    run.drop_metrics_after(step)
    told = f"Resuming from {checkpoint}." if checkpoint else f"{run.root} has no checkpoint yet: from the first step."
    say(console, told)
    return checkpoint


def _build_trainer(
    config: RunConfig,
    run: RunDir,
    arguments: TrainingArguments,
    prepared: Prepared,
    rows: Rows,
    scores: GeneratedScores | None,
    stopper: StopCallback,
    console: Console,
) -> GlmTrainer:
    exchange_only_trained(prepared.model)
    callbacks: list[Any] = [MetricsCallback(run, TrainingProgress(console)), stopper]
    if config.early_stopping:
        callbacks.append(EarlyStoppingCallback(config.early_stopping))
    if "tensorboard" in reporters(config) and is_main():
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(run.logs))))
    try:
        return GlmTrainer(
            model=prepared.model,
            args=arguments,
            train_dataset=rows.train,
            eval_dataset=rows.eval,
            data_collator=rows.collate,
            callbacks=callbacks,
            describe_row=rows.describe,
            method=prepared.method,
            note=prepared.note,
            scores=scores,
        )
    except (RuntimeError, ImportError, ValueError) as error:  # a reporter that is not installed, an unknown optimiser
        raise ConfigError(f"training: {first_line(error)}") from None


def _run(trainer: GlmTrainer, stopper: StopCallback, checkpoint: Path | None, config: RunConfig) -> float:
    """Train, from a checkpoint if there is one.

    Returns:
        Seconds it took.
    """
    if checkpoint and _is_last(checkpoint, trainer):  # killed between the last step and the result
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer._load_from_checkpoint(str(checkpoint))
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
        return 0.0
    try:
        return trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics["train_runtime"]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, f"at step {trainer.state.global_step + 1}", config) from None
    finally:
        stopper.restore()


def _is_last(checkpoint: Path, trainer: GlmTrainer) -> bool:
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    return state.global_step >= steps
