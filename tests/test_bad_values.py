"""Values out of range or of another type, refused before anything is loaded; terminals, pipes and long chats."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from typing import get_args, get_type_hints

import pytest
import torch

from glmtune.config import RunConfig, load_config
from glmtune.config_checks import check_config
from glmtune.config_ranges import TRAINING_RANGES, NumberRange
from glmtune.errors import ConfigError, ModelError
from glmtune.families import get_family
from glmtune.generation.batched import generate_batched
from glmtune.generation.chat_session import ChatSession
from glmtune.generation.context_window import fit_prompt, get_default_reply_length
from glmtune.generation.engine import NonFiniteLogitsError, decode_tokens, pick_greedy
from glmtune.generation.load import load_for_generation
from glmtune.generation.reply import Sampling, generate_reply
from glmtune.utils.documents import DocumentError, parse_json, parse_yaml, shorten_value
from glmtune.utils.streams import replace_undecodable

OUT_OF_RANGE = (".nan", ".inf", "-.inf", "-1e400", "1" + "0" * 400, "0x" + "f" * 5000, "-1000000000000")


def _list_numeric_keys() -> list[str]:
    keys = [f"training.{key}" for key in TRAINING_RANGES]
    for field in dataclasses.fields(RunConfig):
        kind = get_type_hints(RunConfig)[field.name]
        nested = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else [field]
        hints = get_type_hints(kind if dataclasses.is_dataclass(kind) else RunConfig)
        for each in nested:
            if {int, float} & set(get_args(hints[each.name]) or (hints[each.name],)):
                keys.append(each.name if each is field else f"{field.name}.{each.name}")
    return keys


@pytest.mark.parametrize("key", _list_numeric_keys())
def test_every_number_of_the_config_has_a_range(key):
    """A new field without a range fails here."""
    for value in OUT_OF_RANGE:
        with pytest.raises(ConfigError) as caught:
            load_config(None, [f"{key}={value}"])
        message = str(caught.value)
        assert key in message
        assert len(message) < 250
        assert "\n" not in message


def test_ranges_are_checked_in_configs_that_python_code_makes_too():
    run = load_config(None, ["model=m", "data=d"])
    run.lora.dropout = float("nan")
    with pytest.raises(ConfigError, match=r"lora\.dropout is nan; it must be from 0 to below 1"):
        check_config(run)
    run = load_config(None, ["model=m", "data=d"])
    run.training["learning_rate"] = float("inf")
    with pytest.raises(ConfigError, match=r"training\.learning_rate is inf; it must be from 0 to 100"):
        check_config(run)


@pytest.mark.parametrize(
    ("allowed", "text", "inside", "outside"),
    [
        (NumberRange(0, 1, excludes_high=True), "from 0 to below 1", [0, 0.5], [1, -0.1]),
        (NumberRange(0, 10, excludes_low=True), "above 0 and at most 10", [10, 1e-9], [0, 11]),
        (NumberRange(0, 1, True, True), "above 0 and below 1", [0.5], [0, 1]),
        (NumberRange(8, 2_000_000, special=0), "from 8 to 2,000,000, or 0", [0, 8], [7, 10**12]),
    ],
)
def test_what_a_range_says_is_what_it_contains(allowed, text, inside, outside):
    assert str(allowed) == text
    assert all(map(allowed.contains, inside))
    assert not any(map(allowed.contains, [*outside, float("nan"), float("inf"), -float("inf")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("chat m --temperature nan", "--temperature is nan; it must be from 0 to 100."),
        ("chat m --temperature inf", "--temperature is inf; it must be from 0 to 100."),
        ("chat m --top-p 1.5", "--top-p is 1.5; it must be from 0 to 1."),
        ("chat m --seed -1", "--seed is -1; it must be from 0 to 4,294,967,295."),
        ("chat m --max-new-tokens 1000000000000", "it must be from 1 to 2,000,000."),
        ("chat m --device meta", "--device cannot be 'meta'.\nOne of: cpu, cuda"),
        ("chat m --hub bogus", "--hub cannot be 'bogus'.\nOne of: huggingface, modelscope."),
        ("chat m --dtype int8", "--dtype cannot be 'int8'.\nOne of: fp32, bf16, fp16"),
        ("chat m --family llama", "--family cannot be 'llama'.\nOne of: chatglm, chatglm2, chatglm3, glm4."),
        ("eval m --data d --quantization gptq", "--quantization cannot be 'gptq'.\nOne of: nf4, int8"),
        ("eval m --data d --batch-size 0", "--batch-size is 0; it must be from 1 to 1,000,000."),
        ("compare m n --data d --limit 0", "--limit is 0; it must be from 1"),
        ("forget m --lang fr", "--lang cannot be 'fr'.\nOne of: zh, en."),
        ("report m --lang fr", "--lang cannot be 'fr'.\nOne of: zh, en."),
        ("ui --lang fr", "--lang cannot be 'fr'.\nOne of: zh, en."),
        ("ui --port 70000", "--port is 70000; it must be from 0 to 65,535."),
        ("export m o --bits 5", "--bits cannot be 5.\nOne of: 16, 8, 4."),
        ("export m o --format onnx", "--format cannot be 'onnx'.\nOne of: hf, official, gguf."),
        ("bench m --batch-sizes 1,0", "--batch-sizes is '1,0'; it must be whole numbers from 1"),
        ("bench m --repeats 1000000", "--repeats is 1000000; it must be from 1 to 1,000."),
        ("train --model m --nproc 1000000", "--nproc is 1000000; it must be from 1 to 1,024."),
        (
            "train --model m --data d --set lora.rank=1000000000",
            "lora.rank is 1000000000; it must be from 1 to 65,536.",
        ),
        ("plan --model m --nproc 0", "--nproc is 0; it must be from 1 to 100,000."),
        (
            "plan --model m --set training.learning_rate=.nan",
            "training.learning_rate is nan; it must be from 0 to 100.",
        ),
        ("data check d --set data.max_length=1000000000000", "it must be from 8 to 2,000,000, or 0."),
        ("data preview d --model m --row 0", "--row is 0; it must be from 1"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(arguments, message, glmtune_command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = glmtune_command(*arguments.split())
    assert result.code == 1
    assert message in result.err
    assert len(result.err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_help_shows_the_range(glmtune_command):
    assert "from 0 to 100" in glmtune_command("chat", "--help").out


YAML_LAUGHS = "\n".join(
    ["a: &a [x,x,x,x,x,x,x,x,x]"]
    + [f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(10)]
)
YAML_MERGES = "\n".join(
    ["a: &a {k: 1}"]
    + [f"{chr(98 + i)}: &{chr(98 + i)}\n  <<: [{','.join(['*' + chr(97 + i)] * 9)}]" for i in range(10)]
)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        (YAML_LAUGHS, 6, "aliases expand"),
        (YAML_MERGES, 11, "aliases expand"),
        ("a: &a [*a]", 1, "contains itself"),
        ("a: 1\nb: 2\na: 3", 3, "'a' is present twice"),
        ("x:\n  b: 1\n  b: 2", 3, "'b' is present twice"),
        ("[" * 200_000, 1, "nested over"),
        ("- " * 200_000, 1, "nested over"),
        ("- a\n" * 150_000, None, "too large"),
        ("a: " + "x" * 2_000_000, None, "too large"),
        ("a: " + "9" * 10_000, None, "cannot be read as the number"),
        ("a: 2024-13-45", None, "cannot be read as the number or date"),
        ("a: !!python/object/apply:os.system [ls]", 1, "could not determine a constructor"),
        ("a: {[1]: 2}", 1, "unhashable"),
        ("a: b: c", 1, "mapping values are not allowed"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_yaml_takes_bounded_time(text, line, problem):
    start = time.monotonic()
    with pytest.raises(DocumentError, match=problem) as caught:
        parse_yaml(text)
    assert time.monotonic() - start < 5
    assert line is None or caught.value.line == line


def test_ordinary_yaml_is_read_with_aliases_and_merges():
    assert parse_yaml("a: &x {k: 1, l: 2}\nb: *x\nc:\n  <<: *x\n  k: 3\n1: a\n'1': b\n") == {
        "a": {"k": 1, "l": 2},
        "b": {"k": 1, "l": 2},
        "c": {"k": 3, "l": 2},
        1: "a",
        "1": "b",
    }
    assert parse_yaml("# nothing") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested over"),
        ('{"a":' * 500 + "1" + "}" * 500, "nested over"),
        ("[" + "[]," * 500_000 + "1]", "too large"),
        ("[" + "1" * 5000 + "]", "thousands of digits"),
        ('{"a": 1,\n "a": 2}', "'a' is present twice"),
        ('{"a": 1,\n "b"}', "not valid JSON"),
    ],
    ids=lambda value: value[:20],
)
def test_json_takes_bounded_time(text, problem):
    start = time.monotonic()
    with pytest.raises(DocumentError, match=problem):
        parse_json(text, unique_keys=True)
    assert time.monotonic() - start < 5


def test_values_in_messages_are_short():
    for value in ("x" * 1000, 10**5000, ["a\nb"] * 100, {"a": "b" * 1000}):
        assert len(shorten_value(value)) <= 60
        assert "\n" not in shorten_value(value)


def test_set_refuses_what_no_file_may_hold():
    with pytest.raises(ConfigError, match=r"--set data\.train: lists or keys are nested"):
        load_config(None, ["data.train=" + "[" * 300])
    assert load_config(None, ["data.prefix=[x"]).data.prefix == "[x"  # plain text, not YAML


class Turns:
    """Counts tokens as characters."""

    def __init__(self):
        self.calls = 0

    def encode(self, messages):
        self.calls += 1
        return [0] * sum(len(message["content"]) for message in messages)


def _conversation(turns: int, size: int) -> list[dict[str, str]]:
    pair = [{"role": "user", "content": "q" * size}, {"role": "assistant", "content": "a" * size}]
    return [{"role": "system", "content": "s" * size}, *pair * turns, {"role": "user", "content": "q" * size}]


def test_the_oldest_turns_go_and_the_system_message_stays():
    turns = Turns()
    messages = _conversation(turns=50, size=10)
    fitted = fit_prompt(messages, turns.encode, window=100, max_new_tokens=30)
    # 70 tokens: system 10, question 10, and two of the fifty turns of 20.
    assert fitted.dropped == 48 * 2
    assert len(fitted.ids) == 60
    assert turns.calls < 12
    assert fit_prompt(messages, turns.encode, window=10**6, max_new_tokens=30).dropped == 0


def test_a_prompt_that_cannot_fit_is_refused_at_once():
    turns = Turns()
    with pytest.raises(ModelError, match=r"21 tokens and its reply may have 80;.*holds 100\.\n.*at most 79 new tokens"):
        fit_prompt([{"role": "user", "content": "x" * 21}], turns.encode, window=100, max_new_tokens=80)
    calls = turns.calls
    with pytest.raises(ModelError, match=r"50,000 characters; the context window of this model holds 100 tokens"):
        fit_prompt([{"role": "user", "content": "x" * 50_000}], turns.encode, window=100, max_new_tokens=1)
    assert turns.calls == calls  # not even encoded


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_for_generation(str(tiny("chatglm3")), device="cpu")


def test_a_long_chat_goes_on_with_a_notice(loaded):
    session = ChatSession(loaded.model, loaded.tokenizer, loaded.family, Sampling(max_new_tokens=4))
    dropped = []
    for number in range(12):
        session.ask(f"{number}颜色" * 40, on_drop=dropped.append)
    assert dropped
    assert set(dropped) <= {2, 4}
    assert session.messages[-2]["content"].startswith("11颜色")
    assert len(session.messages) == 24 - sum(dropped)


def test_the_default_reply_leaves_room_for_the_prompt(loaded):
    assert get_default_reply_length(loaded.model) == 256  # half of the tiny window of 512
    with pytest.raises(ModelError, match="context window of this model holds 512"):
        generate_reply(
            *(loaded.model, loaded.tokenizer, loaded.family, [{"role": "user", "content": "你好"}]),
            sampling=Sampling(max_new_tokens=512),
        )


def test_batches_warn_of_prompts_beyond_the_window(loaded):
    warnings = []
    generate_batched(
        *(loaded.model, loaded.tokenizer, loaded.family, [[5] * 513, [5] * 9], Sampling(1)), warn=warnings.append
    )
    assert len(warnings) == 1
    assert "1 of 2 prompts is longer than the context window of this model (512 tokens)" in warnings[0]


@pytest.fixture
def broken_head(loaded):
    head = loaded.model.get_output_embeddings().weight
    value = head.data[3, 0].item()
    head.data[3, 0] = float("nan")
    yield loaded
    head.data[3, 0] = value


def test_logits_that_are_not_finite_end_a_reply(broken_head):
    for sampling in (Sampling(4), Sampling(4, temperature=1.0), Sampling(4, temperature=1.0, top_p=1.0)):
        with pytest.raises(NonFiniteLogitsError, match=r"not finite \(NaN or infinity\) at token 1 of its reply"):
            generate_reply(
                *(broken_head.model, broken_head.tokenizer, broken_head.family, [{"role": "user", "content": "你好"}]),
                sampling=sampling,
            )


def test_a_chat_in_the_terminal_ends_at_such_weights(broken_head, monkeypatch):
    from glmtune.generation import chat_session

    session = ChatSession(broken_head.model, broken_head.tokenizer, broken_head.family, Sampling(4))
    with pytest.raises(NonFiniteLogitsError):
        chat_session._print_reply("你好", session)
    assert session.messages == []


def test_values_of_finished_rows_do_no_harm():
    """A row that has ended stays in the batch for a while; what the model computes for it means nothing."""

    class Model:
        """Ends the last row at its first token, and computes NaN for it afterwards."""

        def __init__(self):
            self.device = torch.device("cpu")
            self.config = type("Config", (), {"_attn_implementation": "eager"})()

        def prepare_inputs_for_generation(self, ids, **_):
            return {"ids": ids}

        def __call__(self, ids, **_):
            logits = torch.zeros(len(ids), 1, 8)
            logits[:4, 0, 3] = 1
            logits[4:, 0, 2] = 1
            if ids.shape[1] > 2:
                logits[4:] = float("nan")
            return type("Output", (), {"logits": logits})()

    replies = decode_tokens(Model(), [[1, 1]] * 5, pick_greedy, max_new_tokens=3, stops=[2], padding=0)
    assert replies == [[3, 3, 3]] * 4 + [[2]]


@pytest.mark.parametrize("encoding", ["gbk", "ascii", "latin-1", "utf-8"])
def test_characters_that_a_terminal_lacks_never_end_a_command(encoding, tmp_path):
    (tmp_path / "rows.json").write_text('[{"instruction": "😀 é 你好 \\ud83d", "output": "𠮷👍"}]', "utf-8")
    script = f"""
import sys
from glmtune.cli import main as cli
from glmtune.utils.console import ProgressBar, get_console, print_message, show_status
from glmtune.utils.streams import prepare_streams
import typer
prepare_streams()
print_message("reply 😀 é 你好 \\ud83d")
typer.echo("echo 😀 𠮷 你好")
with show_status("⠋ 你好 😀"), ProgressBar("行 😀", 2) as bar:
    bar.add(2)
print("错误 😀 \\udcff", file=sys.stderr)
sys.argv = ["glmtune", "data", "check", {str(tmp_path / "rows.json")!r}]
cli.main()
"""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False, timeout=60)
    errors = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in errors, errors
    assert done.returncode in (0, 1), errors
    assert b"reply" in done.stdout
    assert b"echo" in done.stdout


def test_readers_that_are_gone_and_closed_streams_end_quietly(tmp_path):
    command = f"{sys.executable} -m glmtune train --help"
    for shell in (f"{command} | true", f"{command} | head -1", f"{command} >&-", f"{command} >&- 2>&- <&-"):
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False, timeout=60)
        assert done.stderr == "", shell


def test_messages_after_a_lost_reader_do_not_end_the_work():
    """What a training prints may be piped to `head`; the training goes on."""
    script = """
import sys
from glmtune.utils.console import print_message
from glmtune.utils.streams import flush_streams
for number in range(20000):
    print_message(f"step {number}")
flush_streams()
print("finished", file=sys.stderr)
"""
    shell = ["bash", "-c", '"$0" -c "$1" | head -1', sys.executable, script]
    done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "step 0\n"
    assert done.stderr == "finished\n"


def test_bytes_that_are_no_text_become_replacement_characters():
    assert replace_undecodable("你好\udcff") == "你好\ufffd"
    assert replace_undecodable("a\ud83d") == "a?"
    assert replace_undecodable("plain 你好 😀") == "plain 你好 😀"


def test_a_prompt_of_broken_bytes_is_answered(loaded):
    reply = generate_reply(
        *(loaded.model, loaded.tokenizer, get_family("chatglm3"), [{"role": "user", "content": "a\udcff\ud83d"}]),
        sampling=Sampling(2),
    )
    assert isinstance(reply.content, str)
