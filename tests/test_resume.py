"""Nothing is lost: killed runs, damaged checkpoints, the best checkpoint, early stopping, runs that cannot go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from glmtune.run_dir import RunDir
from glmtune.training.trainer import GlmTrainer

STEPS = 6
SETTINGS = (
    f"training.max_steps={STEPS}",
    "training.save_steps=2",
    "training.logging_steps=1",
    "training.learning_rate=1e-2",
    "training.gradient_accumulation_steps=2",
    "data.packing=false",
    "lora.dropout=0.1",
)
# Runs command lines one after the other, each in a copy of this process, which kills itself at the first call of a
# method of the trainer at a given step. The libraries are imported once, and nothing is computed before a copy is made.
KILLED = """
import gc, json, os, signal, sys
import matplotlib.figure, peft
import transformers.models.glm.modeling_glm
from glmtune.cli.main import main
from glmtune.training.plan import planner
from glmtune.training.run import train
from glmtune.training.trainer import GlmTrainer

gc.freeze()

def run(name, step, command):
    original = getattr(GlmTrainer, name)

    def killed(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    setattr(GlmTrainer, name, killed)
    sys.argv[1:] = command
    main()

for line in sys.stdin:
    if not (copy := os.fork()):
        run(*json.loads(line))
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]), flush=True)
"""


@pytest.fixture
def arguments(tiny, adgen_file, tmp_path):
    """`arguments("name", "key=value", ...)`: the command line of a run called `name`."""
    data = adgen_file(12)

    def get(name, *settings):
        chosen = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        return ["train", "--model", tiny("chatglm3"), "--data", data, "--output", tmp_path / name, *chosen]

    return get


def _run(arguments) -> RunDir:
    return RunDir(arguments[arguments.index("--output") + 1])


def _losses(run, key="loss"):
    return [entry[key] for entry in run.read_metrics() if key in entry]


def _same_weights(a, b):
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_kills_at_any_moment_change_nothing(arguments, glmtune_command):
    """Killed within a step, while a checkpoint is written, and between the last step and the result."""
    whole = arguments("whole")
    assert glmtune_command(*whole).code == 0

    run = _run(arguments("killed"))
    resume = ["train", "--resume", "--output", run.root]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        for method, step, command in (
            ("training_step", 3, arguments("killed")),
            ("_save_optimizer_and_scheduler", 4, resume),
            ("_finalize_training", STEPS, resume),
        ):
            print(json.dumps([method, step, [*map(str, command)]]), file=process.stdin, flush=True)
            ended = next(line for line in process.stdout if line.startswith("ended with"))
            assert ended == "ended with -9\n"
            assert not run.adapter.exists()
            for checkpoint in run.checkpoints_newest_first():
                assert (checkpoint / "optimizer.pt").is_file()
    (run.checkpoints / ".saving").mkdir()  # as a kill in a save leaves it
    result = glmtune_command(*resume)
    assert result.code == 0, result.err
    assert not (run.checkpoints / ".saving").exists()
    assert _losses(run) == _losses(_run(whole))
    assert _same_weights(run, _run(whole))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        ("cut", "adapter_model.safetensors"),
        ("flipped", "adapter_model.safetensors"),
        ("missing", "adapter_model.safetensors"),
        ("cut", "glmtune.json"),
    ],
)
def test_a_damaged_last_checkpoint_falls_back(damage, name, arguments, glmtune_command):
    whole, broken = _run(arguments("whole")), _run(arguments("broken"))
    for run in ("whole", "broken"):
        assert glmtune_command(*arguments(run)).code == 0
    file = broken.checkpoints / f"checkpoint-{STEPS}" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content[:-8] if damage == "cut" else content)
    _unfinish(broken)
    result = glmtune_command("train", "--resume", "--output", broken.root)
    assert result.code == 0, result.err
    assert f"checkpoint-{STEPS} is damaged ({name}" in result.out
    assert f"Resuming from {broken.checkpoints / 'checkpoint-4'}" in result.out
    assert _losses(broken) == _losses(whole)
    assert _same_weights(broken, whole)


def _unfinish(run):
    import shutil

    shutil.rmtree(run.adapter)
    summary = json.loads(run.summary.read_text("utf-8"))
    run.summary.write_text(json.dumps(summary | {"state": "running"}), "utf-8")


def test_old_checkpoints_are_removed_and_the_best_is_kept(arguments, glmtune_command, monkeypatch):
    scripted = iter([2.0, 1.0, 3.0, 4.0, 5.0, 6.0])
    original = GlmTrainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.metrics["eval_loss"] = next(scripted)
        return output

    monkeypatch.setattr(GlmTrainer, "evaluation_loop", evaluation_loop)
    more = ("training.eval_strategy=steps", "training.eval_steps=1", "training.load_best_model_at_end=true")
    command = arguments("best", *more)
    command = [part if part != "training.save_steps=2" else "training.logging_steps=1" for part in command]
    result = glmtune_command(*command)
    assert result.code == 0, result.err
    run = _run(command)
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-2", f"checkpoint-{STEPS}"}
    best = load_file(run.checkpoints / "checkpoint-2" / "adapter_model.safetensors")
    last = load_file(run.checkpoints / f"checkpoint-{STEPS}" / "adapter_model.safetensors")
    kept = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert not all(torch.equal(kept[name], last[name]) for name in kept)
    assert json.loads(run.summary.read_text("utf-8"))["best_eval_loss"] == 1.0


def test_the_best_checkpoint_of_a_run_that_was_moved(arguments, glmtune_command):
    more = ("training.eval_strategy=steps", "training.eval_steps=2", "training.load_best_model_at_end=true")
    command = arguments("old", *more)
    result = glmtune_command(*command)
    assert result.code == 0, result.err
    run = _run(command)
    kept = load_file(run.adapter / "adapter_model.safetensors")
    _unfinish(run)
    moved = RunDir(run.root.rename(run.root.with_name("moved")))
    result = glmtune_command("train", "--resume", "--output", moved.root)
    assert result.code == 0, result.err
    again = load_file(moved.adapter / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_early_stopping_ends_a_run_for_good(arguments, glmtune_command, monkeypatch):
    scripted = iter([2.0, 1.0, 3.0, 4.0])
    original = GlmTrainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.metrics["eval_loss"] = next(scripted)
        return output

    monkeypatch.setattr(GlmTrainer, "evaluation_loop", evaluation_loop)
    command = arguments("early", "early_stopping=2", "training.eval_strategy=steps", "training.eval_steps=1")
    command = [part if part != "training.save_steps=2" else "training.logging_steps=1" for part in command]
    result = glmtune_command(*command)
    assert result.code == 0, result.err
    run = _run(command)
    summary = json.loads(run.summary.read_text("utf-8"))
    assert (summary["state"], summary["steps"]) == ("finished", 4)
    assert "Stopped early: 2 evaluations without a better one." in result.out
    best = load_file(run.checkpoints / "checkpoint-2" / "adapter_model.safetensors")
    kept = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], best[name]) for name in kept)


def test_early_stopping_needs_evaluations(arguments, glmtune_command):
    result = glmtune_command(*arguments("none", "early_stopping=2", "data.eval_fraction=0"))
    assert result.code == 1
    assert "early_stopping" in result.err
    assert len(result.err.strip().splitlines()) == 2


@pytest.mark.parametrize("wish", ["early_stopping=2", "training.load_best_model_at_end=true"])
def test_the_best_checkpoint_needs_evaluations(wish, arguments, glmtune_command):
    result = glmtune_command(*arguments("never", wish, "training.eval_strategy=no"))
    assert result.code == 1
    assert f"{wish.partition('=')[0]} needs evaluations" in result.err
    assert len(result.err.strip().splitlines()) == 2


def test_a_broken_summary_is_named(arguments, glmtune_command):
    command = arguments("broken")
    assert glmtune_command(*command).code == 0
    _run(command).summary.write_text("{", "utf-8")
    result = glmtune_command("train", "--resume", "--output", _run(command).root)
    assert result.code == 1
    assert "summary.json: broken" in result.err


def test_a_loss_that_stays_zero_stops_the_run(arguments, glmtune_command, monkeypatch):
    monkeypatch.setattr("glmtune.training.objective.step_loss", _zeros)
    result = glmtune_command(*arguments("zero"))
    assert result.code == 1
    assert "The loss is exactly 0 at step 4" in result.err
    assert "train.json:" in result.err
    assert len(result.err.strip().splitlines()) == 2


def _zeros(model, batch, **_):
    parameter = next(p for p in model.parameters() if p.requires_grad)
    return torch.zeros(len(batch["targets"])) * parameter.sum()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_lower(error, arguments, glmtune_command, monkeypatch):
    def fail(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(GlmTrainer, "training_step", fail)
    result = glmtune_command(*arguments("memory", "training.per_device_train_batch_size=4", "data.max_length=96"))
    assert result.code == 1
    assert "Out of memory at step 1" in result.err
    assert "per_device_train_batch_size=2 with training.gradient_accumulation_steps=4" in result.err
    assert "activation_checkpointing=true" in result.err
    assert "data.max_length=48 (now 96" in result.err
    assert "model.quantization=nf4" in result.err


def test_out_of_memory_before_the_first_step(arguments, glmtune_command, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")

    monkeypatch.setattr("glmtune.training.run.compute_probe_logits", fail)
    command = arguments("memory")
    result = glmtune_command(*command)
    assert result.code == 1
    assert "Out of memory before the first step (CUDA out of memory" in result.err
    assert "model.quantization=nf4" in result.err
    assert not _run(command).root.exists()


def test_out_of_memory_while_the_trainer_is_built(arguments, glmtune_command, monkeypatch):
    """As when it moves a model to the GPU: advice, as at a step, and not an error of the config."""

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB")

    monkeypatch.setattr("glmtune.training.run.GlmTrainer", fail)
    result = glmtune_command(*arguments("memory"))
    assert result.code == 1
    assert "Out of memory before the first step (CUDA out of memory" in result.err
    assert "Try, in this order: " in result.err


def test_an_error_of_the_trainer_is_not_blamed_on_the_config(arguments, glmtune_command, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("a bug")

    monkeypatch.setattr("glmtune.training.run.GlmTrainer", fail)
    with pytest.raises(ValueError, match="a bug"):
        glmtune_command(*arguments("bug"))


def test_another_error_is_not_called_out_of_memory(arguments, glmtune_command, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(GlmTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="something else"):
        glmtune_command(*arguments("other"))


def test_two_runs_into_one_folder(arguments, glmtune_command):
    assert glmtune_command(*arguments("one")).code == 0
    again = glmtune_command(*arguments("one"))
    assert again.code == 1
    assert "not empty" in again.err


@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_that_another_process_trains_in(resumed, arguments, glmtune_command):
    run = _run(arguments("held"))
    command = arguments("held")
    if resumed:
        assert glmtune_command(*command).code == 0
        _unfinish(run)
        command = ["train", "--resume", "--output", run.root]
    with run.lock(new=not resumed):
        result = glmtune_command(*command)
    assert result.code == 1
    assert "another process is training" in result.err
    assert not run.adapter.exists()
