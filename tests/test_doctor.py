"""`glmtune doctor`: broken machines as facts, a healthy one without a finding, and the probes of this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import escape
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from glmtune.doctor import environment, findings, gather, library_findings
from glmtune.doctor.device_findings import has_kernels
from glmtune.doctor.machine_facts import (
    BitsandbytesFacts,
    CompilerFacts,
    DriverFacts,
    FolderFacts,
    GpuFacts,
    HubFacts,
    MachineFacts,
    TorchFacts,
    TrialFacts,
    WorkFacts,
)
from glmtune.doctor.probe_runner import run_probe
from glmtune.doctor.requirements import find_unmet
from glmtune.doctor.trials import list_trials
from glmtune.html.i18n import LANGUAGES, text

GIB = 2**30
CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")  # torch 2.11 on PyPI
CUDA_126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CARDS = {
    "GTX 1080 Ti": ((6, 1), 11),
    "V100": ((7, 0), 16),
    "T4": ((7, 5), 16),
    "RTX 3090": ((8, 6), 24),
    "RTX 4090": ((8, 9), 24),
    "H100": ((9, 0), 80),
    "RTX 5090": ((12, 0), 32),
}
LIBRARIES = ("11.8", "12.6", "12.8", "13.0")
WRITABLE = (
    FolderFacts("the folder of temporary files", "/tmp", variable="TMPDIR"),
    FolderFacts("the cache of downloaded models", "/home/me/.cache/huggingface", variable="HF_HOME"),
    FolderFacts("where runs are written", "/home/me/work"),
)
QLORA = WorkFacts("./chatglm3-6b", "qlora.yaml", model_bytes=12 * GIB, method="lora", quantization="nf4", bf16=True)
ON_HUB = WorkFacts("THUDM/chatglm3-6b", "", is_hub_id=True)


def make_mac(mps: str, work: WorkFacts | None = None) -> MachineFacts:
    """A Mac of Apple's, with or without Metal in torch."""
    return MachineFacts(
        system="Darwin",
        machine="arm64",
        package_manager="",
        shm_bytes=None,
        torch=TorchFacts("2.13.0", threads=8, mps=mps),
        bitsandbytes=BitsandbytesFacts("0.50.2"),
        compilers=CompilerFacts(c_compiler="/usr/bin/clang", cpp_compiler="/usr/bin/clang++"),
        work=work or CPU_WORK,
    )


def make_machine(
    card: str = "RTX 3090", work: WorkFacts = QLORA, archs=CUDA_13, cuda="13.0", **changes
) -> MachineFacts:
    """A healthy machine with a GPU, and what is different about it.

    `torch`, `driver`, `compilers` and `work` may be dicts of fields to change.
    """
    capability, size = CARDS[card]
    gpu = GpuFacts(f"NVIDIA {card}", capability, size * GIB, size * GIB - GIB // 2)
    facts = MachineFacts(
        driver=DriverFacts("580.95.05", cards=(f"NVIDIA {card}",)),
        torch=TorchFacts(f"2.13.0+cu{cuda.replace('.', '')}", cuda, archs=archs, gpus=(gpu,), threads=16),
        bitsandbytes=BitsandbytesFacts("0.50.2", LIBRARIES),
        compilers=CompilerFacts("3.9.0", "0.19.8", "/usr/bin/gcc", "/usr/bin/g++", "13.0"),
        folders=WRITABLE,
        work=work,
        trials=tuple(TrialFacts(name, "cuda", seconds=1.0) for name in ("training step", "nf4 product")),
    )
    for name, value in changes.items():
        is_part = isinstance(value, dict) and dataclasses.is_dataclass(getattr(facts, name))
        facts = replace(facts, **{name: replace(getattr(facts, name), **value) if is_part else value})
    return facts


def _change_folder(number: int, **changes) -> tuple[FolderFacts, ...]:
    return tuple(replace(folder, **changes) if i == number else folder for i, folder in enumerate(WRITABLE))


def _fill_gpu(facts: MachineFacts) -> MachineFacts:
    gpu = replace(facts.torch.gpus[0], free_bytes=2 * GIB)
    processes = ("4711, /usr/bin/python3, 21000 MiB",)
    return replace(facts, torch=replace(facts.torch, gpus=(gpu,)), driver=replace(facts.driver, processes=processes))


NO_GPU = {"gpus": ()}
DEEPSPEED = replace(QLORA, quantization="", deepspeed=True, deepspeed_compiles="cpu_adam")
CPU_WORK = replace(QLORA, quantization="", bf16=False)
CPU_TORCH = TorchFacts("2.13.0+cpu", threads=16)

HEALTHY = {
    "card of 2020": make_machine(),
    "card of 2022": make_machine("RTX 4090"),
    "card of a cluster": make_machine("H100"),
    "new card": make_machine("RTX 5090"),
    "old card, old CUDA, fp16": make_machine("V100", replace(QLORA, bf16=False), CUDA_126, "12.6"),
    "Pascal, old CUDA, packed": make_machine(
        "GTX 1080 Ti", replace(CPU_WORK, quantization="packed4"), CUDA_126, "12.6"
    ),
    "old driver, CUDA 12": make_machine(archs=CUDA_126, cuda="12.6", driver={"version": "535.183.01"}),
    "no model": make_machine(work=WorkFacts()),
    "hub id": make_machine(work=ON_HUB, hub=HubFacts("https://huggingface.co", clock_skew_s=2.0)),
    "mirror": make_machine(work=ON_HUB, environment={"HF_ENDPOINT": "https://hf-mirror.com"}),
    "proxy": make_machine(environment={"HTTPS_PROXY": "http://proxy:8080", "NO_PROXY": "localhost,.corp"}),
    "Windows": make_machine(
        system="Windows",
        shell="powershell",
        shm_bytes=None,
        open_files=None,
        driver={"version": "581.29"},
        compilers=CompilerFacts("3.9.0"),
    ),
    "Mac": make_mac("bf16"),
    "Mac, packed": make_mac("bf16", work=replace(CPU_WORK, quantization="packed4")),
    "container": make_machine(in_container=True, cpu_quota=4.0, memory_limit_bytes=32 * GIB),
    "one of two cards": make_machine(environment={"CUDA_VISIBLE_DEVICES": "0"}),
    "under a launcher": make_machine(environment={"WORLD_SIZE": "2", "RANK": "0", "TORCHELASTIC_RUN_ID": "x"}),
    "deepspeed": make_machine(work=DEEPSPEED),
    "CPU on purpose": make_machine(work=replace(CPU_WORK, use_cpu=True), torch=CPU_TORCH),
    "little memory, a GPU": make_machine(memory_bytes=8 * GIB, available_bytes=5 * GIB),
    "no Triton": make_machine(compilers=CompilerFacts()),
}


@pytest.mark.parametrize("facts", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_machine_has_no_finding(facts):
    assert findings.find_problems(facts) == []


def test_a_machine_without_a_gpu_gets_a_note_and_nothing_else():
    (problem,) = findings.find_problems(MachineFacts())
    assert (problem.code, problem.severity) == ("no-gpu", "note")


CU126 = "--index-url https://download.pytorch.org/whl/cu126"

# Name: the facts, the finding, and parts of what is said and advised.
BROKEN = {
    "Pascal and CUDA 13": (make_machine("GTX 1080 Ti", CPU_WORK), "no-kernel-image", "compute capability 6.1", CU126),
    "Volta and CUDA 13": (make_machine("V100", CPU_WORK), "no-kernel-image", "NVIDIA V100", CU126),
    "Volta without nvidia-smi": (
        make_machine("V100", CPU_WORK, driver=DriverFacts()),
        "no-kernel-image",
        "NVIDIA V100",
        CU126,
    ),
    "Blackwell and CUDA 12.6": (
        make_machine("RTX 5090", archs=CUDA_126, cuda="12.6"),
        "no-kernel-image",
        "newer than this build",
        "whl/cu130",
    ),
    "Blackwell and a driver of CUDA 12.8": (
        make_machine("RTX 5090", archs=CUDA_126, cuda="12.6", driver={"version": "570.86"}),
        "no-kernel-image",
        "12.0",
        "whl/cu128",
    ),
    "Volta and a driver of CUDA 11": (
        make_machine("V100", CPU_WORK, ("sm_80",), "11.8", driver={"version": "470.82"}),
        "no-kernel-image",
        "7.0",
        "whl/cu118",
    ),
    "driver too old for CUDA 13": (
        make_machine(torch=NO_GPU, driver={"version": "535.183.01"}),
        "old-driver",
        "needs driver 580",
        CU126,
    ),
    "driver too old, Windows": (
        make_machine(torch=NO_GPU, driver={"version": "522.25"}, system="Windows", shell="powershell", cuda="12.6"),
        "old-driver",
        "needs driver 528",
        'install --force-reinstall "torch>=2.6"',
    ),
    "CPU build of torch": (make_machine(torch=CPU_TORCH), "cpu-build", "build for CPUs", "whl/cu130"),
    "driver not loaded": (
        make_machine(torch=NO_GPU, driver=DriverFacts(cards=("PCI 0000:01:00.0",))),
        "no-driver",
        "does not answer",
        "sudo apt-get install -y ubuntu-drivers-common && sudo ubuntu-drivers install",
    ),
    "driver updated, not rebooted": (
        make_machine(torch=NO_GPU, driver={"version": "", "error": "Driver/library version mismatch"}),
        "driver-mismatch",
        "different versions",
        "sudo reboot",
    ),
    "container without --gpus": (
        make_machine(torch=NO_GPU, driver=DriverFacts(cards=("PCI 1",)), in_container=True),
        "container-without-gpu",
        "was not given",
        "--gpus all",
    ),
    "device files missing": (
        make_machine(torch=NO_GPU, driver={"has_device_files": False}),
        "no-device-files",
        "/dev/nvidia",
        "nvidia-modprobe",
    ),
    "WSL without the driver": (
        make_machine(torch=NO_GPU, driver=DriverFacts(), is_wsl=True),
        "wsl-driver",
        "WSL",
        "wsl --update",
    ),
    "CUDA_VISIBLE_DEVICES": (
        make_machine(torch=NO_GPU, environment={"CUDA_VISIBLE_DEVICES": "7"}),
        "hidden-gpu",
        "'7'",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "GPU after sleep": (
        make_machine(torch={"gpus": (), "gpu_error": "CUDA unknown error"}),
        "gpu-does-not-start",
        "CUDA unknown error",
        "modprobe nvidia_uvm",
    ),
    "bf16 on a T4": (make_machine("T4"), "no-bf16", "cannot compute in bf16", "training.fp16=true"),
    "GPU full": (_fill_gpu(make_machine()), "gpu-in-use", "4711", "nvidia-smi"),
    "does not fit": (
        make_machine(work=replace(QLORA, plan="Memory: about 30 GiB of 24 GiB.\n--set training.x=1 (about 20 GiB)")),
        "does-not-fit",
        "30 GiB",
        "--set training.x=1",
    ),
    "ROCm": (make_machine(torch={"cuda": None, "hip": "6.4", "gpus": ()}), "rocm", "ROCm 6.4", "trials"),
    "bitsandbytes missing": (make_machine(bitsandbytes=None), "no-bitsandbytes", "not installed", "glmtune[qlora]"),
    "bitsandbytes without CUDA 13": (
        make_machine(bitsandbytes=BitsandbytesFacts("0.45.0", ("11.8", "12.6"))),
        "bitsandbytes-library",
        "has no library for CUDA 13.0 (has 11.8, 12.6)",
        "bitsandbytes>=0.50",
    ),
    "bitsandbytes of Windows of old": (
        make_machine(
            system="Windows", driver={"version": "581.29"}, bitsandbytes=BitsandbytesFacts("0.37.2"), shell="cmd"
        ),
        "bitsandbytes-library",
        "no native library for CUDA at all",
        '"bitsandbytes>=0.50"',
    ),
    "bitsandbytes does not load": (
        make_machine(bitsandbytes=BitsandbytesFacts("0.50.2", LIBRARIES, "libcusparse.so.12: cannot open")),
        "bitsandbytes-import",
        "libcusparse",
        "--force-reinstall",
    ),
    "bitsandbytes of another CUDA": (
        make_machine(environment={"BNB_CUDA_VERSION": "118"}),
        "bitsandbytes-override",
        "118",
        "unset BNB_CUDA_VERSION",
    ),
    "DeepSpeed missing": (
        make_machine(work=DEEPSPEED, compilers={"deepspeed": ""}),
        "no-deepspeed",
        "not installed",
        "glmtune[deepspeed]",
    ),
    "DeepSpeed without a compiler": (
        make_machine(work=DEEPSPEED, compilers={"cpp_compiler": ""}),
        "deepspeed-compiler",
        "no C++ compiler",
        "build-essential",
    ),
    "DeepSpeed without ninja": (
        make_machine(work=DEEPSPEED, compilers={"ninja": False}),
        "deepspeed-compiler",
        "ninja",
        "install ninja",
    ),
    "DeepSpeed without nvcc": (
        make_machine(work=DEEPSPEED, compilers={"nvcc": ""}),
        "deepspeed-compiler",
        "nvcc",
        "CUDA toolkit 13.0",
    ),
    "DeepSpeed and nvcc of CUDA 12": (
        make_machine(work=DEEPSPEED, compilers={"nvcc": "12.4"}),
        "deepspeed-compiler",
        "CUDA 12.4",
        "CUDA_HOME",
    ),
    "stale lock": (
        make_machine(work=DEEPSPEED, locks=("/home/me/.cache/torch_extensions/cpu_adam/lock",)),
        "stale-lock",
        "was killed",
        "rm -r /home/me/.cache/torch_extensions/cpu_adam/lock",
    ),
    "Triton without gcc": (make_machine(compilers={"c_compiler": ""}), "no-c-compiler", "Triton", "build-essential"),
    "Triton without Python.h": (
        make_machine(compilers={"has_python_headers": False}),
        "no-python-headers",
        "Python 3.11",
        "python3.11-dev",
    ),
    "kernels give wrong numbers": (
        make_machine(trials=(TrialFacts("nf4 product", "cuda", "its result is wrong (by 40% of the largest number)"),)),
        "trial",
        "nf4 product on cuda",
        "bitsandbytes",
    ),
    "training step fails": (
        make_machine(trials=(TrialFacts("training step", "cuda", "CUDA error: an illegal memory access"),)),
        "trial",
        "illegal memory access",
        "--device cpu",
    ),
    "memory too small for the CPU": (
        make_machine(work=replace(CPU_WORK, use_cpu=True), memory_bytes=8 * GIB, available_bytes=6 * GIB),
        "too-little-memory",
        "8.0 GiB",
        "packed4",
    ),
    "container's memory limit": (
        make_machine(work=replace(CPU_WORK, use_cpu=True), memory_limit_bytes=4 * GIB),
        "too-little-memory",
        "this container may use 4.0 GiB",
        "packed4",
    ),
    "memory full": (make_machine(available_bytes=GIB // 4), "memory-in-use", "256 MiB", "ps aux"),
    "small /dev/shm": (
        make_machine(work=replace(QLORA, workers=4), shm_bytes=64 * 2**20, in_container=True),
        "small-shm",
        "64 MiB",
        "--shm-size",
    ),
    "more threads than CPUs": (
        make_machine(work=replace(CPU_WORK, use_cpu=True), cpu_quota=2.0),
        "cpu-quota",
        "16 threads",
        "export OMP_NUM_THREADS=2",
    ),
    "one thread of many": (
        make_machine(work=replace(CPU_WORK, use_cpu=True), torch={"threads": 1}),
        "few-threads",
        "1 of 16",
        "export OMP_NUM_THREADS=16",
    ),
    "disk too small for the model": (
        make_machine(work=replace(ON_HUB, model_bytes=12 * GIB), folders=_change_folder(1, free_bytes=5 * GIB)),
        "disk-full",
        "5.0 GiB",
        "HF_HOME",
    ),
    "temporary folder full": (
        make_machine(folders=_change_folder(0, free_bytes=2**20)),
        "disk-full",
        "1.0 MiB are free in /tmp",
        "TMPDIR",
    ),
    "no inodes": (make_machine(folders=_change_folder(0, free_files=3)), "no-inodes", "inodes", "df -i"),
    "cache of root": (
        make_machine(folders=_change_folder(1, writable=False, owner="root")),
        "not-writable",
        "belongs to root",
        "chown -R $(id -un) /home/me/.cache/huggingface",
    ),
    "read-only folder": (
        make_machine(folders=_change_folder(2, writable=False)),
        "not-writable",
        "/home/me/work",
        "--output",
    ),
    "/tmp noexec": (make_machine(folders=_change_folder(0, executable=False)), "noexec", "noexec", "export TMPDIR="),
    "short paths": (
        make_machine(
            system="Windows", shell="powershell", driver={"version": "581.29"}, has_long_paths=False, longest_path=180
        ),
        "long-paths",
        "260",
        "LongPathsEnabled",
    ),
    "two versions of torch": (
        make_machine(duplicates={"torch": ("2.13.0 in /venv/site-packages", "2.1.0 in /home/me/.local/lib")}),
        "two-versions",
        "2.1.0 in /home/me/.local/lib",
        "uninstall -y torch && python -m pip uninstall -y torch && python -m pip install --force-reinstall "
        "'torch>=2.6' --index-url https://download.pytorch.org/whl/cu130 && export PYTHONNOUSERSITE=1",
    ),
    "installation broken off": (make_machine(leftovers=("/v/~orch",)), "interrupted-install", "/v/~orch", "rm -r"),
    "wrong transformers": (
        make_machine(unmet=("transformers<6,>=5.23 (4.41.2 is installed)",)),
        "wrong-versions",
        "4.41.2",
        "install 'transformers<6,>=5.23'",
    ),
    "a file named torch.py": (
        make_machine(shadows={"torch": "/home/me/work/torch.py"}, torch=TorchFacts(import_error="no attribute")),
        "shadowed-module",
        "hides the module torch",
        "Rename /home/me/work/torch.py",
    ),
    "torchvision of another torch": (
        make_machine(import_errors={"torchvision": "operator torchvision::nms does not exist"}),
        "broken-library",
        "nms",
        "uninstall -y torchvision",
    ),
    "torch without Microsoft's runtime": (
        make_machine(torch=TorchFacts(import_error="[WinError 126] fbgemm.dll"), system="Windows", shell="cmd"),
        "torch-import",
        "WinError 126",
        "VCRedist",
    ),
    "another CUDA's libraries": (
        make_machine(torch=TorchFacts(import_error="undefined symbol: __nvJitLinkComplete_12_4")),
        "torch-import",
        "nvJitLink",
        "unset LD_LIBRARY_PATH",
    ),
    "LD_LIBRARY_PATH": (
        make_machine(environment={"LD_LIBRARY_PATH": "/usr/local/cuda-11.8/lib64"}),
        "library-path",
        "cuda-11.8",
        "unset LD_LIBRARY_PATH",
    ),
    "torch crashes": (
        make_machine(torch=TorchFacts(), probe_error="SIGILL in the import of torch"),
        "torch-crash",
        "SIGILL",
        "torch>=2.6",
    ),
    "32 bits": (make_machine(python_bits=32), "32-bit-python", "32 bits", "64-bit"),
    "Mac before macOS 14": (make_mac("fp16"), "mps-bf16", "macOS 14", "Update macOS"),
    "Mac too old for torch": (make_mac("macOS"), "mps-system", "too old", "Update macOS"),
    "torch of a Mac without Metal": (make_mac("build"), "mps-build", "without Metal", "--force-reinstall 'torch>=2.6'"),
    "nf4 on a Mac": (make_mac("bf16", work=QLORA), "mps-bitsandbytes", "nf4", "packed4"),
    "Rosetta": (make_machine(system="Darwin", is_rosetta=True), "rosetta", "translated", "brew"),
    "proxy without scheme": (
        make_machine(environment={"https_proxy": "proxy:8080", "NO_PROXY": "localhost"}),
        "proxy",
        "https_proxy",
        "export https_proxy=http://proxy:8080",
    ),
    "SOCKS without its package": (
        make_machine(environment={"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": "localhost"}, has_socks=False),
        "socks",
        "SOCKS",
        "httpx[socks]",
    ),
    "proxy in front of localhost": (
        make_machine(environment={"HTTP_PROXY": "http://proxy:8080"}),
        "no-proxy",
        "NO_PROXY",
        "localhost,127.0.0.1",
    ),
    "mirror without scheme": (
        make_machine(environment={"HF_ENDPOINT": "hf-mirror.com"}, work=ON_HUB),
        "endpoint",
        "hf-mirror.com",
        "export HF_ENDPOINT=https://hf-mirror.com",
    ),
    "hub not reachable": (
        make_machine(work=ON_HUB, hub=HubFacts("https://huggingface.co", "timed out")),
        "hub-unreachable",
        "timed out",
        "glmtune fetch ZhipuAI/chatglm3-6b --hub modelscope",
    ),
    "offline": (
        make_machine(work=ON_HUB, environment={"HF_HUB_OFFLINE": "1"}),
        "offline",
        "HF_HUB_OFFLINE",
        "unset HF_HUB_OFFLINE",
    ),
    "ModelScope's client missing": (
        make_machine(work=replace(ON_HUB, hub="modelscope"), has_modelscope=False),
        "no-modelscope",
        "ModelScope",
        "glmtune fetch THUDM/chatglm3-6b --hub modelscope",
    ),
    "clock of 1970": (make_machine(time_s=86400.0), "clock", "1970-01-02", "timedatectl"),
    "clock ahead": (
        make_machine(work=ON_HUB, hub=HubFacts("https://huggingface.co", clock_skew_s=7200)),
        "clock",
        "120 minutes ahead",
        "timedatectl",
    ),
    "ASCII locale": (
        make_machine(encodings={"locale": "ANSI_X3.4-1968", "stdout": "ascii"}),
        "encoding",
        "ANSI_X3.4-1968",
        "export LANG=C.UTF-8",
    ),
    "Windows console": (
        make_machine(
            system="Windows",
            shell="powershell",
            driver={"version": "581.29"},
            encodings={"locale": "cp1252", "stdout": "cp1252"},
        ),
        "encoding",
        "cp1252",
        '$env:PYTHONUTF8 = "1"',
    ),
    "WORLD_SIZE in the shell": (
        make_machine(environment={"WORLD_SIZE": "4", "RANK": "0"}),
        "launcher-variables",
        "WORLD_SIZE=4",
        "unset WORLD_SIZE",
    ),
    "CUDA_LAUNCH_BLOCKING": (
        make_machine(environment={"CUDA_LAUNCH_BLOCKING": "1"}),
        "launch-blocking",
        "CUDA_LAUNCH_BLOCKING",
        "unset",
    ),
    "few open files": (make_machine(open_files=256), "open-files", "256", "ulimit -n"),
    "modelscope not reachable": (
        make_machine(
            work=replace(ON_HUB, model="ZhipuAI/chatglm3-6b", hub="modelscope"),
            hub=HubFacts("https://modelscope.cn", "timed out"),
            has_modelscope=True,
        ),
        "hub-unreachable",
        "modelscope.cn",
        "glmtune fetch THUDM/chatglm3-6b",
    ),
    "model in a folder with a space": (
        make_machine(work=replace(QLORA, model="./my glm", model_error="model.safetensors: cut short")),
        "model",
        "cut short",
        "glmtune verify './my glm'",
    ),
    "model that is not there": (
        make_machine(work=replace(QLORA, model_error="./glm: no such folder")),
        "model",
        "no such folder",
        "Give the folder",
    ),
    "config that is refused": (
        make_machine(work=replace(QLORA, config_error="unknown key lorra")),
        "config",
        "qlora.yaml: unknown key lorra",
        "docs/config.md",
    ),
    "model that is damaged": (
        make_machine(work=replace(QLORA, model_error="model.safetensors: cut short")),
        "model",
        "cut short",
        "glmtune verify ./chatglm3-6b",
    ),
}


@pytest.mark.parametrize(("facts", "code", "what", "fix"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_machine_gets_its_finding_and_no_other(facts, code, what, fix):
    problems = findings.find_problems(facts)
    assert [problem.code for problem in problems] == [code]
    (problem,) = problems
    assert what in f"{problem.what} {problem.why}"
    assert fix in problem.fix
    assert problem.severity in ("error", "warning", "note")
    for sentence in (problem.what, problem.why, problem.fix):
        assert sentence
        assert not sentence.endswith(".")


def test_there_are_enough_broken_machines_and_every_code_is_among_them():
    assert len(BROKEN) > 60
    sources = [Path(module.__file__).parent.glob("*findings.py") for module in (findings,)]
    text = "".join(path.read_text("utf-8") for paths in sources for path in paths)
    codes = set(re.findall(r'Diagnosis\(\s*"([a-z0-9-]+)"', text))
    assert codes == {code for _, code, _, _ in BROKEN.values()} | {"no-gpu"}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_page_shows_every_finding_in_its_language_with_its_command(lang):
    pytest.importorskip("fastapi", reason="needs the extra `ui`: pip install 'glmtune[ui]'")
    from glmtune.webui.machine_view import render_diagnosis

    for facts, _, _, _ in BROKEN.values():
        (problem,) = findings.find_problems(facts)
        page = render_diagnosis({"findings": [dataclasses.asdict(problem)]}, lang)
        assert escape(text(f"ui.machine.finding.{problem.code}", lang)) in page
        # What torch itself says of an import is not ours to translate.
        assert text("ui.app.in_english", lang) not in page or problem.code == "torch-import"
        command = problem.fix.partition("  # ")[0]
        if lang == "en" or not command[0].isupper():  # else a sentence
            assert f"<code>{escape(command)}" in page
        assert lang == "en" or not re.search("[A-Z][a-z]+ [a-z]+ [a-z]+", re.sub("`.*?`|&quot;.*?&quot;", "", page))
    assert text("ui.machine.healthy", lang) in render_diagnosis({"findings": []}, lang)


def test_several_faults_are_listed_with_errors_first():
    facts = make_machine("GTX 1080 Ti", bitsandbytes=None, environment={"CUDA_LAUNCH_BLOCKING": "1"})
    codes = [problem.code for problem in findings.find_problems(facts)]
    assert codes == ["no-kernel-image", "no-bitsandbytes", "launch-blocking"]


def test_a_trial_that_fails_for_a_known_cause_is_not_listed_again():
    failed = (TrialFacts("training step", "cuda", "no kernel image is available"),)
    codes = [problem.code for problem in findings.find_problems(make_machine("V100", CPU_WORK, trials=failed))]
    assert codes == ["no-kernel-image"]


def test_a_library_that_the_work_does_not_need_is_a_warning():
    facts = make_machine(work=WorkFacts(), bitsandbytes=BitsandbytesFacts("0.45.0", ("12.6",)))
    (problem,) = findings.find_problems(facts)
    assert problem.severity == "warning"


@pytest.mark.parametrize(
    ("archs", "capability", "expected"),
    [
        (("sm_80",), (8, 6), True),
        (("sm_86",), (8, 0), False),
        (("sm_75",), (8, 0), False),
        (("compute_75",), (8, 0), True),
        (("compute_90",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100f",), (10, 3), True),
        (("sm_100",), (12, 0), False),
    ],
)
def test_which_kernels_run_on_which_card(archs, capability, expected):
    assert has_kernels(archs, capability) is expected


# ---- probes of this machine


@pytest.fixture(scope="module")
def facts():
    """This machine, read once."""
    return gather.gather_facts()


def test_this_machine_is_read(facts):
    assert facts.torch.version == torch.__version__
    assert facts.probe_error == ""
    assert {trial.name for trial in facts.trials} == set(list_trials())
    assert [trial.error for trial in facts.trials] == [""] * len(facts.trials)
    assert facts.python == ".".join(map(str, sys.version_info[:3]))
    assert facts.memory_bytes > GIB
    assert all(folder.writable for folder in facts.folders)
    assert facts.shadows == {}
    assert facts.import_errors == {}


def test_trials_notice_kernels_that_give_wrong_numbers(monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`: pip install 'glmtune[qlora]'")
    from glmtune.quantization.packed_linear import PackedLinear
    from glmtune.training import loss

    cpu = torch.device("cpu")
    right = {name: trial(cpu) for name, trial in list_trials().items()}
    assert right == {"training step": "", "nf4 product": "", "packed4 product": ""}

    forward, multiply, compute = PackedLinear.forward, bitsandbytes.matmul_4bit, loss.step_loss
    calls = []

    def compute_wrong(*arguments):
        calls.append(1)
        return compute(*arguments) * (1 if len(calls) == 1 else 1.1)

    monkeypatch.setattr(PackedLinear, "forward", lambda self, inputs: forward(self, inputs) * 1.1)
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", lambda *a, **k: multiply(*a, **k) * 1.1)
    monkeypatch.setattr(loss, "step_loss", compute_wrong)
    wrong = {name: trial(cpu) for name, trial in list_trials().items()}
    assert "on the CPU" in wrong["training step"]
    assert wrong["nf4 product"] == wrong["packed4 product"] == "its result is wrong (by 10% of the largest number)"


def test_the_command_prints_findings_and_json(facts, monkeypatch, glmtune_command, tmp_path):
    calls = []

    def return_facts(*arguments):
        calls.append(arguments)
        return BROKEN["Pascal and CUDA 13"][0]

    monkeypatch.setattr(gather, "gather_facts", return_facts)
    config = tmp_path / "run.yaml"
    config.write_text("model: x\n")
    result = glmtune_command("doctor", "./chatglm3-6b", config, "--no-trials", "--device", "cpu")
    assert result.code == 1
    assert "ERROR: torch 2.13.0+cu130 (CUDA 13.0) has no kernels" in result.out
    assert f"fix  python -m pip install --force-reinstall 'torch>=2.6' {CU126}" in result.out
    assert glmtune_command("doctor", config).code == 1
    content = json.loads(glmtune_command("doctor", "--json").out)
    assert (content["ok"], content["findings"][0]["code"]) == (False, "no-kernel-image")
    assert content["facts"]["torch"]["cuda"] == "13.0"
    expected = [("./chatglm3-6b", str(config), "cpu", False), ("", str(config), "", True), ("", "", "", True)]
    assert calls == expected
    assert "no such file" in glmtune_command("doctor", "nothing.yaml").err


def test_json_holds_neither_home_nor_passwords(monkeypatch, glmtune_command, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(gather, "gather_facts", lambda *_: make_machine(shadows={"torch": "/home/somebody/torch.py"}))
    output = glmtune_command("doctor", "--json").out
    assert "somebody" not in output
    assert "~/torch.py" in output
    variables = environment.read_variables({"HTTPS_PROXY": "http://me:secret@proxy:1", "HF_TOKEN": "hf_x"})
    assert variables == {"HTTPS_PROXY": "http://proxy:1"}


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("import os; os.abort()", "SIGABRT in its start"),
        ("import time; time.sleep(60)", "no answer within 1 s in its start"),
        ("raise ImportError('numpy is broken')", "ImportError: numpy is broken in its start"),
    ],
)
def test_a_probe_that_crashes_or_hangs_is_a_fact(start, message):
    assert run_probe({}, timeout_s=1 if "sleep" in start else 60, start=start)["probe_error"] == message


def test_a_trial_that_kills_the_process_is_named():
    mark = "print('@glmtune-doctor ' + json.dumps({'stage': 'a nf4 product'}), flush=True)"
    start = f"import json, os, signal; {mark}; os.kill(os.getpid(), signal.SIGSEGV)"
    assert run_probe({}, start=start)["probe_error"] == "SIGSEGV in a nf4 product"


def test_files_that_hide_modules_are_found(tmp_path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "datasets").mkdir()  # of data: no package
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / "__init__.py").write_text("")
    (tmp_path / "mine.py").write_text("")
    library = os.path.dirname(os.__file__)
    expected = {"torch": str(tmp_path / "torch.py"), "random": str(tmp_path / "random")}
    assert environment.find_shadows([str(tmp_path), library]) == expected
    assert environment.find_shadows([library, str(tmp_path)]) == {}


def _install(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_two_versions_and_leftovers_are_found(tmp_path):
    first, second = tmp_path / "a" / "site-packages", tmp_path / "b" / "site-packages"
    _install(first, "torch", "2.13.0")
    _install(second, "torch", "2.1.0")
    _install(second, "unrelated", "1.0")
    (second / "~orch").mkdir()
    copies = environment.find_duplicates([str(first), str(second)])
    assert copies == {"torch": (f"2.13.0 in {first}", f"2.1.0 in {second}")}
    assert environment.find_duplicates([str(first), str(first)]) == {}
    assert environment.find_leftovers([str(second)]) == (str(second / "~orch"),)


def test_requirements_that_are_not_met_are_found():
    lines = ["torch>=2.6", "torch<2", "no-such-package>=1", 'other; extra == "ui"', "numpy; python_version < '3'"]
    unmet = find_unmet(lines)
    assert unmet == (f"torch<2 ({torch.__version__} is installed)", "no-such-package>=1 (not installed)")


def test_a_lock_is_stale_only_while_nothing_is_compiled(tmp_path, monkeypatch):
    import psutil

    lock = tmp_path / "py311_cu130" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    assert environment.find_stale_locks(tmp_path) == (str(lock),)

    ninja = SimpleNamespace(info={"name": "ninja"})
    monkeypatch.setattr(psutil, "process_iter", lambda _: [ninja])
    assert environment.find_stale_locks(tmp_path) == ()


def test_what_a_folder_allows(tmp_path):
    folder = environment.read_folder("a cache", str(tmp_path / "not" / "there"), "X")
    assert (folder.path, folder.writable) == (str(tmp_path), True)
    assert folder.free_bytes > 0
    (tmp_path / "file").write_text("")
    assert not environment.read_folder("a cache", str(tmp_path / "file" / "below"), "X").writable


FAKE_NVIDIA_SMI = """#!/bin/sh
case "$*" in
*query-gpu*) {gpu} ;;
*) echo "4711, python, 900 MiB" ;;
esac
"""


@pytest.mark.parametrize(
    ("answer", "version", "error", "cards"),
    [
        ("echo 'NVIDIA GeForce RTX 3090, 580.95.05'", "580.95.05", "", ("NVIDIA GeForce RTX 3090",)),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            "",
            "Failed to initialize NVML: Driver/library version mismatch",
            ("PCI 0000:01:00.0",),
        ),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_the_driver_is_asked_through_nvidia_smi(answer, version, error, cards, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(FAKE_NVIDIA_SMI.format(gpu=answer))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gather, "_list_pci_cards", lambda: ("PCI 0000:01:00.0",))
    driver = gather._read_driver()
    assert (driver.version, driver.error, driver.cards) == (version, error, cards)


def test_the_model_and_the_config_are_read(tiny, tmp_path):
    from glmtune.doctor.work import read_work

    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{path: {tiny('chatglm3')}, quantization: nf4}}\ntraining: {{bf16: true, dataloader_num_workers: 2}}\n"
    )
    work = read_work("", str(config), has_gpu=False)
    assert (work.model, work.quantization, work.bf16, work.workers) == (str(tiny("chatglm3")), "nf4", True, 2)
    assert work.model_bytes == (tiny("chatglm3") / "model.safetensors").stat().st_size
    assert (work.model_error, work.config_error) == ("", "")

    assert read_work("no-org/no-model-of-this-name", "", False).is_hub_id
    assert "no such folder" in read_work("./nothing", "", False).model_error
    config.write_text("model: x\nlorra: {rank: 1}\n")
    assert "lorra" in read_work("", str(config), False).config_error
    (tmp_path / "config.json").write_text("{}")
    assert "model_type" in read_work(str(tmp_path), "", False).model_error


def test_every_table_of_errors_has_a_command():
    for part, cause, make_command in library_findings._TORCH_ERRORS:
        facts = make_machine(torch=TorchFacts(import_error=f"ImportError: {part}"))
        (problem,) = findings.find_problems(facts)
        assert (problem.why, problem.fix) == (cause, make_command(facts))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_every_command_for_linux_is_one_that_the_shell_accepts():
    """What begins with a capital letter is a sentence."""
    machines = [facts for facts, _, _, _ in BROKEN.values() if facts.shell == "sh"]
    machines += [replace(facts, package_manager=name) for facts in machines for name in ("dnf", "pacman", "apk", "")]
    machines += [replace(facts, is_root=True) for facts in machines]
    commands = {problem.fix for facts in machines for problem in findings.find_problems(facts)}
    commands = sorted(command for command in commands if not command[0].isupper())
    assert len(commands) > 40
    script = "\n".join(commands)
    result = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    for command in commands:
        assert re.match(
            r"(sudo|python|export|unset|glmtune|rm|apt-get|dnf|pacman|apk|ulimit|xcode-select|reboot|"
            r"nvidia-modprobe|rmmod|chown|timedatectl|sntp|winget|mount) ?",
            command,
        ), command


def test_root_needs_no_sudo_and_every_distribution_has_its_command():
    facts = replace(BROKEN["Triton without gcc"][0], is_root=True, package_manager="dnf")
    assert findings.find_problems(facts)[0].fix == "dnf install -y gcc gcc-c++ make"


class AcceleratorError(RuntimeError):
    """As torch names it."""


def _chain(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "message", "has_traceback"),
    [
        (
            RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore"),
            "no kernel",
            False,
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled", False),
        (ImportError("/x/_C.so: undefined symbol: __nvJitLink"), "undefined symbol", False),
        (OSError("libcudart.so.12: cannot open shared object file"), "libcudart", False),
        (RuntimeError("CUDA error: device-side assert triggered"), "device-side assert", True),
        (AcceleratorError("launch failure"), "launch failure", True),
        (_chain(RuntimeError("could not load"), RuntimeError("CUDA driver error: 999")), "CUDA driver error", True),
    ],
)
def test_an_error_of_the_device_names_doctor(error, message, has_traceback, monkeypatch, glmtune_command):
    def fail():
        raise error

    monkeypatch.setattr("glmtune.utils.installation.collect_versions", fail)
    result = glmtune_command("version")
    assert result.code == 1
    assert result.err.rstrip().endswith("glmtune doctor")
    assert "Error: " in result.err
    assert message in result.err
    assert ("Traceback" in result.err) is has_traceback


@pytest.mark.parametrize("error", [RuntimeError("a bug"), AttributeError("no attribute x"), ImportError("no y")])
def test_other_errors_keep_their_traceback(error, monkeypatch, glmtune_command):
    def fail():
        raise error

    monkeypatch.setattr("glmtune.utils.installation.collect_versions", fail)
    with pytest.raises(type(error), match=str(error)):
        glmtune_command("version")
