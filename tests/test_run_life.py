"""The life of a run: finished is written last, resuming does what it says, damage is found, a full disk is one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import zipfile

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from glmtune.config import RunConfig
from glmtune.errors import RunError, TrainingError
from glmtune.run_dir import RunDir
from glmtune.training import run as run_module
from glmtune.training.callbacks import StopCallback, format_metrics
from glmtune.training.checkpoint_files import find_damage, find_whole_checkpoint, write_checksums
from glmtune.training.data_position import DataPosition, count_steps, read_position
from glmtune.training.resume import remove_secrets, require_fixed_settings
from glmtune.training.samplers import EpochSampler, ResumedSampler, make_epoch_sampler
from glmtune.training.trainer import GlmTrainer
from glmtune.training.verify import require_change
from glmtune.utils.io import replace_folder

SETTINGS = {
    "training.max_steps": 4,
    "training.save_steps": 2,
    "training.logging_steps": 1,
    "training.eval_strategy": "no",
    "training.learning_rate": 1e-2,
    "training.report_to": "none",
    "data.packing": "false",
    "data.eval_fraction": 0,
}


@pytest.fixture
def command(tiny, adgen_file, tmp_path):
    """`command(key=value, ...)`: the command line of a run; dots in keys are written as `__`."""
    data = adgen_file(12)

    def get(**changed):
        settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
        chosen = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return ["train", "--model", tiny("chatglm3"), "--data", data, "--output", tmp_path / "run", *chosen]

    return get


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path / "run")


@pytest.fixture
def record_rows(monkeypatch):
    """The numbers of the rows of every optimiser step, in the order of training."""
    rows: list[list[int]] = []
    original = GlmTrainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        rows.append(inputs["rows"].tolist())
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(GlmTrainer, "training_step", training_step)
    return rows


def _resume(*words, **changed):
    chosen = [part for key, value in changed.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    return ["train", "--resume", *words, *chosen]


def _summary(run):
    return json.loads(run.summary.read_text("utf-8"))


def _fail(error):
    def fail(*args, **kwargs):
        raise error

    return fail


# --- finished means finished ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["save_result", "save_line_charts"])
def test_a_run_ended_before_its_result_is_completed(phase, command, run, glmtune_command, monkeypatch):
    owner = run_module if phase == "save_line_charts" else run_module.TrainingRun
    with monkeypatch.context() as patch:
        patch.setattr(owner, phase, _fail(KeyboardInterrupt()))
        result = glmtune_command(*command())
    assert result.code != 0
    assert "--resume --output" in result.out
    assert _summary(run)["state"] == "running"
    speed = _summary(run)["tokens_per_second"]
    result = glmtune_command(*_resume("--output", run.root))
    assert result.code == 0, result.err
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert _summary(run)["state"] == "finished"
    assert _summary(run)["tokens_per_second"] == speed > 0
    again = glmtune_command(*_resume("--output", run.root))
    assert again.code == 1
    assert "finished already, at step 4" in again.err


def test_an_old_result_is_renamed_and_never_removed_first(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "old").write_text("1")
    original = os.replace

    def replace(source, target):  # a kill at the second renaming
        if str(source).endswith(".tmp"):
            raise KeyboardInterrupt
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("glmtune.utils.io.os.replace", replace)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117 - the block is the subject
            with replace_folder(folder) as temporary:
                assert (folder / "old").is_file()
                (temporary / "new").write_text("2")
    assert (tmp_path / ".adapter.old" / "old").is_file()
    with replace_folder(folder) as temporary:
        assert (folder / "old").is_file()  # put back
        (temporary / "new").write_text("2")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir() if "adapter" in path.name] == ["adapter"]


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_settings_changed_at_resuming_are_those_of_the_optimiser(command, run, glmtune_command):
    command = command(training__max_steps=2, training__lr_scheduler_type="constant")
    assert glmtune_command(*command).code == 0
    changed = {"training__learning_rate": 0.02, "training__weight_decay": 0.5, "training__adam_beta2": 0.9}
    changed |= {"training__save_steps": 1, "training__logging_steps": 2, "training__max_steps": 4}
    result = glmtune_command(*_resume("--output", run.root, **changed))
    assert result.code == 0, result.err
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2, 4]
    assert [path.name for path in run.checkpoints_newest_first()] == [f"checkpoint-{n}" for n in (4, 3)]
    optimizer = torch.load(run.checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)
    decayed = optimizer["param_groups"][0]
    assert (decayed["lr"], decayed["weight_decay"], decayed["betas"][1]) == (0.02, 0.5, 0.9)
    assert run.read_metrics()[-1]["learning_rate"] == 0.02


def test_a_raised_number_of_steps_has_the_rates_of_the_new_schedule(command, run, glmtune_command):
    assert glmtune_command(*command(training__max_steps=2, training__lr_scheduler_type="linear")).code == 0
    assert glmtune_command(*_resume("--output", run.root, training__max_steps=4)).code == 0
    rates = [round(entry["learning_rate"], 5) for entry in run.read_metrics()]
    assert rates == [0.01, 0.005, 0.005, 0.0025]  # the third step is halfway through four


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training__seed", 7),
        ("training__optim", "adafactor"),
        ("training__metric_for_best_model", "rouge_l"),
        ("training__max_steps", 1),
        ("model__double_quantization", "false"),
    ],
)
def test_settings_that_cannot_change_are_refused_by_name(key, value, command, run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    config = run.config.read_text("utf-8")
    result = glmtune_command(*_resume("--output", run.root, **{key: value}))
    assert result.code == 1
    assert key.replace("__", ".") in result.err
    assert len(result.err.strip().splitlines()) == 2
    assert run.config.read_text("utf-8") == config
    assert _summary(run)["state"] == "finished"


def test_a_schedule_that_measures_cannot_change(run):
    before = RunConfig(training={"lr_scheduler_type": "greedy"})
    now = RunConfig(training={"lr_scheduler_type": "greedy", "learning_rate": 1})
    with pytest.raises(RunError, match=r"training\.learning_rate cannot change .*greedy depends on its past"):
        require_fixed_settings(run, before, now)


def test_a_finished_run_is_not_relabelled(run, glmtune_command, finished_run):
    """A changed rate of a run that takes no more steps has no effect, so it is refused."""
    shutil.copytree(finished_run, run.root)
    result = glmtune_command(*_resume("--output", run.root, training__learning_rate=1))
    assert result.code == 1
    assert "finished already" in result.err
    assert yaml.safe_load(run.config.read_text("utf-8"))["training"]["learning_rate"] == 0.01


@pytest.fixture(scope="module")
def finished_run(tiny, tmp_path_factory):
    """A run of 4 steps with checkpoints 2 and 4; copy it."""
    from command import make_runner

    from demo_corpus.corpus import make_adgen_rows

    folder = tmp_path_factory.mktemp("finished")
    data = folder / "train.json"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in make_adgen_rows(12, seed=1)), "utf-8")
    settings = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    words = ["train", "--model", tiny("chatglm3"), "--data", data, "--output", folder / "run", *settings]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLMTUNE_CACHE", str(folder / "cache"))
        assert make_runner(patch, _Silent())(*words).code == 0
    return folder / "run"


class _Silent:
    """In the place of capsys, which a fixture of a module cannot have."""

    def readouterr(self):
        return type("Output", (), {"out": "", "err": ""})


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 1), (4, 1)), ((2, 2), (1, 3))],
    ids=["batch-1-to-4", "accumulation-2-to-3"],
)
def test_another_batch_size_continues_at_the_same_row(first, second, command, run, glmtune_command, record_rows):
    sizes = [
        {"training__per_device_train_batch_size": batch, "training__gradient_accumulation_steps": steps}
        for batch, steps in (first, second)
    ]
    start = command(training__max_steps=2, training__num_train_epochs=2, **sizes[0])
    assert glmtune_command(*start).code == 0
    result = glmtune_command(*_resume("--output", run.root, training__max_steps=-1, **sizes[1]))
    assert result.code == 0, result.err
    rows = [row for batch in record_rows for row in batch]
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert read_position(run.last_checkpoint()) == DataPosition(2, 0, "random")
    assert run.read_metrics()[-1]["epoch"] == 2


def test_another_number_of_processes_continues_at_the_same_row():
    lengths = list(range(10, 33))
    order = list(EpochSampler(lengths, seed=1, group=None))
    arguments = TrainingArguments("x", per_device_train_batch_size=2, num_train_epochs=2, report_to=[])
    sampler = ResumedSampler(None, 23, make_epoch_sampler("random", lengths, 1), epoch=0, start=10)
    assert len(sampler) == 23  # of a whole epoch, until one begins
    sampler.set_epoch(0)
    assert list(sampler) == order[10:]
    # 23 blocks in 12 steps of 2; after 5 of them, 13 blocks are left: 4 steps of 4, and 6 of the next epoch.
    counts = count_steps(arguments, 23, processes=2, position=DataPosition(0, 10, "random"), step=5)
    assert (counts.steps, counts.epochs, counts.is_beyond) == (5 + 4 + 6, 2, False)
    same = count_steps(arguments, 23, processes=1, position=DataPosition(0, 10, "random"), step=5)
    assert same.steps == 24
    assert count_steps(arguments, 23, 1, DataPosition(2, 2, "random"), 25).is_beyond


def test_a_resumed_epoch_keeps_its_order():
    """Grouped by length, the order depends on the batch size."""
    lengths = [n % 7 + 1 for n in range(40)]
    before, now = (make_epoch_sampler(f"group_by_length:{group}", lengths, 1) for group in (4, 8))
    sampler = ResumedSampler(now, 40, before, epoch=1, start=16)
    sampler.set_epoch(1)
    before.set_epoch(1)
    assert list(sampler) == list(before)[16:]
    sampler.set_epoch(2)
    assert list(sampler) == list(now)
    assert sorted(sampler) == list(range(40))


@pytest.mark.parametrize("form", ["path", "name"])
def test_going_back_to_an_earlier_checkpoint(form, run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    checkpoint = run.checkpoints / "checkpoint-2"
    words = [checkpoint] if form == "path" else ["checkpoint-2", "--output", run.root]
    result = glmtune_command(*_resume(*words))
    assert result.code == 0, result.err
    assert f"Resuming from {checkpoint}" in result.out
    (folder,) = run.checkpoints.glob("after-step-2-*")
    assert (folder / "checkpoint-4" / "trainer_state.json").is_file()
    assert (folder / "metrics.jsonl").is_file()
    kept, before = (load_file(root / "adapter" / "adapter_model.safetensors") for root in (run.root, finished_run))
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2, 3, 4]


def test_a_checkpoint_that_is_not_there(run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    result = glmtune_command(*_resume("--output", run.root, "checkpoint-3"))
    assert result.code == 1
    assert "checkpoint-2, checkpoint-4" in result.err


def test_the_newest_checkpoint_is_kept_beside_the_best(command, run, glmtune_command, monkeypatch, adgen_file):
    scripted = iter([1.0, 2.0, 3.0])
    original = GlmTrainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.metrics["eval_loss"] = next(scripted)
        return output

    monkeypatch.setattr(GlmTrainer, "evaluation_loop", evaluation_loop)
    changed = {"training__eval_strategy": "steps", "training__eval_steps": 2, "training__save_total_limit": 1}
    changed |= {"training__load_best_model_at_end": "true"}
    start = command(**changed)
    result = glmtune_command(*start, "--eval-data", adgen_file(3, "dev.json", seed=2))
    assert result.code == 0, result.err
    assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    assert "evaluation loss 1.0000 (of step 2, the best, which is kept)" in result.out
    assert (_summary(run)["eval_loss"], _summary(run)["kept_step"]) == (1.0, 2)
    result = glmtune_command(*_resume("--output", run.root, training__max_steps=6))
    assert result.code == 0, result.err
    assert f"Resuming from {run.checkpoints / 'checkpoint-4'}" in result.out
    assert _summary(run)["kept_step"] == 2


# --- not finite -------------------------------------------------------------------------------------------------------


def test_an_evaluation_loss_that_is_not_finite_ends_the_run(command, run, glmtune_command, monkeypatch, adgen_file):
    from glmtune.training import objective

    original = objective.step_loss

    def step_loss(model, batch, *args, **kwargs):
        losses = original(model, batch, *args, **kwargs)
        return losses if model.training else losses * float("nan")

    monkeypatch.setattr(objective, "step_loss", step_loss)
    start = command(training__eval_strategy="steps", training__eval_steps=2)
    result = glmtune_command(*start, "--eval-data", adgen_file(3, "dev.json", seed=2))
    assert result.code == 1
    assert "The evaluation loss became nan at step 2" in result.err
    assert "dev.json:" in result.err
    assert len(result.err.strip().splitlines()) == 2
    assert _summary(run)["state"] == "stopped"
    assert "evaluation loss" in _summary(run)["error"]
    assert not run.checkpoints_newest_first()


def test_weights_that_are_not_finite_are_not_saved(command, run, glmtune_command, monkeypatch):
    check = GlmTrainer._require_finite_weights

    def require(self):
        if self.state.global_step == 4:
            next(p for p in self.model.parameters() if p.requires_grad).data.fill_(float("nan"))
        return check(self)

    monkeypatch.setattr(GlmTrainer, "_require_finite_weights", require)
    result = glmtune_command(*command())
    assert result.code == 1
    assert "infinite or NaN at step 4" in result.err
    assert [path.name for path in run.checkpoints_newest_first()] == ["checkpoint-2"]


def test_nan_is_no_change(tmp_path):
    before = torch.zeros(1, 2, 3)
    with pytest.raises(TrainingError, match="not finite"):
        require_change(tmp_path, before, before * float("nan"))
    assert require_change(tmp_path, before, before + 1) == 1


def test_null_harms_no_reader(run):
    run.root.mkdir()
    entries = [{"step": 1, "loss": None, "eval_loss": None, "learning_rate": None, "grad_norm": None}, {"step": 2}]
    run.metrics.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    assert run.read_metrics() == entries
    assert format_metrics(entries[0]) == ""


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _write_checkpoint(run, step, weight=1.0):
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"a": torch.tensor([weight])}, folder / "adapter_model.safetensors")
    torch.save({"state": torch.ones(100)}, folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    write_checksums(folder)
    return folder


def _cut(path, size=100):
    os.truncate(path, size)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (os.remove(folder / "checksums.json"), _cut(folder / "optimizer.pt")), "optimizer.pt"),
        (lambda folder: (os.remove(folder / "checksums.json"), os.remove(folder / "optimizer.pt")), "optimiser"),
        (
            lambda folder: (os.remove(folder / "checksums.json"), _cut(folder / "trainer_state.json", 3)),
            "trainer_state",
        ),
        (lambda folder: (folder / "checksums.json").write_text("[1]"), "checksums.json cannot be read"),
        (
            lambda folder: ((folder / "checksums.json").write_text("{}"), _cut(folder / "adapter_model.safetensors")),
            "adapter_model.safetensors",
        ),
        (lambda folder: (os.remove(folder / "optimizer.pt"), (folder / "optimizer.pt").mkdir()), "optimizer.pt"),
    ],
)
def test_damage_without_checksums_is_found(damage, reason, run, capsys):
    before, last = _write_checkpoint(run, 2), _write_checkpoint(run, 10)
    assert find_damage(last) is None
    damage(last)
    assert reason in find_damage(last)
    assert find_whole_checkpoint(run) == before
    assert f"{last} is damaged" in capsys.readouterr().out.replace("\n", "")


def test_a_checkpoint_with_a_weight_that_is_not_finite_is_not_whole(run):
    before = _write_checkpoint(run, 2)
    assert "a in adapter_model.safetensors is not finite" in find_damage(_write_checkpoint(run, 4, float("inf")))
    assert find_whole_checkpoint(run) == before


def test_a_file_that_cannot_be_read_is_damage(run, monkeypatch):
    last = _write_checkpoint(run, 2)
    error = OSError(errno.EIO, "Input/output error", str(last / "optimizer.pt"))
    monkeypatch.setattr("glmtune.training.checkpoint_files._compute_crc", _fail(error))
    assert find_damage(last) == "optimizer.pt cannot be read: Input/output error"


def test_another_optimiser_state_is_one_line(run, glmtune_command, finished_run):
    """Checksums are gone, and the file is whole, but no state of an optimiser."""
    shutil.copytree(finished_run, run.root)
    last = run.last_checkpoint()
    (last / "checksums.json").unlink()
    torch.save({"a": 1}, last / "optimizer.pt")
    assert zipfile.is_zipfile(last / "optimizer.pt")
    result = glmtune_command(*_resume("--output", run.root, training__max_steps=6))
    assert result.code == 1
    assert "the state of the optimiser cannot be loaded" in result.err
    assert len(result.err.strip().splitlines()) == 2


def test_checkpoints_are_rotated_by_step(run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    for path in run.checkpoints_newest_first():
        os.utime(path, (2e9, 2e9))  # in the future
    changed = {"training__max_steps": 6, "training__save_total_limit": 2}
    result = glmtune_command(*_resume("--output", run.root, **changed))
    assert result.code == 0, result.err
    assert [path.name for path in run.checkpoints_newest_first()] == ["checkpoint-6", "checkpoint-4"]


def test_bad_lines_of_metrics_are_left_out_and_counted(run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    with run.metrics.open("ab") as stream:
        stream.write(b'3\n[1]\nnull\n{"step": null, "loss": 1}\n{"step": "x"}\n\xff\xfe\x00\n{"step": 5, "lo')
    result = glmtune_command(*_resume("--output", run.root, training__max_steps=5))
    assert result.code == 0, result.err
    assert "metrics.jsonl: 7 lines cannot be read" in result.out + result.err
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("way", ["resume", "again"])
def test_a_config_without_a_summary(way, command, run, glmtune_command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_json", _fail(KeyboardInterrupt()))  # a kill between the two files
        glmtune_command(*command())
    assert run.config.is_file()
    assert not run.summary.exists()
    result = glmtune_command(*(_resume("--output", run.root) if way == "resume" else command()))
    assert result.code == 0, result.err
    assert _summary(run)["state"] == "finished"


def test_a_lost_summary_is_written_again(run, glmtune_command, finished_run):
    shutil.copytree(finished_run, run.root)
    run.summary.unlink()
    result = glmtune_command(*_resume("--output", run.root))
    assert result.code == 0, result.err
    assert "summary.json is missing" in result.out + result.err
    assert _summary(run)["state"] == "finished"


# --- signals, disk, secrets -------------------------------------------------------------------------------------------


def test_sigterm_saves_a_checkpoint(command, run, glmtune_command, monkeypatch):
    original = GlmTrainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat it
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GlmTrainer, "training_step", training_step)
    previous = signal.getsignal(signal.SIGTERM)
    result = glmtune_command(*command())
    assert result.code == 130
    assert "Stopped at step 3; the checkpoint is saved." in result.out
    assert run.last_checkpoint().name == "checkpoint-3"
    assert _summary(run)["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) is previous


def test_signals_are_restored_once(run):
    stopper = StopCallback(run)
    previous = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    run.root.mkdir()
    stopper.on_train_begin(None, None, None)
    assert signal.getsignal(signal.SIGTERM) != previous[1]
    stopper.restore_signals()
    stopper.restore_signals()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == previous


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("RunDir.append_metrics", errno.ENOSPC),
        ("write_json", errno.EROFS),
        ("GlmTrainer.save_model", errno.EDQUOT),
        ("save_line_charts", errno.ENOSPC),
    ],
)
def test_a_disk_that_cannot_be_written_to_is_one_line(number, place, command, run, glmtune_command, monkeypatch):
    owner, _, name = place.rpartition(".")
    target = {"": run_module, "RunDir": RunDir, "GlmTrainer": GlmTrainer}[owner]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, _fail(OSError(number, os.strerror(number))))
        result = glmtune_command(*command(training__max_steps=2))
    assert result.code == 1
    assert os.strerror(number).lower()[:13] in result.err.lower()
    assert len(result.err.strip().splitlines()) == 2
    assert "Traceback" not in result.err
    assert not list(run.root.rglob("*.tmp"))
    assert not (run.checkpoints / ".saving").exists()
    if name == "save_line_charts":
        result = glmtune_command(*_resume("--output", run.root))
        assert result.code == 0, result.err


def test_torch_names_no_reason_for_a_full_disk(command, run, glmtune_command, monkeypatch):
    text = "[enforce fail at inline_container.cc:603] . unexpected pos 704 vs 598"
    monkeypatch.setattr(GlmTrainer, "_save_optimizer_and_scheduler", _fail(RuntimeError(text)))
    result = glmtune_command(*command())
    assert result.code == 1
    assert "checkpoint-2 cannot be saved (writing failed, is the disk full?" in result.err
    assert not run.checkpoints_newest_first()


def test_a_report_that_cannot_be_written_does_not_lose_the_result(command, run, glmtune_command, monkeypatch):
    monkeypatch.setattr("glmtune.report.write_report", _fail(OSError(errno.ENOSPC, "No space left on device")))
    result = glmtune_command(*command())
    assert result.code == 0, result.err
    assert f"Later: glmtune report {run.root}" in result.out + result.err
    assert "Done: 4 steps" in result.out


def test_secrets_do_not_reach_the_config():
    training = {"hub_token": "hf_x", "optim_args": {"api_key": "y"}, "num_input_tokens": 3}
    kept = remove_secrets(RunConfig(training=training)).training
    assert "hub_token" not in kept
    assert (kept["optim_args"], kept["num_input_tokens"]) == ({}, 3)


def test_a_broken_position_is_named(tmp_path):
    (tmp_path / "data_position.json").write_text('{"epoch": -1}')
    with pytest.raises(RunError, match="broken"):
        read_position(tmp_path)
