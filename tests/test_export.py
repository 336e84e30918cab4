"""Exporting through the command line: what is written says what was meant, and loads where it should."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Glm4Config, Glm4ForCausalLM

import glmtune
from glmtune.config import LoraConfig, PTuningConfig
from glmtune.errors import ModelError
from glmtune.export import shards
from glmtune.export.export_request import ExportRequest
from glmtune.export.exporter import export_model as write
from glmtune.export.folder import create_folder
from glmtune.families import get_family
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora import Lora
from glmtune.methods.ptuning import PTuning, find_prefix
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base, prepare_quantized_cpu
from glmtune.models.weight_names import convert_to_published
from glmtune.quantization.quantizer import get_quantization, pack_model
from tiny import FAMILIES, make_tiny

LATER = FAMILIES[1:]
TALK = [{"role": "user", "content": "你好 hello"}, {"role": "assistant", "content": "白色上衣"}]


def _ids(folder, family):
    return get_family(family).encode(TALK, glmtune.load_tokenizer(folder, family=family)).input_ids


@torch.no_grad()
def _logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits


def _weights(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def _same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def _config(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def _edit_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(_config(folder) | changes), "utf-8")


def _left_behind(folder):
    return [path.name for path in folder.iterdir() if path.name not in ("out", "cache")]


@pytest.fixture
def export(glmtune_command, tmp_path):
    """`export(target, "--bits", 4)`: the folder written and what the command printed."""

    def run(target, *options, out="out"):
        return tmp_path / out, glmtune_command("export", target, tmp_path / out, "--device", "cpu", *options)

    return run


@pytest.fixture
def done(export):
    """Like `export`, for one that must succeed: the folder and its output."""

    def run(target, *options, out="out"):
        folder, result = export(target, *options, out=out)
        assert result.code == 0, result.err
        return folder, result.out

    return run


@pytest.fixture
def refused(export, tmp_path):
    """Like `export`, for one that must fail with a message and leave nothing."""

    def run(target, *options):
        before = {path.name for path in tmp_path.iterdir()}
        _, result = export(target, *options)
        assert result.code == 1
        assert "Traceback" not in result.err
        assert {path.name for path in tmp_path.iterdir()} == before
        return result.err

    return run


def _save(method, base_folder, family, folder, touch):
    base = inspect_checkpoint(base_folder)
    model = method.prepare(load_base(base, device="cpu"))
    torch.manual_seed(0)
    touch(model)
    folder.mkdir(parents=True)
    method.save(model, folder, BaseInfo(str(base_folder), base.fingerprint, family))
    return folder


def make_lora(base, family, folder, std=0.05):
    def touch(model):
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=std)

    return _save(Lora(LoraConfig(), get_family(family)), base, family, folder, touch)


def make_prefix(base, family, folder):
    def touch(model):
        find_prefix(model).embedding.weight.data.normal_()

    return _save(PTuning(PTuningConfig(num_virtual_tokens=5)), base, family, folder, touch)


@pytest.fixture
def lora(tiny, tmp_path_factory):
    return lambda family: make_lora(tiny(family), family, tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture
def prefix(tiny, tmp_path_factory):
    return lambda family: make_prefix(tiny(family), family, tmp_path_factory.mktemp("prefix") / "adapter")


@pytest.fixture
def copied(tiny, tmp_path_factory):
    """`copied(family, key=value)`: a tiny checkpoint of one's own, with other keys in its config."""

    def get(family, **changes):
        folder = tmp_path_factory.mktemp("copy") / tiny(family).name
        shutil.copytree(tiny(family), folder)
        _edit_config(folder, **changes)
        return folder

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_folder_comes_back_bit_for_bit_from_either_layout(family, tiny, done):
    base = tiny(family)
    official, _ = done(base, "--format", "official")
    _same(_weights(official), _weights(base))
    before, after = _config(base), _config(official)
    assert {key: after[key] for key in before} == before
    assert _ids(official, family) == _ids(base, family)

    native, _ = done(base, out="native")
    back, _ = done(native, "--format", "official", out="back")
    _same(_weights(back), _weights(base))
    kept = set(before) - {"_name_or_path"}
    assert {key: _config(back)[key] for key in kept} == {key: before[key] for key in kept}
    assert _ids(back, family) == _ids(base, family)
    assert glmtune.detect_family(back).name == family


@pytest.mark.parametrize("layout", ["hf", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_adapter_says_what_base_and_adapter_say(family, layout, lora, tiny, done):
    adapter = lora(family)
    folder, out = done(adapter, "--format", layout)
    ids = _ids(tiny(family), family)
    merged, tuned = (_logits(glmtune.load_model(path, device="cpu"), ids) for path in (folder, adapter))
    base = _logits(glmtune.load_model(tiny(family), device="cpu"), ids)
    assert (merged - tuned).abs().max() < 1e-4
    assert (merged - base).abs().max() > 0.1
    assert "allowed in float32" in out
    assert f"glmtune chat {folder}" in out
    assert ("vllm serve" in out) == (layout == "hf" and family in LATER)
    assert not (folder / "adapter_config.json").exists()


_PLAIN = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "glmtune":
            raise ImportError("glmtune is blocked")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids, talk = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
assert tokenizer.is_fast and "glmtune" not in sys.modules
torch.save({
    "logits": model(input_ids=torch.tensor([ids])).logits.detach(),
    "class": type(model).__name__,
    "text": tokenizer("你好 <|user|> hello", add_special_tokens=False, split_special_tokens=True).input_ids,
    "chat": tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"],
    "stop": model.generation_config.eos_token_id,
    "pad": model.generation_config.pad_token_id,
}, sys.argv[4])
"""


@pytest.mark.parametrize("family", LATER)
def test_plain_transformers_loads_the_hf_layout(family, lora, tiny, done, tmp_path):
    adapter = lora(family)
    folder, _ = done(adapter)
    ids = _ids(tiny(family), family)
    arguments = [str(folder), json.dumps(ids), json.dumps(TALK), str(tmp_path / "said.pt")]
    ran = subprocess.run([sys.executable, "-c", _PLAIN, *arguments], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = torch.load(tmp_path / "said.pt")
    tokenizer, chosen = glmtune.load_tokenizer(tiny(family)), get_family(family)
    assert said["class"] == "GlmForCausalLM"
    assert torch.equal(said["logits"], _logits(glmtune.load_model(folder, device="cpu"), ids))
    assert (
        said["text"] == tokenizer("你好 <|user|> hello", add_special_tokens=False, split_special_tokens=True).input_ids
    )
    assert said["chat"] == chosen.encode_prompt(TALK[:1], tokenizer)
    assert said["stop"] == chosen.get_stop_ids(tokenizer)
    assert said["pad"] == tokenizer.pad_token_id
    assert not {"auto_map", "quantization_bit"} & _config(folder).keys()


def test_the_first_generation_loads_after_import_glmtune(lora, tiny, done):
    adapter = lora("chatglm")
    folder, out = done(adapter)
    assert "`import glmtune` first" in out
    ids = _ids(tiny("chatglm"), "chatglm")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (_logits(model, ids) - _logits(glmtune.load_model(adapter, device="cpu"), ids)).abs().max() < 1e-4
    assert (
        AutoTokenizer.from_pretrained(folder)("你好").input_ids
        == glmtune.load_tokenizer(tiny("chatglm"))("你好").input_ids
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_are_those_packed_in_memory(family, bits, lora, tiny, done):
    merged, _ = done(lora(family), "--format", "official", out="merged")
    folder, out = done(merged, "--format", "official", "--bits", bits)
    assert _config(folder)["quantization_bit"] == bits
    assert f"{bits} bits against full precision" in out
    assert "the same logits exactly" in out
    packed = pack_model(glmtune.load_model(merged, device="cpu"), bits)
    state = packed.state_dict() if family == "chatglm" else convert_to_published(packed.state_dict())
    _same(_weights(folder), dict(state))
    ids = _ids(merged, family)
    assert torch.equal(_logits(glmtune.load_model(folder, device="cpu"), ids), _logits(packed, ids))
    assert (_logits(packed, ids) - _logits(glmtune.load_model(merged, device="cpu"), ids)).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_packed_folders_in_16_bits_compute_as_in_memory(family, wide, done, tmp_path):
    """Rotary frequencies stay in fp32 whatever the weights are in."""
    adapter = make_lora(wide(family), family, tmp_path / "adapter")
    _, out = done(adapter, "--format", "official", "--bits", 4, "--dtype", "fp16")
    assert "the same logits exactly" in out


def test_a_packed_base_can_be_unpacked_but_not_packed_otherwise(tiny, done, refused):
    packed, _ = done(tiny("chatglm2"), "--format", "official", "--bits", 4)
    again, _ = done(packed, "--format", "official", "--bits", 4, out="again")
    _same(_weights(again), _weights(packed))
    plain, out = done(packed, out="plain")
    assert "does not come back" in out
    assert "quantization_bit" not in _config(plain)
    ids = _ids(packed, "chatglm2")
    loaded = glmtune.load_model(plain, device="cpu")
    assert get_quantization(loaded) is None
    assert torch.allclose(_logits(loaded, ids), _logits(glmtune.load_model(packed, device="cpu"), ids), atol=1e-5)
    shutil.rmtree(again)
    for options in (("--format", "official"), ("--format", "official", "--bits", 8), ("--bits", 4)):
        shutil.move(packed, packed.with_name("base"))
        assert "int4 already" in refused(packed.with_name("base"), *options)
        shutil.move(packed.with_name("base"), packed)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason='pip install "glmtune[qlora]"'
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Like `tiny`, of a width that bitsandbytes computes on the CPU."""
    made = {}

    def get(family):
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp("wide") / family, hidden=128)
        return made[family]

    return get


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "name"), [(8, "int8"), (4, "nf4")])
@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_bitsandbytes_folders_load_by_themselves(family, bits, name, wide, done, tmp_path):
    adapter = make_lora(wide(family), family, tmp_path / "adapter")
    folder, out = done(adapter, "--bits", bits, "--dtype", "bf16")
    assert f"{bits} bits against full precision" in out
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}).eval()
    assert get_quantization(model) == name
    prepare_quantized_cpu(model)  # bitsandbytes' faster kernel there rounds otherwise
    ids = _ids(wide(family), family)
    found, tuned = _logits(model, ids).float(), _logits(glmtune.load_model(adapter, device="cpu"), ids)
    base = _logits(glmtune.load_model(wide(family), device="cpu"), ids)
    assert (found - tuned).abs().mean() < (base - tuned).abs().mean() * (0.5 if bits == 8 else 1.5)
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 0.9 * (
        sum(value.numel() * 2 for value in _weights(wide(family)).values())
    )
    assert _left_behind(tmp_path) == ["adapter"]
    ours = glmtune.load_model(folder, device="cpu")
    assert torch.equal(_logits(ours, ids), _logits(model, ids))
    with pytest.raises(ModelError, match=f"its weights are {name} already"):
        glmtune.load_model(folder, quantization="packed4")


@needs_bitsandbytes
def test_a_run_on_a_quantised_base_merges_into_the_full_one(wide, done, glmtune_command, adgen_file, tmp_path):
    run = tmp_path / "run"
    trained = glmtune_command(
        *("train", "--model", wide("chatglm3"), "--data", adgen_file(8), "--method", "qlora", "--output", run),
        *("--set", "training.max_steps=2", "--set", "training.learning_rate=3e-2"),
    )
    assert trained.code == 0, trained.err
    folder, out = done(run)
    assert "Trained on the base in nf4; merged into its full precision" in out
    assert {value.dtype for value in _weights(folder).values()} == {torch.float32}
    ids = _ids(wide("chatglm3"), "chatglm3")
    onto = glmtune.load_model(wide("chatglm3"), adapter=run, device="cpu")
    assert (_logits(glmtune.load_model(folder, device="cpu"), ids) - _logits(onto, ids)).abs().max() < 1e-3


def test_a_prefix_for_a_quantised_base_says_so(tiny, done, glmtune_command, adgen_file, tmp_path):
    run = tmp_path / "run"
    trained = glmtune_command(
        *("train", "--model", tiny("chatglm"), "--data", adgen_file(8), "--method", "ptuning", "--output", run),
        *("--set", "training.max_steps=2", "--set", "model.quantization=packed8"),
    )
    assert trained.code == 0, trained.err
    _, out = done(run)
    assert "The prefix was trained on the base in packed8; here the base is unquantised." in out


def test_a_run_of_method_freeze_is_its_own_model(tiny, done, glmtune_command, adgen_file, tmp_path):
    run = tmp_path / "run"
    trained = glmtune_command(
        *("train", "--model", tiny("chatglm3"), "--data", adgen_file(8), "--method", "freeze", "--output", run),
        *("--set", "training.max_steps=2", "--set", "freeze.trainable_layers=1"),
    )
    assert trained.code == 0, trained.err
    folder, _ = done(run, "--format", "official")
    _same(_weights(folder), convert_to_published(_weights(run / "model")))
    assert not torch.equal(
        _weights(folder)["transformer.encoder.layers.1.self_attention.dense.weight"],
        _weights(tiny("chatglm3"))["transformer.encoder.layers.1.self_attention.dense.weight"],
    )


@pytest.mark.parametrize("layout", ["hf", "official"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_lies_beside_its_base(family, layout, prefix, tiny, done):
    adapter = prefix(family)
    folder, out = done(adapter, "--format", layout)
    beside = folder / "ptuning"
    assert "cannot be merged" in out
    assert f"glmtune chat {beside}" in out
    assert f"glmtune chat {beside}" in (beside / "README.txt").read_text("utf-8")
    ids = _ids(tiny(family), family)
    expected = _logits(glmtune.load_model(adapter, device="cpu"), ids)
    assert torch.equal(_logits(glmtune.load_model(beside, device="cpu"), ids), expected)
    assert torch.equal(_logits(glmtune.load_model(folder, adapter=beside, device="cpu"), ids), expected)
    base = _logits(glmtune.load_model(folder, device="cpu"), ids)
    assert torch.equal(base, _logits(glmtune.load_model(tiny(family), device="cpu"), ids))
    assert (base - expected).abs().max() > 1e-3
    if layout == "official":
        state = torch.load(beside / "pytorch_model.bin", weights_only=True)
        assert list(state) == ["transformer.prefix_encoder.embedding.weight"]
        assert _config(beside)["pre_seq_len"] == 5
        assert _config(beside)["num_layers"] == _config(folder)["num_layers"]


@pytest.mark.parametrize("layout", ["hf", "official"])
@pytest.mark.parametrize("kind", ["lora", "prefix"])
@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_an_adapter_can_be_written_alone(family, kind, layout, request, tiny, done):
    adapter = request.getfixturevalue(kind)(family)
    folder, _ = done(adapter, "--format", layout, "--adapter-only")
    assert not (folder / "model.safetensors").exists()
    ids = _ids(tiny(family), family)
    found, expected = (_logits(glmtune.load_model(path, device="cpu"), ids) for path in (folder, adapter))
    assert torch.allclose(found, expected, atol=1e-4)
    if (kind, layout, family) == ("lora", "official", "chatglm3"):
        assert all("query_key_value" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_large_models_are_written_in_shards(lora, tiny, done):
    whole, _ = done(tiny("chatglm3"), out="whole")
    folder, _ = done(tiny("chatglm3"), "--max-shard-size", "40KB")
    files = sorted(folder.glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    for file in files:
        held = load_file(file)
        assert len(held) == 1 or sum(value.nbytes for value in held.values()) <= 40_000
    index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))
    assert {name: name in load_file(folder / file) for name, file in index["weight_map"].items()} == dict.fromkeys(
        _weights(whole), True
    )
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in _weights(whole).values())
    _same(_weights(folder), _weights(whole))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_precision_can_be_chosen(dtype, lora, done):
    folder, out = done(lora("chatglm2"), "--format", "official", "--dtype", dtype)
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {value.dtype for value in _weights(folder).values()} == {wanted}
    assert _config(folder)["torch_dtype"] == str(wanted).removeprefix("torch.")
    assert f"allowed in {str(wanted).removeprefix('torch.')}" in out


@pytest.mark.parametrize(("family", "ratio"), [("chatglm3", 50), ("chatglm2", 16), ("glm4", 2.5)])
def test_stretched_positions_come_back(family, ratio, copied, done):
    base = copied(family, rope_ratio=ratio)
    native, _ = done(base, out="native")
    assert _config(native)["rope_theta"] == (10000 if family == "chatglm2" else 10000 * ratio)
    back, _ = done(native, "--format", "official", out="back")
    assert _config(back)["rope_ratio"] == ratio
    ids = _ids(base, family)
    assert torch.equal(
        *(_logits(glmtune.load_model(folder, device="cpu"), ids) for folder in (base, back)),
    )


def test_the_repositorys_code_is_copied_and_never_run(copied, done):
    base = copied("chatglm3", auto_map={"AutoModel": "modeling_chatglm.Other"})
    (base / "modeling_chatglm.py").write_text("raise SystemExit('executed')\n", "utf-8")
    (base / "generation_config.json").write_text('{"eos_token_id": 2, "temperature": 0.8}', "utf-8")
    folder, out = done(base, "--format", "official")
    assert (folder / "modeling_chatglm.py").read_text("utf-8") == "raise SystemExit('executed')\n"
    assert _config(folder)["auto_map"] == {"AutoModel": "modeling_chatglm.Other"}
    assert "chatglm_cpp/convert.py" in out
    native, _ = done(base, out="native")
    assert not list(native.glob("*.py"))
    generation = json.loads((native / "generation_config.json").read_text("utf-8"))
    assert generation["temperature"] == 0.8
    assert len(generation["eos_token_id"]) == 3


def test_another_base_is_refused(lora, tiny, refused, tmp_path_factory):
    other = make_tiny("chatglm3", tmp_path_factory.mktemp("other") / "chatglm3", seed=7)
    assert "fingerprint" in refused(lora("chatglm3"), "--base", other)


def test_a_fresh_adapter_is_refused(tiny, refused, tmp_path_factory):
    adapter = make_lora(tiny("chatglm2"), "chatglm2", tmp_path_factory.mktemp("fresh") / "adapter", std=0)
    assert "does not change the output of the base" in refused(adapter)


def test_nothing_is_written_over(tiny, export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", "utf-8")
    _, result = export(tiny("chatglm2"))
    assert result.code == 1
    assert "not an empty folder" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert export(tiny("chatglm2"))[1].code == 0


def test_a_damaged_weight_is_found_and_nothing_is_left(tiny, refused, monkeypatch):
    write = shards.TensorPiece.write

    def damaged(piece, stream):
        hurt = piece.name == "model.layers.1.self_attn.o_proj.weight"
        write(shards.TensorPiece(piece.name, (piece.parts[0] * 1.01,)) if hurt else piece, stream)

    monkeypatch.setattr(shards.TensorPiece, "write", damaged)
    assert "another model than the one in memory" in refused(tiny("chatglm3"))


def test_a_wrong_merge_is_found(lora, refused, monkeypatch):
    exporter = importlib.import_module("glmtune.export.exporter")
    merge = exporter.merge_adapter

    def forgetful(model):
        for name, parameter in model.named_parameters():
            if "layers.1." in name and "q_proj.lora_B" in name:
                parameter.data.zero_()
        return merge(model)

    monkeypatch.setattr(exporter, "merge_adapter", forgetful)
    assert "not base and adapter" in refused(lora("chatglm3"))


def test_an_export_that_is_stopped_leaves_nothing(tiny, tmp_path, monkeypatch):
    def stopped(piece, stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.TensorPiece, "write", stopped)
    with pytest.raises(KeyboardInterrupt):
        write(str(tiny("chatglm3")), tmp_path / "out", ExportRequest())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing(tiny, tmp_path):
    """A kill in the middle of writing, as a job scheduler sends it."""
    script = (
        "import os, signal, sys\n"
        "from glmtune.cli.main import main\n"
        "from glmtune.export import shards\n"
        "def killed(piece, stream):\n"
        "    assert os.listdir(os.path.dirname(sys.argv[3])) == ['.out.tmp']\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "shards.TensorPiece.write = killed\n"
        "main()\n"
    )
    home = tmp_path / "home"
    arguments = [sys.executable, "-c", script, "export", str(tiny("chatglm3")), str(home / "out")]
    ran = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 143, ran.stderr[-2000:]
    assert list(home.iterdir()) == []


def test_two_exports_into_one_folder(tiny, refused, tmp_path):
    """The second is refused, and does not touch what the first has written so far."""
    with create_folder(tmp_path / "out") as temporary:
        (temporary / "config.json").write_text("{}")
        assert "another process is exporting" in refused(tiny("chatglm2"))
        assert (temporary / "config.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_full_disk_is_found_beforehand(tiny, refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    assert "0.0 GB free, the export takes" in refused(tiny("chatglm2"))


def test_what_cannot_be_is_refused_in_a_line(tiny, copied, refused, lora, prefix, tmp_path_factory):
    assert "no adapter here" in refused(tiny("chatglm2"), "--adapter-only")
    assert "not a size" in refused(tiny("chatglm2"), "--max-shard-size", "lots")
    assert "--dtype cannot be 'float64'" in refused(tiny("chatglm2"), "--dtype", "float64")
    assert "--bits cannot be 5" in refused(tiny("chatglm2"), "--bits", 5)
    assert "--format cannot be 'onnx'" in refused(tiny("chatglm2"), "--format", "onnx")
    assert "P-Tuning prefix" in refused(prefix("chatglm2"), "--bits", 4)

    native = tmp_path_factory.mktemp("native") / "glm"
    base = load_base(inspect_checkpoint(tiny("chatglm3")), device="cpu")
    base.save_pretrained(native)
    glmtune.load_tokenizer(tiny("chatglm3")).save_pretrained(native)
    assert "no published tokenizer file" in refused(native, "--format", "official")

    newer = tmp_path_factory.mktemp("newer") / "glm4"
    config = Glm4Config(
        vocab_size=len(glmtune.load_tokenizer(tiny("glm4"))),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
    )
    Glm4ForCausalLM(config).save_pretrained(newer)
    glmtune.load_tokenizer(tiny("glm4")).save_pretrained(newer)
    assert "never published in the official layout" in refused(newer, "--format", "official")


def test_the_writer_makes_files_that_others_read(tmp_path):
    parts = torch.arange(6.0).reshape(2, 3), torch.arange(3.0).reshape(1, 3)
    state = {"odd": torch.tensor([1, 2, 3], dtype=torch.int8), "scalar": torch.tensor(7, dtype=torch.int64)}
    pieces = [shards.TensorPiece("fused", parts), *shards.list_native_pieces(state)]
    pieces.append(shards.TensorPiece("turned", (torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,)))
    written = []
    shards.write_shards(pieces, tmp_path, 10**6, written.append)
    found = load_file(tmp_path / "model.safetensors")
    _same(found, {"fused": torch.cat(parts), **state, "turned": pieces[-1].parts[0].contiguous()})
    save_file(found, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert sum(written) == sum(value.nbytes for value in found.values())
    assert Path(tmp_path / "theirs.safetensors").stat().st_size == (tmp_path / "model.safetensors").stat().st_size
