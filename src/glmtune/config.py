"""The configuration of a run: one set of dataclasses for the YAML file, the command line's options and the web form.

Every field has a type, a default and a help text. Unknown keys and wrong types are errors that name the key and the
nearest known one. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from glmtune.config_parsing import build_dataclass, parse_number, read_config_file, set_key
from glmtune.config_ranges import (
    COUNT,
    DROPOUT,
    MAX_TOKENS,
    NATS,
    PERCENT,
    PROBABILITY,
    ROWS,
    TEMPERATURE,
    TOKENS,
    TRAINING_RANGES,
    NumberRange,
)


def _option(default: Any, help: str, range: NumberRange | None = None) -> Any:
    """A field with its help text and, for numbers, its range; mutable defaults are copied."""
    metadata = {"help": help} if range is None else {"help": help, "range": range}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelConfig:
    """The base model. A plain string in the file means `path`."""

    path: str = _option("", "Checkpoint folder (published or transformers layout) or hub id.")
    hub: Literal["huggingface", "modelscope"] = _option("huggingface", "The hub that a hub id belongs to.")
    family: Literal["chatglm", "chatglm2", "chatglm3", "glm4"] | None = _option(
        None, "Model generation, if it cannot be detected from the folder."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _option(
        "auto", "Precision of the frozen weights. auto: bf16, or fp16 on GPUs without bf16; fp32 on a CPU."
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = _option(
        "auto", "Attention implementation; auto and sdpa: the best kernel of torch for the card and the precision."
    )
    quantization: Literal["nf4", "int8", "packed4", "packed8"] | None = _option(
        None,
        "Store the frozen matrices in fewer bits; computation is in `precision`. nf4 and int8: bitsandbytes; "
        "packed4 and packed8: the format of the published int4 and int8 repositories.",
    )
    double_quantization: bool = _option(True, "With nf4: quantize the scales too, which saves 0.4 bits per weight.")
    head_quantization: Literal["nf4", "packed8", "packed4"] | None = _option(
        None,
        "Store the frozen head in fewer bits while training with lora or ptuning. The gradients are those of a rounded "
        "head: packed8 is nearly exact, nf4 coarser, packed4 the coarsest. Results are used with the exact head.",
    )
    embedding_on_host: bool = _option(
        False,
        "Keep the frozen embedding in the machine's memory and copy the rows of each micro-batch to the GPU: as exact, "
        "a little slower; one process, not with method full.",
    )


@dataclass
class DataConfig:
    """The training and evaluation data. A plain string in the file means `train`."""

    train: str | list[Any] = _option(
        "",
        "Training rows: files (.json, .jsonl, .csv, .parquet, .txt, .gz), folders, globs, hub ids, names from a "
        "dataset_info.json, or a folder written by `glmtune data tokenize`; several as a list.",
    )
    eval: str | list[Any] | None = _option(
        None, "Evaluation rows; without them, part of the training rows is held out."
    )
    eval_fraction: float = _option(
        0.05,
        "Fraction of the training rows held out if there is no eval data; 0: none.",
        NumberRange(0, 1, excludes_high=True),
    )
    eval_rows: int | None = _option(
        None, "Number of training rows held out, in place of a fraction; a conversation counts as one.", COUNT
    )
    format: str | None = _option(None, "Format of the rows, if it should not be detected.")
    columns: dict[str, str] = _option(
        {}, "Column names, if they are not the usual ones: prompt, input, response, history, system, text."
    )
    max_source_length: int = _option(
        512,
        "Maximum prompt length in tokens; the oldest turns are removed first, then a part of the question.",
        NumberRange(4, MAX_TOKENS),
    )
    max_target_length: int = _option(
        512, "Maximum answer length in tokens, including the end token.", NumberRange(2, MAX_TOKENS)
    )
    max_length: int | None = _option(
        None,
        "One limit for prompt and answer together, instead of the two above.",
        NumberRange(8, MAX_TOKENS, special=0),
    )
    overlength: Literal["cut", "drop", "error"] = _option("cut", "What to do with rows over the limits.")
    train_on: Literal["all", "last"] = _option("all", "Which answers of a conversation to train on.")
    preference: Literal["refuse", "chosen", "pairs", "labels", "prompts"] = _option(
        "refuse",
        "Rows with a better and a worse answer: refuse them, train on the better answer alone, read both as a pair "
        "(stages dpo, orpo, simpo and rm), or read single answers with a label, good or bad (stage kto). prompts: read "
        "the questions of rows of any kind (stage grpo).",
    )
    prefix: str = _option("", "Text inserted before the first question of every conversation, in training and in chat.")
    new_tokens: str | list[str] = _option(
        "",
        "Tokens to add to the base's vocabulary: a list, or a file with one per line. Each is one id, whose rows of "
        "embedding and head are trained. With methods lora, qlora and full.",
    )
    packing: bool = _option(
        True, "Pack several rows into one block of the maximum length; rows do not attend to each other."
    )


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685)."""

    rank: int = _option(8, "Rank of the update.", NumberRange(1, 65_536))
    alpha: float = _option(32, "Scale of the update: alpha / rank.", NumberRange(0, 10**6, excludes_low=True))
    dropout: float | None = _option(
        None, "Dropout on the adapter's input while training; default: 0.1, and 0 in preference tuning.", DROPOUT
    )
    targets: list[str] = _option(
        [],
        "Modules to adapt, by their names in transformers or in the published code; all-linear: all linear layers "
        "except the head; empty: the family's query, key and value projections.",
    )
    rslora: bool = _option(False, "Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    dora: bool = _option(
        False, "Train the magnitude of the weights separately from their direction (arXiv 2402.09353)."
    )
    loraplus_ratio: float | None = _option(
        None,
        "Learning rate of B divided by that of A, for example 16 (LoRA+, arXiv 2402.12354).",
        NumberRange(0, 10**6),
    )
    bias: Literal["none", "lora_only", "all"] = _option("none", "Which biases to train.")
    modules_to_save: list[str] = _option([], "Modules to train fully besides the adapter, for example lm_head.")


@dataclass
class PTuningConfig:
    """Trained keys and values in front of every layer's own (P-Tuning v2, Liu et al., arXiv 2110.07602)."""

    num_virtual_tokens: int = _option(
        128, "Length of the prefix; the published scripts call it pre_seq_len.", NumberRange(1, 65_536)
    )
    prefix_projection: bool = _option(False, "Compute the prefix with a small network from a smaller embedding.")
    dropout: float | None = _option(
        None, "Dropout on the prefix while training; default: 0.1, and 0 in preference tuning.", DROPOUT
    )


@dataclass
class FreezeConfig:
    """Training of the last layers only."""

    trainable_layers: int = _option(4, "Number of last layers to train; the others are frozen.", NumberRange(1, 10_000))


@dataclass
class ReplayConfig:
    """General rows mixed into training, against forgetting of the base model's abilities. A plain string in the file
    means `data`."""

    data: str | list[Any] = _option(
        "",
        "General rows, given as in data.train. data.columns, data.format and data.prefix do not apply to them. "
        "Empty: none.",
    )
    share: float = _option(
        0.1,
        "Fraction of the training rows that are replay rows.",
        NumberRange(0, 1, excludes_low=True, excludes_high=True),
    )


@dataclass
class ForgetConfig:
    """When `glmtune forget` warns and when it fails."""

    accuracy_warn: float = _option(
        5.0, "Statistically significant loss of accuracy, in percentage points, at which it warns.", PERCENT
    )
    accuracy_fail: float = _option(15.0, "The same, at which it fails.", PERCENT)
    kl_warn: float = _option(
        0.5,
        "KL divergence of the tuned model from the base on the base's replies, in nats per token, at which it warns.",
        NATS,
    )
    kl_fail: float = _option(2.0, "The same, at which it fails.", NATS)
    reply_loss_warn: float = _option(
        0.5, "Increase of the loss on the base's replies, in nats per token, at which it warns.", NATS
    )
    reply_loss_fail: float = _option(2.0, "The same, at which it fails.", NATS)
    degenerate_warn: float = _option(
        2.0,
        "Increase of replies that loop, are empty or full of unknown tokens, in percentage points, at which it warns.",
        PERCENT,
    )
    degenerate_fail: float = _option(10.0, "The same, at which it fails.", PERCENT)
    max_new_tokens: int = _option(128, "Maximum length of a reply to a probe question, in tokens.", TOKENS)


@dataclass
class GenerateConfig:
    """Replies to a sample of the evaluation rows at every evaluation, scored as in `glmtune eval`."""

    rows: int = _option(
        0,
        "Number of evaluation rows to generate replies for, the same ones every time. 0: evaluate the loss only.",
        ROWS,
    )
    max_new_tokens: int = _option(128, "Maximum length of these replies in tokens.", TOKENS)


@dataclass
class PreferenceConfig:
    """Losses of preference tuning: `stage` dpo, orpo, simpo, kto and rm."""

    loss: Literal["sigmoid", "ipo", "hinge"] = _option(
        "sigmoid", "With stage dpo: DPO (arXiv 2305.18290), IPO (arXiv 2310.12036) or hinge (SLiC, arXiv 2305.10425)."
    )
    beta: float = _option(
        0.1,
        "Scale of the difference between better and worse answer, with kto between an answer and the reference point; "
        "with simpo, its authors take 2 to 2.5.",
        NumberRange(0, 1000, excludes_low=True),
    )
    label_smoothing: float = _option(
        0.0,
        "With dpo and sigmoid: probability that the two answers are exchanged.",
        NumberRange(0, 0.5, excludes_high=True),
    )
    margin: float = _option(
        0.5,
        "With simpo: gamma, the margin that the better answer should have (arXiv 2405.14734).",
        NumberRange(0, 1000),
    )
    length_normalized: bool = _option(
        False, "With dpo: log-probabilities per token instead of their sum over the answer."
    )
    sft_weight: float = _option(
        0.0,
        "With dpo, simpo and kto: weight of the cross-entropy of the better answer, added to the loss (RPO's alpha).",
        NumberRange(0, 1000),
    )
    desirable_weight: float = _option(
        1.0, "With kto: weight of the loss of good answers (lambda_D, arXiv 2402.01306).", NumberRange(0, 1000)
    )
    undesirable_weight: float = _option(
        1.0, "With kto: weight of the loss of bad answers (lambda_U).", NumberRange(0, 1000)
    )
    center_rewards: float = _option(
        0.0,
        "With rm: weight of the squared sum of a pair's rewards, which keeps their mean near 0 (arXiv 2312.09244); "
        "0.01 is usual.",
        NumberRange(0, 1000),
    )


@dataclass
class GrpoConfig:
    """Online reinforcement learning, `stage` grpo: the model answers each question several times, and learns from the
    rewards of its answers (GRPO, Shao et al., arXiv 2402.03300). Names are those of TRL's `GRPOConfig`."""

    num_generations: int = _option(
        8, "Answers to each question, whose rewards are compared with each other.", NumberRange(2, 10_000)
    )
    max_completion_length: int = _option(512, "Maximum length of an answer in tokens, with its end token.", TOKENS)
    temperature: float = _option(
        1.0,
        "Temperature that answers are sampled with; also in the probabilities that are trained.",
        NumberRange(0, TEMPERATURE.high, excludes_low=True),
    )
    top_p: float = _option(
        1.0,
        "Share of the probability that answers are sampled from.",
        NumberRange(0, PROBABILITY.high, excludes_low=True),
    )
    beta: float = _option(
        0.0,
        "Weight of the KL divergence from the model before training; 0: it is neither computed nor logged.",
        NumberRange(0, 1000),
    )
    epsilon: float = _option(
        0.2,
        "How far the probability of a token may change, as a part of what it was when the answer was sampled, before "
        "its gradient is cut off (the clip range of PPO). It matters with num_iterations above 1.",
        NumberRange(0, 1000),
    )
    epsilon_high: float | None = _option(
        None, "The same for a rise of the probability, where it differs (DAPO takes 0.28).", NumberRange(0, 1000)
    )
    num_iterations: int = _option(
        1, "Optimiser updates on the same answers, all of them part of one step.", NumberRange(1, 1000)
    )
    loss_type: Literal["dapo", "grpo", "bnpo", "dr_grpo"] = _option(
        "dapo",
        "How the losses of tokens are averaged. dapo: over all tokens of the step (arXiv 2503.14476); grpo: over the "
        "tokens of each answer, then over the answers; bnpo: over the tokens of each micro-batch; dr_grpo: over "
        "answers of max_completion_length tokens (arXiv 2503.20783).",
    )
    scale_rewards: Literal["group", "batch", "none"] = _option(
        "group",
        "Divide advantages by the standard deviation of the rewards to the same question, of all rewards of the step, "
        "or not at all.",
    )
    mask_truncated_completions: bool = _option(
        False, "Leave answers that were cut at max_completion_length out of the loss; they are scored all the same."
    )
    reward_weights: list[float] = _option(
        [],
        "Weights of the rewards, in the order of `reward`, which are added up; empty: 1 each.",
        NumberRange(-1_000_000, 1_000_000),
    )
    max_batch: int = _option(32, "Answers that are generated at the same time, per process.", NumberRange(1, 10_000))


_ROWS_OF_STAGES: dict[str, Literal["labels", "prompts"]] = {"kto": "labels", "grpo": "prompts"}
"""`data.preference` of stages that do not read pairs."""

DEFAULT_DROPOUT = 0.1
STAGES_WITHOUT_DROPOUT = ("dpo", "orpo", "simpo", "kto", "grpo")
"""Stages without dropout unless it is set, as in TRL."""

METHOD_RATES = {"lora": 1e-4, "ptuning": 2e-2, "freeze": 2e-5, "full": 1e-5}
"""Default learning rates. That of P-Tuning is from the published scripts."""

PREFERENCE_RATE = 0.05
"""Learning rate of preference tuning, as a part of the method's: 5e-6 with LoRA, as in published recipes of DPO. A
reward model, whose value head starts from nothing, has the method's own."""

TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 1,  # blocks of rows, see data.packing
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": "auto",  # only as many layers as memory requires
    "per_device_eval_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a fraction of all steps
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 0.1,  # a fraction of all steps
    "save_total_limit": 2,
    "train_sampling_strategy": "random",
    "seed": 42,
    "report_to": "tensorboard",
}
"""Where a run differs from transformers' own `TrainingArguments` defaults."""


@dataclass
class RunConfig:
    """Everything a run needs to be repeated."""

    model: ModelConfig = field(default_factory=ModelConfig, metadata={"help": "The base model."})
    data: DataConfig = field(default_factory=DataConfig, metadata={"help": "The data."})
    method: Literal["lora", "qlora", "ptuning", "freeze", "full"] = _option(
        "lora", "Fine-tuning method. qlora: lora on a base quantized to nf4 while loading."
    )
    stage: Literal["sft", "dpo", "orpo", "simpo", "kto", "rm", "grpo"] = _option(
        "sft",
        "What is trained: answers (sft), a preference from pairs of a better and a worse answer (dpo, orpo, simpo) or "
        "from single answers with a label (kto), a reward model from pairs (rm), or answers that the model generates "
        "itself, by their rewards (grpo).",
    )
    preference: PreferenceConfig = field(
        default_factory=PreferenceConfig, metadata={"help": "Options of stages dpo, orpo, simpo, kto and rm."}
    )
    reward: str | list[str] = _option(
        "",
        "With stage grpo, what scores answers: FILE.py:FUNCTION, Python code that is run as your own, or the run "
        "folder of a reward model; several as a list.",
    )
    grpo: GrpoConfig = field(default_factory=GrpoConfig, metadata={"help": "Options of stage grpo."})
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"help": "Options of methods lora and qlora."})
    ptuning: PTuningConfig = field(default_factory=PTuningConfig, metadata={"help": "Options of method ptuning."})
    freeze: FreezeConfig = field(default_factory=FreezeConfig, metadata={"help": "Options of method freeze."})
    generate: GenerateConfig = field(
        default_factory=GenerateConfig,
        metadata={"help": "Scores of generated replies during training: eval_rouge_l, eval_bleu4_characters, ..."},
    )
    replay: ReplayConfig = field(default_factory=ReplayConfig, metadata={"help": "General rows mixed into training."})
    forget: ForgetConfig = field(
        default_factory=ForgetConfig, metadata={"help": "When `glmtune forget` warns and when it fails."}
    )
    adapter: str = _option(
        "", "Continue from the weights of an earlier run with the same method: a run folder or a published checkpoint."
    )
    early_stopping: int = _option(
        0,
        "Stop after this many evaluations without improvement of training.metric_for_best_model; 0: never.",
        NumberRange(0, 10**9),
    )
    training: dict[str, Any] = field(
        default_factory=lambda: dict(TRAINING_DEFAULTS),
        metadata={"help": "Any key of transformers' TrainingArguments.", "ranges": TRAINING_RANGES},
    )
    output: str = _option("", "Run folder; empty: runs/<model>-<method>-<time>.")

    def __post_init__(self) -> None:
        if self.method == "qlora":
            self.method = "lora"
            self.model.quantization = self.model.quantization or "nf4"
        # YAML 1.1 reads 1e-4 as text and `eval_strategy: no` as false.
        training = {key: parse_number(value) for key, value in self.training.items()}
        training |= {key: "no" for key, value in training.items() if key.endswith("_strategy") and value is False}
        for action in ("save", "eval"):  # a number of steps implies the strategy
            if f"{action}_steps" in training:
                training.setdefault(f"{action}_strategy", "steps")
        rate = METHOD_RATES[self.method]
        if self.stage not in ("sft", "rm"):
            rate *= PREFERENCE_RATE
        if self.stage != "sft" and self.data.preference == "refuse":
            self.data.preference = _ROWS_OF_STAGES.get(self.stage, "pairs")
        for section in (self.lora, self.ptuning):
            if section.dropout is None:
                # Else chance would decide whether a better answer is more probable than under the reference; generated
                # answers are sampled without.
                section.dropout = 0.0 if self.stage in STAGES_WITHOUT_DROPOUT else DEFAULT_DROPOUT
        self.training = {**TRAINING_DEFAULTS, "learning_rate": rate, **training}


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """Read the configuration of a run from a YAML or JSON file.

    Args:
        path: of the file; None for the defaults.
        overrides: `a.b=value` each, applied after the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a wrong type.
    """
    return build_dataclass(RunConfig, read_tree(path, overrides), str(path) if path else "options")


def read_tree(path: str | Path | None = None, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a config file with overrides as nested dicts, without defaults and unchecked.

    Raises:
        ConfigError: no such file, or not YAML.
    """
    tree: dict[str, Any] = read_config_file(Path(path)) if path else {}
    for override in overrides or []:
        set_key(tree, override)
    return tree


def config_to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as nested dicts, including every default."""
    return dataclasses.asdict(config)


def dump_yaml(config: RunConfig) -> str:
    """The config as a YAML file."""
    return yaml.safe_dump(config_to_dict(config), allow_unicode=True, sort_keys=False)


def list_rewards(config: RunConfig) -> list[str]:
    """The entries of `reward`."""
    entries = config.reward if isinstance(config.reward, list) else [config.reward]
    return [entry for entry in entries if entry]


def get_help(key: str) -> str:
    """The help text of a dotted key such as `data.train`."""
    kind: Any = RunConfig
    help = ""
    for part in key.split("."):
        help = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(kind)}[part]
        kind = get_type_hints(kind)[part]
    return help
