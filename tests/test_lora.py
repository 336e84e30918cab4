"""LoRA: every option on every generation, its files, merging, and adapters of the published code."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from glmtune.config import LoraConfig
from glmtune.errors import ConfigError, GlmtuneError, ModelError, RunError
from glmtune.families import get_family
from glmtune.methods.base_info import BaseInfo, read_base_info
from glmtune.methods.lora import Lora, load_adapter, make_loraplus_groups, read_base_path
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.lora_official import write_official_adapter
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.quantization.quantizer import pack_model

FAMILIES = ("chatglm", "chatglm2", "chatglm3", "glm4")
SETTINGS = LoraConfig(rank=4, alpha=8, dropout=0)
BASE_INFO = BaseInfo("somewhere", "0123456789abcdef", "chatglm3")
OPTIONS = {
    "plain": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "bias-lora": {"bias": "lora_only"},
    "bias-all": {"bias": "all"},
    "head": {"modules_to_save": ["output_layer"]},
    "everything": {"rslora": True, "dora": True, "bias": "all", "modules_to_save": ["word_embeddings", "lm_head"]},
}


@pytest.fixture
def base(tiny):
    """`base(family, dtype)`: a fresh tiny base."""

    def load(family: str, dtype: str = "fp32"):
        return load_base(inspect_checkpoint(tiny(family)), dtype=dtype, device="cpu")

    return load


def ids() -> torch.Tensor:
    return torch.randint(10, 200, (2, 9), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=ids(), use_cache=False).logits.float()


def prepared(base, family: str, config: LoraConfig = SETTINGS, dtype: str = "fp32"):
    method = Lora(config, get_family(family))
    return method, method.prepare(base(family, dtype))


def step(model, rate: float = 0.02) -> None:
    """Two optimiser steps: after the first, A has a gradient too."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(2):
        model.train()(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def scramble(model) -> None:
    """B as if trained for long: the update is of the weights' own size."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2


def targets_of(model) -> list[str]:
    return sorted(model.peft_config["default"].target_modules)


# Options


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_options_train_save_read_and_merge(base, family, options, tmp_path):
    config = replace(SETTINGS, **options)
    method, model = prepared(base, family, config)
    before = logits(base(family))
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    step(model)
    tuned = logits(model)
    assert (tuned - before).abs().max() > 1e-3

    method.write(model, tmp_path / "adapter", BASE_INFO)
    stored = dict(method.saved_state(tmp_path / "adapter"))
    trained = method.trained_state(model)
    assert stored.keys() == trained.keys()
    assert all(torch.equal(stored[name], trained[name]) for name in stored)
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    again = prepared(base, family, config)[1]
    method.read(again, tmp_path / "adapter")
    assert torch.equal(logits(again), tuned)
    assert torch.equal(logits(load_adapter(base(family), tmp_path / "adapter", name="other")), tuned)
    assert torch.equal(logits(PeftModel.from_pretrained(base(family), str(tmp_path / "adapter"))), tuned)

    merged = merge_adapter(model)
    assert type(merged) is type(base(family))
    assert not hasattr(merged, "peft_config")
    assert merged.state_dict().keys() == base(family).state_dict().keys()
    torch.testing.assert_close(logits(merged), tuned, atol=1e-5, rtol=1e-5)


def test_the_head_and_all_biases_of_one_module(base, tmp_path):
    """A module that is saved whole has a bias which `bias: all` trains too."""
    config = replace(SETTINGS, bias="all", modules_to_save=["dense"])
    method, model = prepared(base, "chatglm", config)
    step(model)
    tuned = logits(model)
    method.write(model, tmp_path, BASE_INFO)
    assert torch.equal(logits(load_adapter(base("chatglm"), tmp_path)), tuned)
    torch.testing.assert_close(logits(merge_adapter(model)), tuned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["chatglm", "glm4"])
def test_a_gathered_state_is_written_as_the_model_is(base, family, tmp_path):
    config = replace(SETTINGS, dora=True, bias="all", modules_to_save=["lm_head"])
    method, model = prepared(base, family, config)
    step(model)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    method.write(model, tmp_path, BASE_INFO, state)
    stored = dict(method.saved_state(tmp_path))
    own = method.trained_state(model)
    assert stored.keys() == own.keys() == method.trained_state(model, state).keys()
    assert all(torch.equal(stored[name], own[name] + 1) for name in own)


def test_a_sixteen_bit_base_has_adapters_in_fp32_and_stays_as_it_is(base, tmp_path):
    config = replace(SETTINGS, dora=True, bias="all", modules_to_save=["lm_head"])
    method, model = prepared(base, "chatglm2", config, dtype="bf16")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(model)
    method.save(model, tmp_path / "half", BASE_INFO, torch.bfloat16)
    method.write(model, tmp_path / "whole", BASE_INFO)
    half, whole = dict(method.saved_state(tmp_path / "half")), dict(method.saved_state(tmp_path / "whole"))
    assert {value.dtype for value in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name], whole[name].bfloat16()) for name in whole)
    assert any(not torch.equal(half[name].float(), whole[name]) for name in whole)

    used = load_adapter(base("chatglm2", "bf16"), tmp_path / "whole")
    assert logits(used).isfinite().all()  # no autocast: biases and the head are in the base's precision
    assert not any(p.requires_grad for p in used.parameters())
    further = load_adapter(base("chatglm2", "bf16"), tmp_path / "whole", trainable=True)
    assert {p.dtype for p in further.parameters() if p.requires_grad} == {torch.float32}
    assert all(torch.equal(value, whole[name]) for name, value in method.trained_state(further).items())
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {name for name, p in further.named_parameters() if p.requires_grad}


def test_the_files_say_where_the_base_lies(base, tiny, tmp_path):
    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path, BASE_INFO)
    assert read_base_path(tmp_path) == str(tiny("chatglm3").resolve())
    assert read_base_info(tmp_path) == BASE_INFO
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "glmtune.json",
    ]


# Targets


@pytest.mark.parametrize(
    ("family", "wanted", "found"),
    [
        ("chatglm", [], ["query_key_value"]),
        ("chatglm3", [], ["k_proj", "q_proj", "v_proj"]),
        ("chatglm", ["all-linear"], ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"]),
        ("glm4", ["all-linear"], ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]),
        ("chatglm2", ["query_key_value"], ["k_proj", "q_proj", "v_proj"]),
        ("chatglm2", ["dense", "dense_h_to_4h", "dense_4h_to_h"], ["down_proj", "gate_up_proj", "o_proj"]),
        ("glm4", ["self_attention.dense", "q_proj"], ["o_proj", "q_proj"]),
        ("chatglm3", ["output_layer", "o_proj"], ["lm_head", "o_proj"]),
        (
            "chatglm3",
            ["transformer.encoder.layers.1.self_attention.query_key_value"],
            [f"model.layers.1.self_attn.{name}_proj" for name in "kqv"],
        ),
        ("chatglm3", ["layers.0.self_attn.o_proj"], ["model.layers.0.self_attn.o_proj"]),
    ],
)
def test_targets_by_own_and_published_names(base, family, wanted, found):
    model = prepared(base, family, replace(SETTINGS, targets=wanted))[1]
    assert targets_of(model) == found
    adapted = {n.split(".lora_A")[0] for n, _ in model.named_parameters() if ".lora_A" in n}
    assert all(any(path.endswith(f".{name}") for path in adapted) for name in found)
    assert len(adapted) == (len(found) if "." in found[0] else sum(1 if n == "lm_head" else 2 for n in found))


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"targets": ["q_prj"]}, "lora.targets: no module 'q_prj'", "Did you mean q_proj?"),
        ({"targets": ["query_key_valu"]}, "no module 'query_key_valu'", "Did you mean query_key_value?"),
        ({"targets": ["embed_tokens"]}, "lora.targets: no module 'embed_tokens'", "Known: "),
        ({"modules_to_save": ["lm_haed"]}, "lora.modules_to_save: no module 'lm_haed'", "Did you mean lm_head?"),
        ({"modules_to_save": ["o_proj"], "targets": ["all-linear"]}, "o_proj is in lora.targets too", "not both"),
    ],
)
def test_what_a_model_does_not_have(base, options, message, hint):
    with pytest.raises(ConfigError) as caught:
        prepared(base, "chatglm3", replace(SETTINGS, **options))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_tied_head_cannot_be_trained_whole(base):
    model = base("chatglm3")
    model.config.tie_word_embeddings = True
    with pytest.raises(ConfigError, match="are one matrix"):
        Lora(replace(SETTINGS, modules_to_save=["lm_head"]), get_family("chatglm3")).prepare(model)


def test_a_packed_base_is_refused(base, tmp_path):
    method, model = prepared(base, "chatglm")
    method.write(model, tmp_path, BASE_INFO)
    packed = pack_model(base("chatglm"), 4)
    for refused in (lambda: method.prepare(packed), lambda: load_adapter(packed, tmp_path)):
        with pytest.raises(ConfigError, match="published int4 layout") as caught:
            refused()
        assert "ptuning" in caught.value.hint


# LoRA+


def test_loraplus_gives_b_its_own_rate(base):
    _, model = prepared(base, "chatglm", replace(SETTINGS, dora=True, bias="all", modules_to_save=["lm_head"]))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_loraplus_groups(model, 1e-3, 0.1, 16)
    seen = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert seen.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, (rate, decay) in seen.items():
        assert rate == (1e-3 * 16 if "lora_B" in name else 1e-3)
        assert decay == (0.0 if "bias" in name or "magnitude" in name else 0.1), name
    optimizer = torch.optim.AdamW(groups)
    b = next(p for name, p in model.named_parameters() if "lora_B" in name)
    model.train()(input_ids=ids(), labels=ids()).loss.backward()
    optimizer.step()
    assert b.detach().abs().max().item() == pytest.approx(16e-3, rel=1e-2)  # Adam's first step is the rate itself


# Quantised bases


@pytest.fixture
def quantised(golden):
    """`quantised(family, bits)`: a base in bitsandbytes' precision; its blocks ask for the wider tiny models."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    def load(family: str, bits: int):
        config = inspect_checkpoint(golden / family, family=family).config
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
        how = BitsAndBytesConfig(**how, bnb_4bit_compute_dtype=torch.float32)
        # With loading information it is transformers' own loading, without our check of the widths.
        return AutoModelForCausalLM.from_pretrained(
            golden / family, config=config, dtype=torch.float32, quantization_config=how, output_loading_info=True
        )[0]

    return load


@torch.no_grad()
def train_logits(model) -> torch.Tensor:
    """Without dropout: in eval mode bitsandbytes stores 4-bit weights in another order on some CPUs."""
    return model.train()(input_ids=ids(), use_cache=False).logits


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["chatglm", "chatglm2"])
def test_a_bitsandbytes_base(quantised, family, bits, tmp_path):
    config = replace(SETTINGS, targets=["all-linear"], modules_to_save=["lm_head"], dora=bits == 4)
    method = Lora(config, get_family(family))
    model = method.prepare(quantised(family, bits))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before = train_logits(model)
    step(model)
    tuned = train_logits(model)
    assert (tuned - before).abs().max() > 1e-3
    method.write(model, tmp_path, BASE_INFO)
    torch.testing.assert_close(train_logits(load_adapter(quantised(family, bits), tmp_path)), tuned, atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match="quantised base"):
        merge_adapter(model)
    for refused, words in (
        ({"modules_to_save": ["dense"]}, "is quantised"),
        ({"bias": "lora_only"}, "rounds the bias"),
    ):
        with pytest.raises(ConfigError, match=words):
            Lora(replace(SETTINGS, **refused), get_family(family)).prepare(quantised(family, bits))


def test_an_official_adapter_on_a_bitsandbytes_base(quantised, golden, tmp_path):
    """The rows of a 4-bit matrix are not in the shape of its storage."""
    folder = official(lambda _: golden / "chatglm2", "chatglm2", tmp_path / "official")
    model = quantised("chatglm2", 4)
    before = train_logits(model)
    assert (train_logits(load_adapter(model, folder)) - before).abs().max() > 0.1


# Merging


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_merging_rounds_once(base, dtype, unit, dora):
    _, model = prepared(base, "chatglm3", replace(SETTINGS, dora=dora), dtype=dtype)
    scramble(model)
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * 2
    exact = layer.base_layer.weight.double() + update
    if dora:
        exact *= layer.lora_magnitude_vector["default"].weight.double()[:, None] / exact.norm(dim=1, keepdim=True)
    weight = merge_adapter(model).model.layers[0].self_attn.q_proj.weight
    assert weight.dtype == dtype
    torch.testing.assert_close(weight.double(), exact, rtol=unit, atol=1e-6)


def test_a_quantised_base_is_not_merged_into(base):
    _, model = prepared(base, "chatglm3")
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.v_proj").base_layer
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"quantised base \(model.layers.0.self_attn.v_proj"):
        merge_adapter(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Files that do not fit


def _rewrite(folder: Path, change) -> None:
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors")


def _missing(state):
    del state[next(name for name in state if "lora_B" in name)]


def _left_over(state):
    state["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def _misshapen(state):
    name = next(name for name in state if "lora_A" in name)
    state[name] = state[name][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "words"),
    [(_missing, "missing: base_model"), (_left_over, "left over: base_model"), (_misshapen, "is 4x31 instead of 4x32")],
)
def test_weights_must_fit_one_by_one(base, tmp_path, change, words):
    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path, BASE_INFO)
    _rewrite(tmp_path, change)
    fresh = base("chatglm3")
    with pytest.raises(ModelError, match=words):
        load_adapter(fresh, tmp_path)
    assert not any("lora" in name for name, _ in fresh.named_parameters())  # as it was
    before = method.trained_state(model)
    with pytest.raises(RunError, match=words):
        method.read(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in method.trained_state(model).items())


@pytest.mark.parametrize(("trained", "given"), [("chatglm", "chatglm3"), ("glm4", "chatglm")])
def test_another_generations_adapter(base, tmp_path, trained, given):
    method, model = prepared(base, trained)
    method.write(model, tmp_path, BASE_INFO)
    with pytest.raises(ModelError, match="does not fit this base") as caught:
        load_adapter(base(given), tmp_path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"rank": 8}, "lora.rank 4, not 8"), ({"alpha": 9}, "lora.alpha 8"), ({"rslora": True}, "lora.rslora False")],
)
def test_other_settings_cannot_be_read(base, tmp_path, changed, words):
    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path, BASE_INFO)
    other = prepared(base, "chatglm3", replace(SETTINGS, **changed))[1]
    with pytest.raises(RunError, match=words):
        method.read(other, tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("adapter_config.json", None, "no adapter here"),
        ("adapter_config.json", b"{", "not valid JSON"),
        ("adapter_config.json", b"[]", "must hold a JSON object"),
        ("adapter_config.json", b'{"peft_type": "PREFIX_TUNING"}', "not LORA"),
        ("adapter_model.safetensors", None, "has no weights"),
        ("adapter_model.safetensors", b"123", "cut short or corrupt"),
    ],
)
def test_broken_files(base, tmp_path, file, content, words):
    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path, BASE_INFO)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(GlmtuneError, match=words) as caught:
        load_adapter(base("chatglm3"), tmp_path)
    assert "\n" not in caught.value.message
    with pytest.raises(RunError, match=words):
        method.read(model, tmp_path)


def test_code_in_a_bin_file_is_not_run(base, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path, BASE_INFO)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({"x": Evil()}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"not plain weights|corrupt"):
        load_adapter(base("chatglm3"), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_embeddings_that_peft_stored_beside_it_must_be_the_bases(base, tmp_path):
    method, model = prepared(base, "chatglm3")
    scramble(model)
    method.write(model, tmp_path, BASE_INFO)
    key = "base_model.model.model.embed_tokens.weight"
    own = base("chatglm3").state_dict()["model.embed_tokens.weight"]
    _rewrite(tmp_path, lambda state: state.update({key: own}))
    assert torch.equal(logits(load_adapter(base("chatglm3"), tmp_path)), logits(model))
    _rewrite(tmp_path, lambda state: state.update({key: own + 1}))
    with pytest.raises(ModelError, match=f"left over: {key}"):
        load_adapter(base("chatglm3"), tmp_path)


# Adapters of the published code


def official(tiny, family: str, folder: Path, *, names=("query_key_value",), binary=False, **options) -> Path:
    """An adapter as peft writes it for the published code, of random weights and with an old release's config."""
    published = load_file(tiny(family) / "model.safetensors")
    generator = torch.Generator().manual_seed(9)
    state = {}
    for name, weight in published.items():
        path = name.removesuffix(".weight")
        if name.endswith(".weight") and path.rsplit(".", 1)[-1] in names and "layers" in name:
            rows, columns = weight.shape
            state[f"base_model.model.{path}.lora_A.weight"] = torch.randn(4, columns, generator=generator) * 0.3
            state[f"base_model.model.{path}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.3
            if options.get("use_dora"):
                magnitude = weight.norm(dim=1) * (1 + torch.rand(rows, generator=generator))
                state[f"base_model.model.{path}.lora_magnitude_vector"] = magnitude
    folder.mkdir()
    if binary:
        torch.save(state, folder / "adapter_model.bin")
    else:
        save_file(state, folder / "adapter_model.safetensors")
    config = {
        "base_model_name_or_path": "THUDM/chatglm",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": list(names),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | options))
    return folder


def reference(tiny, family: str, adapter: Path, scale: float, where: Path):
    """The base with the update worked into its published, fused weights by hand."""
    shutil.copytree(tiny(family), where)
    weights = load_file(where / "model.safetensors")
    file = adapter / "adapter_model.safetensors"
    state = load_file(file) if file.exists() else torch.load(adapter / "adapter_model.bin", weights_only=True)
    for name, a in state.items():
        if name.endswith("lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            key = path.removeprefix("base_model.model.") + ".weight"
            weights[key] = weights[key] + scale * state[f"{path}.lora_B.weight"] @ a
            if f"{path}.lora_magnitude_vector" in state:
                norm = weights[key].norm(dim=1, keepdim=True)
                weights[key] = weights[key] / norm * state[f"{path}.lora_magnitude_vector"][:, None]
    save_file(weights, where / "model.safetensors", metadata={"format": "pt"})
    return logits(load_base(inspect_checkpoint(where), device="cpu"))


class PublishedModules(torch.nn.Module):
    """The published code's tree of modules, as far as peft looks at it."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        super().__init__()
        self.config = {"model_type": "chatglm"}
        for name, value in weights.items():
            *parents, module, kind = name.split(".")
            node = self
            for parent in parents:
                if parent not in dict(node.named_children()):
                    node.add_module(parent, torch.nn.Module())
                node = getattr(node, parent)
            if module not in dict(node.named_children()):
                rows, *columns = weights[".".join([*parents, module, "weight"])].shape
                node.add_module(module, torch.nn.Linear(columns[0] if columns else 1, rows, bias=False))
            getattr(node, module).register_parameter(kind, torch.nn.Parameter(value))

    def prepare_inputs_for_generation(self): ...


def on_published_modules(tiny, family: str, adapter: Path, where: Path):
    """Logits after peft itself has put `adapter` on the published modules and merged it."""
    shutil.copytree(tiny(family), where)
    tree = PublishedModules(load_file(where / "model.safetensors"))
    merged = PeftModel.from_pretrained(tree, str(adapter)).merge_and_unload()
    save_file(merged.state_dict(), where / "model.safetensors", metadata={"format": "pt"})
    return logits(load_base(inspect_checkpoint(where), device="cpu"))


KINDS = {
    "plain": ({}, 2.0),
    "rslora": ({"use_rslora": True}, 4.0),
    "dora": ({"use_dora": True}, 2.0),
    "bin": ({"binary": True}, 2.0),
    "all": ({"names": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")}, 2.0),
    "alpha": ({"alpha_pattern": {"query_key_value": 16}}, 4.0),
}


@pytest.mark.parametrize(("options", "scale"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_official_adapter_computes_what_it_computed(base, tiny, tmp_path, family, options, scale):
    folder = official(tiny, family, tmp_path / "official", **options)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    fresh = base(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of the old config's keys
        model = load_adapter(fresh, folder)
    wanted = reference(tiny, family, folder, scale, tmp_path / "reference")
    torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-5)
    assert (wanted - logits(base(family))).abs().max() > 0.1
    torch.testing.assert_close(logits(merge_adapter(model)), wanted, atol=2e-5, rtol=1e-5)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_an_official_adapters_whole_modules(base, tiny, tmp_path):
    folder = official(tiny, "chatglm3", tmp_path / "official", modules_to_save=["output_layer"])
    head = base("chatglm3").state_dict()["lm_head.weight"] * 3
    _rewrite(folder, lambda state: state.update({"base_model.model.transformer.output_layer.weight": head}))
    model = load_adapter(base("chatglm3"), folder)
    method, prepared_model = prepared(base, "chatglm3", replace(SETTINGS, modules_to_save=["output_layer"]))
    method.read(prepared_model, folder)
    assert torch.equal(logits(prepared_model), logits(model))
    assert torch.equal(merge_adapter(model).lm_head.weight, head)


def test_an_official_adapter_starts_a_run(base, tiny, tmp_path):
    folder = official(tiny, "chatglm3", tmp_path / "official")
    method, model = prepared(base, "chatglm3")
    method.read(model, folder)
    assert torch.equal(logits(model), logits(load_adapter(base("chatglm3"), folder)))


def test_a_run_cannot_have_an_official_adapters_own_scales(base, tiny, tmp_path):
    folder = official(tiny, "chatglm3", tmp_path / "official", alpha_pattern={"query_key_value": 16})
    method, model = prepared(base, "chatglm3")
    with pytest.raises(RunError, match="scale of their own"):
        method.read(model, folder)


def test_an_official_adapter_of_another_size(base, tiny, tmp_path):
    folder = official(tiny, "chatglm3", tmp_path / "official")

    def cut(state):
        name = next(name for name in state if "lora_B" in name)
        state[name] = state[name][:-8].contiguous()

    _rewrite(folder, cut)
    with pytest.raises(ModelError, match=r"has 56 rows; this base's q_proj, k_proj, v_proj have 32 \+ 16 \+ 16"):
        load_adapter(base("chatglm3"), folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["plain", "rslora", "dora", "all"])
def test_there_and_back_bit_for_bit(base, tiny, tmp_path, family, kind):
    first = official(tiny, family, tmp_path / "official", **KINDS[kind][0])
    model = load_adapter(base(family), first)
    Lora(SETTINGS, get_family(family)).write(model, tmp_path / "native", BASE_INFO)
    write_official_adapter(tmp_path / "native", inspect_checkpoint(tiny(family)).native_shapes, tmp_path / "back")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in (first, tmp_path / "back")]
    for key in ("r", "lora_alpha", "peft_type", "use_rslora", "use_dora"):
        assert configs[0].get(key) == configs[1].get(key)
    assert sorted(configs[0]["target_modules"]) == sorted(configs[1]["target_modules"])
    assert read_base_info(tmp_path / "back") == BASE_INFO


OWN = {
    "plain": ({}, 12),
    "rslora": ({"rslora": True}, 12),
    "dora": ({"dora": True}, 12),
    "bias": ({"bias": "all"}, 12),
    "two of three": ({"targets": ["q_proj", "v_proj"]}, 8),
    "one of three": ({"targets": ["k_proj"]}, 4),
    "others too": ({"targets": ["q_proj", "v_proj", "dense_4h_to_h"]}, 8),
    "uneven": ({"targets": ["layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj", "o_proj", "k_proj"]}, 8),
    "head": ({"modules_to_save": ["lm_head"]}, 12),
}


@pytest.mark.parametrize(("options", "rank"), OWN.values(), ids=OWN)
def test_own_adapters_for_the_published_code(base, tiny, tmp_path, options, rank):
    config = replace(SETTINGS, **options)
    method, model = prepared(base, "chatglm3", config)
    scramble(model)
    step(model)
    method.write(model, tmp_path / "native", BASE_INFO)
    shapes = inspect_checkpoint(tiny("chatglm3")).native_shapes
    write_official_adapter(tmp_path / "native", shapes, tmp_path / "official")
    state = load_file(tmp_path / "official" / "adapter_model.safetensors")
    fused = "base_model.model.transformer.encoder.layers.1.self_attention.query_key_value"
    assert state[f"{fused}.lora_A.weight"].shape == (rank, 32)
    assert state[f"{fused}.lora_B.weight"].shape == (64, rank)
    assert not any("self_attn" in name or "embed_tokens" in name for name in state)
    again = load_adapter(base("chatglm3"), tmp_path / "official")
    torch.testing.assert_close(logits(again), logits(model), atol=5e-5, rtol=1e-5)
    assert (logits(model) - logits(base("chatglm3"))).abs().max() > 0.1
    there = on_published_modules(tiny, "chatglm3", tmp_path / "official", tmp_path / "merged")
    torch.testing.assert_close(there, logits(model), atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["q_proj", "v_proj"], "dora": True}, "magnitude vector of some of"),
        ({"targets": ["q_proj"], "bias": "lora_only"}, "bias of some of"),
    ],
)
def test_what_the_published_matrix_cannot_say(base, tiny, tmp_path, options, words):
    method, model = prepared(base, "glm4", replace(SETTINGS, **options))
    method.write(model, tmp_path / "native", BASE_INFO)
    shapes = inspect_checkpoint(tiny("glm4")).native_shapes
    with pytest.raises(ModelError, match=words):
        write_official_adapter(tmp_path / "native", shapes, tmp_path / "official")
    assert not (tmp_path / "official").exists()


def test_an_official_adapter_needs_its_own_base(base, tiny, tmp_path):
    method, model = prepared(base, "chatglm")
    method.write(model, tmp_path / "native", BASE_INFO)
    shapes = inspect_checkpoint(tiny("glm4")).native_shapes
    with pytest.raises(ModelError, match="this base has no module"):
        write_official_adapter(tmp_path / "native", shapes, tmp_path / "official")


def test_half_an_update_is_not_written(base, tiny, tmp_path):
    method, model = prepared(base, "chatglm3")
    method.write(model, tmp_path / "native", BASE_INFO)
    _rewrite(tmp_path / "native", _missing)
    shapes = inspect_checkpoint(tiny("chatglm3")).native_shapes
    with pytest.raises(ModelError, match="an A without its B"):
        write_official_adapter(tmp_path / "native", shapes, tmp_path / "official")
