"""What saves memory on a GPU, and that the memory plan counts it."""

import json
import subprocess
import sys

import pytest
import report_folders
import torch
from torch import nn

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.quantization.packed_linear import PackedLinear, pick_device_chunk
from glmtune.report.contents import read_contents
from glmtune.report.page import render_page
from glmtune.run_dir import RunDir
from glmtune.training import memory
from glmtune.training.arguments import make_arguments
from glmtune.training.plan.device import pick_device
from glmtune.training.plan.estimate import PlanRequest, _trace_on_device
from glmtune.training.plan.memory_tracker import MemoryTracker
from glmtune.training.plan.model_spec import inspect_model
from glmtune.utils import gpu_allocator


@pytest.fixture
def trace(tiny, tmp_path):
    """A run's phases on a GPU of 12 GB, in MiB by part."""

    def trace_run(family, **settings):
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
        request = PlanRequest(
            spec, run, arguments, torch.bfloat16, BlockCollator(spec.family), batch, None, pick_device("12GB"), 1
        )
        return _trace_on_device(request).phases

    return trace_run


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
