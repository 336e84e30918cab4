"""The plan on the page, without a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from glmtune.errors import GlmtuneError
from glmtune.webui import plan_panel
from glmtune.webui.app import make_context
from glmtune.webui.plan_panel import plan_html, planned, weights_html


@pytest.fixture
def tree(tiny, adgen_file):
    return {"model": {"path": str(tiny("chatglm3"))}, "data": {"train": str(adgen_file(16))}, "method": "lora"}


def test_the_form_is_planned_by_the_command(tmp_path, tree):
    context = make_context([tmp_path], "en")
    plan = planned(context, tree, "24GB")
    assert plan["verdict"] == "fits"
    html = plan_html(plan, "en")
    assert "It fits" in html
    assert "24.0 GiB" in html
    assert "放得下" in plan_html(plan, "zh")


def test_what_is_wrong_is_said_in_the_commands_words(tmp_path, tree):
    with pytest.raises(GlmtuneError, match="--gpu-memory twelve: not a size of memory"):
        planned(make_context([tmp_path], "en"), tree, "twelve")


def test_each_call_has_a_config_of_its_own(tmp_path, monkeypatch):
    """Another tab asks while a first plan is made."""
    context = make_context([tmp_path], "en")
    seen = []

    def run(command, **_):
        path = Path(command[command.index("plan") + 1])
        if not seen:
            seen.append(path)
            planned(context, {"method": "full"}, "")
        assert path.read_text("utf-8").strip() == ("method: lora" if path == seen[0] else "method: full")
        return subprocess.CompletedProcess(command, 0, json.dumps({}), "")

    monkeypatch.setattr(plan_panel.subprocess, "run", run)
    planned(context, {"method": "lora"}, "")
    assert not seen[0].exists()


@pytest.mark.parametrize("output", ["", "[]", None])
def test_no_fault_of_a_plan_takes_the_facts_away(tiny, monkeypatch, output):
    def run(command, **_):
        if output is None:
            raise OSError("no more processes")
        return subprocess.CompletedProcess(command, 0, output, "")

    monkeypatch.setattr(plan_panel.subprocess, "run", run)
    assert weights_html(str(tiny("chatglm2")), None, "huggingface", "en") == ""


def test_weights_where_a_model_is_chosen(tiny, tmp_path, monkeypatch):
    """Planned in another process: this one must not ask the GPU, for then it would keep a part of its memory."""
    monkeypatch.setattr("glmtune.training.plan.device.pick_device", None)
    monkeypatch.setattr("glmtune.training.plan.planner.pick_device", None)
    folder = tmp_path / "bare"
    shutil.copytree(tiny("chatglm2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "Weights only" in weights_html(str(folder), None, "huggingface", "en")
    assert weights_html(str(tmp_path / "nothing"), None, "huggingface", "en") == ""


def test_a_change_is_named_and_markup_is_escaped():
    plan = {
        "verdict": "too large",
        "bytes": 2 * 2**30,
        "memory_bytes": 2**30,
        "device": "<b>",
        "parts": {"weights": 2**31},
        "gradient_checkpointing": True,
        "checkpointed_layers": 9,
        "layers": 28,
        "change": {"settings": ["model.quantization=nf4"], "bytes": 2**29, "fits": True},
        "steps": None,
    }
    html = plan_html(plan, "en")
    assert "model.quantization=nf4" in html
    assert "checkpointing of 9 of 28 layers" in html
    assert "<b>" not in html
