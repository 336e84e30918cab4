"""Several models in several forms, each measured in a process of its own, for memory peaks cannot be taken back."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from glmtune.bench.measure import check_sizes, measure, weights_held
from glmtune.errors import ConfigError, GlmtuneError, ModelError
from glmtune.evaluation.candidates import names_of
from glmtune.generation.compiled_step import check_compile, compile_step
from glmtune.methods.lora_merge import merge
from glmtune.methods.ptuning import is_prefix_folder
from glmtune.methods.tuned_model import load_onto, resolve_target
from glmtune.models.loading import inspect_base, to_device
from glmtune.training.peak import highest_resident

VARIANTS = {"fp32": None, "16-bit": None, "int8": "packed8", "int4": "packed4", "nf4": "nf4"}
"""By name: the quantisation that a full-precision checkpoint is loaded with."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    prompt_tokens: int = 128
    new_tokens: int = 64
    batch_sizes: tuple[int, ...] = (1, 8)
    repeats: int = 3


@dataclass(frozen=True)
class Case:
    """A model in one form."""

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
    """Whether its step is."""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.form}, {self.variant}"


def cases_of(
    targets: Sequence[str],
    variants: Sequence[str],
    sizes: Sizes,
    *,
    base: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    compiled: bool = False,
) -> list[Case]:
    """What there is to measure; everything is looked at before anything is loaded.

    Args:
        targets: runs, adapters, checkpoint folders or hub ids.
        variants: names of `VARIANTS`. Merging is measured in full precision alone.
        sizes: checked against each model's positions.
        base: where an adapter's base lies now.
        dtype: of `16-bit` and what quantised layers compute in; bf16 when None.
        device: a GPU if there is one when None.
        compiled: measure compiled steps; on a GPU alone.

    Raises:
        ConfigError: an unknown variant, compiled steps on a CPU, sizes that a model cannot have, or nothing left
            to measure.
        ModelError, RunError: a target that cannot be opened.
    """
    for variant in variants:
        if variant not in VARIANTS:
            near = difflib.get_close_matches(variant, VARIANTS, 1)
            raise ConfigError(
                f"There is no variant {variant!r}." + (f" Did you mean {near[0]}?" if near else ""),
                f"Known: {', '.join(VARIANTS)}.",
            )
    where = str(to_device(device))
    if compiled:
        check_compile(where)
    cases = []
    for target, name in zip(targets, names_of(targets), strict=True):
        found = resolve_target(target, base=base)
        inspected = inspect_base(found.base, family=found.family, hub=found.hub)
        for size in sizes.batch_sizes:
            check_sizes(inspected.config, sizes.prompt_tokens, sizes.new_tokens, size, sizes.repeats)
        kept = f"int{inspected.packed_bits}" if inspected.packed_bits else inspected.stored
        for variant in variants:
            if kept and variant != kept:
                continue
            precision = "fp32" if variant == "fp32" else dtype or "bf16"
            forms = ["base", *(_tuned_forms(found.adapter, variant) if found.adapter else [])]
            quantization = None if kept else VARIANTS[variant]
            cases += [
                Case(name, target, form, variant, quantization, precision, where, base, compiled) for form in forms
            ]
    if not cases or not sizes.batch_sizes:
        raise ConfigError(
            f"Nothing to measure: {', '.join(targets) or 'no model'} in {', '.join(variants) or 'no variant'}, "
            f"batch sizes {', '.join(map(str, sizes.batch_sizes)) or 'none'}.",
            "A checkpoint that is quantised already can be measured as it is alone: --variants int4, say.",
        )
    return cases


def _tuned_forms(adapter: Path, variant: str) -> list[str]:
    """A prefix goes onto everything and is never merged; a LoRA not onto the published int8 and int4."""
    if is_prefix_folder(adapter):
        return ["adapter"]
    return ["adapter", "merged"] if VARIANTS[variant] is None else ["adapter"] * (variant == "nf4")


def run_cases(cases: Sequence[Case], sizes: Sizes, told: Callable[[Case], None] | None = None) -> list[dict[str, Any]]:
    """Measure one case after the other, each in a new process.

    Returns:
        Per case what `measure_case` returns.

    Raises:
        GlmtuneError: what a process met that a user can mend.
    """
    results = []
    for case in cases:
        if told:
            told(case)
        order = json.dumps({"case": asdict(case), "sizes": asdict(sizes)})
        command = [sys.executable, "-m", "glmtune.bench.cases"]
        done = subprocess.run(command, input=order, capture_output=True, text=True, encoding="utf-8", check=False)
        answer = _last_object(done.stdout)
        if "error" in answer:
            raise ModelError(f"{case.title}: {answer['error']}", answer.get("hint"))
        if not answer:
            raise RuntimeError(f"{case.title}: the measuring process ended with {done.returncode}.\n{done.stderr}")
        results.append(answer)
    return results


def measure_case(case: Case, sizes: Sizes) -> dict[str, Any]:
    """Load and measure in this process.

    Returns:
        The case, its measurements, and bytes: `weights`, `loaded` and `peak` (growth of this process, or memory
        allocated on the GPU).
    """
    memory = _Memory(case.device)
    found = resolve_target(case.target, base=case.base)
    inspected = inspect_base(found.base, family=found.family, hub=found.hub)
    adapter = None if case.form == "base" else found.adapter
    model: Any = load_onto(inspected, adapter, dtype=case.dtype, device=case.device, quantization=case.quantization)
    if case.form == "merged":
        model = merge(model)
    if case.compiled:
        compile_step(model)
    weights = weights_held(model)
    loaded = memory.now()
    measured = [
        measure(
            model,
            prompt_tokens=sizes.prompt_tokens,
            new_tokens=sizes.new_tokens,
            batch_size=size,
            repeats=sizes.repeats,
        ).as_dict()
        for size in sizes.batch_sizes
    ]
    return {
        **{key: value for key, value in asdict(case).items() if value is not None},
        "weights": weights,
        "loaded": loaded,
        "peak": memory.peak(),
        "measured": measured,
    }


class _Memory:
    """How much this process takes beyond what it took before: of the GPU, or resident."""

    def __init__(self, device: str):
        self._gpu = device.startswith("cuda")
        self._before = 0 if self._gpu else psutil.Process().memory_info().rss

    def now(self) -> int:
        if self._gpu:
            return torch.cuda.memory_allocated()
        return psutil.Process().memory_info().rss - self._before

    def peak(self) -> int:
        if self._gpu:
            return torch.cuda.max_memory_allocated()
        return max((highest_resident() or 0) - self._before, self.now())


def _last_object(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            value = json.loads(line)
            return value if isinstance(value, dict) else {}
    return {}


def main() -> None:
    """One case: an order on standard input, a line of JSON on standard output."""
    from glmtune.utils.console import silence_libraries

    silence_libraries()
    order = json.loads(sys.stdin.read())
    sizes = order["sizes"] | {"batch_sizes": tuple(order["sizes"]["batch_sizes"])}
    try:
        answer = measure_case(Case(**order["case"]), Sizes(**sizes))
    except GlmtuneError as error:
        answer = {"error": error.message, "hint": error.hint}
    print(json.dumps(answer, ensure_ascii=True))


if __name__ == "__main__":
    main()
