"""What is compared: models that were looked at but not loaded, so that a wrong one is refused before minutes pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from glmtune.config import RunConfig
from glmtune.data.cache import hash_tokenizer
from glmtune.evaluation.model_info import ModelInfo, find_run, read_settings
from glmtune.methods.base_info import require_same_base
from glmtune.methods.tuned_model import ModelTarget, find_newest_inside, hash_folder, is_adapter, resolve_target
from glmtune.methods.value_head_file import require_generating
from glmtune.models.checkpoints import Checkpoint, inspect_checkpoint
from glmtune.models.tokenizers import load_tokenizer
from glmtune.run_dir import RunDir, is_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Candidate:
    """A base, or a base with an adapter, and its quantisation."""

    name: str
    run: RunDir | None
    """The run that it is, or is the result of."""
    config: RunConfig
    """The run's settings; the defaults for a model that no run made."""
    target: ModelTarget
    base: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    adapter_digest: str | None

    @property
    def base_key(self) -> tuple[str, str, str | None, bool]:
        """Candidates with the same key can take turns on one base in memory."""
        return self.base.family.name, self.base.fingerprint, self.target.quantization, self.target.double_quantization

    @property
    def identity(self) -> tuple[str, str, str | None, bool, str | None]:
        """Two candidates that share it give the same replies."""
        return (*self.base_key, self.adapter_digest)

    @property
    def vocabulary(self) -> str:
        """Candidates that share it have the same ids, but for tokens that were added to the published vocabulary."""
        return hash_tokenizer(self.tokenizer, with_added=False)

    def info(self, dtype: torch.dtype) -> ModelInfo:
        """How results name it, once the precision is known."""
        return ModelInfo.from_loaded(self.name, self.base, self.target, self.adapter_digest, dtype)

    def bare(self) -> Candidate:
        """Its base without the adapter, in the same quantisation."""
        target = replace(self.target, adapter=None, prefix="")
        return replace(self, name=short_name(self.target.base), run=None, target=target, adapter_digest=None)


def open_candidates(
    targets: Sequence[str],
    *,
    base: str | None = None,
    family: str | None = None,
    hub: str = "huggingface",
    quantization: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Candidate]:
    """Inspect the models to compare.

    Args:
        targets: runs, adapters, checkpoint folders or hub ids.
        base: of the adapters, if it was moved; not used for full models.
        family: the generation, for folders that do not say it.
        hub: where a hub id is looked up.
        quantization: of all; None: of each as it was tuned, and of a base as its first adapter.
        overrides: `data.key=value`, for all.

    Raises:
        RunError: a run without a result, an adapter without its base, or with another.
        ModelError: a base that cannot be loaded.
        ConfigError: an unknown setting.
    """
    names = list_names(targets)
    candidates = [
        _inspect_candidate(target, name, base, family, hub, quantization, list(overrides))
        for target, name in zip(targets, names, strict=True)
    ]
    if quantization:
        return candidates
    return [_load_as_adapters(candidate, candidates) for candidate in candidates]


def list_names(targets: Sequence[str]) -> list[str]:
    """A short name each; namesakes get their parent's name, then a number."""
    names = [short_name(target) for target in targets]
    twice = Counter(names)
    longer = [_add_parent(t) if twice[n] > 1 else n for t, n in zip(targets, names, strict=True)]
    seen: Counter[str] = Counter()
    numbered = []
    for name in longer:
        seen[name] += 1
        numbered.append(f"{name} ({seen[name]})" if seen[name] > 1 else name)
    return numbered


def short_name(target: str) -> str:
    """What a person calls it: the run's name, the folder's, or the hub id."""
    folder = Path(target).expanduser()
    if not folder.is_dir():
        return target
    folder = folder.resolve()
    run = find_run(target)
    if run is None or run.root.resolve() == folder:
        return folder.name
    checkpoint = folder.name.startswith("checkpoint-")
    return f"{run.root.resolve().name}/{folder.name}" if checkpoint else run.root.resolve().name


def _add_parent(target: str) -> str:
    folder = Path(target).expanduser()
    return f"{folder.resolve().parent.name}/{folder.resolve().name}" if folder.is_dir() else target


def _inspect_candidate(
    target: str,
    name: str,
    base: str | None,
    family: str | None,
    hub: str,
    quantization: str | None,
    overrides: list[str],
) -> Candidate:
    folder = Path(target).expanduser()
    needs_base = is_run(folder) or is_adapter(find_newest_inside(folder))
    config = read_settings(target, overrides)
    resolved = resolve_target(target, base=base if needs_base else None, family=family, hub=hub)
    inspected = inspect_checkpoint(resolved.base, family=resolved.family, hub=resolved.hub)
    require_generating(resolved.adapter or inspected.folder)
    if resolved.adapter is not None:
        require_same_base(resolved.adapter, inspected.fingerprint, inspected.folder)
    return Candidate(
        name,
        find_run(target),
        config,
        replace(resolved, quantization=quantization or resolved.quantization),
        inspected,
        load_tokenizer(inspected.folder, family=inspected.family.name, adapter=resolved.adapter),
        hash_folder(resolved.adapter) if resolved.adapter else None,
    )


def _load_as_adapters(candidate: Candidate, all_: Sequence[Candidate]) -> Candidate:
    """Give a plain base the quantisation of its adapters: only the tuning differs then, and it is loaded once."""
    if candidate.target.adapter is not None or candidate.target.quantization:
        return candidate
    for other in all_:
        if other.target.adapter is not None and other.base.fingerprint == candidate.base.fingerprint:
            other_target = other.target
            quantization, double = other_target.quantization, other_target.double_quantization
            return replace(
                candidate, target=replace(candidate.target, quantization=quantization, double_quantization=double)
            )
    return candidate
