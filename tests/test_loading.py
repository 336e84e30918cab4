"""Checkpoints of every layout: the official numbers, nothing silently missing, both ways bit-equal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmtune
from glmtune.errors import ModelError
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.glm import make_glm_config
from glmtune.models.weight_names import convert_to_published
from tiny import FAMILIES, make_tiny

LATER = [family for family in FAMILIES if family != "chatglm"]


@pytest.fixture(scope="module")
def expected(golden):
    return load_file(golden / "chatglm2" / "expected.safetensors")


@pytest.fixture(params=["eager", "sdpa"])
def chatglm2(request, golden):
    model = glmtune.load_model(golden / "chatglm2")
    model.set_attn_implementation(request.param)
    return model


def test_chatglm2_computes_the_official_logits_and_losses(chatglm2, expected):
    for kind in ("single", "batch"):
        ids, labels = expected[f"{kind}_ids"], expected[f"{kind}_labels"]
        output = chatglm2(input_ids=ids, labels=labels)
        torch.testing.assert_close(output.logits, expected[f"{kind}_logits"], atol=1e-5, rtol=0)
        torch.testing.assert_close(output.loss, expected[f"{kind}_loss"], atol=1e-5, rtol=0)


def test_chatglm2_continues_left_padded_prompts_as_the_official_code(chatglm2, expected):
    ids, mask = expected["left_ids"], expected["left_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = chatglm2(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    real = mask.bool()
    torch.testing.assert_close(logits[real], expected["left_logits"][real], atol=1e-5, rtol=0)
    out = chatglm2.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(out, expected["left_greedy"])


def test_chatglm2_has_the_official_gradients(chatglm2, expected):
    chatglm2(input_ids=expected["batch_ids"], labels=expected["batch_labels"]).loss.backward()
    gradients = convert_to_published({name: p.grad for name, p in chatglm2.named_parameters()})
    names = [key.removeprefix("grad.") for key in expected if key.startswith("grad.")]
    assert len(names) == 7
    for name in names:
        torch.testing.assert_close(gradients[name], expected[f"grad.{name}"], atol=1e-5, rtol=0)


def test_chatglm2_descends_as_the_official_code(chatglm2, expected):
    optimizer = torch.optim.SGD(chatglm2.parameters(), lr=0.05)
    for wanted in expected["sgd_losses"]:
        loss = chatglm2(input_ids=expected["batch_ids"], labels=expected["batch_labels"]).loss
        torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_published_weights_come_back_bit_equal(golden):
    state = convert_to_published(glmtune.load_model(golden / "chatglm2").state_dict())
    published = load_file(golden / "chatglm2" / "model.safetensors")
    published = {name: value for name, value in published.items() if "inv_freq" not in name}
    assert state.keys() == published.keys()
    assert all(torch.equal(state[name], published[name]) for name in published)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_the_same_weights_and_fingerprint(family, tiny, tmp_path):
    first = glmtune.load_model(tiny(family))
    fingerprint = inspect_checkpoint(tiny(family)).fingerprint
    for layout in ("bin", "shards"):
        folder = tiny(family, layout)
        state = glmtune.load_model(folder).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in first.state_dict().items())
        assert inspect_checkpoint(folder).fingerprint == fingerprint
    # What transformers saves is its own layout; reading that gives the same again.
    first.save_pretrained(tmp_path / "native")
    glmtune.load_tokenizer(tiny(family)).save_pretrained(tmp_path / "native")
    again = glmtune.load_model(tmp_path / "native")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert inspect_checkpoint(tmp_path / "native").fingerprint == fingerprint
    assert glmtune.detect_family(tmp_path / "native").name == family


def test_other_weights_have_another_fingerprint(tiny, tmp_path):
    other = make_tiny("chatglm3", tmp_path / "other", seed=1)
    assert inspect_checkpoint(other).fingerprint != inspect_checkpoint(tiny("chatglm3")).fingerprint


def test_transformers_opens_published_folders_once_glmtune_is_imported(tiny):
    folders = {family: str(tiny(family)) for family in FAMILIES}
    script = f"""
import glmtune
from transformers import AutoConfig, AutoModelForCausalLM
for folder in {list(folders.values())!r}:
    config = AutoConfig.from_pretrained(folder)
    print(type(AutoModelForCausalLM.from_pretrained(folder)).__name__, config.num_hidden_layers)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ChatGLMForCausalLM 2", *["GlmForCausalLM 2"] * 3]


def test_a_saved_model_needs_transformers_alone(tiny, tmp_path):
    ids = [[5, 6, 7, 8]]
    wanted = []
    for family in LATER:
        model = glmtune.load_model(tiny(family))
        model.save_pretrained(tmp_path / family)
        wanted.append(model(input_ids=torch.tensor(ids)).logits.double().sum().item())
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM
for family in {LATER!r}:
    model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r} + "/" + family)
    print(model(input_ids=torch.tensor({ids})).logits.double().sum().item())
assert "glmtune" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert [float(line) for line in done.stdout.split()] == pytest.approx(wanted, abs=1e-6)


def test_a_folder_that_does_not_say_its_generation_loads_but_is_not_prompted(golden, tmp_path):
    folder = shutil.copytree(golden / "chatglm2", tmp_path / "anything")
    state = glmtune.load_model(folder).state_dict()
    assert all(
        torch.equal(value, state[name]) for name, value in glmtune.load_model(golden / "chatglm2").state_dict().items()
    )
    with pytest.raises(ModelError, match="cannot tell whether this is ChatGLM2 or ChatGLM3"):
        _ = inspect_checkpoint(folder).family
    assert inspect_checkpoint(folder, family="chatglm3").family.name == "chatglm3"
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"rope_ratio": 16}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match="rope_ratio 16 means one thing in ChatGLM2"):
        glmtune.load_model(folder)
    rope = glmtune.load_model(folder, family="chatglm2").config.rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 16.0)


def test_importing_glmtune_leaves_other_glm_models_alone(tmp_path):
    """The published names are registered for our loader only: a plain GLM model still saves under its own."""
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, pad_token_id=0)
    GlmForCausalLM(config).save_pretrained(tmp_path)
    assert "model.embed_tokens.weight" in load_file(tmp_path / "model.safetensors")


def test_a_precision_and_an_untouched_default(tiny):
    assert glmtune.load_model(tiny("chatglm3")).dtype is torch.float32
    assert glmtune.load_model(tiny("chatglm3"), dtype="bf16").dtype is torch.bfloat16
    with pytest.raises(ModelError, match="no precision 'float8_e4m3fn'"):
        glmtune.load_model(tiny("chatglm2"), dtype="float8_e4m3fn")
    with pytest.raises(ModelError, match="no precision 'int3'"):
        glmtune.load_model(tiny("chatglm3"), dtype="int3")


def test_rope_ratio_stretches_the_base_or_divides_the_positions(tiny):
    from glmtune.families import get_family

    published = json.loads((tiny("chatglm3") / "config.json").read_text("utf-8")) | {"rope_ratio": 50}
    third = make_glm_config(published, get_family("chatglm3")).rope_parameters
    second = make_glm_config(published, get_family("chatglm2")).rope_parameters
    assert (third["rope_type"], third["rope_theta"]) == ("default", 500000.0)
    assert (second["rope_type"], second["factor"], second["rope_theta"]) == ("linear", 50.0, 10000.0)


def test_divided_positions_equal_positions_divided_by_hand(tiny, tmp_path):
    """ChatGLM2-6B-32k: position p with ratio 4 computes what position p / 4 computes without."""
    folder = shutil.copytree(tiny("chatglm2"), tmp_path / "long")
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"rope_ratio": 4}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    ids = torch.arange(5, 13)[None]
    long = glmtune.load_model(folder)(input_ids=ids, position_ids=torch.arange(8)[None] * 4).logits
    short = glmtune.load_model(tiny("chatglm2"))(input_ids=ids).logits
    torch.testing.assert_close(long, short, atol=1e-5, rtol=0)


# --- folders that are not whole ---


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy of a tiny checkpoint that a test may damage."""

    def get(family="chatglm3", layout="safetensors"):
        return shutil.copytree(tiny(family, layout), tmp_path / f"{family}-{layout}")

    return get


def _error(folder) -> str:
    with pytest.raises(ModelError) as caught:
        glmtune.load_model(folder)
    text = str(caught.value)
    assert len(text.splitlines()) <= 2
    return text


def _rewrite(folder, change) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_unexpected_and_misshapen_weights_are_all_listed(broken):
    folder = broken()

    def change(state):
        state.pop("transformer.encoder.layers.1.mlp.dense_4h_to_h.weight")
        state["transformer.encoder.layers.7.extra.weight"] = torch.zeros(2)
        name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
        state[name] = state[name][:-1].contiguous()
        return state

    _rewrite(folder, change)
    text = _error(folder)
    assert "missing: transformer.encoder.layers.1.mlp.dense_4h_to_h.weight" in text
    assert "unexpected: transformer.encoder.layers.7.extra.weight" in text
    assert "query_key_value.weight is 63x32, config.json needs 64x32" in text


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_truncated_file_is_named(broken, layout):
    folder = broken(layout=layout)
    path = folder / ("model.safetensors" if layout == "safetensors" else "pytorch_model.bin")
    path.write_bytes(path.read_bytes()[:-1000])
    text = _error(folder)
    assert path.name in text
    assert "cut short" in text
    assert text.endswith("(compare its SHA-256 with the hub's).")


def test_shards_that_are_not_there_are_named(broken):
    folder = broken(layout="shards")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in _error(folder)
    index = {"weight_map": {"a": "gone-1.bin", "b": "gone-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    text = _error(folder)
    assert "gone-1.bin" in text
    assert "gone-2.bin" in text


def test_an_index_that_names_more_than_its_shards_hold(broken):
    folder = broken()
    names = load_file(folder / "model.safetensors")
    weight_map = dict.fromkeys([*names, "transformer.encoder.layers.9.x"], "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    assert "transformer.encoder.layers.9.x" in _error(folder)


def test_a_folder_with_code_but_no_weights(broken):
    folder = broken()
    (folder / "model.safetensors").unlink()
    (folder / "modeling_chatglm.py").write_text("raise SystemExit('run!')", "utf-8")
    text = _error(folder)
    assert "no weights found (only code: modeling_chatglm.py)" in text
    assert "model.safetensors, pytorch_model.bin" in text


def test_a_git_lfs_pointer_and_a_pickle_with_code(broken, tmp_path):
    folder = broken(layout="bin")
    (folder / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git-lfs pointer" in _error(folder)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trap"), "w"))

    torch.save({"x": Trap()}, folder / "pytorch_model.bin")
    assert "not plain weights" in _error(folder)
    assert not (tmp_path / "trap").exists()


def test_configs_of_other_architectures_and_packed_weights_are_refused(broken):
    folder = broken()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    for key, value, words in (
        ("rmsnorm", False, "rmsnorm is False"),
        ("quantization_bit", 4, "quantization_bit 4, but no weight there is packed"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {key: value}), "utf-8")
        assert words in _error(folder)
    config.pop("ffn_hidden_size")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert "no key 'ffn_hidden_size'" in _error(folder)


def test_a_vocabulary_too_small_for_the_tokenizer(broken):
    folder = broken()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"padded_vocab_size": 300}), "utf-8")
    with pytest.raises(ModelError, match="300"):
        glmtune.load_tokenizer(folder)


def test_a_hub_that_cannot_be_reached_is_said(monkeypatch):
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with pytest.raises(ModelError, match=r"THUDM/chatglm3-6b.*no route"):
        glmtune.load_model("THUDM/chatglm3-6b")


@pytest.mark.parametrize("files", [["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]])
def test_weights_are_fetched_in_one_format(files, tiny, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append(allow_patterns)
        return str(tiny("chatglm3"))

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    glmtune.load_model("THUDM/chatglm3-6b")
    assert ("*.bin" in asked[0]) == ("model.safetensors" not in files)
    assert not any(pattern.endswith(".py") and "tokenization" not in pattern for pattern in asked[0])


def test_hub_ids_are_fetched_without_code_and_from_the_chosen_hub(tiny, monkeypatch):
    import types

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tiny("chatglm3"))

    monkeypatch.setitem(sys.modules, "modelscope", types.SimpleNamespace(snapshot_download=download))
    model = glmtune.load_model("ZhipuAI/chatglm3-6b", hub="modelscope")
    assert model.config.num_hidden_layers == 2
    name, patterns = asked[-1]
    assert name == "ZhipuAI/chatglm3-6b"
    assert not any(pattern == "*.py" or "modeling" in pattern for pattern in patterns)


@pytest.mark.parametrize(
    ("error", "quantization"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), None), (MemoryError(), "packed4")],
)
def test_a_base_that_does_not_fit_into_the_memory(error, quantization, tiny, monkeypatch):
    from transformers import AutoModelForCausalLM

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match="does not fit into the memory of cpu") as caught:
        glmtune.load_model(tiny("chatglm3"), quantization=quantization, device="cpu")
    assert ("nf4" in str(caught.value)) == (quantization is None)
