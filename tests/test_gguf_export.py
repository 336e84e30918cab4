"""GGUF files: weights, vocabulary and keys as llama.cpp reads them, read back with the `gguf` package."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece as spm
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Glm4Config, Glm4ForCausalLM

import glmtune
from glmtune.config import PTuningConfig
from glmtune.families import get_family
from glmtune.methods.base_info import BaseInfo, write_base_info
from glmtune.methods.ptuning import PTuning, find_prefix
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base

LATER = ("chatglm2", "chatglm3", "glm4")
_NAMES = {
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_up.weight": "mlp.gate_up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@pytest.fixture
def export(glmtune_command, tmp_path):
    """`export(target, "--type", "f32")`: the folder that was written and the command's result."""

    def run(target, *options, code=0):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        result = glmtune_command("export", target, out, "--format", "gguf", "--device", "cpu", *options)
        assert result.code == code, result.err
        assert "Traceback" not in result.err
        assert out.exists() == (code == 0)
        return out, result.err if code else result.out

    return run


@pytest.fixture
def copied(tiny, tmp_path):
    """`copied(family, key=value)`: a tiny checkpoint with other keys in its config."""

    def get(family, **changes):
        folder = tmp_path / f"copy-{family}"
        shutil.copytree(tiny(family), folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")
        return folder

    return get


def _open(folder):
    (path,) = folder.glob("*.gguf")
    return gguf.GGUFReader(path)


def _keys(reader):
    return {name: field.contents() for name, field in reader.fields.items()}


def _values(tensor):
    return torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))


@pytest.mark.parametrize("family", LATER)
def test_weights_and_keys_are_the_models(family, tiny, export):
    folder, out = export(tiny(family), "--type", "f32")
    reader, state = _open(folder), load_base(inspect_checkpoint(tiny(family)), device="cpu").state_dict()
    assert "the same logits exactly" in out
    found = {tensor.name: _values(tensor) for tensor in reader.tensors}
    assert torch.equal(found["token_embd.weight"], state["model.embed_tokens.weight"].float())
    assert torch.equal(found["output.weight"], state["lm_head.weight"].float())
    for layer in range(2):
        for name, native in _NAMES.items():
            assert torch.equal(found[f"blk.{layer}.{name}"], state[f"model.layers.{layer}.{native}"].float()), name
    keys, tokenizer = _keys(reader), glmtune.load_tokenizer(tiny(family))
    assert keys["general.architecture"] == "chatglm"
    assert keys["general.base_model.0.name"] == tiny(family).name
    assert keys["glmtune.base_fingerprint"] == inspect_checkpoint(tiny(family)).fingerprint
    assert keys["chatglm.rope.dimension_count"] == 4  # half of a head of 8
    assert keys["chatglm.rope.freq_base"] == 10000
    assert keys["tokenizer.ggml.add_bos_token"] is False
    stops = [keys[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom") if _has(keys, name)]
    assert stops == get_family(family).get_stop_ids(tokenizer)
    assert len(keys["tokenizer.ggml.tokens"]) == len(state["lm_head.weight"])


def _has(keys, name):
    return f"tokenizer.ggml.{name}_token_id" in keys


def test_pieces_have_the_scores_and_types_of_the_published_file(tiny, export):
    model = spm.SentencePieceProcessor(model_file=str(tiny("chatglm3") / "tokenizer.model"))
    keys = _keys(_open(export(tiny("chatglm3"))[0]))
    tokens, scores, types = (keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    count = model.vocab_size()
    assert tokens[:count] == [model.id_to_piece(i) for i in range(count)]
    assert scores[:count] == pytest.approx([model.get_score(i) for i in range(count)])
    for i in range(count):
        expected = 2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        assert types[i] == expected
    assert tokens[count : count + 9] == [
        *("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
        *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    ]
    assert set(types[count : count + 9]) == {3}


@pytest.mark.parametrize("family", LATER)
def test_no_special_token_is_found_inside_a_word(family, tiny, export):
    """llama.cpp looks for special tokens anywhere in a text: `eop` would be found in "people"."""
    keys = _keys(_open(export(tiny(family))[0]))
    special = [
        token
        for token, kind in zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"], strict=True)
        if kind in (2, 3, 4)
    ]
    assert special
    assert not [token for token in special if token.isalpha()]
    assert "[gMASK]<sop>" in keys["tokenizer.chat_template"]
    assert "[gMASK]sop" not in keys["tokenizer.chat_template"]


def test_ids_without_a_token_and_added_tokens_have_their_types(copied, export):
    folder = copied("glm4", padded_vocab_size=280)
    (folder / "added_tokens.json").write_text(json.dumps({"<mine>": 272}), "utf-8")
    base = _add_rows(folder, 280)
    keys = _keys(_open(export(base)[0]))
    assert keys["tokenizer.ggml.tokens"][272:] == ["<mine>", *(f"[PAD{i}]" for i in range(273, 280))]
    assert keys["tokenizer.ggml.token_type"][272:] == [4] + [5] * 7


def _add_rows(folder, rows):
    """Give the embedding and the head of a checkpoint more rows."""
    path = folder / "model.safetensors"
    state = load_file(path)
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        extra = torch.zeros(rows - len(state[name]), state[name].shape[1], dtype=state[name].dtype)
        state[name] = torch.cat([state[name], extra])
    save_file(state, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatglm2", {"rope.freq_base": 10000, "rope.scaling.type": "linear", "rope.scaling.factor": 4}),
        ("chatglm3", {"rope.freq_base": 40000}),
    ],
)
def test_stretched_positions_are_written(family, expected, copied, export):
    keys = _keys(_open(export(copied(family, rope_ratio=4, seq_length=8192))[0]))
    for name, value in (expected | {"context_length": 8192}).items():
        assert keys[f"chatglm.{name}"] == value
    assert ("chatglm.rope.scaling.type" in keys) == ("rope.scaling.type" in expected)


def test_the_later_architecture_has_its_norms(tmp_path, tiny, export):
    config = Glm4Config(
        vocab_size=272,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    model = Glm4ForCausalLM(config)
    torch.nn.init.normal_(model.model.layers[1].post_self_attn_layernorm.weight)
    model.save_pretrained(tmp_path / "base")
    glmtune.load_tokenizer(tiny("glm4")).save_pretrained(tmp_path / "base")
    reader = _open(export(tmp_path / "base", "--type", "f32")[0])
    found, state = {tensor.name: _values(tensor) for tensor in reader.tensors}, model.state_dict()
    assert _keys(reader)["general.architecture"] == "glm4"
    for name, native in {
        "post_attention_norm": "post_self_attn_layernorm",
        "post_ffw_norm": "post_mlp_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }.items():
        assert torch.equal(found[f"blk.1.{name}.weight"], state[f"model.layers.1.{native}.weight"]), name


@pytest.mark.parametrize(("kind", "bound"), [("bf16", 1e-2), ("q8_0", 2e-2), ("q4_0", 0.2)])
def test_each_type_stores_matrices_in_it(kind, bound, tiny, export):
    folder, out = export(tiny("chatglm3"), "--type", kind)
    reader, state = _open(folder), load_base(inspect_checkpoint(tiny("chatglm3")), device="cpu").state_dict()
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == kind
    assert types["blk.0.attn_norm.weight"] == "f32"
    assert types["output.weight"] == ("q8_0" if kind == "q4_0" else kind)
    (matrix,) = [_values(tensor) for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight"]
    weight = state["model.layers.1.mlp.down_proj.weight"].float()
    assert 0 < (matrix - weight).abs().max() <= bound * weight.abs().max()
    assert f"{kind} against full precision" in out


def test_llama_cpps_program_makes_the_other_types(tiny, export, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    _, err = export(tiny("chatglm3"), "--type", "q4_k_m", code=1)
    assert "llama-quantize" in err
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nassert sys.argv[3] == 'Q4_K_M'\nshutil.copy(*sys.argv[1:3])\n"
    )
    program.chmod(0o755)
    folder, _ = export(tiny("chatglm3"), "--type", "q4_k_m")
    assert sorted(os.listdir(folder)) == ["Modelfile", "model-q4_k_m.gguf"]
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such type')\n")
    _, err = export(tiny("chatglm3"), "--type", "q4_k_m", code=1)
    assert "no such type" in err


@pytest.mark.parametrize("family", LATER)
def test_the_modelfile_names_the_file_and_the_stop_words(family, tiny, export):
    folder, _ = export(tiny(family))
    lines = (folder / "Modelfile").read_text("utf-8").splitlines()
    assert lines[0] == "FROM ./model-f16.gguf"
    stops = [line.split('"')[1] for line in lines if line.startswith("PARAMETER stop")]
    assert stops == list(get_family(family).stop_tokens)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--type", "q9"), "no such type"),
        (("--bits", 4), "--type"),
        (("--max-shard-size", "1GB"), "one file"),
        (("--adapter-only",), "no adapter"),
    ],
)
def test_options_without_meaning_are_refused(options, reason, tiny, export):
    assert reason in export(tiny("chatglm3"), *options, code=1)[1]


def test_models_that_llama_cpp_does_not_have_are_refused(tiny, export, glmtune_command, tmp_path):
    assert "no architecture for ChatGLM-6B" in export(tiny("chatglm"), code=1)[1]
    result = glmtune_command("export", tiny("chatglm3"), tmp_path / "hf", "--type", "q8_0")
    assert result.code == 1
    assert "--format gguf" in result.err


def test_values_beyond_f16_are_refused(copied, export):
    folder = copied("chatglm3", torch_dtype="float32")
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    state["transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"][0, 0] = 1e5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "beyond the range of f16" in export(folder, code=1)[1]
    export(folder, "--type", "bf16")


def _save_lora(base, family, folder, **options):
    """An adapter with random B."""
    checkpoint = inspect_checkpoint(base)
    config = PeftLoraConfig(task_type="CAUSAL_LM", **({"target_modules": ["q_proj", "v_proj"], "r": 4} | options))
    model = get_peft_model(load_base(checkpoint, device="cpu", dtype="fp32"), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data.normal_(std=0.05)
    model.save_pretrained(str(folder))
    write_base_info(folder, BaseInfo(str(base), checkpoint.fingerprint, family))
    return folder, model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 32, "use_rslora": True},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
        {"target_modules": ["embed_tokens", "gate_up_proj", "lm_head"]},
    ],
)
def test_an_adapter_adds_what_peft_adds(options, tiny, export, tmp_path):
    adapter, model = _save_lora(tiny("chatglm3"), "chatglm3", tmp_path / "adapter", **options)
    reader = _open(export(adapter, "--adapter-only")[0])
    keys, found = _keys(reader), {tensor.name: _values(tensor) for tensor in reader.tensors}
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    names = {
        **{"self_attn.q_proj": "attn_q", "self_attn.v_proj": "attn_v", "mlp.gate_up_proj": "ffn_up"},
        **{"embed_tokens": "token_embd", "lm_head": "output"},
    }
    compared = 0
    for path, module in model.base_model.model.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        place = next(new for old, new in names.items() if path.endswith(old))
        prefix = f"blk.{path.split('.')[2]}." if ".layers." in path else ""
        a, b = (found[f"{prefix}{place}.weight.lora_{half}"] for half in "ab")
        rank = b.shape[1]
        a = a.T if place == "token_embd" else a
        expected = module.get_delta_weight("default").T if place == "token_embd" else module.get_delta_weight("default")
        update = keys["adapter.lora.alpha"] / rank * (b @ a)
        assert torch.allclose(update, expected, atol=1e-6), path
        compared += 1
    assert compared == len(found) // 2 > 0


def test_what_is_printed_serves_an_adapter_beside_its_base(tiny, glmtune_command, tmp_path):
    adapter, _ = _save_lora(tiny("chatglm3"), "chatglm3", tmp_path / "an adapter", r=20)
    out = {}
    for layout in ("hf", "gguf"):
        folder = tmp_path / f"my {layout}"
        result = glmtune_command("export", adapter, folder, "--format", layout, "--adapter-only", "--device", "cpu")
        lines = [shlex.split(line.partition(": ")[2]) for line in result.out.splitlines() if ": " in line]
        (made,) = [words for words in lines if words[:2] == ["glmtune", "export"]]
        assert glmtune_command(*made[1:], "--device", "cpu").code == 0
        (out[layout],) = [words for words in lines if words[0] in ("vllm", "llama-server")]
    assert out["hf"][2] == str(tmp_path / "my hf-base")
    assert out["hf"][out["hf"].index("--max-lora-rank") + 1] == "32"
    assert out["hf"][-1] == f"tuned={tmp_path / 'my hf'}"
    assert all(Path(out["gguf"][out["gguf"].index(option) + 1]).is_file() for option in ("-m", "--lora"))


@pytest.mark.parametrize(
    ("options", "reason"), [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "lm_head")]
)
def test_adapters_with_more_than_matrices_are_refused(options, reason, tiny, export, tmp_path):
    adapter, _ = _save_lora(tiny("chatglm3"), "chatglm3", tmp_path / "adapter", **options)
    assert reason in export(adapter, "--adapter-only", code=1)[1]


def test_a_merged_adapter_is_in_the_file(tiny, export, tmp_path):
    adapter, model = _save_lora(tiny("chatglm2"), "chatglm2", tmp_path / "adapter")
    found = {tensor.name: _values(tensor) for tensor in _open(export(adapter, "--type", "f32")[0]).tensors}
    plain = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    merged = model.merge_and_unload().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(found["blk.0.attn_q.weight"], merged, atol=2e-3)
    assert not torch.allclose(found["blk.0.attn_q.weight"], plain, atol=2e-3)


def test_a_packed_base_is_unpacked(tiny, export, glmtune_command, tmp_path):
    packed = tmp_path / "packed"
    command = ("export", tiny("chatglm3"), packed, "--format", "official", "--bits", 4, "--device", "cpu")
    assert glmtune_command(*command).code == 0
    folder, out = export(packed, "--type", "f32", "--dtype", "fp32")
    (matrix,) = [_values(tensor) for tensor in _open(folder).tensors if tensor.name == "blk.0.ffn_down.weight"]
    model = load_base(inspect_checkpoint(packed), device="cpu", dtype="fp32")
    expected = model.get_submodule("model.layers.0.mlp.down_proj").dequantize_weight(torch.float32)
    assert torch.equal(matrix, expected)
    assert "what that lost does not come back" in out


def test_a_prefix_is_refused(tiny, export, tmp_path):
    base = inspect_checkpoint(tiny("chatglm3"))
    method = PTuning(PTuningConfig(num_virtual_tokens=3))
    model = method.prepare(load_base(base, device="cpu"))
    find_prefix(model).embedding.weight.data.normal_()
    (tmp_path / "prefix").mkdir()
    method.save(model, tmp_path / "prefix", BaseInfo(str(base.folder), base.fingerprint, "chatglm3"))
    assert "cannot hold a P-Tuning prefix" in export(tmp_path / "prefix", code=1)[1]


@pytest.mark.parametrize(("bits", "adapter_only"), [(16, False), (8, False), (4, False), (16, True)])
def test_the_pages_form_asks_for_a_type(bits, adapter_only, tiny, tmp_path):
    from glmtune.export.export_request import open_source, require_possible
    from glmtune.webui.export_tab import ExportChoices

    request = ExportChoices("x", "gguf", bits, adapter_only, "", "5GB", "out").make_request()
    assert request.gguf_type == (None if adapter_only else {16: "f16", 8: "q8_0", 4: "q4_0"}[bits])
    if not adapter_only:
        require_possible(open_source(str(tiny("chatglm3")), None, None, "huggingface"), request, tmp_path / "out")
