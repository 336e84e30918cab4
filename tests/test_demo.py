"""The whole demo: a base that lists attributes is trained to write advertisements."""

from __future__ import annotations

import json

from demo_corpus.corpus import split_attributes
from glmtune.demo.run_demo import find_free_folder
from glmtune.run_dir import RunDir


def _read_replies(comparison, number):
    """Replies by prompt of the model with this number in a comparison."""
    (file,) = comparison.glob(f"{number}-*/predictions.jsonl")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {row["prompt"][-1]["content"]: row["prediction"] for row in rows}


def test_the_demo_turns_lists_into_advertisements(glmtune_command, tmp_path):
    folder = tmp_path / "glmtune-demo"
    result = glmtune_command("demo", "--output", folder)
    assert result.code == 0, result.err
    run = RunDir(folder / "run")
    for words in ("before and after", f"glmtune train {folder / 'config.yaml'}", f"glmtune chat {run.root}"):
        assert words in result.out
    assert run.curve.is_file()

    rows = [json.loads(line) for line in (folder / "dev.json").read_text("utf-8").splitlines()][4:24]
    prompts = [row["content"] for row in rows]
    found = [_read_replies(run.root / "eval" / "compare-dev", number) for number in (0, 1)]
    base, tuned = ([replies[prompt] for prompt in prompts] for replies in found)
    assert sum("：" in reply and reply.startswith("*") for reply in base) >= 16
    assert sum(reply.endswith("。") and "*" not in reply and "：" not in reply for reply in tuned) >= 16
    expected = [(reply, value) for reply, row in zip(tuned, prompts, strict=True) for _, value in split_attributes(row)]
    assert sum(value in reply for reply, value in expected) >= 0.8 * len(expected)
    train_prompts = {json.loads(line)["content"] for line in (folder / "train.json").read_text("utf-8").splitlines()}
    assert not train_prompts & set(prompts)


def test_an_existing_folder_gets_a_number(tmp_path):
    assert find_free_folder(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert find_free_folder(tmp_path / "a") == tmp_path / "a-2"
