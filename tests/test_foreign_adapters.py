"""Adapters of other tools and years: bare files, old names, merged matrices, peft's prefixes, whole models with one;
bases that moved; weights that are not finite."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from prefixes import prepare_ptuning
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.config import LoraConfig, PTuningConfig
from glmtune.errors import GlmtuneError, ModelError, RunError
from glmtune.families import get_family
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora import Lora, load_adapter
from glmtune.methods.ptuning import PTuning, load_prefix
from glmtune.methods.tuned_model import resolve_target
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.weight_files import read_bin
from tiny import HEADS, HIDDEN, LAYERS, write_weights

FIRST = {"chatglm": "transformer.layers.{}.attention", "chatglm2": "transformer.encoder.layers.{}.self_attention"}
IDS = torch.tensor([[9, 8, 7, 30, 31, 32]])
PREFIX = "transformer.prefix_encoder.embedding.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 32, "target_modules": ["query_key_value"], "bias": "none"}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def make_lora_state(base: Path, family: str, *, label: str = "", start: str = "base_model.model.") -> dict:
    """Random LoRA weights of rank 2 for the fused matrices, under names of the published code."""
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    state = {}
    for layer in range(LAYERS):
        path = f"{FIRST[family].format(layer)}.query_key_value"
        rows, columns = weights[f"{path}.weight"].shape
        for kind, shape in (("A", (2, columns)), ("B", (rows, 2))):
            state[f"{start}{path}.lora_{kind}{label}.weight"] = torch.randn(shape, generator=generator) * 0.2
    return state


def write_adapter(folder: Path, state: dict, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes), encoding="utf-8")
    torch.save(state, folder / "adapter_model.bin")
    return folder


def tuned(base: Path, adapter: Path) -> torch.Tensor:
    return logits(glmtune.load_model(base, adapter=adapter, family="chatglm2" if "chatglm2" in base.name else None))


# LoRA


@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_names_of_every_year_are_the_same_adapter(family, tiny, tmp_path):
    base = tiny(family)
    wanted = tuned(base, write_adapter(tmp_path / "plain", make_lora_state(base, family)))
    assert not torch.equal(wanted, logits(glmtune.load_model(base)))
    others = {
        "named": {"label": ".default"},
        "other-name": {"label": ".my_adapter"},
        "wrapped": {"start": "module.base_model.model."},
        "unwrapped": {"start": ""},
    }
    for name, form in others.items():
        folder = write_adapter(tmp_path / name, make_lora_state(base, family, **form))
        assert torch.equal(tuned(base, folder), wanted), name
        # peft alone would leave B at zero, with a warning.
        assert torch.equal(logits(PeftModel.from_pretrained(glmtune.load_model(base), str(folder))), wanted), name


def test_of_a_checkpoint_with_the_whole_model_the_adapter_is_read(tiny, tmp_path):
    """As the first finetune.py left its checkpoints: no config, all weights under the names of the wrapped model."""
    base = tiny("chatglm")
    lora = make_lora_state(base, "chatglm")
    wanted = tuned(base, write_adapter(tmp_path / "alone", lora))
    model = {f"base_model.model.{name}": value for name, value in load_file(base / "model.safetensors").items()}
    (tmp_path / "checkpoint-500").mkdir()
    torch.save(model | lora, tmp_path / "checkpoint-500" / "pytorch_model.bin")
    assert torch.equal(tuned(base, tmp_path / "checkpoint-500"), wanted)
    assert torch.equal(tuned(base, tmp_path), wanted)  # the newest checkpoint inside


def test_a_file_without_a_config_is_read_and_its_alpha_named(tiny, tmp_path, capsys):
    """`chatglm-lora.pt` of the first finetune.py: torch.save of the trainable parameters."""
    base = tiny("chatglm")
    wanted = tuned(base, write_adapter(tmp_path / "described", make_lora_state(base, "chatglm")))
    folder = tmp_path / "output"
    folder.mkdir()
    torch.save(make_lora_state(base, "chatglm", label=".default"), folder / "chatglm-lora.pt")
    capsys.readouterr()
    for given in (folder, folder / "chatglm-lora.pt"):
        assert torch.equal(tuned(base, given), wanted)
        assert "alpha; taken as 32" in capsys.readouterr().out
        assert resolve_target(given, base=str(base)).adapter == given
    with pytest.raises(RunError, match="does not name its base"):
        resolve_target(folder)
    torch.save({}, folder / "second-lora.pt")
    assert resolve_target(folder, base=str(base)).adapter == folder  # the known name comes first
    (folder / "chatglm-lora.pt").rename(folder / "first-lora.pt")
    with pytest.raises(ModelError, match=r"several files of LoRA weights \(first-lora\.pt, second-lora\.pt\)"):
        resolve_target(folder, base=str(base))
    shutil.copytree(base, tmp_path / "chatglm-6b")
    shutil.copy(folder / "first-lora.pt", tmp_path / "chatglm-6b" / "chatglm-lora.pt")
    assert resolve_target(tmp_path / "chatglm-6b").adapter is None  # a base in which such a file lies
    torch.save({"optimizer": torch.zeros(1)}, folder / "state.pt")
    with pytest.raises(ModelError, match="holds no LoRA weights"):
        load_adapter(glmtune.load_model(base), folder / "state.pt")


@pytest.mark.parametrize("is_described", [True, False])
def test_merged_matrices_of_old_peft_are_exact(is_described, tiny, tmp_path):
    """peft before 0.3 put its update on the first and last third of the fused matrix, each with its own A."""
    base, rank, alpha = tiny("chatglm"), 2, 32
    generator = torch.Generator().manual_seed(1)
    weights, state = load_file(base / "model.safetensors"), {}
    merged = dict(weights)
    for layer in range(LAYERS):
        path = f"{FIRST['chatglm'].format(layer)}.query_key_value"
        a = torch.randn(2 * rank, HIDDEN, generator=generator) * 0.2
        b = torch.randn(2 * HIDDEN, rank, generator=generator) * 0.2
        state |= {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b}
        update = torch.zeros(3 * HIDDEN, HIDDEN)
        update[:HIDDEN] = b[:HIDDEN] @ a[:rank]
        update[2 * HIDDEN :] = b[HIDDEN:] @ a[rank:]
        merged[f"{path}.weight"] = weights[f"{path}.weight"] + alpha / rank * update
    if is_described:
        changes = {"enable_lora": [True, False, True], "fan_in_fan_out": True, "merge_weights": False}
        adapter = write_adapter(tmp_path / "adapter", state, **changes)
    else:
        adapter = tmp_path / "chatglm-lora.pt"
        torch.save(state, adapter)
    shutil.copytree(base, tmp_path / "merged")
    write_weights(merged, tmp_path / "merged", "safetensors")
    wanted = logits(glmtune.load_model(tmp_path / "merged"))
    torch.testing.assert_close(tuned(base, adapter), wanted, atol=2e-5, rtol=1e-4)


def test_several_adapters_in_one_file_are_refused(tiny, tmp_path):
    base = tiny("chatglm")
    state = make_lora_state(base, "chatglm", label=".one") | make_lora_state(base, "chatglm", label=".two")
    with pytest.raises(ModelError, match=r"several adapters \(one, two\)"):
        tuned(base, write_adapter(tmp_path / "both", state))


def test_an_adapter_without_effect_is_said(tiny, tmp_path, glmtune_command):
    base = tiny("chatglm2")
    state = {name: value * ("lora_A" in name) for name, value in make_lora_state(base, "chatglm2").items()}
    folder = write_adapter(tmp_path / "zero", state)
    result = glmtune_command("chat", folder, "--base", base, "--prompt", "你好", "--max-new-tokens", 2)
    assert result.code == 0
    assert "every B of this adapter is zero, so it has no effect" in result.out + result.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a finite number"),
        ({"lora_alpha": "32"}, "lora_alpha is '32'"),
        ({"r": 0}, "r is 0, not a whole number above 0"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern: q_proj is inf"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', not LORA"),
    ],
)
def test_a_config_without_a_usable_scale_is_refused(change, words, tiny, tmp_path):
    base = tiny("chatglm")
    folder = write_adapter(tmp_path / "bad", make_lora_state(base, "chatglm"), **change)
    with pytest.raises(ModelError, match=words):
        tuned(base, folder)


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path, glmtune_command):
    base = tiny("chatglm2")
    state = make_lora_state(base, "chatglm2")
    next(iter(state.values()))[0, 0] = float("nan")
    folder = write_adapter(tmp_path / "nan", state)
    result = glmtune_command("chat", folder, "--base", base, "--prompt", "你好")
    assert result.code == 1
    assert "holds a NaN or an infinity, so the training that saved it had failed" in result.err + result.out
    PTuning(PTuningConfig(3)).save(prepare_ptuning(base, tokens=3), tmp_path / "prefix", BaseInfo("x", "y", "chatglm2"))
    file = tmp_path / "prefix" / "prefix_encoder.safetensors"
    save_file({name: value * float("inf") for name, value in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="holds a NaN or an infinity"):
        load_prefix(glmtune.load_model(base), tmp_path / "prefix")


# Prefixes


def make_prefix(tokens: int = 4) -> torch.Tensor:
    kv = 2 * HIDDEN // HEADS
    return torch.randn(tokens, LAYERS * 2 * kv, generator=torch.Generator().manual_seed(2))


def write_published_prefix(folder: Path, others: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    torch.save({PREFIX: make_prefix()} | (others or {}), folder / "pytorch_model.bin")
    return folder


def write_peft_prefix(folder: Path, base: str) -> Path:
    """As finetune_hf.py of ChatGLM3 writes it with ptuning_v2.yaml."""
    folder.mkdir()
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "num_virtual_tokens": 4,
        "num_layers": LAYERS,
        "num_attention_heads": 2,
        "token_dim": 2 * HIDDEN // HEADS,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"prompt_embeddings": make_prefix()}, folder / "adapter_model.safetensors")
    return folder


def test_prefix_tuning_of_peft_on_the_published_code(tiny, tmp_path):
    base = tiny("chatglm3")
    wanted = tuned(base, write_published_prefix(tmp_path / "published"))
    assert not torch.equal(wanted, logits(glmtune.load_model(base)))
    assert torch.equal(tuned(base, write_peft_prefix(tmp_path / "peft", "THUDM/chatglm3-6b")), wanted)
    folder = write_peft_prefix(tmp_path / "named", str(base))
    target = resolve_target(folder)
    assert (target.base, target.adapter) == (str(base), folder)


def test_prefix_tuning_of_peft_on_other_models_is_refused(tiny, tmp_path):
    native = tmp_path / "native"
    glmtune.load_model(tiny("chatglm3")).save_pretrained(native)
    with pytest.raises(ModelError, match=r"PREFIX_TUNING.*for transformers' own model.*positions begin behind"):
        tuned(tiny("chatglm3"), write_peft_prefix(tmp_path / "peft", str(native)))
    with pytest.raises(ModelError, match=r"PREFIX_TUNING.*ChatGLM-6B"):
        tuned(tiny("chatglm"), write_peft_prefix(tmp_path / "first", "THUDM/chatglm-6b"))
    wrong = write_peft_prefix(tmp_path / "wrong", "THUDM/chatglm3-6b")
    save_file({"other": torch.zeros(2)}, wrong / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="prompt_embeddings alone was expected"):
        tuned(tiny("chatglm3"), wrong)


def test_of_a_whole_model_the_prefix_alone_is_read(tiny, tmp_path, monkeypatch):
    """The earliest P-Tuning checkpoints hold the model too, in shards with an index."""
    base = tiny("chatglm2")
    wanted = tuned(base, write_published_prefix(tmp_path / "small"))
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(base / name, whole / name)
    state = load_file(base / "model.safetensors")
    shards = {"pytorch_model-00001-of-00002.bin": state, "pytorch_model-00002-of-00002.bin": {PREFIX: make_prefix()}}
    for file, content in shards.items():
        torch.save(content, whole / file)
    weight_map = {name: file for file, content in shards.items() for name in content}
    (whole / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    # Alone: its own model is the base.
    target = resolve_target(whole)
    assert (target.base, target.adapter) == (str(whole), whole)
    assert inspect_checkpoint(whole).has_prefix
    assert inspect_checkpoint(whole).fingerprint == inspect_checkpoint(base).fingerprint
    assert torch.equal(logits(glmtune.load_model(whole)), wanted)
    # On another folder of the base: nothing but the prefix is opened.
    opened = []
    monkeypatch.setattr(
        "glmtune.methods.prefix_files.read_bin", lambda file, device: opened.append(file.name) or read_bin(file, device)
    )
    (whole / "pytorch_model-00001-of-00002.bin").unlink()
    assert torch.equal(tuned(base, whole), wanted)
    assert set(opened) == {"pytorch_model-00002-of-00002.bin"}


def test_a_prefix_is_not_lost_or_taken_for_a_model(tiny, tmp_path, adgen_file, glmtune_command):
    base = tiny("chatglm2")
    whole = write_published_prefix(tmp_path / "whole", load_file(base / "model.safetensors"))
    small = write_published_prefix(tmp_path / "small")
    for folder in (whole, small):
        for name in ("config.json", "tokenizer.model"):
            shutil.copy(base / name, folder / name)
    result = glmtune_command("train", "--model", whole, "--data", adgen_file(8), "--output", tmp_path / "run")
    assert result.code == 1
    assert "holds a P-Tuning prefix beside the model, which would be lost" in result.err
    with pytest.raises(ModelError, match="a P-Tuning prefix alone, not a model"):
        inspect_checkpoint(small)


def test_of_an_output_folder_the_newest_checkpoint_is_used(tiny, tmp_path, capsys):
    output = tmp_path / "adgen-chatglm2-6b-pt"
    for step in (5, 10, 9):
        write_published_prefix(output / f"checkpoint-{step}")
    (output / "trainer_state.json").write_text("{}", encoding="utf-8")
    base = str(tiny("chatglm2"))
    assert resolve_target(output, base=base).adapter == output / "checkpoint-10"
    assert (
        "its newest checkpoint is used, checkpoint-10; another one is given by its own path" in capsys.readouterr().out
    )
    assert resolve_target(output / "checkpoint-5", base=base).adapter == output / "checkpoint-5"
    wanted = tuned(tiny("chatglm2"), output / "checkpoint-10")
    assert torch.equal(tuned(tiny("chatglm2"), output), wanted)


# Bases and places


def save_lora(base: Path, folder: Path) -> Path:
    checkpoint = inspect_checkpoint(base)
    model = glmtune.load_model(base)
    method = Lora(LoraConfig(rank=2, alpha=4), get_family("chatglm3"))
    method.save(method.prepare(model), folder, BaseInfo(str(base), checkpoint.fingerprint, "chatglm3"))
    return folder


def test_editing_the_adapters_config_moves_the_base(tiny, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny("chatglm3"), old)
    adapter = save_lora(old, tmp_path / "adapter")
    assert resolve_target(adapter).base == str(old)
    old.rename(tmp_path / "new")
    with pytest.raises(RunError, match=r'not there any more.\n.*adapter_config\.json as "base_model_name_or_path"'):
        resolve_target(adapter)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "new")}), encoding="utf-8")
    assert resolve_target(adapter).base == str(tmp_path / "new")
    glmtune.load_model(adapter)  # the fingerprint is still compared
    other = tmp_path / "other"
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(other)}), encoding="utf-8")
    with pytest.raises(RunError, match=r"its base .*other is not there"):
        resolve_target(adapter)


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all", "nowhere"])
def test_a_base_that_does_not_exist_is_named(base, tiny, tmp_path):
    adapter = save_lora(tiny("chatglm3"), tmp_path / "adapter")
    with pytest.raises(GlmtuneError, match=f"--base {base}: no such folder"):
        resolve_target(adapter, base=base)


def test_a_checkpoint_of_a_run_under_the_path_of_other_trainers(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    for step in (5, 10):
        (run / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").write_text("{}", encoding="utf-8")
    (run / "config.yaml").write_text("method: lora\n", encoding="utf-8")
    save_lora(tiny("chatglm3"), run / "checkpoints" / "checkpoint-5")
    assert resolve_target(run / "checkpoint-5").adapter == run / "checkpoints" / "checkpoint-5"
    assert "run/checkpoint-5: it is in " in capsys.readouterr().out
    with pytest.raises(RunError, match=r"the run has no checkpoint-7.\nThose there: .*checkpoints/checkpoint-10"):
        resolve_target(run / "checkpoint-7")
