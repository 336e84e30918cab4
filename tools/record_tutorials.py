"""Run the commands of the tutorials in fresh folders, and make their pictures.

python tools/record_tutorials.py MODELS [--page NAME ...] [--work FOLDER] [--images docs/images/tutorials]

The commands are read from docs/tutorials/NAME.md: fenced blocks named `bash` or `powershell`, and the files that follow
a comment `<!-- file: NAME -->`. Checkpoints come from a hub on this machine: small models (tutorial_models.py) under
the published names; MODELS keeps them between calls. Long trainings are shortened by `SUBSTITUTIONS`. A block
after `<!-- not recorded: REASON -->` is left out. The output of each command is written to WORK/NAME.log.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tools")]

from tutorial_models import make_model  # noqa: E402
from tutorial_pictures import take_pictures  # noqa: E402

from demo_corpus.corpus import make_adgen_splits  # noqa: E402
from faulty_hub import FaultyHub, run_hub  # noqa: E402

PAGES = REPOSITORY / "docs" / "tutorials"
FAMILIES = {
    "ptuning-chatglm-6b": "chatglm",
    "qlora-chatglm2-6b": "chatglm2",
    "web-page-chatglm3-6b": "chatglm3",
    "finetune-demo-chatglm3-6b": "chatglm3",
    "windows-chatglm-6b": "chatglm",
}
# What is replaced in the files and commands of a page: the small models need fewer steps, and higher learning rates.
SUBSTITUTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "ptuning-chatglm-6b": (
        ("max_steps: 3000", "max_steps: 700"),
        ("per_device_train_batch_size: 1", "per_device_train_batch_size: 8"),
        ("gradient_accumulation_steps: 16", "gradient_accumulation_steps: 1"),
        ("save_steps: 1000", "save_steps: 350"),
        ("eval_steps: 500", "eval_steps: 100"),
        ("num_virtual_tokens: 128", "num_virtual_tokens: 64"),
    ),
    "qlora-chatglm2-6b": (
        ("num_train_epochs: 1", "max_steps: 100"),
        ("learning_rate: 2.0e-4", "learning_rate: 5.0e-3"),
        ("gradient_accumulation_steps: 8", "gradient_accumulation_steps: 1"),
        ("eval_steps: 500", "eval_steps: 25"),
    ),
    "web-page-chatglm3-6b": (
        ("learning_rate=1e-4", "learning_rate=5e-3 --set lora.rank=32 --set lora.targets=all-linear"),
        ("num_train_epochs=15", "num_train_epochs=60"),
    ),
    "finetune-demo-chatglm3-6b": (
        ("max_steps: 3000", "max_steps: 40"),
        ("learning_rate: 5e-5", "learning_rate: 5e-3"),
        ("(save|eval|logging)_steps: (500|10)", r"\1_steps: 20"),
        (
            "--output runs/lora$",
            "--output runs/lora --set lora.targets=all-linear --set lora.rank=32 --set training.max_steps=80 "
            "--set training.gradient_checkpointing=false",
        ),
        ("--output runs/ptuning", "--output runs/ptuning --set training.max_steps=4"),
        ("--nproc 8", "--nproc 2 --set training.use_cpu=true"),
    ),
    "windows-chatglm-6b": (
        ("learning_rate=1e-4", "learning_rate=5e-3 --set lora.rank=32 --set lora.targets=all-linear"),
        ("max_steps=60", "max_steps=100"),
    ),
}
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>file|not recorded): (?P<value>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```",
    re.DOTALL,
)
_SKIPPED = ("pip", "glm\\Scripts", "python -m pip", "python -m venv", "git", "source", "cd ", "ssh", "curl", "#")


@dataclass
class Recording:
    """A page whose commands are run."""

    name: str
    folder: Path
    log_file: Path
    hub_address: str = ""
    log: list[str] = field(default_factory=list)

    def replace(self, text: str) -> str:
        """Apply the page's substitutions."""
        for pattern, new in SUBSTITUTIONS[self.name]:
            text = re.sub(pattern, new, text, flags=re.MULTILINE)
        if text.startswith("glmtune fetch"):
            text = f"{text.split(' --mirror')[0]} --mirror {self.hub_address}"
        return text


def iter_steps(page: str) -> Iterator[tuple[str, str, str]]:
    """Yield `(file, NAME, content)` and `(command, "", line)` in the order of a page."""
    for block in _BLOCK.finditer(page):
        if block["mark"] == "file":
            yield "file", block["value"], block["body"]
        elif block["mark"] is None and block["language"] in ("bash", "powershell"):
            for line in block["body"].replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+# .*", "", line).strip()
                if command and not command.startswith(_SKIPPED):
                    yield "command", "", re.sub(r"\s{2,}", " ", command)


def run_page(recording: Recording, environment: dict[str, str]) -> None:
    """Write the files of a page and run its commands in order; the first one that fails ends the program."""
    page = (PAGES / f"{recording.name}.md").read_text("utf-8")
    for kind, name, text in iter_steps(page):
        if kind == "file":
            path = recording.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(recording.replace(text), "utf-8")
        elif not text.startswith(("glmtune ui", "glmtune serve")):
            run_command(recording, recording.replace(text), environment)


def run_command(recording: Recording, command: str, environment: dict[str, str]) -> None:
    """Run a command line of a page and keep its output."""
    start = time.monotonic()
    if command.startswith("glmtune "):
        code, output = run_forked(shlex.split(command)[1:], recording.folder, environment)
    else:
        result = subprocess.run(["bash", "-c", command], cwd=recording.folder, env=environment, capture_output=True)
        code, output = result.returncode, (result.stdout + result.stderr).decode()
    seconds = time.monotonic() - start
    recording.log.append(f"$ {command}\n{output}")
    recording.log_file.write_text("\n".join(recording.log), "utf-8")
    print(f"{recording.name}: {seconds:5.1f} s  {command}", flush=True)
    # These end with 1 or 3 for what they found, which is a result too.
    expected = command.startswith(("glmtune compare", "glmtune forget", "glmtune doctor"))
    if code and not expected:
        raise SystemExit(f"{command}\nended with {code}:\n{output}")


def run_forked(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command of glmtune in a fork of this process, in which the libraries are imported already.

    Args:
        arguments: those of `glmtune`.
        folder: the working directory.
        environment: variables of the command.

    Returns:
        Exit code, and output with messages in the order in which they were written.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        with open(reader, encoding="utf-8", errors="replace") as stream:
            output = stream.read()
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), output
    code = 1
    try:
        os.close(reader)
        os.chdir(folder)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
        os.environ.update(environment)
        sys.argv = ["glmtune", *arguments]
        from glmtune.cli.main import main as run_command_line

        run_command_line()
        code = 0
    except SystemExit as exit:
        code = int(exit.code or 0)
    except BaseException:  # the traceback is the output, and the caller ends
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare_folder(folder: Path) -> None:
    """A fresh folder with AdvertiseGen, here the demo's own advertisements, one object a line as published."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "AdvertiseGen").mkdir(parents=True)
    for name, rows in make_adgen_splits({"train": 900, "dev": 60}, seed=11).items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / "AdvertiseGen" / f"{name}.json").write_text("\n".join(lines) + "\n", "utf-8")


def make_environment(work: Path) -> dict[str, str]:
    """The variables of the commands: a cache of their own, this checkout, a terminal of 100 columns."""
    variables = {"PYTHONPATH": str(REPOSITORY / "src"), "GLMTUNE_CACHE": str(work / "cache"), "COLUMNS": "100"}
    return dict(os.environ) | variables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--page", nargs="*", default=list(FAMILIES))
    parser.add_argument("--work", type=Path, default=Path("tutorials-work"))
    parser.add_argument("--only-pictures", action="store_true", help="of the commands that --work holds")
    parser.add_argument("--images", type=Path, default=REPOSITORY / "docs/images/tutorials")
    arguments = parser.parse_args()
    for module in ("torch", "transformers", "peft", "bitsandbytes", "glmtune.training.run", "glmtune.evaluation"):
        importlib.import_module(module)
    work = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    arguments.models.mkdir(parents=True, exist_ok=True)
    arguments.images.mkdir(parents=True, exist_ok=True)
    for name in arguments.page:
        family = FAMILIES[name]
        recording = Recording(name, work / name, work / f"{name}.log")
        environment = make_environment(work)
        if arguments.only_pictures:
            take_pictures(name, recording.folder, recording.log_file.read_text("utf-8"), environment, arguments.images)
            continue
        model = make_model(family, arguments.models.absolute() / f"{family}-6b")
        content = {path.name: path.read_bytes() for path in model.iterdir()}
        prepare_folder(recording.folder)
        with ExitStack() as stack:
            owner = "ZhipuAI" if name.startswith("web-page") else "THUDM"
            hub = stack.enter_context(run_hub(FaultyHub(content, name=f"{owner}/{family}-6b")))
            recording.hub_address = hub.url
            run_page(recording, environment)
        take_pictures(name, recording.folder, recording.log_file.read_text("utf-8"), environment, arguments.images)


if __name__ == "__main__":
    main()
