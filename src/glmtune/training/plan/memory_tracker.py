"""Count the bytes of live tensors while code runs, on real tensors or on tensors without memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
"""What bytes are counted as."""

_aten: Any = torch.ops.aten
_MATMULS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


class MemoryTracker(TorchDispatchMode):
    """Records the live bytes of each phase of a step at the phase's peak.

    Storages are counted from the operation that returns them to their release. What a kernel allocates inside is not
    counted, nor is what an allocator keeps.

    Args:
        vocab_size: a matrix with as many columns is counted as logits.
    """

    def __init__(self, vocab_size: int):
        super().__init__()
        self.phases: dict[str, Counter[str]] = {}
        """Bytes by part at the peak of each phase."""
        self.flops = 0
        """Floating-point operations in matrix products."""
        self.live: Counter[str] = Counter()
        """Bytes by part now."""
        self._vocab_size = vocab_size
        self._storages: dict[int, tuple[int, str]] = {}
        self._total = 0
        self._phase_names: tuple[str, ...] = ()
        self._peak = 0

    def add_tensor(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor that was created before, or count it as another part from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            size, old_part = self._storages[key]
            self.live[old_part] -= size
            self.live[part] += size
            self._storages[key] = size, part
            return
        size = storage.nbytes()
        self._storages[key] = size, part
        self.live[part] += size
        self._total += size
        weakref.finalize(storage, self._remove_storage, key)
        self._record_peak()

    def enter_phase(self, *names: str) -> None:
        """Start a phase; the one before ends."""
        self._phase_names, self._peak = names, 0
        self._record_peak()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _MATMULS:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self._storages:
                is_logits = value.ndim > 1 and value.shape[-1] == self._vocab_size and value.is_floating_point()
                self.add_tensor(value, "logits" if is_logits else "activations")
        return out

    def _remove_storage(self, key: int) -> None:
        size, part = self._storages.pop(key)
        self.live[part] -= size
        self._total -= size

    def _record_peak(self) -> None:
        if self._phase_names and self._total > self._peak:
            self._peak = self._total
            parts = Counter({part: self.live[part] for part in PARTS})
            for name in self._phase_names:
                if name not in self.phases or parts.total() > self.phases[name].total():
                    self.phases[name] = parts


@contextmanager
def track_layers(tracker: MemoryTracker, layers: nn.ModuleList, head: nn.Module, trained: int) -> Iterator[None]:
    """Name the phases of a step by the layer that computes, forward and backward, and the head with the loss.

    Between the layers that are named, memory grows or shrinks evenly from layer to layer, so that no layer between
    them needs more than all of them.

    Args:
        tracker: enters the phases.
        layers: of the model; the last `trained` of them are trained.
        head: computes the logits.
        trained: number of trained layers.
    """
    frozen = len(layers) - trained
    handles = []
    for index, layer in enumerate(layers):
        kind, place, count = ("frozen", index, frozen) if index < frozen else ("trained", index - frozen, trained)
        places = {"first": 0, "second": 1, "last but one": count - 2, "last": count - 1}
        names = [f"{name} {kind} layer" for name, value in places.items() if value == place]

        def enter_forward(module: nn.Module, arguments: Any, names: list[str] = names) -> None:
            tracker.enter_phase(*(f"{_forward_name()}, {name}" for name in names))

        def enter_backward_later(module: nn.Module, arguments: Any, output: Any, names: list[str] = names) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:  # its gradient is computed just before the layer's backward pass begins
                hidden.register_hook(lambda gradient: tracker.enter_phase(*(f"backward, {name}" for name in names)))

        handles += [layer.register_forward_pre_hook(enter_forward), layer.register_forward_hook(enter_backward_later)]
    handles.append(head.register_forward_pre_hook(lambda *_: tracker.enter_phase(f"{_forward_name()}, loss")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _forward_name() -> str:
    return "forward" if torch.is_grad_enabled() else "evaluation"
