"""Presets of the training form: by goal, and by the card that they are for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from page_client import PageClient

from glmtune.training.plan import changes
from glmtune.webui import gpu_memory, plan_view
from glmtune.webui.app import make_context
from glmtune.webui.commands import CommandOutput
from glmtune.webui.gpu_memory import Gpu
from glmtune.webui.presets import GOALS, apply_goal, apply_settings
from glmtune.webui.run_form import make_empty_form, make_form

GIB = 2**30


@pytest.fixture
def page(tmp_path, tiny):
    """A page with a model and rows in its root."""
    shutil.copytree(tiny("chatglm3"), tmp_path / "base")
    rows = [{"content": "问题" * 40, "summary": "回答" * 40}] * 12
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return PageClient(make_context([tmp_path], "en"))


@pytest.fixture
def plans(monkeypatch):
    """`plans[...]` are what `glmtune plan` says by the batch of the config; `calls` are its configs and options."""
    answers: dict[int, dict] = {}
    calls: list[tuple[dict, list[str]]] = []

    async def run_command(arguments, root, **limits):
        config = yaml.safe_load(Path(arguments[1]).read_text("utf-8"))
        calls.append((config, arguments[2:]))
        batch = config.get("training", {}).get("per_device_train_batch_size", 1)
        return CommandOutput(0, json.dumps(answers[batch]), "")

    monkeypatch.setattr(plan_view, "run_command", run_command)
    monkeypatch.setattr(plan_view, "_plans", type(plan_view._plans)())
    return answers, calls


def plan(gib: float, memory: float, verdict="fits", checkpointed=False, change=None, device="NVIDIA T4"):
    return {
        **{"bytes": int(gib * GIB), "memory_bytes": int(memory * GIB), "verdict": verdict, "device": device},
        **{"gradient_checkpointing": checkpointed, "change": change, "precision": "float16"},
    }


def press(page, goal, **fields):
    """The form after a preset: values by key, and the sentences beside it."""
    given = {"model.path": "base", "data.train": "rows.json", "action": "preset", "preset": goal, **fields}
    html = page.post("/train/form", given).text
    values = dict(re.findall(r'name="([\w.]+)" value="([^"]*)"', html))
    values["method"] = re.search(r'name="method" value="(\w+)" data-method checked', html).group(1)
    lines = re.search(r'id="goal-lines".*?</div>', html, re.DOTALL)
    return values, lines.group() if lines else "", html


def test_a_large_card_gets_the_step_in_one_micro_batch(page, plans):
    plans[0].update({1: plan(6, 79, device="NVIDIA H100"), 8: plan(9, 79, device="NVIDIA H100")})
    values, lines, _ = press(page, "quick")
    assert values["training.per_device_train_batch_size"] == "8"
    assert values["training.gradient_accumulation_steps"] == "1"
    assert "NVIDIA H100, 79.0 GiB" in lines
    assert "batch 8 × 1" in lines


def test_a_smaller_card_gets_rows_one_by_one_rather_than_checkpointing(page, plans):
    plans[0].update({8: plan(14, 15, checkpointed=True), 1: plan(9, 15)})
    values, lines, _ = press(page, "quick")
    assert values["training.per_device_train_batch_size"] == "1"
    assert values["training.gradient_accumulation_steps"] == "8"
    assert "no gradient checkpointing" in lines


def test_what_does_not_fit_is_changed_as_the_plan_says_for_the_card_that_was_chosen(page, plans):
    change = {"settings": ["model.quantization=nf4"], "bytes": 5 * GIB, "fits": True}
    too_large = plan(13, 6, "too large", True, change, "a GPU of 6.0 GiB")
    plans[0][1] = too_large
    values, lines, html = press(page, "usual", gpu_memory="6GB")
    assert values["method"] == "qlora"
    assert all(options == ["--json", "--gpu-memory", "6GB"] for _, options in plans[1])
    assert "the chosen card, 6.0 GiB" in lines
    assert "model.quantization=nf4" in lines
    assert '<option value="6GB" selected>' in html


def test_a_card_that_is_too_small_for_everything_is_said(page, plans):
    change = {"settings": ["data.max_length=64"], "bytes": 7 * GIB, "fits": False}
    plans[0][1] = plan(13, 6, "too large", True, change)
    _, lines, _ = press(page, "usual", gpu_memory="6GB")
    assert "7.0 GiB" in lines
    assert "smaller model" in lines


def test_the_card_of_this_machine_is_named_beside_the_presets(page, monkeypatch):
    monkeypatch.setattr(gpu_memory, "_readings", [])
    monkeypatch.setattr(gpu_memory, "_read_gpus", lambda: (Gpu("NVIDIA RTX 3060", 0, 12 * GIB),))
    assert "NVIDIA RTX 3060, 12.0 GiB" in page.get("/train").text


def test_without_model_and_data_the_goal_is_applied_and_the_rest_is_said(page):
    values, lines, _ = press(page, "quick", **{"data.train": ""})
    assert values["training.max_steps"] == "60"
    assert "Choose a model and data" in lines


def test_a_preset_asks_the_command_that_plans(page):
    _, lines, _ = press(page, "usual", gpu_memory="1GB")
    assert "the chosen card, 1.0 GiB" in lines
    assert re.search(r"lora, bfloat16, batch 1 × 2, no gradient checkpointing: about 8\d\d MiB", lines)


@pytest.mark.parametrize("goal", GOALS)
def test_a_goal_replaces_what_another_goal_has_set(goal):
    """`load_best_model_at_end` of the careful preset would make the quick one fail, which does not evaluate."""
    form = make_form({"model": {"path": "base"}, "data": {"train": "a.json", "columns": {"prompt": "q"}}})
    form.more = "training.weight_decay=0.1"
    alone = apply_goal(form, goal)
    for other in GOALS:
        assert apply_goal(apply_goal(form, other), goal) == alone
    assert alone.values["data.columns"] == "prompt: q"
    assert "training.weight_decay=0.1" in alone.more


def test_a_setting_replaces_the_line_of_its_key_and_flags_are_boxes():
    form = apply_settings(make_empty_form(), ["training.tf32=true", "data.packing=false", "training.tf32=false"])
    assert form.more == "training.tf32=false"
    assert form.values["data.packing"] is False
    assert apply_settings(form, ["training.gradient_checkpointing=true"]).values["training.gradient_checkpointing"] == (
        "true"
    )


def test_a_change_that_needs_bitsandbytes_is_not_proposed_where_it_is_missing(monkeypatch):
    from types import SimpleNamespace

    here, elsewhere = (SimpleNamespace(device=SimpleNamespace(is_local=is_local)) for is_local in (True, False))
    monkeypatch.setattr(changes, "is_installed", lambda name: False)
    assert [scheme for scheme, _ in changes._list_base_schemes(here)] == ["packed8", "packed4"]
    assert [scheme for scheme, _ in changes._list_base_schemes(elsewhere)] == ["nf4"]
