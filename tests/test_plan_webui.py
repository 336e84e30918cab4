"""The plan on the page, without a browser."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("gradio", reason="needs the extra `ui`: pip install 'glmtune[ui]'")

from glmtune.errors import GlmtuneError
from glmtune.webui.app import make_context
from glmtune.webui.plan_panel import plan_html, planned, weights_html
from glmtune.webui.texts_plan import TEXTS


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


def test_weights_where_a_model_is_chosen(tiny, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny("chatglm2"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert "weights alone" in weights_html(str(folder), None, "huggingface", "en")
    assert weights_html(str(tmp_path / "nothing"), None, "huggingface", "en") == ""


def test_a_change_is_named_and_markup_is_escaped():
    plan = {
        "verdict": "too large",
        "bytes": 2 * 2**30,
        "memory_bytes": 2**30,
        "device": "<b>",
        "parts": {"weights": 2**31},
        "gradient_checkpointing": True,
        "change": {"settings": ["model.quantization=nf4"], "bytes": 2**29, "fits": True},
        "steps": None,
    }
    html = plan_html(plan, "en")
    assert "model.quantization=nf4" in html
    assert "<b>" not in html


def test_texts_in_both_languages():
    assert all(set(said) == {"zh", "en"} for said in TEXTS.values())
