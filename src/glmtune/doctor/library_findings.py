"""Findings about Python packages: versions, copies, files that hide them, native libraries, compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from glmtune.doctor.device_findings import install_torch
from glmtune.doctor.diagnosis import ERROR, WARNING, Diagnosis, describe_work
from glmtune.doctor.machine_facts import MachineFacts
from glmtune.doctor.platform_commands import (
    add_comment,
    install_compilers,
    install_headers,
    install_openmp,
    install_package,
    join_commands,
    remove_path,
    set_variable,
    unset_variable,
)

_BITSANDBYTES = ("nf4", "int8")

# A part of the error, what it means, and the command.
_VC_RUNTIME = "winget install --id Microsoft.VCRedist.2015+.x64"
_TORCH_ERRORS: tuple[tuple[str, str, Callable[[MachineFacts], str]], ...] = (
    (
        "nvJitLink",
        "Another CUDA's libraries are loaded in place of torch's own, through LD_LIBRARY_PATH",
        lambda facts: unset_variable(facts, "LD_LIBRARY_PATH"),
    ),
    ("WinError 126", "A Microsoft library that torch needs is missing", lambda facts: _VC_RUNTIME),
    ("fbgemm.dll", "A Microsoft library that torch needs is missing", lambda facts: _VC_RUNTIME),
    ("libgomp", "The library of OpenMP is missing", install_openmp),
    ("GLIBC", "The system's C library is older than torch needs", lambda facts: "Use a newer system, or a container"),
    (
        "static TLS block",
        "The loader has no room left for the library of OpenMP",
        lambda facts: "export LD_PRELOAD=$(gcc -print-file-name=libgomp.so.1)",
    ),
    (
        "numpy.core.multiarray",
        "numpy and torch were built for each other's other version",
        lambda facts: install_package(facts, "-U", "numpy"),
    ),
)


def find_library_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    """Python itself, then torch, then what depends on it."""
    yield from _find_python_problems(facts)
    yield from _find_package_problems(facts)
    yield from _find_torch_problems(facts)
    yield from _find_bitsandbytes_problems(facts)
    yield from _find_compiler_problems(facts)


def _find_python_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    if facts.python_bits < 64:
        yield Diagnosis(
            "32-bit-python",
            ERROR,
            f"this Python ({facts.python}) has {facts.python_bits} bits",
            "torch has no builds for it, and 4 GiB of memory at most",
            "Install the 64-bit Python from https://www.python.org/downloads",
        )
    if facts.is_rosetta:
        yield Diagnosis(
            "rosetta",
            ERROR,
            "this Python is built for Intel and runs translated on an Apple processor",
            "torch has no new builds for it, and computes at a fraction of the speed",
            "Install a Python for arm64: brew install python@3.12 (in a terminal that does not run under Rosetta)",
        )


def _find_package_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    for name, path in facts.shadows.items():
        yield Diagnosis(
            "shadowed-module",
            ERROR,
            f"{path} hides the module {name}",
            f"`import {name}` takes that file: attributes are missing, or nothing can be imported",
            f"Rename {path}",
        )
    for name, places in facts.duplicates.items():
        remove = [f"{facts.pip} uninstall -y {name}"] * len(places)  # each call removes one copy
        again = install_torch(facts, _get_capability(facts)) if name == "torch" else install_package(facts, name)
        in_home = any(".local" in place or "Roaming" in place for place in places)
        ignore = [set_variable(facts, "PYTHONNOUSERSITE", "1")] if in_home else []
        yield Diagnosis(
            "two-versions",
            ERROR,
            f"{name} is installed {len(places)} times: {', '.join(places)}",
            "Parts of one are loaded with parts of the other, or pip changes the one that is not used",
            join_commands(facts, *remove, again, *ignore),
        )
    for path in facts.leftovers:
        yield Diagnosis(
            "interrupted-install",
            WARNING,
            f"{path} is left of an installation that was interrupted",
            "pip warns of an invalid distribution, and files of the old version may still be there",
            remove_path(facts, path),
        )
    if facts.unmet:
        yield Diagnosis(
            "wrong-versions",
            ERROR,
            f"glmtune needs {'; '.join(facts.unmet)}",
            "Other versions have other names and numbers: imports fail, or a run stops half-way",
            install_package(facts, *(text.split(" (")[0] for text in facts.unmet)),
        )


def _find_torch_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    torch = facts.torch
    if torch.import_error and "torch" in facts.shadows:
        return
    if torch.import_error:
        meaning, fix = (
            "torch cannot be imported, so no command but this one works",
            install_torch(facts, None),
        )
        for part, cause, make_command in _TORCH_ERRORS:
            if part in torch.import_error:
                meaning, fix = cause, make_command(facts)
        yield Diagnosis("torch-import", ERROR, f"torch: {torch.import_error}", meaning, fix)
    elif facts.probe_error:
        yield Diagnosis(
            "torch-crash",
            ERROR,
            f"the process that imports torch and tries the device ended: {facts.probe_error}",
            "The same happens in every command; SIGILL means a processor without the instructions of this build",
            install_torch(facts, None),
        )
    elif "LD_LIBRARY_PATH" in facts.environment and torch.cuda is not None:
        yield Diagnosis(
            "library-path",
            WARNING,
            f"LD_LIBRARY_PATH names CUDA libraries: {facts.environment['LD_LIBRARY_PATH']}",
            "They are loaded before those that torch brings: undefined symbols, or wrong cuDNN versions",
            unset_variable(facts, "LD_LIBRARY_PATH"),
        )
    for name, error in facts.import_errors.items():
        yield Diagnosis(
            "broken-library",
            ERROR,
            f"{name} is installed and cannot be imported ({error})",
            "transformers imports it if it is there, and fails with it; glmtune does not need it",
            f"{facts.pip} uninstall -y {name}",
        )


def _find_bitsandbytes_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    library, torch = facts.bitsandbytes, facts.torch
    wanted = facts.work.quantization in _BITSANDBYTES
    severity = ERROR if wanted else WARNING
    why = (
        f"{describe_work(facts)} asks for {facts.work.quantization}, which bitsandbytes computes"
        if wanted
        else "nf4 and int8 (QLoRA) would not work; packed4 and packed8 need nothing of it"
    )
    if library is None:
        if wanted:
            alternative = "or --set model.quantization=packed4, which needs nothing more"
            fix = add_comment(facts, install_package(facts, "glmtune[qlora]"), alternative)
            yield Diagnosis("no-bitsandbytes", ERROR, "bitsandbytes is not installed", why, fix)
        return
    override = facts.environment.get("BNB_CUDA_VERSION")
    if torch.cuda and override and override != torch.cuda.replace(".", ""):
        yield Diagnosis(
            "bitsandbytes-override",
            severity,
            f"BNB_CUDA_VERSION is {override}, and torch was built for CUDA {torch.cuda}",
            f"bitsandbytes loads the library of another CUDA. {why}",
            unset_variable(facts, "BNB_CUDA_VERSION"),
        )
    elif torch.cuda and not any(cuda.split(".")[0] == torch.cuda.split(".")[0] for cuda in library.libraries):
        has = f"has {', '.join(library.libraries)}" if library.libraries else "has no native library for CUDA at all"
        yield Diagnosis(
            "bitsandbytes-library",
            severity,
            f"bitsandbytes {library.version} has no library for CUDA {torch.cuda} ({has})",
            why,
            install_package(facts, "-U", "bitsandbytes>=0.50"),
        )
    elif library.error:
        yield Diagnosis(
            "bitsandbytes-import",
            severity,
            f"bitsandbytes {library.version} does not load ({library.error})",
            why,
            install_package(facts, "--force-reinstall", "--no-deps", "bitsandbytes>=0.50"),
        )


def _find_compiler_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    compilers, work, torch = facts.compilers, facts.work, facts.torch
    if torch.gpus and not work.use_cpu and compilers.triton and not compilers.c_compiler and facts.system == "Linux":
        yield Diagnosis(
            "no-c-compiler",
            WARNING,
            f"Triton {compilers.triton} finds no C compiler",
            "packed4 and packed8 fall back to torch's operations, which are several times slower; --compile fails",
            install_compilers(facts),
        )
    elif torch.gpus and compilers.triton and not compilers.has_python_headers and facts.system == "Linux":
        version = ".".join(facts.python.split(".")[:2])
        yield Diagnosis(
            "no-python-headers",
            WARNING,
            f"Python.h of Python {version} is missing, with which Triton compiles its launcher",
            "packed4 and packed8 fall back to torch's operations, which are several times slower; --compile fails",
            install_headers(facts),
        )
    if work.deepspeed and not compilers.deepspeed:
        fix = install_package(facts, "glmtune[deepspeed]")
        yield Diagnosis(
            "no-deepspeed", ERROR, "DeepSpeed is not installed", f"{describe_work(facts)} has training.deepspeed", fix
        )
    elif work.deepspeed_compiles:
        yield from _find_deepspeed_problems(facts)
    for path in facts.locks:
        yield Diagnosis(
            "stale-lock",
            ERROR if work.deepspeed_compiles else WARNING,
            f"{path} is left of a compilation that was killed",
            "torch waits for it without end when DeepSpeed compiles its optimizer: the run hangs before its first step",
            remove_path(facts, path),
        )


def _find_deepspeed_problems(facts: MachineFacts) -> Iterator[Diagnosis]:
    compilers, cuda = facts.compilers, facts.torch.cuda
    name = facts.work.deepspeed_compiles
    if not compilers.cpp_compiler:
        what, fix = "no C++ compiler was found", install_compilers(facts)
    elif not compilers.ninja:
        what, fix = "ninja is not installed", install_package(facts, "ninja")
    elif cuda and not compilers.nvcc:
        what = "nvcc, the compiler of CUDA, was not found (CUDA_HOME is not set)"
        fix = f"Install the CUDA toolkit {cuda} and set CUDA_HOME, or use torch's optimizer: remove optimizer and "
        fix += "offload from the DeepSpeed settings"
    elif cuda and compilers.nvcc.split(".")[0] != cuda.split(".")[0]:
        what = f"nvcc is of CUDA {compilers.nvcc}, and torch was built for CUDA {cuda}"
        fix = f"Install the CUDA toolkit {cuda} and set CUDA_HOME to it"
    else:
        return
    yield Diagnosis("deepspeed-compiler", ERROR, what, f"DeepSpeed compiles {name} for {describe_work(facts)}", fix)


def _get_capability(facts: MachineFacts) -> tuple[int, int] | None:
    return facts.torch.gpus[0].capability if facts.torch.gpus else None
