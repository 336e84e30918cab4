"""P-Tuning v2 on disk: what was trained comes back bit for bit, from our folders and from published ones."""

from __future__ import annotations

import json

import pytest
import torch
from prefixes import KINDS, OFFICIAL, compute_logits, make_prompts, prepare_ptuning, write_published_prefix
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.config import PTuningConfig
from glmtune.errors import ModelError, RunError
from glmtune.methods.base_info import BaseInfo, read_base_info
from glmtune.methods.prefix_attention import find_prefix, remove_prefix
from glmtune.methods.prefix_encoder import PrefixEncoder, PrefixShape
from glmtune.methods.ptuning import (
    PTuning,
    find_official_base,
    holds_whole_model,
    is_prefix_folder,
    load_prefix,
    write_official,
)
from tiny import FAMILIES

BASE_INFO = BaseInfo("base", "0123456789abcdef", "chatglm2")


@pytest.fixture(scope="module")
def expected(golden):
    return {name: load_file(golden / name / "expected.safetensors") for name in OFFICIAL}


@pytest.fixture
def official(golden, tmp_path):
    """`official(name, kind)`: a folder as the published training scripts write it."""
    return lambda name, kind="plain": write_published_prefix(name, kind, golden, tmp_path / f"official-{name}-{kind}")


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_prefixes_load_bit_for_bit(name, projection, tiny, tmp_path):
    method = PTuning(PTuningConfig(5, projection))
    model = prepare_ptuning(tiny(name), projection=projection, dropout=0.25)
    ids = make_prompts(name, tiny(name), 1)[0][0]
    wanted = compute_logits(model, input_ids=ids)
    method.save(model, tmp_path / "adapter", BASE_INFO)
    assert is_prefix_folder(tmp_path / "adapter")
    assert read_base_info(tmp_path / "adapter") == BASE_INFO
    again = load_prefix(glmtune.load_model(tiny(name)), tmp_path / "adapter")
    assert torch.equal(compute_logits(again, input_ids=ids), wanted)
    assert find_prefix(again).dropout.p == 0.25
    resumed = prepare_ptuning(tiny(name), seed=2, projection=projection)
    method.read(resumed, tmp_path / "adapter")
    assert torch.equal(compute_logits(resumed, input_ids=ids), wanted)
    assert dict(method.saved_state(tmp_path / "adapter")).keys() == method.trained_state(model).keys()
    for key, value in method.saved_state(tmp_path / "adapter"):
        assert torch.equal(value, method.trained_state(model)[key])


def test_gathered_weights_and_another_precision_are_written(tiny, tmp_path):
    method, model = PTuning(PTuningConfig(5)), prepare_ptuning(tiny("glm4"))
    state = {key: value + 1 for key, value in model.state_dict().items()}
    method.save(model, tmp_path, BASE_INFO, torch.float16, state)
    stored = load_file(tmp_path / "prefix_encoder.safetensors")
    wanted = (find_prefix(model).embedding.weight + 1).half()
    assert {key: value.dtype for key, value in stored.items()} == {
        "transformer.prefix_encoder.embedding.weight": torch.float16
    }
    assert torch.equal(stored["transformer.prefix_encoder.embedding.weight"], wanted)


def test_a_model_saved_whole_is_its_base(tiny, tmp_path):
    model = prepare_ptuning(tiny("chatglm3"))
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[9, 8, 7]])
    base = glmtune.load_model(tiny("chatglm3"))
    again = glmtune.load_model(tmp_path, family="chatglm3")
    assert torch.equal(compute_logits(again, input_ids=ids), compute_logits(base, input_ids=ids))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_layout_round_trip(name, kind, golden, official, tmp_path):
    first = official(name, kind)
    model = load_prefix(glmtune.load_model(golden / name), first)
    base = json.loads((golden / name / "config.json").read_text(encoding="utf-8"))
    write_official(find_prefix(model), tmp_path / "again", base)
    written = torch.load(tmp_path / "again" / "pytorch_model.bin", weights_only=True)
    original = torch.load(first / "pytorch_model.bin", weights_only=True)
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], original[key]) and written[key].dtype is torch.float32 for key in written)
    config = json.loads((tmp_path / "again" / "config.json").read_text(encoding="utf-8"))
    assert config == base | {"pre_seq_len": 6, "prefix_projection": kind == "proj"}
    assert is_prefix_folder(tmp_path / "again")


def test_folders_are_told_apart(tiny, official, tmp_path):
    folder = official("chatglm2")
    assert is_prefix_folder(folder)
    assert find_official_base(folder) == "THUDM/chatglm2-6b"
    (folder / "config.json").unlink()
    assert is_prefix_folder(folder)
    assert find_official_base(folder) == ""
    assert not is_prefix_folder(tiny("chatglm2"))
    assert not is_prefix_folder(tiny("chatglm", "bin"))
    assert not is_prefix_folder(tiny("chatglm", "shards"))
    assert not is_prefix_folder(tmp_path / "nothing")


def test_official_safetensors_and_half_precision_load(golden, tmp_path, expected):
    state = load_file(golden / "chatglm2" / "prefix_plain.safetensors")
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "model.safetensors")
    model = load_prefix(glmtune.load_model(golden / "chatglm2"), tmp_path)
    found = compute_logits(model, input_ids=expected["chatglm2"]["single_ids"])
    assert find_prefix(model).embedding.weight.dtype is torch.float32
    torch.testing.assert_close(found, expected["chatglm2"]["prefix_plain_logits"], atol=1e-2, rtol=0)


# What is refused


def other_shape(model, tokens=5, **change):
    shape = PrefixShape(**(PrefixShape.from_config(model.config).__dict__ | change))
    return PrefixEncoder(tokens, shape, None, 0.0)


@pytest.mark.parametrize("change", [{"layers": 3}, {"kv_heads": 4}])
def test_a_prefix_for_another_model_is_refused_naming_both(change, tiny, tmp_path):
    model = prepare_ptuning(tiny("chatglm2"))
    wrong = other_shape(model, **change)
    model.base_model.prefix_encoder = wrong
    PTuning(PTuningConfig(5)).write(model, tmp_path / "own", BASE_INFO)
    write_official(wrong, tmp_path / "official", {})
    for folder in ("own", "official"):
        with pytest.raises(ModelError) as caught:
            load_prefix(glmtune.load_model(tiny("chatglm2")), tmp_path / folder)
        assert "2 layers of 2 key-value heads of 8" in caught.value.message
    with pytest.raises(ModelError, match=str(wrong.shape)):
        load_prefix(glmtune.load_model(tiny("chatglm2")), tmp_path / "own")
    with pytest.raises(ModelError, match=f"{wrong.shape.width} numbers .* take {2 * 2 * 2 * 8}"):
        load_prefix(glmtune.load_model(tiny("chatglm2")), tmp_path / "official")


@pytest.mark.parametrize("file", ["prefix_encoder.safetensors", "prefix_config.json"])
def test_broken_and_missing_files_are_named(file, tiny, tmp_path):
    method, model = PTuning(PTuningConfig(5)), prepare_ptuning(tiny("chatglm2"))
    method.save(model, tmp_path, BASE_INFO)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2])
    for refuse in (lambda: load_prefix(model, tmp_path), lambda: method.read(model, tmp_path)):
        with pytest.raises((ModelError, RunError), match=f"{file}.*(corrupt|not valid JSON)"):
            refuse()
    (tmp_path / file).unlink()
    with pytest.raises(ModelError, match=f"{file} is missing"):
        load_prefix(model, tmp_path)
    with pytest.raises(RunError, match=f"{file} is missing"):
        method.read(model, tmp_path)


def test_a_config_without_its_numbers_is_refused(tiny, tmp_path):
    model = prepare_ptuning(tiny("chatglm2"))
    PTuning(PTuningConfig(5)).save(model, tmp_path, BASE_INFO)
    (tmp_path / "prefix_config.json").write_text('{"layers": 2, "kv_heads": 2, "dropout": 0.1}', encoding="utf-8")
    with pytest.raises(ModelError, match="head_dim"):
        load_prefix(model, tmp_path)


def test_folders_without_a_prefix_are_refused(tiny, official, tmp_path):
    model = glmtune.load_model(tiny("chatglm2"))
    with pytest.raises(ModelError, match="holds no prefix"):
        load_prefix(model, tiny("chatglm2"))
    with pytest.raises(ModelError, match="no such folder"):
        load_prefix(model, tmp_path / "nothing")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    with pytest.raises(ModelError, match="holds a LoRA adapter and no prefix"):
        load_prefix(model, tmp_path)
    folder = official("chatglm2")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save(state | {"transformer.lora": torch.zeros(2)}, folder / "pytorch_model.bin")
    assert is_prefix_folder(folder)
    assert holds_whole_model(folder)
    torch.save({"transformer.lora": torch.zeros(2)}, folder / "pytorch_model.bin")
    assert not is_prefix_folder(folder)
    with pytest.raises(ModelError, match=r"holds no prefix \(transformer\.lora"):
        load_prefix(model, folder)
    torch.save({"transformer.prefix_encoder.trans.0.bias": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"lacks embedding\.weight"):
        load_prefix(model, folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(ModelError, match="corrupt"):
        load_prefix(model, folder)
    with pytest.raises(ValueError, match="no prefix"):
        remove_prefix(model)


def test_a_run_with_other_settings_is_not_continued(tiny, tmp_path):
    PTuning(PTuningConfig(5)).write(prepare_ptuning(tiny("chatglm2")), tmp_path, BASE_INFO)
    with pytest.raises(RunError, match=r"5 virtual tokens trained directly.*6 virtual tokens trained"):
        PTuning(PTuningConfig(6)).read(prepare_ptuning(tiny("chatglm2"), tokens=6), tmp_path)
    with pytest.raises(RunError, match="5 virtual tokens made by a network"):
        PTuning(PTuningConfig(5, True)).read(prepare_ptuning(tiny("chatglm2"), projection=True), tmp_path)
