"""Dockerfile, compose files, Slurm script and Kubernetes Job name what there is. Their linters: CONTRIBUTING.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="pyproject.toml is read with tomli before Python 3.11")

from glmtune.cli.main import app

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVICE, JOB = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE_COMMAND = json.loads(re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[1])
SERVER_COMMAND = COMPOSE["services"]["server"]["command"]


def require_options(arguments):
    """Fail if a command line names a command or an option that there is not."""
    command = get_command(app).commands[arguments[0]]
    options = {name for parameter in command.params for name in parameter.opts}
    assert [word for word in arguments[1:] if word.startswith("--") and word not in options] == []


@pytest.mark.parametrize("arguments", [PAGE_COMMAND, SERVER_COMMAND], ids=["page", "server"])
def test_commands_of_the_containers_exist(arguments):
    require_options(arguments)
    assert arguments[arguments.index("--host") + 1] == "0.0.0.0"


def test_the_page_of_a_container_stops_its_jobs():
    """Nothing outlives a container: a training that is only killed loses the steps since its last checkpoint."""
    assert "--stop-jobs" in PAGE_COMMAND
    assert COMPOSE["services"]["page"]["stop_grace_period"] == "10m"
    assert JOB["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 600


def test_the_image_installs_extras_and_files_that_exist():
    extras = re.search(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.MULTILINE)[1].split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in re.findall(r"^COPY ([^-].*)$", DOCKERFILE, re.MULTILINE):
        for name in shlex.split(line)[:-1]:
            assert (ROOT / name).exists(), line
            assert f"!{name}" in ignored, line


def test_containers_are_not_root_and_hold_no_secret():
    assert re.search(r"^USER 1000:1000$", DOCKERFILE, re.MULTILINE)
    context = JOB["spec"]["template"]["spec"]["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] == 1000
    for service in COMPOSE["services"].values():
        assert service["cap_drop"] == ["ALL"]
        secrets = [value for name, value in service["environment"].items() if name.endswith(("PASSWORD", "KEY"))]
        assert secrets
        assert all(value.startswith("${") for value in secrets)


@pytest.mark.parametrize(("service", "port"), [("page", 7860), ("server", 8000)])
def test_ports_and_health_checks_agree(service, port):
    (published,) = COMPOSE["services"][service]["ports"]
    assert published.startswith("127.0.0.1:")  # nobody elsewhere, unless one decides so
    assert published.endswith(f":{port}")
    health = str(COMPOSE["services"][service].get("healthcheck")) if service == "server" else DOCKERFILE
    assert f"http://127.0.0.1:{port}/health" in health
    assert str(port) in re.search(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[1].split()
    command = get_command(app).commands[{"page": "ui", "server": "serve"}[service]]
    assert {parameter.name: parameter.default for parameter in command.params}["port"] == port


def test_the_job_of_kubernetes_agrees_with_itself():
    """The numbers that its comments call the same."""
    (container,) = JOB["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] == int(variables["MACHINES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(variables["GPUS"])
    name = JOB["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert SERVICE["metadata"]["name"] == JOB["spec"]["template"]["spec"]["subdomain"]
    assert f"--master-addr {name}-0.{SERVICE['metadata']['name']}" in container["args"][0]
    assert run_script(container["args"][0], variables | {"JOB_COMPLETION_INDEX": "1"})[0] == "train"


def run_script(script, variables, **files):
    """Arguments of the `glmtune` that a shell script starts, which is replaced by one that prints them."""
    result = subprocess.run(
        ["sh", "-ec", 'glmtune() { printf "%s\\n" "$@"; }; ' + script.replace("exec glmtune", "glmtune")],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    arguments = result.stdout.split("\n")[:-1]
    require_options(arguments)
    return arguments


@pytest.mark.skipif(os.name != "posix", reason="a script for bash")
@pytest.mark.parametrize("resumes", [False, True])
def test_the_slurm_script_starts_a_training_and_goes_on(tmp_path, resumes):
    """With programs that stand for Slurm's: srun runs its command, scontrol prints machines or notes a requeue."""
    programs = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nSLURM_NODEID=1 "$@"',
        "scontrol": 'if [ "$1" = show ]; then printf "a1\\na2\\n"; else echo "$@" >> requeued; fi',
        "glmtune": 'printf "%s\\n" "$@" > arguments; mkdir -p run/checkpoints; exit 130',
    }
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
    if resumes:
        (tmp_path / "run/checkpoints").mkdir(parents=True)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "a[1-2]"}
    result = subprocess.run(
        ["bash", ROOT / "deploy/slurm.sbatch", "my config.yaml", "run"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **slurm},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 130, result.stderr
    arguments = (tmp_path / "arguments").read_text(encoding="utf-8").split("\n")[:-1]
    expected = ["train", "my config.yaml", "--output", "run", "--nproc", "8", "--nnodes", "2"]
    expected += ["--master-addr", "a1", "--master-port", "20007"]
    assert arguments == [*expected, *(["--resume"] if resumes else []), "--node-rank", "1"]
    require_options(arguments)
    assert (tmp_path / "requeued").read_text(encoding="utf-8") == "requeue 7\n"
