"""Models held in memory for the chat: loaded once, two at most, one that answers at a time."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glmtune.errors import ModelError
from glmtune.generation.cpu_prepack import prepack_weights
from glmtune.generation.load import LoadedModel, load_for_generation
from glmtune.methods.prefix_attention import disable_prefix, find_prefix
from glmtune.methods.tuned_model import ModelTarget, resolve_target
from glmtune.models.devices import free_cached_memory

_WEIGHTS = (".safetensors", ".bin", ".json", ".yaml")


@dataclass
class _Held:
    target: str
    found: ModelTarget
    state: float
    """When its files changed last: a run that was tuned further is loaded anew."""
    opened: LoadedModel


class HeldModels:
    """Opens models for the page and keeps them for the next question.

    A base that stands under an adapter in memory is not loaded a second time: it answers with the adapter switched
    off. Answers are given one after another, whoever asks.

    Args:
        most: models in memory at once; the one used longest ago goes first.
    """

    def __init__(self, most: int = 2):
        self._most = most
        self._held: list[_Held] = []
        self._lock = threading.Lock()

    def list_targets(self) -> list[str]:
        """What is in memory."""
        return [held.target for held in self._held]

    def clear(self) -> None:
        """Give the memory back, once the reply that is being made has ended."""
        with self._lock:
            self._held.clear()
            gc.collect()
            free_cached_memory()

    @contextmanager
    def answering(self, target: str) -> Iterator[LoadedModel]:
        """The model behind `target`, for as long as the block lasts; nobody else uses a model meanwhile.

        Raises:
            ModelError: its folder is gone, or it cannot be loaded.
            RunError: a run without a result, or an adapter without its base.
        """
        with self._lock:
            self._require_there(target)
            held, bare = self._get(target)
            with _base_alone(held.opened.model) if bare else nullcontext():
                yield replace(held.opened, prefix="") if bare else held.opened

    def _require_there(self, target: str) -> None:
        if Path(target).is_absolute() and not Path(target).is_dir():
            self._held = [held for held in self._held if held.target != target]
            raise ModelError(f"{target}: is not there any more.", "Refresh the list and choose another model.")

    def _get(self, target: str) -> tuple[_Held, bool]:
        """What answers for `target`, and whether its adapter must be switched off."""
        found = resolve_target(target)
        state = _last_change(found)
        self._held = [held for held in self._held if held.target != target or held.state == state]
        for held in self._held:
            if held.target == target or _is_base_of(found, held.found):
                self._held.remove(held)
                self._held.append(held)
                return held, held.target != target
        del self._held[: len(self._held) - self._most + 1]
        opened = load_for_generation(target)
        prepack_weights(opened.model)
        held = _Held(target, found, state, opened)
        self._held.append(held)
        return held, False


def _is_base_of(wanted: ModelTarget, held: ModelTarget) -> bool:
    """Whether `held` is an adapter on the very base that is wanted."""
    if wanted.adapter is not None or held.adapter is None or held.quantization is not None:
        return False
    return Path(wanted.base).resolve() == Path(held.base).resolve()


def _base_alone(model: Any) -> AbstractContextManager[Any]:
    return disable_prefix(model) if find_prefix(model) is not None else model.disable_adapter()


def _last_change(found: ModelTarget) -> float:
    folders = [folder for folder in (found.adapter, Path(found.base)) if folder is not None and folder.is_dir()]
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in _WEIGHTS]
    return max((path.stat().st_mtime for path in files), default=0.0)
