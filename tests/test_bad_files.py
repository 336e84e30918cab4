"""Checkpoint folders and paths that nothing can be done with: one or two lines, no hang, nothing opened that blocks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress

import pytest

from glmtune.errors import ConfigError, GlmtuneError
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.tokenizers import load_tokenizer
from glmtune.utils.io import find_json_object, read_json_object

SECONDS = 20


@pytest.fixture(autouse=True)
def no_hang():
    """A read of a pipe would wait forever."""

    def fail(*_):
        raise AssertionError("it hangs")

    previous = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def copy_tiny(tiny, tmp_path):
    def copy(family="chatglm3"):
        folder = tmp_path / f"{family}-copy"
        shutil.copytree(tiny(family), folder, dirs_exist_ok=True)
        return folder

    return copy


def set_keys(folder, **values):
    """Change keys of config.json; `...` removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text("utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}), "utf-8")


def open_folder(folder):
    inspect_checkpoint(folder)
    load_tokenizer(folder)


def get_refusal(folder) -> str:
    with pytest.raises(GlmtuneError) as caught:
        open_folder(folder)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2, message
    assert len(message) < 600, message
    return message


@pytest.mark.parametrize("value", ["3", None, [], {}, True, -1, 0, 0.5, 10**9, 10**400, float("nan")], ids=repr)
@pytest.mark.parametrize(
    ("family", "key"),
    [
        *(("chatglm3", key) for key in ("hidden_size", "num_layers", "num_attention_heads", "padded_vocab_size")),
        *(("chatglm", key) for key in ("hidden_size", "num_layers", "num_attention_heads", "vocab_size")),
    ],
)
def test_sizes_of_another_type_or_range(family, key, value, copy_tiny):
    folder = copy_tiny(family)
    set_keys(folder, **{key: value})
    message = get_refusal(folder)
    assert message.startswith(f"{folder}/config.json: {key} is ")
    assert "it must be a whole number from 1 to" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"multi_query_group_num": 3}, "num_attention_heads is 4, no multiple of multi_query_group_num (3)"),
        ({"multi_query_group_num": "x"}, "multi_query_group_num is 'x'; it must be a whole number"),
        ({"layernorm_epsilon": "x"}, "layernorm_epsilon is 'x'; it must be a number from 0 to 1"),
        ({"layernorm_epsilon": float("inf")}, "layernorm_epsilon is inf"),
        ({"rope_ratio": [1]}, "rope_ratio is [1]; it must be a number"),
        ({"rmsnorm": "yes"}, "rmsnorm is 'yes'; it must be true or false"),
        ({"torch_dtype": "float99"}, "torch_dtype is 'float99'; it must be one of float16"),
        ({"torch_dtype": 16}, "torch_dtype is 16; it must be one of"),
        ({"model_type": ["chatglm"]}, "model_type is ['chatglm']; it must be text"),
        ({"glmtune_family": 3}, "glmtune_family is 3; it must be text"),
        ({"pad_token_id": []}, "pad_token_id is []; it must be the id of a token"),
        ({"eos_token_id": {"a": 1}}, "eos_token_id is {'a': 1}; it must be the id of a token, or a list"),
        ({"seq_length": -5}, "seq_length is -5; it must be a whole number"),
        ({"quantization_bit": "int4"}, "quantization_bit is 'int4'; it must be a whole number"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq'; it must be an object"),
        ({"ffn_hidden_size": None}, "config.json"),
        ({"ffn_hidden_size": ...}, "no key 'ffn_hidden_size'"),
    ],
)
def test_other_keys_of_config_json(values, message, copy_tiny):
    folder = copy_tiny()
    set_keys(folder, **values)
    assert message in get_refusal(folder)


@pytest.mark.parametrize("scheme", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_another_scheme_of_quantised_weights_is_named(scheme, copy_tiny):
    folder = copy_tiny()
    set_keys(folder, quantization_config={"quant_method": scheme, "bits": 4})
    message = get_refusal(folder)
    assert f"quantised by {scheme}" in message
    assert "full-precision repository" in message


FILES = ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json", "generation_config.json")


@pytest.mark.parametrize("name", [*FILES, "model.safetensors.index.json", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop of links", "device"])
def test_what_is_no_file_is_never_opened(name, kind, copy_tiny):
    folder = copy_tiny()
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(name if kind == "loop of links" else "/dev/zero")
    start = time.monotonic()
    with suppress(GlmtuneError, OSError):  # the command line prints an OSError in one line too
        open_folder(folder)
    assert time.monotonic() - start < SECONDS / 2


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        "null",
        "[]",
        "",
        '{"hidden_size":' + "9" * 9999 + "}",
        '{"a": "' + "x" * 9_000_000 + '"}',
        "{",
    ],
    ids=["deep list", "deep object", "null", "list", "empty", "huge number", "huge file", "cut"],
)
def test_json_that_cannot_be_used(name, content, copy_tiny):
    folder = copy_tiny("chatglm")  # the generation whose tokenizer_config.json decides its ids
    (folder / name).write_text(content, "utf-8")
    assert name in get_refusal(folder)


def test_a_pipe_is_refused_by_every_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(GlmtuneError, match="a pipe, not a file"):
        read_json_object(tmp_path / "pipe.json")
    assert find_json_object(tmp_path / "pipe.json") is None
    from glmtune.config import load_config

    with pytest.raises(ConfigError, match="a pipe, not a file"):
        load_config(tmp_path / "pipe.json")
    with pytest.raises(ConfigError, match="a folder, not a file"):
        load_config(tmp_path)


def test_a_config_file_given_as_data_is_named(tiny, glmtune_command):
    """Flags and numbers beside lists are no columns of cells."""
    result = glmtune_command("data", "check", tiny("chatglm3") / "config.json")
    assert result.code == 1
    assert "config.json" in result.err + result.out


def test_a_number_of_shards_that_no_folder_has(copy_tiny):
    folder = copy_tiny()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model-00001-of-999999999.bin").write_bytes(b"")
    assert "'999999999', not in a number of files" in get_refusal(folder)


PATHS = {
    "long": "a" * 5000,
    "long folders": "a/" * 2500,
    "no user": "~nobody-of-this-name/model",
    "loop": "loop",
    "pipe": "pipe",
    "device": "/dev/zero",
    "empty": "",
    "blank": "   ",
    "broken bytes": "\udcff\udcfe",
    "two lines": "a\nb",
}
COMMANDS = (
    ("chat", "PATH", "--prompt", "a"),
    ("chat", "MODEL", "--base", "PATH", "--prompt", "a"),
    ("train", "PATH"),
    ("train", "--model", "PATH", "--data", "rows.json"),
    ("train", "--model", "MODEL", "--data", "PATH"),
    ("train", "--resume", "--output", "PATH"),
    ("plan", "--model", "PATH"),
    ("data", "check", "PATH"),
    ("data", "preview", "rows.json", "--model", "PATH"),
    ("eval", "PATH", "--data", "rows.json"),
    ("eval", "MODEL", "--data", "PATH"),
    ("compare", "MODEL", "PATH", "--data", "rows.json"),
    ("forget", "MODEL", "--base", "PATH"),
    ("export", "PATH", "out"),
    ("report", "PATH"),
    ("migrate", "PATH"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_paths_that_no_system_accepts(command, tiny, tmp_path, monkeypatch, glmtune_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "output": "b"}]', "utf-8")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for kind, path in PATHS.items():
        if command == ("chat", "MODEL", "--base", "PATH", "--prompt", "a") and not path.strip():
            continue  # an empty --base is none
        words = [str(tiny("chatglm3")) if word == "MODEL" else path if word == "PATH" else word for word in command]
        result = glmtune_command(*words)  # any other exception than those for users would be raised here
        assert result.code in (1, 2), (kind, result)
        assert "Traceback" not in result.err
        assert len(result.err) < 1500, (kind, result.err)


def test_an_error_of_the_system_is_one_line_with_its_path(glmtune_command, monkeypatch):
    import glmtune.report

    def fail(*_):
        raise PermissionError(13, "Permission denied", "/root/secret/report.html")

    monkeypatch.setattr(glmtune.report, "write_report", fail)
    result = glmtune_command("report", "somewhere")
    assert (result.code, result.err) == (1, "Error: /root/secret/report.html: Permission denied.\n")

    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(glmtune.report, "write_report", fill)
    assert glmtune_command("report", "somewhere").err == "Error: No space left on device.\n"

    def break_off(*_):
        raise OSError("a bug without a path keeps its traceback")

    monkeypatch.setattr(glmtune.report, "write_report", break_off)
    with pytest.raises(OSError, match="keeps its traceback"):
        glmtune_command("report", "somewhere")
