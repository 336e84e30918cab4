"""A training run from its config to its folder, phase by phase, in the order in which mistakes are cheapest to find."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerState, set_seed

from glmtune.config import RunConfig, dump_yaml
from glmtune.config_checks import check_config
from glmtune.errors import (
    ConfigError,
    ModelError,
    RunError,
    TrainingError,
)
from glmtune.html.plots import make_loss_chart, save_line_charts
from glmtune.methods import make_method
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.method import count_trainable_parameters
from glmtune.methods.run_tokenizer import load_run_tokenizer
from glmtune.methods.tuned_model import find_trained_folder, hash_folder
from glmtune.methods.value_head_file import is_reward_folder
from glmtune.models.checkpoints import inspect_checkpoint, require_bitsandbytes
from glmtune.models.shared_head import separate_head
from glmtune.run_dir import RunDir, default_root
from glmtune.training.arguments import (
    announce_device,
    finish_arguments,
    make_arguments,
    pick_precision,
    pick_training_device,
)
from glmtune.training.base_model import load_trainable_base, print_new_tokens
from glmtune.training.callbacks import (
    CheckpointFirstLayers,
    MetricsCallback,
    ProbeBeforeFirstStep,
    ProgressDisplay,
    StopCallback,
)
from glmtune.training.checkpoint_files import (
    PARTIAL_FOLDER,
    find_whole_checkpoint,
    read_step,
    require_whole_checkpoint,
    set_aside_later,
)
from glmtune.training.data_position import count_steps, find_position
from glmtune.training.deepspeed import (
    announce_compilation,
    partition_weights,
    require_same_settings,
    resolve_deepspeed,
    without_zero_init,
)
from glmtune.training.distributed import (
    broadcast_object,
    count_processes,
    destroy_at_exit,
    init_process_group,
    main_process_first,
    report_error_once,
)
from glmtune.training.failures import explain_memory, record_failure
from glmtune.training.generated import GeneratedScores, ScoreReplies, make_generated_scores
from glmtune.training.objective import Objective, ObjectiveContext, TokenObjective
from glmtune.training.optimizer_state import require_optimizer_state
from glmtune.training.plan.apply import PlanDecision, apply_plan
from glmtune.training.reporters import build_reporters
from glmtune.training.resume import (
    has_result,
    make_finished_error,
    read_saved_run,
    remove_secrets,
    require_same_data,
    resolve_paths,
)
from glmtune.training.sharding import (
    cast_weight,
    check_new_tokens,
    check_sharding,
    shards_weights,
    sync_trained_only,
)
from glmtune.training.summary import SPEED_KEYS, describe_result, describe_run, name_precision
from glmtune.training.trainer import GlmTrainer
from glmtune.training.training_data import TrainingData, prepare_data
from glmtune.training.verify import compute_probe_logits, require_change, require_saved_weights
from glmtune.utils.console import is_main_process, print_message, print_warning, show_status, silence_libraries
from glmtune.utils.io import iso_timestamp, replace_folder, write_json, write_text
from glmtune.utils.shell_words import quote_word


@dataclass
class TrainingResult:
    """How a training ended."""

    run: RunDir
    folder: Path
    """Of the trained adapter or model; exists once the run is finished."""
    is_finished: bool
    step: int
    summary: dict[str, Any]


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    checkpoint: str = "",
    score: ScoreReplies | None = None,
    objective: Objective | None = None,
    force: bool = False,
) -> TrainingResult:
    """Train as `config` says and fill the run folder, alone or as one of the processes of a launcher.

    Args:
        config: see `glmtune.config.RunConfig`.
        resume: continue the run in `config.output` from its last checkpoint.
        checkpoint: a path or name: continue from this checkpoint of the run instead; later ones are set aside.
        score: scores replies if `generate.rows` is set: `glmtune.evaluation.scoring.score_questions`.
        objective: of a stage other than sft: `glmtune.preference.make_objective(config)`.
        force: train even if the memory plan says that the run cannot fit.

    Raises:
        ValueError: `generate.rows` is set and `score` is not given, or `stage` is not sft and `objective` is not given.
        GlmtuneError: anything a user can fix: config, data, checkpoint, run folder, a loss that is not finite.
    """
    with report_error_once():
        silence_libraries()
        check_config(config)
        init_process_group(config.training)
        if objective is None and config.stage != "sft":
            raise ValueError(f"stage {config.stage} needs an objective: glmtune.preference.make_objective(config)")
        run = TrainingRun(resolve_deepspeed(config), resume, score, force, checkpoint, objective or TokenObjective())
        result = run.execute()
        destroy_at_exit()
        return result


class TrainingRun:
    """One training run. Its methods are the phases, called by `execute` in this order.

    Args:
        config: complete; nothing changes it afterwards.
        resume: continue from the last checkpoint.
        score: scores replies during evaluations.
        force: train even if the memory plan says that the run cannot fit.
        named_checkpoint: to resume from; empty for the newest.
        objective: what its steps minimise.
    """

    config: RunConfig
    data: TrainingData
    decision: PlanDecision
    trainer: GlmTrainer

    def __init__(
        self,
        config: RunConfig,
        resume: bool,
        score: ScoreReplies | None,
        force: bool,
        named_checkpoint: str,
        objective: Objective,
    ):
        self.config, self.resume, self.score, self.force = config, resume, score, force
        self.named_checkpoint, self.objective = named_checkpoint, objective
        self.summary: dict[str, Any] = {}
        self.is_sharded = shards_weights(config)  # no process has the complete model

    def execute(self) -> TrainingResult:
        """Run all phases."""
        self.inspect()
        self.prepare_data()
        self.plan_memory()
        self.load_model()
        with (
            self.run.lock(new=self.previous is None) if is_main_process() else nullcontext(),
            record_failure(self.run, self.summary),
        ):
            self.find_checkpoint()
            self.write_start()
            self.build_trainer()
            self.train_steps()
            if self.is_finished:
                self.save_result()
                self.verify_result()
            self.write_end()
        folder = self.run.result(self.method.output_kind)
        step = self.trainer.state.global_step
        return TrainingResult(self.run, folder, self.is_finished, step, broadcast_object(self.summary))

    def inspect(self) -> None:
        """Check base, settings and run folder, before any data or weight is read."""
        model = self.config.model
        self.base = inspect_checkpoint(model.path, family=model.family, hub=model.hub)
        if self.base.has_prefix and not self.config.adapter:
            raise ModelError(
                f"{self.base.folder}: holds a P-Tuning prefix beside the model, which would be lost.",
                f"Train the prefix further with --method ptuning --set adapter={self.base.folder}, "
                "or give the base that it was trained on as --model.",
            )
        main_fingerprint = broadcast_object(self.base.fingerprint)
        if self.base.fingerprint != main_fingerprint:
            raise ModelError(
                f"{self.base.folder}: fingerprint {self.base.fingerprint} on this machine, "
                f"{main_fingerprint} on the first one.",
                "Copy the same checkpoint to every machine.",
            )
        if model.head_quantization == "nf4":
            require_bitsandbytes("nf4")
        self.run = RunDir(
            broadcast_object(self.config.output or default_root(str(self.base.folder), self.config.method))
        )
        device = pick_training_device(self.config)
        self.precision = pick_precision(model.precision, device)
        self.arguments = make_arguments(self.config, self.run, self.precision)
        announce_device(self.config, self.arguments.device)
        require_same_settings(self.config, self.arguments)
        if self.is_sharded and self.objective.needs_reference:
            raise ConfigError(
                f"stage {self.config.stage} compares with the untrained model, which FSDP and ZeRO-3 do not keep.",
                "Use stage orpo or simpo, or train without training.fsdp and training.deepspeed.",
            )
        check_sharding(self.config, quantised=bool(getattr(self.base.config, "quantization_bit", None)))

        self.previous: dict[str, Any] | None = None
        if self.resume:
            kind = "model" if self.config.method in ("freeze", "full") else "adapter"
            fingerprint = self.base.fingerprint
            self.previous = read_saved_run(self.run, self.config, fingerprint, self.named_checkpoint, kind)
        if self.previous is None and is_main_process():
            self.run.require_new()
        gpus = torch.cuda.device_count() if self.arguments.device.type == "cuda" else 0
        if count_processes() == 1 and gpus > 1:
            print_warning(f"Training on one of {gpus} GPUs; for all of them: glmtune train --nproc {gpus} ...")
        print_message(f"{self.base.family.title} in {self.base.folder}, fingerprint {self.base.fingerprint}")

    def prepare_data(self) -> None:
        """Read, encode, split and pack the rows."""
        self.tokenizer, self.new_tokens = load_run_tokenizer(self.config, self.base.folder, self.base.family.name)
        if self.new_tokens:
            check_new_tokens(self.config)
            print_new_tokens(self.new_tokens, self.base)
        with main_process_first():  # the others then find the encoded rows in the cache
            self.data = prepare_data(self.config, self.base.family, self.tokenizer)
        if self.previous:
            require_same_data(self.run, self.previous, self.data.summary)

    def plan_memory(self) -> None:
        """Plan the memory, refuse what cannot fit, and complete the arguments with what data and plan decide."""
        self.decision = apply_plan(
            self.config,
            self.base,
            self.arguments,
            self.precision,
            self.data,
            force=self.force,
            previous_summary=self.previous,
            new_tokens=self.new_tokens,
        )
        finish_arguments(
            self.arguments,
            self.config,
            has_eval_rows=self.data.eval is not None,
            checkpointing=self.decision.checkpointing,
        )
        self.scores: GeneratedScores | None = make_generated_scores(
            *(self.config.generate, self.data, self.base.family, self.tokenizer, self.arguments, self.score),
            samples=self.run.samples,
        )

    def load_model(self) -> None:
        """Load the base, compute the probe's logits and make the model trainable."""
        config, arguments = self.config, self.arguments
        set_seed(arguments.seed)
        # Without mixed precision a frozen layer in 16 bits cannot pass its output to a trained one in fp32.
        self.mixed_dtype = self.precision if arguments.bf16 or arguments.fp16 else torch.float32
        self.method = make_method(config, self.base.family, self.mixed_dtype, self.new_tokens)
        self.method.casts_base = not self.is_sharded
        self.base_info = BaseInfo(str(self.base.folder.resolve()), self.base.fingerprint, self.base.family.name)
        self.probe = self.data.collate([self.data.train[0]])
        self.base_logits: torch.Tensor | None = None
        with show_status("Loading the model"), explain_memory(self.config, "before the first step"):
            # Sharding moves and converts each process's part: before, all processes share the pages of the files.
            device = "cpu" if self.is_sharded else arguments.device
            dtype = None if self.is_sharded else self.method.load_dtype(self.precision)
            self.model: Any = load_trainable_base(config, self.base, arguments, dtype, device, self.new_tokens)
            if self.is_sharded:
                separate_head(self.model)  # each is sharded by itself
            else:
                self.base_logits = compute_probe_logits(self.model, self.probe, arguments)
        if not config.adapter:
            self._compute_reference(None)
        with explain_memory(self.config, "before the first step"):
            self.model = self.method.prepare(self.model)
        if config.adapter:
            folder = find_trained_folder(Path(config.adapter), self.method.output_kind)
            if config.stage != "rm" and is_reward_folder(folder):
                print_warning(f"{folder}: a reward model; its value head is left out, stage {config.stage} has none.")
            self.method.start_from(self.model, folder, self.base_info)
            self._compute_reference(folder)
        self.objective.start(
            ObjectiveContext(self.model, self.tokenizer, self.base.family, self.data, self.arguments, self.run.samples)
        )

    def _compute_reference(self, adapter: Path | None) -> None:
        """Compute what the losses need of the model before training, if anything.

        Args:
            adapter: that training starts from, which the model has by now.
        """
        if self.objective.needs_reference:
            start = time.perf_counter()
            identity = self._identify_reference(adapter)
            self.objective.compute_reference(self.model, self.data, self.arguments, identity)
            self.summary["reference_seconds"] = round(time.perf_counter() - start, 3)

    def _identify_reference(self, adapter: Path | None) -> str:
        """What decides the weights of the model before training, and how it computes."""
        config = self.config
        settings = {key: value for key, value in dataclasses.asdict(config.model).items() if key not in ("path", "hub")}
        # Methods load the same base in different precisions, and products round differently in each.
        dtypes = sorted({str(parameter.dtype) for parameter in self.model.parameters()})
        parts: list[Any] = [self.base.fingerprint, str(self.precision), dtypes, settings, config.data.new_tokens]
        if adapter is not None:  # the scale of an adapter that is one file is in the settings alone
            scale = [dataclasses.asdict(section) for section in (config.lora, config.ptuning)]
            parts += [config.method, scale, hash_folder(adapter)]
        return json.dumps(parts, sort_keys=True, default=str)

    def find_checkpoint(self) -> None:
        """Find the checkpoint to resume from, and require that the run has steps left or a result to complete."""
        self.checkpoint = broadcast_object(self._choose_checkpoint() if self.resume and is_main_process() else None)
        self.is_last_checkpoint = False
        if self.checkpoint is None:
            return
        arguments, blocks = self.arguments, len(self.data.train)
        self.checkpoint_step = read_step(self.checkpoint) or 0
        self.position = find_position(self.checkpoint, self.checkpoint_step, arguments, blocks, count_processes())
        counts = count_steps(arguments, blocks, count_processes(), self.position, self.checkpoint_step)
        self.is_last_checkpoint = self.checkpoint_step >= counts.steps
        if counts.is_beyond:
            key = "max_steps" if arguments.max_steps > 0 else "num_train_epochs"
            raise RunError(
                f"{self.checkpoint}: is beyond training.{key}={getattr(arguments, key):g}.",
                "Raise it with --set, or go back to an earlier checkpoint: --resume CHECKPOINT.",
            )
        has_ended = has_result(self.run, self.previous or {}, self.method.output_kind)
        if has_ended and self.is_last_checkpoint and not self.named_checkpoint:
            raise make_finished_error(self.run, self.checkpoint_step)
        if not self.is_last_checkpoint:
            require_optimizer_state(self.checkpoint, self.config, self.arguments)
        if is_main_process():
            shutil.rmtree(self.run.checkpoints / PARTIAL_FOLDER, ignore_errors=True)  # of a save that was killed
            set_aside_later(self.run, self.checkpoint_step)
            self._drop_later_metrics(self.checkpoint_step)
            print_message(f"Resuming from {self.checkpoint}.")

    def write_start(self) -> None:
        """Write config and summary of the run."""
        trainable = count_trainable_parameters(self.model)
        device = self.arguments.device
        self.summary |= describe_run(self.config, self.base, self.data, self.precision, trainable, device)
        self.summary |= self.decision.to_summary()
        if is_main_process():
            write_text(self.run.config, dump_yaml(remove_secrets(resolve_paths(self.config))))
            write_json(self.run.summary, self.summary)
        processes, device = count_processes(), self.arguments.device
        devices = f"{processes} processes ({device.type})" if processes > 1 else str(device)
        print_message(
            f"{trainable:,} trainable parameters ({self._method_title}), "
            f"{name_precision(self.precision)} on {devices}, run folder {self.run.root}"
        )

    def build_trainer(self) -> None:
        """Build the trainer with everything that happens beside its steps."""
        sync_trained_only(self.model)
        self.stopper = StopCallback(self.run)
        callbacks: list[Any] = [
            MetricsCallback(self.run, ProgressDisplay(), self.objective.metric_names),
            self.stopper,
        ]
        if self.config.early_stopping:
            callbacks.append(EarlyStoppingCallback(self.config.early_stopping))
        callbacks += build_reporters(self.config, self.run)
        if self.decision.checkpointed_layers:
            callbacks.append(CheckpointFirstLayers(self.decision.checkpointed_layers))
        if self.is_sharded and self.checkpoint is None:
            callbacks.append(ProbeBeforeFirstStep(self._probe_prepared_model))
        announce_compilation(self.config, on_gpu=self.arguments.device.type == "cuda")
        with explain_memory(self.config, "before the first step"):
            frozen_dtype = self.method.load_dtype(self.precision) or self.mixed_dtype
            if self.is_sharded and self.is_last_checkpoint:  # nothing is trained, and so nothing sharded
                for parameter in self.model.parameters():
                    cast_weight(parameter, frozen_dtype)
            elif self.is_sharded and self.arguments.deepspeed:
                partition_weights(self.model, self.arguments)
            self.trainer = GlmTrainer(
                model=self.model,
                args=self.arguments,
                train_dataset=self.data.train,
                eval_dataset=self.data.eval,
                data_collator=self.data.collate,
                callbacks=callbacks,
                describe_row=self.data.describe_row,
                describe_eval_row=self.data.describe_eval_row,
                method=self.method,
                base_info=self.base_info,
                objective=self.objective,
                scores=self.scores,
                frozen_dtype=frozen_dtype,
            )
        if count_processes() > 1:
            set_seed(self.arguments.seed + self.arguments.process_index)  # another dropout mask in each process

    def train_steps(self) -> None:
        """Take the optimiser steps, from the checkpoint if there is one, and write numbers and curve."""
        trainer = self.trainer
        seconds = 0.0
        if self.checkpoint and self.is_last_checkpoint:
            # The run was ended between its last step and its result.
            trainer.state = TrainerState.load_from_json(str(self.checkpoint / "trainer_state.json"))
            trainer.state.max_steps = max(trainer.state.max_steps, trainer.state.global_step)
            trainer._load_from_checkpoint(str(self.checkpoint))
            trainer.find_best_checkpoint()
            if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
                trainer._load_best_model()
        else:
            if self.checkpoint:
                trainer.resume_at(self.position, self.checkpoint_step)
            try:
                with explain_memory(self.config, lambda: f"at step {trainer.state.global_step + 1}"):
                    checkpoint = str(self.checkpoint) if self.checkpoint else None
                    seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
            finally:
                self.stopper.restore_signals()
        state = trainer.state
        is_complete = self.is_last_checkpoint or state.global_step >= state.max_steps
        self.is_finished = is_complete or not self.stopper.is_stopped
        if self.is_finished and not is_complete:
            print_message(f"Stopped early: {self.config.early_stopping} evaluations without a better one.")
        if is_main_process():
            result = describe_result(trainer, seconds, self.run.read_metrics())
            if self.is_last_checkpoint and self.previous:  # the speeds are those of the training
                result |= {key: self.previous[key] for key in SPEED_KEYS if self.previous.get(key) is not None}
            self.summary |= result
            write_json(self.run.summary, self.summary)

    def write_end(self) -> None:
        """Draw the curve, and say that the run is finished, or was stopped. Nothing of a finished run comes later."""
        if not is_main_process():
            return
        title = f"{self.base.folder.name}, {self._method_title}"
        save_line_charts([make_loss_chart(self.run.read_metrics())], self.run.curve, title)
        state = self.trainer.state
        phase = "finished" if self.is_finished else "stopped"
        self.summary |= {"state": phase, "finished_at": iso_timestamp()}
        self.run.write_progress(phase, step=state.global_step, max_steps=state.max_steps)
        write_json(self.run.summary, self.summary)

    def save_result(self) -> None:
        """Write what was trained, and compare it with the trained weights, bit for bit."""
        kind = self.method.output_kind
        folder = self.run.result(kind)
        state = self.trainer.gather_state(everything=kind == "model")
        if not is_main_process():
            return
        dtype = self.method.save_dtype(self.precision, self.base.inventory.dtype)
        try:
            with replace_folder(folder) as temporary, without_zero_init(self.arguments):  # a method may read the base
                self.method.save(self.model, temporary, self.base_info, dtype, state)
                require_saved_weights(self.method, self.model, temporary, state)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{folder}: what was trained cannot be written ({error}); the checkpoints are complete.",
                "Free some space, then: glmtune train --resume --output " + quote_word(str(self.run.root)),
            ) from None

    def verify_result(self) -> None:
        """Require that what was saved changes the model's output."""
        self.summary["logits_changed_by"] = None
        # Sharded models are run by all processes; otherwise the main one reads the result back.
        if self.base_logits is not None and (self.is_sharded or is_main_process()):
            folder = self.run.result(self.method.output_kind)
            if not self.is_sharded:
                self.method.read(self.model, folder)
            logits = compute_probe_logits(self.model, self.probe, self.arguments)
            self.summary["logits_changed_by"] = require_change(folder, self.base_logits, logits)

    @property
    def _method_title(self) -> str:
        quantization = self.config.model.quantization
        return f"{self.config.method} on {quantization}" if quantization else self.config.method

    def _probe_prepared_model(self, model: Any) -> None:
        """Compute the probe's logits by all processes before the first step: the base may not fit into one."""
        self.base_logits = compute_probe_logits(model, self.probe, self.arguments)

    def _choose_checkpoint(self) -> Path | None:
        needs_optimizer = not self.config.training.get("save_only_model")
        if self.named_checkpoint:
            return require_whole_checkpoint(self.run, Path(self.named_checkpoint), needs_optimizer)
        checkpoint = find_whole_checkpoint(self.run, needs_optimizer)
        if checkpoint is None:
            self._drop_later_metrics(-1)
            print_message(f"{self.run.root} has no whole checkpoint yet: starting from the first step.")
        return checkpoint

    def _drop_later_metrics(self, step: int) -> None:
        """Drop metrics of later steps, since those steps are repeated."""
        bad = self.run.drop_metrics_after(step)
        if bad:
            print_warning(f"{self.run.metrics}: {bad} lines cannot be read and are left out.")
