"""Exported folders in TRL: `assistant_only_loss` trains on what this project trains on."""

from __future__ import annotations

import pytest
from engine_models import export, make_case, run_in

ANSWER = {"role": "assistant", "content": "白色上衣，简约大方。"}


@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4"])
def test_assistant_only_loss(name, tmp_path):
    case = make_case(name, tmp_path / "base")
    export(case.folder, tmp_path / "hf", dtype="fp32")
    talks = [[*talk, ANSWER] for talk in case.conversations[:8]]
    job = {"model": str(tmp_path / "hf"), "conversations": talks, "folder": str(tmp_path / "run")}
    found = run_in("trl", "trl_worker.py", job, tmp_path / "out.json")
    for talk, row in zip(talks, found["rows"], strict=True):
        encoded = case.family.encode(talk, case.tokenizer)
        assert row["input_ids"] == encoded.input_ids
        targets = [i for i, label in enumerate(encoded.labels) if label == encoded.input_ids[i]]
        assert [i for i, label in enumerate(row["labels"]) if label != -100] == targets
    assert found["loss"] > 0
    assert found["keeps_prefix"] == found["tools"] == (name != "chatglm2")
