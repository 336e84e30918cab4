"""What a release is made of: sdist and wheel, the version from git's tags, what commands import."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import glmtune
from conftest import REPOSITORY
from glmtune.utils import installation

git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def _git(folder, *words):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "tag.gpgsign=false")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def _list_repository():
    """Files under version control, or those of a copy without git."""
    if (REPOSITORY / ".git").exists() and shutil.which("git"):
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return [name for name in listing.stdout.split("\0") if name and (REPOSITORY / name).is_file()]
    caches = {"__pycache__", "build", "dist", "runs"}
    found = [path.relative_to(REPOSITORY) for path in REPOSITORY.rglob("*") if path.is_file()]
    hidden = (".venv", ".engines", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".git")
    return [str(path) for path in found if not caches & set(path.parts) and path.parts[0] not in hidden]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A folder with the sdist of a tagged commit, and the wheel that was built of that sdist, as for a release."""
    pytest.importorskip("setuptools_scm", reason="needs the build's own package: pip install 'setuptools-scm>=8.1'")
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path_factory.mktemp("release")
    source = folder / "source"
    for name in _list_repository():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, source / name)
    _git(source, "init", "-q")
    _git(source, "add", "-A", "-f")
    _git(source, "commit", "-qm", "all")
    _git(source, "tag", "v9.8.7")
    # What an editor and a test run leave behind is in no release.
    (source / "src" / "glmtune" / "__pycache__").mkdir()
    (source / "src" / "glmtune" / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"x")
    _call_backend(source, "build_sdist", folder)
    with tarfile.open(folder / "glmtune-9.8.7.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    _call_backend(folder / "glmtune-9.8.7", "build_wheel", folder)
    return folder


def _call_backend(source, function, target):
    code = f"import sys; from setuptools import build_meta; build_meta.{function}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(build):
    names = set(zipfile.ZipFile(build / "glmtune-9.8.7-py3-none-any.whl").namelist())
    expected = {name.removeprefix("src/") for name in _list_repository() if name.startswith("src/glmtune/")}
    assert {name for name in names if not name.startswith("glmtune-9.8.7.dist-info/")} == expected
    assert "glmtune/webui/static/app.js" in expected
    assert "glmtune-9.8.7.dist-info/licenses/LICENSE" in names


def test_the_sdist_has_the_whole_repository(build):
    with tarfile.open(build / "glmtune-9.8.7.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(_list_repository()) <= names


def test_the_wheel_runs_outside_the_checkout(build, tmp_path):
    site = tmp_path / "site with 空格"
    zipfile.ZipFile(build / "glmtune-9.8.7-py3-none-any.whl").extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*words):
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
        )

    assert run("-m", "glmtune", "--version").stdout == "glmtune 9.8.7\n"
    assert "data" in run("-m", "glmtune", "--help").stdout
    data = site / "glmtune" / "demo" / "data" / "dev.jsonl"
    checked = run("-m", "glmtune", "data", "check", data)
    assert checked.returncode == 0, checked.stderr


def test_the_metadata_of_the_wheel(build):
    archive = zipfile.ZipFile(build / "glmtune-9.8.7-py3-none-any.whl")
    text = archive.read("glmtune-9.8.7.dist-info/METADATA").decode()
    torch = [line for line in text.splitlines() if re.match(r"Requires-Dist: torch\b", line)]
    assert torch == ["Requires-Dist: torch>=2.6"]  # no upper bound: pip leaves the user's build as it is
    assert "Requires-Python: >=3.10" in text
    assert re.findall(r"^License-Expression: (.*)$", text, re.MULTILINE) == ["Apache-2.0"]


@git
@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("tag v1.2.3",), r"1\.2\.3"),
        (("tag v1.3.0rc1",), r"1\.3\.0rc1"),
        (("tag v1.2.3", "commit"), r"1\.2\.4\.dev1\+g[0-9a-f]+"),
        (("tag v1.2.3", "change"), r"1\.2\.4\.dev0\+g[0-9a-f]+\.d\d+"),
        (("tag v1.2.3", "commit", "tag nightly", "tag vendored"), r"1\.2\.4\.dev1\+g[0-9a-f]+"),
        ((), r"0\.1\.0\.dev1\+g[0-9a-f]+"),
        (("tag v1.2.3", "archive"), r"1\.2\.3"),
        (("tag v1.2.3", "copy"), r"0\.1\.0\.dev0"),
    ],
    ids=lambda value: "-".join(value) or "no tag" if isinstance(value, tuple) else "",
)
def test_the_version_is_that_of_the_tag(steps, expected, tmp_path):
    scm = pytest.importorskip("setuptools_scm", reason="needs the build's own package: pip install setuptools-scm")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes"):
        shutil.copyfile(REPOSITORY / name, source / name)
    _git(source, "init", "-q")
    _git(source, "add", "-A")
    _git(source, "commit", "-qm", "first")
    for step in steps:
        if step.startswith("tag "):
            _git(source, *step.split())
        elif step == "commit":
            _git(source, "commit", "-q", "--allow-empty", "-m", "next")
        elif step == "change":
            (source / "pyproject.toml").write_text((source / "pyproject.toml").read_text("utf-8") + "\n", "utf-8")
        elif step == "archive":
            _git(source, "archive", "-o", str(tmp_path / "archive.tar"), "HEAD")
            source = tmp_path / "archive"
            with tarfile.open(tmp_path / "archive.tar") as archive:
                archive.extractall(source, filter="data")
        else:
            shutil.rmtree(source / ".git")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a copy without git has an archive's file that git did not fill in
        found = scm.get_version(**_read_scm_settings(), root=str(source))
    assert re.fullmatch(expected, found), found
    assert (installation.describe_unknown_version(found) is None) == ("copy" not in steps)


def _read_scm_settings():
    """The table [tool.setuptools_scm] of pyproject.toml."""
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in Python 3.11 and later")
    import tomllib

    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools_scm"]
    return settings


def test_a_copy_that_is_installed_elsewhere_lends_no_version(tmp_path, monkeypatch):
    """PYTHONPATH puts a source tree before an installation: the version is of the files that run."""
    metadata = tmp_path / "glmtune-3.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: glmtune\nVersion: 3.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for function in (installation.find_installation, installation.read_version):
        monkeypatch.setattr(installation, function.__name__, function.__wrapped__)
    assert glmtune.__version__ == installation.UNKNOWN_VERSION
    assert "not installed" in installation.describe_unknown_version(glmtune.__version__)

    origin = {"url": installation.PACKAGE_FOLDER.parent.parent.as_uri(), "dir_info": {"editable": True}}
    (metadata / "direct_url.json").write_text(json.dumps(origin))
    assert glmtune.__version__ == "3.0"
    (metadata / "direct_url.json").write_text(json.dumps(origin | {"dir_info": {}}))
    assert glmtune.__version__ == installation.UNKNOWN_VERSION


def test_versions_are_read_without_importing_the_libraries(glmtune_command):
    result = glmtune_command("--version")
    assert result.out == f"glmtune {glmtune.__version__}\n"
    lines = glmtune_command("version").out.splitlines()
    assert f"torch {version('torch')}" in lines


# Modules that no command may import before it computes; each costs a tenth of a second to seconds.
_HEAVY = {"torch", "transformers", "peft", "accelerate", "tokenizers", "datasets", "matplotlib", "numpy", "pyarrow"}
_HEAVY |= {"pandas", "scipy", "jieba", "nltk", "sentencepiece", "fastapi", "uvicorn", "httpx", "huggingface_hub"}
_LIGHT_COMMANDS = [
    ["--help"],
    ["--version"],
    ["version"],
    ["data", "check", "ROWS"],
    ["train", "--help"],
    ["doctor", "--help"],
    ["plan", "absent.yaml"],
    ["verify", "absent"],
    ["migrate", "llamafactory-cli train absent.yaml"],
]
_MAX_MODULES = 560
"""`data check` imports 467, most of them of Python's own library."""


@pytest.mark.parametrize("words", _LIGHT_COMMANDS, ids=" ".join)
def test_commands_that_compute_nothing_import_nothing_heavy(words, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"content": "类型#裙", "summary": "裙子"}\n' * 3, encoding="utf-8")
    words = [str(rows) if word == "ROWS" else word for word in words]
    code = (
        "import sys; from glmtune.cli import main as cli\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "sys.__stdout__.write('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert "glmtune.config" in modules, done.stderr
    assert not modules & _HEAVY
    assert len(modules) <= _MAX_MODULES


def test_the_library_is_imported_without_its_libraries():
    code = "import sys, glmtune; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (_HEAVY | {"yaml", "rich", "typer", "jinja2"})


def test_files_for_people_are_there():
    for name in ("LICENSE", "README.md", "README.zh.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert (Path(REPOSITORY) / name).stat().st_size > 300, name
