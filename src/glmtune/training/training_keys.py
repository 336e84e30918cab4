"""What becomes of each key of transformers' `TrainingArguments`: used, refused, or without effect.

The table in docs/config.md is written from `TRAINING_KEY_USES`, and a test compares its keys with transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["used", "refused", "no effect"]


@dataclass(frozen=True)
class KeyUse:
    """What becomes of a key."""

    status: Status
    reason: str = ""
    """Of a key that is refused or without effect: why, and what to use instead. Of others: what differs."""
    accepted: tuple[Any, ...] = ()
    """Values that say what happens anyway, and are neither refused nor named. None always is one."""

    def accepts(self, value: Any) -> bool:
        """Whether a value needs no message: the key is used, or the value asks for nothing else."""
        return self.status == "used" or value is None or any(value == each for each in self.accepted)


def _use(names: str, note: str = "") -> dict[str, KeyUse]:
    return {name: KeyUse("used", note) for name in names.split()}


def _refuse(name: str, reason: str, *accepted: Any) -> dict[str, KeyUse]:
    return {name: KeyUse("refused", reason, accepted)}


def _ignore(names: str, reason: str, *accepted: Any) -> dict[str, KeyUse]:
    return {name: KeyUse("no effect", reason, accepted) for name in names.split()}


_HUB = "a run stays on this machine; upload its result with `hf upload`"
_LIGER = "head and loss are one function that never holds all logits, as Liger Kernel's"
_COMPILE = "the loss takes the place of the head in every step, so that torch would compile it again each time"
_PREDICTIONS = "an evaluation computes the loss, and scores with generate.rows; it gathers no logits"
_FULL_EVAL = "evaluations are part of the training, and in its precision"
_IN_BATCHES = "batches are sequences without padding, which accelerate cannot divide; every process reads its own rows"

TRAINING_KEY_USES: dict[str, KeyUse] = {
    # Length, batches and order of rows.
    **_use("num_train_epochs max_steps gradient_accumulation_steps"),
    **_use("per_device_train_batch_size per_device_eval_batch_size", "with data.packing in blocks, not rows"),
    **_use("seed"),
    **_use("data_seed", "of the order of the rows; seed where it is not set"),
    **_use("full_determinism dataloader_drop_last dataloader_num_workers dataloader_pin_memory"),
    **_use("dataloader_persistent_workers dataloader_prefetch_factor", "with dataloader_num_workers"),
    **_use("dataloader_multiprocessing_context dataloader_in_order", "with dataloader_num_workers"),
    **_use("train_sampling_strategy", "random, sequential or group_by_length"),
    **_use("torch_empty_cache_steps"),
    **_ignore("auto_find_batch_size", "the memory plan checks the batch size before the training", False),
    **_refuse("accelerator_config", _IN_BATCHES),
    **_refuse("parallelism_config", "shard with training.fsdp or training.deepspeed"),
    **_refuse("ignore_data_skip", "a resumed run continues at the row at which it was stopped", False),
    **_ignore("length_column_name", "the lengths of encoded rows are known", "length"),
    # Optimiser, learning rate, loss.
    **_use("learning_rate lr_scheduler_type lr_scheduler_kwargs weight_decay max_grad_norm"),
    **_use("warmup_steps", "below 1 a fraction of all steps, rounded down"),
    **_use("optim optim_args", "see the table of optimizers below"),
    **_use("optim_target_modules", "GaLore and APOLLO only"),
    **_use("adam_beta1 adam_beta2 adam_epsilon", "with the optimizers that have them"),
    **_use("average_tokens_across_devices"),
    **_use("label_smoothing_factor", "over the targets; evaluation losses stay without it, so that runs compare"),
    **_use("neftune_noise_alpha", "noise by the length of each row, also in packed blocks"),
    # Precision and memory.
    **_use("bf16 fp16", "model.precision decides unless one is set"),
    **_use("tf32"),
    **_use("activation_checkpointing gradient_checkpointing", "true, false or auto: the memory plan decides"),
    **_use("activation_checkpointing_kwargs gradient_checkpointing_kwargs"),
    **_ignore("bf16_full_eval fp16_full_eval", _FULL_EVAL, False),
    **_ignore("torch_compile torch_compile_backend torch_compile_mode", _COMPILE, False),
    **_ignore("use_cache", "training computes no cache of keys and values", False),
    **_ignore("use_liger_kernel", _LIGER, False),
    **_ignore("liger_kernel_config", _LIGER),
    # Logging.
    **_use("logging_strategy logging_steps logging_first_step log_level log_level_replica"),
    **_use("report_to", "besides the run folder"),
    **_use("run_name", "with report_to"),
    **_use("project trackio_space_id trackio_bucket_id trackio_static_space_id", "with report_to: trackio"),
    **_ignore("logging_nan_inf_filter", "a loss that is not finite ends the run with an error", False),
    **_ignore("include_num_input_tokens_seen", "tokens are always counted", True, "all", "non_padding"),
    **_ignore("disable_tqdm", "glmtune shows its own progress"),
    **_ignore("log_on_each_node", "the first process of the first machine prints and writes", False),
    **_ignore("skip_memory_metrics", "summary.json always has the peak of memory", True),
    # Evaluation and checkpoints.
    **_use("eval_strategy eval_steps eval_delay eval_on_start"),
    **_use("load_best_model_at_end metric_for_best_model greater_is_better"),
    **_use("save_strategy save_steps save_total_limit restore_callback_states_from_checkpoint"),
    **_ignore("prediction_loss_only", _PREDICTIONS, True),
    **_ignore("eval_do_concat_batches", _PREDICTIONS, True),
    **_ignore("eval_use_gather_object batch_eval_metrics", _PREDICTIONS, False),
    **_ignore("eval_accumulation_steps", _PREDICTIONS),
    **_ignore("include_for_metrics", _PREDICTIONS, []),
    **_ignore("save_only_model", "checkpoints always have the optimizer's state, to be resumed", False),
    **_ignore("save_on_each_node", "the run folder is on the first machine", False),
    **_ignore("enable_jit_checkpoint", "SIGTERM and Ctrl-C stop a run with a checkpoint", True),
    # Devices and processes.
    **_use("use_cpu"),
    **_use("ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend"),
    **_use("ddp_timeout fsdp fsdp_config deepspeed", "see multi-gpu.md"),
    **_ignore("local_rank", "the launcher numbers the processes", -1, 0),
    # Names and folders that glmtune decides.
    **_refuse("output_dir", "use output"),
    **_refuse("resume_from_checkpoint", "use --resume"),
    **_refuse("do_train", "use glmtune train", True),
    **_ignore("do_eval do_predict", "evaluations: training.eval_strategy and `glmtune eval`", False),
    **_refuse("remove_unused_columns", "use data.columns", False),
    **_ignore("label_names", "labels are part of the encoded rows", ["labels"]),
    **_use("debug", "underflow_overflow only"),
    # The hub.
    **_refuse("push_to_hub", _HUB, False),
    **_refuse("hub_token", f"{_HUB}, after `hf auth login`"),
    **_refuse("hub_model_id", _HUB),
    **_refuse("hub_revision", _HUB),
    **_ignore("hub_strategy hub_private_repo hub_always_push", _HUB, False, "every_save"),
}
"""By key of `TrainingArguments` in transformers 5.23."""

TRAINING_KEY_CHOICES: dict[str, tuple[str, ...]] = {
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("debug", "info", "warning", "error", "critical", "passive"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "ddp_backend": ("gloo", "nccl", "mpi", "xccl", "hccl"),
    "debug": ("underflow_overflow",),
}
"""Values of keys that transformers does not check, or of which not all are supported."""


@dataclass(frozen=True)
class OptimizerUse:
    """What an optimizer of `training.optim` needs."""

    module: str = ""
    """To import; empty: torch's own or transformers'."""
    install: str = ""
    """What pip installs for it."""
    options: tuple[str, ...] = ()
    """That it reads from training.optim_args."""
    needs_targets: bool = False
    """Whether it needs training.optim_target_modules."""
    refusal: str = ""
    """Why it is refused."""


def _need(names: str, module: str = "", install: str = "", options: str = "", **more: Any) -> dict[str, OptimizerUse]:
    return {name: OptimizerUse(module, install, tuple(options.split()), **more) for name in names.split()}


_BITSANDBYTES = ("bitsandbytes", "glmtune[qlora]")
_GALORE = "rank update_proj_gap scale proj_type"
_IN_BACKWARD = "it changes weights during the backward pass, before gradients are accumulated, checked and clipped"

OPTIMIZER_USES: dict[str, OptimizerUse] = {
    **_need("adamw_torch adamw_torch_fused adafactor"),
    **_need("sgd", options="momentum dampening weight_decay nesterov"),
    **_need("adagrad", options="lr_decay weight_decay eps"),
    **_need("rmsprop", options="momentum alpha eps weight_decay centered"),
    **_need("adamw_bnb_8bit adamw_8bit paged_adamw_32bit paged_adamw_8bit", *_BITSANDBYTES),
    **_need("lion_8bit lion_32bit paged_lion_8bit paged_lion_32bit", *_BITSANDBYTES),
    **_need("rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit", *_BITSANDBYTES),
    **_need(
        "ademamix ademamix_8bit paged_ademamix_32bit paged_ademamix_8bit",
        *_BITSANDBYTES,
        options="beta1 beta2 beta3 alpha eps t_alpha t_beta3",
    ),
    **_need(
        "galore_adamw galore_adamw_8bit galore_adafactor",
        "galore_torch",
        "galore-torch",
        _GALORE,
        needs_targets=True,
    ),
    **_need("apollo_adamw", "apollo_torch", "apollo-torch", f"{_GALORE} proj scale_type", needs_targets=True),
    **_need("adamw_torch_4bit adamw_torch_8bit", "torchao", "torchao", "block_size bf16_stochastic_round"),
    **_need(
        "grokadamw",
        "grokadamw",
        "grokadamw",
        "alpha_init lamb gamma grokking_signal_decay_rate gradient_clipping",
    ),
    **_need(
        "schedule_free_radam schedule_free_adamw schedule_free_sgd",
        "schedulefree",
        "schedulefree",
        "weight_lr_power r",
    ),
    **_need("stable_adamw", "optimi", "torch-optimi", "max_lr kahan_sum decouple_lr"),
    **_need(
        "lomo adalomo galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise "
        "apollo_adamw_layerwise",
        refusal=_IN_BACKWARD,
    ),
    **_need("adamw_anyprecision", refusal="its package, torchdistx, does not exist for torch 2"),
    **_need("adamw_torch_xla", refusal="training on TPUs is not supported"),
    **_need("adamw_torch_npu_fused", refusal="training on NPUs is not supported"),
}
"""By value of `training.optim`."""
