"""A guide to ChatGLM3's finetune_demo: its data formats, lora.yaml, inference_hf.py, the tuned model in other code."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

LORA_YAML = """\
data_config:
  train_file: train.json
  val_file: dev.json
  test_file: dev.json
  num_proc: 16
max_input_length: 256
max_output_length: 512
training_args:
  # see `transformers.Seq2SeqTrainingArguments`
  output_dir: ./output
  max_steps: 2
  # needed to be fit for the dataset
  learning_rate: 5e-5
  # settings for data loading
  per_device_train_batch_size: 4
  dataloader_num_workers: 0
  remove_unused_columns: false
  # settings for saving checkpoints
  save_strategy: steps
  save_steps: 1
  # settings for logging
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  # settings for evaluation
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 500
  predict_with_generate: true
  generation_config:
    max_new_tokens: 512
  # set your absolute deepspeed path here
  #deepspeed: ds_zero_2.json
  use_cpu: false
"""
PEFT_SECTIONS = {
    "lora": "peft_config:\n  peft_type: LORA\n  task_type: CAUSAL_LM\n  r: 8\n  lora_alpha: 32\n  lora_dropout: 0.1\n",
    "ptuning": "peft_config:\n  peft_type: PREFIX_TUNING\n  task_type: CAUSAL_LM\n  num_virtual_tokens: 128\n",
    "sft": "",
}
ON_ONE = "python finetune_hf.py  data/AdvertiseGen/  THUDM/chatglm3-6b  configs/lora.yaml"
ON_EIGHT = (
    "OMP_NUM_THREADS=1 torchrun --standalone --nnodes=1 --nproc_per_node=8  finetune_hf.py  data/AdvertiseGen/  "
    "THUDM/chatglm3-6b  configs/lora.yaml  --deepspeed ds_zero_2.json"
)
LOADING = """\
from pathlib import Path
from typing import Any, Union
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

ModelType = TokenizerType = Any


def _resolve_path(path):
    return Path(path).expanduser().resolve()


def load_model_and_tokenizer(
        model_dir: Union[str, Path]
) -> tuple[ModelType, TokenizerType]:
    model_dir = _resolve_path(model_dir)
    if (model_dir / 'adapter_config.json').exists():
        model = AutoPeftModelForCausalLM.from_pretrained(
            model_dir, 
            trust_remote_code=True, 
            device_map='auto'
        )
        tokenizer_dir = model.peft_config['default'].base_model_name_or_path
    else:
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, 
            trust_remote_code=True, 
            device_map='auto'
        )
        tokenizer_dir = model_dir
    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_dir, 
        trust_remote_code=True
    )
    return model, tokenizer
"""  # noqa: W291

CONVERSATION = [
    {
        "conversations": [
            {"role": "system", "content": "你是店员"},
            {"role": "user", "content": "有裙子吗"},
            {"role": "assistant", "content": "有长裙"},
            {"role": "user", "content": "什么颜色"},
            {"role": "assistant", "content": "白色"},
        ]
    }
]
WITH_TOOLS = [
    {
        "tools": [{"name": "stock", "description": "库存", "parameters": {"item": {"type": "string"}}}],
        "conversations": [
            {"role": "user", "content": "还有几条裙子"},
            {"role": "assistant", "content": "查一下"},
            {"role": "tool", "name": "stock", "parameters": {"item": "裙"}, "observation": {"count": 3}},
            {"role": "assistant", "content": "三条", "loss": False},
            {"role": "user", "content": "谢谢"},
            {"role": "assistant", "content": "不用谢"},
        ],
    }
]


@pytest.fixture
def project(tmp_path, tiny, adgen_file, monkeypatch):
    """finetune_demo/ with its data and configs, and the model under its hub id."""
    (tmp_path / "data" / "AdvertiseGen").mkdir(parents=True)
    (tmp_path / "configs").mkdir()
    adgen_file(12, "data/AdvertiseGen/train.json")
    adgen_file(3, "data/AdvertiseGen/dev.json", seed=2)
    shutil.copytree(tiny("chatglm3"), tmp_path / "THUDM" / "chatglm3-6b")
    for name, section in PEFT_SECTIONS.items():
        (tmp_path / "configs" / f"{name}.yaml").write_text(LORA_YAML + section, encoding="utf-8")
    (tmp_path / "ds_zero_2.json").write_text('{"zero_optimization": {"stage": 2}}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the line sets it; restored after the test
    return tmp_path


def load_as_the_demo(folder: str) -> tuple[Any, Any]:
    names: dict = {}
    exec(LOADING, names)
    return names["load_model_and_tokenizer"](folder)


def test_train_and_use_the_model_everywhere(project, glmtune_command):
    result = glmtune_command("run", *shlex.split(ON_ONE))
    assert result.code == 0, result.err
    summary = json.loads((project / "output" / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 2
    assert summary["eval_loss"] is not None

    # inference_hf.py, with the folder that it was given before and with those of the run.
    options = ["--max-new-tokens", "6"]
    replies = set()
    for folder in ("output", "output/checkpoint-2", "output/checkpoints/checkpoint-2", "output/adapter"):
        planned = glmtune_command("run", "--dry-run", "python", "inference_hf.py", folder, "--prompt", "白色上衣")
        words = shlex.split(planned.out)
        assert words == ["glmtune", "chat", folder, "--prompt", "白色上衣"]
        answer = glmtune_command(*words[1:], *options)
        assert answer.code == 0, answer.err
        replies.add(answer.out)
    assert len(replies) == 1
    missing = glmtune_command("chat", "output/checkpoint-3000", "--prompt", "白色上衣")
    assert missing.code == 1
    assert "the run has no checkpoint-3000.\nThose there: " in missing.err

    found = set()
    for folder in ("output", "output/checkpoint-2", "output/checkpoints/checkpoint-2", "output/adapter"):
        model, tokenizer = load_as_the_demo(folder)
        assert model.peft_config["default"].r == 8
        reply, history = model.chat(tokenizer, "白色上衣", do_sample=False, max_new_tokens=6)
        assert [message["role"] for message in history] == ["user", "assistant"]
        found.add(reply)
    assert len(found) == 1
    model, tokenizer = load_as_the_demo("THUDM/chatglm3-6b")
    assert model.chat(tokenizer, "白色上衣", max_new_tokens=2)[1][0]["content"] == "白色上衣"

    # The base is moved: the adapter's config names its new place.
    (project / "THUDM").rename(project / "moved")
    answer = glmtune_command("chat", "output/adapter", "--prompt", "白色上衣", *options)
    assert answer.code == 1
    assert "base_model_name_or_path" in answer.err
    path = project / "output" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(Path("moved/chatglm3-6b").resolve())}))
    answer = glmtune_command("chat", "output/adapter", "--prompt", "白色上衣", *options)
    assert answer.code == 0, answer.err
    assert answer.out in replies
    assert load_as_the_demo("output/adapter")[0].peft_config["default"].r == 8


def test_several_gpus_with_deepspeed(project, glmtune_command, monkeypatch):
    import torch

    for gpus in (0, 1, 2):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        result = glmtune_command("run", "--dry-run", *shlex.split(ON_EIGHT))
        assert result.code == 0, result.err
        # DeepSpeed needs a launcher for one process too.
        assert shlex.split(result.out)[-4:] == ["--deepspeed", "ds_zero_2.json", "--nproc", str(max(gpus, 1))]
        assert f"Started on 8 GPUs; this machine has {gpus}." in result.err
        plain = glmtune_command("run", "--dry-run", *shlex.split(ON_EIGHT.split("  --deepspeed")[0]))
        assert (" --nproc 2" in plain.out) == (gpus == 2)


@pytest.mark.parametrize(("name", "method"), [("lora", "lora"), ("ptuning", "ptuning"), ("sft", "full")])
def test_every_config(name, method, project, glmtune_command):
    result = glmtune_command("migrate", "--", *shlex.split(ON_ONE.replace("lora.yaml", f"{name}.yaml")))
    assert result.code == 0, result.err
    run = yaml.safe_load(result.out)
    assert run.get("method", "lora") == method
    assert run["data"]["train"] == "data/AdvertiseGen/train.json"
    assert run["data"]["max_length"] == 256 + 512 + 1
    assert run["output"] == "./output"


def preview(glmtune_command, rows, path) -> str:
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    result = glmtune_command("data", "check", path.name)
    assert "No problems in 1 row." in result.out
    result = glmtune_command("data", "preview", path.name, "--model", "THUDM/chatglm3-6b")
    assert result.code == 0, result.err
    return result.out


def test_conversations(project, glmtune_command):
    text = preview(glmtune_command, CONVERSATION, project / "chat.json")
    assert "<|system|> ↵\n 你是店员<|user|> ↵\n 有裙子吗<|assistant|>⟦ ↵\n 有长裙<|user|>⟧" in text
    assert "什么颜色<|assistant|>⟦ ↵\n 白色</s>⟧" in text
    late = [{"conversations": CONVERSATION[0]["conversations"][1:] + CONVERSATION[0]["conversations"][:1]}]
    (project / "late.json").write_text(json.dumps(late), encoding="utf-8")
    result = glmtune_command("data", "check", "late.json")
    assert "is a system message; only the first message may be one" in result.out


def test_conversations_with_tools(project, glmtune_command):
    text = preview(glmtune_command, WITH_TOOLS, project / "tools.json")
    assert '"description": "库存"' in text, "the tools are in the system message"
    assert "<|assistant|> stock↵\n ```python↵\ntool_call(item='裙')↵\n```<|observation|>⟧" in text
    assert '<|observation|>⟧ ↵\n {"count": 3}<|assistant|> ↵\n 三条<|user|>' in text, "no loss on this answer"
    assert "谢谢<|assistant|>⟦ ↵\n 不用谢</s>⟧" in text
