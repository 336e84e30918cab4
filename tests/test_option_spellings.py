"""Options spelt with `=`, underscores or `=true`, on every command that could take them."""

from __future__ import annotations

import pytest

from glmtune.cli.main import app
from glmtune.cli.option_spellings import normalize_words
from glmtune.training import run as training_run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train --resume=RUN --output=o", "train --resume RUN --output=o"),
        ("train c.yaml --resume=true --force=False", "train c.yaml --resume"),
        ("train --model m --set training.max_steps=1", "train --model m --set training.max_steps=1"),
        # Options of other projects stay as they are, also where one of ours has the same letters.
        ("train main.py --eval_data x --lora_rank=8", "train main.py --eval_data x --lora_rank=8"),
        ("run x.sh --max_new_tokens=4", "run x.sh --max_new_tokens=4"),
        ("chat m --max_new_tokens=4 --top_p 0.5", "chat m --max-new-tokens=4 --top-p 0.5"),
        ("compare a b --data d --forget=no", "compare a b --data d --no-forget"),
        ("data check f --json=1 --what_is_this 3", "data check f --json --what_is_this 3"),
        ("chat m --prompt --max_new=3", "chat m --prompt --max_new=3"),
        ("migrate -- main.py --json=true", "migrate -- main.py --json=true"),
        ("--json=true", "--json=true"),
    ],
)
def test_spellings(words, expected):
    assert normalize_words(app, words.split()) == expected.split()


@pytest.fixture
def resumed(monkeypatch):
    """What a training is called with, without training."""
    calls = []

    def record(config, *, resume, checkpoint, **_):
        calls.append((config.output, resume, checkpoint))
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "train", record)
    return calls


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: m\ndata: d.json\noutput: {folder}\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "has_checkpoint"),
    [
        (["--resume={run}"], False),
        (["--resume", "{run}"], False),
        (["--resume={run}/checkpoints/checkpoint-4"], True),
        (["--output={run}", "--resume={run}/checkpoints/checkpoint-4"], True),
        (["{run}/config.yaml", "--resume={run}/checkpoints/checkpoint-4"], True),
        (["--resume={run}/checkpoints/checkpoint-4", "{run}/config.yaml"], True),
        (["{run}/config.yaml", "--resume={run}"], False),
        (["{run}/config.yaml", "--resume=yes"], False),
    ],
)
def test_what_is_resumed(words, has_checkpoint, run_folder, resumed, glmtune_command):
    glmtune_command("train", *(word.format(run=run_folder) for word in words))
    checkpoint = str(run_folder / "checkpoints" / "checkpoint-4") if has_checkpoint else ""
    assert resumed == [(str(run_folder), True, checkpoint)]


def test_two_paths_of_which_none_can_be_resumed(run_folder, resumed, glmtune_command):
    result = glmtune_command("train", run_folder / "config.yaml", f"--resume={run_folder}/nothing")
    assert result.code == 1
    assert "one should be a config file, the other a run or a checkpoint" in result.err
    assert not resumed
