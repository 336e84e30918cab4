"""`glmtune verify`: every kind of damage is named with its file, and a healthy folder has none."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glmtune.download.repository import FileSum, Repository, RepositoryFile, hash_file, write_record
from glmtune.errors import ModelError
from glmtune.models.weight_files import read_bin
from glmtune.verification import published_sums
from glmtune.verification.pickle_code import find_foreign_names
from glmtune.verification.verification_output import describe_verification, make_fetch_command
from glmtune.verification.verifier import verify_folder

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
SHARD_1, SHARD_2 = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
NORM = "transformer.encoder.final_layernorm.weight"


@pytest.fixture
def copy(tiny, tmp_path):
    def make(layout: str = "safetensors", family: str = "chatglm3") -> Path:
        return Path(shutil.copytree(tiny(family, layout), tmp_path / f"{family}-6b"))

    return make


def _find_faults(folder: Path) -> dict[str, str]:
    """Kind by file; `verify_folder` itself must never raise for a damaged folder."""
    return {fault.file: fault.kind for fault in verify_folder(folder).faults}


def _record(folder: Path) -> None:
    files = {
        path.name: RepositoryFile(path.name, path.stat().st_size, FileSum("sha256", hash_file(path)))
        for path in folder.iterdir()
    }
    write_record(folder, Repository("modelscope", "ZhipuAI/chatglm3-6b", "v1.0", files))


def _cut(path: Path, share: float = 0.7) -> None:
    os.truncate(path, int(path.stat().st_size * share))


def _flip(path: Path, place: float = 0.6) -> None:
    with path.open("r+b") as stream:
        stream.seek(int(path.stat().st_size * place))
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 0x10]))


@pytest.mark.parametrize("layout", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("family", ["chatglm", "chatglm2", "chatglm3", "glm4"])
def test_a_healthy_folder_has_no_fault(family, layout, tiny):
    result = verify_folder(tiny(family, layout))
    assert (result.faults, result.notes) == ([], [])


def test_the_older_form_of_bin_files_is_read(copy):
    folder = copy("bin")
    torch.save(torch.load(folder / BIN), folder / BIN, _use_new_zipfile_serialization=False)
    assert _find_faults(folder) == {}
    _cut(folder / BIN)
    assert _find_faults(folder) == {BIN: "form"}


def _write(content: bytes):
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_cut, "cut short"),
        (lambda path: _cut(path, 0.001), "cut short|safetensors|cannot be read|corrupt"),
        (_write(b""), "empty"),
        (_write(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "git-lfs pointer"),
        (_write(b"\n<!DOCTYPE html><html><body>Sign in</body></html>"), "a web page"),
        (_write(b'{"error":"Repository not found"}'), "an error message of a server"),
        (_write(bytes(100_000)), "filled with zeros"),
        (_write(b"\xff" * 5000), "not a safetensors file|corrupt"),
    ],
)
def test_files_that_are_no_weights_are_named(damage, word, layout, copy):
    folder = copy(layout)
    name = SAFETENSORS if layout == "safetensors" else BIN
    damage(folder / name)
    (fault,) = verify_folder(folder).faults
    assert fault.file == name
    assert any(part in fault.problem for part in word.split("|")), fault.problem


def _edit_header(path: Path, change) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = change(header) or json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda header: header[NORM].update(shape=[33]), "does not fit itself"),
        (lambda header: header[NORM].update(shape="32"), "does not fit itself"),
        (lambda header: header.pop(NORM) and None, "gap or overlap"),
        (lambda header: '{"a": {}, "a": {}}', "names a twice"),
        (lambda header: "[1]", "no JSON object"),
    ],
)
def test_a_header_that_contradicts_the_file_is_a_fault(change, word, copy):
    folder = copy()
    _edit_header(folder / SAFETENSORS, change)
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (SAFETENSORS, "form")
    assert word in fault.problem


class _Code:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self._marker),)


@pytest.mark.parametrize("form", ["zip", "older", "protocol 4", "inside the older form"])
def test_code_in_a_checkpoint_is_named_and_not_run(form, copy, tmp_path):
    folder, marker = copy("bin"), tmp_path / "executed"
    state = torch.load(folder / BIN) | {"payload": _Code(marker)}
    if form == "protocol 4":
        torch.save(state, folder / BIN, pickle_protocol=4)
    elif form == "inside the older form":
        (folder / BIN).write_bytes(pickle.dumps(_Code(marker)))
    else:
        torch.save(state, folder / BIN, _use_new_zipfile_serialization=form == "zip")
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (BIN, "code")
    assert "mkdir" in fault.problem
    assert not marker.exists()


class _Loader:
    """Code behind a function of torch itself."""

    def __reduce__(self):
        return torch.load, ("other.bin",)


def test_functions_of_torch_that_run_code_are_code_too(copy):
    folder = copy("bin")
    torch.save(torch.load(folder / BIN) | {"payload": _Loader()}, folder / BIN)
    (fault,) = verify_folder(folder).faults
    assert fault.kind == "code"
    assert "torch.serialization.load" in fault.problem


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn])
def test_weights_of_every_precision_are_plain(dtype, tmp_path):
    path = tmp_path / BIN
    content = {"a": torch.ones(3, 4).to(dtype), "b": torch.nn.Parameter(torch.ones(2)), "c": torch.ones(4)[::2]}
    torch.save(content, path)
    assert find_foreign_names(path) == []
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert find_foreign_names(path) == []


def test_downloads_that_other_clients_did_not_finish_are_notes(copy):
    folder = copy()
    for part in (".cache/huggingface/download/x.incomplete", "._____temp/model.safetensors"):
        (folder / part).parent.mkdir(parents=True)
        (folder / part).write_bytes(b"1")
    assert len(verify_folder(folder).notes) == 2


def test_code_beside_the_weights_is_named_and_a_trainer_s_settings_are_not(copy, tmp_path):
    folder = copy()
    (folder / "training_args.bin").write_bytes(pickle.dumps(torch.nn.Linear))
    assert _find_faults(folder) == {}
    (folder / "optimizer.pt").write_bytes(pickle.dumps(_Code(tmp_path / "executed")))
    assert _find_faults(folder) == {"optimizer.pt": "code"}


def _change_weights(folder: Path, name: str, change) -> None:
    path = folder / name
    is_safetensors = name == SAFETENSORS
    state = load_file(path) if is_safetensors else torch.load(path)
    change(state)
    save_file(state, path) if is_safetensors else torch.save(state, path)


@pytest.mark.parametrize(("layout", "name"), [("safetensors", SAFETENSORS), ("bin", BIN)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(layout, name, value, copy):
    folder = copy(layout)
    _change_weights(folder, name, lambda state: state[NORM].__setitem__(3, value))
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (name, "values")
    assert NORM in fault.problem
    assert verify_folder(folder, values=False).faults == []


def test_space_that_was_reserved_and_not_filled_is_a_fault(copy):
    folder = copy()
    path = folder / SAFETENSORS
    size = path.stat().st_size
    _cut(path, 0.5)
    os.truncate(path, size)
    (fault,) = verify_folder(folder).faults
    assert "zero throughout" in fault.problem


def test_bits_that_flipped_in_a_bin_file_are_found_without_any_sum(copy):
    folder = copy("shards")
    with zipfile.ZipFile(folder / SHARD_2) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    _flip(folder / SHARD_2, (entry.header_offset + entry.file_size // 2) / (folder / SHARD_2).stat().st_size)
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (SHARD_2, "form")
    assert "CRC-32" in fault.problem


def test_a_bin_file_that_was_written_without_sums_is_no_fault(copy):
    folder = copy("bin")
    state = torch.load(folder / BIN)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, folder / BIN)
    finally:
        torch.serialization.set_crc32_options(True)
    assert _find_faults(folder) == {}


def test_a_shard_that_is_missing_or_half_there_is_named(copy):
    folder = copy("shards")
    os.rename(folder / SHARD_2, folder / f".{SHARD_2}.0123456789ab.part")
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (SHARD_2, "missing")
    assert ".part" in fault.problem


def test_shards_that_changed_places_are_named_by_their_sums(copy):
    folder = copy("shards")
    _record(folder)
    os.rename(folder / SHARD_1, folder / "other")
    os.rename(folder / SHARD_2, folder / SHARD_1)
    os.rename(folder / "other", folder / SHARD_2)
    result = verify_folder(folder)
    sizes = {path.stat().st_size for path in (folder / SHARD_1, folder / SHARD_2)}
    assert result.faulty_files == [SHARD_1, SHARD_2]
    if len(sizes) == 1:
        assert {fault.kind for fault in result.faults} == {"sum"}
    command = shlex.split(make_fetch_command(result))
    assert command[:7] == ["glmtune", "fetch", "ZhipuAI/chatglm3-6b", "--hub", "modelscope", "--revision", "v1.0"]
    assert command[7:] == ["--file", SHARD_1, "--file", SHARD_2, "--output", str(folder)]


def test_a_flipped_bit_is_found_by_the_list_of_the_download(copy):
    folder = copy()
    _record(folder)
    assert verify_folder(folder).faults == []
    _flip(folder / SAFETENSORS)
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == (SAFETENSORS, "sum")


def test_a_config_that_the_user_changed_is_a_note(copy):
    folder = copy()
    _record(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"glmtune_family": "chatglm3"}))
    result = verify_folder(folder)
    assert result.faults == []
    assert result.notes[0].startswith("config.json was changed")


def test_published_sums_name_the_damaged_file_and_spare_a_tuned_model(copy, monkeypatch):
    folder = copy("shards")
    sums = {path.name: hash_file(path) for path in folder.iterdir() if path.name != "config.json"}
    monkeypatch.setitem(published_sums.PUBLISHED_SUMS, "chatglm3-6b", sums)
    result = verify_folder(folder)
    assert result.faults == []
    assert [file.sum_matches for file in result.files.values()] == [None, True, True, True]

    shutil.copy(folder / SHARD_1, folder / SHARD_2)  # swapped for another file of the same repository
    faults = {fault.kind: fault for fault in verify_folder(folder).faults}
    assert faults["sum"].problem == f"has the content of {SHARD_1}"
    assert faults["sum"].file == SHARD_2

    other = torch.load(folder / SHARD_1)
    torch.save({name: value + 1 for name, value in other.items()}, folder / SHARD_1)
    (folder / SHARD_2).unlink()
    assert {fault.kind for fault in verify_folder(folder).faults} == {"missing"}  # not a published file: tuned


def _use_index(folder: Path) -> dict:
    weight_map = {name: shard for shard in (SHARD_1, SHARD_2) for name in torch.load(folder / shard)}
    content = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(content))
    return content


def test_an_index_that_fits_is_no_fault(copy):
    folder = copy("shards")
    _use_index(folder)
    assert _find_faults(folder) == {}


def _move_entry(folder: Path, content: dict) -> str:
    content["weight_map"][NORM] = SHARD_2 if content["weight_map"][NORM] == SHARD_1 else SHARD_1
    return json.dumps(content)


def _drop_entry(folder: Path, content: dict) -> str:
    del content["weight_map"][NORM]
    return json.dumps(content)


def _repeat_entry(folder: Path, content: dict) -> str:
    return json.dumps(content).replace(f'"{NORM}":', f'"{NORM}": "{SHARD_1}", "{NORM}":')


def _add_shard(folder: Path, content: dict) -> str:
    content["weight_map"]["more"] = "pytorch_model-extra.bin"
    return json.dumps(content)


def _cut_text(folder: Path, content: dict) -> str:
    return json.dumps(content)[:200]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (_move_entry, "index"),
        (_drop_entry, "index"),
        (_repeat_entry, "index"),
        (_add_shard, "missing"),
        (_cut_text, "index"),
        (lambda folder, content: "{}", "index"),
    ],
)
def test_an_index_that_does_not_fit_is_a_fault(change, kind, copy):
    folder = copy("shards")
    text = change(folder, _use_index(folder))
    (folder / "pytorch_model.bin.index.json").write_text(text)
    assert kind in _find_faults(folder).values()


def test_a_tensor_in_two_shards_is_a_fault(copy):
    folder = copy("shards")
    second = torch.load(folder / SHARD_2)
    name, value = next(iter(torch.load(folder / SHARD_1).items()))
    torch.save(second | {name: value}, folder / SHARD_2)
    (fault,) = verify_folder(folder).faults
    assert fault.problem == f"{name} is in {SHARD_1} too"


def test_shapes_are_compared_with_config_json(copy):
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == ("config.json", "config")
    assert "missing" in fault.problem


def test_a_tokenizer_of_another_model_is_named(copy, tiny):
    folder = copy("safetensors", "chatglm2")
    shutil.copy(tiny("glm4") / "tokenizer.model", folder / "tokenizer.model")
    (fault,) = verify_folder(folder).faults
    assert (fault.file, fault.kind) == ("tokenizer.model", "tokenizer")
    (folder / "tokenizer.model").unlink()
    assert _find_faults(folder) == {"tokenizer.model": "tokenizer"}


@pytest.mark.parametrize("place", [0.02, 0.05, 0.5])
def test_a_damaged_tokenizer_is_never_a_traceback(place, copy):
    """Space that was reserved and not filled. SentencePiece and the Rust library raise bare exceptions for some."""
    folder = copy("safetensors", "chatglm")
    path = folder / "ice_text.model"
    content = path.read_bytes()
    start = int(len(content) * place)
    path.write_bytes(content[:start] + bytes(len(content) - start))
    assert _find_faults(folder) == {"ice_text.model": "tokenizer"}


def test_a_published_tokenizer_with_a_flipped_bit_is_found_by_its_length(copy, asset):
    folder = copy("safetensors", "chatglm2")
    shutil.copyfile(asset("assets", "chatglm2-6b", "tokenizer.model"), folder / "tokenizer.model")
    assert "sum" not in [fault.kind for fault in verify_folder(folder).faults]  # it has more tokens than the tiny model
    _flip(folder / "tokenizer.model")
    assert ("tokenizer.model", "sum") in [(fault.file, fault.kind) for fault in verify_folder(folder).faults]


def test_tables_of_a_tokenizer_that_are_damaged_are_no_traceback(copy):
    """Inside the normaliser's table, where only the libraries' own parsers look."""
    folder = copy("safetensors", "chatglm")
    path = folder / "ice_text.model"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 60_000 : middle + 60_000] = b"\xff" * 120_000
    path.write_bytes(content)
    assert _find_faults(folder) == {"ice_text.model": "tokenizer"}


def test_the_record_of_hugging_face_s_client_is_compared(copy, tmp_path):
    folder = copy()
    metadata = folder / ".cache" / "huggingface" / "download"
    metadata.mkdir(parents=True)
    digits = hash_file(folder / SAFETENSORS)
    config = (folder / "config.json").read_bytes()
    git_sum = hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest()
    (metadata / f"{SAFETENSORS}.metadata").write_text(f"abc\n{digits}\n1.0\n")
    (metadata / "config.json.metadata").write_text(f"abc\n{git_sum}\n1.0\n")
    result = verify_folder(folder)
    assert result.faults == []
    assert [result.files[name].sum_matches for name in ("config.json", SAFETENSORS)] == [True, True]
    _flip(folder / SAFETENSORS)
    assert _find_faults(folder) == {SAFETENSORS: "sum"}


def test_files_of_hugging_face_s_cache_are_compared_with_their_names(copy, tmp_path):
    folder = copy()
    root = tmp_path / "models--THUDM--chatglm3-6b"
    snapshot = root / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    for path in folder.iterdir():
        blob = root / "blobs" / hash_file(path)
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    assert _find_faults(snapshot) == {}
    _flip((snapshot / SAFETENSORS).resolve())
    result = verify_folder(snapshot)
    assert result.faulty_files == [SAFETENSORS]
    assert make_fetch_command(result) == "glmtune fetch THUDM/chatglm3-6b --revision abc --output chatglm3-6b"


def test_the_command_prints_the_fault_and_how_to_fetch_again(copy, glmtune_command):
    folder = copy("shards")
    good = glmtune_command("verify", folder)
    assert (good.code, "no fault found" in good.out) == (0, True)
    _cut(folder / SHARD_1)
    bad = glmtune_command("verify", folder)
    assert bad.code == 1
    assert f"{SHARD_1}: cut short" in bad.out
    assert f"glmtune fetch THUDM/chatglm3-6b --file {SHARD_1} --output {folder}" in bad.out
    content = json.loads(glmtune_command("verify", folder, "--json").out)
    assert content["ok"] is False
    assert content["faults"][0]["file"] == SHARD_1


def test_an_adapter_and_the_run_that_trained_it(tmp_path, glmtune_command):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text("model: x\n")
    (run / "summary.json").write_text("{}")
    (run / "adapter" / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(2, 2), "b": torch.zeros(2, 2)}, run / "adapter" / "adapter_model.safetensors")
    for folder in (run, run / "adapter"):
        result = glmtune_command("verify", folder)
        assert result.code == 0, result.out
        assert "its base was not checked" in result.out
    _cut(run / "adapter" / "adapter_model.safetensors")
    assert "adapter_model.safetensors: cut short" in glmtune_command("verify", run).out


def test_the_base_of_a_tuned_model_is_no_certain_source(copy, glmtune_command):
    """Its files would not fit the others, which were tuned."""
    folder = copy()
    _cut(folder / SAFETENSORS)
    out = glmtune_command("verify", folder).out
    assert f"Download again from where this folder came from: {SAFETENSORS}" in out
    assert "If it is the published model as it is: glmtune fetch THUDM/chatglm3-6b" in out
    _record(folder)
    (folder / SAFETENSORS).write_bytes(b"")
    out = glmtune_command("verify", folder).out
    assert "Fetch again: glmtune fetch ZhipuAI/chatglm3-6b --hub modelscope" in out


@pytest.mark.skipif(os.name == "nt", reason="paths are Unicode there")
def test_a_path_that_the_locale_cannot_read_is_no_damage(copy, tmp_path):
    folder = copy("bin").rename(tmp_path / os.fsdecode(b"\xe6\xa8\xa1"))
    assert verify_folder(folder).faults == []
    wrong = Path(os.fspath(folder).encode().decode("ascii", "surrogateescape"))
    for read in (verify_folder, lambda path: read_bin(path / BIN, "cpu")):
        with pytest.raises(ModelError, match="PYTHONUTF8=1"):
            read(wrong)


def test_the_page_runs_the_command_and_names_the_file(copy, tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")
    from page_client import PageClient

    from glmtune.webui.app import make_context

    folder = copy("shards")
    page = PageClient(make_context([tmp_path, folder.parent], "zh"))
    _cut(folder / SHARD_1)
    content = page.post("/model/verify", {"model.path": str(folder)}).text
    assert SHARD_1 in content
    assert "glmtune fetch THUDM/chatglm3-6b" in content
    refused = page.post("/model/verify", {"model.path": str(tmp_path / "nothing")})
    assert refused.status_code == 422
    assert "no such folder" in refused.text


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_folder_without_faults_is_called_so_on_the_page(copy, lang):
    pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")
    from glmtune.webui.machine_view import render_verification

    words = {"en": "No fault found in 4 files", "zh": "4"}[lang]
    assert words in render_verification(describe_verification(verify_folder(copy("shards"))), lang)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nonexistent/model"], "no such folder"),
        (["no-org/no-model-of-this-name"], "glmtune fetch no-org/no-model-of-this-name"),
        ([".", "--hub", "modelscope"], "belong to --against"),
        ([".", "--against", "x"], "no hub id"),
        ([".", "--against", "a/b", "--mirror", "nonsense"], "--mirror"),
        (["."], "nothing to verify"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, tmp_path, monkeypatch, glmtune_command):
    monkeypatch.chdir(tmp_path)
    result = glmtune_command("verify", *arguments)
    assert result.code == 1
    assert message in result.err
