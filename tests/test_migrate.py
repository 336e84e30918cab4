"""Scripts and config files of other projects, translated to runs of glmtune."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import typer
import yaml
from typer.testing import CliRunner

from conftest import REPOSITORY
from glmtune import config as ours
from glmtune.cli.migrate import register
from glmtune.config_checks import check_config
from glmtune.errors import ConfigError
from glmtune.migrate import dump_translation, require_translation, translate_command, update_training_keys
from glmtune.migrate.argument_names import (
    CONVERTED_KEYS,
    OLD_KEYS,
    OLD_SWITCHES,
    REMOVED_KEYS,
    RENAMED_KEYS,
    TRAINING_KEYS,
    TRAINING_SWITCHES,
    UNSUPPORTED_KEYS,
)
from glmtune.migrate.command_words import KEY_OPTIONS, OTHER_OPTIONS
from glmtune.migrate.dialect import RUN_RULES
from glmtune.migrate.dialects import DIALECTS
from glmtune.migrate.finetune_demo import DATA_RULES, PEFT_RULES, TOP_RULES
from glmtune.migrate.other_scripts import OTHER_SCRIPTS

PTUNING_SH = """\
PRE_SEQ_LEN=128
LR=2e-2

CUDA_VISIBLE_DEVICES=0 python3 main.py \\
    --do_train \\
    --train_file AdvertiseGen/train.json \\
    --validation_file AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
    --overwrite_cache \\
    --model_name_or_path THUDM/chatglm-6b \\
    --output_dir output/pt-$PRE_SEQ_LEN-${LR} \\
    --overwrite_output_dir \\
    --max_source_length 64 \\
    --max_target_length 48 \\
    --per_device_train_batch_size 1 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 16 \\
    --predict_with_generate \\
    --max_steps 3000 \\
    --logging_steps 10 \\
    --save_steps 1000 \\
    --learning_rate $LR \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""

FULL_SH = """\
LR=1e-4
MASTER_PORT=$(shuf -n 1 -i 10000-65535)

deepspeed --num_gpus=4 --master_port $MASTER_PORT main.py \\
    --deepspeed deepspeed.json \\
    --do_train \\
    --train_file AdvertiseGen/train.json \\
    --test_file AdvertiseGen/dev.json \\
    --prompt_column content --response_column summary \\
    --model_name_or_path THUDM/chatglm-6b \\
    --output_dir ./output/ft-$LR \\
    --max_steps 5000 --learning_rate $LR --fp16
"""

EVALUATE_SH = """\
python3 main.py --do_predict --validation_file dev.json --test_file test.json --prompt_column content \\
    --response_column summary --model_name_or_path THUDM/chatglm-6b --ptuning_checkpoint ./output/checkpoint-3000 \\
    --output_dir ./output --predict_with_generate --pre_seq_len 128
"""

DEMO_YAML = """\
data_config:
  train_file: train.json
  val_file: dev.json
  test_file: dev.json
  num_proc: 16
max_input_length: 256
max_output_length: 512
training_args:
  output_dir: ./output
  max_steps: 3000
  learning_rate: 5e-5
  per_device_train_batch_size: 4
  dataloader_num_workers: 16
  remove_unused_columns: false
  save_strategy: steps
  save_steps: 500
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 500
  predict_with_generate: true
  generation_config:
    max_new_tokens: 512
  use_cpu: false
"""
DEMO_LORA = "peft_config: {peft_type: LORA, task_type: CAUSAL_LM, r: 16, lora_alpha: 24, lora_dropout: 0.2}\n"
DEMO_PREFIX = "peft_config: {peft_type: PREFIX_TUNING, task_type: CAUSAL_LM, num_virtual_tokens: 64}\n"

QLORA_JSON = {
    "output_dir": "saved_files/t32",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-3,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "logging_steps": 100,
    "save_strategy": "steps",
    "save_steps": 500,
    "evaluation_strategy": "steps",
    "eval_steps": 500,
    "optim": "adamw_torch",
    "fp16": False,
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": False,
    "seed": 42,
}
# The continuation after test.json has no space in front of its backslash, as in the published README.
QLORA_SH = """\
python3 train_qlora.py \\
--train_args_json args.json \\
--train_data_path dataset/train.json \\
--eval_data_path dataset/test.json\\
--lora_rank 16 \\
--lora_dropout 0.2 \\
--compute_dtype bf16
"""

LORA_SH = (
    "python finetune.py --save_total_limit 2  --dataset_path data/alpaca.json --lora_rank 4 "
    "--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --max_steps 52000 --save_steps 1000 "
    "--learning_rate 2e-5 --logging_steps 50 --output_dir output --fp16 --lora_alpha 64 --lora_dropout 0.3\n"
)

FACTORY = {
    "stage": "sft",
    "do_train": True,
    "model_name_or_path": "/models/chatglm3-6b",
    "finetuning_type": "lora",
    "template": "chatglm3",
    "flash_attn": "auto",
    "dataset_dir": "data",
    "dataset": "alpaca_zh_demo,mine",
    "cutoff_len": 1024,
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "max_samples": 100000,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "logging_steps": 5,
    "save_steps": 100,
    "warmup_steps": 0,
    "optim": "adamw_torch",
    "packing": False,
    "report_to": "none",
    "output_dir": "saves/lora",
    "fp16": True,
    "plot_loss": True,
    "lora_rank": 4,
    "lora_alpha": 16,
    "lora_dropout": 0,
    "lora_target": "query_key_value",
    "val_size": 0.1,
    "evaluation_strategy": "steps",
    "eval_steps": 100,
}


@pytest.fixture
def write_file(tmp_path, monkeypatch):
    """`write_file("train.sh", text)`: write a file in the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def build_run(translation) -> ours.RunConfig:
    """Return the translated run and check that `glmtune train` accepts it."""
    from glmtune.training.arguments import check_training_keys

    run = ours.build_dataclass(ours.RunConfig, translation.tree, translation.source)
    check_config(run)
    check_training_keys(run.training)
    return run


def join_notes(translation) -> str:
    return "\n".join(translation.notes)


def test_ptuning_script(write_file, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    translation = translate_command([write_file("train.sh", PTUNING_SH)])
    run = build_run(translation)
    assert (run.method, run.ptuning.num_virtual_tokens, run.model.quantization) == ("ptuning", 128, "packed4")
    assert (run.model.path, run.output) == ("THUDM/chatglm-6b", "output/pt-128-2e-2")
    assert (run.data.train, run.data.eval) == ("AdvertiseGen/train.json", "AdvertiseGen/dev.json")
    assert run.data.columns == {"prompt": "content", "response": "summary"}
    assert (run.data.max_source_length, run.data.max_target_length) == (64, 48)
    assert not run.data.packing, "their batches count rows"
    training = run.training
    assert (training["learning_rate"], training["max_steps"]) == (2e-2, 3000)
    assert (training["lr_scheduler_type"], training["warmup_steps"], training["eval_strategy"]) == ("linear", 0, "no")
    assert (training["save_total_limit"], training["train_sampling_strategy"]) == (None, "random")
    assert "CUDA_VISIBLE_DEVICES=0" in join_notes(translation)
    assert "predict_with_generate" in join_notes(translation)


def test_every_key_is_translated_or_in_a_note(write_file):
    translation = translate_command([write_file("train.sh", PTUNING_SH)])
    training = translation.tree["training"]
    for name in re.findall(r"--(\w+)", PTUNING_SH):
        assert name in training or name in join_notes(translation), name


def test_full_tuning_with_deepspeed(write_file):
    translation = translate_command([write_file("ds_train_finetune.sh", FULL_SH)])
    run = build_run(translation)
    assert run.method == "full"
    assert translation.nproc == 4
    assert (run.training["deepspeed"], run.training["fp16"]) == ("deepspeed.json", True)
    assert (run.data.max_source_length, run.data.max_target_length) == (1024, 128), "main.py's own defaults"
    assert run.data.eval_fraction == 0, "no rows are split off that the script trained on"
    assert "glmtune eval" in join_notes(translation)


def test_chat_script_takes_variables_from_the_environment(write_file, monkeypatch):
    text = PTUNING_SH.replace("AdvertiseGen/train.json", "$CHAT_TRAIN_DATA").replace(
        "--response_column summary", "--response_column summary --history_column history"
    )
    name = write_file("train_chat.sh", text)
    with pytest.raises(ConfigError, match=r"train_chat.sh:4: \$CHAT_TRAIN_DATA has no value"):
        translate_command([name])
    monkeypatch.setenv("CHAT_TRAIN_DATA", "chat.json")
    run = build_run(translate_command([name]))
    assert run.data.train == "chat.json"
    assert run.data.columns["history"] == "history"


def test_a_script_that_only_evaluates_is_an_error_with_the_command(write_file):
    with pytest.raises(ConfigError) as caught:
        translate_command([write_file("evaluate.sh", EVALUATE_SH)])
    assert "glmtune eval ./output/checkpoint-3000 --base THUDM/chatglm-6b --data test.json" in caught.value.hint


def test_main_py_flags_behind_train():
    words = ["--do_train", "--train_file", "a.json", "--ptuning_checkpoint=old", "--pre_seq_len", "8"]
    words += ["--prefix_projection", "True", "--source_prefix", "请写：", "--prompt_column", "q", "--seed", "7"]
    words += ["--report_to", "wandb", "tensorboard", "--quantization_bit", "8", "--response_column", "a"]
    run = build_run(translate_command([*words, "--model", "m", "--set", "training.max_steps=5"]))
    assert (run.adapter, run.ptuning.prefix_projection, run.data.prefix) == ("old", True, "请写：")
    assert (run.training["seed"], run.training["max_steps"], run.model.path) == (7, 5, "m")
    assert (run.training["report_to"], run.model.quantization) == (["wandb", "tensorboard"], "packed8")


def test_numbers_in_text_keys_stay_text():
    words = ["--do_train", "--train_file", "a.json", "--model_name_or_path", "m", "--prompt_column", "1"]
    run = build_run(translate_command([*words, "--source_prefix", "007", "--max_source_length", "9"]))
    assert (run.data.columns["prompt"], run.data.prefix, run.data.max_source_length) == ("1", "007", 9)


def test_main_py_takes_a_json_file(write_file):
    arguments = {
        "do_train": True,
        "train_file": "a.json",
        "prompt_column": "q",
        "pre_seq_len": 8,
        "learning_rate": 0.01,
    }
    run = build_run(
        translate_command(
            ["python", "main.py", write_file("a.json", json.dumps(arguments | {"model_name_or_path": "m"}))]
        )
    )
    assert (run.method, run.data.train, run.training["learning_rate"]) == ("ptuning", "a.json", 0.01)


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        ("--pre_seq_length 8", "unknown --pre_seq_length", "Did you mean --pre_seq_len?"),
        ("--max_train_samples none", "number of rows", ""),
        ("--tokenizer_name other", "--tokenizer_name other", "one folder"),
        ("--quantization_bit 3", "--quantization_bit 3", "4, 8"),
        ("--resume_from_checkpoint out/checkpoint-5", "--resume_from_checkpoint", "adapter: PATH"),
        ("--no_ignore_pad_token_for_loss", "ignores padding", "Leave it out"),
        ("--quantization_bit 4", "cannot be trained", "--pre_seq_len"),
        ("--sharded_ddp simple", "sharded_ddp", "fsdp"),
    ],
)
def test_an_unsupported_value_is_an_error(flags, message, hint):
    with pytest.raises(ConfigError) as caught:
        require_translation(["--do_train", "--train_file", "a.json", "--model_name_or_path", "m", *flags.split()])
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_demo_lora(write_file):
    write_file("lora.yaml", DEMO_YAML + DEMO_LORA)
    assert not translate_command(["d", "m", "lora.yaml", "NO"]).resume
    with pytest.raises(ConfigError, match="'maybe' after"):
        translate_command(["d", "m", "lora.yaml", "maybe"])
    translation = translate_command(["data/AdvertiseGen/", "THUDM/chatglm3-6b", "lora.yaml", "yes", "--output", "mine"])
    run = build_run(translation)
    assert translation.resume
    assert (run.method, run.lora.rank, run.lora.alpha, run.lora.dropout, run.lora.targets) == ("lora", 16, 24, 0.2, [])
    assert (run.data.train, run.data.eval) == ("data/AdvertiseGen/train.json", "data/AdvertiseGen/dev.json")
    assert run.data.max_length == 256 + 512 + 1
    assert (run.model.path, run.output) == ("THUDM/chatglm3-6b", "mine")
    assert (run.training["eval_strategy"], run.training["eval_steps"]) == ("steps", 500)
    assert (run.training["learning_rate"], run.training["per_device_train_batch_size"]) == (5e-5, 4)
    notes = join_notes(translation)
    for name in ("test_file", "num_proc", "remove_unused_columns", "predict_with_generate", "generation_config"):
        assert name in notes


def test_demo_prefix_and_full(write_file, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    write_file("ptuning_v2.yaml", DEMO_YAML + DEMO_PREFIX)
    write_file("sft.yaml", DEMO_YAML)
    text = "OMP_NUM_THREADS=1 torchrun --standalone --nnodes=1 --nproc_per_node=8 finetune_hf.py"
    text += " data/ m {} --deepspeed d.json"
    prefix = translate_command(text.format("ptuning_v2.yaml").split()[1:])
    run = build_run(prefix)
    assert (run.method, run.ptuning.num_virtual_tokens, prefix.nproc) == ("ptuning", 64, 8)
    assert run.training["deepspeed"] == "d.json"
    script = translate_command([write_file("run.sh", text.format("sft.yaml"))])
    assert build_run(script).method == "full"
    assert "OMP_NUM_THREADS=1" in join_notes(script)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" not in join_notes(translate_command(["run.sh"])), "it is set"


def test_demo_config_alone_needs_the_model(write_file):
    translation = translate_command([write_file("lora.yaml", DEMO_YAML + DEMO_LORA)])
    assert "DATA_DIR" in join_notes(translation)
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        build_run(translation)
    assert build_run(translate_command(["lora.yaml", "--model", "m"])).model.path == "m"


def test_demo_errors_name_the_nearest_key(write_file):
    write_file("lora.yaml", (DEMO_YAML + DEMO_LORA).replace("lora_alpha", "lora_alpa"))
    with pytest.raises(ConfigError) as caught:
        translate_command(["d", "m", "lora.yaml"])
    assert "peft_config.lora_alpa" in caught.value.message
    assert "lora_alpha" in caught.value.hint


def test_qlora_script(write_file):
    write_file("args.json", json.dumps({**QLORA_JSON, "seed": 1}))
    translation = translate_command([write_file("train.sh", QLORA_SH)])
    run = build_run(translation)
    assert (run.method, run.model.quantization, run.model.double_quantization) == ("lora", "nf4", True)
    assert (run.model.path, run.model.precision) == ("THUDM/chatglm-6b", "bf16")
    assert (run.lora.rank, run.lora.alpha, run.lora.dropout) == (16, 32, 0.2)
    assert (run.data.eval, run.data.max_source_length, run.data.max_target_length) == ("dataset/test.json", 512, 1536)
    assert run.training["warmup_steps"] == 0.1
    assert run.training["seed"] == 42, "the script's --seed has a default that wins over the file's"
    assert (run.training["eval_strategy"], run.output) == ("steps", "saved_files/t32")


def test_qlora_flags_behind_train_and_its_json_alone(write_file):
    write_file("args.json", json.dumps(QLORA_JSON))
    words = ["--train_args_json", "args.json", "--model_name_or_path", "m", "--train_data_path", "t.json"]
    translation = translate_command([*words, "--prompt_text", "写：", "--resume_from_checkpoint", "saved"])
    run = build_run(translation)
    assert (run.data.prefix, run.adapter, run.model.precision) == ("写：", "saved", "fp32")
    assert run.training["eval_strategy"] == "no"
    assert "no evaluation data" in join_notes(translation)
    assert build_run(translate_command(["args.json", "--data", "t.json"])).data.train == "t.json"


def test_lora_by_flags(write_file):
    run = build_run(translate_command([write_file("finetune.sh", LORA_SH)]))
    assert (run.data.train, run.lora.rank, run.lora.alpha, run.lora.dropout) == ("data/alpaca.json", 4, 64, 0.3)
    assert (run.model.path, run.model.quantization, run.training["fp16"]) == ("THUDM/chatglm-6b", "int8", True)
    assert (run.training["save_total_limit"], run.training["max_steps"]) == (2, 52000)


def test_factory_yaml_and_preview_agree(write_file):
    from_yaml = translate_command([write_file("train.yaml", yaml.safe_dump(FACTORY))])
    flags = " ".join(f"--{key} {value}" for key, value in FACTORY.items())
    from_preview = translate_command([write_file("train.sh", f"llamafactory-cli train {flags}\n")])
    run = build_run(from_yaml)
    assert run == build_run(from_preview)
    assert [entry["path"] for entry in run.data.train] == ["data:alpaca_zh_demo", "data:mine"]
    assert (run.data.eval_fraction, run.data.max_length, run.data.packing) == (0.1, 1024, False)
    assert (run.lora.rank, run.lora.alpha, run.lora.targets) == (4, 16, ["query_key_value"])
    assert run.training["lr_scheduler_type"] == "cosine"
    assert build_run(translate_command(["llamafactory-cli", "train", "train.yaml", "lora_rank=32"])).lora.rank == 32


@pytest.mark.parametrize(
    ("settings", "stage", "loss", "beta"),
    [
        ({}, "dpo", "sigmoid", 0.1),
        ({"pref_loss": "ipo", "pref_beta": 0.3}, "dpo", "ipo", 0.3),
        ({"pref_loss": "orpo", "pref_beta": 0.2}, "orpo", "sigmoid", 0.2),
        ({"pref_loss": "simpo", "simpo_gamma": 0.7}, "simpo", "sigmoid", 0.1),
        ({"dpo_beta": 0.2, "pref_ftx": 0.5}, "dpo", "sigmoid", 0.2),
    ],
)
def test_factory_preference_tuning(settings, stage, loss, beta, write_file):
    """Its example of DPO, whose beta is 0.1 for every loss."""
    values = {**FACTORY, "stage": "dpo", "pref_loss": "sigmoid", **settings}
    flags = " ".join(f"--{key} {value}" for key, value in values.items())
    for words in ([write_file("a.yaml", yaml.safe_dump(values))], ["llamafactory-cli", "train", *flags.split()]):
        run = build_run(translate_command(words))
        assert (run.stage, run.preference.loss, run.preference.beta) == (stage, loss, beta)
        assert run.data.preference == "pairs"
        assert run.preference.margin == settings.get("simpo_gamma", 0.5)
        assert run.preference.sft_weight == settings.get("pref_ftx", 0)


def test_factory_preference_losses_that_are_unknown_are_refused(write_file):
    values = {**FACTORY, "stage": "dpo", "pref_loss": "kto_pair"}
    with pytest.raises(ConfigError, match="pref_loss kto_pair"):
        translate_command([write_file("a.yaml", yaml.safe_dump(values))])


def test_our_own_arguments_are_not_translated(write_file):
    write_file("ours.yaml", "model: m\ndata: d.json\ntraining: {max_steps: 3}\n")
    for words in ([], ["ours.yaml"], ["--model", "m", "--data", "d.json", "--resume"], ["ours.yaml", "--unheard_of"]):
        assert translate_command(words) is None
    with pytest.raises(ConfigError) as caught:
        translate_command(["ours.yaml", "--max_steps", "5"])
    assert "--set training.max_steps" in caught.value.hint


def test_own_options_are_those_of_train():
    from glmtune.cli.main import app

    options = typer.main.get_command(app).commands["train"].params
    names = {name for option in options for name in option.opts if name.startswith("--")}
    assert names <= set(KEY_OPTIONS) | OTHER_OPTIONS


def test_shell_features(write_file):
    text = """\
#!/bin/bash
set -e
export LR=1e-3  # the rate
EXTRA="--seed 9 --fp16"
NAME='a $b'
cd ptuning && mkdir -p out
python -u main.py --do_train --train_file "my data/a.json" --model_name_or_path ${MODEL:-base} \\
    --learning_rate "$LR" --pre_seq_len 8 $EXTRA \\
#   --max_steps 1 \\
    --output_dir "out/$NAME" 2>&1 | tee log.txt
"""
    translation = translate_command([write_file("t.sh", text.replace("\n", "\r\n"))])
    run = build_run(translation)
    assert (run.data.train, run.model.path, run.output) == ("my data/a.json", "base", "out/a $b")
    assert (run.training["learning_rate"], run.training["seed"], run.training["fp16"]) == (1e-3, 9, True)
    assert "max_steps" not in run.training
    for line in ("t.sh:2: ignored", "cd ptuning", "mkdir -p out", "tee log.txt"):
        assert line in join_notes(translation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python main.py --do_train --output_dir out-$(hostname)", "needs a shell"),
        ("python main.py --do_train --train_file 'a.json", "cannot be read"),
        ("python main.py --do_train --train_file", "--train_file needs a value"),
        ("python main.py --do_train --train_file a b", "'b' belongs to no flag"),
        ("python other.py --foo", "other.py is not supported"),
        ("echo hello", "starts no supported script"),
        ("python main.py --do_train\npython main.py --do_train", "several trainings"),
    ],
)
def test_scripts_that_cannot_be_read(write_file, text, message):
    with pytest.raises(ConfigError) as caught:
        translate_command([write_file("t.sh", text + "\n")])
    assert message in str(caught.value)


@pytest.mark.parametrize("script", sorted(OTHER_SCRIPTS))
def test_scripts_that_do_not_train_name_the_replacement(write_file, script):
    with pytest.raises(ConfigError) as caught:
        translate_command([write_file("t.sh", f"python {script} --lora_path old --output_path new\n")])
    assert script in caught.value.message
    assert "glmtune " in caught.value.hint


def test_keys_are_those_of_transformers():
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    assert set(fields) == TRAINING_KEYS
    kinds = {name: str(field.type) for name, field in fields.items()}
    either = {name for name, kind in kinds.items() if kind in ("<class 'bool'>", "bool | None")}
    assert either == TRAINING_SWITCHES
    assert not OLD_KEYS & TRAINING_KEYS - {"remove_unused_columns"}
    assert {*RENAMED_KEYS.values(), *CONVERTED_KEYS.values()} <= TRAINING_KEYS
    assert OLD_SWITCHES <= OLD_KEYS


# Every field that was removed from TrainingArguments or Seq2SeqTrainingArguments between 4.27 and 5.23.
REMOVED = """
overwrite_output_dir evaluation_strategy per_gpu_train_batch_size per_gpu_eval_batch_size warmup_ratio logging_dir
no_cuda use_mps_device jit_mode_eval use_ipex fp16_opt_level half_precision_backend xpu_backend tpu_num_cores
tpu_metrics_debug past_index sharded_ddp fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap adafactor
group_by_length use_legacy_prediction_loop include_inputs_for_metrics fp16_backend push_to_hub_model_id
push_to_hub_organization push_to_hub_token _n_gpu mp_parameters torchdynamo ray_scope save_safetensors
dispatch_batches split_batches include_tokens_per_second sortish_sampler predict_with_generate generation_max_length
generation_num_beams generation_config
"""


def test_every_removed_key_is_known():
    assert set(REMOVED.split()) <= OLD_KEYS


def test_old_keys_are_translated():
    old = {"evaluation_strategy": False, "per_gpu_train_batch_size": 3, "no_cuda": True, "warmup_ratio": 0.2}
    old |= {"group_by_length": True, "optim": "adamw_hf", "logging_dir": "x", "max_steps": 4, "past_index": -1}
    section, notes = update_training_keys(old)
    assert section == {
        "eval_strategy": "no",
        "per_device_train_batch_size": 3,
        "use_cpu": True,
        "warmup_steps": 0.2,
        "train_sampling_strategy": "group_by_length",
        "optim": "adamw_torch",
        "max_steps": 4,
    }
    text = "\n".join(notes)
    for key in old.keys() - {"max_steps"}:
        assert key in text
    assert update_training_keys(section) == (section, [])


def test_contradicting_and_unsupported_keys():
    with pytest.raises(ConfigError, match="contradict"):
        update_training_keys({"evaluation_strategy": "steps", "eval_strategy": "no"})
    with pytest.raises(ConfigError, match="warmup_ratio is 2"):
        update_training_keys({"warmup_ratio": 2})
    assert update_training_keys({"warmup_ratio": 0.1, "warmup_steps": 30})[0] == {"warmup_steps": 30}
    for key in UNSUPPORTED_KEYS:
        with pytest.raises(ConfigError, match=key):
            update_training_keys({key: "something"})


def test_unsupported_precisions_are_removed():
    section = {"fp16": True, "tf32": True, "optim": "paged_adamw_32bit"}
    assert update_training_keys(section) == (section, [])
    result, notes = update_training_keys(section, cuda=False)
    assert result == {"optim": "adamw_torch"}
    assert len(notes) == 3
    assert update_training_keys({"bf16": True, "fp16": False}, bf16=False)[0] == {"fp16": False}


@pytest.mark.parametrize("name", ["ptuning", "full", "demo", "qlora", "lora", "factory"])
def test_the_written_config_is_the_same_run(write_file, name):
    write_file("args.json", json.dumps(QLORA_JSON))
    write_file("lora.yaml", DEMO_YAML + DEMO_LORA)
    scripts = {"ptuning": PTUNING_SH, "full": FULL_SH, "qlora": QLORA_SH, "lora": LORA_SH}
    scripts["demo"] = "python finetune_hf.py data/AdvertiseGen/ m lora.yaml"
    scripts["factory"] = f"llamafactory-cli train {' '.join(f'--{k} {v}' for k, v in FACTORY.items())}"
    translation = translate_command([write_file("t.sh", scripts[name] + "\n")])
    text = dump_translation(translation)
    assert ours.load_config(write_file("run.yaml", text)) == build_run(translation)
    comments = re.sub(r"\n#\s+", " ", text)
    assert all(note in comments for note in translation.notes)


@pytest.fixture
def migrate_command():
    app = typer.Typer()
    register(app)

    @app.command()
    def other() -> None:
        """A second command, so that the first keeps its name."""

    return lambda *words: CliRunner().invoke(app, ["migrate", *words])


def test_migrate_prints_and_writes(write_file, migrate_command):
    write_file("train.sh", PTUNING_SH)
    printed = migrate_command("train.sh")
    assert yaml.safe_load(printed.stdout)["method"] == "ptuning"
    assert "predict_with_generate" in printed.stderr
    assert migrate_command("train.sh", "--output", "run.yaml").exit_code == 0
    assert ours.load_config("run.yaml").ptuning.num_virtual_tokens == 128
    second = migrate_command("train.sh", "--output", "run.yaml")
    assert "Choose another --output" in str(second.exception)
    flags = migrate_command("--", "--do_train", "--train_file", "a.json", "--model_name_or_path", "m")
    assert yaml.safe_load(flags.stdout)["method"] == "full"
    assert "no such file" in str(migrate_command("missing.sh").exception)


def test_a_migrated_demo_config_trains(write_file, tiny, adgen_file, glmtune_command, tmp_path):
    adgen_file(8, "train.json")
    adgen_file(4, "dev.json")
    short = DEMO_YAML.replace("max_steps: 3000", "max_steps: 2").replace("workers: 16", "workers: 0")
    write_file(
        "lora.yaml",
        short.replace("eval_steps: 500", "eval_steps: 1").replace("batch_size: 4", "batch_size: 2") + DEMO_LORA,
    )
    translation = translate_command([str(tmp_path), str(tiny("chatglm3")), "lora.yaml", "--output", "run"])
    result = glmtune_command("train", write_file("run.yaml", dump_translation(translation)))
    assert result.code == 0, result.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 2
    assert summary["eval_loss"] is not None


def read_documented_rows(heading: str) -> list[str]:
    text = (REPOSITORY / "docs" / "migrate.md").read_text("utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return [line for line in section.splitlines() if line.startswith("| `")]


def format_rows(rules, format_key) -> list[str]:
    return [f"| `{format_key(name)}` | {format_our_key(rule)} | {format_note(rule)} |" for name, rule in rules.items()]


def format_our_key(rule) -> str:
    if rule.key:
        return f"`{rule.key}`"
    return "none" if rule.accepted_values is None else "not supported"


def format_note(rule) -> str:
    changes = {theirs: ours for theirs, ours in (rule.value_map or {}).items() if theirs != ours}
    if changes:
        return ", ".join(f"{theirs} is {ours}" for theirs, ours in changes.items()).lower()
    return f"{rule.note}. {rule.hint}" if rule.hint else rule.note


def format_training_rows() -> list[str]:
    rows = [f"| `{old}` | `training.{new}` | |" for old, new in RENAMED_KEYS.items()]
    rows += [f"| `{old}` | `training.{new}` | other values |" for old, new in CONVERTED_KEYS.items()]
    rows += [f"| `{old}` | none | {reason} |" for old, reason in REMOVED_KEYS.items()]
    return rows + [f"| `{old}` | not supported | {hint} |" for old, (_, hint) in UNSUPPORTED_KEYS.items()]


def format_tables() -> dict[str, list[str]]:
    tables = {dialect.name: format_rows(dialect.rules, lambda name: f"--{name}") for dialect in DIALECTS}
    demo = [(TOP_RULES, ""), (DATA_RULES, "data_config."), (PEFT_RULES, "peft_config.")]
    tables["finetune_hf.py (ChatGLM3)"] = [
        row for rules, section in demo for row in format_rows(rules, lambda name, section=section: f"{section}{name}")
    ]
    tables["TrainingArguments"] = format_rows(RUN_RULES, str) + format_training_rows()
    return tables


def test_documented_tables_are_those_of_the_code():
    for heading, table in format_tables().items():
        assert read_documented_rows(heading) == table, heading
