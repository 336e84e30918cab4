"""Results never land in a model's folder or over another result, values that are not finite are failures, launchers
name the process that ended, libraries' advice is not shown."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from glmtune.bench.bench_output import choose_bench_folder
from glmtune.config import RunConfig
from glmtune.errors import RunError, TrainingError
from glmtune.evaluation import evaluate as evaluation
from glmtune.evaluation.output_folders import require_no_model, require_result_folder
from glmtune.report import write_report
from glmtune.training import deepspeed, launch
from glmtune.training.distributed import report_error_once
from glmtune.utils.console import silence_advice


@pytest.fixture
def fail_to_load(monkeypatch):
    """Fail the test if a model is loaded."""
    for place in ("glmtune.evaluation.model_info.load_parts", "glmtune.evaluation.model_switcher.ModelSwitcher.load"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr("glmtune.bench.cases.run_cases", lambda *_: pytest.fail("a model was measured"))


def _read_tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _commands(model: Path, adapter: Path, data: Path, output: Path) -> dict[str, list[object]]:
    return {
        "eval": ["eval", model, "--data", data, "--output", output],
        "compare": ["compare", model, adapter, "--data", data, "--output", output],
        "forget": ["forget", adapter, "--output", output],
        "bench": ["bench", model, "--output", output, "--device", "cpu"],
    }


@pytest.fixture
def adapter(tiny, tmp_path):
    """A LoRA adapter of the tiny ChatGLM3."""
    from peft import LoraConfig, get_peft_model

    import glmtune

    model = get_peft_model(glmtune.load_model(tiny("chatglm3")), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("command", ["eval", "compare", "forget", "bench"])
def test_no_result_is_written_into_a_model_or_over_something_else(
    command, tiny, adapter, adgen_file, tmp_path, glmtune_command, fail_to_load
):
    data = adgen_file(2)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("the only copy", "utf-8")
    file = tmp_path / "file"
    file.write_text("text", "utf-8")
    for output in (tiny("chatglm3"), tiny("chatglm3") / "inside", adapter, other, file):
        before = _read_tree(output) if output.is_dir() else None
        result = glmtune_command(*_commands(tiny("chatglm3"), adapter, data, output)[command])
        assert result.code == 1, (output, result.out)
        assert "--output" in result.err or "another folder" in result.err, result.err
        assert "Traceback" not in result.err
        assert len(result.err.strip().splitlines()) <= 3, result.err
        assert before is None or _read_tree(output) == before
    assert not (tiny("chatglm3") / "inside").exists()


def test_a_result_of_another_kind_or_of_other_models_is_not_replaced(
    tiny, adapter, adgen_file, tmp_path, glmtune_command, fail_to_load
):
    data, output = adgen_file(2), tmp_path / "results"
    output.mkdir()
    commands = _commands(tiny("chatglm3"), adapter, data, output)
    (output / "bench.json").write_text("{}", "utf-8")
    for name, command in commands.items():
        assert glmtune_command(*command).code == 1, name
    (output / "bench.json").rename(output / "forgetting.json")
    result = glmtune_command(*commands["forget"])
    assert "forgetting probe of another model" in result.err
    (output / "forgetting.json").unlink()
    (output / "0-elsewhere").mkdir()
    (output / "0-elsewhere" / "predictions.jsonl").write_text("", "utf-8")
    assert "comparison of other models (0-elsewhere)" in glmtune_command(*commands["compare"]).err


def test_an_own_folder_is_taken_again(tmp_path):
    for name in ("predictions.jsonl", "predictions.partial.jsonl"):
        folder = tmp_path / name[:-6]
        folder.mkdir()
        (folder / name).write_text("", "utf-8")
        require_result_folder(folder, ("predictions.jsonl", "predictions.partial.jsonl"), "an evaluation")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / ".lock").write_text("", "utf-8")
    require_result_folder(tmp_path / "locked", (), "an evaluation")
    (tmp_path / "notes.bin").write_text("", "utf-8")  # a weight's ending alone makes no model of a working directory
    require_no_model(tmp_path / "new")


def test_benchmarks_without_an_output_do_not_replace_each_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_bench_folder(None) == Path("glmtune-bench")
    Path("glmtune-bench").mkdir()
    Path("glmtune-bench/bench.json").write_text("{}", "utf-8")
    assert choose_bench_folder(None).name.startswith("glmtune-bench-")
    with pytest.raises(RunError, match="never written over"):
        choose_bench_folder(Path("glmtune-bench"))


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    with pytest.raises(RunError, match="Read-only file system"):
        require_result_folder(tmp_path / "a" / "b", (), "a benchmark")
    assert not (tmp_path / "a").exists()


def test_a_report_is_not_written_into_a_model(tmp_path):
    (tmp_path / "config.yaml").write_text("model: x\ndata: y\n", "utf-8")
    assert write_report(tmp_path, "en").is_file()
    (tmp_path / "report.html").unlink()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}", "utf-8")
    with pytest.raises(RunError, match="holds a model"):
        write_report(tmp_path, "en")
    assert not (tmp_path / "report.html").exists()


def test_a_full_disk_is_one_line_and_leaves_the_former_report(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("model: x\ndata: y\n", "utf-8")
    former = write_report(tmp_path, "en").read_text("utf-8")

    def fail(self, *_, **__):
        self.write_bytes(b"<html")
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_report(tmp_path, "en")
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_text("utf-8") == former
    assert not list(tmp_path.glob(".report*"))


def test_readers_of_results_take_null_and_nan(tmp_path, glmtune_command):
    run = tmp_path / "run"
    (run / "eval" / "data").mkdir(parents=True)
    (run / "config.yaml").write_text("model: x\ndata: y\n", "utf-8")
    lines = ('{"step": 1, "loss": null, "eval_loss": NaN}', '{"step": 2, "loss": Infinity}', "null", '{"step": null}')
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (run / "summary.json").write_text('{"first_loss": NaN, "steps": null, "seconds": null}', "utf-8")
    score = {"mean": float("nan"), "low": None, "high": float("inf"), "rows": 2}
    metrics = {"kind": "eval", "scores": {"rouge_l": score}, "loss": None, "perplexity": float("nan"), "counts": None}
    (run / "eval" / "data" / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    (run / "eval" / "data" / "predictions.jsonl").write_text('{"scores": {"rouge_l": NaN}, "row": null}\n', "utf-8")
    sides = {"base": None, "tuned": float("nan")}
    probe = {"kl": None, "loss": sides, "accuracy": {**sides, "by_category": {"maths": sides}}, "verdict": None}
    (run / "forgetting.json").write_text(json.dumps(probe), "utf-8")
    result = glmtune_command("report", run)
    assert result.code == 0, result.err
    for part in (run / "eval" / "data",):
        assert glmtune_command("report", part).code == 0
    page = (run / "report.html").read_text("utf-8")
    assert ">nan<" not in page.lower()
    assert ">inf<" not in page.lower()


def test_a_loss_that_is_not_finite_is_a_failure(monkeypatch, tiny, adgen_file, tmp_path, glmtune_command):
    monkeypatch.setattr(evaluation, "compute_reference_loss", lambda *_, **__: (float("nan"), 3))
    output = tmp_path / "out"
    options = ("--output", output, "--max-new-tokens", 2, "--device", "cpu")
    result = glmtune_command("eval", tiny("chatglm3"), "--data", adgen_file(1), *options)
    assert result.code == 1
    assert "the loss of the references is not finite" in result.err
    assert not (output / "metrics.json").exists()


def test_weights_that_compute_no_numbers_fail_in_eval(monkeypatch, tiny, adgen_file, tmp_path, glmtune_command):
    from glmtune.evaluation import model_info

    def load(*arguments, **options):
        opened, found, base = model_info_load(*arguments, **options)
        with torch.no_grad():
            opened.model.get_output_embeddings().weight.fill_(float("nan"))
        return opened, found, base

    model_info_load = model_info.load_parts
    monkeypatch.setattr(model_info, "load_parts", load)
    result = glmtune_command("eval", tiny("chatglm3"), "--data", adgen_file(1), "--output", tmp_path / "out")
    assert result.code == 1
    assert "not finite" in result.err
    assert not (tmp_path / "out" / "metrics.json").exists()


def _failed(codes: dict[int, int]) -> ChildFailedError:
    failures = {}
    for rank, code in codes.items():
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="")
    return ChildFailedError("glmtune", failures)


@pytest.mark.parametrize(
    ("codes", "kills", "parts", "code"),
    [
        ({1: -signal.SIGKILL}, (3, 3), ("Process 1 of 2", "killed by SIGKILL", "see dmesg"), 1),
        ({1: -signal.SIGKILL}, (3, 4), ("killed by SIGKILL", "The system was out of memory: start fewer"), 1),
        ({0: -signal.SIGTERM, 1: -signal.SIGSEGV}, (0, 0), ("Process 1 of 2", "killed by SIGSEGV"), 1),
        ({0: 7}, (0, 0), ("Process 0 of 2", "ended with exit code 7"), 7),
        ({0: 1, 1: -signal.SIGKILL}, (0, 0), ("Process 1 of 2", "SIGKILL"), 1),
    ],
)
def test_the_launcher_names_the_process_that_ended_and_how(codes, kills, parts, code, monkeypatch, capsys):
    counts = iter(kills)
    monkeypatch.setattr(launch, "count_oom_kills", lambda: next(counts))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def fail(*_):
        raise _failed(codes)

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: fail)
    before = signal.getsignal(signal.SIGTERM)
    assert launch.launch_processes(2, ["train"]) == code
    assert signal.getsignal(signal.SIGTERM) is before
    printed = capsys.readouterr().err
    assert all(part in printed for part in parts), printed
    assert "Traceback" not in printed


def test_sigterm_goes_to_the_processes_and_is_no_failure(monkeypatch, capsys):
    sent = []
    monkeypatch.setattr(launch, "send_to_children", sent.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    def run(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        raise _failed({0: -signal.SIGTERM, 1: 130})

    monkeypatch.setattr(launch, "elastic_launch", lambda *_: run)
    assert launch.launch_processes(2, ["train"]) == 130
    assert sent == [signal.SIGTERM]
    assert capsys.readouterr().err == ""


def test_a_lost_process_is_no_traceback(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("glmtune.training.distributed._store", lambda: type("Store", (), {"add": lambda *_: 1})())
    with pytest.raises(TrainingError, match="has lost another process"), report_error_once():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    with pytest.raises(RuntimeError, match="a bug"), report_error_once():
        raise RuntimeError("a bug")


def test_a_compilation_of_deepspeed_is_announced_and_a_lock_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deepspeed, "_find_build_folder", lambda name: tmp_path)
    settings = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    config = RunConfig(training={"deepspeed": settings})
    deepspeed.announce_compilation(config, on_gpu=True)
    assert "DeepSpeed compiles cpu_adam" in capsys.readouterr().out
    (tmp_path / "lock").touch()
    deepspeed.announce_compilation(config, on_gpu=True)
    assert str(tmp_path / "lock") in capsys.readouterr().out.replace("\n", "")
    (tmp_path / "cpu_adam.so").touch()
    deepspeed.announce_compilation(config, on_gpu=True)
    deepspeed.announce_compilation(RunConfig(), on_gpu=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("DeepSpeed", "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."),
        ("bitsandbytes.backends.cpu.ops", "Failed to load: please make sure you already `pip install kernels`"),
        ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast from %s to float16"),
    ],
)
def test_advice_of_libraries_is_dropped_and_nothing_else(logger, message):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    silence_advice()
    log = logging.getLogger(logger)
    log.addHandler(handler)
    try:
        log.setLevel(logging.WARNING)  # as the library does when it is imported
        log.warning(message.replace("%s", "bf16"))
        log.warning("the disk is on fire")
    finally:
        log.removeHandler(handler)
    assert [record.msg for record in records] == ["the disk is on fire"]


def test_importing_the_package_drops_that_advice_too():
    code = (
        "import glmtune, logging\n"
        "log = logging.getLogger('DeepSpeed')\n"
        "log.warning('Setting accelerator to CPU. If you have GPU or other accelerator')\n"
        "log.warning('the disk is on fire')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stderr == "the disk is on fire\n"
