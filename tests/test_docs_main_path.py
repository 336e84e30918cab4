"""The README's way from data to an exported model, run as it is written there with the demo's base in the place of
ChatGLM3-6B. Options are added that make commands shorter; no word of the page is left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command import interrupt_run

from docs_pages import REPOSITORY, list_blocks, list_commands
from glmtune.run_dir import RunDir

README = REPOSITORY / "README.md"
DEMO = REPOSITORY / "src" / "glmtune" / "demo"
# A page that serves does not end, and downloads need a hub.
_NOT_RUN = ("fetch", "serve")
_SHORTER = {
    "train": "--set training.max_steps=2 --set training.save_steps=1",
    "chat": "--prompt 你好 --max-new-tokens 4",
    "compare": "--limit 4 --max-new-tokens 8 --forget-limit 7",
    "bench": "--variants 16-bit --batch-sizes 1 --prompt-tokens 8 --new-tokens 4 --repeats 1",
}


def _list_readme_commands(name: str) -> list[tuple[str, ...]]:
    return [command.words for command in list_commands(REPOSITORY / name) if command.is_whole]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """What the README takes for granted: a checkpoint, rows, and the config file that it shows."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO / "base", "chatglm3-6b")
    for path, source, count in (("train.json", "train", 24), ("dev.json", "dev", 8)):
        rows = (DEMO / "data" / f"{source}.jsonl").read_text("utf-8").splitlines()[:count]
        Path(path).write_text("\n".join(rows) + "\n", "utf-8")
        Path("AdvertiseGen").mkdir(exist_ok=True)
        shutil.copy(path, Path("AdvertiseGen") / path)
    (config,) = [block.text for block in list_blocks(README) if block.language == "yaml"]
    Path("adgen.yaml").write_text(config, "utf-8")
    return tmp_path


def test_the_readme_runs_from_top_to_bottom(workplace, glmtune_command):
    run = []
    for words in _list_readme_commands("README.md"):
        if words[0] in _NOT_RUN:
            continue
        extra = _SHORTER.get(words[0], "")
        if "--resume" in words:  # after a crash
            shutil.move(interrupt_run(RunDir("runs/adgen"), 1, Path("killed")).root, _empty("runs/adgen"))
            extra = ""
        result = glmtune_command(*words, *extra.split())
        assert result.code == 0, f"glmtune {' '.join(words)}\n{result.out}\n{result.err}"
        run.append(words[0])
    assert run.count("train") == 3
    assert {"verify", "data", "chat", "compare", "bench", "export"} <= set(run)
    assert json.loads(Path("runs/mine/summary.json").read_text("utf-8"))["state"] == "finished"
    assert Path("runs/adgen/adapter/adapter_model.safetensors").is_file()
    assert list(Path("runs/mine").rglob("comparison.json"))
    assert Path("mine-merged/model.safetensors").is_file()


def _empty(path: str) -> str:
    shutil.rmtree(path)
    return path


def test_both_readmes_have_the_same_commands():
    commands, chinese = (set(_list_readme_commands(name)) for name in ("README.md", "README.zh.md"))
    assert {words for words in commands if words[0] != "fetch"} == {words for words in chinese if words[0] != "fetch"}
