"""Files that the web page writes and reads: no secrets in them, and damaged ones harm nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("fastapi")

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.evaluation.results import EVALUATION_FILE
from glmtune.migrate import plan_commands
from glmtune.webui import evaluations
from glmtune.webui.chat_messages import read_tools
from glmtune.webui.forms import as_yaml, check_tree
from glmtune.webui.jobs import JobError, Jobs
from glmtune.webui.run_files import NOTES, read_notes

DEEP = "[" * 100_000 + "]" * 100_000


def test_a_config_of_the_page_holds_no_secrets():
    tree = {
        "model": {"path": "m"},
        "ptuning": {"num_virtual_tokens": 8},
        "training": {"hub_token": "hf_abc", "seed": 1, "lr_scheduler_kwargs": {"api_key": "hf_abc", "num_cycles": 1}},
    }
    text = as_yaml(tree)
    assert "hf_abc" not in text
    tree["training"] = {"seed": 1, "lr_scheduler_kwargs": {"num_cycles": 1}}
    assert yaml.safe_load(text) == tree  # and everything else


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hub_token", "hf_abc", "hub_token is not supported: .*hf auth login"),
        ("push_to_hub", True, "push_to_hub is not supported"),
        ("metric_for_best_model", "rogue_l", "there is no metric"),
    ],
)
def test_a_training_that_would_be_refused_is_not_started(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_tree({"model": {"path": "m"}, "data": {"train": "d.json"}, "training": {key: value}})


JOB = {"id": "a", "kind": "eval", "arguments": ["eval"], "output": "", "owner": "", "state": "finished"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        DEEP,
        json.dumps(JOB | {"surprise": 1}),
        json.dumps(JOB | {"state": "odd"}),
        json.dumps(JOB | {"arguments": "eval"}),
        json.dumps(JOB | {"pid": "12"}),
        json.dumps({key: value for key, value in JOB.items() if key != "kind"}),
    ],
)
def test_a_damaged_job_harms_no_other(text, tmp_path, capsys):
    jobs = Jobs(tmp_path / "jobs", tmp_path)
    (tmp_path / "jobs" / "a.json").write_text(json.dumps(JOB), "utf-8")
    (tmp_path / "jobs" / "b.json").write_text(text.replace('"a"', '"b"'), "utf-8")
    start = time.monotonic()
    assert [job.id for job in jobs.list()] == ["a"]
    assert [job.id for job in jobs.list()] == ["a"]
    assert time.monotonic() - start < 5
    printed = capsys.readouterr().out
    assert printed.count("b.json") == 1  # once, not every second
    with pytest.raises(JobError, match=r"b\.json.*\nRemove the file"):
        jobs.get("b")


@pytest.mark.parametrize("text", ["", "[]", DEEP, "\udcff"])
def test_a_damaged_result_is_not_listed(text, tmp_path):
    for name in ("good", "bad"):
        (tmp_path / "evals" / name).mkdir(parents=True)
    (tmp_path / "evals" / "good" / EVALUATION_FILE).write_text('{"kind": "eval"}', "utf-8")
    (tmp_path / "evals" / "bad" / EVALUATION_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    found = evaluations.list_evaluations(SimpleNamespace(roots=[tmp_path]))
    assert [result.folder.name for result in found] == ["good"]


@pytest.mark.parametrize("text", ["{", DEEP, "[" + "9" * 5000 + "]", '{"a": 1}', "[1]"])
def test_tools_that_are_no_list_are_named(text):
    with pytest.raises(ConfigError, match="Tools"):
        read_tools(text)


def test_notes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text("model: m\n", "utf-8")
    (tmp_path / NOTES).write_bytes(b"\xff\xfe")
    with pytest.raises(GlmtuneError, match="not UTF-8 text"):
        read_notes(tmp_path)


@pytest.mark.parametrize("name", ["x.sh", "x.py"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x = " + b"(" * 200_000, b"#" * (9 * 2**20)])
def test_scripts_that_cannot_be_read_are_refused_in_bounded_time(name, content, tmp_path):
    path = Path(tmp_path / name)
    path.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(GlmtuneError):
        plan_commands([str(path)])
    assert time.monotonic() - start < 5
