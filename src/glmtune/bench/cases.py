"""Measure models in several variants, each in a process of its own: a memory peak cannot be reset."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from glmtune.bench.measure import check_sizes, count_weight_bytes, measure_model
from glmtune.errors import ConfigError, GlmtuneError, ModelError
from glmtune.evaluation.candidates import list_names
from glmtune.generation.compiled_step import compile_step, find_compiled_step, require_gpu, unwrap_model
from glmtune.generation.graph_step import describe_graph
from glmtune.methods.lora_merge import merge_adapter
from glmtune.methods.ptuning import is_prefix_folder
from glmtune.methods.tuned_model import load_with_adapter, resolve_target
from glmtune.methods.value_head_file import require_generating
from glmtune.models.checkpoints import inspect_checkpoint
from glmtune.models.devices import parse_device
from glmtune.quantization.device_kernels import pick_path
from glmtune.quantization.packed_linear import PackedLinear
from glmtune.training.memory import PeakMemory, read_peak_memory, read_peak_rss
from glmtune.utils.console import print_warning, silence_libraries

VARIANTS = {"fp32": None, "16-bit": None, "packed8": "packed8", "packed4": "packed4", "nf4": "nf4"}
"""By name: the quantisation that a full-precision checkpoint is loaded with."""

OLD_VARIANTS = {"int8": "packed8", "int4": "packed4"}
"""Names of earlier versions."""


@dataclass(frozen=True)
class BenchmarkSizes:
    """What is measured."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1, 8)
    repeats: int = 3


@dataclass(frozen=True)
class BenchmarkCase:
    """A model in one form and variant. The fields are keys of bench.json."""

    name: str
    target: str
    form: str
    """`base`, `adapter` (live on its base) or `merged`."""
    variant: str
    quantization: str | None
    dtype: str
    device: str
    base: str | None = None
    compiled: bool = False
    """Whether its step is compiled."""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.form}, {self.variant}"


def resolve_variants(names: Sequence[str]) -> list[str]:
    """Names of `VARIANTS`; old names are replaced, with a notice.

    Raises:
        ConfigError: an unknown name.
    """
    variants = []
    for name in names:
        variant = OLD_VARIANTS.get(name, name)
        if variant not in VARIANTS:
            near = difflib.get_close_matches(name, [*VARIANTS, *OLD_VARIANTS], 1)
            raise ConfigError(
                f"There is no variant {name!r}."
                + (f" Did you mean {OLD_VARIANTS.get(near[0], near[0])}?" if near else ""),
                f"Known: {', '.join(VARIANTS)}.",
            )
        if variant != name:
            print_warning(f"--variants: {name} is now called {variant}.")
        variants.append(variant)
    return list(dict.fromkeys(variants))


def make_cases(
    targets: Sequence[str],
    variants: Sequence[str],
    sizes: BenchmarkSizes,
    *,
    base: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    compiled: bool = False,
) -> list[BenchmarkCase]:
    """List what there is to measure; every model is inspected before any is loaded.

    Args:
        targets: runs, adapters, checkpoint folders or hub ids.
        variants: names of `VARIANTS`. A merged model is measured in full precision alone.
        sizes: checked against each model's positions.
        base: folder or hub id of an adapter's base, if it was moved.
        dtype: of `16-bit`, and of the products with quantised weights; None: bf16.
        device: None: a GPU if there is one.
        compiled: measure compiled steps; on a GPU alone.

    Raises:
        ConfigError: an unknown variant, compiled steps on a CPU, sizes that a model does not support, or nothing to
            measure.
        ModelError, RunError: a target that cannot be opened.
    """
    variants = resolve_variants(variants)
    device_name = str(parse_device(device))
    if compiled:
        require_gpu(device_name)
    cases = []
    for target, name in zip(targets, list_names(targets), strict=True):
        resolved = resolve_target(target, base=base)
        inspected = inspect_checkpoint(resolved.base, family=resolved.family, hub=resolved.hub)
        require_generating(resolved.adapter or inspected.folder)
        for size in sizes.batch_sizes:
            check_sizes(inspected.config, sizes.prompt_tokens, sizes.new_tokens, size, sizes.repeats)
        stored = f"packed{inspected.packed_bits}" if inspected.packed_bits else inspected.stored_quantization
        for variant in variants:
            # A quantised checkpoint is measured as it is; one of bitsandbytes' int8 where 8 bits are asked for.
            if stored and variant != OLD_VARIANTS.get(stored, stored):
                continue
            precision = "fp32" if variant == "fp32" else dtype or "bf16"
            forms = ["base"]
            if resolved.adapter and is_prefix_folder(resolved.adapter):
                forms += ["adapter"]  # on every variant; it cannot be merged
            elif resolved.adapter and VARIANTS[variant] is None:
                forms += ["adapter", "merged"]
            elif resolved.adapter and variant == "nf4":  # packed weights do not support LoRA
                forms += ["adapter"]
            quantization = None if stored else VARIANTS[variant]
            settings = stored or variant, quantization, precision, device_name, base, compiled
            cases += [BenchmarkCase(name, target, form, *settings) for form in forms]
    if not cases or not sizes.batch_sizes:
        raise ConfigError(
            f"Nothing to measure: {', '.join(targets) or 'no model'} in {', '.join(variants) or 'no variant'}, "
            f"batch sizes {', '.join(map(str, sizes.batch_sizes)) or 'none'}.",
            "A checkpoint that is quantised already is measured as it is: for example with --variants packed4.",
        )
    return cases


def run_cases(
    cases: Sequence[BenchmarkCase], sizes: BenchmarkSizes, on_case: Callable[[BenchmarkCase], None] | None = None
) -> list[dict[str, Any]]:
    """Measure one case after the other, each in a new process.

    Args:
        cases: from `make_cases`.
        sizes: of prompts, replies and batches.
        on_case: called before each case.

    Returns:
        Per case what `measure_case` returns.

    Raises:
        GlmtuneError: an error of a process that a user can fix.
    """
    results = []
    for case in cases:
        if on_case:
            on_case(case)
        request = json.dumps({"case": asdict(case), "sizes": asdict(sizes)})
        command = [sys.executable, "-m", "glmtune.bench.cases"]
        process = subprocess.run(command, input=request, capture_output=True, text=True, encoding="utf-8", check=False)
        # Libraries may print to standard output too: the result is the last line that is an object.
        line = next((line for line in reversed(process.stdout.splitlines()) if line.startswith("{")), "{}")
        result = json.loads(line)
        if "error" in result:
            raise ModelError(f"{case.title}: {result['error']}", result.get("hint"))
        if not result:
            raise RuntimeError(
                f"{case.title}: the measuring process ended with {process.returncode}.\n{process.stderr}"
            )
        results.append(result)
    return results


def measure_case(case: BenchmarkCase, sizes: BenchmarkSizes) -> dict[str, Any]:
    """Load and measure a model in this process.

    Returns:
        The case, its measurements, and bytes: `weights`, `loaded`, `peak` (growth of this process, or memory
        allocated on the GPU) and `peak_on_device` (what the GPU had in use; None on a CPU).
    """
    memory = _MemoryMeter(case.device)
    resolved = resolve_target(case.target, base=case.base)
    inspected = inspect_checkpoint(resolved.base, family=resolved.family, hub=resolved.hub)
    adapter = None if case.form == "base" else resolved.adapter
    model: Any = load_with_adapter(
        inspected, adapter, dtype=case.dtype, device=case.device, quantization=case.quantization
    )
    if case.form == "merged":
        model = merge_adapter(model)
    if case.compiled:
        compile_step(model)
    weights = count_weight_bytes(model)
    loaded = memory.read_current()
    measured = []
    for size in sizes.batch_sizes:
        measurement = measure_model(
            model,
            prompt_tokens=sizes.prompt_tokens,
            new_tokens=sizes.new_tokens,
            batch_size=size,
            repeats=sizes.repeats,
        )
        measured.append({**asdict(measurement), "paths": describe_paths(model)})
    peak = memory.read_peak()
    return {
        **{key: value for key, value in asdict(case).items() if value is not None},
        "weights": weights,
        "loaded": loaded,
        "peak": peak.peak_memory_bytes,
        "peak_on_device": peak.on_device,
        "measured": measured,
    }


def describe_paths(model: Any) -> dict[str, str]:
    """What decoding chose by measuring on this GPU, in words: a recorded step, and kernels for packed weights."""
    if model.device.type != "cuda":
        return {}
    paths = {} if find_compiled_step(model) else {"graph": describe_graph(unwrap_model(model))}
    bits = {module.bits for module in model.modules() if isinstance(module, PackedLinear)}
    return paths | {f"packed{n}": pick_path(model.device, n, unwrap_model(model).dtype).reason for n in sorted(bits)}


class _MemoryMeter:
    """Bytes allocated on the GPU, or by which this process has grown."""

    def __init__(self, device: str):
        self._on_gpu = device.startswith("cuda")
        self._start = 0 if self._on_gpu else psutil.Process().memory_info().rss

    def read_current(self) -> int:
        if self._on_gpu:
            return torch.cuda.memory_allocated()
        return psutil.Process().memory_info().rss - self._start

    def read_peak(self) -> PeakMemory:
        if self._on_gpu:
            return read_peak_memory(on_gpu=True)
        return PeakMemory(max((read_peak_rss() or 0) - self._start, self.read_current()))


def main() -> None:
    """Measure one case: a request on standard input, a line of JSON on standard output."""
    silence_libraries()
    request = json.loads(sys.stdin.read())
    sizes = request["sizes"] | {"batch_sizes": tuple(request["sizes"]["batch_sizes"])}
    try:
        result = measure_case(BenchmarkCase(**request["case"]), BenchmarkSizes(**sizes))
    except GlmtuneError as error:
        result = {"error": error.message, "hint": error.hint}
    print(json.dumps(result, ensure_ascii=True))


if __name__ == "__main__":
    main()
