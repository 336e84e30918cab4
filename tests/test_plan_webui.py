"""The plan on the page, without a browser."""

from __future__ import annotations

import asyncio
import time

import pytest

pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from glmtune.errors import GlmtuneError
from glmtune.webui import commands
from glmtune.webui.errors import JobError
from glmtune.webui.plan_view import make_plan, render_plan, render_work


@pytest.fixture
def tree(tiny, adgen_file):
    return {"model": {"path": str(tiny("chatglm3"))}, "data": {"train": str(adgen_file(16))}, "method": "lora"}


def test_the_form_is_planned_by_the_command(tmp_path, tree):
    plan = asyncio.run(make_plan(tree, "24GB", tmp_path, "en"))
    assert plan["verdict"] == "fits"
    assert "It fits" in render_plan(plan, "en")
    assert "24.0 GiB" in render_plan(plan, "en")
    assert "放得下" in render_plan(plan, "zh")
    assert f"{plan['steps']:,}" in render_work(plan, 600.0, "en")
    assert "about 10 min" in render_work(plan, 600.0, "en")


def test_an_error_of_the_command_is_shown_in_its_words(tmp_path, tree):
    with pytest.raises(GlmtuneError, match="--gpu-memory twelve: not a size of memory"):
        asyncio.run(make_plan(tree, "twelve", tmp_path, "en"))


def test_a_plan_that_nobody_waits_for_ends(tmp_path, tree, monkeypatch):
    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    monkeypatch.setattr(commands, "_POLL_S", 0.01)
    start = time.monotonic()
    with pytest.raises(JobError, match="does not wait"):
        asyncio.run(make_plan({**tree, "seed": "unused"}, "24GB", tmp_path, "en", Gone()))
    assert time.monotonic() - start < 30


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
    html = render_plan(plan, "en")
    assert "model.quantization=nf4" in html
    assert "checkpointing of 9 of 28 layers" in html
    assert "<b>" not in html
