"""Findings about drivers, cards and the kernels that the installed torch has for them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from glmtune.doctor.diagnosis import ERROR, NOTE, WARNING, Diagnosis, describe_work
from glmtune.doctor.machine_facts import GpuFacts, MachineFacts
from glmtune.doctor.platform_commands import add_comment, install_driver, install_package, run_as_root, unset_variable
from glmtune.utils.console import format_bytes

# CUDA's major version and the least driver that runs it (NVIDIA, CUDA toolkit release notes, "minor version
# compatibility"): Linux, Windows.
_LEAST_DRIVERS = {11: (450, 452), 12: (525, 528), 13: (580, 580)}
_WHEELS = "https://download.pytorch.org/whl"
_TURING, _AMPERE, _BLACKWELL = (7, 5), (8, 0), (10, 0)


def find_device_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    """Everything between the card and torch, the most basic first; what follows from it is not listed again."""
    torch = facts.torch
    if facts.work.use_cpu:
        return
    if torch.hip is not None:
        yield Diagnosis(
            "rocm",
            NOTE,
            f"torch {torch.version} is built for AMD's ROCm {torch.hip}",
            "glmtune has not been tested on AMD cards; nf4 needs a bitsandbytes that was built for ROCm",
            "Read the trials below; report what fails",
        )
        return
    if torch.gpus:  # whatever the driver says or nvidia-smi lacks
        for gpu in torch.gpus:
            yield from _find_card_problems(facts, gpu)
        return
    if torch.mps:
        yield from _find_apple_problem(facts)
        return
    if not facts.driver.cards:
        if torch.cuda is not None and facts.is_wsl:
            yield from _find_wsl_problem(facts)
        else:
            yield from _note_missing_gpu(facts)
        return
    problem = _find_driver_problem(facts) or _find_build_problem(facts) or _find_access_problem(facts)
    if problem:
        yield problem


def _find_apple_problem(facts: MachineFacts) -> Iterator[Diagnosis]:
    """What keeps torch from Apple's GPU, or from bf16 on it; nothing on a healthy Mac."""
    why = f"{describe_work(facts)} is computed on the CPU"
    if facts.torch.mps == "macOS":
        yield Diagnosis("mps-system", NOTE, "this macOS is too old for torch on Apple's GPU", why, "Update macOS")
    elif facts.torch.mps == "build":
        fix = install_package(facts, "--force-reinstall", "torch>=2.6")
        yield Diagnosis("mps-build", NOTE, f"torch {facts.torch.version} was built without Metal", why, fix)
    elif facts.torch.mps == "fp16":
        why = "Models in bf16 are computed in fp16 (chat) or fp32 (training)"
        yield Diagnosis("mps-bf16", NOTE, "bf16 on Apple's GPU needs macOS 14", why, "Update macOS")
    if facts.work.quantization in ("nf4", "int8") and facts.torch.mps in ("bf16", "fp16"):
        yield Diagnosis(
            "mps-bitsandbytes",
            WARNING,
            f"{facts.work.quantization} is not computed on Apple's GPU",
            f"{describe_work(facts)} is computed on the CPU",
            "Use quantization packed4 or packed8",
        )


def _note_missing_gpu(facts: MachineFacts) -> Iterator[Diagnosis]:
    model = facts.work.model_bytes > 2**30
    yield Diagnosis(
        "no-gpu",
        WARNING if model else NOTE,
        "no NVIDIA card was found, so the CPU computes",
        f"{describe_work(facts)} trains at some seconds to minutes a step on a CPU; the demo and small models are fine",
        "glmtune demo"
        if not model
        else "Use a machine with an NVIDIA card, or try a few steps: --set training.max_steps=2",
    )


def _find_wsl_problem(facts: MachineFacts) -> Iterator[Diagnosis]:
    yield Diagnosis(
        "wsl-driver",
        ERROR,
        "WSL shows no GPU: nvidia-smi does not answer in it",
        "WSL uses the driver of Windows, through /usr/lib/wsl/lib; a driver installed inside WSL hides it",
        "Install NVIDIA's driver in Windows and none in WSL, then in Windows: wsl --update; wsl --shutdown",
    )


def _find_driver_problem(facts: MachineFacts) -> Diagnosis | None:
    driver = facts.driver
    if "version mismatch" in driver.error:
        return Diagnosis(
            "driver-mismatch",
            ERROR,
            f"the driver's kernel module and its libraries have different versions ({driver.error})",
            "No program can use the GPU: the driver was updated, and the old module is still loaded",
            run_as_root(facts, "reboot"),
        )
    if driver.version:
        return _find_old_driver(facts)
    if facts.in_container:
        return Diagnosis(
            "container-without-gpu",
            ERROR,
            "the machine has an NVIDIA card that this container was not given",
            "torch finds no GPU, and everything runs on the CPU",
            "Start the container with the GPU: docker run --gpus all … (needs nvidia-container-toolkit on the host)",
        )
    reason = f" ({driver.error})" if driver.error else ""
    return Diagnosis(
        "no-driver",
        ERROR,
        f"there is an NVIDIA card ({driver.cards[0]}), but its driver does not answer{reason}",
        "torch finds no GPU, and everything runs on the CPU",
        install_driver(facts),
    )


def _find_old_driver(facts: MachineFacts) -> Diagnosis | None:
    cuda = facts.torch.cuda
    if cuda is None:
        return None
    least = _LEAST_DRIVERS.get(_major(cuda))
    if least is None or _major(facts.driver.version) >= least[facts.system == "Windows"]:
        return None
    return Diagnosis(
        "old-driver",
        ERROR,
        f"driver {facts.driver.version} is too old for torch {facts.torch.version}, which was built for CUDA {cuda}",
        f"torch finds no GPU; CUDA {cuda} needs driver {least[facts.system == 'Windows']} or newer",
        add_comment(facts, install_torch(facts, None), "or update the driver"),
    )


def _find_build_problem(facts: MachineFacts) -> Diagnosis | None:
    torch = facts.torch
    if torch.cuda is None and torch.version:
        return Diagnosis(
            "cpu-build",
            ERROR,
            f"torch {torch.version} is a build for CPUs, and the machine has {facts.driver.cards[0]}",
            f"{describe_work(facts)} would not use the card",
            install_torch(facts, None),
        )
    return None


def _find_access_problem(facts: MachineFacts) -> Diagnosis | None:
    torch, visible = facts.torch, facts.environment.get("CUDA_VISIBLE_DEVICES")
    if not torch.version:
        return None
    if visible is not None:
        return Diagnosis(
            "hidden-gpu",
            ERROR,
            f"CUDA_VISIBLE_DEVICES is {visible!r}, which names none of this machine's {len(facts.driver.cards)} cards",
            "torch finds no GPU, and everything runs on the CPU",
            unset_variable(facts, "CUDA_VISIBLE_DEVICES"),
        )
    if not facts.driver.has_device_files:
        command = run_as_root(facts, "nvidia-modprobe -c0 -u")
        return Diagnosis(
            "no-device-files",
            ERROR,
            "the driver answers, but /dev/nvidia0 or /dev/nvidia-uvm is missing",
            "torch finds no GPU, and everything runs on the CPU",
            "Give the container the GPU: docker run --gpus all …" if facts.in_container else command,
        )
    fix = f"{run_as_root(facts, 'rmmod nvidia_uvm')} && {run_as_root(facts, 'modprobe nvidia_uvm')}"
    return Diagnosis(
        "gpu-does-not-start",
        ERROR,
        f"the driver answers, but torch cannot start the GPU ({torch.gpu_error or 'without a reason'})",
        "Usual after sleep, or where another program has locked the GPU (exclusive mode)",
        add_comment(facts, fix, "or reboot") if facts.system == "Linux" else "Restart the machine",
    )


def _find_card_problems(facts: MachineFacts, gpu: GpuFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    capability = "{}.{}".format(*gpu.capability)
    if torch.archs and not has_kernels(torch.archs, gpu.capability):
        newest = max((_parse_arch(arch) for arch in torch.archs), default=(0, 0))
        age = "newer" if gpu.capability > newest else "older"
        yield Diagnosis(
            "no-kernel-image",
            ERROR,
            f"torch {torch.version} (CUDA {torch.cuda}) has no kernels for {gpu.name}, compute capability {capability}",
            f'The card is {age} than this build is for ({", ".join(torch.archs)}): "no kernel image is available for '
            'execution on the device", or "device kernel image is invalid"',
            install_torch(facts, gpu.capability),
        )
        return
    if facts.work.bf16 and gpu.capability < _AMPERE:
        name = facts.work.config or "the run"
        yield Diagnosis(
            "no-bf16",
            WARNING,
            f"{gpu.name} (compute capability {capability}) cannot compute in bf16",
            f"{name} asks for bf16, which cards have from Ampere (8.0) on: glmtune train removes training.bf16, and "
            "weights in bf16 are computed with slowly",
            "Add: --set training.bf16=false --set training.fp16=true --set model.precision=fp16",
        )
    if gpu.free_bytes < gpu.total_bytes * 0.7:
        users = f" by {'; '.join(facts.driver.processes[:3])}" if facts.driver.processes else ""
        used = format_bytes(gpu.total_bytes - gpu.free_bytes)
        yield Diagnosis(
            "gpu-in-use",
            WARNING,
            f"{used} of {format_bytes(gpu.total_bytes)} on {gpu.name} are in use{users}",
            f"{describe_work(facts)} has {format_bytes(gpu.free_bytes)} left there",
            "End the programs that nvidia-smi lists, or choose another card with CUDA_VISIBLE_DEVICES",
        )


def has_kernels(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether a build runs on a card: kernels of the same major version up to the card's, or PTX of an older card.

    Args:
        archs: from `torch.cuda.get_arch_list()`.
        capability: of the card.
    """
    for arch in archs:
        version = _parse_arch(arch)
        if arch.startswith("compute_") and version <= capability:
            return True
        if version[0] == capability[0] and version[1] <= capability[1]:
            return True
    return False


def _parse_arch(arch: str) -> tuple[int, int]:
    match = re.search(r"_(\d+)(\d)", arch)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def install_torch(facts: MachineFacts, capability: tuple[int, int] | None) -> str:
    """The command that installs a torch for this driver and card; without a card, any torch."""
    if not facts.driver.cards and not facts.torch.gpus:
        return install_package(facts, "--force-reinstall", "torch>=2.6")
    driver = _major(facts.driver.version)
    is_windows = facts.system == "Windows"
    runs = [cuda for cuda, least in _LEAST_DRIVERS.items() if not driver or driver >= least[is_windows]]
    if capability is not None and capability < _TURING:
        # Wheels for CUDA 12.8 and later were built without kernels for Maxwell, Pascal and Volta.
        index = "cu126" if 12 in runs else "cu118" if 11 in runs else ""
    elif capability is not None and capability >= _BLACKWELL:
        index = "cu130" if 13 in runs else "cu128" if driver >= 570 else ""
    else:
        index = "cu130" if 13 in runs else "cu126" if 12 in runs else "cu118" if 11 in runs else ""
    if not index:
        return f"Update NVIDIA's driver ({facts.driver.version} is too old for this card's kernels)"
    return install_package(facts, "--force-reinstall", "torch>=2.6", "--index-url", f"{_WHEELS}/{index}")


def _major(version: str) -> int:
    match = re.match(r"\d+", version)
    return int(match[0]) if match else 0
