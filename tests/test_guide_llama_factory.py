"""A guide to LLaMA-Factory for ChatGLM3-6B: its web page, LoRA with its default values, data sets of one's own."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

import glmtune

RUN = "saves/ChatGLM3-6B-Chat/lora/train_2024-05-23-19-56-12"
# What the page of LLaMA-Factory shows as its command, with its default values.
PREVIEW = f"""\
llamafactory-cli train \\
    --stage sft \\
    --do_train True \\
    --model_name_or_path models/chatglm3-6b \\
    --preprocessing_num_workers 16 \\
    --finetuning_type lora \\
    --template chatglm3 \\
    --flash_attn auto \\
    --dataset_dir data \\
    --dataset alpaca_zh_demo,自己的数据 \\
    --cutoff_len 1024 \\
    --learning_rate 5e-05 \\
    --num_train_epochs 3.0 \\
    --max_samples 100000 \\
    --per_device_train_batch_size 2 \\
    --gradient_accumulation_steps 8 \\
    --lr_scheduler_type cosine \\
    --max_grad_norm 1.0 \\
    --logging_steps 5 \\
    --save_steps 100 \\
    --warmup_steps 0 \\
    --optim adamw_torch \\
    --packing False \\
    --report_to none \\
    --output_dir {RUN} \\
    --fp16 True \\
    --plot_loss True \\
    --ddp_timeout 180000000 \\
    --include_num_input_tokens_seen True \\
    --lora_rank 8 \\
    --lora_alpha 16 \\
    --lora_dropout 0 \\
    --lora_target all
"""
DEMO_ROWS = [
    {"instruction": "写一句诗", "input": "关于春天", "output": "春风吹过山冈。"},
    {"instruction": "你是谁", "input": "", "output": "我是小助手。"},
]
OWN_ROWS = [{"instruction": "提问", "input": "", "output": "回答"}]
INFO = {"alpaca_zh_demo": {"file_name": "alpaca_zh_demo.json"}, "自己的数据": {"file_name": "own.json"}}


def paste(text: str) -> list[str]:
    """The words that a shell makes of a line with continuations."""
    return shlex.split(text.replace("\\\n", ""))


@pytest.fixture
def project(tmp_path, tiny, monkeypatch):
    """The folder of LLaMA-Factory with its `data/`, and the model in `models/`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "src").mkdir()
    shutil.copytree(tiny("chatglm3"), tmp_path / "models" / "chatglm3-6b")
    for name, content in (("alpaca_zh_demo.json", DEMO_ROWS), ("own.json", OWN_ROWS), ("dataset_info.json", INFO)):
        (tmp_path / "data" / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("script", ["src/webui.py", "src/train_web.py"])
def test_the_line_that_starts_the_page(script, glmtune_command):
    words = shlex.split(f"CUDA_VISIBLE_DEVICES=0 USE_MODELSCOPE_HUB=1 python {script}")
    result = glmtune_command("run", "--dry-run", *words)
    assert result.out.strip() == "CUDA_VISIBLE_DEVICES=0 glmtune ui"
    assert "choose ModelScope on the page" in result.err


def test_the_page_in_chinese_with_the_model(project):
    pytest.importorskip("fastapi")
    from page_client import PageClient

    from glmtune.webui.app import make_context

    page = PageClient(make_context([project], "zh"))
    fields = {"model.path": "models/chatglm3-6b", "data.train": "data/own.json"}
    assert "ChatGLM3-6B" in page.post("/model/describe", fields).text
    check = page.post("/data/check", fields).text
    while (poll := re.search(r'hx-get="(/data/check/[^"]+)"', check)) is not None:
        check = page.get(poll.group(1)).text
    assert "没有发现问题" in check


def test_train_with_the_default_values_and_chat(project, glmtune_command):
    result = glmtune_command("train", *paste(PREVIEW))
    assert result.code == 0, result.err
    summary = json.loads((project / RUN / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 3  # epochs of one step
    assert (project / RUN / "loss.png").is_file()
    config = json.loads((project / RUN / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert len(config["target_modules"]) > 3, "lora_target all"

    # With the adapter and without.
    for target in (RUN, "models/chatglm3-6b"):
        answer = glmtune_command("chat", target, "--prompt", "你是谁", "--max-new-tokens", "8")
        assert answer.code == 0, answer.err
        assert answer.out.strip()
    tuned = glmtune.load_model(RUN)
    assert any(parameter.abs().max() > 0 for name, parameter in tuned.named_parameters() if "lora_B" in name)


def test_own_data_sets_by_name(project, glmtune_command):
    for name, count in (("data:自己的数据", 1), ("data:alpaca_zh_demo", 2)):
        result = glmtune_command("data", "check", name)
        assert result.code == 0, result.err
        assert f"No problems in {count} row" in result.out
    result = glmtune_command("data", "preview", "data:自己的数据", "--model", "models/chatglm3-6b")
    assert "<|user|> ↵\n 提问<|assistant|>⟦ ↵\n 回答</s>⟧" in result.out


def test_a_folder_without_the_list_of_data_sets(project, glmtune_command, monkeypatch):
    monkeypatch.chdir(project / "src")
    result = glmtune_command("train", *paste(PREVIEW.replace("models/", "../models/")))
    assert result.code == 1
    assert "dataset_info.json" in result.err
    monkeypatch.chdir(project)
    result = glmtune_command("train", *paste(PREVIEW.replace("alpaca_zh_demo,", "alpaca_zh,")))
    assert result.code == 1
    assert "data/dataset_info.json: no entry 'alpaca_zh'.\nDid you mean alpaca_zh_demo?" in result.err
