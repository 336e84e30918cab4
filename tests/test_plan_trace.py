"""The plan's traces against the same step on real tensors: every live byte of both is counted in the same way."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from glmtune.config import RunConfig, load_config
from glmtune.config_parsing import build_dataclass
from glmtune.methods import make_method
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.models.packed_attention import set_packed_attention
from glmtune.models.tokenizers import load_tokenizer
from glmtune.quantization import kernels
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.run_dir import RunDir
from glmtune.training.arguments import make_arguments, pick_precision
from glmtune.training.callbacks import checkpoint_first_layers
from glmtune.training.plan.estimate import interpolate_traces
from glmtune.training.plan.memory_tracker import MemoryTracker
from glmtune.training.plan.model_spec import inspect_model
from glmtune.training.plan.planner import make_plan
from glmtune.training.plan.trace import StepTracer, run_steps
from glmtune.training.training_data import prepare_data
from tiny import FAMILIES, make_tiny


class Case:
    """A run, its rows and the batches to look at."""

    def __init__(self, folder, data, tmp_path, **settings):
        tree = {"model": {"path": str(folder)}, "data": {"train": str(data), "max_length": 400}, "method": "lora"}
        for key, value in settings.items():
            section, _, name = key.partition("__")
            tree[section] = {**tree.get(section, {}), name: value} if name else value
        self.folder = folder
        self.run = build_dataclass(RunConfig, tree, "test")
        self.precision = pick_precision(self.run.model.precision)
        self.arguments = make_arguments(self.run, RunDir(tmp_path / "run"), self.precision)
        self.base = inspect_checkpoint(folder)
        tokenizer = load_tokenizer(folder, family=self.base.family.name)
        rows = prepare_data(self.run, self.base.family, tokenizer)
        self.batch = rows.collate([rows.train[0], rows.train[len(rows.train) - 1]])
        self.eval_batch = rows.collate([rows.eval[0]])

    def planned(self):
        spec = inspect_model(str(self.folder), None, "huggingface")
        settings = self.run, self.arguments, self.precision
        return StepTracer(spec, *settings, self.batch, self.eval_batch, on_gpu=False).trace_model()

    def seen(self):
        torch.manual_seed(0)
        mixed = self.precision if self.arguments.bf16 else torch.float32
        method = make_method(self.run, self.base.family, mixed)
        model = load_base(
            self.base,
            dtype=method.load_dtype(self.precision),
            device="cpu",
            quantization=self.run.model.quantization,
        )
        if self.run.model.attention != "auto":
            model.set_attn_implementation(self.run.model.attention)
        set_packed_attention(model)
        tracker = MemoryTracker(model.config.vocab_size)
        run_steps(
            tracker,
            method.prepare(model),
            self.arguments,
            self.batch,
            self.eval_batch,
            is_adapter=method.output_kind == "adapter",
        )
        return tracker.phases


@pytest.fixture
def case(tiny, adgen_file, tmp_path):
    def make(family, **settings):
        return Case(tiny(family), adgen_file(24), tmp_path, **settings)

    return make


def _agree(planned, seen, share):
    """Every moment's total; single parts where they are not small. The watch that counts both does count."""
    assert min(parts["weights"] for parts in seen.values()) > 50_000
    assert max(parts["activations"] for parts in seen.values()) > 50_000
    assert planned.keys() == seen.keys()
    for name, parts in seen.items():
        # What the garbage collector has not found yet of the training is still there in the evaluation.
        near = 3 * share if name.startswith(("evaluation", "before")) else share
        assert planned[name].total() == pytest.approx(parts.total(), rel=near), name
        for part in ("weights", "adapter", "gradients", "optimizer", "logits"):
            assert planned[name][part] == pytest.approx(parts[part], rel=share, abs=2000), (name, part)


@pytest.mark.parametrize("method", ["lora", "ptuning", "freeze", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_counts_what_a_real_step_takes(case, family, method):
    run = case(family, method=method, freeze__trainable_layers=1)
    _agree(run.planned().phases, run.seen(), 0.02)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {"training__activation_checkpointing": True},
        {"data__packing": False},
        {"training__gradient_accumulation_steps": 1},
        {"model__precision": "bf16"},
        {"training__optim": "sgd", "method": "full"},
        {"model__attention": "eager"},
    ],
    ids=str,
)
def test_settings_count(case, family, settings):
    run = case(family, **settings)
    _agree(run.planned().phases, run.seen(), 0.02)


@pytest.mark.parametrize(("family", "method"), [("chatglm", "ptuning"), ("chatglm3", "lora"), ("chatglm3", "full")])
def test_some_layers_checkpointed_take_what_lies_between(family, method, tmp_path, adgen_file, monkeypatch):
    """Against real steps in which they are. Above by no more than a layer's activations, and below by a few hidden
    states (of so small a model 3 per cent): the first checkpoint keeps some that neither extreme has."""
    layers = 6
    folder = make_tiny(family, tmp_path / "base", layers=layers)
    data, moment = adgen_file(24), "forward, loss"
    plain, every = (
        Case(folder, data, tmp_path, method=method, training__activation_checkpointing=on) for on in (False, True)
    )
    without, full = (run.planned() for run in (plain, every))
    less, most = without.phases, full.phases
    layer = (less[moment].total() - most[moment].total()) / layers
    enable = PreTrainedModel.activation_checkpointing_enable
    for count in (1, 3, 5):

        def enable_some(model, *args, count=count, **kwargs):
            enable(model, *args, **kwargs)
            checkpoint_first_layers(model, count)

        with monkeypatch.context() as patch:
            patch.setattr(PreTrainedModel, "activation_checkpointing_enable", enable_some)
            seen = max(parts.total() for parts in every.seen().values())
        between = interpolate_traces(without, full, count / layers)
        planned = max(parts.total() for parts in between.phases.values())
        assert 0.97 * seen <= planned <= seen + 1.2 * layer


@pytest.mark.parametrize("quantization", ["packed4", "packed8"])
def test_packed_bases(case, quantization):
    run = case("chatglm2", method="ptuning", model__quantization=quantization)
    _agree(run.planned().phases, run.seen(), 0.02)


@pytest.fixture
def fresh_kernels():
    """Kernels that remember nothing, before and after."""
    kept = [value for value in vars(kernels).values() if hasattr(value, "cache_clear")]
    assert kept
    for clear in (True, False):
        for function in kept:
            function.cache_clear()
        if clear:
            yield


@pytest.mark.parametrize("bits", [4, 8])
def test_a_plan_leaves_nothing_in_the_kernels(tmp_path, adgen_file, fresh_kernels, bits):
    """One short row in bf16 is what the kernels of packed weights are for; they keep tensors from call to call."""
    folder = make_tiny("chatglm3", tmp_path / "model", hidden=64)
    held = tmp_path / "eval.json"
    held.write_text(json.dumps({"content": "a", "summary": "b"}) + "\n", "utf-8")
    settings = [f"model.path={folder}", f"data.train={adgen_file(4)}", f"data.eval={held}", "method=ptuning"]
    settings += [f"model.quantization=packed{bits}", "model.precision=bf16", "training.bf16=true"]
    plan = make_plan(load_config(None, [*settings, "training.per_device_eval_batch_size=1"]), "24GB")
    assert plan.estimate.parts["weights"] > 0
    for outputs, inputs in ((64, 64), (64, 128), (128, 64), (256, 64)):
        linear = nn.Linear(inputs, outputs, bias=False).bfloat16()
        layer = PackedLinear.from_linear(linear, bits)
        inputs_MI = torch.randn(1, inputs, dtype=torch.bfloat16)
        with torch.no_grad():
            outputs_MO, expected_MO = layer(inputs_MI), inputs_MI @ layer.dequantize_weight(torch.bfloat16).T
        assert not isinstance(outputs_MO, FakeTensor)
        torch.testing.assert_close(outputs_MO, expected_MO, rtol=0.02, atol=0.02)
