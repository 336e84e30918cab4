"""The prompt in an exported Modelfile, rendered by Go's text/template as in Ollama, against the chat template."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from engine_models import export, make_case

_PROGRAM = Path(__file__).resolve().parent / "modelfile_template"


@pytest.mark.skipif(shutil.which("go") is None, reason="go is not on PATH (Debian: apt-get install golang-go)")
@pytest.mark.parametrize("name", ["chatglm2", "chatglm3", "glm4"])
def test_the_prompt_is_the_chat_templates(name, tmp_path):
    case = make_case(name, tmp_path / "base")
    export(case.folder, tmp_path / "gguf", layout="gguf")
    template = (tmp_path / "gguf" / "Modelfile").read_text("utf-8").split('"""')[1]
    talks = [*case.conversations]
    if name != "chatglm2":
        talks.append([{"role": "user", "content": "天气"}, {"role": "tool", "content": "晴"}])
    job = {"Template": template, "Conversations": talks}
    done = subprocess.run(
        ["go", "run", "."], cwd=_PROGRAM, input=json.dumps(job), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = [case.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    assert json.loads(done.stdout) == [text.replace("[gMASK]sop", "[gMASK]<sop>") for text in expected]
