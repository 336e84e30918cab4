"""A guide to LoRA for ChatGLM-6B: encode rows, finetune.py, infer.py."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml

from tiny import make_tiny

TRAIN = (
    "python finetune.py --save_total_limit 2  --dataset_path data/alpaca --lora_rank 8 "
    "--per_device_train_batch_size 1  --gradient_accumulation_steps 1 --max_steps 3 --save_steps 1 "
    "--learning_rate 2e-5 --logging_steps 1 --output_dir output"
)
ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"},
    {"instruction": "什么是债券？", "input": "", "output": "债务凭证。"},
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The guide's folders: rows in `data/`, the model under its hub id."""
    make_tiny("chatglm", tmp_path / "THUDM" / "chatglm-6b", hidden=64)  # bitsandbytes needs multiples of 64
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "alpaca_data.json").write_text(json.dumps(ALPACA), encoding="utf-8")
    lines = [json.dumps({"text": f"### {row['instruction']}\n{row['output']}\nEND"}) for row in ALPACA]
    (tmp_path / "data" / "alpaca_data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: "/exit")
    return tmp_path


def test_encode_train_and_answer(project, glmtune_command):
    pytest.importorskip("bitsandbytes")
    line = "python tokenize_dataset_rows.py --jsonl_path data/alpaca_data.jsonl --save_path data/alpaca"
    result = glmtune_command("run", *shlex.split(f"{line} --max_seq_length 200"))
    assert result.code == 0, result.err
    assert any((project / "data" / "alpaca").iterdir())

    result = glmtune_command("train", *shlex.split(TRAIN))
    assert result.code == 1
    assert "was encoded with max_length=200" in result.err
    assert "Give the same: --set data.max_length=200" in result.err
    result = glmtune_command("train", *shlex.split(TRAIN), "--set", "data.max_length=200")
    assert result.code == 0, result.err
    summary = json.loads((project / "output" / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 3
    checkpoints = sorted(path.name for path in (project / "output" / "checkpoints").iterdir())
    assert checkpoints == ["checkpoint-2", "checkpoint-3"], "save_total_limit 2"
    config = json.loads((project / "output" / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (8, 32)

    # infer.py with its default, chatglm-lora.pt in the output folder, and with the folder.
    replies = []
    for words in ("python infer.py", "python infer.py --peft_path output"):
        planned = glmtune_command("run", "--dry-run", *words.split())
        command = [*shlex.split(planned.out)[1:], "--prompt", "什么是债券？", "--max-new-tokens", "6"]
        answer = glmtune_command(*command)
        assert answer.code == 0, answer.err
        replies.append(answer.out)
    assert replies[0] == replies[1]
    assert replies[0].strip()
    result = glmtune_command("run", *shlex.split("python infer.py --peft_path output --max_length 8 --temperature 0.5"))
    assert result.code == 0, result.err
    assert "glmtune chat output --max-new-tokens 8 --temperature 0.5" in result.err


def test_what_the_line_means(project, glmtune_command):
    result = glmtune_command("migrate", "--", *shlex.split(f"{TRAIN} --lora_alpha 16 --lora_dropout 0.2 --fp16"))
    assert result.code == 0, result.err
    run = yaml.safe_load(result.out)
    assert (run["model"]["path"], run["model"]["quantization"]) == ("THUDM/chatglm-6b", "int8")
    assert run["data"]["train"] == "data/alpaca"
    assert (run["lora"]["alpha"], run["lora"]["dropout"]) == (16, 0.2)
    assert float(run["training"]["learning_rate"]) == 2e-5


def test_the_rows(project, glmtune_command):
    for name in ("alpaca_data.jsonl", "alpaca_data.json"):
        result = glmtune_command("data", "check", f"data/{name}")
        assert result.code == 0, result.err
        assert "No problems in 3 rows." in result.out
    options = ["--model", "THUDM/chatglm-6b", "--row", "2"]
    result = glmtune_command("data", "preview", "data/alpaca_data.json", *options)
    assert "Add the numbers.↵\n2 and 3[gMASK]<sop>⟦" in result.out
    result = glmtune_command("data", "preview", "data/alpaca_data.jsonl", *options)
    assert "⟦### Add the numbers.↵\n5↵\nEND" in result.out.replace("⟦ ", "⟦")


def test_a_result_that_is_not_there(project, glmtune_command):
    result = glmtune_command("run", "python", "infer.py")
    assert result.code == 1
    assert "Error: output/chatglm-lora.pt: no such file or folder." in result.err
