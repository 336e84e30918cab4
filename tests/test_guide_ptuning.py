"""A guide to P-Tuning v2 for ChatGLM-6B: train.sh, the prefix in a chat script, evaluate.sh, dialogues, all weights."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

import glmtune
from tiny import make_tiny

TRAIN_SH = """\
PRE_SEQ_LEN=4
LR=2e-2

CUDA_VISIBLE_DEVICES=0 python3 main.py \\
    --do_train \\
    --train_file ../AdvertiseGen/train.json \\
    --validation_file ../AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
    --overwrite_cache \\
    --model_name_or_path ../model/chatglm-6b \\
    --output_dir output/adgen-chatglm-6b-pt-$PRE_SEQ_LEN-$LR \\
    --overwrite_output_dir \\
    --max_source_length 64 \\
    --max_target_length 64 \\
    --per_device_train_batch_size 1 \\
    --per_device_eval_batch_size 1 \\
    --gradient_accumulation_steps 16 \\
    --predict_with_generate \\
    --max_steps 2 \\
    --logging_steps 1 \\
    --save_steps 1 \\
    --learning_rate $LR \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""
RUN = "output/adgen-chatglm-6b-pt-4-2e-2"

EVALUATE_SH = """\
PRE_SEQ_LEN=4
CHECKPOINT=adgen-chatglm-6b-pt-4-2e-2
STEP=2

CUDA_VISIBLE_DEVICES=0 python3 main.py \\
    --do_predict \\
    --validation_file ../AdvertiseGen/dev.json \\
    --test_file ../AdvertiseGen/dev.json \\
    --overwrite_cache \\
    --prompt_column content \\
    --response_column summary \\
    --model_name_or_path ../model/chatglm-6b \\
    --ptuning_checkpoint ./output/$CHECKPOINT/checkpoint-$STEP \\
    --output_dir ./output/$CHECKPOINT \\
    --overwrite_output_dir \\
    --max_source_length 64 \\
    --max_target_length 8 \\
    --per_device_eval_batch_size 1 \\
    --predict_with_generate \\
    --pre_seq_len $PRE_SEQ_LEN \\
    --quantization_bit 4
"""

CHAT_SCRIPT = """\
import os
import platform
import signal
import torch
from transformers import AutoTokenizer, AutoModel, AutoConfig

CHECKPOINT_PATH = "output/published"

tokenizer = AutoTokenizer.from_pretrained("../model/chatglm-6b", trust_remote_code=True)
config = AutoConfig.from_pretrained("../model/chatglm-6b", trust_remote_code=True, pre_seq_len=4)
model = AutoModel.from_pretrained("../model/chatglm-6b", config=config, trust_remote_code=True)
prefix_state_dict = torch.load(os.path.join(CHECKPOINT_PATH, "pytorch_model.bin"))
new_prefix_state_dict = {}
for k, v in prefix_state_dict.items():
    if k.startswith("transformer.prefix_encoder."):
        new_prefix_state_dict[k[len("transformer.prefix_encoder."):]] = v
model.transformer.prefix_encoder.load_state_dict(new_prefix_state_dict)

model = model.half().cuda()
model.transformer.prefix_encoder.float()
model = model.eval()
"""

TRAIN_CHAT_SH = """\
PRE_SEQ_LEN=128
LR=1e-2

CUDA_VISIBLE_DEVICES=0 python3 main.py \\
    --do_train \\
    --train_file $CHAT_TRAIN_DATA \\
    --validation_file $CHAT_VAL_DATA \\
    --prompt_column prompt \\
    --response_column response \\
    --history_column history \\
    --model_name_or_path THUDM/chatglm-6b \\
    --output_dir $CHECKPOINT_NAME \\
    --max_source_length 256 \\
    --max_target_length 256 \\
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
    --train_file ../AdvertiseGen/train.json \\
    --test_file ../AdvertiseGen/dev.json \\
    --prompt_column content \\
    --response_column summary \\
    --model_name_or_path ../model/chatglm-6b \\
    --output_dir ./output/adgen-chatglm-6b-ft-$LR \\
    --max_source_length 64 \\
    --max_target_length 64 \\
    --learning_rate $LR \\
    --fp16
"""

DIALOGUE = [
    {"prompt": "车灯不亮", "response": "保险丝好吗", "history": []},
    {"prompt": "好的", "response": "灯泡呢", "history": [["车灯不亮", "保险丝好吗"]]},
    {"prompt": "也好", "response": "那就是线路", "history": [["车灯不亮", "保险丝好吗"], ["好的", "灯泡呢"]]},
]


@pytest.fixture
def project(tmp_path, adgen_file, monkeypatch):
    """The folders of the guide: the model, AdvertiseGen, and ptuning/, where the commands are given."""
    make_tiny("chatglm", tmp_path / "model" / "chatglm-6b")
    (tmp_path / "AdvertiseGen").mkdir()
    (tmp_path / "ptuning").mkdir()
    adgen_file(12, "AdvertiseGen/train.json")
    adgen_file(3, "AdvertiseGen/dev.json", seed=2)
    for name, text in (
        ("train.sh", TRAIN_SH),
        ("evaluate.sh", EVALUATE_SH),
        ("train_chat.sh", TRAIN_CHAT_SH),
        ("ds_train_finetune.sh", FULL_SH),
        ("deepspeed.json", "{}"),
        ("chat.json", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in DIALOGUE)),
    ):
        (tmp_path / "ptuning" / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "ptuning")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # the scripts set it; restored after the test
    return tmp_path / "ptuning"


def test_train_chat_and_evaluate(project, glmtune_command, monkeypatch):
    result = glmtune_command("run", "bash", "train.sh")
    assert result.code == 0, result.err
    summary = json.loads((project / RUN / "summary.json").read_text("utf-8"))
    assert summary["steps"] == 2
    for step in (1, 2):
        assert (project / RUN / "checkpoints" / f"checkpoint-{step}" / "prefix_encoder.safetensors").is_file()

    # The prefix in the published layout, for the published script.
    result = glmtune_command("export", RUN, "output/published", "--format", "official", "--adapter-only")
    assert result.code == 0, result.err
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *_: self)
    names: dict = {}
    exec(CHAT_SCRIPT, names)
    prefix = names["new_prefix_state_dict"]["embedding.weight"]
    assert prefix.shape == (4, 2 * 2 * 32)  # tokens; keys and values of two layers
    question = "类型#上衣*版型#宽松"
    reply, history = names["model"].chat(names["tokenizer"], question, history=[], do_sample=False, max_new_tokens=8)
    assert reply
    assert history == [(question, reply)]
    ids = torch.tensor([names["tokenizer"](question).input_ids])
    with torch.no_grad():
        logits = names["model"](input_ids=ids).logits.float()
        wanted = glmtune.load_model("../model/chatglm-6b", adapter=RUN)(input_ids=ids).logits
        before = glmtune.load_model("../model/chatglm-6b")(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted, atol=5e-2, rtol=5e-2)  # one of them is in fp16
    assert (wanted - before).abs().max() > 0.2

    for words in (["chat", RUN], ["run", "python", "cli_demo.py", "--model_path", "../model/chatglm-6b"]):
        answer = glmtune_command(*words, "--prompt", question, "--max-new-tokens", "8")
        assert answer.code == 0, answer.err
        assert answer.out.strip()

    # Its checkpoint is named as main.py saved it.
    result = glmtune_command("run", "bash", "evaluate.sh")
    assert result.code == 0, result.err
    assert "checkpoints/checkpoint-2" in result.err
    folder = project / RUN / "eval"
    rows = (folder / "predictions.jsonl").read_text("utf-8").splitlines()
    assert len(rows) == 3
    scores = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert {"rouge_1", "rouge_2", "rouge_l", "bleu4_characters"} <= set(scores["scores"])
    assert len((folder / "generated_predictions.txt").read_text("utf-8").splitlines()) == 3
    assert "set it before" not in result.err


def test_dialogues_with_their_history(project, glmtune_command, monkeypatch):
    result = glmtune_command("migrate", "train_chat.sh")
    assert result.code == 1
    assert "$CHAT_TRAIN_DATA has no value" in result.err
    for name, value in (("TRAIN_DATA", "chat.json"), ("VAL_DATA", "chat.json")):
        monkeypatch.setenv(f"CHAT_{name}", value)
    monkeypatch.setenv("CHECKPOINT_NAME", "output/chat")
    result = glmtune_command("migrate", "train_chat.sh")
    assert result.code == 0, result.err
    run = yaml.safe_load(result.out)
    assert run["data"]["columns"] == {"prompt": "prompt", "response": "response", "history": "history"}
    assert run["output"] == "output/chat"

    result = glmtune_command("data", "check", "chat.json")
    assert result.code == 0, result.err
    assert "6 user, 6 assistant" in result.out
    result = glmtune_command("data", "preview", "chat.json", "--model", "../model/chatglm-6b", "--row", "3")
    assert "[Round 0]↵\n问:车灯不亮↵\n答:保险丝好吗↵\n[Round 1]↵\n问:好的↵\n答:灯泡呢↵\n[Round 2]" in result.out
    assert "⟦ 那就是线路<eop>⟧" in result.out


def test_all_weights_with_deepspeed(project, glmtune_command):
    result = glmtune_command("migrate", "ds_train_finetune.sh")
    assert result.code == 0, result.err
    run = yaml.safe_load(result.out)
    assert (run["method"], run["training"]["fp16"], run["training"]["deepspeed"]) == ("full", True, "deepspeed.json")
    assert "Started on 4 GPUs: glmtune train ds_train_finetune.sh --nproc 4" in result.out
    result = glmtune_command("run", "--dry-run", "bash", "ds_train_finetune.sh")
    assert result.out.split()[:2] == ["glmtune", "train"]
