"""`glmtune plan`, and what `train` does by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers.modeling_layers import GradientCheckpointingLayer

from glmtune.config import RunConfig, load_config
from glmtune.config_parsing import build_dataclass
from glmtune.errors import ConfigError
from glmtune.models.attention_kernels import AMPERE
from glmtune.training.plan import apply as plan_application
from glmtune.training.plan.device import PlanDevice, parse_memory
from glmtune.training.plan.estimate import PlanRequest, estimate_memory
from glmtune.training.plan.model_spec import inspect_model
from glmtune.training.plan.planner import make_plan
from glmtune.training.plan.trace import StepTracer
from glmtune.training.trainer import GlmTrainer
from tiny import make_tiny

GPU = ("--gpu-memory", "24GB")


@pytest.fixture
def small_folder(tiny, tmp_path):
    """config.json and tokenizer of a checkpoint, without weights."""

    def make(family: str = "chatglm3", layers: int = 2) -> Path:
        folder = tmp_path / f"{family}-{layers}"
        shutil.copytree(tiny(family), folder, ignore=shutil.ignore_patterns("*.safetensors"))
        config = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"num_layers": layers}), "utf-8")
        return folder

    return make


@pytest.fixture
def planned(glmtune_command, adgen_file):
    def run(folder, *options):
        result = glmtune_command("plan", "--model", folder, "--data", adgen_file(24), "--json", *options)
        assert result.code == 0, result.err
        return json.loads(result.out)

    return run


def test_a_folder_without_weights_is_enough(small_folder, planned):
    plan = planned(small_folder(), *GPU)
    assert plan["verdict"] == "fits"
    assert plan["bytes"] == sum(plan["parts"].values())
    assert plan["steps"] > 0
    assert plan["seconds"] is None  # nobody measured that GPU


def test_no_data_plans_the_weights_alone(small_folder, glmtune_command):
    result = glmtune_command("plan", "--model", small_folder(), *GPU)
    assert result.code == 0
    assert "the weights alone" in result.out


@pytest.mark.parametrize("method", ["lora", "ptuning", "freeze", "full"])
def test_depth_carried_over_is_depth_traced(small_folder, adgen_file, method, monkeypatch):
    """Every part at every moment is affine in the layers: seven of them from three and four, against all seven."""
    settings = [f"model.path={small_folder(layers=7)}", f"data.train={adgen_file(24)}", f"method={method}"]
    settings += ["freeze.trainable_layers=2"]
    requests: list[PlanRequest] = []
    monkeypatch.setattr(
        "glmtune.training.plan.planner.estimate_memory", lambda r: requests.append(r) or estimate_memory(r)
    )
    plan = make_plan(load_config(None, settings), "24GB")
    request = requests[0]
    batches = tuple(request.collate(items) for items in (request.batch, request.eval_batch))
    trained = 2 if method == "freeze" else 7
    tracer = StepTracer(request.spec, request.run, request.arguments, request.precision, *batches, True, AMPERE)
    trace = tracer.trace_layers(7 - trained, trained)
    parts = trace.phases[plan.estimate.phase]
    for name in ("weights", "adapter", "gradients", "optimizer", "activations", "logits"):
        assert plan.estimate.parts[name] == pytest.approx(parts[name], rel=0.01, abs=2000), name
    assert plan.estimate.flops == pytest.approx(trace.flops)


def test_quantised_bases_take_their_own_bytes(small_folder, planned):
    folder = small_folder()
    whole = planned(folder, *GPU, "--method", "ptuning")["parts"]["weights"]
    held = {
        kind: planned(folder, *GPU, "--method", "ptuning", "--set", f"model.quantization={kind}")["parts"]["weights"]
        for kind in ("nf4", "int8", "packed4", "packed8")
    }
    assert held["nf4"] < held["int8"] < whole
    assert held["packed4"] < held["packed8"] < whole


def test_what_does_not_fit_is_told_what_makes_it_fit(small_folder, planned):
    folder = small_folder(layers=12)
    options = ("--set", "training.per_device_train_batch_size=8", "--set", "training.gradient_checkpointing=false")
    whole = planned(folder, *GPU, *options)
    room = f"{(whole['bytes'] - 2**20) / 2**20:.3f}MiB"
    told = planned(folder, "--gpu-memory", room, *options)
    assert told["verdict"] == "tight"
    assert told["change"]["fits"]
    settings = [word for setting in told["change"]["settings"] for word in ("--set", setting)]
    again = planned(folder, "--gpu-memory", room, *options, *settings)
    assert again["verdict"] == "fits"
    assert again["bytes"] == pytest.approx(told["change"]["bytes"], rel=0.01)


@pytest.mark.parametrize("key", ["activation_checkpointing", "gradient_checkpointing"])
def test_advice_is_given_in_the_key_that_counts(small_folder, planned, key):
    folder = small_folder(layers=12)
    options = ("--set", f"training.{key}=false", "--set", "training.per_device_eval_batch_size=1")
    whole = planned(folder, *GPU, *options)
    told = planned(folder, "--gpu-memory", f"{(whole['bytes'] - 2**10) / 2**20:.6f}MiB", *options)
    assert told["change"]["settings"] == [f"training.{key}=true"]
    again = planned(folder, *GPU, *options, "--set", f"training.{key}=true")
    assert again["bytes"] == told["change"]["bytes"] < whole["bytes"]


def test_a_gpu_that_is_not_here_can_do_all_that_gpus_can(small_folder, planned):
    folder = small_folder()
    optimizer = planned(folder, *GPU, "--method", "full")["parts"]["optimizer"]
    options = ("--method", "full", "--set", "training.optim=paged_adamw_8bit", "--set", "training.fp16=true")
    assert planned(folder, *GPU, *options)["parts"]["optimizer"] == pytest.approx(optimizer / 4, rel=0.01)


def test_no_epochs_have_a_size(small_folder, planned):
    plan = planned(small_folder(), *GPU, "--set", "training.num_train_epochs=0")
    assert plan["steps"] == plan["tokens"] == 0
    assert plan["parts"]["activations"] > 0


def test_processes_of_other_machines_take_nothing_of_this_one(small_folder, adgen_file, monkeypatch):
    memory = []
    device = PlanDevice("machines", 2**34, False, False, 2**20, 0.0)
    monkeypatch.setattr("glmtune.training.plan.planner.pick_device", lambda *_: device)
    run = load_config(None, [f"model.path={small_folder()}", f"data.train={adgen_file(16)}"])
    for here in (None, "2"):
        if here:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        memory.append(make_plan(run, None, 4).estimate.memory)
    assert memory == [2**32, 2**33]


def test_auto_checkpoints_only_what_would_not_fit(small_folder, planned):
    folder = small_folder(layers=12)
    options = ("--set", "training.per_device_train_batch_size=8")
    roomy = planned(folder, *GPU, *options)
    assert not roomy["gradient_checkpointing"]
    tight = planned(folder, "--gpu-memory", f"{roomy['bytes'] / 2**20 - 1:.3f}MiB", *options)
    assert tight["gradient_checkpointing"]
    assert tight["bytes"] < roomy["bytes"]


@pytest.fixture
def on_device(monkeypatch):
    """`on_device(bytes)`: plans are for a GPU of that much memory and nothing else in it."""

    def make(memory):
        device = PlanDevice("a GPU", int(memory), True, False, 0, 0.0)
        monkeypatch.setattr("glmtune.training.plan.planner.pick_device", lambda *_: device)

    return make


@pytest.mark.parametrize("family", ["chatglm", "chatglm3"])
def test_auto_checkpoints_as_few_layers_as_need_be(family, small_folder, planned, on_device):
    folder = small_folder(family, layers=12)
    options = ("--set", "training.per_device_train_batch_size=8")
    on_device(2**40)
    asked = {on: planned(folder, *options, "--set", f"training.gradient_checkpointing={on}") for on in (False, True)}
    none, all_ = asked[False]["bytes"], asked[True]["bytes"]
    assert (asked[False]["checkpointed_layers"], asked[True]["checkpointed_layers"]) == (0, 12)
    counts = []
    for share in (0.02, 0.4, 0.8, 1):
        need = none - share * (none - all_)  # of the memory, of which a tenth is left to the estimate's error
        on_device(need / 0.9 + 1)
        plan = planned(folder, *options)
        counts.append(plan["checkpointed_layers"])
        if plan["checkpointed_layers"] not in (0, 12):
            assert all_ <= plan["bytes"] <= need
    on_device(all_)
    assert planned(folder, *options)["checkpointed_layers"] == 12
    assert counts == sorted(counts)
    assert len(set(counts)) == 4


def test_the_last_layers_alone_are_checkpointed_all_or_none(small_folder, planned, on_device):
    folder = small_folder(layers=12)
    options = ("--method", "freeze", "--set", "freeze.trainable_layers=6")
    on_device(2**40)
    none, all_ = (
        planned(folder, *options, "--set", f"training.gradient_checkpointing={on}")["bytes"] for on in (False, True)
    )
    on_device((none + all_) // 2)
    assert planned(folder, *options)["checkpointed_layers"] == 12


def test_processes_share(small_folder, planned):
    folder = small_folder()
    alone = planned(folder, *GPU, "--method", "full")
    shared = planned(folder, *GPU, "--method", "full", "--nproc", 4, "--set", "training.fsdp=true")
    copied = planned(folder, *GPU, "--method", "full", "--processes", 4)
    assert shared["parts"]["optimizer"] <= alone["parts"]["optimizer"] / 4 + 4
    assert copied["parts"]["optimizer"] == alone["parts"]["optimizer"]


@pytest.mark.parametrize("text", ["twelve", "12 potatoes", "-3", "0", ""])
def test_wrong_sizes_are_named(text):
    with pytest.raises(ConfigError, match="not a size of memory"):
        parse_memory(text)


def test_sizes():
    assert parse_memory("12GB") == parse_memory("12") == parse_memory("12GiB") == 12 * 2**30
    assert parse_memory("8000 MiB") == 8000 * 2**20


def test_a_wrong_size_on_the_command_line(small_folder, glmtune_command):
    result = glmtune_command("plan", "--model", small_folder(), "--gpu-memory", "twelve")
    assert result.code == 1
    assert "--gpu-memory twelve" in result.err
    assert len(result.err.strip().splitlines()) == 2


def test_published_shapes_need_what_they_weigh(asset):
    """The weights of ChatGLM3-6B: 6,243,584,000 numbers in 16 bits, and the rotary frequencies."""
    spec = inspect_model(str(asset("assets", "chatglm3-6b")), None, "huggingface")
    assert spec.layers == 28
    plan = make_plan(build_dataclass(RunConfig, {"model": str(asset("assets", "chatglm3-6b"))}, "test"), "24GB")
    assert plan.estimate.parts["weights"] == pytest.approx(2 * 6_243_584_000, rel=1e-4)


class TestTrain:
    @pytest.fixture
    def train(self, tiny, glmtune_command, adgen_file, tmp_path):
        def run(*options, output="run", model=None):
            settings = ["data.eval_fraction=0", "training.max_steps=1", "training.report_to=none"]
            sets = [word for setting in settings for word in ("--set", setting)]
            return glmtune_command(
                *("train", "--model", model or tiny("chatglm3"), "--data", adgen_file(16)),
                *("--output", tmp_path / output, *sets, *options),
            )

        return run

    @pytest.fixture
    def room(self, monkeypatch):
        """`room(bytes)`: a machine of that much memory."""

        def make(memory):
            device = PlanDevice("a small machine", memory, False, True, 2**20, 0.0)
            monkeypatch.setattr(plan_application, "pick_device", lambda *_: device)

        return make

    def test_says_what_it_needs(self, train, tmp_path):
        result = train()
        assert result.code == 0, result.err
        assert "Memory: about" in result.out
        assert json.loads((tmp_path / "run/summary.json").read_text("utf-8"))["memory_plan"]["bytes"] > 0

    def test_refuses_what_cannot_fit_and_can_be_forced(self, train, room, tmp_path):
        room(2**20)
        refused = train()
        assert refused.code == 1
        assert "This run needs about" in refused.err
        assert "--force" in refused.err
        assert not (tmp_path / "run").exists()
        assert train("--force").code == 0

    def test_a_fault_of_the_plan_stops_nobody(self, train, monkeypatch):
        def broken(*_):
            raise KeyError("oh")

        monkeypatch.setattr(plan_application, "plan_run", broken)
        result = train()
        assert result.code == 0, result.err
        assert "No memory plan (KeyError" in result.out

    def test_a_resumed_run_keeps_what_was_decided(self, train, room, tmp_path, glmtune_command, monkeypatch):
        room(2**40)
        assert train("--set", "training.save_steps=1").code == 0
        config = yaml.safe_load((tmp_path / "run/config.yaml").read_text("utf-8"))
        assert config["training"]["gradient_checkpointing"] == "auto"
        summary = tmp_path / "run/summary.json"
        told = json.loads(summary.read_text("utf-8"))
        assert told["memory_plan"]["checkpointing"] is False
        told["memory_plan"]["checkpointing"] = True  # as if the machine had been small
        summary.write_text(json.dumps(told), "utf-8")
        asked = []
        step = GlmTrainer.training_step
        monkeypatch.setattr(
            GlmTrainer,
            "training_step",
            lambda self, *a, **k: asked.append(self.model.is_activation_checkpointing) or step(self, *a, **k),
        )
        result = glmtune_command("train", "--resume", "--output", tmp_path / "run", "--set", "training.max_steps=2")
        assert result.code == 0, result.err
        assert asked
        assert all(asked)

    def test_some_layers_are_checkpointed_where_that_is_enough_and_stay_so(
        self, train, room, tmp_path, glmtune_command, monkeypatch
    ):
        size = ("--set", "training.per_device_train_batch_size=8", "--set", "training.save_steps=1")

        def summary(run):
            return json.loads((tmp_path / run / "summary.json").read_text("utf-8"))

        room(2**40)
        model = make_tiny("chatglm3", tmp_path / "base", layers=6)
        assert train(*size, output="none", model=model).code == 0
        assert train(*size, "--set", "training.gradient_checkpointing=true", output="all", model=model).code == 0
        none, all_ = (summary(run)["memory_plan"]["bytes"] for run in ("none", "all"))
        flags = []
        step = GlmTrainer.training_step

        def watched(self, *args, **kwargs):
            layers = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
            flags.append([layer.gradient_checkpointing for layer in layers])
            return step(self, *args, **kwargs)

        monkeypatch.setattr(GlmTrainer, "training_step", watched)
        room(none - 1)
        result = train(*size, output="some", model=model)
        assert result.code == 0, result.err
        told = summary("some")
        layers = told["memory_plan"]["checkpointed_layers"]
        assert 1 <= layers < 6
        assert f"with gradient checkpointing of {layers} of 6 layers" in result.out
        assert all_ < told["memory_plan"]["bytes"] <= 0.9 * none
        assert told["last_loss"] == pytest.approx(summary("none")["last_loss"], rel=1e-6)
        room(2**40)
        more = ("--set", "training.max_steps=2")
        result = glmtune_command("train", "--resume", "--output", tmp_path / "some", *more)
        assert result.code == 0, result.err
        assert summary("some")["memory_plan"]["checkpointed_layers"] == layers
        assert len(flags) > 1
        assert all(each == [True] * layers + [False] * (6 - layers) for each in flags)

    def test_a_run_with_some_layers_checkpointed_is_told_that_all_would_fit(
        self, train, room, tmp_path, glmtune_command
    ):
        room(2**40)
        model = make_tiny("chatglm3", tmp_path / "base", layers=6)
        size = ("--set", "training.per_device_train_batch_size=8", "--set", "training.save_steps=1")
        assert train(*size, model=model).code == 0
        summary = tmp_path / "run/summary.json"
        told = json.loads(summary.read_text("utf-8"))
        none = told["memory_plan"]["bytes"]
        told["memory_plan"] |= {"checkpointing": True, "checkpointed_layers": 1}
        summary.write_text(json.dumps(told), "utf-8")
        room(none * 0.7)
        resume = ("train", "--resume", "--output", tmp_path / "run", "--set", "training.max_steps=2")
        refused = glmtune_command(*resume)
        assert refused.code == 1
        assert "_checkpointing=true" in refused.err

    @pytest.mark.parametrize("kept", [False, True])
    def test_a_resumed_run_is_planned_as_it_will_run(self, train, room, tmp_path, glmtune_command, kept):
        """On a smaller machine too: what was decided for a larger one stays, and so its bytes count."""
        room(2**40)
        assert train("--set", "training.save_steps=1").code == 0
        summary = tmp_path / "run/summary.json"
        told = json.loads(summary.read_text("utf-8"))
        told["memory_plan"]["checkpointing"] = kept
        summary.write_text(json.dumps(told), "utf-8")
        room(told["memory_plan"]["bytes"] - 1 if not kept else 2**40)
        steps = ("--set", "training.max_steps=2")
        result = glmtune_command("train", "--resume", "--output", tmp_path / "run", *steps)
        assert result.code == 0, result.err
        assert "(without it" not in result.out
        again = json.loads(summary.read_text("utf-8"))["memory_plan"]
        assert again["checkpointing"] is kept
        assert (again["bytes"] < told["memory_plan"]["bytes"]) is kept
