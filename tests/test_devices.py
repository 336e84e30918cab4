"""Apple's GPU, simulated: what chooses the device, its precision, and what is said where it cannot compute."""

from __future__ import annotations

import sys

import pytest
import torch
from accelerate import PartialState
from transformers.utils import import_utils

from glmtune.config import RunConfig
from glmtune.config_parsing import build_dataclass
from glmtune.doctor.probe_process import _read_mps
from glmtune.errors import ConfigError, ModelError
from glmtune.models import devices
from glmtune.models.devices import (
    choose_device,
    describe_device,
    find_device,
    find_double_device,
    fit_dtype,
    free_cached_memory,
    has_bf16,
    parse_device,
    to_double,
)
from glmtune.models.loading import load_base
from glmtune.run_dir import RunDir
from glmtune.training.arguments import announce_device, make_arguments, pick_precision, pick_training_device
from glmtune.utils.gpu_allocator import allow_mps_fallback

MPS = torch.device("mps")


class FakeMetal:
    """`torch.backends.mps` of a Mac."""

    def __init__(self, macos=15, available=True, built=True):
        self._macos, self._available, self._built = macos, available, built

    def is_available(self):
        return self._available

    def is_built(self):
        return self._built

    def is_macos_or_newer(self, major, minor):
        return self._macos >= major


def forget_devices():
    """transformers and accelerate ask torch once."""
    import_utils.is_torch_mps_available.cache_clear()
    import_utils.is_torch_bf16_gpu_available.cache_clear()
    PartialState._reset_state()


@pytest.fixture
def mac(monkeypatch):
    """`mac(macos=13)`: this machine has Apple's GPU, as far as torch says."""
    forget_devices()

    def become(**changes):
        metal = FakeMetal(**changes)
        for name in ("is_available", "is_built", "is_macos_or_newer"):
            monkeypatch.setattr(torch.backends.mps, name, getattr(metal, name))

    yield become
    monkeypatch.undo()
    forget_devices()


def make_config(**changes) -> RunConfig:
    tree = {"model": {"path": "x"}, "data": {"train": "y"}, **changes}
    return build_dataclass(RunConfig, tree, "test")


def test_a_gpu_is_found_in_order(mac, monkeypatch):
    assert find_device().type == "cpu"
    mac()
    assert find_device() == parse_device(None) == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert find_device().type == "cuda"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [({"available": False}, "macOS is too old"), ({"available": False, "built": False}, "no Metal")],
)
def test_a_missing_apple_gpu_is_explained(mac, facts, reason):
    mac(**facts)
    assert find_device().type == "cpu"
    with pytest.raises(ModelError, match=reason):
        parse_device("mps")


def test_the_option_takes_apples_gpu(glmtune_command, tmp_path):
    result = glmtune_command("chat", str(tmp_path), "--device", "mps")
    assert "torch finds no Apple GPU" in result.err or "no config.json" in result.err
    result = glmtune_command("chat", str(tmp_path), "--device", "metal")
    assert "mps" in result.err
    assert "cannot be 'metal'" in result.err


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_bitsandbytes_goes_to_the_cpu_and_that_is_said(mac, capsys, kind):
    mac()
    assert choose_device(None, kind).type == "cpu"
    assert "packed4" in capsys.readouterr().out
    with pytest.raises(ModelError, match="packed4 or packed8, or --device cpu"):
        choose_device("mps", kind)
    assert choose_device("cpu", kind).type == "cpu"
    assert choose_device(None, "packed4") == choose_device(None, None) == MPS
    assert capsys.readouterr().out == ""


def test_loading_asks_for_the_device_and_the_precision(mac, monkeypatch, tiny, capsys):
    """`load_base` gives transformers what was chosen."""
    from glmtune.models import loading
    from glmtune.models.checkpoints import inspect_checkpoint

    asked = {}

    def stop(base, quantization, precision, arguments):
        asked.update(arguments, precision=precision)
        raise ModelError("stop")

    monkeypatch.setattr(loading, "load_weights", stop)
    base = inspect_checkpoint(tiny("glm4"))
    monkeypatch.setattr(type(base.inventory), "dtype", torch.bfloat16)
    mac(macos=13)
    for dtype, expected in ((None, torch.float16), ("fp32", torch.float32)):
        with pytest.raises(ModelError, match="stop"):
            load_base(base, dtype=dtype)
        assert asked["device_map"] == {"": MPS}
        assert asked["precision"] is expected
    assert "macOS 14" in capsys.readouterr().out
    with pytest.raises(ModelError, match="needs macOS 14"):
        load_base(base, dtype="bf16")


def test_bf16_needs_macos_14(mac):
    mac(macos=13)
    assert not has_bf16(MPS)
    assert fit_dtype(torch.float16, MPS, is_chosen=False) is torch.float16
    mac(macos=14)
    assert has_bf16(MPS)
    assert fit_dtype(torch.bfloat16, MPS, is_chosen=True) is torch.bfloat16
    assert fit_dtype(torch.bfloat16, torch.device("cpu"), is_chosen=True) is torch.bfloat16


LORA = {"method": "lora"}
FULL = {"method": "full"}


@pytest.mark.parametrize(
    ("changes", "device", "precision"),
    [
        (LORA, "mps", torch.bfloat16),
        (FULL, "cpu", torch.float32),
        (LORA | {"model": {"path": "x", "quantization": "nf4"}}, "cpu", torch.float32),
        (LORA | {"model": {"path": "x", "quantization": "packed4"}}, "mps", torch.bfloat16),
        (LORA | {"stage": "dpo"}, "cpu", torch.float32),
        (LORA | {"training": {"use_cpu": True}}, "cpu", torch.float32),
        (FULL | {"training": {"use_cpu": False}}, "mps", torch.bfloat16),
    ],
)
def test_the_device_of_a_training(mac, tmp_path, capsys, changes, device, precision):
    mac()
    config = make_config(**changes)
    picked = pick_training_device(config)
    assert picked.type == device
    assert pick_precision("auto", picked) is precision
    arguments = make_arguments(config, RunDir(tmp_path), precision)
    assert arguments.device.type == device
    assert arguments.bf16 is (precision is torch.bfloat16)
    assert arguments.dataloader_pin_memory is False
    capsys.readouterr()
    announce_device(config, picked)
    said = capsys.readouterr().out
    is_asked = changes.get("training", {}).get("use_cpu") is True
    assert ("use_cpu=true" in said) is (device == "mps")
    assert ("on the CPU" in said) is (device == "cpu" and not is_asked)


def test_the_device_of_a_training_before_macos_14(mac):
    mac(macos=13)
    assert pick_precision("auto", MPS) is torch.float32
    assert pick_precision("fp16", MPS) is torch.float16


def test_without_apples_gpu_nothing_is_said(capsys):
    config = make_config(method="lora")
    announce_device(config, pick_training_device(config))
    assert capsys.readouterr().out == ""


def test_doubles_are_computed_on_the_cpu():
    """Metal has no 64-bit floats; a tensor that says it is there must be moved before it is converted."""

    class OnMetal:
        device = MPS

        def cpu(self):
            return torch.ones(2, dtype=torch.float32)

        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    assert to_double(OnMetal()).dtype is torch.float64
    assert to_double(torch.ones(1)).dtype is torch.float64
    assert find_double_device(MPS).type == "cpu"
    assert find_double_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def test_results_name_the_device():
    assert describe_device(MPS).startswith("Apple GPU (")
    assert describe_device(torch.device("cpu")).startswith("CPU (")


def test_cached_memory_of_each_gpu(mac, monkeypatch):
    freed = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: freed.append("mps"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append("cuda"))
    free_cached_memory()
    mac()
    free_cached_memory()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    free_cached_memory()
    assert freed == ["mps", "cuda"]


def test_operations_without_a_metal_kernel_are_allowed(monkeypatch):
    environment = {}
    allow_mps_fallback(environment)
    assert environment == {}
    monkeypatch.setattr(sys, "platform", "darwin")
    allow_mps_fallback(environment)
    assert environment == {"PYTORCH_ENABLE_MPS_FALLBACK": "1"}
    environment = {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}
    allow_mps_fallback(environment)
    assert environment == {"PYTORCH_ENABLE_MPS_FALLBACK": "0"}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        *(({}, "bf16"), ({"macos": 13}, "fp16"), ({"available": False}, "macOS")),
        ({"available": False, "built": False}, "build"),
    ],
)
def test_the_doctor_reads_metal(monkeypatch, facts, said):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _read_mps(FakeMetal(**facts)) == said
    if not facts.get("available", True):
        monkeypatch.setattr(sys, "platform", "linux")
        assert _read_mps(FakeMetal(**facts)) == ""


def test_devices_are_chosen_in_one_place():
    """No other module asks torch which GPU there is in order to compute on it."""
    from pathlib import Path

    folder = Path(devices.__file__).parent.parent
    users = {path.name for path in folder.rglob("*.py") if "backends.mps" in path.read_text("utf-8")}
    assert users == {"devices.py", "probe_process.py"}


def test_an_unknown_device_is_named():
    with pytest.raises(ModelError, match="mps"):
        parse_device("gpu")
    with pytest.raises(ConfigError):
        build_dataclass(RunConfig, {"training": 3}, "test")
