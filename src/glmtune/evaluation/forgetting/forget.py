"""`glmtune forget`: the base that a tuned model is compared with, and the file of the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmtune.config import ForgetConfig, RunConfig
from glmtune.config_checks import check_config
from glmtune.config_parsing import build_dataclass, read_config_file, set_key
from glmtune.errors import ConfigError, RunError
from glmtune.evaluation.candidates import Candidate, open_candidates
from glmtune.evaluation.forgetting.probe import ProbeItem
from glmtune.evaluation.forgetting.probing import ForgettingProbe
from glmtune.evaluation.model_info import find_run
from glmtune.evaluation.model_switcher import ModelSwitcher
from glmtune.evaluation.output_folders import require_result_folder
from glmtune.evaluation.results import FORGETTING_FILE, ForgettingResult
from glmtune.evaluation.scoring import make_printable
from glmtune.methods.tuned_model import hash_folder
from glmtune.utils.io import explain_write_errors, file_timestamp, find_json_object, iso_timestamp, slugify, write_text

EXIT_CODES = {"pass": 0, "warn": 0, "fail": 3}
"""A warning stops no pipeline. 1 is an error and 2 a wrong option."""


def measure_forgetting(
    tuned: Candidate,
    base: Candidate,
    items: Sequence[ProbeItem],
    limits: ForgetConfig,
    *,
    batch_size: int = 8,
    dtype: str | None = None,
    device: str | None = None,
) -> ForgettingResult:
    """Run the probe on a base, then on the model tuned from it.

    Args:
        tuned: a run, an adapter or a fully tuned model.
        base: what it was tuned from, see `open_pair`.
        items: the questions.
        limits: for the verdict.
        batch_size: questions in a batch.
        dtype: precision of both; the checkpoint's own when None.
        device: a GPU if there is one when None.

    Returns:
        The result, without `command` and `finished_at`.

    Raises:
        RunError: the two do not read the same ids.
        ModelError: one of them cannot be loaded, or there is not even memory for one question.
    """
    require_same_vocabulary(base, tuned)
    probe = ForgettingProbe(items, limits, batch_size)
    switcher = ModelSwitcher(dtype, device)
    before = probe.ask_base(*switcher.load(base))
    opened, model = switcher.load(tuned)
    return probe.ask_tuned(before, opened, model, *describe_training(tuned))


def open_pair(
    target: str,
    *,
    base: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
    quantization: str | None = None,
) -> tuple[Candidate, Candidate]:
    """A tuned model and its base, looked at but not loaded.

    Args:
        target: a run, an adapter, or a fully tuned model.
        base: of an adapter, the present path of its base; of a fully tuned model, what it was tuned from.
        family: the generation, for folders that do not say it.
        hub: where a hub id is looked up.
        quantization: of both; that of the training when None.

    Raises:
        ConfigError: the base of a fully tuned model is unknown.
        RunError: a run without a result, or an adapter of another base.
    """
    shared: dict[str, Any] = {"family": family, "hub": hub, "quantization": quantization}
    tuned = open_candidates([target], base=base, **shared)[0]
    if tuned.target.adapter is not None:
        return tuned, tuned.bare()
    where = base or (tuned.config.model.path if tuned.run else None)
    if where is None:
        raise ConfigError(f"{target}: a full model whose base is unknown.", "Give it with --base.")
    return tuned, open_candidates([where], **shared)[0]


def read_limits(target: str, overrides: Sequence[str]) -> ForgetConfig:
    """The run's own thresholds, or the defaults, with `forget.key=value` on top.

    Raises:
        ConfigError: an override of something else, an unknown key or a wrong value.
    """
    run = find_run(target)
    tree: dict[str, Any] = {"model": "any", "data": "any"}
    if run is not None:
        tree["forget"] = read_config_file(run.config).get("forget") or {}
    for override in overrides:
        if not override.strip().startswith("forget."):
            names = ", ".join(field.name for field in dataclasses.fields(ForgetConfig))
            raise ConfigError(f"--set {override}: the probe has no such setting.", f"It takes forget.* with {names}.")
        set_key(tree, override)
    config: RunConfig = build_dataclass(RunConfig, tree, str(run.config) if run else "options")
    check_config(config)
    return config.forget


def require_same_vocabulary(base: Candidate, tuned: Candidate) -> None:
    """Require that two models have the same token ids.

    Raises:
        RunError: the models do not read the same ids, so the one was not tuned from the other.
    """
    if (base.base.family.name, base.vocabulary) != (tuned.base.family.name, tuned.vocabulary):
        raise RunError(
            f"{tuned.name} ({tuned.base.family.title}) was not tuned from {base.name} ({base.base.family.title}): "
            "they have other vocabularies.",
            "Give the base that it was tuned from.",
        )


def describe_training(candidate: Candidate) -> tuple[RunConfig | None, int | None]:
    """The settings and the number of steps of the run behind a candidate, for advice."""
    run = candidate.run
    if run is None:
        return None, None
    return candidate.config, (find_json_object(run.summary) or {}).get("steps")


def default_forget_output(target: str, candidate: Candidate) -> Path:
    """The run's own folder, where its report shows the probe, for a run; a new one in `evals` for anything else."""
    run = candidate.run
    if run is not None and run.root.resolve() == Path(target).expanduser().resolve():
        return run.root
    return Path("evals") / f"forget-{slugify(candidate.name, 'model')}-{file_timestamp()}"


def require_forget_folder(folder: Path, tuned: Candidate, base: Candidate) -> None:
    """Require that a folder is new or empty, or the run itself, or holds a probe of the same two models.

    Raises:
        RunError: it holds something else.
    """
    if tuned.run is not None and tuned.run.root.resolve() == folder.resolve():
        return  # the run's own probe, which belongs to its present weights
    require_result_folder(folder, (FORGETTING_FILE,), "a forgetting probe")
    earlier = find_json_object(folder / FORGETTING_FILE)
    if earlier is None:
        return
    for side, candidate in (("base", base), ("tuned", tuned)):
        model = earlier.get(side)
        name = model.get("name") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not _is_same_model(model, candidate):
            raise RunError(
                f"{folder}: holds a forgetting probe of another model ({side} {name or 'unknown'}).",
                "Choose another --output, or remove the folder.",
            )


def _is_same_model(model: dict[str, Any], candidate: Candidate) -> bool:
    adapter = candidate.target.adapter
    digest = hash_folder(adapter) if adapter else None
    return (model.get("fingerprint"), model.get("adapter_digest")) == (candidate.base.fingerprint, digest)


def write_forgetting(folder: Path, result: ForgettingResult, command: str) -> Path:
    """Write forgetting.json.

    Raises:
        RunError: it cannot be written.
    """
    path = folder / FORGETTING_FILE
    tree = replace(result, command=command, finished_at=iso_timestamp()).to_dict()
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, make_printable(json.dumps(tree, ensure_ascii=False, indent=2)) + "\n")
    return path
