"""The demo, whole: a base that lists attributes becomes one that advertises them."""

from __future__ import annotations

import json

from glmtune.demo.corpus import split_attributes
from glmtune.generation.load import open_model
from glmtune.generation.reply import generate_reply
from glmtune.run_dir import RunDir


def _replies(target, prompts):
    opened = open_model(str(target), device="cpu")
    ask = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [generate_reply(opened.model, opened.tokenizer, opened.family, messages).content for messages in ask]


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
    base, tuned = _replies(folder / "base", prompts), _replies(run.root, prompts)
    assert sum("：" in reply and reply.startswith("*") for reply in base) >= 16
    assert sum(reply.endswith("。") and "*" not in reply and "：" not in reply for reply in tuned) >= 16
    wanted = [(reply, value) for reply, row in zip(tuned, prompts, strict=True) for _, value in split_attributes(row)]
    assert sum(value in reply for reply, value in wanted) >= 0.8 * len(wanted)
    trained = {json.loads(line)["content"] for line in (folder / "train.json").read_text("utf-8").splitlines()}
    assert not trained & set(prompts)


def test_a_taken_folder_gets_a_number(tmp_path):
    from glmtune.demo.run_demo import _free

    assert _free(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert _free(tmp_path / "a") == tmp_path / "a-2"
