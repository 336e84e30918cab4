"""What saves memory on a GPU, and that the memory plan counts it."""

import dataclasses
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import accelerate.accelerator
import pytest
import report_folders
import torch
import torch.distributed.fsdp
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

import glmtune
from glmtune.config import RunConfig
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError
from glmtune.export.export_request import ExportRequest
from glmtune.export.exporter import export_model
from glmtune.generation.cpu_prepack import prepacked
from glmtune.methods import make_method
from glmtune.methods.base_info import BaseInfo
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.lora_targets import resolve_modules_to_save
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.embedding_and_head import HostEmbedding, move_embedding_to_host, quantize_head
from glmtune.models.loading import load_base
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.shared_head import share_equal_head
from glmtune.quantization.packed_linear import PackedLinear, pick_device_chunk
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page
from glmtune.run_dir import RunDir
from glmtune.training import memory
from glmtune.training.arguments import make_arguments
from glmtune.training.deepspeed import _CastParameters
from glmtune.training.loss import step_loss
from glmtune.training.plan.changes import _list_steps
from glmtune.training.plan.device import pick_device
from glmtune.training.plan.estimate import PlanRequest, _trace_on_device
from glmtune.training.plan.memory_tracker import MemoryTracker
from glmtune.training.plan.model_spec import build_meta_model, inspect_model
from glmtune.training.sharding import cast_weight, cast_while_sharding
from glmtune.utils import gpu_allocator


@pytest.fixture
def make_request(tiny, tmp_path):
    """The request of a plan for a GPU of 12 GB."""

    def make(family, **settings):
        tree = {"model": {"path": str(tiny(family)), "precision": "bf16"}, "training": {"use_cpu": True}}
        for key, value in settings.items():
            section, _, name = key.partition("__")
            tree[section] = {**tree.get(section, {}), name: value} if name else value
        run = build_dataclass(RunConfig, tree, "test")
        arguments = make_arguments(run, RunDir(tmp_path / "run"), torch.bfloat16)
        spec = inspect_model(str(tiny(family)), None, "huggingface")
        ids = [9] * 10 + [spec.config.bos_token_id or 1, 8, 7] + [5] * 6
        row = EncodedRow(ids, [-100] * 13 + [5] * 6, 0, 0, "row")
        batch = [[(0, row)], [(1, row)]]
        device = pick_device("12GB")
        return PlanRequest(spec, run, arguments, torch.bfloat16, BlockCollator(spec.family), batch, None, device, 1)

    return make


@pytest.fixture
def trace(make_request):
    """A run's phases on it, in bytes by part."""
    return lambda family, **settings: _trace_on_device(make_request(family, **settings)).phases


# --- the optimiser's state in the plan ---


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused"])
def test_the_state_of_the_optimiser_is_not_counted_as_temporary_tensors(trace, optimizer):
    phases = trace("chatglm3", method="full", training__optim=optimizer)
    step = phases["optimiser step"]
    state = 2 * step["weights"]  # two moments in fp32 of weights in fp32
    assert step["optimizer"] == pytest.approx(state, rel=0.01)
    # Beside it, what an optimiser that takes all weights at a time makes; the fused one makes nothing.
    temporary = 1.1 * step["weights"] if optimizer == "adamw_torch" else 0.02 * step["weights"]
    assert step["activations"] <= temporary
    # The allocator keeps a share of what is short-lived only.
    assert step["kept"] <= 0.05 * (step["gradients"] + step["activations"]) + 1


# --- unpacking ---


def test_a_small_card_unpacks_less_at_a_time():
    assert pick_device_chunk(6 * 2**30) * 2 == 8 * 2**20
    assert pick_device_chunk(2**30) < pick_device_chunk(12 * 2**30) < pick_device_chunk(24 * 2**30)
    assert pick_device_chunk(80 * 2**30) == pick_device_chunk(400 * 2**30) == 2**25


@pytest.mark.parametrize("bits", [4, 8])
def test_unpacking_holds_one_chunk_at_a_time(bits):
    layer = PackedLinear.from_linear(nn.Linear(256, 4096, bias=False), bits)
    layer.unpack_chunk, layer.traces_gpu = 256 * 256, True
    inputs = torch.randn(2, 256, requires_grad=True)
    tracker = MemoryTracker(vocab_size=7)
    for tensor in (layer.weight, layer.weight_scale):
        tracker.add_tensor(tensor, "weights")
    with tracker:
        tracker.enter_phase("forward")
        output = layer(inputs)
        tracker.enter_phase("backward")
        output.sum().backward()
    chunk = layer.unpack_chunk * 4  # fp32
    for name in ("forward", "backward"):
        # One chunk, and of 4 bits a byte for every two numbers; the rest is inputs and outputs.
        assert chunk <= tracker.phases[name]["activations"] < 1.5 * chunk, name
    exact = layer.dequantize_weight(torch.float32)
    assert torch.allclose(output, inputs @ exact.T, atol=1e-4)


# --- the allocator ---


def test_segments_grow_unless_the_user_has_said_otherwise(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(gpu_allocator, "version", lambda name: "2.13.0+cu130")
    environment = {"HOME": "/root"}
    gpu_allocator.set_allocator_defaults(environment)
    assert environment["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setattr(gpu_allocator, "version", lambda name: "2.6.0")
    old = {}
    gpu_allocator.set_allocator_defaults(old)
    assert old == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        own = {name: "max_split_size_mb:64"}
        gpu_allocator.set_allocator_defaults(own)
        assert own == {name: "max_split_size_mb:64"}
    monkeypatch.setattr(sys, "platform", "win32")
    windows = {}
    gpu_allocator.set_allocator_defaults(windows)
    assert not windows


def test_the_command_sets_it_before_torch_is_imported():
    code = (
        "import os, sys; from glmtune.cli import main; main._run = lambda: print("
        "'torch' in sys.modules, os.environ.get('PYTORCH_ALLOC_CONF') or os.environ.get('PYTORCH_CUDA_ALLOC_CONF'))"
        "; main.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = "expandable_segments:True" if sys.platform == "linux" else "None"
    assert result.stdout.split() == ["False", expected], result.stderr


# --- peaks ---


def test_the_peak_on_a_card_is_what_was_reserved_and_the_context(monkeypatch):
    figures = {"max_memory_allocated": 300, "max_memory_reserved": 400, "memory_reserved": 350}
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 1900))
    peak = memory.read_peak_memory(on_gpu=True)
    assert (peak.peak_memory_bytes, peak.peak_reserved_bytes, peak.outside_allocator_bytes) == (300, 400, 550)
    assert peak.on_device == 950
    assert memory.read_peak_memory(on_gpu=False).on_device is None


def test_a_report_shows_the_peak_on_the_card(tmp_path):
    run = report_folders.write_run(tmp_path / "run")
    plain = render_page(read_contents(run), "en")
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    summary |= {"peak_reserved_bytes": 14 * 2**30, "outside_allocator_bytes": 2**30}
    (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    assert "In use on the GPU" in render_page(read_contents(run), "en")
    assert "In use on the GPU" not in plain


# --- equal head and embedding ---


@pytest.fixture
def equal_head(tiny, tmp_path):
    """ChatGLM-6B with a head that equals the embedding, as it is published."""
    folder = tmp_path / "equal"
    shutil.copytree(tiny("chatglm"), folder)
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    save_file(state, file, metadata={"format": "pt"})
    return folder


def test_equal_head_and_embedding_are_one_matrix(equal_head, tiny):
    model = glmtune.load_model(equal_head)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    other = glmtune.load_model(tiny("chatglm"))
    assert other.lm_head.weight is not other.transformer.word_embeddings.weight
    # Zeros of both signs are equal numbers, but other bits.
    with torch.no_grad():
        other.lm_head.weight.copy_(other.transformer.word_embeddings.weight)
        other.lm_head.weight[-1, 0], other.transformer.word_embeddings.weight[-1, 0] = 0.0, -0.0
    assert not share_equal_head(other)


def test_what_is_saved_has_both(equal_head, tmp_path):
    model = glmtune.load_model(equal_head)
    model.save_pretrained(tmp_path / "hf")
    export_model(str(equal_head), tmp_path / "official", ExportRequest(layout="official"))
    before = load_file(next(equal_head.glob("*.safetensors")))
    for name in ("hf", "official"):
        after = load_file(next((tmp_path / name).glob("*.safetensors")))
        assert set(before) == set(after)
        assert torch.equal(after["lm_head.weight"], before["lm_head.weight"])
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_what_trains_one_of_them_has_two(equal_head, method, tmp_path):
    base = inspect_checkpoint(equal_head)
    run = build_dataclass(RunConfig, {"method": method, "freeze": {"trainable_layers": 1}}, "test")
    tuner = make_method(run, base.family, torch.float32)
    model = tuner.prepare(load_base(base, dtype=tuner.load_dtype(torch.float32), device="cpu"))
    separate = model.lm_head.weight is not model.transformer.word_embeddings.weight
    assert separate == (method == "full")  # freeze trains layers alone
    tuner.save(model, tmp_path / "result", BaseInfo(str(equal_head), base.fingerprint, "chatglm"))
    saved = glmtune.load_model(tmp_path / "result").state_dict()
    before = load_base(base).state_dict()
    assert saved.keys() == before.keys()
    assert all(torch.equal(saved[name], before[name]) for name in before)


def test_an_adapter_of_the_head_is_merged_into_the_head_alone(equal_head):
    base = inspect_checkpoint(equal_head)
    run = build_dataclass(RunConfig, {"method": "lora", "lora": {"targets": ["lm_head"]}}, "test")
    model = make_method(run, base.family, torch.float32).prepare(load_base(base, device="cpu"))
    torch.nn.init.normal_(model.base_model.model.lm_head.lora_B["default"].weight)
    embedding = model.get_input_embeddings().weight.clone()
    merged = merge_adapter(model)
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert not torch.equal(merged.get_output_embeddings().weight, embedding)


def test_prepacking_for_a_cpu_leaves_the_embedding_alone(equal_head):
    model = glmtune.load_model(equal_head, dtype="bf16")
    ids = torch.tensor([[9, 8, 7, model.config.gmask_token_id, model.config.bos_token_id]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with prepacked(model):
            assert torch.allclose(model(input_ids=ids).logits, before, atol=0.02)
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight


def test_auto_classes_share_it_where_weights_are_quantised(equal_head):
    """In full precision a caller may train all weights in a loop of its own, where embedding and head are two."""
    model = AutoModel.from_pretrained(equal_head, trust_remote_code=True)
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight
    model = model.quantize(8).half()
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    packed = AutoModel.from_pretrained(equal_head, quantization_bit=4, trust_remote_code=True)
    assert packed.lm_head.weight is packed.transformer.word_embeddings.weight


def test_the_plan_counts_one_matrix(equal_head, tiny):
    sizes = {}
    for name, folder in {"equal": equal_head, "own": tiny("chatglm")}.items():
        spec = inspect_model(str(folder), None, "huggingface")
        run = build_dataclass(RunConfig, {"model": {"path": str(folder)}, "method": "lora"}, "test")
        model = build_meta_model(spec, run, torch.float32, False, spec.layers, spec.layers)
        sizes[name] = sum(p.nbytes for p in model.parameters())
        full = build_dataclass(RunConfig, {"model": {"path": str(folder)}, "method": "full"}, "test")
        model = build_meta_model(spec, full, torch.float32, False, spec.layers, spec.layers)
        sizes[name, "full"] = sum(p.nbytes for p in model.parameters())
    head = spec.config.vocab_size * spec.config.hidden_size * 4
    assert sizes["own"] - sizes["equal"] == head
    assert sizes["own", "full"] == sizes["equal", "full"]
    for file in equal_head.glob("*.safetensors"):  # not downloaded: as it is published
        file.unlink()
    assert inspect_model(str(equal_head), None, "huggingface").shares_head


# --- the embedding on the host, the head in fewer bits ---


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_an_embedding_on_the_host_gives_the_same_numbers(tiny, family):
    model = glmtune.load_model(tiny(family), device="cpu")
    ids = torch.tensor([[9, 8, 7, getattr(model.config, "gmask_token_id", 6), model.config.bos_token_id or 5]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        names = set(model.state_dict())
        move_embedding_to_host(model)
        assert torch.equal(model(input_ids=ids).logits, expected)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, HostEmbedding)
    assert not any(embedding.weight is p for p in model.parameters())
    assert set(model.state_dict()) == names
    model.load_state_dict({name: value.clone().zero_() for name, value in model.state_dict().items()})
    assert not embedding.weight.any()


def test_a_model_that_moves_leaves_its_embedding(tiny):
    model = glmtune.load_model(tiny("chatglm3"), device="cpu")
    move_embedding_to_host(model)
    model.to("meta")
    assert model.device.type == "meta"  # not that of the embedding
    assert model.get_input_embeddings().weight.device.type == "cpu"
    model.get_input_embeddings().to(torch.bfloat16)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("quantization", "worst"), [("packed8", 0.02), ("packed4", 0.3)])
def test_a_quantised_head_trains_nearly_the_same(tiny, quantization, worst):
    base = inspect_checkpoint(tiny("chatglm3"))
    losses = {}
    for name in (None, quantization):
        run = build_dataclass(RunConfig, {"method": "lora"}, "test")
        model = load_base(base, dtype="fp32", device="cpu")
        set_packed_attention(model)
        if name:
            error = quantize_head(model, name)
            assert 0 < error < worst
        model = make_method(run, base.family, torch.float32).prepare(model)
        row = EncodedRow(list(range(20)), [-100] * 8 + list(range(8, 20)), 0, 0, "row")
        losses[name] = step_loss(model, BlockCollator(base.family)([[(0, row)]]))
        losses[name].sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert grads
        assert all(grad.isfinite().all() for grad in grads)
    difference = (losses[None] - losses[quantization]).abs().max()
    assert 0 < difference < worst


def test_the_plan_counts_the_keys(trace):
    plain = trace("chatglm3")["forward, loss"]["weights"]
    host = trace("chatglm3", model__embedding_on_host=True)["forward, loss"]["weights"]
    head = trace("chatglm3", model__head_quantization="packed8")["forward, loss"]["weights"]
    nf4 = trace("chatglm3", model__head_quantization="nf4")["forward, loss"]["weights"]
    assert nf4 < head < plain
    assert plain - head < plain - host < 2.2 * (plain - head)  # 16 bits go, against 8 of them


def test_both_keys_train_a_run(glmtune_command, tiny, adgen_file, tmp_path):
    settings = [
        "model.embedding_on_host=true",
        "model.head_quantization=packed8",
        "training.max_steps=2",
        "training.save_steps=1",
        "data.eval_fraction=0",
    ]
    options = [word for setting in settings for word in ("--set", setting)]
    run = tmp_path / "run"
    result = glmtune_command("train", "--model", tiny("chatglm3"), "--data", adgen_file(8), "--output", run, *options)
    assert "The head is in packed8" in result.out
    assert (run / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "full", "model": {"path": "m", "embedding_on_host": True}}, "method full trains the embedding"),
        ({"method": "freeze", "model": {"path": "m", "head_quantization": "packed8"}}, "saves a complete model"),
    ],
)
def test_keys_that_cannot_work_are_refused(settings, words):
    config = build_dataclass(RunConfig, {"data": "d", **settings}, "test")
    with pytest.raises(ConfigError, match=words):
        check_config(config)


def test_what_is_on_the_host_or_quantised_cannot_be_trained_whole(tiny):
    model = glmtune.load_model(tiny("chatglm3"), device="cpu")
    move_embedding_to_host(model)
    quantize_head(model, "packed8")
    for name, key in {"embed_tokens": "embedding_on_host", "output_layer": "head_quantization"}.items():
        with pytest.raises(ConfigError) as caught:
            resolve_modules_to_save(model, [name], [])
        assert f"model.{key}" in str(caught.value)


def test_the_plan_advises_them_where_they_save(make_request):
    request = make_request("chatglm", model__quantization="nf4", training__activation_checkpointing=True)
    host, head = "model.embedding_on_host=true", "model.head_quantization=packed8"
    steps = [step.settings for step in _list_steps(request)]
    assert (host,) in steps
    assert (head,) in steps
    shared = dataclasses.replace(request, spec=dataclasses.replace(request.spec, shares_head=True))
    steps = [step for step in _list_steps(shared) if head in step.settings or host in step.settings]
    assert [step.settings for step in steps] == [(head, host)]  # one alone would add a matrix
    before, after = _trace_on_device(shared), _trace_on_device(steps[0].apply(shared))
    assert after.phases["forward, loss"]["weights"] < before.phases["forward, loss"]["weights"]
    assert not any(host in step.settings for step in _list_steps(dataclasses.replace(request, num_processes=2)))


# --- weights that are going to be sharded ---


def test_fsdp_converts_a_module_just_before_it_shards_it(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    model[1].requires_grad_(False)
    seen = []

    def shard(module, **options):
        seen.append([parameter.dtype for parameter in model.parameters()])

    def prepare_model(accelerator, whole):
        assert accelerator.state._mixed_precision == "no"  # else it would copy all trained weights
        for module in whole:
            torch.distributed.fsdp.fully_shard(module)
        return whole

    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", shard)
    monkeypatch.setattr(accelerate.accelerator, "fsdp2_prepare_model", prepare_model)
    accelerator = SimpleNamespace(state=SimpleNamespace(_mixed_precision="bf16"))
    with cast_while_sharding(torch.bfloat16):
        accelerate.accelerator.fsdp2_prepare_model(accelerator, model)
    fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
    assert seen == [[fp32, fp32, fp16, fp16], [fp32, fp32, bf16, bf16]]
    assert accelerator.state._mixed_precision == "bf16"
    assert torch.distributed.fsdp.fully_shard is shard


def test_zero_3_converts_a_weight_when_it_is_its_turn():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)).half()
    model[1].weight.ds_id = 7  # partitioned already
    turns = [[p.dtype for p in model.parameters()] for _ in _CastParameters(model, torch.float32).parameters()]
    assert turns == [[torch.float32, torch.float16]] * 2


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_a_method_leaves_the_precision_to_sharding(tiny, method):
    base = inspect_checkpoint(tiny("chatglm2"))
    run = build_dataclass(RunConfig, {"method": method, "freeze": {"trainable_layers": 1}}, "test")
    tuner = make_method(run, base.family, torch.bfloat16)
    tuner.casts_base = False
    model = tuner.prepare(load_base(base, dtype="fp16", device="cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    for parameter in model.parameters():
        cast_weight(parameter, torch.bfloat16)
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
