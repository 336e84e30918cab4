"""Training through the command line: every generation learns, is saved, resumed and loaded again."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerState

import glmtune
from glmtune.run_dir import RunDir
from glmtune.training.callbacks import SpeedMeter
from glmtune.training.samplers import EpochSampler
from glmtune.training.trainer import GlmTrainer
from tiny import FAMILIES, make_tiny

FAST = ("training.logging_steps=1", "training.gradient_accumulation_steps=1", "lora.dropout=0")


def _settings(*settings):
    return [part for setting in (*FAST, *settings) for part in ("--set", setting)]


@pytest.fixture
def train(glmtune_command, tiny, adgen_file, tmp_path):
    """`train(family, "key=value", ..., rows=16)`: a finished run of `family` and what the command printed."""

    def run(family, *settings, output="run", rows=16, more=()):
        result = glmtune_command(
            *("train", "--model", tiny(family), "--data", adgen_file(rows), "--output", tmp_path / output),
            *more,
            *_settings(*settings),
        )
        return RunDir(tmp_path / output), result

    return run


def _losses(run, key="loss"):
    return [entry[key] for entry in run.read_metrics() if key in entry]


def _logits(model):
    return model(input_ids=torch.arange(10, 22)[None], attention_mask=torch.ones(1, 12, dtype=torch.long)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_each_generation_learns_and_its_adapter_is_plain_peft(family, train, tiny, glmtune_command):
    run, result = train(family, "training.max_steps=12", "training.learning_rate=5e-2")
    assert result.code == 0, result.err
    losses = _losses(run)
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.1

    base = glmtune.load_model(tiny(family))
    tuned = glmtune.load_model(run.root)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny(family)), run.adapter).eval()
    assert torch.equal(_logits(tuned), _logits(plain))
    assert (_logits(tuned) - _logits(base)).abs().max() > 1e-3
    assert torch.equal(_logits(glmtune.load_model(tiny(family), adapter=run.root)), _logits(tuned))

    reply = glmtune_command("chat", run.root, "--prompt", "类型#上衣", "--max-new-tokens", 8)
    assert reply.code == 0, reply.err
    again = glmtune_command("chat", run.adapter, "--prompt", "类型#上衣", "--max-new-tokens", 8)
    assert again.out == reply.out


@pytest.mark.complete_run
def test_a_run_folder_holds_what_it_promises(train, tiny):
    run, result = train("chatglm3", "training.max_steps=4", "training.eval_strategy=steps", "training.eval_steps=2")
    assert result.code == 0, result.err
    summary = json.loads(run.summary.read_text("utf-8"))
    assert summary["state"] == "finished"
    assert summary["steps"] == 4
    assert summary["model"]["family"] == "chatglm3"
    assert summary["model"]["fingerprint"] in result.out
    assert summary["samples_per_second"] > 0
    # Epochs over all rows: as many tokens as the encoded rows have, without padding.
    tokens = summary["tokens_per_second"] * summary["seconds"]
    assert tokens == pytest.approx(summary["epochs"] * summary["data"]["train"]["tokens"], rel=0.2)
    assert summary["peak_memory_bytes"] > 1e6
    assert summary["logits_changed_by"] > 0
    assert (summary["data"]["train_rows"], summary["data"]["eval_rows"]) == (15, 1)
    assert summary["eval_loss"] == _losses(run, "eval_loss")[-1]
    assert set(summary["versions"]) >= {"glmtune", "torch", "transformers", "peft"}
    first = run.read_metrics()[0]
    assert set(first) == {"step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second"}
    assert run.curve.read_bytes().startswith(b"\x89PNG")
    assert list(run.logs.glob("events.out.tfevents.*"))
    saved = glmtune.config.load_config(run.config)
    assert saved.training["max_steps"] == 4
    assert saved.data.max_target_length == 512
    assert run.last_checkpoint().name == "checkpoint-4"
    adapter = json.loads((run.adapter / "adapter_config.json").read_text("utf-8"))
    assert adapter["base_model_name_or_path"] == str(tiny("chatglm3"))
    assert adapter["target_modules"] == sorted(adapter["target_modules"]) or set(adapter["target_modules"]) == {
        "q_proj",
        "k_proj",
        "v_proj",
    }
    assert not list(run.root.rglob("*.tmp"))


def test_a_step_means_the_same_however_it_is_split(train):
    """The loss is the mean over the targets of the whole optimiser step, not a mean of micro-batch means."""
    curves = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        run, result = train(
            "chatglm2",
            "training.max_steps=3",
            f"training.per_device_train_batch_size={batch}",
            f"training.gradient_accumulation_steps={accumulation}",
            "training.train_sampling_strategy=sequential",
            "training.learning_rate=1e-2",
            "data.packing=false",
            output=f"run-{batch}",
        )
        assert result.code == 0, result.err
        curves.append(_losses(run))
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0] == pytest.approx(curves[2], abs=1e-5)


def test_the_evaluation_loss_does_not_depend_on_batches(train, adgen_file):
    held = adgen_file(7, "dev.json", seed=9)
    losses = []
    for size in (1, 2, 4):
        run, result = train(
            "chatglm",
            "training.max_steps=1",
            "training.eval_on_start=true",
            f"training.per_device_eval_batch_size={size}",
            f"data.packing={str(size == 4).lower()}",
            output=f"run-{size}",
            more=("--eval-data", held),
        )
        assert result.code == 0, result.err
        losses.append(_losses(run, "eval_loss")[0])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


@pytest.mark.parametrize(("family", "packing"), [("chatglm", "false"), ("chatglm3", "false"), ("chatglm3", "true")])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(family, packing, train, glmtune_command, monkeypatch):
    """Stopped in the second epoch, so that the order of its blocks has to come back as well."""
    settings = (
        "training.max_steps=20",
        "training.save_steps=4",
        "training.eval_strategy=no",
        "training.per_device_train_batch_size=2",
        "data.max_length=200",
        f"data.packing={packing}",
        "training.learning_rate=1e-2",
        "lora.dropout=0.1",
    )
    whole, result = train(family, *settings, output="whole")
    assert result.code == 0, result.err

    original = GlmTrainer.training_step

    def stop_at_thirteenth(self, *args, **kwargs):
        if self.state.global_step == 12:
            RunDir(os.path.dirname(self.args.output_dir)).stop.touch()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GlmTrainer, "training_step", stop_at_thirteenth)
    halved, result = train(family, *settings, output="halved")
    assert result.code == 130
    assert "Stopped at step 13" in result.out
    assert f"glmtune train --resume --output {halved.root}" in result.out
    assert json.loads(halved.summary.read_text("utf-8"))["state"] == "stopped"
    assert not halved.adapter.exists()
    refused = glmtune_command("chat", halved.root, "--prompt", "x")
    assert refused.code == 1
    assert "checkpoint-13" in refused.err

    monkeypatch.setattr(GlmTrainer, "training_step", original)
    result = glmtune_command("train", "--resume", "--output", halved.root)
    assert result.code == 0, result.err
    assert whole.read_metrics()[12]["epoch"] > 1
    assert _losses(halved) == _losses(whole)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (halved, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _start(*arguments):
    command = [sys.executable, "-m", "glmtune.cli.main", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _wait_for(run, step, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if any(entry["step"] >= step for entry in run.read_metrics()):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} did not come")


def test_ctrl_c_saves_and_says_how_to_go_on(tiny, adgen_file, tmp_path):
    run = RunDir(tmp_path / "run")
    process = _start(
        *("train", "--model", tiny("chatglm3"), "--data", adgen_file(), "--output", run.root),
        *_settings("training.max_steps=100000"),
    )
    _wait_for(run, 3)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"Stopped at step \d+; the checkpoint is saved", printed.replace("\n", " "))
    assert "--resume" in printed
    assert "Traceback" not in printed
    assert run.last_checkpoint() is not None


def test_a_full_disk_leaves_the_last_good_checkpoint(train, glmtune_command, monkeypatch):
    original = GlmTrainer._save_optimizer_and_scheduler

    def fill(self, folder):
        if self.state.global_step == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder)

    monkeypatch.setattr(GlmTrainer, "_save_optimizer_and_scheduler", fill)
    run, result = train("chatglm3", "training.max_steps=6", "training.save_strategy=steps", "training.save_steps=2")
    assert result.code == 1
    assert "no space left to save checkpoint-4" in result.err
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    monkeypatch.setattr(GlmTrainer, "_save_optimizer_and_scheduler", original)
    result = glmtune_command("train", "--resume", "--output", run.root)
    assert result.code == 0, result.err
    assert [entry["step"] for entry in run.read_metrics() if "loss" in entry] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_not_finite_stops_with_the_row(train, monkeypatch):
    from glmtune.training import objective

    original = objective.step_loss

    def broken(model, batch, **settings):
        losses = original(model, batch, **settings)
        return losses * torch.tensor([float("nan")] + [1.0] * (len(losses) - 1))

    monkeypatch.setattr(objective, "step_loss", broken)
    run, result = train("chatglm3", "data.packing=false")
    assert result.code == 1
    assert "The loss became nan at step 1" in result.err
    assert re.search(r"train\.json:\d+\)", result.err)
    assert len(result.err.strip().splitlines()) == 2
    assert not run.adapter.exists()


def test_an_adapter_without_effect_is_an_error(train):
    _, result = train("chatglm3", "training.max_steps=1", "training.learning_rate=0")
    assert result.code == 1
    assert "does not change the model's output at all" in result.err


def test_sixteen_bit_adapters_are_small_and_checkpoints_stay_fp32(train):
    run, result = train("chatglm2", "training.max_steps=2", "model.precision=bf16")
    assert result.code == 0, result.err
    final = load_file(run.adapter / "adapter_model.safetensors")
    kept = load_file(run.last_checkpoint() / "adapter_model.safetensors")
    assert {value.dtype for value in final.values()} == {torch.bfloat16}
    assert {value.dtype for value in kept.values()} == {torch.float32}
    assert all(torch.equal(final[name], kept[name].bfloat16()) for name in kept)


def test_the_6b_shape_has_an_adapter_of_seven_megabytes():
    from glmtune.config import LoraConfig
    from glmtune.families import get_family
    from glmtune.methods.lora import Lora
    from glmtune.methods.method import count_trainable_parameters
    from glmtune.models.glm import make_glm_config

    published = {
        "padded_vocab_size": 65024,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "num_layers": 28,
        "num_attention_heads": 32,
        "kv_channels": 128,
        "multi_query_group_num": 2,
        "add_qkv_bias": True,
    }
    family = get_family("chatglm3")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_glm_config(published, family))
        model = Lora(LoraConfig(), family).prepare(model)
    # One A of 8 x 4096 for each of q, k and v, and B of 8 x (4096 + 256 + 256), in 28 layers.
    assert count_trainable_parameters(model) == 28 * 8 * (3 * 4096 + 4608) == 3_784_704
    assert 7.0e6 < 2 * count_trainable_parameters(model) < 8.0e6


def test_gradient_checkpointing_changes_nothing(train):
    curves = []
    for on in ("false", "true"):
        run, result = train(
            "chatglm", "training.max_steps=3", f"training.gradient_checkpointing={on}", output=f"run-{on}"
        )
        assert result.code == 0, result.err
        curves.append(_losses(run))
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_a_wrong_a_moved_and_a_given_base(train, tiny, glmtune_command, tmp_path):
    moved = shutil.copytree(tiny("chatglm3"), tmp_path / "base")
    other = make_tiny("chatglm3", tmp_path / "other", seed=3)
    run, result = train("chatglm3", "training.max_steps=1", more=("--model", moved))
    assert result.code == 0, result.err
    chat = ("chat", run.root, "--prompt", "x", "--max-new-tokens", 2)

    refused = glmtune_command(*chat, "--base", other)
    assert refused.code == 1
    prints = re.findall(r"fingerprint ([0-9a-f]{16})|has ([0-9a-f]{16})", refused.err)
    assert len(prints) == 2

    shutil.rmtree(moved)
    _expect(glmtune_command(*chat), "is not there any more", "--base")
    gone = glmtune_command("chat", run.adapter, "--prompt", "x")
    assert "is not there any more" in gone.err
    assert "--base" in gone.err
    assert glmtune_command(*chat, "--base", tiny("chatglm3", "bin")).code == 0

    (run.adapter / "glmtune.json").write_text("{", "utf-8")
    _expect(glmtune_command(*chat, "--base", other), "glmtune.json: broken")


def test_one_row_and_no_evaluation(train):
    run, result = train("chatglm2", "training.max_steps=2", rows=1)
    assert result.code == 0, result.err
    assert _losses(run, "eval_loss") == []
    assert run.adapter.is_dir()


# --- what a user can get wrong ---


def _expect(result, *words):
    assert result.code == 1
    assert "Traceback" not in result.err
    assert len(result.err.strip().splitlines()) <= 2, result.err
    for word in words:
        assert word in result.err


def test_wrong_keys_are_named_before_anything_is_loaded(train, tmp_path):
    run, result = train("chatglm3", "training.learning_rat=1")
    _expect(result, "unknown key training.learning_rat", "Did you mean learning_rate?")
    assert not run.root.exists()
    _, result = train("chatglm3", "lora.targets=query")
    assert not run.root.exists()
    _expect(result, "lora.targets: no module 'query'", "q_proj")
    _, result = train("chatglm3", "training.output_dir=x", output="other")
    _expect(result, "training.output_dir is not supported: use output")
    _, result = train("chatglm3", "training.optim=nonsense", output="third")
    _expect(result, "training:")
    for setting, words in (
        ("training.learning_rate=fast", "training.learning_rate must be a number, not 'fast'"),
        ("training.seed=abc", "training.seed must be a number"),
        ("training.max_steps=ten", "training.max_steps must be a number"),
        ("training.per_device_train_batch_size=0", "it must be from 1 to"),
        ("training.report_to=wandb", "wandb"),
        ("model.attention=flash_attention_2", "model.attention"),
    ):
        _, result = train("chatglm3", *setting.split(), output="fourth")
        _expect(result, words)
        if "report_to" not in setting:
            assert not (tmp_path / "fourth").exists()
        shutil.rmtree(tmp_path / "fourth", ignore_errors=True)


def test_folders_in_use_and_nothing_to_resume(train, glmtune_command, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.docx").write_text("do not lose me", "utf-8")
    _, result = train("chatglm3")
    _expect(result, "not empty", "--resume")
    assert (tmp_path / "run" / "thesis.docx").read_text("utf-8") == "do not lose me"
    _expect(glmtune_command("train", "--resume", "--output", tmp_path / "none"), "not a run folder")
    config = tmp_path / "c.yaml"
    config.write_text("model: x\ndata: y\n", "utf-8")
    _expect(glmtune_command("train", config, "--resume", "--model", tiny("chatglm3")), "not a run folder")
    _expect(glmtune_command("train", "--resume"), "--output RUN")


def test_models_and_data_that_do_not_do(glmtune_command, tiny, adgen_file, tmp_path):
    data = adgen_file()
    _expect(glmtune_command("train", "--model", tmp_path / "none", "--data", data), "no such folder")
    _expect(glmtune_command("train", "--data", data), "model.path is not set", "--model")
    _expect(glmtune_command("train", "--model", tiny("chatglm3"), "--data", tmp_path / "none.json"), "no such file")
    empty = tmp_path / "empty.json"
    empty.write_text("", "utf-8")
    _expect(glmtune_command("train", "--model", tiny("chatglm3"), "--data", empty), "empty.json: empty")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    _expect(glmtune_command("train", "--model", tmp_path / "llama", "--data", data), "not a ChatGLM")
    _expect(glmtune_command("chat", tmp_path / "none"), "no such folder")
    _expect(glmtune_command("chat", tiny("chatglm3"), "--base", tiny("chatglm3"), "--prompt", "x"), "has no adapter")


def test_limits_that_cut_every_row(train):
    _, result = train("chatglm2", "data.max_source_length=30", "data.max_target_length=5")
    _expect(result, "every one of the 16 rows is longer than the limits: 30 and 5", "data.max_length")


def test_a_broken_line_is_said_and_the_rest_trained(glmtune_command, tiny, adgen_file, tmp_path):
    data = adgen_file(6)
    lines = data.read_text("utf-8").splitlines()
    lines[2] = lines[2][:-4]
    data.write_text("\n".join(lines), "utf-8")
    result = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", data, "--output", tmp_path / "run"),
        *_settings("training.max_steps=1", "data.eval_fraction=0"),
    )
    assert result.code == 0, result.err
    assert f"{data}:3: invalid JSON" in result.out
    assert "1 invalid line skipped; 5 rows are used" in result.out
    assert "content/summary" in result.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert (summary["data"]["train_rows"], summary["data"]["lines_left_out"]) == (5, 1)


# --- real rows, published tokenizers ---


@pytest.mark.parametrize("family", ["chatglm", "chatglm2", pytest.param("chatglm3", marks=pytest.mark.complete_run)])
def test_real_rows_lower_the_evaluation_loss(family, asset, glmtune_command, tmp_path):
    """The published tokenizer, config keys and ADGEN rows; the weights are small and random."""
    from mini import make_mini

    folder = make_mini(asset("assets", f"{family}-6b"), tmp_path / family)
    rows = asset("data", "adgen", "train.json").read_text("utf-8").splitlines()[:64]
    (tmp_path / "train.json").write_text("\n".join(rows), "utf-8")
    held = asset("data", "adgen", "dev.json").read_text("utf-8").splitlines()[:8]
    (tmp_path / "dev.json").write_text("\n".join(held), "utf-8")
    run = RunDir(tmp_path / "run")
    result = glmtune_command(
        *("train", "--model", folder, "--data", tmp_path / "train.json", "--eval-data", tmp_path / "dev.json"),
        *("--output", run.root),
        *_settings(
            "training.max_steps=8",
            "training.learning_rate=2e-2",
            "training.eval_on_start=true",
            "training.eval_strategy=steps",
            "training.eval_steps=8",
            "data.max_source_length=40",
            "data.max_target_length=24",
            # A random first-generation base hardly listens to its attention; a trained one does.
            *(["lora.targets=query_key_value,dense,dense_h_to_4h,dense_4h_to_h"] if family == "chatglm" else []),
        ),
    )
    assert result.code == 0, result.err
    before, after = _losses(run, "eval_loss")
    assert after < before - 0.01
    assert glmtune_command("chat", run.root, "--prompt", "类型#裙", "--max-new-tokens", 4).code == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["alpaca_zh_demo", "glaive_toolcall_zh_demo"])
def test_published_rows_train_where_they_have_a_meaning(name, family, asset, tiny, glmtune_command, tmp_path):
    path = tmp_path / "rows.json"
    rows = json.loads(asset("data", f"{name}.json").read_text("utf-8"))[:24]
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    result = glmtune_command(
        *("train", "--model", tiny(family), "--data", path, "--output", tmp_path / "run"),
        *_settings("training.max_steps=2", "training.learning_rate=1e-2", "data.max_length=3000"),
    )
    if name.startswith("glaive") and family in ("chatglm", "chatglm2"):
        _expect(result, f"{path}:", "has no format for tools", "Use ChatGLM3-6B or GLM-4")
        return
    assert result.code == 0, result.err
    counts = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["data"]["train"]
    assert counts["conversations"] == 24
    assert counts["targets"] > 24


def test_a_prefix_is_put_in_front_in_chat_as_in_training(train, glmtune_command, monkeypatch):
    run, result = train("chatglm3", "training.max_steps=2", "data.prefix=写广告：")
    assert result.code == 0, result.err
    seen = []
    from glmtune.families.chatglm3 import ChatGLM3

    original = ChatGLM3.encode_prompt

    def record(self, messages, *arguments, **options):
        seen.append([message["content"] for message in messages])
        return original(self, messages, *arguments, **options)

    monkeypatch.setattr(ChatGLM3, "encode_prompt", record)
    assert glmtune_command("chat", run.root, "--prompt", "类型#裙", "--max-new-tokens", 2).code == 0
    assert seen
    assert all(contents == ["写广告：类型#裙"] for contents in seen)


def test_a_tokenized_folder_is_data_too(train, tiny, glmtune_command, adgen_file, tmp_path):
    folder = tmp_path / "encoded"
    saved = glmtune_command("data", "tokenize", adgen_file(), "--model", tiny("chatglm3"), "--output", folder)
    assert saved.code == 0, saved.err
    run, result = train("chatglm3", "training.max_steps=2", more=("--data", folder))
    assert result.code == 0, result.err
    assert json.loads(run.summary.read_text("utf-8"))["data"]["train"]["conversations"] == 16
    _, other = train("chatglm2", "training.max_steps=2", output="other", more=("--data", folder))
    _expect(other, "was encoded for chatglm3", "glmtune data tokenize")


@pytest.mark.parametrize("group", [None, 4])
def test_an_epochs_order_depends_on_seed_and_epoch_alone(group):
    sampler = EpochSampler(range(10, 50), seed=1, group=group)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        torch.rand(3)  # dropout, in between
        orders.append(list(sampler))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert list(EpochSampler(range(10, 50), seed=2, group=group)) != orders[0]
    assert all(sorted(order) == list(range(40)) for order in orders)


def test_stopping_saves_once_and_evaluates_no_more(train, monkeypatch):
    original, saved = GlmTrainer._save_checkpoint, []

    def stop_at_second(self, *arguments, **options):
        if self.state.global_step == 1:
            RunDir(os.path.dirname(self.args.output_dir)).stop.touch()
        return step(self, *arguments, **options)

    step = GlmTrainer.training_step
    monkeypatch.setattr(GlmTrainer, "training_step", stop_at_second)
    monkeypatch.setattr(
        GlmTrainer, "_save_checkpoint", lambda self, *a: (saved.append(self.state.global_step), original(self, *a))
    )
    run, result = train("chatglm3", "training.max_steps=9", "training.save_strategy=epoch", "data.packing=false")
    assert result.code == 130
    assert saved == [2]
    progress = json.loads(run.progress.read_text("utf-8"))
    assert progress == {"phase": "stopped", "step": 2, "max_steps": 9}
    assert _losses(run, "eval_loss") == []


def test_progress_is_written_while_it_trains(train, monkeypatch):
    entries = []
    step = GlmTrainer.training_step

    def read_progress(self, *arguments, **options):
        entries.append(json.loads(RunDir(os.path.dirname(self.args.output_dir)).progress.read_text("utf-8")))
        return step(self, *arguments, **options)

    monkeypatch.setattr(GlmTrainer, "training_step", read_progress)
    run, result = train("chatglm3", "training.max_steps=3", "data.packing=false")
    assert result.code == 0, result.err
    assert [entry["phase"] for entry in entries] == ["training"] * 3
    assert [entry["step"] for entry in entries] == [0, 1, 2]  # each step is logged
    assert {entry["max_steps"] for entry in entries} == {3}
    assert entries[0]["loss"] is None
    assert entries[2]["loss"] == pytest.approx(_losses(run)[1])
    assert entries[2]["eta_seconds"] > 0
    assert json.loads(run.progress.read_text("utf-8")) == {"phase": "finished", "step": 3, "max_steps": 3}


def test_a_finished_run_goes_on_only_with_more_steps(train, glmtune_command):
    run, result = train("chatglm3", "training.max_steps=3")
    assert result.code == 0, result.err
    again = ("train", "--resume", "--output", run.root)
    _expect(glmtune_command(*again), "finished already, at step 3", "raise training.max_steps")
    assert glmtune_command(*again, "--set", "training.max_steps=5").code == 0
    assert json.loads(run.summary.read_text("utf-8"))["steps"] == 5
    _expect(glmtune_command(*again), "finished already, at step 5")


def test_a_run_killed_before_its_adapter_was_saved_only_saves_it(train, glmtune_command):
    run, result = train("chatglm2", "training.max_steps=3")
    assert result.code == 0, result.err
    wanted = load_file(run.adapter / "adapter_model.safetensors")
    shutil.rmtree(run.adapter)
    summary = json.loads(run.summary.read_text("utf-8"))
    run.summary.write_text(json.dumps(summary | {"state": "running"}), "utf-8")
    result = glmtune_command("train", "--resume", "--output", run.root)
    assert result.code == 0, result.err
    found = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(_losses(run)) == 3


def test_what_a_resumed_run_may_not_change(train, glmtune_command, adgen_file):
    run, result = train("chatglm3", "training.max_steps=4", "training.save_steps=2")
    assert result.code == 0, result.err
    more = ("train", "--resume", "--output", run.root, "--set", "training.max_steps=6")
    _expect(glmtune_command(*more, "--set", "lora.rank=4"), "lora settings cannot change", "rank 8 to 4")
    _expect(glmtune_command(*more, "--set", "data.train_on=last"), "data settings cannot change")
    adgen_file(16, seed=99)
    _expect(glmtune_command(*more), "the data files are not what they were")


def test_a_run_is_used_from_any_directory(train, glmtune_command, tiny, adgen_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny("chatglm3"), tmp_path / "base")
    adgen_file()
    result = glmtune_command(
        *("train", "--model", "base", "--data", "train.json", "--output", "my run"), *_settings("training.max_steps=2")
    )
    assert result.code == 0, result.err
    assert "glmtune chat 'my run'" in result.out
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    reply = glmtune_command("chat", "../my run", "--prompt", "x", "--max-new-tokens", 2)
    assert reply.code == 0, reply.err
    more = glmtune_command("train", "--resume", "--output", "../my run", "--set", "training.max_steps=3")
    assert more.code == 0, more.err


def test_a_fp16_base_on_the_cpu_passes_the_proof(train):
    """Its logits move by more than 5 % of the adapter's effect when the adapter is rounded; the weights say it."""
    run, result = train("chatglm3", "training.max_steps=2", "model.precision=fp16", "training.bf16=false")
    assert result.code == 0, result.err
    assert json.loads(run.summary.read_text("utf-8"))["logits_changed_by"] > 0


def test_the_last_step_is_logged(train):
    """A run shorter than `logging_steps`, or no multiple of it, has a last loss too."""
    run, result = train("chatglm3", "training.max_steps=3", "training.logging_steps=10")
    assert result.code == 0, result.err
    assert [entry["step"] for entry in run.read_metrics() if "loss" in entry] == [1, 3]
    assert json.loads(run.summary.read_text("utf-8"))["last_loss"] == _losses(run)[-1]


def test_speed_leaves_evaluations_out(train):
    run, result = train(
        "chatglm2", "training.max_steps=12", "training.logging_steps=4", "training.eval_steps=3", "data.packing=false"
    )
    assert result.code == 0, result.err
    assert all(math.isfinite(rate) and rate > 0 for rate in _losses(run, "tokens_per_second"))
    meter = SpeedMeter()
    state = TrainerState(num_input_tokens_seen=0)
    meter.begin(state)
    meter._last -= 10  # ten seconds ago, four of them spent on an evaluation
    meter.leave_out(4)
    state.num_input_tokens_seen = 600
    assert meter.tokens_per_second(state) == pytest.approx(100, rel=0.01)


def test_devices_that_are_not_there(tiny, glmtune_command):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    _expect(glmtune_command("chat", tiny("chatglm3"), "--prompt", "x", "--device", "cuda"), "torch finds no GPU")
    _expect(glmtune_command("chat", tiny("chatglm3"), "--prompt", "x", "--device", "gpu0"), "--device cannot be 'gpu0'")
