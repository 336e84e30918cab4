"""The front door: help without waiting, versions, chat in a terminal."""

from __future__ import annotations

import subprocess
import sys

import pexpect
import pytest
import torch

import glmtune
from glmtune.families.family import tokenize_text
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, TextStream, generate_reply
from tiny import FAMILIES


def _modules_after(*arguments: str) -> set[str]:
    script = f"""
import sys
from glmtune.cli import main as cli
sys.argv = ["glmtune", *{list(arguments)!r}]
try:
    cli.main()
except SystemExit:
    pass
print("\\n" + " ".join(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help"), ("chat", "--help")])
def test_help_imports_nothing_heavy(arguments):
    loaded = _modules_after(*arguments)
    assert "glmtune.config" in loaded
    assert not loaded & {"torch", "transformers", "peft", "tokenizers", "matplotlib", "numpy"}


def test_every_command_is_listed_and_explained(glmtune_command):
    listing = glmtune_command("--help").out
    for command in ("train", "chat", "demo", "version"):
        assert command in listing
        assert "--help" in glmtune_command(command, "--help").out
    assert "Resume the run in --output from its last step" in glmtune_command("train", "--help").out


def test_versions(glmtune_command):
    lines = dict(line.split() for line in glmtune_command("version").out.splitlines())
    assert {"python", "glmtune", "torch", "transformers", "peft"} <= set(lines)


def test_a_conversation_in_the_terminal(tiny):
    command = f"{sys.executable} -m glmtune.cli.main chat {tiny('chatglm3')} --max-new-tokens 4"
    terminal = pexpect.spawn(command, encoding="utf-8", timeout=60, dimensions=(40, 120))
    terminal.expect("/clear forgets")
    terminal.expect("> ")
    terminal.sendline("类型#上衣")
    terminal.expect("> ")
    terminal.sendline("/system 说得短")
    terminal.expect("System message set")
    terminal.sendline("/clear")
    terminal.expect("cleared")
    terminal.sendline("/nonsense")
    terminal.expect("There is no command /nonsense")
    terminal.sendline("/exit")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_pieces_are_whole_characters_and_make_up_the_text(family, tiny):
    """Rare characters are several byte tokens; a piece must never show half of one."""
    tokenizer = glmtune.load_tokenizer(tiny(family))
    text = "你好，hello 𠮷👍🏽 上衣\n颜色 é end"
    ids = tokenize_text(tokenizer, text)
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2]]))  # the prompt, which is not shown
    for i in ids:
        stream.put(torch.tensor([i]))
    stream.end()
    assert "".join(pieces) == tokenizer.decode(ids).lstrip()
    assert len(pieces) > len(text) // 2
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_reply_is_streamed_while_it_is_written(tiny):
    opened = load_for_generation(str(tiny("chatglm3")), device="cpu")
    messages = [{"role": "user", "content": "你好"}]
    pieces: list[str] = []
    parts = (opened.model, opened.tokenizer, opened.family, messages)
    generate_reply(*parts, sampling=Sampling(max_new_tokens=40), on_text=pieces.append)
    assert len(pieces) > 3


def test_sampling_repeats_with_a_seed(tiny, glmtune_command):
    ask = ("chat", tiny("chatglm"), "--prompt", "你好", "--max-new-tokens", 12, "--temperature", 2.0, "--top-p", 1.0)
    first, second, other = (glmtune_command(*ask, "--seed", seed).out for seed in (1, 1, 2))
    assert first == second != other
