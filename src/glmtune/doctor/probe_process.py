"""What is found out in a process of its own, for it may crash or hang: torch, libraries, the model, trials.

Prints one JSON object a line, each behind `MARK`; what libraries print is ignored.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import time
from typing import Any

from glmtune.doctor.machine_facts import BitsandbytesFacts, GpuFacts, TorchFacts, TrialFacts
from glmtune.errors import summarize_error
from glmtune.utils.operating_system import is_macos

MARK = "@glmtune-doctor "
_FRAGILE = ("torchvision", "torchaudio", "flash_attn", "xformers", "apex")
"""Libraries that transformers or peft import if they are there, and that break when torch is replaced."""


def main(request: dict[str, Any]) -> None:
    """Read everything and print it.

    Args:
        request: `model`, `config`, `device` (empty: a GPU if there is one) and whether to run `trials`.
    """
    _report("stage", "the import of torch")
    torch_facts = read_torch()
    _report("torch", dataclasses.asdict(torch_facts))
    if torch_facts.import_error:
        return
    _report("stage", "the import of other libraries")
    _report("import_errors", _read_import_errors())
    _report("bitsandbytes", _as_dict(_read_bitsandbytes()))
    without_cuda = "mps" if torch_facts.mps in ("bf16", "fp16") else "cpu"
    device = request["device"] or ("cuda" if torch_facts.gpus else without_cuda)
    if request["model"] or request["config"]:
        _report("stage", "reading the model and the config")
        try:
            from glmtune.doctor.work import read_work

            work = read_work(request["model"], request["config"], device not in ("cpu", "mps"))
            _report("work", dataclasses.asdict(work))
        except (ImportError, AttributeError) as error:
            _report("import_errors", {"transformers": summarize_error(error, 200)})
            return
    if request["trials"]:
        _run_trials(device)
    _report("stage", "")


def _report(key: str, value: Any) -> None:
    print(f"\n{MARK}{json.dumps({key: value})}", flush=True)


def _as_dict(value: Any) -> Any:
    return None if value is None else dataclasses.asdict(value)


def read_torch() -> TorchFacts:
    """Import torch and read its build and its GPUs."""
    try:
        import torch
    except Exception as error:  # a missing library, a wrong numpy, a file that hides it
        return TorchFacts(import_error=summarize_error(error, 300))
    version = str(getattr(torch, "__version__", ""))
    build = getattr(torch, "version", None)
    if build is None:  # another module of this name
        return TorchFacts(import_error=f"module {getattr(torch, '__file__', None)} is not torch")
    gpus: list[GpuFacts] = []
    gpu_error = ""
    archs: tuple[str, ...] = ()
    if build.cuda or build.hip:
        try:
            torch.cuda.init()
            archs = tuple(torch.cuda.get_arch_list())
            for number in range(torch.cuda.device_count()):
                free, total = torch.cuda.mem_get_info(number)
                capability = torch.cuda.get_device_capability(number)
                gpus.append(GpuFacts(torch.cuda.get_device_name(number), capability, total, free))
        except Exception as error:  # RuntimeError, AssertionError, AcceleratorError
            gpu_error = summarize_error(error, 300)
    cuda, hip = build.cuda, getattr(build, "hip", None)
    threads = torch.get_num_threads()
    return TorchFacts(version, cuda, hip, archs, "", gpu_error, tuple(gpus), threads, _read_mps(torch.backends.mps))


def _read_mps(backend: Any) -> str:
    """What is known of Apple's GPU; see `TorchFacts.mps`."""
    if backend.is_available():
        return "bf16" if backend.is_macos_or_newer(14, 0) else "fp16"
    if not is_macos():
        return ""
    return "macOS" if backend.is_built() else "build"


def _read_import_errors() -> dict[str, str]:
    errors = {}
    for name in ("transformers", "peft", *_FRAGILE):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                errors[name] = summarize_error(error, 200)
        except Exception as error:  # undefined symbols, missing operators, wrong versions
            errors[name] = summarize_error(error, 200)
    return errors


def _read_bitsandbytes() -> BitsandbytesFacts | None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec
    from pathlib import Path

    try:
        number = version("bitsandbytes")
    except PackageNotFoundError:
        return None
    spec = find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return BitsandbytesFacts(number, error="its files are missing")
    names = [path.stem for path in Path(spec.origin).parent.glob("libbitsandbytes_cuda*")]
    versions = [match[1] for name in names if (match := re.search(r"cuda(\d+)", name))]
    libraries = tuple(f"{digits[:-1]}.{digits[-1]}" for digits in sorted(set(versions)))
    try:
        extension: Any = importlib.import_module("bitsandbytes.cextension")
    except Exception as error:  # of the loader, or of its own versions
        return BitsandbytesFacts(number, libraries, summarize_error(error, 200))
    if "Error" in type(getattr(extension, "lib", None)).__name__:  # it defers the error to the first call
        reason = getattr(extension.lib, "error_msg", "") or "its native library cannot be loaded"
        return BitsandbytesFacts(number, libraries, summarize_error(RuntimeError(reason), 200))
    return BitsandbytesFacts(number, libraries)


def _run_trials(name: str) -> None:
    import torch

    from glmtune.utils.console import silence_libraries

    silence_libraries()
    from glmtune.doctor.trials import list_trials

    device = torch.device(name)
    for title, trial in list_trials().items():
        if device.type == "mps" and title == "nf4 product":
            continue  # not used there, see `models.devices`
        _report("stage", f"a {title}")
        start = time.monotonic()
        try:
            error = trial(device)
        except Exception as problem:  # whatever driver, torch and kernels raise: it is the result
            error = summarize_error(problem, 300)
        _report("trial", dataclasses.asdict(TrialFacts(title, name, error, round(time.monotonic() - start, 2))))
