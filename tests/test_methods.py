"""Every method on every generation, through the command line: it learns, is saved, reloads to the same logits, differs
from its base, and goes on after a stop as if there had been none."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from command import interrupt_run
from safetensors.torch import load_file

import glmtune
from conftest import find_asset
from demo_corpus.corpus import make_adgen_rows
from glmtune.generation.load import load_for_generation
from glmtune.run_dir import RunDir
from tiny import FAMILIES, make_tiny

METHODS = {
    "lora": ("--set", "training.learning_rate=3e-2"),
    "qlora": ("--set", "training.learning_rate=3e-2"),
    "ptuning": ("--set", "training.learning_rate=0.3", "--set", "ptuning.num_virtual_tokens=8"),
    "freeze": ("--set", "training.learning_rate=1e-2", "--set", "freeze.trainable_layers=1"),
    "full": ("--set", "training.learning_rate=1e-2"),
}
STEPS = 8


def _require(method):
    if method == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("qlora needs bitsandbytes: pip install glmtune[qlora]")


@pytest.fixture(scope="module")
def real_rows(tmp_path_factory):
    """ADGEN's own first rows where they are at hand, else advertisements of the same kind."""
    path = tmp_path_factory.mktemp("rows") / "train.json"
    try:
        lines = find_asset("data", "adgen", "train.json").read_text("utf-8").splitlines()[:4]
    except pytest.skip.Exception:
        lines = [json.dumps(row, ensure_ascii=False) for row in make_adgen_rows(4, seed=3)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """`base(family, method)`: a tiny checkpoint; bitsandbytes computes multiples of 64 on the CPU."""
    wide = {}

    def get(family, method="lora"):
        if method == "qlora" and family not in wide:
            wide[family] = make_tiny(family, tmp_path_factory.mktemp("wide") / family, hidden=64)
        return wide[family] if method == "qlora" else tiny(family)

    return get


@pytest.fixture
def train(glmtune_command, base, real_rows, tmp_path):
    def run(family, method, *more, output="run"):
        result = glmtune_command(
            *(
                "train",
                "--model",
                base(family, method),
                "--data",
                real_rows,
                "--method",
                method,
                "--output",
                tmp_path / output,
            ),
            *METHODS[method],
            *("--set", f"training.max_steps={STEPS}", "--set", f"training.save_steps={STEPS // 2}"),
            *("--set", "training.logging_steps=1", "--set", "training.save_total_limit=3"),
            # A step sees all rows, so that losses of different steps can be compared.
            *("--set", "data.eval_fraction=0", "--set", "training.gradient_accumulation_steps=4"),
            *("--set", "data.max_source_length=160", "--set", "data.max_target_length=80"),
            *more,
        )
        return RunDir(tmp_path / output), result

    return run


def _logits(model):
    return model(input_ids=torch.arange(10, 22)[None], attention_mask=torch.ones(1, 12, dtype=torch.long)).logits


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.rglob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrix(family, method, train, base, glmtune_command, tmp_path):
    _require(method)
    run, result = train(family, method)
    assert result.code == 0, result.err

    losses = [entry["loss"] for entry in run.read_metrics() if "loss" in entry]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 0.02

    kind = "model" if method in ("freeze", "full") else "adapter"
    quantization = "nf4" if method == "qlora" else None
    untuned = glmtune.load_model(base(family, method), quantization=quantization)
    tuned = _logits(glmtune.load_model(run.root))
    if quantization is None:
        assert torch.equal(tuned, _logits(glmtune.load_model(run.result(kind))))
    assert (tuned - _logits(untuned)).abs().max() > 1e-3
    assert json.loads(run.summary.read_text("utf-8"))["logits_changed_by"] > 0

    left = interrupt_run(run, STEPS // 2, tmp_path / "left")
    resumed = glmtune_command("train", "--resume", "--output", left.root)
    assert resumed.code == 0, resumed.err
    assert [entry["loss"] for entry in left.read_metrics() if "loss" in entry] == losses
    wanted, found = _weights(run.result(kind)), _weights(left.result(kind))
    assert wanted
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("method", ["ptuning", "lora"])
def test_a_checkpoint_is_small(method, train, tiny):
    """What was not trained is not in it."""
    run, result = train("chatglm3", method)
    assert result.code == 0, result.err
    stored = sum(value.numel() for value in _weights(run.last_checkpoint()).values())
    assert stored == json.loads(run.summary.read_text("utf-8"))["trainable_parameters"]
    assert stored < sum(p.numel() for p in glmtune.load_model(tiny("chatglm3")).parameters()) / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_freeze_leaves_the_other_layers_as_they_were(precision, train, tiny):
    """In a coarser precision than the checkpoint's too: rounding is for the time of training."""
    run, result = train("chatglm2", "freeze", "--set", f"model.precision={precision}")
    assert result.code == 0, result.err
    before = glmtune.load_model(tiny("chatglm2")).state_dict()
    after = glmtune.load_model(run.root).state_dict()
    changed = {name.split(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"1"}  # of two layers, the last


def test_a_whole_model_is_saved_ready_to_generate(train):
    """Training turns the cache of keys and values off; the result must not."""
    run, result = train("chatglm3", "full")
    assert result.code == 0, result.err
    assert json.loads((run.model / "config.json").read_text("utf-8"))["use_cache"] is True


def test_a_run_goes_on_from_what_another_trained(train, tmp_path):
    """`adapter:` starts from trained weights with a new schedule."""
    first, result = train("chatglm3", "ptuning")
    assert result.code == 0, result.err
    second, result = train("chatglm3", "ptuning", "--set", f"adapter={first.root}", output="second")
    assert result.code == 0, result.err
    losses = [[entry["loss"] for entry in run.read_metrics() if "loss" in entry] for run in (first, second)]
    assert losses[1][0] < losses[0][0] - 0.05


@pytest.mark.parametrize("method", ["freeze", "full"])
def test_a_quantised_base_is_not_trained_whole(method, train):
    _, result = train("chatglm3", method, "--set", "model.quantization=nf4")
    assert result.code == 1
    assert "method lora or ptuning" in result.err


def test_more_layers_than_there_are(train):
    _, result = train("chatglm3", "freeze", "--set", "freeze.trainable_layers=3")
    assert result.code == 1
    assert "the model has 2 layers" in result.err


def test_a_whole_model_run_is_no_adapter(train, tiny):
    run, _ = train("chatglm3", "full")
    with pytest.raises(glmtune.errors.RunError, match="whole model"):
        glmtune.load_model(tiny("chatglm3"), adapter=run.root)


def test_loraplus_reaches_the_optimiser(train):
    """B's rate is the ratio times A's, in what is saved of the optimiser too."""
    run, result = train(
        "chatglm3", "lora", "--set", "lora.loraplus_ratio=8", "--set", "training.lr_scheduler_type=constant"
    )
    assert result.code == 0, result.err
    optimizer = torch.load(run.last_checkpoint() / "optimizer.pt", weights_only=True)
    assert sorted(group["lr"] for group in optimizer["param_groups"]) == pytest.approx([3e-2, 8 * 3e-2])
    plain, _ = train("chatglm3", "lora", "--set", "training.lr_scheduler_type=constant", output="plain")
    assert not torch.equal(*(next(iter(_weights(each.adapter).values())) for each in (run, plain)))


@pytest.mark.parametrize("quantization", ["nf4", "int8", "packed4", "packed8"])
def test_a_prefix_on_a_quantised_base(quantization, train, base):
    """It learns there, and reloads with the base held as it was tuned."""
    if quantization in ("nf4", "int8"):
        _require("qlora")
    wide = base("chatglm3", "qlora")
    run, result = train("chatglm3", "ptuning", "--model", wide, "--set", f"model.quantization={quantization}")
    assert result.code == 0, result.err
    losses = [entry["loss"] for entry in run.read_metrics() if "loss" in entry]
    assert losses[-1] < losses[0] - 0.02
    held = glmtune.load_model(wide, quantization=quantization)
    tuned = _logits(glmtune.load_model(wide, adapter=run.root, quantization=quantization))
    assert (tuned - _logits(held)).abs().max() > 1e-3
    assert torch.equal(_logits(load_for_generation(str(run.root)).model), tuned)


def test_a_published_int4_folder_takes_a_prefix_and_no_adapter(train, tiny, glmtune_command, tmp_path):
    packed = tmp_path / "int4"
    exported = glmtune_command("export", tiny("chatglm"), packed, "--format", "official", "--bits", 4)
    assert exported.code == 0, exported.err
    run, result = train("chatglm", "ptuning", "--model", packed)
    assert result.code == 0, result.err
    losses = [entry["loss"] for entry in run.read_metrics() if "loss" in entry]
    assert losses[-1] < losses[0] - 0.02
    reply = glmtune_command("chat", run.root, "--prompt", "类型#裙", "--max-new-tokens", 4)
    assert reply.code == 0, reply.err
    for method in ("lora", "freeze", "full"):
        _, refused = train("chatglm", method, "--model", packed, output=method)
        assert refused.code == 1
        assert "full-precision" in refused.err
        assert len(refused.err.strip().splitlines()) == 2
