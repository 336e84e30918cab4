"""A guide to QLoRA for ChatGLM-6B and ChatGLM2-6B: train, chat with the adapter, merge and quantise, measure speed."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch
from safetensors import safe_open

from tiny import make_tiny

RUN = "saved_files/chatGLM_6B_QLoRA_t32"
TRAIN = """\
python3 train_qlora.py \\
--train_args_json chatGLM_6B_QLoRA.json \\
--train_data_path dataset/train.json \\
--eval_data_path dataset/test.json\\
--lora_rank 8 \\
--lora_dropout 0.05 \\
--compute_dtype fp32
"""
TRAINING_ARGUMENTS = """\
{
    "output_dir": "saved_files/chatGLM_6B_QLoRA_t32",
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
    "fp16": false,
    "remove_unused_columns": false,
    "ddp_find_unused_parameters": false,
    "seed": 42
}
"""
MERGE = """\
python3 merge_lora_and_quantize.py \\
--lora_path saved_files/chatGLM_6B_QLoRA_t32 \\
--output_path {} \\
--remote_scripts_dir remote_scripts/chatglm-6b \\
--qbits {}
"""
CHAT_WITH_ADAPTER = """\
import torch
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig
from peft import PeftModel, PeftConfig


peft_model_path = 'saved_files/chatGLM_6B_QLoRA_t32'

config = PeftConfig.from_pretrained(peft_model_path)
q_config = BitsAndBytesConfig(load_in_4bit=True,
                              bnb_4bit_quant_type='nf4',
                              bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.float32)

base_model = AutoModel.from_pretrained(config.base_model_name_or_path,
                                       quantization_config=q_config,
                                       trust_remote_code=True,
                                       device_map='auto')

input_text = '类型#裙*版型#显瘦*风格#文艺*图案#印花*裙领型#圆领'
print(f'输入：\\n{input_text}')
tokenizer = AutoTokenizer.from_pretrained(config.base_model_name_or_path, trust_remote_code=True)

response, history = base_model.chat(tokenizer=tokenizer, query=input_text)
print(f'微调前：\\n{response}')
first = history

model = PeftModel.from_pretrained(base_model, peft_model_path)
response, history = model.chat(tokenizer=tokenizer, query=input_text)
print(f'微调后: \\n{response}')
"""
CHAT_WITH_MERGED = """\
from transformers import AutoModel, AutoTokenizer

model_path = 'merged-4'

tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=True)
model = AutoModel.from_pretrained(model_path, trust_remote_code=True).half().cuda()

input_text = '类型#裙*版型#显瘦*风格#文艺*图案#印花*裙领型#圆领'
response, history = model.chat(tokenizer=tokenizer, query=input_text)
print(response)
"""
QUESTION = "类型#裙*版型#显瘦*风格#文艺*图案#印花*裙领型#圆领"


def paste(text: str) -> list[str]:
    """The words that a shell makes of a line with continuations."""
    return shlex.split(text.replace("\\\n", ""))


def execute(script: str) -> dict:
    """Run a snippet; replies of untrained models end at their longest length only, so it is given."""
    names: dict = {}
    exec(re.sub(r"(\.chat\([^)\n]*)\)", r"\1, do_sample=False, max_new_tokens=8)", script), names)
    return names


@pytest.fixture
def project(tmp_path, adgen_file, monkeypatch):
    """The folders of the guide: the model under its hub id, `dataset/`, and the JSON file of training arguments."""
    # bitsandbytes on a CPU needs widths that are multiples of 64.
    make_tiny("chatglm", tmp_path / "THUDM" / "chatglm-6b", hidden=64)
    (tmp_path / "dataset").mkdir()
    for name, count in (("train", 12), ("test", 3)):
        rows = map(json.loads, adgen_file(count, "rows.json").read_text("utf-8").splitlines())
        lines = [json.dumps({"instruction": row["content"], "output": row["summary"]}) for row in rows]
        (tmp_path / "dataset" / f"{name}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "chatGLM_6B_QLoRA.json").write_text(TRAINING_ARGUMENTS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *_: self)
    return tmp_path


def test_train_chat_and_merge(project, glmtune_command, capsys):
    pytest.importorskip("bitsandbytes")
    result = glmtune_command("train", *paste(TRAIN))
    assert result.code == 0, result.err
    assert "a space is missing before a backslash" in result.err + result.out
    summary = json.loads((project / RUN / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 1
    assert summary["eval_loss"] is not None
    (checkpoint,) = (project / RUN / "checkpoints").iterdir()
    written = {path.name for path in checkpoint.iterdir()}
    assert written >= {"adapter_config.json", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
    assert list((project / RUN / "runs").glob("events.out.tfevents.*")), "for tensorboard --logdir runs"

    names = execute(CHAT_WITH_ADAPTER)
    assert (names["config"].r, names["config"].lora_dropout) == (8, 0.05)
    assert names["base_model"].config.quantization_config.bnb_4bit_quant_type == "nf4"
    assert names["response"]
    assert names["history"] == [(QUESTION, names["response"])]
    assert len(names["first"]) == 1

    for bits in (4, 0):
        result = glmtune_command("run", *paste(MERGE.format(f"merged-{bits}", bits)))
        assert result.code == 0, result.err
        folder = project / f"merged-{bits}"
        assert (folder / "ice_text.model").is_file()
        config = json.loads((folder / "config.json").read_text("utf-8"))
        assert config.get("quantization_bit", 0) == bits
        with safe_open(folder / "model.safetensors", "pt") as weights:
            weight = weights.get_tensor("transformer.layers.0.mlp.dense_h_to_4h.weight")
        assert (weight.dtype is torch.int8) is (bits == 4)
    names = execute(CHAT_WITH_MERGED)
    assert names["history"] == [(QUESTION, names["response"])]

    # The unquantised folder, loaded in 4 bits as the training script loads its base.
    loading = CHAT_WITH_ADAPTER.split("model = PeftModel")[0].replace("config.base_model_name_or_path", "'merged-0'")
    names = execute(loading)
    assert names["response"]

    # Questions outside of the data, before and after.
    for target in ("THUDM/chatglm-6b", "merged-0", RUN):
        answer = glmtune_command("chat", target, "--prompt", "下雨天骑车要注意什么？", "--max-new-tokens", "8")
        assert answer.code == 0, answer.err
        assert answer.out.strip()
    speed = glmtune_command("run", "--dry-run", "python3", "inference_test.py", "--model_path", "merged-4")
    assert speed.out.split()[:3] == ["glmtune", "bench", "merged-4"]


def test_the_rows_are_checked_and_shown(project, glmtune_command):
    result = glmtune_command("data", "check", "dataset/train.json")
    assert result.code == 0, result.err
    assert "No problems in 12 rows." in result.out
    result = glmtune_command("data", "preview", "dataset/train.json", "--model", "THUDM/chatglm-6b")
    assert result.code == 0, result.err
    assert "[gMASK]<sop>⟦" in result.out
    assert "<eop>⟧" in result.out


@pytest.mark.parametrize("bits", [4, 8, 0])
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_every_merge_line(family, bits, glmtune_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = MERGE.format("/tmp/out", bits).replace("chatglm-6b", f"{family}-6b").replace("chatGLM", family)
    result = glmtune_command("run", "--dry-run", *paste(line))
    run = f"saved_files/{family}_6B_QLoRA_t32"
    assert result.out.strip() == f"glmtune export {run} /tmp/out --format official --bits {bits or 16}"
    (tmp_path / "saved_files").mkdir()  # else its name may be a hub id
    result = glmtune_command("run", *paste(line))
    assert result.code == 1
    assert f"Error: {run}: no such folder." in result.err


def test_the_second_generation_is_a_flag(project, glmtune_command):
    result = glmtune_command("migrate", "--", *paste(TRAIN), "--model_name_or_path", "THUDM/chatglm2-6b")
    assert result.code == 0, result.err
    assert "path: THUDM/chatglm2-6b" in result.out
    assert "quantization: nf4" in result.out
    for dtype in ("bf16", "fp16"):
        line = TRAIN.replace("--compute_dtype fp32", f"--compute_dtype {dtype}")
        assert f"precision: {dtype}" in glmtune_command("migrate", "--", *paste(line)).out
