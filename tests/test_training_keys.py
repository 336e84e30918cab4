"""Every key of TrainingArguments: used, refused with a reason, or named as without effect; every optimizer likewise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother
from transformers.training_args import OptimizerNames

from glmtune.config import RunConfig
from glmtune.data.batches import BlockCollator
from glmtune.data.encoding import EncodedRow
from glmtune.errors import ConfigError
from glmtune.families import get_family
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.loading import load_base
from glmtune.models.packed_attention import set_packed_attention
from glmtune.run_dir import RunDir
from glmtune.training import optimizers
from glmtune.training.arguments import GlmTrainingArguments, check_training_keys, list_ineffective_keys, make_arguments
from glmtune.training.head import compute_head_losses
from glmtune.training.loss import LossSettings, step_loss
from glmtune.training.training_keys import OPTIMIZER_USES, TRAINING_KEY_USES

FIELDS = {field.name: field for field in dataclasses.fields(GlmTrainingArguments) if field.init}
# Values that ask for something, of keys whose default is no example of it.
EXAMPLES = {
    "lr_scheduler_kwargs": {"num_cycles": 0.5},
    "optim_args": "momentum=0.9",
    "report_to": ["tensorboard"],
    "log_level": "info",
    "log_level_replica": "error",
    "train_sampling_strategy": "sequential",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_strategy": "epoch",
    "debug": "underflow_overflow",
    "ddp_backend": "gloo",
    "tf32": False,
    "fp16": False,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "dataloader_multiprocessing_context": "fork",
    "metric_for_best_model": "loss",
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "optim_target_modules": "all-linear",
    "deepspeed": None,
    "fsdp": None,
    "fsdp_config": None,
    "ddp_timeout": 60,
    "max_steps": 3,
    "num_train_epochs": 2.0,
    "run_name": "name",
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "dataloader_prefetch_factor": 2,
}
COMPANIONS = {
    "optim_args": {"optim": "sgd"},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "load_best_model_at_end": {"eval_strategy": "epoch"},
}
NEEDS_MORE = {"optim_target_modules"}  # GaLore and APOLLO, whose packages may be absent


def _make(tmp_path, method="lora", **training):
    config = RunConfig(method=method, training={"use_cpu": True, **training})
    return make_arguments(config, RunDir(tmp_path / "run"), torch.float32)


def _example(name):
    if name in EXAMPLES:
        return EXAMPLES[name]
    kind, default = str(FIELDS[name].type), FIELDS[name].default
    if "bool" in kind:
        return not default if isinstance(default, bool) else True
    return 1 if "int" in kind or "float" in kind else "value"


def test_every_key_and_every_optimizer_is_classified():
    assert TRAINING_KEY_USES.keys() == FIELDS.keys()
    assert OPTIMIZER_USES.keys() == {name.value for name in OptimizerNames}
    for key, use in TRAINING_KEY_USES.items():
        assert use.reason or use.status == "used", key
    for name, use in OPTIMIZER_USES.items():
        assert not use.module or use.install, name


@pytest.mark.parametrize("key", sorted(TRAINING_KEY_USES))
def test_each_key_is_accepted_refused_with_its_reason_or_named(key, tmp_path, capsys):
    use, value = TRAINING_KEY_USES[key], _example(key)
    if use.status == "no effect" and value in use.accepted:
        value = not value
    if key in NEEDS_MORE:
        with pytest.raises(ConfigError, match="has no effect with training"):
            _make(tmp_path, **{key: value})
        return
    values = COMPANIONS.get(key, {}) | {key: value}
    if use.status == "refused":
        value = "value" if value in use.accepted else value
        with pytest.raises(ConfigError) as raised:
            check_training_keys({key: value})
        assert use.reason in str(raised.value)
        for each in use.accepted:
            check_training_keys({key: each})
        return
    arguments = _make(tmp_path, **values)
    assert list_ineffective_keys({key: value}) == (
        [f"training.{key} has no effect: {use.reason}."] if use.status == "no effect" else []
    )
    if use.status == "no effect":
        assert f"training.{key} has no effect" in capsys.readouterr().out
        assert not list_ineffective_keys(dict.fromkeys([key], None))
    elif value is not None and key not in ("ddp_backend", "report_to", "gradient_checkpointing"):
        kept = getattr(arguments, key)
        expected = [value] if key == "debug" else value
        assert getattr(kept, "value", kept) == expected or [getattr(each, "value", each) for each in kept] == expected


@pytest.mark.parametrize(
    ("training", "part"),
    [
        ({"train_sampling_strategy": "batch_rebalance"}, "One of: random, sequential"),
        ({"log_level": "loud"}, "One of: debug"),
        ({"ddp_backend": "carrier-pigeon"}, "One of: gloo"),
        ({"full_determinism": "maybe"}, "must be true or false"),
        ({"seed": None}, "has no value"),
        ({"weight_decay": "much"}, "must be a number"),
        ({"activation_checkpointing_kwargs": "fast"}, "must hold keys and values"),
        ({"dataloader_persistent_workers": True}, "without training.dataloader_num_workers"),
        ({"report_to": "telegraph"}, "training.report_to has no value"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"valleys": 3}}, "valleys"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "no"}, "eval"),
        ({"optim": "adam_of_eden"}, "adam_of_eden"),
        ({"optim": "sgd", "optim_args": "momentum"}, "momentum has no value"),
        ({"optim": "sgd", "optim_args": "momentun=0.9"}, "It has momentum"),
        ({"optim": "sgd", "optim_args": "momentum=high"}, "training.optim sgd"),
        ({"optim": "adamw_torch", "optim_args": "rank=8"}, "no options there"),
        ({"fsdp": "full_shard", "fsdp_config": "absent.json"}, "absent.json"),
    ],
)
def test_values_that_would_fail_in_the_training_fail_before_it(training, part, tmp_path):
    with pytest.raises(ConfigError) as raised:
        _make(tmp_path, **training)
    assert part in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2


@pytest.mark.parametrize("name", sorted(OPTIMIZER_USES))
def test_each_optimizer_is_built_or_its_package_is_named(name, tmp_path, monkeypatch):
    use = OPTIMIZER_USES[name]
    if use.refusal:
        with pytest.raises(ConfigError, match="is not supported"):
            _make(tmp_path, optim=name)
        return
    if use.module:
        monkeypatch.setattr(optimizers, "is_installed", lambda module: False)
        with pytest.raises(ConfigError) as raised:
            _make(tmp_path, optim=name)
        assert use.module in str(raised.value)
        assert use.install.removeprefix("glmtune") in str(raised.value)
        return
    assert _make(tmp_path, optim=name).optim == name


def test_low_rank_optimizers_need_modules_and_a_method_that_trains_whole_matrices(tmp_path, monkeypatch):
    monkeypatch.setattr(optimizers, "is_installed", lambda module: True)
    with pytest.raises(ConfigError, match="needs training"):
        _make(tmp_path, method="full", optim="galore_adamw")
    with pytest.raises(ConfigError, match="method lora trains none"):
        _make(tmp_path, optim="galore_adamw", optim_target_modules="all-linear")
    assert _make(tmp_path, method="full", optim="galore_adamw", optim_target_modules="all-linear")


def test_a_missing_package_is_one_line_and_nothing_is_loaded(glmtune_command, tiny, adgen_file, monkeypatch):
    monkeypatch.setattr(optimizers, "is_installed", lambda module: False)
    monkeypatch.setattr("glmtune.training.base_model.load_base", lambda *_, **__: pytest.fail("loaded"))
    result = glmtune_command(
        *("train", "--model", tiny("chatglm2"), "--data", adgen_file(4), "--set", "training.optim=galore_adamw")
    )
    assert result.code == 1
    assert "galore_torch, which is not installed." in result.err
    assert "install galore-torch" in result.err


@pytest.mark.parametrize("bias", [False, True], ids=["one-product", "any-head"])
@pytest.mark.parametrize("is_trained", [False, True], ids=["frozen", "trained"])
def test_smoothed_losses_and_gradients_are_those_of_transformers(bias, is_trained, monkeypatch):
    monkeypatch.setattr("glmtune.training.head._BYTES", 4 * 50 * 3)  # chunks of 3 targets
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=bias)
    head.weight.requires_grad_(is_trained)
    targets = torch.randint(50, (8,))

    def run(compute):
        hidden = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.weight.grad = None
        loss = compute(hidden)
        loss.backward()
        return loss.detach(), hidden.grad, head.weight.grad

    def theirs(hidden):
        return LabelSmoother(0.2)({"logits": head(hidden)[None]}, targets[None])

    expected = run(theirs)
    found = run(lambda hidden: compute_head_losses(head, head.forward, hidden, targets, 0.2).mean())
    for ours, other in zip(found, expected, strict=True):
        assert (ours is None) == (other is None)
        if ours is not None:
            torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


@pytest.fixture
def model_and_batch(tiny):
    """A tiny model and a block of two rows."""
    base = inspect_checkpoint(tiny("chatglm2"))
    model = load_base(base, dtype=torch.float32, device="cpu")
    set_packed_attention(model)
    rows = [EncodedRow(list(range(5, 5 + n)), [-100] * 4 + list(range(9, 5 + n)), 0, 0, "x:1") for n in (8, 20)]
    return model, BlockCollator(get_family("chatglm2"))([list(enumerate(rows))])


def test_embedding_noise_is_scaled_by_the_length_of_each_row(model_and_batch):
    model, batch = model_and_batch
    embeddings, outputs = model.get_input_embeddings(), []
    clean = embeddings(batch["input_ids"])
    own = embeddings.register_forward_hook(lambda *parts: outputs.append(parts[-1]), always_call=True)
    settings = LossSettings(embedding_noise=5.0)
    model.train()
    losses = step_loss(model, batch, settings=settings)
    own.remove()
    plain = step_loss(model.eval(), batch)
    assert not torch.equal(losses, plain)
    assert torch.equal(step_loss(model, batch, settings=settings), plain)  # an evaluation gets none
    torch.manual_seed(3)
    captured = []
    model.train()
    first_layer = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    hook = first_layer.register_forward_pre_hook(lambda module, inputs: captured.append(inputs[0]))
    step_loss(model, batch, settings=settings)
    hook.remove()
    noise = (captured[0].reshape(clean.shape) - clean).abs()[0]
    for part, length in ((noise[:8], 8), (noise[8:28], 20)):
        limit = 5.0 / (length * clean.shape[-1]) ** 0.5
        assert 0.9 * limit < part.max() <= limit * 1.0001


def test_smoothing_and_noise_reach_the_training_and_not_the_evaluation(glmtune_command, tiny, adgen_file, tmp_path):
    def train(name, *settings):
        sets = [part for each in settings for part in ("--set", each)]
        steps = ("training.max_steps=1", "training.logging_steps=1", "training.learning_rate=1e-5", "lora.dropout=0")
        result = glmtune_command(
            *("train", "--model", tiny("chatglm2"), "--data", adgen_file(8), "--output", tmp_path / name),
            *("--set", "data.eval_fraction=0.25"),
            *(part for each in steps for part in ("--set", each)),
            *sets,
        )
        assert result.code == 0, result.err
        metrics = RunDir(tmp_path / name).read_metrics()
        return tuple(next(entry[key] for entry in metrics if key in entry) for key in ("loss", "eval_loss"))

    plain, evaluated = train("plain")
    for setting in ("training.label_smoothing_factor=0.3", "training.neftune_noise_alpha=15"):
        loss, again = train(setting.partition("=")[0], setting)
        assert abs(loss - plain) > 1e-3, setting
        assert abs(again - evaluated) < 1e-4, setting
