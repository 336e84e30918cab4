"""Commands of other projects that do not train, defaults with their source, and `glmtune run`."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import typer
import yaml

from conftest import REPOSITORY
from glmtune import config as ours
from glmtune.data.sources import open_sources, sample_sources
from glmtune.errors import ConfigError
from glmtune.migrate import dump_translation, plan_commands, require_translation, translate_command
from glmtune.migrate.other_scripts import OTHER_SCRIPTS

EVALUATE_SH = """\
LEN=96
CKPT=poem-pt-$LEN
CUDA_VISIBLE_DEVICES=1 python3 main.py \\
    --do_predict \\
    --validation_file 'my data/q.json' \\
    --test_file 'my data/q.json' \\
    --overwrite_cache \\
    --prompt_column 问题 \\
    --response_column 1 \\
    --model_name_or_path ../base/chatglm-6b \\
    --ptuning_checkpoint ./old/checkpoint-7 \\
    --output_dir ./new/$CKPT \\
    --max_source_length $LEN \\
    --max_target_length 32 \\
    --per_device_eval_batch_size 2 \\
    --max_predict_samples 9 \\
    --predict_with_generate \\
    --pre_seq_len 16 \\
    --quantization_bit 8
"""
FACTORY = {"model_name_or_path": "m", "stage": "sft", "do_train": True, "finetuning_type": "lora", "dataset": "tea"}
FACTORY |= {"template": "chatglm3", "output_dir": "out"}

CASES = [
    (
        "python3 merge_lora_and_quantize.py --lora_path a/t32 --output_path 'b c' --remote_scripts_dir r --qbits 0",
        "export a/t32 'b c' --format official --bits 16",
    ),
    (
        "python3 merge_lora_and_quantize.py --lora_path a --output_path b --qbits 8 --device cuda",
        "export a b --format official --bits 8 --device cuda",
    ),
    (
        "python3 merge_lora_and_quantize.py --lora_path a --qbits=4",
        "export a /tmp/merged_qlora_model --format official --bits 4",
    ),
    (
        "python merge_lora.py --ori_model_dir base --model_dir out/e1/ --mode glm2",
        "export out/e1/ out/e1-merged --base base",
    ),
    (
        "python src/export_model.py --model_name_or_path m --checkpoint_dir c --template chatglm2 "
        "--finetuning_type lora --output_dir o",
        "export c o --base m",
    ),
    (
        "llamafactory-cli export --model_name_or_path m --adapter_name_or_path a --template chatglm3 --export_dir o "
        "--export_size 2 --export_quantization_bit 4 --export_device auto",
        "export a o --base m --bits 4 --max-shard-size 2GB",
    ),
    ("python inference_hf.py out/checkpoint-9 --prompt '你好 吗'", "chat out/checkpoint-9 --prompt '你好 吗'"),
    (
        "python inference.py --pt-checkpoint p --model m --tokenizer m --pt-pre-seq-len 8 --max-new-tokens 64",
        "chat p --base m --max-new-tokens 64",
    ),
    (
        "python infer.py --peft_path output/x.pt --max_length 99 --temperature 0.5",
        "chat output/x.pt --base THUDM/chatglm-6b --max-new-tokens 99 --temperature 0.5",
    ),
    ("python infer.py", "chat output/chatglm-lora.pt --base THUDM/chatglm-6b"),
    (
        "python cli_demo.py --model_name_or_path m --ptuning_checkpoint p --pre_seq_len 8 --quantization_bit 4",
        "chat p --base m --quantization packed4",
    ),
    (
        "python src/cli_demo.py --model_name_or_path m --checkpoint_dir c --template chatglm3 --quantization_bit 4",
        "chat c --base m --quantization nf4 --temperature 0.95 --top-p 0.7",
    ),
    (
        "llamafactory-cli chat --model_name_or_path m --template chatglm3 --temperature 0.1",
        "chat m --temperature 0.1 --top-p 0.7",
    ),
    (
        "python3 inference_test.py --model_path m/q --loop_number 4",
        "bench m/q --variants 16-bit --batch-sizes 1 --repeats 4",
    ),
    (
        "python3 inference_test.py --model_path x/chatglm-6b-int4",
        "bench x/chatglm-6b-int4 --variants packed4 --batch-sizes 1",
    ),
    (
        "python tokenize_dataset_rows.py --jsonl_path d/a.jsonl --save_path d/a --max_seq_length 200 --version v2",
        "data tokenize d/a.jsonl --model THUDM/chatglm2-6b --output d/a --set data.max_length=200",
    ),
    (
        "python tokenize_dataset_rows.py --chatglm_path m --skip_overlength True",
        "data tokenize data/alpaca_data.jsonl --model m --output data/alpaca --set data.max_length=384 "
        "--set data.overlength=drop",
    ),
    ("python cover_alpaca2jsonl.py --data_path a.json --save_path a.jsonl", "data check a.json --fix a.jsonl"),
    ("GRADIO_SERVER_PORT=7000 python src/webui.py", "ui --port 7000"),
    ("llamafactory-cli webui", "ui"),
    ("python web_demo.py --model_name_or_path m --ptuning_checkpoint p --pre_seq_len 128", "ui"),
    (
        "python src/train_bash.py --stage sft --do_predict --model_name_or_path m --checkpoint_dir c --dataset tea "
        "--template chatglm2 --finetuning_type lora --output_dir o --max_samples 5 --predict_with_generate",
        "eval c --base m --data data:tea --output o --max-new-tokens 1024 --limit 5 --temperature 0.95 --top-p 0.7 "
        "--set data.max_length=2048",
    ),
    ("xtuner chat m --adapter a --prompt-template chatglm3", "chat a --base m"),
    ("xtuner convert merge m a o --max-shard-size 2GB", "export a o --base m --max-shard-size 2GB"),
    ("swift infer --ckpt_dir c/v0 --model_type chatglm3-6b", "chat c/v0 --base ZhipuAI/chatglm3-6b"),
]


@pytest.fixture
def write_file(tmp_path, monkeypatch):
    """`write_file("train.sh", text)`: write a file in the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return write


def parse_as_typed(words: list[str]) -> None:
    """Let the real command line parse the words, without running the command."""
    from glmtune.cli.main import app

    group, name, *rest = typer.main.get_command(app), *words
    command = group.commands[name]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(name, list(rest))


@pytest.mark.parametrize(("typed", "command"), CASES)
def test_the_command_has_what_was_typed_and_is_accepted(typed, command, write_file):
    (planned,) = plan_commands(shlex.split(typed))
    assert planned.text.removeprefix("glmtune ") == command
    parse_as_typed(shlex.split(planned.text)[1:])
    (quoted,) = plan_commands([typed])
    assert quoted.text == planned.text, "the same, as one word in quotes"
    (script,) = plan_commands([write_file("a.sh", typed + "\n")])
    assert script.text == planned.text, "the same, in a script"
    with pytest.raises(ConfigError, match=re.escape(planned.text)):
        translate_command(shlex.split(typed))


def test_evaluate_sh_keeps_every_setting(write_file):
    (command,) = plan_commands([write_file("evaluate.sh", EVALUATE_SH)])
    assert command.environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert command.words[:10] == [
        *("eval", "./old/checkpoint-7", "--base", "../base/chatglm-6b", "--data", "my data/q.json"),
        *("--output", "./new/poem-pt-96", "--quantization", "packed8"),
    ]
    for words in ("--limit 9", "--batch-size 2", "--temperature 0.95", "--top-p 0.7"):
        assert words in " ".join(command.words)
    from glmtune.evaluation.model_info import read_settings

    overrides = [command.words[i + 1] for i, word in enumerate(command.words) if word == "--set"]
    data = read_settings("x", overrides).data
    assert (data.max_source_length, data.max_target_length) == (96, 32)
    assert data.columns == {"prompt": "问题", "response": "1"}
    parse_as_typed(command.words)
    pasted = shlex.split(command.text)
    assert pasted[0] == "CUDA_VISIBLE_DEVICES=1"
    assert pasted[2:] == command.words


def test_results_do_not_go_into_a_folder_with_other_files(write_file):
    write_file("new/poem-pt-96/checkpoint-7/pytorch_model.bin", "x")
    (command,) = plan_commands([write_file("evaluate.sh", EVALUATE_SH)])
    assert command.words[command.words.index("--output") + 1] == "new/poem-pt-96/eval"
    assert any("other files" in note for note in command.notes)


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        (
            "llamafactory-cli eval --model_name_or_path m --template chatglm3 --task cmmlu_test --n_shot 3",
            "cmmlu",
            "--tasks cmmlu --num_fewshot 3",
        ),
        ("llamafactory-cli fly", "no command fly", "export"),
        ("python merge_lora_and_quantize.py --qbits 4", "without --lora_path", "--lora_path"),
        ("python merge_lora_and_quantize.py --lora_path a --foo 1 --bar 2", "--foo, --bar", "docs/migrate.md"),
        ("python cli_demo.py", "no model is given", "glmtune chat"),
        ("python finetune.py --base_model m --width 3", "unknown project", "glmtune train"),
        ("python train.py --width 3", "unknown project", "glmtune train"),
        ("xtuner train chatglm3_6b_qlora_alpaca_e3", "no file", "xtuner copy-cfg chatglm3_6b_qlora_alpaca_e3"),
        ("swift sample --model m", "no equivalent", "swift sft"),
        ("python main.py --do_predict --test_file a.json", "no --model_name_or_path", "model"),
        ("python main.py --do_predict --model_name_or_path m", "no rows", "--test_file"),
    ],
)
def test_what_is_not_possible_is_said(typed, message, hint, write_file):
    with pytest.raises(ConfigError) as caught:
        plan_commands(shlex.split(typed))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_the_model_in_a_script_is_read(write_file):
    text = 'tokenizer = AutoTokenizer.from_pretrained("../models/glm", trust_remote_code=True)\n'
    write_file("cli_demo.py", text)
    assert plan_commands(["python", "cli_demo.py"])[0].words == ["chat", "../models/glm"]


def test_all_unknown_keys_are_named_with_the_script(write_file):
    with pytest.raises(ConfigError) as caught:
        translate_command(
            ["--do_train", "--pre_seq_length", "8", "--train_file", "a", "--colour", "red", "--promt_column", "q"]
        )
    assert "--pre_seq_length, --colour, --promt_column" in caught.value.message
    assert "main.py" in caught.value.message
    assert "--pre_seq_length: --pre_seq_len" in caught.value.hint
    assert "colour" not in caught.value.hint, "nothing is like it"
    write_file("a.yaml", yaml.safe_dump({**FACTORY, "one": 1, "two": 2}))
    with pytest.raises(ConfigError, match="one, two"):
        translate_command(["a.yaml"])


def test_defaults_are_listed_with_their_source(write_file):
    notes = translate_command([write_file("a.yaml", yaml.safe_dump(FACTORY))]).notes
    assert "Not given: lora_alpha, taken as 16, LLaMA-Factory's of 2025; before 2024-04 it was 32." in notes
    assert any("cutoff_len, taken as 2048" in note for note in notes)
    assert any("learning_rate 5e-05" in note and "transformers" in note for note in notes)
    given = {**FACTORY, "lora_alpha": 5, "learning_rate": 1e-3}
    notes = translate_command([write_file("b.yaml", yaml.safe_dump(given))]).notes
    assert not any("Not given" in note and "lora_alpha" in note for note in notes)
    assert not any("learning_rate" in note for note in notes)
    notes = translate_command(
        ["--do_train", "--train_file", "a", "--model_name_or_path", "m", "--pre_seq_len", "8"]
    ).notes
    assert "Not given, taken as main.py's: max_source_length 1024, max_target_length 128." in notes


def test_train_bash_has_the_defaults_of_its_time():
    line = "python src/train_bash.py --stage sft --do_train --dataset tea --finetuning_type lora --output_dir o"
    oldest = require_translation(line.split())
    run = ours.build_dataclass(ours.RunConfig, oldest.tree, "test")
    assert (run.model.path, run.lora.alpha, run.lora.dropout) == ("THUDM/chatglm-6b", 32, 0.1)
    assert (run.lora.targets, run.data.max_source_length, run.data.max_target_length) == (["query_key_value"], 512, 512)
    assert any("THUDM/chatglm-6b" in note for note in oldest.notes)
    words = [*line.split(), "--template", "chatglm2"]
    old = require_translation([*words, "--model_name_or_path", "m"])
    run = ours.build_dataclass(ours.RunConfig, old.tree, "test")
    assert (run.model.path, run.lora.alpha, run.data.max_length) == ("m", 32, 1024)
    assert any("No model is named" in note for note in require_translation(words).notes)
    new = require_translation(["llamafactory-cli", "train", *words[2:], "--model_name_or_path", "m"])
    run = ours.build_dataclass(ours.RunConfig, new.tree, "test")
    assert (run.lora.alpha, run.lora.dropout, run.lora.targets, run.data.max_length) == (16, 0, ["all-linear"], 2048)
    tuned = ["--finetuning_type", "p_tuning", "--quantization_bit", "4", "--dev_ratio", "0.2", "--checkpoint_dir", "c"]
    run = ours.build_dataclass(ours.RunConfig, require_translation([*line.split(), *tuned]).tree, "test")
    assert (run.method, run.ptuning.num_virtual_tokens, run.model.quantization) == ("ptuning", 64, "packed4")
    assert (run.data.eval_fraction, run.adapter) == (0.2, "c")


def test_a_missing_backslash_is_said(write_file):
    text = (
        "python finetune.py \\\n  --dataset_path d \\\n  --lora_rank 4 \\\n  --output_dir o\n  --chatglm_path ./glm v\n"
    )
    translation = translate_command([write_file("a.sh", text.replace(" v\n", "\n"))])
    assert translation.get_value("model.path") == "./glm"
    assert any("a.sh:5: --chatglm_path ./glm" in note and "missing" in note for note in translation.notes)


@pytest.mark.parametrize("typed", ["b.json--lora_rank 6", "b.json --lora_rank 6"])
def test_a_glued_flag_is_split(typed, write_file):
    write_file("args.json", json.dumps({"output_dir": "o", "max_steps": 1}))
    line = f"--train_args_json args.json --train_data_path a.json --eval_data_path {typed} --compute_dtype fp32"
    translation = translate_command(["python3", "train_qlora.py", *line.split()])
    assert (translation.get_value("data.eval"), int(translation.get_value("lora.rank"))) == ("b.json", 6)
    assert any("space is missing" in note for note in translation.notes) == ("json--" in typed)


def test_dates_are_evaluated_and_nothing_is_executed(write_file):
    text = """\
DAY=`date +%Y`
OUT="o-$(date +"%Y-%m")-${DAY}"
python main.py --do_train --train_file a.json --model_name_or_path m --pre_seq_len 4 --output_dir $OUT \\
    --run_name $(date '+%Y %H') 2>&1 | tee $(touch made)
"""
    translation = translate_command([write_file("a.sh", text)])
    assert re.fullmatch(r"o-\d{4}-\d\d-\d{4}", translation.get_value("output"))
    assert re.fullmatch(r"\d{4} \d\d", translation.get_value("training.run_name"))
    assert sum("time of this translation" in note for note in translation.notes) == 3
    (planned,) = plan_commands(["a.sh"])
    assert planned.words == ["train", "a.sh"]
    for command in ("date -d tomorrow +%Y", "date +%Y; touch made", "touch made", "date +%N"):
        with pytest.raises(ConfigError, match="needs a shell"):
            translate_command([write_file("b.sh", text.replace("date +%Y`", f"{command}`"))])
    assert not (REPOSITORY / "made").exists()


def test_versions_of_known_scripts():
    demo = "torchrun --nproc_per_node=2 finetune.py --train_format {} --train_file t.jsonl --model_name_or_path m"
    multi = require_translation([*demo.format("multi-turn").split(), *["--max_seq_length", "70", "--pre_seq_len", "4"]])
    run = ours.build_dataclass(ours.RunConfig, multi.tree, "test")
    assert (run.method, run.data.max_length, run.ptuning.num_virtual_tokens) == ("ptuning", 70, 4)
    assert multi.nproc == 2
    pairs = require_translation([*demo.format("input-output").split(), "--lora_rank=4", "--max_source_length=9"])
    run = ours.build_dataclass(ours.RunConfig, pairs.tree, "test")
    assert (run.method, run.lora.rank, run.lora.alpha, run.data.max_source_length) == ("lora", 4, 32, 9)
    line = "--do_train --train_file a --model_name_or_path m --lora_r 64 --model_parallel_mode True"
    run = ours.build_dataclass(ours.RunConfig, require_translation(line.split()).tree, "test")
    assert (run.method, run.lora.rank, run.lora.alpha, run.lora.dropout) == ("lora", 64, 16, 0.05)
    line = "python finetune.py --dataset_path d --model_path {} --output_dir output"
    assert require_translation(line.format("./glm2").split()).get_value("model.path") == "./glm2"
    assert require_translation(line.format("output").split()).get_value("model.path") == "THUDM/chatglm-6b"
    line = "deepspeed train.py --train_path d --model_name_or_path m --mode glm2 --train_type freeze --show_loss_step 7"
    words = [*line.split(), "--freeze_module_name", "layers.27.,layers.26."]
    run = ours.build_dataclass(ours.RunConfig, require_translation(words).tree, "test")
    assert (run.method, run.freeze.trainable_layers, run.model.family) == ("freeze", 2, "chatglm2")
    assert (run.training["logging_steps"], run.training["learning_rate"]) == (7, 1e-3)
    line = "swift sft --model_type chatglm3-6b --dataset a.jsonl#5 --sft_type lora --batch_size 3 --output_dir o"
    run = ours.build_dataclass(ours.RunConfig, require_translation(line.split()).tree, "test")
    assert (run.model.path, run.model.hub) == ("ZhipuAI/chatglm3-6b", "modelscope")
    assert (run.training["per_device_train_batch_size"], run.training["lr_scheduler_type"]) == (3, "cosine")


def test_a_config_of_xtuner_is_parsed_and_not_executed(write_file):
    text = """\
import os
os.mkdir("made")
pretrained_model_name_or_path = './glm3'
data_path = 'rows.json'
max_length = 512
pack_to_max_length = True
batch_size = 2
accumulative_counts = 4
lr = 2e-4
betas = (0.9, 0.99)
llm = dict(quantization_config=dict(type=BitsAndBytesConfig, load_in_4bit=True))
lora = dict(type=LoraConfig, r=64, lora_alpha=16, lora_dropout=0.2)
"""
    write_file("glm.py", text)
    run = ours.build_dataclass(ours.RunConfig, require_translation(["xtuner", "train", "glm.py"]).tree, "test")
    assert (run.model.path, run.model.quantization, run.method) == ("./glm3", "nf4", "lora")
    assert (run.lora.rank, run.lora.alpha, run.lora.dropout) == (64, 16, 0.2)
    assert (run.data.train, run.data.max_length, run.data.packing) == ("rows.json", 512, True)
    assert (run.training["adam_beta2"], run.training["gradient_accumulation_steps"]) == (0.99, 4)


def test_max_samples_is_a_maximum_of_each_data_set(write_file):
    write_file("data/a.json", json.dumps([{"instruction": str(i), "output": "是"} for i in range(5)]))
    write_file("data/dataset_info.json", json.dumps({"tea": {"file_name": "a.json"}}))
    counts = {}
    for limit in (3, 1000):
        write_file("a.yaml", yaml.safe_dump({**FACTORY, "max_samples": limit}))
        (entry,) = translate_command(["a.yaml"]).get_value("data.train")
        assert entry["num_samples"] == limit
        counts[limit] = len(list(sample_sources(open_sources([entry], {}, None, 1))))
    assert counts == {3: 3, 1000: 5}, "LLaMA-Factory never repeats rows to reach max_samples"
    words = ["--do_train", "--train_file=data/a.json", "--model_name_or_path=m", "--pre_seq_len=2"]
    (entry,) = translate_command([*words, "--max_train_samples=2"]).get_value("data.train")
    assert (entry["path"], entry["num_samples"]) == ("data/a.json", 2)


def test_stage_pt_trains_on_plain_text(write_file):
    write_file("data/a.json", json.dumps([{"text": "桥下的水。"}, {"text": "山上的云。"}]))
    write_file("data/dataset_info.json", json.dumps({"wiki": {"file_name": "a.json", "columns": {"prompt": "text"}}}))
    write_file("a.yaml", yaml.safe_dump({**FACTORY, "stage": "pt", "dataset": "wiki"}))
    translation = translate_command(["a.yaml"])
    run = ours.build_dataclass(ours.RunConfig, translation.tree, "test")
    assert run.data.packing
    rows = list(sample_sources(open_sources(run.data.train, {}, None, 1)))
    assert [row.text for row in rows] == ["桥下的水。", "山上的云。"]


def test_new_tokens_are_those_of_all_three_keys(write_file):
    keys = {"new_special_tokens": "<A>, <B>", "add_tokens": ["面料", "<B>"], "resize_vocab": True}
    write_file("a.yaml", yaml.safe_dump({**FACTORY, **keys}, allow_unicode=True))
    translation = translate_command(["a.yaml"])
    assert translation.get_value("data.new_tokens") == ["面料", "<B>", "<A>"]
    assert any("resize_vocab: embedding and head grow" in note for note in translation.notes)


def test_a_deepspeed_file_beside_the_config_is_found(write_file):
    write_file("configs/ds.json", "{}")
    write_file("configs/a.yaml", yaml.safe_dump({**FACTORY, "deepspeed": "ds.json"}))
    assert translate_command(["configs/a.yaml"]).get_value("training.deepspeed") == "configs/ds.json"
    demo = {"data_config": {"train_file": "t"}, "max_input_length": 8, "max_output_length": 8, "training_args": {}}
    write_file("configs/sft.yaml", yaml.safe_dump(demo))
    words = ["python", "finetune_hf.py", "d", "m", "configs/sft.yaml", "--deepspeed", "ds.json"]
    assert translate_command(words).get_value("training.deepspeed") == "configs/ds.json"


def test_exported_and_spaced_variables_are_kept(write_file):
    line = "python main.py --do_train --train_file a --model_name_or_path m --pre_seq_len 2 --output_dir o\n"
    notes = translate_command([write_file("a.sh", f"export CUDA_VISIBLE_DEVICES=3 MINE=1\n{line}")]).notes
    assert any("CUDA_VISIBLE_DEVICES=3" in note for note in notes)
    assert not any("MINE" in note for note in notes)
    (command,) = plan_commands([write_file("b.sh", f"CUDA_VISIBLE_DEVICES = 2 {line}")])
    assert command.text == "CUDA_VISIBLE_DEVICES=2 glmtune train b.sh"


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("python api.py --model_path m", "glmtune serve m"),
        ("MODEL_PATH=m python api_server.py", "glmtune serve m"),
        ("python openai_api.py --lora_path a --base_model m --port 9000", "glmtune serve a --base m --port 9000"),
        (
            "API_PORT=9000 API_KEY=k llamafactory-cli api --model_name_or_path m --adapter_name_or_path a --top_p 0.5",
            "GLMTUNE_API_KEY=k glmtune serve a --base m --port 9000 --name gpt-3.5-turbo --temperature 0.95 "
            "--top-p 0.5",
        ),
    ],
)
def test_scripts_that_serve_an_api_are_served(write_file, typed, command):
    (planned,) = plan_commands([write_file("serve.sh", typed)])
    assert planned.text == command
    assert any("--host 0.0.0.0" in note for note in planned.notes)


def test_notes_about_commands_have_what_was_typed(write_file):
    line = "deepspeed --num_gpus=4 main.py --do_train --do_eval --train_file a --validation_file 'd e.json'"
    line += " --model_name_or_path m --pre_seq_len 2 --output_dir o"
    notes = "\n".join(translate_command([write_file("a.sh", line)]).notes)
    assert "glmtune eval o --data 'd e.json'" in notes
    assert "glmtune train a.sh --nproc 4" in notes
    assert " RUN" not in notes


def test_a_script_of_several_commands_is_run_in_order(write_file):
    line = "python main.py --do_train {} --train_file a --test_file b --model_name_or_path m --pre_seq_len 2"
    text = f"{line.format('--do_predict')} --output_dir o1\n{line.format('')} --output_dir o2\n"
    text += (
        "python api.py --model_path m\npython merge_lora_and_quantize.py --lora_path o2 --output_path o3 --qbits 0\n"
    )
    commands = plan_commands([write_file("a.sh", text)])
    assert [command.words[0] for command in commands] == ["train", "eval", "train", "serve", "export"]
    assert commands[1].words[:4] == ["eval", "o1", "--data", "b"]
    assert commands[2].words[-2:] == ["--output_dir", "o2"]
    assert translate_command(commands[2].words[1:]).get_value("output") == "o2"
    with pytest.raises(ConfigError, match="several trainings") as caught:
        translate_command(["a.sh"])
    assert "glmtune run a.sh" in caught.value.hint


def test_run_does_what_the_script_did(write_file, tiny, adgen_file, glmtune_command, tmp_path):
    adgen_file(6, "t.json")
    base = shlex.quote(str(tiny("chatglm2")))
    columns = "--prompt_column content --response_column summary --max_source_length 120 --max_target_length 120"
    write_file(
        "all.sh",
        f"python3 finetune.py --train_format input-output --train_file t.json --model_name_or_path {base} "
        "--lora_rank 2 --output_dir out --max_steps 1 --per_device_train_batch_size 1\n"
        "python3 merge_lora_and_quantize.py --lora_path out --output_path merged --qbits 0\n"
        f"python3 main.py --do_predict --test_file t.json --model_name_or_path merged --output_dir scores {columns} "
        "--generation_max_length 2 --max_predict_samples 2\n",
    )
    dry = glmtune_command("run", "all.sh", "--dry-run")
    assert dry.code == 0, dry.err
    assert [line.split()[1] for line in dry.out.splitlines()] == ["train", "export", "eval"]
    assert not (tmp_path / "out").exists()
    result = glmtune_command("run", "all.sh")
    assert result.code == 0, result.err
    assert "Running: glmtune export out merged --format official --bits 16" in result.err
    assert "quantization_bit" not in {
        k for k, v in json.loads((tmp_path / "merged/config.json").read_text()).items() if v
    }
    assert len((tmp_path / "scores/predictions.jsonl").read_text("utf-8").splitlines()) == 2
    answer = glmtune_command(
        "run", "python", "inference.py", "--model", "merged", "--prompt", "你好", "--max_length", "2"
    )
    assert answer.code == 0, answer.err


def test_a_failed_command_ends_the_script(write_file, glmtune_command):
    write_file("a.sh", "python inference_hf.py missing --prompt hi\npython inference_hf.py gone --prompt hi\n")
    result = glmtune_command("run", "a.sh")
    assert result.code == 1
    assert "missing" in result.err
    assert "gone" not in result.err


def test_the_written_config_lists_the_defaults(write_file):
    text = dump_translation(translate_command([write_file("a.yaml", yaml.safe_dump(FACTORY))]))
    assert "lora_alpha, taken as 16" in text
    assert yaml.safe_load(text)["lora"]["alpha"] == 16


def test_the_documented_scripts_are_those_of_the_code():
    text = (REPOSITORY / "docs" / "migrate.md").read_text("utf-8")
    rows = [f"| `{name}` | {script.purpose} | {script.command} |" for name, script in OTHER_SCRIPTS.items()]
    assert "\n".join(rows) in text
