"""A run, described. One set of dataclasses is the YAML file, the command line's options and the web form.

Every field has a type, a default and a sentence of help. Unknown keys and wrong types are errors that name the key
and the nearest known one. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from glmtune.config_parsing import as_number, from_tree, read_file, set_key
from glmtune.errors import ConfigError


def _option(default: Any, help: str) -> Any:
    """A field with its help text; mutable defaults are copied."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class ModelConfig:
    """The base model. A bare string in the file means `path`."""

    path: str = _option("", "Checkpoint folder (published or transformers layout) or hub id.")
    hub: Literal["huggingface", "modelscope"] = _option("huggingface", "Where a hub id is looked up.")
    family: Literal["chatglm", "chatglm2", "chatglm3", "glm4"] | None = _option(
        None, "The generation, for folders that do not say it themselves."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _option(
        "auto", "Precision of the frozen weights. auto: bf16 or fp16 by what the GPU has; fp32 on a CPU."
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = _option(
        "auto", "Attention implementation; auto lets transformers choose."
    )
    quantization: Literal["nf4", "int8", "packed4", "packed8"] | None = _option(
        None,
        "Hold the frozen matrices in fewer bits; they are computed with in `precision`. nf4 and int8: bitsandbytes; "
        "packed4 and packed8: the scheme of the published int4 and int8 repositories.",
    )
    double_quantization: bool = _option(True, "With nf4: quantise the scales too, which saves 0.4 bits a weight.")


@dataclass
class DataConfig:
    """The rows. A bare string in the file means `train`."""

    train: str | list[Any] = _option(
        "",
        "Training rows: files (.json, .jsonl, .csv, .parquet, .txt, .gz), folders, globs, hub ids, names from a "
        "dataset_info.json, or a folder of `glmtune data tokenize`; several as a list.",
    )
    eval: str | list[Any] | None = _option(
        None, "Evaluation rows; without them a part of the training rows is kept back."
    )
    eval_fraction: float = _option(0.05, "Share of the training rows kept back when no eval data is given; 0: none.")
    format: str | None = _option(None, "The rows' format, where detection should not decide.")
    columns: dict[str, str] = _option(
        {}, "Names of the columns, where they are not the usual ones: prompt, input, response, history, system, text."
    )
    max_source_length: int = _option(512, "Longest prompt in tokens; the oldest turns go first, then its start.")
    max_target_length: int = _option(512, "Longest answer in tokens, its end token included.")
    max_length: int | None = _option(None, "One limit for prompt and answer together, in place of the two.")
    overlength: Literal["cut", "drop", "error"] = _option("cut", "What becomes of rows over the limits.")
    train_on: Literal["all", "last"] = _option("all", "Which answers of a conversation are learnt.")
    prefix: str = _option("", "Text put in front of every conversation's first question, in training and in chat.")
    packing: bool = _option(True, "Lay rows end to end into blocks of the longest length; they never see each other.")


@dataclass
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv 2106.09685)."""

    rank: int = _option(8, "Rank of the update.")
    alpha: float = _option(32, "Scale of the update: alpha / rank.")
    dropout: float = _option(0.1, "Dropout on the adapter's input while training.")
    targets: list[str] = _option(
        [],
        "Modules to adapt, by their own or their published names; all-linear for all but the head; "
        "empty: the family's query, key and value projections.",
    )
    rslora: bool = _option(False, "Scale by alpha / sqrt(rank) instead (arXiv 2312.03732).")
    dora: bool = _option(False, "Learn the weights' magnitude apart from their direction (arXiv 2402.09353).")
    loraplus_ratio: float | None = _option(
        None, "Learning rate of B over that of A, 16 for example (LoRA+, arXiv 2402.12354)."
    )
    bias: Literal["none", "lora_only", "all"] = _option("none", "Which biases are trained too.")
    modules_to_save: list[str] = _option([], "Modules trained whole beside the adapter, lm_head for example.")


@dataclass
class PTuningConfig:
    """Trained keys and values in front of every layer's own (P-Tuning v2, Liu et al., arXiv 2110.07602)."""

    num_virtual_tokens: int = _option(128, "Length of the prefix; the published scripts call it pre_seq_len.")
    prefix_projection: bool = _option(False, "Compute the prefix by a small network from a shorter embedding.")
    dropout: float = _option(0.1, "Dropout on the prefix while training.")


@dataclass
class FreezeConfig:
    """Training of the last layers alone."""

    trainable_layers: int = _option(4, "How many of the last layers are trained; the others stay as they are.")


@dataclass
class ReplayConfig:
    """General rows mixed into training, so that it wears away less of what the base can do. A bare string in the file
    means `data`."""

    data: str | list[Any] = _option(
        "",
        "General rows: whatever data.train may name. They keep their own columns and format and are not given "
        "data.prefix. Empty: none.",
    )
    share: float = _option(0.1, "Share of the training rows that are replayed ones.")


@dataclass
class ForgetConfig:
    """When `glmtune forget` warns and when it fails."""

    accuracy_warn: float = _option(
        5.0, "Points of right answers lost, beyond what chance explains, from which it warns."
    )
    accuracy_fail: float = _option(15.0, "The same, from which it fails.")
    kl_warn: float = _option(0.5, "Nats per token that the tuned model is away from the base on the base's replies.")
    kl_fail: float = _option(2.0, "The same, from which it fails.")
    reply_loss_warn: float = _option(0.5, "Nats per token by which the loss of the base's own replies rises.")
    reply_loss_fail: float = _option(2.0, "The same, from which it fails.")
    degenerate_warn: float = _option(
        2.0, "Points more of replies that loop, are empty or full of unknown tokens, from which it warns."
    )
    degenerate_fail: float = _option(10.0, "The same, from which it fails.")
    max_new_tokens: int = _option(128, "Longest reply to a question of the probe.")


@dataclass
class GenerateConfig:
    """Replies to a sample of the evaluation rows at every evaluation, scored as `glmtune eval` scores them."""

    rows: int = _option(
        0, "How many evaluation rows are answered; the same ones each time. 0: none, evaluations give the loss only."
    )
    max_new_tokens: int = _option(128, "Longest of these replies in tokens.")


METHOD_RATES = {"lora": 1e-4, "ptuning": 2e-2, "freeze": 2e-5, "full": 1e-5}
"""Default learning rates. P-Tuning's is that of the published scripts."""

TRAINING_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 1,  # blocks of rows, see data.packing
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": "auto",  # as little as makes the run fit
    "per_device_eval_batch_size": 4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # below 1: a share of all steps
    "logging_steps": 10,
    "logging_first_step": True,
    "eval_strategy": "epoch",
    "save_strategy": "steps",
    "save_steps": 0.1,  # a share of all steps
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
    data: DataConfig = field(default_factory=DataConfig, metadata={"help": "The rows."})
    method: Literal["lora", "qlora", "ptuning", "freeze", "full"] = _option(
        "lora", "How to tune. qlora is lora on a base quantised to nf4 while it is loaded."
    )
    lora: LoraConfig = field(default_factory=LoraConfig, metadata={"help": "Options of methods lora and qlora."})
    ptuning: PTuningConfig = field(default_factory=PTuningConfig, metadata={"help": "Options of method ptuning."})
    freeze: FreezeConfig = field(default_factory=FreezeConfig, metadata={"help": "Options of method freeze."})
    generate: GenerateConfig = field(
        default_factory=GenerateConfig,
        metadata={"help": "Scores of replies while training: eval_rouge_l, eval_bleu4_characters and others."},
    )
    replay: ReplayConfig = field(default_factory=ReplayConfig, metadata={"help": "General rows mixed into training."})
    forget: ForgetConfig = field(
        default_factory=ForgetConfig, metadata={"help": "When `glmtune forget` warns and when it fails."}
    )
    adapter: str = _option(
        "", "Start from what an earlier run of the same method trained: a run, its folder, or a published checkpoint."
    )
    early_stopping: int = _option(
        0, "Stop after so many evaluations without a better training.metric_for_best_model; 0: never."
    )
    training: dict[str, Any] = field(
        default_factory=lambda: dict(TRAINING_DEFAULTS),
        metadata={"help": "Any key of transformers' TrainingArguments."},
    )
    output: str = _option("", "Run folder; empty: runs/<model>-<method>-<time>.")

    def __post_init__(self) -> None:
        if self.method == "qlora":
            self.method = "lora"
            self.model.quantization = self.model.quantization or "nf4"
        # YAML 1.1 reads 1e-4 as text and `eval_strategy: no` as false; both are meant otherwise here.
        read = {key: as_number(value) for key, value in self.training.items()}
        read |= {key: "no" for key, value in read.items() if key.endswith("_strategy") and value is False}
        for what in ("save", "eval"):  # every so many steps means by steps
            if f"{what}_steps" in read:
                read.setdefault(f"{what}_strategy", "steps")
        self.training = {**TRAINING_DEFAULTS, "learning_rate": METHOD_RATES[self.method], **read}


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> RunConfig:
    """A run from a YAML or JSON file, with `a.b=value` overrides on top.

    Raises:
        ConfigError: no such file, not YAML, an unknown key or a wrong type.
    """
    return from_tree(RunConfig, read_tree(path, overrides), str(path) if path else "options")


def read_tree(path: str | Path | None = None, overrides: list[str] | None = None) -> dict[str, Any]:
    """What `load_config` builds a run from, as plain dicts.

    Raises:
        ConfigError: no such file, or not YAML.
    """
    tree: dict[str, Any] = read_file(Path(path)) if path else {}
    for override in overrides or []:
        set_key(tree, override)
    return tree


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The config as plain dicts with every default filled in."""
    return dataclasses.asdict(config)


def dump_yaml(config: RunConfig) -> str:
    """The config as a YAML file."""
    return yaml.safe_dump(to_tree(config), allow_unicode=True, sort_keys=False)


def check(config: RunConfig) -> None:
    """What single fields cannot say.

    Raises:
        ConfigError: no model, no data, or a number out of its range.
    """
    wanted = {"model.path": (config.model.path, "--model"), "data.train": (config.data.train, "--data")}
    for key, (value, option) in wanted.items():
        if not value:
            raise ConfigError(f"{key} is not set.", f"Give {option}, or set it in the config file.")
    ranges: dict[str, tuple[float, bool, str]] = {
        "data.max_source_length": (config.data.max_source_length, config.data.max_source_length >= 4, "at least 4"),
        "data.max_target_length": (config.data.max_target_length, config.data.max_target_length >= 2, "at least 2"),
        "data.max_length": (config.data.max_length or 0, (config.data.max_length or 8) >= 8, "at least 8"),
        "data.eval_fraction": (config.data.eval_fraction, 0 <= config.data.eval_fraction < 1, "from 0 to below 1"),
        "lora.rank": (config.lora.rank, config.lora.rank >= 1, "at least 1"),
        "lora.dropout": (config.lora.dropout, 0 <= config.lora.dropout < 1, "from 0 to below 1"),
        "lora.loraplus_ratio": (config.lora.loraplus_ratio or 0, (config.lora.loraplus_ratio or 1) > 0, "above 0"),
        "ptuning.num_virtual_tokens": (
            config.ptuning.num_virtual_tokens,
            config.ptuning.num_virtual_tokens >= 1,
            "at least 1",
        ),
        "ptuning.dropout": (config.ptuning.dropout, 0 <= config.ptuning.dropout < 1, "from 0 to below 1"),
        "freeze.trainable_layers": (
            config.freeze.trainable_layers,
            config.freeze.trainable_layers >= 1,
            "at least 1",
        ),
        "replay.share": (config.replay.share, 0 < config.replay.share < 1, "above 0 and below 1"),
        "forget.max_new_tokens": (config.forget.max_new_tokens, config.forget.max_new_tokens >= 1, "at least 1"),
        "generate.rows": (config.generate.rows, config.generate.rows >= 0, "at least 0"),
        "generate.max_new_tokens": (
            config.generate.max_new_tokens,
            config.generate.max_new_tokens >= 1,
            "at least 1",
        ),
        "early_stopping": (config.early_stopping, config.early_stopping >= 0, "at least 0"),
    }
    for key, (number, fits, wish) in ranges.items():
        if not fits:
            raise ConfigError(f"{key} is {number}; it must be {wish}.")
    if config.model.quantization in ("packed4", "packed8") and config.method == "lora":
        raise ConfigError(
            f"method lora cannot adapt a base held as {config.model.quantization}.",
            "Use model.quantization nf4 or int8, or method ptuning.",
        )
    if config.model.quantization and config.method in ("freeze", "full"):
        raise ConfigError(
            f"method {config.method} trains the base's own weights, which {config.model.quantization} cannot hold.",
            "Use method lora or ptuning on a quantised base, or leave out model.quantization.",
        )


def help_of(key: str) -> str:
    """The help text of a dotted key such as `data.train`."""
    kind: Any = RunConfig
    help = ""
    for part in key.split("."):
        help = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(kind)}[part]
        kind = get_type_hints(kind)[part]
    return help
