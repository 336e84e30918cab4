"""A limited process opens no file outside of its folders, however it is named.

The kernel records what is opened (inotify), so that native readers, which Python's audit hooks do not see, are covered.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from open_recorder import OpenRecorder
from safetensors.torch import save_file

import glmtune
from glmtune.config import load_config
from glmtune.data.cache import open_encoded_data
from glmtune.data.files import find_files
from glmtune.data.sources import open_source
from glmtune.errors import ConfigError, GlmtuneError
from glmtune.evaluation.eval_folder import read_predictions
from glmtune.export.folder import create_folder
from glmtune.methods.lora_files import read_weights
from glmtune.methods.prefix_files import is_prefix_folder, read_prefix
from glmtune.methods.tuned_model import hash_folder, resolve_target
from glmtune.methods.value_head_file import VALUE_HEAD_FILE, read_value_head
from glmtune.migrate.other_scripts import _read_model_name
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.tokenizers import load_tokenizer
from glmtune.models.tokenizers.new_tokens import read_new_tokens
from glmtune.models.weight_files import read_inventory
from glmtune.preference.reward_functions import _import_function
from glmtune.preference.reward_model import load_reward_model
from glmtune.report.contents import read_contents
from glmtune.run_dir import RunDir
from glmtune.training.checkpoint_files import find_damage
from glmtune.training.deepspeed import _read
from glmtune.training.sharding import check_sharding
from glmtune.utils.file_access import (
    ROOTS_VARIABLE,
    SECRET_FILES,
    FileAccessError,
    add_cache_folder,
    is_readable,
    limit_files,
    load_file_limit,
    make_limit_variable,
    require_readable,
    require_readable_folder,
)
from glmtune.utils.io import find_json_object, lock_folder, read_json_lines_end, replace_folder, write_json
from glmtune.verification.verifier import verify_folder

ENCODED = {"family": "x", "tokenizer": "x", "rules": {}, "counts": {}, "sources": [], "rows_sha256": "0"}
ROW = {"instruction": "secret question", "output": "secret answer"}


def write_rows(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(ROW) + "\n" for _ in range(3)), encoding="utf-8")
    return path


def write_saved_dataset(folder: Path) -> None:
    folder.mkdir(parents=True)
    table = pa.table({"instruction": ["secret question"], "output": ["secret answer"]})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    write_json(folder / "state.json", {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0"})


@pytest.fixture(scope="module")
def outside(tmp_path_factory, tiny):
    """A folder with a bit of everything that a user may name."""
    folder = tmp_path_factory.mktemp("place") / "outside"
    write_rows(folder / "rows.json")
    write_rows(folder / "deep" / "rows.json")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress((folder / "rows.json").read_bytes()))
    (folder / "rows.csv").write_text("instruction,output\nsecret,secret\n")
    parquet.write_table(pa.table({"instruction": ["a"], "output": ["b"]}), folder / "rows.parquet")
    write_saved_dataset(folder / "saved")
    write_json(folder / "dataset.json", ENCODED)
    write_json(folder / "dataset_info.json", {"mine": {"file_name": "rows.json"}})
    shutil.copytree(tiny("chatglm3"), folder / "model")
    load_tokenizer(folder / "model", family="chatglm3").save_pretrained(folder / "fast")
    shutil.copy(folder / "model" / "config.json", folder / "fast")
    (folder / "adapter").mkdir()
    write_json(folder / "adapter" / "adapter_config.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    save_file({"x.lora_A.weight": torch.zeros(1, 1)}, folder / "adapter" / "adapter_model.safetensors")
    torch.save({"x.lora_A.weight": torch.zeros(1, 1)}, folder / "chatglm-lora.pt")
    torch.save({"transformer.prefix_encoder.embedding.weight": torch.zeros(1, 1)}, folder / "pytorch_model.bin")
    (folder / "config.yaml").write_text("model:\n  path: x\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    (folder / "predictions.jsonl").write_text('{"prompt": "secret"}\n')
    (folder / "tokens.txt").write_text("secret\n")
    (folder / "script.py").write_text('AutoModel.from_pretrained("secret/model")\n')
    shutil.copytree(folder, find_copy(folder))
    return folder


def find_copy(outside: Path) -> Path:
    """A copy that is not watched, for tests to take parts of."""
    return outside.with_name("copy")


@pytest.fixture
def root(outside, tmp_path, monkeypatch):
    """The folder that the process is limited to, beside the other one; the working directory."""
    folder = outside.parent / f"root-{tmp_path.name}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def recorder(outside):
    if not sys.platform.startswith("linux"):
        pytest.skip("inotify is Linux's")
    recorder = OpenRecorder(outside)
    yield recorder
    recorder.close()


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def read_data(path) -> list:
    return list(open_source(str(path)))


def write_catalog(root: Path, name: str) -> str:
    write_json(root / "dataset_info.json", {"mine": {"file_name": name}})
    return f"{root}:mine"


def copy_model(root: Path, outside: Path, *, without: str) -> Path:
    shutil.copytree(find_copy(outside) / "model", root / "model", ignore=shutil.ignore_patterns(without))
    return root / "model"


def make_adapter(root: Path, **config) -> Path:
    folder = root / "adapter"
    write_json(link_free(folder) / "adapter_config.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1, **config})
    save_file({"x.lora_A.weight": torch.zeros(1, 1)}, folder / "adapter_model.safetensors")
    return folder


def link_free(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_run(root: Path, model: Path | str) -> Path:
    folder = link_free(root / "run" / "adapter").parent
    (folder / "config.yaml").write_text(f"model:\n  path: {model}\n")
    write_json(folder / "adapter" / "adapter_config.json", {"peft_type": "LORA", "r": 1, "lora_alpha": 1})
    return folder


def load_target(path) -> None:
    target = resolve_target(path)
    inspect_checkpoint(target.base, family="chatglm3")


def read_fsdp(root: Path, name: str) -> None:
    config = load_config(write_config(root, f"model: {{path: x}}\ntraining: {{fsdp_config: {name}}}\n"))
    check_sharding(config, quantised=False)
    Path(name).read_text()  # as transformers does


def write_config(root: Path, text: str) -> Path:
    path = root / "config.yaml"
    path.write_text(text)
    return path


DATA = {
    "a path": lambda root, outside: read_data(outside / "rows.json"),
    "a path through ..": lambda root, outside: read_data("../outside/rows.json"),
    "a folder": lambda root, outside: read_data(outside),
    "a file that is not there": lambda root, outside: read_data(outside / "nothing.json"),
    "a link": lambda root, outside: read_data(link(root / "x.json", outside / "rows.json")),
    "a link to a link": lambda root, outside: read_data(
        link(root / "x.json", link(root / "y.json", outside / "rows.json"))
    ),
    "a compressed link": lambda root, outside: read_data(link(root / "x.jsonl.gz", outside / "rows.jsonl.gz")),
    "a linked CSV": lambda root, outside: read_data(link(root / "x.csv", outside / "rows.csv")),
    "a linked parquet": lambda root, outside: read_data(link(root / "x.parquet", outside / "rows.parquet")),
    "a linked arrow": lambda root, outside: read_data(link(root / "x.arrow", outside / "saved" / "data.arrow")),
    "a linked folder": lambda root, outside: read_data(link(root / "x", outside / "deep")),
    "a path through a linked folder": lambda root, outside: read_data(link(root / "x", outside) / "deep" / "rows.json"),
    "a link far below a folder": lambda root, outside: (
        link(root / "x" / "a" / "b" / "c.json", outside / "rows.json"),
        read_data(root / "x"),
    ),
    "a linked folder far below a folder": lambda root, outside: (
        link(root / "x" / "a" / "b" / "c", outside / "deep"),
        write_rows(root / "x" / "rows.json"),
        read_data(root / "x"),
    ),
    "a pattern": lambda root, outside: read_data(outside / "*.json"),
    "a pattern through ..": lambda root, outside: read_data("../outside/*.json"),
    "a pattern that matches a link": lambda root, outside: (
        link(root / "x.json", outside / "rows.json"),
        read_data(root / "*.json"),
    ),
    "a pattern through a linked folder": lambda root, outside: (
        link(root / "x" / "y", outside / "deep"),
        read_data(root / "x" / "*" / "rows.json"),
    ),
    "** and a link": lambda root, outside: (
        link(root / "x" / "a" / "b.json", outside / "rows.json"),
        read_data(root / "**" / "*.json"),
    ),
    "** and a linked folder": lambda root, outside: (
        link(root / "x" / "a", outside),
        read_data(root / "**" / "a" / "*.json"),
    ),
    "** and ..": lambda root, outside: (
        link_free(root / "x"),
        read_data(root / "**" / ".." / ".." / "outside" / "*.json"),
    ),
    "an entry": lambda root, outside: read_data(write_catalog(root, "../outside/rows.json")),
    "an absolute entry": lambda root, outside: read_data(write_catalog(root, str(outside / "rows.json"))),
    "an entry of a folder": lambda root, outside: read_data(write_catalog(root, "../outside/deep")),
    "an entry with a pattern": lambda root, outside: read_data(write_catalog(root, "../outside/*.json")),
    "an entry of a file that is not there": lambda root, outside: read_data(
        write_catalog(root, "../outside/none.json")
    ),
    "an entry by its name": lambda root, outside: (write_catalog(root, "../outside/rows.json"), read_data("mine")),
    "an entry of a linked catalog": lambda root, outside: (
        link(root / "dataset_info.json", outside / "dataset_info.json"),
        read_data(f"{root}:mine"),
    ),
    "an entry of another catalog": lambda root, outside: read_data(f"{outside}:mine"),
    "a saved data set": lambda root, outside: read_data(outside / "saved"),
    "the file of a saved data set": lambda root, outside: (
        shutil.copytree(find_copy(outside) / "saved", root / "x", ignore=shutil.ignore_patterns("*.arrow")),
        link(root / "x" / "data.arrow", outside / "saved" / "data.arrow"),
        read_data(root / "x"),
    ),
    "the split of a saved data set": lambda root, outside: (
        write_json(link_free(root / "x") / "dataset_dict.json", {"splits": ["../../outside/saved"]}),
        read_data(root / "x"),
    ),
    "encoded rows": lambda root, outside: open_encoded_data(link(root / "x", outside)),
    "linked encoded rows": lambda root, outside: (
        write_json(link_free(root / "x") / "dataset.json", ENCODED),
        link(root / "x" / "rows.arrow", outside / "rows.json"),
        open_encoded_data(root / "x"),
    ),
    "tokens": lambda root, outside: read_new_tokens(str(outside / "tokens.txt")),
    "linked tokens": lambda root, outside: read_new_tokens(str(link(root / "tokens.txt", outside / "tokens.txt"))),
    "a config": lambda root, outside: load_config(link(root / "x.yaml", outside / "config.yaml")),
    "a script": lambda root, outside: _read_model_name(str(link(root / "x.py", outside / "script.py"))),
}
MODELS = {
    "a model": lambda root, outside: inspect_checkpoint(outside / "model", family="chatglm3"),
    "a model that is not there": lambda root, outside: inspect_checkpoint(outside / "nothing"),
    "a linked model": lambda root, outside: inspect_checkpoint(link(root / "x", outside / "model"), family="chatglm3"),
    **{
        f"a model with a linked {name}": lambda root, outside, name=name: (
            link(copy_model(root, outside, without=name) / name, outside / "model" / name),
            inspect_checkpoint(root / "model", family="chatglm3"),
        )
        for name in ("config.json", "model.safetensors", "tokenizer.model")
    },
    "a model with a link in a folder": lambda root, outside: (
        link(copy_model(root, outside, without="") / "a" / "b" / "x.json", outside / "rows.json"),
        inspect_checkpoint(root / "model", family="chatglm3"),
    ),
    "an index": lambda root, outside: (
        write_json(
            copy_model(root, outside, without="*.safetensors") / "model.safetensors.index.json",
            {"metadata": {}, "weight_map": {"x": "../../outside/model/model.safetensors"}},
        ),
        inspect_checkpoint(root / "model", family="chatglm3"),
    ),
    "shards": lambda root, outside: (
        link(root / "x" / "model-00001-of-00001.safetensors", outside / "model" / "model.safetensors"),
        read_inventory(root / "x"),
    ),
    "a tokenizer": lambda root, outside: load_tokenizer(outside / "model", family="chatglm3"),
    "a linked tokenizer file": lambda root, outside: (
        link(
            copy_model(root, outside, without="tokenizer.model") / "tokenizer.model", outside / "model/tokenizer.model"
        ),
        load_tokenizer(root / "model", family="chatglm3"),
    ),
    "a linked fast tokenizer": lambda root, outside: (
        shutil.copytree(find_copy(outside) / "fast", root / "x", ignore=shutil.ignore_patterns("tokenizer.json")),
        link(root / "x" / "tokenizer.json", outside / "fast" / "tokenizer.json"),
        load_tokenizer(root / "x"),
    ),
    "a linked chat template": lambda root, outside: (
        shutil.copytree(find_copy(outside) / "fast", root / "x", ignore=shutil.ignore_patterns("chat_template.jinja")),
        link(root / "x" / "chat_template.jinja", outside / "tokens.txt"),
        load_tokenizer(root / "x"),
    ),
    "an adapter": lambda root, outside: load_target(outside / "adapter"),
    "the weights of an adapter": lambda root, outside: (
        make_adapter(root),
        (root / "adapter" / "adapter_model.safetensors").unlink(),
        link(root / "adapter" / "adapter_model.safetensors", outside / "adapter" / "adapter_model.safetensors"),
        read_weights(root / "adapter"),
    ),
    "the config of an adapter": lambda root, outside: (
        link(root / "x" / "adapter_config.json", outside / "adapter" / "adapter_config.json"),
        load_target(root / "x"),
    ),
    "the hash of an adapter": lambda root, outside: (
        link(root / "x" / "adapter_model.safetensors", outside / "adapter" / "adapter_model.safetensors"),
        hash_folder(root / "x"),
    ),
    "bare weights": lambda root, outside: read_weights(link(root / "chatglm-lora.pt", outside / "chatglm-lora.pt")),
    "a folder to verify": lambda root, outside: verify_folder(link(root / "x", outside / "model")),
    "a file of a folder to verify": lambda root, outside: (
        link(copy_model(root, outside, without="*.model") / "tokenizer.model", outside / "model" / "tokenizer.model"),
        verify_folder(root / "model"),
    ),
    "a value head": lambda root, outside: (
        link(root / "x" / VALUE_HEAD_FILE, outside / "adapter" / "adapter_model.safetensors"),
        read_value_head(root / "x"),
    ),
    "a reward model": lambda root, outside: load_reward_model(outside / "model"),
    "the base of an adapter": lambda root, outside: load_target(
        make_adapter(root, base_model_name_or_path=str(outside / "model"))
    ),
    "the base of an adapter through ..": lambda root, outside: load_target(
        make_adapter(root, base_model_name_or_path="../outside/model")
    ),
    "a base that is not there": lambda root, outside: load_target(
        make_adapter(root, base_model_name_or_path=str(outside / "nothing"))
    ),
    "the base that glmtune notes": lambda root, outside: (
        write_json(
            make_adapter(root) / "glmtune.json",
            {"path": str(outside / "model"), "fingerprint": "0", "family": "chatglm3"},
        ),
        load_target(root / "adapter"),
    ),
    "the base of a run": lambda root, outside: load_target(make_run(root, outside / "model")),
    "the config of a run": lambda root, outside: (
        link(root / "run" / "config.yaml", outside / "config.yaml"),
        load_target(root / "run"),
    ),
    "--base": lambda root, outside: inspect_checkpoint(
        resolve_target(make_adapter(root), base=str(outside / "model")).base, family="chatglm3"
    ),
    "the index of a prefix": lambda root, outside: (
        write_json(
            link_free(root / "x") / "pytorch_model.bin.index.json",
            {"weight_map": {"transformer.prefix_encoder.embedding.weight": "../../outside/pytorch_model.bin"}},
        ),
        is_prefix_folder(root / "x"),
        read_prefix(root / "x"),
    ),
    "the weights of a prefix": lambda root, outside: (
        link(root / "x" / "pytorch_model.bin", outside / "pytorch_model.bin"),
        read_prefix(root / "x"),
    ),
}
RUNS = {
    "numbers of a run": lambda root, outside: (
        link(make_run(root, "x") / "metrics.jsonl", outside / "metrics.jsonl"),
        RunDir(root / "run").read_metrics(),
    ),
    "a report": lambda root, outside: read_contents(link(root / "x", outside)),
    "predictions": lambda root, outside: read_predictions(link(root / "x", outside)),
    "linked predictions": lambda root, outside: (
        link(root / "x" / "predictions.jsonl", outside / "predictions.jsonl"),
        read_predictions(root / "x"),
    ),
    "the end of a file": lambda root, outside: read_json_lines_end(
        link(root / "x.jsonl", outside / "metrics.jsonl"), 1000
    ),
    "a checkpoint": lambda root, outside: (
        link(root / "checkpoint-1" / "trainer_state.json", outside / "rows.json"),
        find_damage(root / "checkpoint-1"),
    ),
    "a resumed run": lambda root, outside: (
        link(make_run(root, "x") / "checkpoints" / "checkpoint-1" / "optimizer.pt", outside / "pytorch_model.bin"),
        RunDir(root / "run").lock(new=False).__enter__(),
    ),
    "DeepSpeed's settings": lambda root, outside: _read(link(root / "x.json", outside / "dataset_info.json")),
    "FSDP's settings": lambda root, outside: read_fsdp(root, "../outside/dataset_info.json"),
    "an optional file": lambda root, outside: find_json_object(link(root / "x.json", outside / "dataset_info.json")),
}
CASES = {**DATA, **MODELS, **RUNS}


REFUSED_ALREADY = {"an index"}  # without a limit too: a shard is in the folder of its index
OPENED_LATER = {"a model with a linked tokenizer.model", "a model with a link in a folder", "a resumed run"}
NOT_THERE = {name for name in CASES if "not there" in name}


@pytest.mark.parametrize("name", CASES)
def test_no_file_outside_is_opened(name, root, outside, recorder):
    with limit_files([root]), pytest.raises(GlmtuneError) as error:
        CASES[name](root, outside)
    assert recorder.read_names() == []
    assert isinstance(error.value, FileAccessError) or name in REFUSED_ALREADY
    assert len(str(error.value).splitlines()) == 2
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", sorted(CASES.keys() - REFUSED_ALREADY - OPENED_LATER - NOT_THERE))
def test_without_a_limit_it_is_opened(name, root, outside, recorder):
    with contextlib.suppress(GlmtuneError):
        CASES[name](root, outside)
    assert recorder.read_names() != []


# What may be read


def test_what_is_inside_is_read_also_through_links(root, outside):
    write_rows(root / "real" / "rows.json")
    link(root / "data" / "a", root / "real")
    link(root / "data" / "b.json", root / "real" / "rows.json")
    copy_model(root, outside, without="")
    link(root / "linked", root / "model")
    write_catalog(root / "data", "../real/rows.json")
    with limit_files([root]):
        assert len(read_data(root / "data")) == 6
        assert len(read_data(root / "data" / "*" / "*.json")) == 3
        assert len(read_data(root / "**" / "rows.json")) == 3
        assert len(read_data("real/rows.json")) == len(read_data(f"{root / 'data'}:mine")) == 3
        assert inspect_checkpoint(root / "linked", family="chatglm3").fingerprint
        assert load_tokenizer("model", family="chatglm3")
        assert resolve_target(make_adapter(root, base_model_name_or_path="model")).base == "model"
        assert resolve_target(make_adapter(root, base_model_name_or_path="THUDM/chatglm3-6b")).base.startswith("THUDM")


def test_a_pattern_without_a_limit_finds_the_same_files(root):
    """The parts of a pattern are matched one after the other."""
    for name in ("a/1.json", "a/b/2.json", "a/b/c/3.json", ".hidden/4.json", "d/5.json", "d/6.csv", "a/.x/7.json"):
        write_rows(root / name)
    link(root / "e", root / "d")
    link(root / "a" / "loop", root / "a")

    def find(pattern):
        return [str(path.relative_to(root)) for path in find_files(root / pattern)]

    assert find("**/*.json") == ["a/1.json", "a/b/2.json", "a/b/c/3.json", "d/5.json"]
    assert find("*/*.json") == ["a/1.json", "d/5.json", "e/5.json"]
    assert find("[de]/*") == ["d/5.json", "d/6.csv", "e/5.json", "e/6.csv"]
    assert find("a/**/c/*.json") == ["a/b/c/3.json"]
    assert find("a**/1.j**n") == ["a/1.json"]
    assert find("a/*/c/3.json") == ["a/b/c/3.json"]
    assert find(".h*/*.json") == [".hidden/4.json"]
    assert find("*/../d/5.json") == sorted(find("*/../d/5.json"))


def test_downloads_and_caches_may_be_read_and_logins_may_not(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    with limit_files([root]):
        assert is_readable(tmp_path / "hf" / "hub" / "models--a--b" / "blobs" / "0")
        assert is_readable(tmp_path / "cache" / "data" / "x")  # GLMTUNE_CACHE
        assert not is_readable(tmp_path / "hf" / "token")
        assert not is_readable(tmp_path / "hf" / "hub" / ".." / "token")
        assert not is_readable(tmp_path / "new")
        add_cache_folder(tmp_path / "new")
        assert is_readable(tmp_path / "new" / "x")
    assert is_readable(tmp_path / "hf" / "token")


def test_the_key_of_the_server_is_never_read(root):
    (root / "state").mkdir()
    (root / "state" / SECRET_FILES[0]).write_text("key")
    link(root / "x.json", root / "state" / SECRET_FILES[0])
    with limit_files([root]):
        for path in (root / "state" / SECRET_FILES[0], root / "x.json"):
            with pytest.raises(FileAccessError, match="a secret of the server"):
                require_readable(path)


@pytest.mark.parametrize("path", ["", "..", "/", "/etc/passwd", "a\0b", "x" * 5000, "loop", "~", "/proc/self/environ"])
def test_odd_paths(root, path):
    link(root / "loop", root / "loop")
    with limit_files([root]):
        if path in ("", "loop", "~") or len(path) > 100:  # inside, whether there is such a file or not
            assert require_readable(path).is_relative_to(root)
        else:
            with pytest.raises(FileAccessError, match="outside of the folders") as error:
                require_readable(path)
            assert len(str(error.value)) < 1000


def test_a_root_may_be_a_link(root, outside):
    link(root / "x", root / "real")
    write_rows(root / "real" / "rows.json")
    with limit_files([root / "x"]):
        assert len(read_data(root / "x" / "rows.json")) == 3
        with pytest.raises(FileAccessError):
            require_readable(root / "other")


def test_a_folder_is_checked_behind_links_and_once(root, outside):
    link(root / "a" / "b", root / "c")
    link(root / "c" / "back", root / "a")
    with limit_files([root]):
        assert require_readable_folder(root / "a") == root / "a"
        link(root / "c" / "d", outside)
        with pytest.raises(FileAccessError, match="a link that leads out"):
            require_readable_folder(root / "a")


@pytest.mark.parametrize("where", ["root", "outside"])
def test_a_limited_process_runs_no_python_file(root, outside, where):
    for folder in (root, outside):
        (folder / "reward.py").write_text(f"open({str(root / 'ran')!r}, 'w')\ndef score(completions): return [0]\n")
    path = {"root": root, "outside": outside}[where] / "reward.py"
    with limit_files([root]), pytest.raises(FileAccessError):
        _import_function(path, "score", "reward.py:score")
    assert not (root / "ran").exists()
    _import_function(path, "score", "reward.py:score")
    assert (root / "ran").exists()


# Writing


def test_nothing_is_written_outside(root, outside, recorder):
    link(root / "x", outside)
    before = sorted(outside.rglob("*"))
    with limit_files([root]):
        for folder in (outside, root / "x", root / "x" / "new", root / ".." / "outside"):
            with pytest.raises(FileAccessError, match="may be written"):
                write_json(folder / "rows.json", {})
            with pytest.raises(FileAccessError), lock_folder(folder, "testing"):
                pass
            with pytest.raises(FileAccessError), create_folder(folder / "export"):
                pass
            with pytest.raises(FileAccessError), replace_folder(folder / "deep"):
                pass
        link(root / "rows.json", outside / "rows.json")
        write_json(root / "rows.json", {"mine": 1})  # the link is replaced
    assert sorted(outside.rglob("*")) == before
    assert "secret" in (outside / "rows.json").read_text()


# The environment of a job


def test_the_limit_of_a_process_is_in_its_environment(root, outside):
    assert make_limit_variable() == {}
    with limit_files([root, root / "é \n"]):
        variable = make_limit_variable()
    load_file_limit(variable)
    assert is_readable(root / "x")
    assert is_readable(root / "é \n" / "x")
    assert not is_readable(outside / "rows.json")
    load_file_limit({})
    assert is_readable(outside / "rows.json")


@pytest.mark.parametrize("value", ["", "/data", "[]", "{}", "[1]", '[""]', "[" * 5000])
def test_a_broken_variable_is_no_limit_that_is_ignored(value):
    with pytest.raises(ConfigError, match=ROOTS_VARIABLE):
        load_file_limit({ROOTS_VARIABLE: value})


def test_a_command_is_limited_by_its_environment(root, outside, recorder, glmtune_command, monkeypatch):
    monkeypatch.setenv(ROOTS_VARIABLE, json.dumps([str(root)]))
    for path in (outside / "rows.json", link(root / "x.json", outside / "rows.json"), root / ".." / "outside"):
        result = glmtune_command("data", "check", path)
        assert result.code == 1
        assert "the folders whose files may be read" in result.err
        assert "Traceback" not in result.err
    assert recorder.read_names() == []
    assert glmtune_command("data", "check", write_rows(root / "mine.json")).code == 0


def test_another_process_of_python_is_limited_too(root, outside):
    code = f"from glmtune.utils.file_access import is_readable; print(is_readable({str(outside)!r}))"
    with limit_files([root]):
        environment = {**os.environ, **make_limit_variable()}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


# Openers to come

OPENERS = {
    *("open", "read_text", "read_bytes", "safe_open", "load_file", "from_pretrained", "memory_map"),
    *("copyfile", "copytree", "ZipFile", "ParquetFile", "GGUFReader", "fdopen"),
}
UNCHECKED = {
    "auto_classes/peft_adapters.py": "the programming interface, which no page uses",
    "data/check_fix.py": "writes; require_writable",
    "data/table_rows.py": "reads an open stream",
    "demo/run_demo.py": "files of the package",
    "doctor/gather.py": "files of the system",
    "download/repository.py": "fetcher.py checks the folder",
    "download/transfer.py": "fetcher.py checks the folder",
    "evaluation/forgetting/probe.py": "a file of the package",
    "export/exporter.py": "what it has written",
    "export/gguf_tensors.py": "what it has written",
    "export/reward_export.py": "what it has written",
    "export/shards.py": "writes into a folder of create_folder",
    "html/i18n.py": "files of the package",
    "html/pages.py": "files of the package",
    "models/auto.py": "resolve_checkpoint checks the folder",
    "models/glm.py": "transformers' own method",
    "models/loading.py": "resolve_checkpoint checks the folder",
    "preference/answer_scoring.py": "appends to a file of its run",
    "serve/chat_page.py": "files of the package",
    "training/generated.py": "appends to a file of its run",
    "utils/operating_system.py": "files of the system",
    "utils/streams.py": "the null device",
    "verification/expected_sums.py": "verifier.py checks the folder",
    "verification/file_form.py": "verifier.py checks the folder",
    "verification/pickle_code.py": "verifier.py checks the folder",
    "verification/weight_values.py": "verifier.py checks the folder",
    "webui/app.py": "files of the package",
    "webui/error_texts.py": "files of the package",
    "webui/jobs.py": "logs of the page",
    "webui/server_key.py": "the key of the page",
    "webui/uploads.py": "writes; paths.inside",
}
"""Modules that open files and ask nothing, each with the reason."""


def test_every_module_that_opens_files_asks_first():
    package = Path(glmtune.__file__).parent
    modules = set()
    for path in package.rglob("*.py"):
        text = path.read_text("utf-8")
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
        if names & OPENERS and not re.search(r"\brequire_readable(_folder)?\(", text):
            modules.add(str(path.relative_to(package)))
    new = modules - UNCHECKED.keys()
    assert not new, f"{new}: open files a user names with utils.file_access.require_readable, or say here why not"
    old = {name for name in UNCHECKED.keys() - modules if not name.startswith("webui/")}
    assert not old, f"{old}: need no reason any more"
