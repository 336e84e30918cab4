"""Counting live tensor bytes while code runs, on real tensors or on tensors without memory."""

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
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


class Watch(TorchDispatchMode):
    """Keeps, for every named stretch of a step, what was alive when most was.

    Storages are counted from the operation that returns them to their release. What a kernel allocates inside is not
    seen, nor is what an allocator keeps back.

    Args:
        columns: of the vocabulary; a matrix as wide is logits.
    """

    def __init__(self, columns: int):
        super().__init__()
        self.moments: dict[str, Counter[str]] = {}
        self.products = 0
        """Floating-point operations in matrix products."""
        self.now: Counter[str] = Counter()
        self._columns = columns
        self._alive: dict[int, tuple[int, str]] = {}
        self._total = 0
        self._names: tuple[str, ...] = ()
        self._highest = 0

    def count(self, tensor: torch.Tensor, part: str) -> None:
        """Count a tensor that was there before, or that belongs elsewhere than it was put."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            size, before = self._alive[key]
            self.now[before] -= size
            self.now[part] += size
            self._alive[key] = size, part
            return
        size = storage.nbytes()
        self._alive[key] = size, part
        self.now[part] += size
        self._total += size
        weakref.finalize(storage, self._released, key)
        self._look()

    def enter(self, *names: str) -> None:
        """From now on it is these stretches."""
        self._names, self._highest = names, 0
        self._look()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _PRODUCTS:
            self.products += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and value.untyped_storage()._cdata not in self._alive:
                wide = value.ndim > 1 and value.shape[-1] == self._columns and value.is_floating_point()
                self.count(value, "logits" if wide else "activations")
        return out

    def _released(self, key: int) -> None:
        size, part = self._alive.pop(key)
        self.now[part] -= size
        self._total -= size

    def _look(self) -> None:
        if self._names and self._total > self._highest:
            self._highest = self._total
            seen = Counter({part: self.now[part] for part in PARTS})
            for name in self._names:
                if name not in self.moments or seen.total() > self.moments[name].total():
                    self.moments[name] = seen


def layer_names(index: int, frozen: int, trained: int) -> list[str]:
    """The names of a layer by its place. Between the places named, memory grows or shrinks evenly from layer to layer,
    so that no layer between them needs more than all of them."""
    kind, place, count = ("frozen", index, frozen) if index < frozen else ("trained", index - frozen, trained)
    places = {"first": 0, "second": 1, "last but one": count - 2, "last": count - 1}
    return [f"{name} {kind} layer" for name, where in places.items() if where == place]


@contextmanager
def followed(watch: Watch, layers: nn.ModuleList, head: nn.Module, trained: int) -> Iterator[None]:
    """Name the stretches of a step by the layer that is at work, forward and backward, and the head with the loss."""
    frozen = len(layers) - trained
    handles = []
    for index, layer in enumerate(layers):
        names = layer_names(index, frozen, trained)

        def before(module: nn.Module, arguments: Any, names: list[str] = names) -> None:
            watch.enter(*(f"{_phase(module)}, {name}" for name in names))

        def after(module: nn.Module, arguments: Any, output: Any, names: list[str] = names) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:  # its gradient is there when the layer's backward pass begins
                hidden.register_hook(lambda gradient: watch.enter(*(f"backward, {name}" for name in names)))

        handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]
    handles.append(head.register_forward_pre_hook(lambda module, arguments: watch.enter(f"{_phase(module)}, loss")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _phase(module: nn.Module) -> str:
    return "forward" if torch.is_grad_enabled() else "evaluation"
