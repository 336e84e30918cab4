"""What a model and a config need of the machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.config import RunConfig, read_tree
from glmtune.config_parsing import build_dataclass
from glmtune.doctor.machine_facts import WorkFacts
from glmtune.errors import GlmtuneError
from glmtune.hub import find_local_folder, is_hub_id

_WEIGHTS = ("*.safetensors", "*.bin")


def read_work(model: str, config: str, has_gpu: bool) -> WorkFacts:
    """Read the model's folder and the config; what is wrong with them is part of the result.

    Args:
        model: folder or hub id; empty: that of the config.
        config: file of a run, ours or another trainer's; empty for none.
        has_gpu: whether torch uses one.
    """
    work = WorkFacts(model=model, config=config)
    run = None
    if config:
        try:
            run = _read_run(config, model)
        except GlmtuneError as error:
            work = replace(work, config_error=_join(error, config))
    if run is not None:
        work = _describe_run(work, run, has_gpu)
    if work.model:
        work = _describe_model(work)
    if run is not None and not work.model_error and not work.is_hub_id and has_gpu and not work.use_cpu:
        work = replace(work, plan=_find_lack_of_memory(run))
    return work


def _read_run(config: str, model: str) -> RunConfig:
    from glmtune.migrate import translate_command, update_training_keys

    translation = translate_command([config])
    tree = read_tree(config) if translation is None else translation.tree
    if isinstance(tree.get("training"), dict):
        tree = {**tree, "training": update_training_keys(tree["training"])[0]}
    if model:
        section = tree.get("model")
        tree = {**tree, "model": {**section, "path": model} if isinstance(section, dict) else {"path": model}}
    return build_dataclass(RunConfig, tree, config)


def _describe_run(work: WorkFacts, run: RunConfig, has_gpu: bool) -> WorkFacts:
    training: dict[str, Any] = run.training
    settings = training.get("deepspeed") or {}
    if isinstance(settings, str):
        settings = _read_settings(settings)
    compiles: list[str] = []
    if settings:
        from glmtune.training.deepspeed import list_compiled_parts

        compiles = list_compiled_parts(settings, has_gpu)
    return replace(
        work,
        model=work.model or run.model.path,
        hub=run.model.hub,
        method=run.method,
        quantization=run.model.quantization or "",
        bf16=bool(training.get("bf16")) or run.model.precision == "bf16",
        use_cpu=bool(training.get("use_cpu")),
        deepspeed=bool(training.get("deepspeed")),
        deepspeed_compiles=", ".join(compiles),
        workers=int(training.get("dataloader_num_workers") or 0),
    )


def _read_settings(path: str) -> dict[str, Any]:
    from glmtune.utils.io import find_json_object

    return find_json_object(Path(path).expanduser()) or {}


def _describe_model(work: WorkFacts) -> WorkFacts:
    folder = find_local_folder(work.model)
    if folder is None:
        if is_hub_id(work.model):
            return replace(work, is_hub_id=True)
        return replace(work, model_error=f"{work.model}: no such folder")
    from glmtune.methods.tuned_model import resolve_target
    from glmtune.models.checkpoints import inspect_checkpoint

    try:
        target = resolve_target(folder)
        base = find_local_folder(target.base)
        if base is None:
            return replace(work, model=target.base, is_hub_id=True)
        sizes = [sum(path.stat().st_size for path in base.glob(pattern) if path.is_file()) for pattern in _WEIGHTS]
        work = replace(work, model_bytes=sizes[0] or sizes[1])
        checkpoint = inspect_checkpoint(base, family=target.family)
    except GlmtuneError as error:
        return replace(work, model_error=_join(error))
    packed = f"packed{checkpoint.packed_bits}" if checkpoint.packed_bits else ""
    quantization = work.quantization or target.quantization or checkpoint.stored_quantization or packed
    return replace(work, quantization=quantization)


def _find_lack_of_memory(run: RunConfig) -> str:
    """What the plan of a run says if it does not fit, and on a second line the change that makes it fit."""
    from glmtune.training.plan.plan_report import format_change, format_memory
    from glmtune.training.plan.planner import make_plan

    try:
        plan = make_plan(run)
    except GlmtuneError:
        return ""  # of the data: glmtune plan says it
    if plan.verdict != "too large":
        return ""
    change = f"\n{format_change(plan.change)}" if plan.change and plan.change.fits else ""
    return format_memory(plan, forced=False) + change


def _join(error: GlmtuneError, prefix: str = "") -> str:
    return error.message.removeprefix(f"{prefix}: ").rstrip(".")
